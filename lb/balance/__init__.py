"""
Load-balancing policies, pure: who gets the next request.

A policy is a class here and a row of `POLICIES`; `tests/test_balance.py` holds each to the same
promises. None looks at all candidates at a pick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from lb.balance.balancer import Balancer, C, Candidate
from lb.balance.consistent_hash import ConsistentHash
from lb.balance.guarded import guarded
from lb.balance.least_requests import LeastRequests
from lb.balance.peak_ewma import PeakEwma
from lb.balance.random_choice import RandomChoice
from lb.balance.round_robin import RoundRobin
from lb.balance.stand_in import StandIn
from lb.balance.two_choices import TwoChoices

if TYPE_CHECKING:
    import random

__all__ = ["POLICIES", "Balancer", "Candidate", "StandIn", "begin", "make"]

POLICIES: Final[dict[str, type[Balancer[Candidate]]]] = {
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "least_requests": LeastRequests,
    "two_choices": TwoChoices,
    "hash": ConsistentHash,
    "peak_ewma": PeakEwma,
}
NO_OTHERS: Final[Mapping[str, Any]] = MappingProxyType({})


def make(
    policy: str,
    candidates: Sequence[C],
    rng: random.Random,
    before: Balancer[C] | None = None,
    others: Mapping[str, type[Balancer[C]]] = NO_OTHERS,
) -> Balancer[C]:
    """
    Return the balancer of a policy over candidates that may all take traffic.

    `before` is the one it replaces: what stays keeps its position and what is known of it.
    `others` are policies that plugins bring; one that is nowhere is round robin.
    """
    made = _begun(policy, candidates, rng, before, others)
    while not made.go_on():
        pass
    return made


def begin(
    policy: str,
    candidates: Sequence[C],
    rng: random.Random,
    before: Balancer[C],
    others: Mapping[str, type[Balancer[C]]] = NO_OTHERS,
) -> Balancer[C] | StandIn[C]:
    """
    Return the same, or who stands in for it until it is ready.

    Whoever has a `StandIn` calls its `go_on` until it gets what to use from then on.
    """
    overtaken = before.overtaken + 1 if isinstance(before, StandIn) else 0
    settled = before.settled() if isinstance(before, StandIn) else before
    made = _begun(policy, candidates, rng, settled, others)
    if made.go_on():
        return made
    return StandIn(made, candidates, settled, overtaken)


def _begun(
    policy: str,
    candidates: Sequence[C],
    rng: random.Random,
    before: Balancer[C] | None,
    others: Mapping[str, type[Balancer[C]]],
) -> Balancer[C]:
    own: Any = POLICIES.get(policy)
    if own is None:
        return guarded(others.get(policy), candidates, rng, before)
    made: Balancer[C] = own(candidates, rng, before)
    return made
