"""
Whether this worker keeps up, and what share of new requests it turns away so that it does.

A loop that is late by half a second is late for everybody, its heartbeat included; a request that
is answered 503 at once costs a tenth of one that is passed on. One late turn means nothing (the
machine was busy, or asleep): only lateness that lasts does.
"""

from __future__ import annotations

from typing import Final

from lb.proxy.deadlines import TICK_S

LATE_S: Final = 0.5  # from here on the loop is drowning
WELL_S: Final = 0.2  # below this it has recovered
LATE_TICKS: Final = 3  # in a row, before anything is done
LATE_ONCE_MAX_S: Final = 5.0  # more than this was no load, but a stop of the whole process
STEP: Final = 0.1
SHED_MAX: Final = 0.9


class Load:
    """Looks at each tick how late it came; `shed` is the share to turn away."""

    def __init__(self) -> None:
        self.shed = 0.0
        self.lag = 0.0
        self._ticked_at: float | None = None
        self._late = 0

    def look(self, now: float) -> None:
        """Take in one tick."""
        if self._ticked_at is not None:
            self.lag = max(0.0, now - self._ticked_at - TICK_S)
        self._ticked_at = now
        if LATE_S <= self.lag < LATE_ONCE_MAX_S:
            self._late += 1
        else:
            self._late = 0
        if self._late >= LATE_TICKS:
            self.shed = min(SHED_MAX, self.shed + STEP)
        elif self.lag < WELL_S:
            self.shed = max(0.0, round(self.shed - STEP, 3))
