"""
`peak_ewma`: draw two by weight, take the one that will likely answer sooner.

What a backend costs is its latency times its requests, for its weight. Its latency is a moving
average that jumps up at once and comes down slowly: a backend that stalls is left alone
from the first slow answer on (Finagle's Peak EWMA).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING, ClassVar, Final

from lb.balance.balancer import Balancer, C, name_of
from lb.balance.two_choices import TwoChoices

if TYPE_CHECKING:
    import random

DECAY_S: Final = 10.0
UNSEEN_S: Final = 1.0  # what is supposed of a backend that has not answered yet, but has work
CLEARLY: Final = 0.8  # latencies nearer than this are equal, or chance would undo the weights


class PeakEwma(TwoChoices[C]):
    """Draws two and compares what they would cost."""

    __slots__ = ("_now", "_seen")

    observes: ClassVar[bool] = True

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        super()._arrange(candidates, rng, before)
        self._now = 0.0  # when anything was last heard: a pick is told no time
        seen: dict[tuple[str, str], float] = {}
        if isinstance(before, PeakEwma):
            self._now = before._now
            seen = before.seen()
        self._seen = {one: seen.get(name_of(one), self._now) for one in candidates}

    def observe(self, candidate: C, seconds: float, now: float) -> None:
        """Take in how long a request took. Errors must be told as slow, or they would attract."""
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

    def seen(self) -> dict[tuple[str, str], float]:
        """Return when each was last heard of, backups included."""
        backups = self._backups
        known = backups.seen() if isinstance(backups, PeakEwma) else {}
        known.update((name_of(one), seen) for one, seen in self._seen.items())
        return known

    def _prefers(self, second: C, first: C) -> bool:
        first_s = self._latency(first)
        if not first_s:
            return False  # Nothing is known of it, and nothing runs there: go and see.
        second_s = self._latency(second)
        cost = second_s * (second.in_flight + 1) * first.weight
        costs = first_s * second.weight
        return cost <= costs * first.in_flight or (
            second_s < CLEARLY * first_s and cost < costs * (first.in_flight + 1)
        )

    def _latency(self, candidate: C) -> float:
        latency = candidate.latency
        if latency:
            # Who has not been heard of for long is forgiven bit by bit, or it never would be.
            silent = self._now - self._seen[candidate] - DECAY_S
            return latency * exp(-silent / DECAY_S) if silent > 0 else latency
        return UNSEEN_S if candidate.in_flight else 0.0
