"""
`least_requests`: whoever has the least to do for its weight.

Equals, and at rest all are, take turns by weight.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, ClassVar, Final

from lb.balance.balancer import Balancer, C, name_of

if TYPE_CHECKING:
    import random

STALE_PER_CANDIDATE_MAX: Final = 4

# Load, turn, a number that makes it unique, whose. It counts while it is the newest of its owner.
_Entry = tuple[float, float, int, C]


class LeastRequests(Balancer[C]):
    """Keeps candidates in a heap by load, then turn; an entry is replaced by a newer one."""

    __slots__ = ("_entries", "_heap", "_heap_max", "_number", "_turn")

    counts: ClassVar[bool] = True

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._number = len(candidates)
        self._turn = 0.0
        turns = {one: rng.random() / one.weight for one in candidates}
        if isinstance(before, LeastRequests):
            self._turn = before._turn
            known = {name_of(one): entry[1] for one, entry in before._entries.items()}
            for one, turn in turns.items():
                turns[one] = known.get(name_of(one), self._turn + turn)
        self._entries: dict[C, _Entry[C]] = {
            one: (one.in_flight / one.weight, turns[one], number, one)
            for number, one in enumerate(candidates)
        }
        self._heap = list(self._entries.values())
        heapify(self._heap)
        self._heap_max = STALE_PER_CANDIDATE_MAX * len(candidates)

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return the least busy."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            candidate = entry[3]
            if entries[candidate] is not entry:
                heappop(heap)  # there is a newer one
            elif candidate in tried:
                return self._pick_other(tried, key, now)
            else:
                return candidate
        return None

    def taken(self, candidate: C) -> None:
        """Put it behind its equals."""
        entry = self._entries.get(candidate)
        if entry is None:
            if self._backups is not None:
                self._backups.taken(candidate)
            return
        turn = entry[1]
        # Who had no turn for long, being busy, gets no more of them for that later.
        if turn > self._turn:
            self._turn = turn
        else:
            turn = self._turn
        self._enter(candidate, turn + 1 / candidate.weight)

    def returned(self, candidate: C) -> None:
        """Put it where it is now."""
        entry = self._entries.get(candidate)
        if entry is not None:
            self._enter(candidate, entry[1])
        elif self._backups is not None:
            self._backups.returned(candidate)

    def _enter(self, candidate: C, turn: float) -> None:
        self._number += 1
        entry = (candidate.in_flight / candidate.weight, turn, self._number, candidate)
        heap, old = self._heap, self._entries[candidate]
        self._entries[candidate] = entry
        if heap and heap[0] is old:
            heapreplace(heap, entry)
            return
        heappush(heap, entry)
        if len(heap) > self._heap_max:
            # As many requests as there are candidates, several times, have paid for this.
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def _pick_other(self, tried: Container[C], key: bytes, now: float) -> C | None:
        heap, aside = self._heap, []
        found = None
        while heap:
            entry = heap[0]
            if self._entries[entry[3]] is entry:
                if entry[3] not in tried:
                    found = entry[3]
                    break
                aside.append(entry)
            heappop(heap)
        for entry in aside:
            heappush(heap, entry)
        if found is None and self._backups is not None:
            return self._backups.pick(tried, key, now)
        return found
