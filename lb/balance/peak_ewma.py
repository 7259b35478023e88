"""
`peak_ewma`: draw two by weight, take the one that will likely answer sooner.

What a backend costs is its latency times the requests it would have. Its latency is a moving
average that jumps up at once and comes down slowly: a backend that stalls is left alone
from the first slow answer on (Finagle's Peak EWMA).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from math import exp
from typing import TYPE_CHECKING, ClassVar, Final

from lb.balance.balancer import Balancer, C, edges_by_weight, first_untried, name_of

if TYPE_CHECKING:
    import random

REDRAWS_MAX: Final = 8
DECAY_S: Final = 10.0
UNSEEN_S: Final = 1.0  # what is supposed of a backend that has not answered yet, but has work
CLEARLY: Final = 0.8  # costs nearer than this are equal, or chance would undo the weights


class PeakEwma(Balancer[C]):
    """Draws two by weight and compares what they would cost."""

    __slots__ = ("_candidates", "_draw", "_edges", "_now", "_seen", "_weight")

    observes: ClassVar[bool] = True

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._candidates = candidates
        self._edges = edges_by_weight(candidates)
        self._draw = rng.random
        self._weight = sum(one.weight for one in candidates) / max(1, len(candidates))
        self._now = 0.0
        self._seen: dict[C, float] = dict.fromkeys(candidates, 0.0)
        if isinstance(before, PeakEwma):
            self._now = before._now
            known = {name_of(one): seen for one, seen in before._seen.items()}
            for candidate in candidates:
                self._seen[candidate] = known.get(name_of(candidate), self._now)

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return the cheaper of two."""
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
        if self._cost(second) < CLEARLY * self._cost(first) and second not in tried:
            return second
        return first

    def observe(self, candidate: C, seconds: float, now: float) -> None:
        """Take in how long a request took."""
        seen = self._seen.get(candidate)
        if seen is None:
            if self._backups is not None:
                self._backups.observe(candidate, seconds, now)
            return
        self._now = now
        self._seen[candidate] = now
        latency = candidate.latency
        if seconds >= latency:
            candidate.latency = seconds
        else:
            candidate.latency = latency + (seconds - latency) * (1 - exp((seen - now) / DECAY_S))

    def _cost(self, candidate: C) -> float:
        latency = candidate.latency
        if latency:
            # Who has not been asked for long is forgiven bit by bit, or it never would be.
            silent = self._now - self._seen[candidate] - DECAY_S
            if silent > 0:
                latency *= exp(-silent / DECAY_S)
        elif candidate.in_flight:
            latency = UNSEEN_S
        return latency * (1 + candidate.in_flight * self._weight / candidate.weight)

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
