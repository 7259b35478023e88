"""
`round_robin`: candidates in turn, each as often as its weight says, heavy ones spread out.

Few candidates have their turns laid out beforehand, in nginx's smooth order. Many would take
too long to lay out; they take plain turns among those of equal weight, and the classes of
equal weight take turns by a heap.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heapify, heapreplace
from math import gcd
from typing import TYPE_CHECKING, Final, Generic

from lb.balance.balancer import Balancer, C, first_untried, name_of

if TYPE_CHECKING:
    import random

LAID_OUT_CANDIDATES_MAX: Final = 32
LAID_OUT_TURNS_MAX: Final = 4096
PASSES_MAX: Final = 32  # turns passed over for one request, before weights are let be


class RoundRobin(Balancer[C]):
    """Goes along the turns. A swap goes on where the one before stood."""

    __slots__ = ("_at", "_candidates", "_classes", "_other_at", "_turns", "_weights")

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._candidates = candidates
        self._weights = weights = [one.weight for one in candidates]  # these may change later
        self._turns: list[C] = []
        self._classes: list[_Class[C]] = []
        self._at = self._other_at = 0
        due = before.due() if isinstance(before, RoundRobin) else {}
        divisor = gcd(*weights) or 1
        if not candidates:
            return
        if len(set(weights)) == 1:
            self._turns = list(candidates)
            self._at = soonest(candidates, due, rng)
        elif (
            len(candidates) > LAID_OUT_CANDIDATES_MAX
            or sum(weights) // divisor > LAID_OUT_TURNS_MAX
        ):
            self._classes = make_classes(candidates, due, rng)
        elif isinstance(before, RoundRobin) and before._has(candidates, weights):
            now = dict(zip(map(name_of, candidates), candidates, strict=True))
            self._turns = [now[name_of(one)] for one in before._turns]
            self._at = before._at
        else:
            order_of_turns = lay_out_turns([weight // divisor for weight in weights])
            self._turns = [candidates[index] for index in order_of_turns]
            self._at = nearest(self._turns, due, rng)

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return whose turn it is."""
        turns = self._turns
        if turns:
            at = self._at
            candidate = turns[at]
            at += 1
            self._at = at if at < len(turns) else 0
        elif self._classes:
            candidate = next_of_classes(self._classes)
        else:
            return None
        if candidate not in tried:
            return candidate
        return self._pick_other(tried, key, now)

    def due(self) -> dict[tuple[str, str], float]:
        """Return when each has its next turn, as a share of the time between two of its turns."""
        if not self._turns:
            return due_by_class(self._classes)
        found: dict[tuple[str, str], float] = {}
        count = len(self._turns)
        total = sum(self._weights)
        weights = dict(zip(map(name_of, self._candidates), self._weights, strict=True))
        for distance in range(count):
            name = name_of(self._turns[(self._at + distance) % count])
            if name not in found:
                found[name] = distance * weights[name] / total
                if len(found) == len(weights):
                    break
        return found

    def _has(self, candidates: Sequence[C], weights: Sequence[int]) -> bool:
        """Whether turns laid out here serve these as well."""
        return (
            bool(self._turns)
            and self._weights == weights
            and list(map(name_of, self._candidates)) == list(map(name_of, candidates))
        )

    def _pick_other(self, tried: Container[C], key: bytes, now: float) -> C | None:
        """Pass over turns: so the others' shares stay as they are among themselves."""
        for _ in range(PASSES_MAX):
            candidate = self.pick()
            assert candidate is not None, "the first pick has shown that there are some"
            if candidate not in tried:
                return candidate
        self._other_at = (self._other_at + 1) % len(self._candidates)
        other = first_untried(self._candidates, self._other_at, tried)
        if other is None and self._backups is not None:
            return self._backups.pick(tried, key, now)
        return other


# --- Turns laid out ---------------------------------------------------------------------------


