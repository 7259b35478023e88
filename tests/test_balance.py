"""What every policy promises. A new one is a row of `POLICIES`, and is held to all of this."""

from __future__ import annotations

import random
from collections import Counter
from math import sqrt

import pytest
from backends import (
    Backend,
    Tried,
    backends_of,
    begin,
    end,
    furthest_off,
    many,
    names,
    serve,
    serve_at_once,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.balance import POLICIES, make
from lb.balance.round_robin import PASSES_MAX
from lb.balance.slots import SLOTS

every_policy = pytest.mark.parametrize("policy", POLICIES)


# --- What all promise -------------------------------------------------------------------------

WEIGHTS = ["a b c", "a=5 b c", "a=2 b=3", "a=10 b", "a=100 b=100 c=200", "a b=0 c=3"]


@every_policy
@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_are_weights(policy: str, weights: str) -> None:
    backends = backends_of(weights)
    balancer = make(policy, backends, random.Random(7))
    exact = policy in {"round_robin", "least_requests"}
    count = 20_000 if exact else 100_000

    served = Counter(backend.key for backend in serve(balancer, count))

    bound = 0.02
    if policy == "hash":
        # Whether a slot is one's own is a draw by weight, and so is on which slot a key falls.
        least = min(one.weight for one in backends if one.weight) / sum(b.weight for b in backends)
        bound = 4 * sqrt((1 - least) / least * (1 / SLOTS + 1 / count))
        assert bound < 0.09
    assert furthest_off(served, backends) < bound


@every_policy
@pytest.mark.parametrize("count", [40, 1000])
def test_shares_are_weights_among_many(policy: str, count: int) -> None:
    backends = many(count, (1, 2, 3, 7))
    served = Counter(
        backend.key for backend in serve(make(policy, backends, random.Random(1)), 52_000)
    )
    weights = {backend.key: backend.weight for backend in backends}

    by_weight: Counter[str] = Counter()
    for key, requests in served.items():
        by_weight[str(weights[key])] += requests
    classes = [Backend(str(weight), weight) for weight in (1, 2, 3, 7)]
    assert furthest_off(by_weight, classes) < 0.06  # half of it chance: the 1s have 4,000 of them

    expected = 52_000 / sum(weights.values())
    worst = max(abs(served[key] - expected * weight) for key, weight in weights.items())
    if policy in {"round_robin", "least_requests"}:
        assert worst <= 2
    else:
        scatter = expected * 7 * (1 + (52_000 / SLOTS if policy == "hash" else 0))
        assert worst < 5 * sqrt(scatter)


@pytest.mark.parametrize("policy", ["least_requests", "two_choices", "peak_ewma"])
@pytest.mark.parametrize("at_once", [2, 5, 20, 100])
@pytest.mark.parametrize("weights", ["a b c", "a=10 b", "a=5 b c", "a b=2 c=3 d=4 e=5"])
def test_shares_stay_near_weights_under_load(policy: str, at_once: int, weights: str) -> None:
    """Load may shift shares a bit; never may a light one get a heavy one's share."""
    backends = backends_of(weights)
    total = sum(backend.weight for backend in backends)

    served = serve_at_once(make(policy, backends, random.Random(2)), at_once, 8000)

    off = max(abs(served[one.key] / 8000 - one.weight / total) for one in backends)
    assert off < (0.12 if policy in {"two_choices", "peak_ewma"} else 0.03)


candidates = st.lists(
    st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 3)), min_size=0, max_size=8
)


@every_policy
@settings(max_examples=40, deadline=None)
@given(some=candidates, picks=st.lists(st.integers(0, 255), max_size=20), seed=st.integers(0, 99))
def test_whom_a_pick_may_return(
    policy: str, some: list[tuple[int, bool, int]], picks: list[int], seed: int
) -> None:
    backends = [
        Backend(f"b{number}", weight, backup) for number, (weight, backup, _) in enumerate(some)
    ]
    for backend, (_, _, in_flight) in zip(backends, some, strict=True):
        backend.in_flight = in_flight
    balancer = make(policy, backends, random.Random(seed))

    for bits in picks:
        tried = [backend for number, backend in enumerate(backends) if bits >> number & 1]
        picked = balancer.pick(tried, bits.to_bytes(2, "big"))

        left = [backend for backend in backends if backend.weight and backend not in tried]
        if picked is None:
            assert not left
            continue
        assert picked in left
        if picked.backup:
            assert all(backend.backup for backend in left)
        begin(balancer, picked)
        if bits & 1:
            end(balancer, picked)


@every_policy
@pytest.mark.parametrize("count", [1, 2, 33])
def test_backups_serve_when_there_is_nobody_else(policy: str, count: int) -> None:
    primaries, backups = many(count), backends_of("x=3* y*")
    balancer = make(policy, [*backups, *primaries], random.Random(1))

    assert not {backend.key for backend in serve(balancer, 50)} & {"x", "y"}
    assert {backend.key for backend in serve(balancer, 50, primaries)} == {"x", "y"}
    assert balancer.pick([*primaries, *backups]) is None

    alone = make(policy, backups, random.Random(1))
    assert {backend.key for backend in serve(alone, 50)} == {"x", "y"}


@every_policy
def test_nobody_is_none(policy: str) -> None:
    for text in ("", "a=0", "a=0 b=0*"):
        balancer = make(policy, backends_of(text), random.Random(1))
        assert balancer.pick() is None
        assert balancer.pick([Backend("z")], b"key") is None


