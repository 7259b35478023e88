"""
`two_choices`: draw two by weight, pass over the first if it is the busier.

"Busier" means that the second, with this request on top, would have no more to do for its
weight than the first has now. With equal weights that is the plain comparison. With others
any simpler one upsets the shares: of weights 1 and 10 with two requests at a time, comparing
requests for weight gives the light one 47 % of the traffic instead of 9, comparing them with
this request added gives it nothing; this way it gets 9.

At rest nothing is busy and the first draw decides, so weights hold there too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from lb.balance.balancer import Balancer, C, edges_by_weight, first_untried

if TYPE_CHECKING:
    import random


class TwoChoices(Balancer[C]):
    """Draws two and compares what runs on them."""

    __slots__ = ("_candidates", "_count", "_draw", "_edges")

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._candidates = candidates
        self._count = len(candidates)
        equal = len({one.weight for one in candidates}) <= 1
        self._edges = [] if equal else edges_by_weight(candidates)
        self._draw = rng.random

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return the better of two."""
        candidates, count, edges = self._candidates, self._count, self._edges
        if count < 2:
            first = candidates[0] if count else None
            if first is None or first in tried:
                return None if self._backups is None else self._backups.pick(tried, key, now)
            return first
        if edges:
            one = bisect_right(edges, self._draw())
            other = self._draw_but(one)
        else:
            place = self._draw() * count
            one = int(place)
            other = int((place - one) * (count - 1))  # what is left of the draw is as random
            if other >= one:
                other += 1
        first, second = candidates[one], candidates[other]
        if first in tried:
            first = second
            if first in tried:
                return self._pick_other(other, tried, key, now)
        elif self._prefers(second, first) and second not in tried:
            return second
        return first

    def _prefers(self, second: C, first: C) -> bool:
        """Whether the second draw is the better one."""
        busy = first.in_flight
        return busy > 0 and (second.in_flight + 1) * first.weight <= busy * second.weight

    def _draw_but(self, taken: int) -> int:
        """Draw by weight from all but one: as if its part had been cut out."""
        edges = self._edges
        begin = edges[taken - 1] if taken else 0.0
        width = edges[taken] - begin
        place = self._draw() * (1 - width)
        index = bisect_right(edges, place if place < begin else place + width)
        if index == taken or index == len(edges):  # rounding, once in a very long while
            return taken - 1 if taken else 1
        return index

    def _pick_other(self, index: int, tried: Container[C], key: bytes, now: float) -> C | None:
        other = first_untried(self._candidates, index, tried)
        if other is None and self._backups is not None:
            return self._backups.pick(tried, key, now)
        return other
