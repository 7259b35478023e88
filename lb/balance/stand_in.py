"""
Who gives out candidates while a balancer is made that takes longer than a loop may stand still.

The balancer before does, passing over who is not here any more. So a key stays where it was
for the few turns of the loop until its new owner is known. Where nobody of before is left, or
changes come faster than a balancer is made, it is made at once: late is better than wrong.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import ClassVar, Final

from lb.balance.balancer import Balancer, C

OVERTAKEN_MAX: Final = 8  # changes in a row that began anew what was not ready yet


class StandIn(Balancer[C]):
    """Picks by the balancer before until the one that is made is ready."""

    __slots__ = ("_before", "_here", "_made", "overtaken")

    counts: ClassVar[bool] = True

    def __init__(
        self, made: Balancer[C], candidates: Sequence[C], before: Balancer[C], overtaken: int
    ) -> None:
        self._made = made
        self._before: Balancer[C] | None = before  # None: it is ready
        some = [one for one in candidates if one.weight > 0]
        self._here = frozenset([one for one in some if not one.backup] or some)
        self.overtaken = overtaken
        if overtaken >= OVERTAKEN_MAX:
            self._finish()

    def go_on(self) -> bool:
        """Do a part of what is left; return whether `settled` is the new one."""
        if self._before is not None and self._made.go_on():
            self._before = None
        return self._before is None

    def settled(self) -> Balancer[C]:
        """Return the new one if it is ready, else the one before."""
        return self._made if self._before is None else self._before

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return who had the key before, if it is still here; else who is to have it."""
        if self._before is not None:
            candidate = self._before.pick(_Outside(self._here, tried), key, now)
            if candidate is not None:
                return candidate
            self._finish()
        return self._made.pick(tried, key, now)

    def taken(self, candidate: C) -> None:
        """Tell who picks."""
        self.settled().taken(candidate)

    def returned(self, candidate: C) -> None:
        """Tell who picks."""
        self.settled().returned(candidate)

    def _finish(self) -> None:
        while not self.go_on():
            pass


class _Outside(Container[C]):
    """Who is not here, or has been tried."""

    __slots__ = ("_here", "_tried")

    def __init__(self, here: Container[C], tried: Container[C]) -> None:
        self._here, self._tried = here, tried

    def __contains__(self, one: object) -> bool:
        return one not in self._here or one in self._tried
