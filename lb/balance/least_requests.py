"""
`least_requests`: whose turn it is by weight, unless somebody else has less to do.

"Less" is as in `two_choices`: with this request on top it would have no more to do for its
weight than the one whose turn it is has now. Among equal weights the pick is always one of
the least busy, and these take turns; among others the shares stay right under any load.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, ClassVar, Final, Generic

from lb.balance.balancer import Balancer, C, name_of

if TYPE_CHECKING:
    import random

STALE_PER_CANDIDATE_MAX: Final = 4
TURNS_SAVED_MAX: Final = 8  # what one that was busy may catch up on later, or it would be a burst


class _Standing(Generic[C]):
    """Where one candidate stands."""

    __slots__ = ("candidate", "load", "number", "turn", "turn_step")

    def __init__(self, candidate: C, number: int, turn: float) -> None:
        self.candidate = candidate
        self.number = number  # only to tell equals apart
        self.turn = turn
        self.turn_step = 1 / candidate.weight
        self.load = self.load_with_one_more()  # as its newest entry among the loads has it

    def load_with_one_more(self) -> float:
        return (self.candidate.in_flight + 1) * self.turn_step


_Entry = tuple[float, int, _Standing[C]]


class LeastRequests(Balancer[C]):
    """
    Keeps two heaps: one by turn, one by load.

    An entry may say less than is true, never more: what comes to the top is set right there,
    and only a load that falls is entered anew at once.
    """

    __slots__ = ("_by_load", "_by_turn", "_loads_max", "_standings")

    counts: ClassVar[bool] = True

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        known = before.turns() if isinstance(before, LeastRequests) else {}
        now = min(known.values(), default=0.0)
        self._standings: dict[C, _Standing[C]] = {}
        for number, one in enumerate(candidates):
            turn = known.get(name_of(one))
            if turn is None:
                turn = now + rng.random() / one.weight
            self._standings[one] = _Standing(one, number, turn)
        self._by_turn: list[_Entry[C]] = [
            (standing.turn, standing.number, standing) for standing in self._standings.values()
        ]
        heapify(self._by_turn)
        self._by_load: list[_Entry[C]] = []
        self._loads_max = STALE_PER_CANDIDATE_MAX * len(candidates)
        self._enter_all_loads()

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return who should have the next request; `taken` must be told if it gets it."""
        due = self._first_by_turn()
        if due is None:
            return None
        candidate = due.candidate
        if candidate in tried:
            return self._pick_other(tried, key, now)
        busy = candidate.in_flight
        if busy > 0:
            idlest = self._first_by_load()
            if idlest.candidate in tried:
                return self._pick_idlest(due, tried)
            if idlest.load <= busy * due.turn_step:
                return idlest.candidate
        return candidate

    def taken(self, candidate: C) -> None:
        """Count its turn."""
        standing = self._standings.get(candidate)
        if standing is None:
            if self._backups is not None:
                self._backups.taken(candidate)
            return
        due = self._first_by_turn()
        assert due is not None, "there is at least the one that was taken"
        if due is not standing:
            due.turn = max(due.turn, standing.turn - TURNS_SAVED_MAX * due.turn_step)
        standing.turn += standing.turn_step

    def returned(self, candidate: C) -> None:
        """Enter its load, unless it has a lower entry already."""
        standing = self._standings.get(candidate)
        if standing is None:
            if self._backups is not None:
                self._backups.returned(candidate)
            return
        load = standing.load_with_one_more()
        if load < standing.load:
            standing.load = load
            heappush(self._by_load, (load, standing.number, standing))
            if len(self._by_load) > self._loads_max:
                # As many requests as there are candidates, several times, have paid for this.
                self._enter_all_loads()

    def turns(self) -> dict[tuple[str, str], float]:
        """Return everybody's turn, backups included."""
        backups = self._backups
        known = backups.turns() if isinstance(backups, LeastRequests) else {}
        known.update((name_of(one), standing.turn) for one, standing in self._standings.items())
        return known

    def _first_by_turn(self) -> _Standing[C] | None:
        heap = self._by_turn
        while heap:
            turn, number, standing = heap[0]
            if turn == standing.turn:
                return standing
            heapreplace(heap, (standing.turn, number, standing))
        return None

    def _first_by_load(self) -> _Standing[C]:
        heap = self._by_load
        while True:
            entered, number, standing = heap[0]
            if entered != standing.load:
                heappop(heap)  # there is a lower one
                continue
            load = standing.load_with_one_more()
            if load <= entered:
                return standing
            standing.load = load
            heapreplace(heap, (load, number, standing))

    def _enter_all_loads(self) -> None:
        for standing in self._standings.values():
            standing.load = standing.load_with_one_more()
        self._by_load = [
            (standing.load, standing.number, standing) for standing in self._standings.values()
        ]
        heapify(self._by_load)

    def _pick_other(self, tried: Container[C], key: bytes, now: float) -> C | None:
        """Take out who has been tried, pick, and put them back."""
        aside = []
        while (due := self._first_by_turn()) is not None and due.candidate in tried:
            aside.append(heappop(self._by_turn))
        if due is None:
            found = None if self._backups is None else self._backups.pick(tried, key, now)
        elif due.candidate.in_flight > 0:
            found = self._pick_idlest(due, tried)
        else:
            found = due.candidate
        for entry in aside:
            heappush(self._by_turn, entry)
        return found

    def _pick_idlest(self, due: _Standing[C], tried: Container[C]) -> C:
        aside = []
        while (idlest := self._first_by_load()).candidate in tried:
            aside.append(heappop(self._by_load))
        for entry in aside:
            heappush(self._by_load, entry)
        if idlest.load <= due.candidate.in_flight * due.turn_step:
            return idlest.candidate
        return due.candidate
