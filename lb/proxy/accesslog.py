"""One line a request, written after the request and in company.

The path of a request only does `records.append(record)`. Formatting and writing wait for a
flush: every 200 ms, or as soon as there are `FLUSH_LINES`. A log that cannot be written
costs lines, which are counted, and never a request; see `outlet` for how that is done, and
`logformat` for what the lines look like.
"""

from __future__ import annotations

import logging

from lb.logformat import Record, make_format
from lb.metrics import Meters
from lb.model import AccessLog as Settings
from lb.outlet import Outlet

FLUSH_LINES = 256
FLUSH_SECONDS = 0.2
COMPLAINT_SECONDS = 60.0  # Between two complaints of one worker about the same log.

_log = logging.getLogger("lb.accesslog")


class AccessLog:
    """
    The access log of one worker.

    Hot path: `if log.enabled: log.append(record)`, then `log.flush()` once `log.full()`. Call
    `tick` from the worker's timer, at least every 200 ms. `records` and `append` stay the
    same objects for good, so they may be remembered; `enabled` and `wants_head` change with
    `configure`.
    """

    def __init__(self, settings: Settings, node: str, worker: int, meters: Meters) -> None:
        self.records: list[Record] = []
        self.append = self.records.append
        self.enabled = False
        self.wants_head = False
        self._worker = worker
        self._meters = meters
        self._dropped = meters.counter("lb_access_log_dropped_total", worker=str(worker))
        self._outlet: Outlet | None = None
        self._flushed_at = 0.0
        self._lost = 0  # Of the present outlet's: how many are in the metrics already.
        self._complained_at: float | None = None  # The log is losing lines, and we said so.
        self._take(settings, node)

    def configure(self, settings: Settings, node: str) -> None:
        """Go on by other settings; what was appended before is written by the old ones."""
        if (settings, node) == self._taken:
            return
        self.flush()
        outlet = self._outlet
        if outlet is not None and outlet.target != settings.output:
            outlet.close(wait=0.0)
            self._count_lost(outlet)
            self._outlet = None
        self._take(settings, node)

    def full(self) -> bool:
        """Tell whether it is time to flush, tick or not."""
        return len(self.records) >= FLUSH_LINES

    def tick(self, now: float) -> None:
        """Flush if it is time; count and say what was lost. `now` is any steady clock's."""
        if now - self._flushed_at >= FLUSH_SECONDS or self.full():
            self._flushed_at = now
            self.flush()
            if self._outlet is not None:
                self._complain(self._outlet, self._count_lost(self._outlet), now)

    def flush(self) -> None:
        """Format and write what there is."""
        records = self.records.copy()
        self.records.clear()
        if not records:
            return
        if self._outlet is not None:
            lines = self._format.lines(records)
            longest = self._outlet.line_max
            if longest is not None:
                for at, line in enumerate(lines):
                    if len(line) > longest:
                        lines[at] = self._format.short_line(records[at], longest)
            self._outlet.write(lines)

    def reopen(self) -> None:
        """Write what there is to the old file, then go on in a new one of the same name."""
        self.flush()
        if self._outlet is not None:
            self._outlet.reopen()

    def close(self) -> None:
        """Write what there is, and let go. A reader that has stopped is given a second."""
        self.flush()
        if self._outlet is not None:
            self._outlet.close()
            self._count_lost(self._outlet)
            self._outlet = None
        self.enabled = False

    def _take(self, settings: Settings, node: str) -> None:
        self._taken = settings, node
        self._format = make_format(settings, node, self._worker)
        self.enabled = settings.output != "off"
        self.wants_head = self.enabled and self._format.wants_head
        if self.enabled and self._outlet is None:
            self._outlet = Outlet(settings.output)
            self._lost = 0
            self._complained_at = None

    def _count_lost(self, outlet: Outlet) -> int:
        lost = outlet.lost - self._lost
        self._lost += lost
        self._meters.view[self._dropped] += lost
        return lost

    def _complain(self, outlet: Outlet, lost: int, now: float) -> None:
        if lost:
            if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
                self._complained_at = now
                _log.warning(
                    "access log %s: %s; lines are lost, and counted in %s",
                    outlet.target,
                    outlet.problem or "writing failed for a while",
                    "lb_access_log_dropped_total",
                )
        elif self._complained_at is not None and now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = None
            _log.warning("access log %s is written again", outlet.target)