@every_policy
def test_what_one_cannot_take_the_others_share_by_weight(policy: str) -> None:
    backends = backends_of("a=6 b=3 c")
    balancer = make(policy, backends, random.Random(4))

    served = Counter(one.key for one in serve(balancer, 8000, backends[:1]))

    assert served["a"] == 0
    if policy in {"two_choices", "peak_ewma"}:  # The second of two, if it is the one left.
        assert served["b"] > served["c"] > 0
    else:
        assert served["b"] / 8000 == pytest.approx(0.75, abs=0.03)


@every_policy
@pytest.mark.parametrize("weights", [(1,), (1, 2, 3), tuple(range(1, 998))])
def test_a_pick_costs_the_same_among_many(policy: str, weights: tuple[int, ...]) -> None:
    """What is counted is candidates looked at; time is the bench's."""

    def looked_at(count: int, tried_count: int) -> float:
        backends = many(count, weights)
        balancer = make(policy, backends, random.Random(3))
        tried = Tried(backends[:tried_count])
        Backend.looks = 0
        running: list[Backend] = []
        for number in range(3000):
            picked = balancer.pick(tried, b"client-%d" % number)
            assert picked is not None
            begin(balancer, picked)
            running.append(picked)
            if len(running) > 50:
                end(balancer, running.pop(number % 50))
        return (Backend.looks + tried.asked) / 3000

    for tried_count in (0, 3):
        few, lots = looked_at(16, tried_count), looked_at(1600, tried_count)
        assert lots <= few + 8


@every_policy
def test_finding_nobody_left_costs_what_was_tried(policy: str) -> None:
    backends = many(500)
    balancer = make(policy, backends, random.Random(3))
    tried = Tried(backends)

    assert balancer.pick(tried, b"key") is None

    assert tried.asked <= len(backends) + PASSES_MAX + 2


# --- Swaps ------------------------------------------------------------------------------------


@every_policy
def test_a_swap_may_be_to_anything(policy: str) -> None:
    rng = random.Random(6)
    pool = [*many(40, (1, 5)), *backends_of("x* y*")]
    balancer = make(policy, pool[:3], rng)
    for after in POLICIES:
        for some in ([], pool[:2], pool[30:], pool, pool[-2:]):
            balancer = make(after, some, rng, balancer)
            balancer = make(policy, some, rng, balancer)
            if some:
                assert {*serve(balancer, 200)} <= {*some}
            else:
                assert balancer.pick() is None


@every_policy
def test_hooks_may_speak_of_who_is_gone(policy: str) -> None:
    backends = backends_of("a b c*")
    before = make(policy, backends, random.Random(1))
    gone, stays = backends[0], backends[1]
    for backend in (gone, gone, stays):
        begin(before, backend)
    balancer = make(policy, backends[1:], random.Random(1), before)

    end(balancer, gone)
    balancer.taken(gone)
    balancer.returned(gone)
    balancer.observe(gone, 1.0, 2.0)
    end(balancer, stays)

    assert balancer.pick() is stays


@pytest.mark.parametrize("weights", ["a b c", "a=5 b c", "a=3 b=2 c d"])
@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
@pytest.mark.parametrize("picks", range(5))
def test_a_swap_keeps_positions(policy: str, weights: str, picks: int) -> None:
    through = make(policy, backends_of(weights), random.Random(1))
    swapped = make(policy, backends_of(weights), random.Random(1))
    serve(through, picks)
    serve(swapped, picks)

    again = make(policy, backends_of(weights), random.Random(99), swapped)

    assert names(serve(again, 20)) == names(serve(through, 20))


@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_swaps_at_every_pick_favour_nobody(policy: str) -> None:
    """As when health flips all the time: who was due stays due."""
    backends = backends_of("a=5 b c d=2")
    extra = backends_of("x")
    balancer = make(policy, backends, random.Random(1))
    served: Counter[str] = Counter()
    for number in range(900):
        balancer = make(policy, backends + extra * (number % 2), random.Random(number), balancer)
        served[serve(balancer, 1)[0].key] += 1

    del served["x"]
    assert furthest_off(served, backends) < 0.25


def test_a_swap_of_many_goes_on_with_who_is_due() -> None:
    backends = many(60, (1, 4))
    balancer = make("round_robin", backends, random.Random(1))
    first = serve(balancer, 70)
    balancer = make("round_robin", backends[1:], random.Random(2), balancer)
    served = Counter(backend.key for backend in first + serve(balancer, 80))

    assert max(served[one.key] / one.weight for one in backends[1:]) <= 2


@pytest.mark.parametrize(
    ("gone", "joins", "then"),
    [("", "", "b c a"), ("b", "", "c a c"), ("a", "", "b c b"), ("", "d", "b c d")],
)
def test_who_was_next_stays_next(gone: str, joins: str, then: str) -> None:
    backends = backends_of("a b c")
    balancer = make("round_robin", backends, random.Random(1))
    while serve(balancer, 1)[0].key != "a":
        pass

    after = [backend for backend in backends if backend.key != gone] + backends_of(joins)
    balancer = make("round_robin", after, random.Random(1), balancer)

    assert names(serve(balancer, 3)) == then


@pytest.mark.parametrize("policy", ["round_robin", "hash"])
def test_a_weight_that_changed_on_the_live_object_counts_after_the_swap(policy: str) -> None:
    backends = backends_of("a b")
    before = make(policy, backends, random.Random(1))
    backends[0].weight = 9
    balancer = make(policy, backends, random.Random(1), before)

    served = Counter(backend.key for backend in serve(balancer, 10_000))

    assert served["a"] / 10_000 == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"hash"}))
def test_workers_start_with_different_backends(policy: str) -> None:
    starts = {serve(make(policy, many(10), random.Random(seed)), 1)[0].key for seed in range(40)}

    assert len(starts) > 5
