"""`random`: each pick is a draw by weight, and knows nothing of the one before."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Final

from lb.balance.balancer import Balancer, C, edges_by_weight, first_untried

if TYPE_CHECKING:
    import random

REDRAWS_MAX: Final = 8


class RandomChoice(Balancer[C]):
    """Draws by weight."""

    __slots__ = ("_candidates", "_draw", "_edges")

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._candidates = candidates
        self._edges = edges_by_weight(candidates)
        self._draw = rng.random

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return a candidate by chance."""
        candidates = self._candidates
        if not candidates:
            return None
        index = bisect_right(self._edges, self._draw())
        candidate = candidates[index]
        if candidate not in tried:
            return candidate
        return self._pick_other(index, tried, key, now)

    def _pick_other(self, index: int, tried: Container[C], key: bytes, now: float) -> C | None:
        # Drawing again keeps the others' shares; it ends, since most may have been tried.
        for _ in range(REDRAWS_MAX):
            index = bisect_right(self._edges, self._draw())
            candidate = self._candidates[index]
            if candidate not in tried:
                return candidate
        other = first_untried(self._candidates, index, tried)
        if other is None and self._backups is not None:
            return self._backups.pick(tried, key, now)
        return other
