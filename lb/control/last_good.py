"""The last registry that this instance knew to be agreed on, kept where no log can spoil it.

An instance that starts without its group, or whose log is damaged, serves by this file. It is
written after changes, at most once in a while, and never waited for: what it lacks, the log
has. Wiping a member leaves it alone, so that a group of one can be founded anew from it.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from lb.control.disk import DamagedError, Disk, UnsettledError, seal, unseal
from lb.registry import Registry, registry_from_plain, registry_to_plain

log = logging.getLogger(__name__)

LAST_GOOD_FILE = "last-good.json"
LAST_GOOD_FORMAT = 1
WRITE_EVERY = 1.0  # Seconds from a change to its write, in which more may come.
WRITE_COSTS = 20.0  # As many times longer than the last write took, where that is more,
WRITE_EVERY_MAX = 10.0  # but not longer than this.


class LastGood:
    """`last-good.json` in the data_dir."""

    def __init__(self, data_dir: str | Path, disk: Disk | None = None) -> None:
        self._path = Path(data_dir) / LAST_GOOD_FILE
        self._disk = disk or Disk()
        self.written_at: float | None = None  # Wall time of what was read.
        self._wanted: Registry | None = None
        self._written: tuple[str, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._failed = False
        self._pause = WRITE_EVERY

    def read(self) -> Registry | None:
        """Return what is kept; None if there is nothing, or nothing that can be trusted."""
        try:
            data = self._disk.read(self._path)
            if data is None:
                return None
            form, body = unseal(data)
            if form != LAST_GOOD_FORMAT:
                raise DamagedError(f"format {form} is not known here")
            registry = registry_from_plain(body)
            self.written_at = self._path.stat().st_mtime
        except (OSError, DamagedError, KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("%s cannot be used: %s", self._path, error)
            return None
        self._written = (registry.id, registry.revision)
        return registry

    def keep(self, registry: Registry) -> None:
        """Have a registry written soon."""
        self._wanted = registry
        if self._timer is None and self._writing is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._pause, self._write_soon)

    async def close(self) -> None:
        """Write what is not yet written."""
        if self._writing is not None:
            await self._writing
        if self._timer is not None:
            self._timer.cancel()
        if self._wanted is not None:
            await asyncio.to_thread(self.write, self._wanted)

    def write(self, registry: Registry) -> None:
        """Write it now, in the calling thread; a disk that can't is told of once."""
        if self._written == (registry.id, registry.revision):
            return
        try:
            body = registry_to_plain(registry)
            # Keys that were used are of no use to whoever serves by this file.
            self._disk.replace(self._path, seal(LAST_GOOD_FORMAT, {**body, "answers": {}}))
        except (OSError, UnsettledError) as error:
            if not self._failed:
                log.warning("%s cannot be written: %s", self._path, error)
            self._failed = True
            return
        self._failed = False
        self._written = (registry.id, registry.revision)

    def _write_soon(self) -> None:
        self._timer = None
        self._writing = asyncio.get_running_loop().create_task(self._write_wanted())

    async def _write_wanted(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await asyncio.to_thread(self.write, wanted)
            # A thread that computes slows the loop down, and a large registry takes a while.
            costs = WRITE_COSTS * (loop.time() - began)
            self._pause = min(max(WRITE_EVERY, costs), WRITE_EVERY_MAX)
        self._writing = None
        self._keep_newer()

    def _keep_newer(self) -> None:
        """Go on with what came while we wrote."""
        if self._wanted is not None:
            self.keep(self._wanted)