def lay_out_turns(weights: Sequence[int]) -> list[int]:
    """
    Lay out one round: each index as often as its weight, the heavy ones spread out.

    For each turn everybody earns its weight, the richest takes the turn and pays the total
    back. Weights 5, 1, 1 give 0 0 1 0 2 0 0, where counting down would give a burst.
    """
    credit = [0] * len(weights)
    total = sum(weights)
    turns = []
    for _ in range(total):
        credit = [have + earned for have, earned in zip(credit, weights, strict=True)]
        richest = credit.index(max(credit))  # a tie goes to the first: turns are repeatable
        credit[richest] -= total
        turns.append(richest)
    assert not any(credit), "a full round leaves nobody in credit or in debt"
    return turns


def soonest(candidates: Sequence[C], due: dict[tuple[str, str], float], rng: random.Random) -> int:
    """Return the index of whose turn comes first; of any, if none had turns before."""
    known = [(due[name], at) for at, one in enumerate(candidates) if (name := name_of(one)) in due]
    return min(known)[1] if known else rng.randrange(len(candidates))


def nearest(turns: Sequence[C], due: dict[tuple[str, str], float], rng: random.Random) -> int:
    """Return where in `turns` everybody waits about as long as it would have without the swap."""
    count = len(turns)
    often: dict[tuple[str, str], int] = {}
    following: dict[tuple[str, str], int] = {}
    for at in reversed(range(count)):
        name = name_of(turns[at])
        if name in due:
            often[name] = often.get(name, 0) + 1
            following[name] = at + count
    if not often:
        return rng.randrange(count)
    best, best_at = float("inf"), 0
    for at in reversed(range(count)):
        name = name_of(turns[at])
        if name in following:
            following[name] = at
        apart = sum(
            abs((turn - at) * often[name] / count - due[name]) for name, turn in following.items()
        )
        if apart <= best:
            best, best_at = apart, at
    return best_at


# --- Classes of equal weight ------------------------------------------------------------------


class _Class(Generic[C]):
    """Candidates of one weight, and when the next of them has its turn."""

    __slots__ = ("at", "interval", "members", "turn")

    def __init__(self, members: list[C], interval: float) -> None:
        self.members = members
        self.interval = interval  # picks of all classes for one of this
        self.turn = 0.0
        self.at = 0

    def __lt__(self, other: _Class[C]) -> bool:
        return self.turn < other.turn


def make_classes(
    candidates: Sequence[C], due: dict[tuple[str, str], float], rng: random.Random
) -> list[_Class[C]]:
    """Return a heap of classes, each going on where its members stood."""
    members: dict[int, list[C]] = {}
    for one in candidates:
        members.setdefault(one.weight, []).append(one)
    total = sum(one.weight for one in candidates)
    classes = []
    for weight, some in members.items():
        made = _Class(some, total / (weight * len(some)))
        made.at = soonest(some, due, rng)
        wait = due.get(name_of(some[made.at]))
        phase = rng.random() if wait is None else min(wait * len(some), 1.0)
        made.turn = phase * made.interval
        classes.append(made)
    heapify(classes)
    return classes


def next_of_classes(classes: list[_Class[C]]) -> C:
    """Take one turn of the class that is due."""
    first = classes[0]
    candidate = first.members[first.at]
    first.at = first.at + 1 if first.at + 1 < len(first.members) else 0
    first.turn += first.interval
    heapreplace(classes, first)
    return candidate


def due_by_class(classes: Sequence[_Class[C]]) -> dict[tuple[str, str], float]:
    """Return when each has its next turn, as `RoundRobin.due` does."""
    if not classes:
        return {}
    now = classes[0].turn
    found = {}
    for one in classes:
        count = len(one.members)
        wait = (one.turn - now) / one.interval
        for distance in range(count):
            member = one.members[(one.at + distance) % count]
            found[name_of(member)] = (wait + distance) / count
    return found
