"""
Looks whether the files of the configuration still say what is in force.

A stat of each file every second, since every way of replacing one shows in it: writing in
place, an editor's rename, a ConfigMap's swapped symlink. What has changed is judged once it
has stopped changing, in the parser's process. Files that were rewritten with the same
contents are no change.

Not here: a new file that an `include` would take in now. The folder of each file is looked
at as well, which finds it where others of that folder are read already.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from lb.errors import AccordError

log = logging.getLogger(__name__)

INTERVAL = 1.0  # Seconds from look to look.
ERROR_LENGTH_MAX = 500  # Of the first of a file's errors, as shown in status.

SAME = "same"
CHANGED = "changed"

Stamp = tuple[tuple[int, int, int] | None, ...]


class Judged(Protocol):
    """What judging the files gives: `config.load.Loaded`, as far as we look at it."""

    @property
    def files(self) -> tuple[str, ...]:
        """All files that were read."""
        ...

    @property
    def digest(self) -> str:
        """Of their contents."""
        ...


class Watcher:
    """
    Keeps `on_disk` up to date: `same`, `changed`, or `invalid: ...`.

    `judge` parses the files as they are; `on_change` is called with each new judgement but
    `same`, and is what `node.watch` reloads by. One look at a time, whatever they take.
    """

    def __init__(
        self,
        judge: Callable[[], Awaitable[Judged]],
        on_change: Callable[[], Awaitable[None]],
        interval: float = INTERVAL,
    ) -> None:
        self._judge = judge
        self._on_change = on_change
        self._interval = interval
        self._files: tuple[str, ...] = ()
        self._digest = ""
        self._judged: Stamp | None = None  # What was last judged,
        self._seen: Stamp | None = None  # and what was last seen.
        self.on_disk = SAME

    def follow(self, files: Sequence[str], digest: str) -> None:
        """These files, with these contents, are in force from now on."""
        self._files = tuple(files)
        self._digest = digest
        # Not stamped here: they may have changed since they were read. The next look judges
        # them once, and finds the same digest.
        self._judged = None
        self.on_disk = SAME

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.look()

    async def look(self) -> None:
        """Look once; judge what differs from what was judged, if it is at rest."""
        files = self._files
        stamp = await asyncio.to_thread(_stamp, files)
        at_rest, self._seen = stamp == self._seen, stamp
        if not at_rest or stamp == self._judged:
            return
        before, digest = self.on_disk, self._digest
        found = await self._judge_now(digest)
        if digest != self._digest or files != self._files:
            return  # A reload came in between: what we judged is no longer the question.
        self._judged = stamp
        self.on_disk = found
        if found != SAME:
            if found != before:
                log.warning("the configuration on disk is not the one in force: %s", found)
            await self._on_change()

    async def _judge_now(self, digest: str) -> str:
        try:
            judged = await self._judge()
        except AccordError as error:
            return f"invalid: {error.brief}"[:ERROR_LENGTH_MAX]
        return SAME if judged.digest == digest else CHANGED


def _stamp(files: tuple[str, ...]) -> Stamp:
    folders = sorted({os.path.dirname(path) for path in files})
    return tuple(map(_stamp_one, (*files, *folders)))


def _stamp_one(path: str) -> tuple[int, int, int] | None:
    """Follow symlinks: the file that is read in the end is what matters."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
