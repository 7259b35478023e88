"""What every policy promises, and what several of them need."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import random


class Candidate(Protocol):
    """
    One endpoint that may take traffic now. It is known by identity, and stays the same
    object from one balancer to the next; `key` and `address` name it for good.
    """

    key: str
    address: str
    weight: int
    backup: bool
    in_flight: int  # counted by whoever uses it
    latency: float  # seconds; 0 until there is a sample; kept by `PeakEwma`


C = TypeVar("C", bound=Candidate)


class Balancer(Generic[C]):
    """
    Gives out candidates, each as often as its weight says, as far as its policy lets it.

    Backups are a balancer of their own, asked once no primary is left. Weight 0 is nobody.
    """

    __slots__ = ("_backups",)

    counts: ClassVar[bool] = False
    """Whether `taken` and `returned` must be told of each request."""

    observes: ClassVar[bool] = False
    """Whether `observe` must be told of each request's time."""

    def __init__(
        self,
        candidates: Sequence[C],
        rng: random.Random,
        before: Balancer[C] | None = None,
    ) -> None:
        primaries = [one for one in candidates if one.weight > 0 and not one.backup]
        backups = [one for one in candidates if one.weight > 0 and one.backup]
        self._backups: Balancer[C] | None = None
        if primaries and backups:
            self._backups = type(self)(backups, rng, before and before._backups)
        self._arrange(primaries or backups, rng, before)

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        """Get ready to give out these, all alike in being a backup or not."""
        raise NotImplementedError

    def go_on(self) -> bool:
        """Do a part of what is left of getting ready; return whether nothing is."""
        return True

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return who gets the next request, passing over `tried`; None if nobody is left."""
        raise NotImplementedError

    def taken(self, candidate: C) -> None:
        """Learn that a request has begun: its `in_flight` has been raised."""

    def returned(self, candidate: C) -> None:
        """Learn that a request has ended: its `in_flight` has been lowered."""

    def observe(self, candidate: C, seconds: float, now: float) -> None:
        """Learn how long a request took."""


def name_of(candidate: C) -> tuple[str, str]:
    """Return what a candidate is known by from one balancer to the next."""
    return candidate.key, candidate.address


def first_untried(candidates: Sequence[C], start: int, tried: Container[C]) -> C | None:
    """
    Return the first from `start` on, round about, that is not in `tried`.

    At most one more than are in `tried` are looked at, however many candidates there are.
    """
    for index in range(start, len(candidates)):
        if candidates[index] not in tried:
            return candidates[index]
    for index in range(start):
        if candidates[index] not in tried:
            return candidates[index]
    return None


def edges_by_weight(candidates: Sequence[C]) -> list[float]:
    """Return where each candidate's part of [0, 1) ends; bisecting it draws by weight."""
    total = sum(candidate.weight for candidate in candidates)
    edges = [reached / total for reached in accumulate(one.weight for one in candidates)]
    assert not edges or edges[-1] == 1.0, "the last part ends where the draws do"
    return edges
