"""A policy of a plugin's: it decides while it keeps its word, and round robin does after that."""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from lb.balance import make
from lb.plugin import Balancer


@dataclass(eq=False)
class One:
    key: str
    address: str = ""
    weight: int = 1
    backup: bool = False
    in_flight: int = 0
    latency: float = 0.0


class Last(Balancer[Any]):
    """Always the last one."""

    made = 0

    def _arrange(
        self, candidates: Sequence[Any], rng: random.Random, before: Balancer[Any] | None
    ) -> None:
        self.candidates = list(candidates)
        self.kept = 0 if before is None else before.kept + 1  # type: ignore[attr-defined]

    def pick(self, tried: Container[Any] = (), key: bytes = b"", now: float = 0.0) -> Any:
        left = [each for each in self.candidates if each not in tried]
        return left[-1] if left else None


class Fails(Last):
    def pick(self, tried: Container[Any] = (), key: bytes = b"", now: float = 0.0) -> Any:
        raise LookupError("none")


class Exits(Last):
    def taken(self, candidate: Any) -> None:
        raise SystemExit(3)


class Stubborn(Last):
    def pick(self, tried: Container[Any] = (), key: bytes = b"", now: float = 0.0) -> Any:
        return self.candidates[0]


SOME = [One("a"), One("b"), One("c")]


def picks(policy: type[Balancer[Any]] | None, count: int = 3) -> str:
    others = {} if policy is None else {"own": policy}
    balancer = make("own", SOME, random.Random(1), None, others)
    return "".join(found.key for _ in range(count) if (found := balancer.pick()))


def test_it_decides() -> None:
    assert picks(Last) == "ccc"


@pytest.mark.parametrize("policy", [None, Fails])
def test_round_robin_stands_in_for_one_that_fails_or_is_not_there(
    policy: type[Balancer[Any]] | None,
) -> None:
    assert sorted(picks(policy, 3)) == ["a", "b", "c"]


def test_one_that_wants_to_end_the_process_does_not() -> None:
    balancer = make("own", SOME, random.Random(1), None, {"own": Exits})
    first = balancer.pick()
    assert first is not None
    balancer.taken(first)
    assert sorted(found.key for _ in range(3) if (found := balancer.pick())) == ["a", "b", "c"]


def test_who_was_tried_is_not_asked_again_whatever_it_says() -> None:
    balancer = make("own", SOME, random.Random(1), None, {"own": Stubborn})
    found = balancer.pick([SOME[0]])
    assert found is not None
    assert found.key != "a"


def test_what_it_knew_goes_on_in_the_next_one() -> None:
    before = make("own", SOME, random.Random(1), None, {"own": Last})
    after = make("own", SOME, random.Random(1), before, {"own": Last})
    assert after._own.kept == 1  # type: ignore[attr-defined]
    other = make("own", SOME, random.Random(1), after, {"own": Stubborn})
    assert other._own.kept == 0  # type: ignore[attr-defined]
