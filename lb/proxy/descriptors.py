"""
How many more clients this worker can take before its descriptors are used up.

Each client costs one, and mostly another for a backend; what runs must get its own, so some are
kept for backends and no client is let in on them. Looking costs a walk through all that are
open, so it is done once a second, and only where they are many for the limit.

Whether one is to be had at all is tried at each tick. Somebody may have lowered our limit, or the
machine be out of them, and then the loop, left to itself, accepts new clients only to close
them (libuv's way not to spin): they had better wait.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Callable
from time import monotonic
from typing import Final

log = logging.getLogger(__name__)

KEPT_SHARE: Final = 4  # a quarter of the limit is kept for backends,
KEPT_MAX: Final = 1024  # at most so many
PLENTY: Final = 4096  # room for as many as a listener's queue may hold
LOOK_EVERY_S: Final = 1.0
COST: Final = 2  # of a client: its own connection, and one to a backend
SAY_EVERY_S: Final = 10.0
FOLDER: Final = "/proc/self/fd"


class Descriptors:
    """Counts what is open against this process's limit; `room` is clients that still fit."""

    def __init__(self) -> None:
        self.read_limit: Callable[[], int] = _soft_limit  # It may be changed from outside.
        self.try_one: Callable[[], int] = _try_one
        self.limit = self.read_limit()
        self.kept = 0
        self.room = 0
        self._look_at = 0.0
        self._say_at = 0.0
        self._short = False
        self._refused = 0  # why not one is to be had
        self.look(monotonic(), 0)

    @property
    def plenty(self) -> bool:
        """Whether a whole queue may be let in at once."""
        return self.room >= PLENTY

    def look(self, now: float, about: int) -> None:
        """
        Count again, if that is due; `about` is how many connections there are at least.

        It is due at once where the limit has changed, or one is no longer or again to be had.
        """
        limit, refused = self.read_limit(), self.try_one()
        if now < self._look_at and limit == self.limit and refused == self._refused:
            return
        self._look_at = now + LOOK_EVERY_S
        self.limit, self._refused = limit, refused
        self.kept = min(limit // KEPT_SHARE, KEPT_MAX)
        free = limit - self.kept - about
        if 2 * about > limit or free < COST * PLENTY:
            free = limit - self.kept - _open_now(limit)
        self.room = 0 if refused else free // COST
        self._say(now, free)

    def _say(self, now: float, free: int) -> None:
        short = self.room <= 0
        if short == self._short or now < self._say_at:
            return
        self._short = short
        if not short:
            log.info("new clients are accepted again: %d descriptors are free", free + self.kept)
            return
        self._say_at = now + SAY_EVERY_S
        if self._refused in (0, errno.EMFILE):
            log.warning(
                "out of descriptors: %d of %d are open and %d are kept for backends, so new "
                "clients wait until some close; raise LimitNOFILE in the unit (or ulimit -n), "
                "or lower limits.connections",
                *(self.limit - self.kept - free, self.limit, self.kept),
            )
        else:
            log.warning(
                "out of descriptors: this machine has none left (%s), so new clients wait until "
                "it has; see what holds them (/proc/sys/fs/file-nr), or raise fs.file-max",
                os.strerror(self._refused),
            )


def _open_now(limit: int) -> int:
    try:
        return len(os.listdir(FOLDER))
    except OSError:  # Not even one is left to look with.
        return limit


def _soft_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _try_one() -> int:
    """Return why no descriptor is to be had, 0 if one is."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno or errno.EMFILE
    return 0
