"""
`two_choices`: draw two by weight, take the one with less to do for its weight.

Where nothing runs both are equal, and the first draw decides: so idle backends get their
weights too. Under load the busier of two is passed over, which keeps queues short without
anybody knowing the shortest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Final

from lb.balance.balancer import Balancer, C, edges_by_weight, first_untried

if TYPE_CHECKING:
    import random

REDRAWS_MAX: Final = 8


class TwoChoices(Balancer[C]):
    """Draws two by weight and compares what runs on them."""

    __slots__ = ("_candidates", "_draw", "_edges")

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._candidates = candidates
        self._edges = edges_by_weight(candidates)
        self._draw = rng.random

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return the less busy of two."""
        first = self._draw_untried(tried)
        if first is None:
            return None if self._backups is None else self._backups.pick(tried, key, now)
        edges, candidates = self._edges, self._candidates
        for _ in range(REDRAWS_MAX):
            second = candidates[bisect_right(edges, self._draw())]
            if second is not first:
                break
        else:
            return first
        if (
            second.in_flight * first.weight < first.in_flight * second.weight
            and second not in tried
        ):
            return second
        return first

    def _draw_untried(self, tried: Container[C]) -> C | None:
        if not self._candidates:
            return None
        index = bisect_right(self._edges, self._draw())
        candidate = self._candidates[index]
        if candidate not in tried:
            return candidate
        for _ in range(REDRAWS_MAX):
            index = bisect_right(self._edges, self._draw())
            candidate = self._candidates[index]
            if candidate not in tried:
                return candidate
        return first_untried(self._candidates, index, tried)
