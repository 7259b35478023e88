"""What each policy promises besides; `test_balance.py` has what all do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import pytest
from backends import Backend, backends_of, begin, end, many, names, serve, serve_at_once
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.balance import Balancer, make
from lb.balance.least_requests import TURNS_SAVED_MAX
from lb.balance.peak_ewma import DECAY_S
from lb.balance.round_robin import lay_out_turns
from lb.model import Route
from lb.routing import pick_share

# --- round_robin ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([1, 1, 1], [0, 1, 2]),
        ([5, 1, 1], [0, 0, 1, 0, 2, 0, 0]),  # Spread out: not 0 0 0 0 0 1 2.
        ([1, 2], [1, 0, 1]),
        ([3], [0, 0, 0]),
    ],
)
def test_turns(weights: list[int], turns: list[int]) -> None:
    assert lay_out_turns(weights) == turns


def test_every_round_is_exact() -> None:
    balancer = make("round_robin", backends_of("a=5 b=3 c=2"), random.Random(1))
    turns = names(serve(balancer, 50)).split()

    for start in range(40):
        assert Counter(turns[start : start + 10]) == {"a": 5, "b": 3, "c": 2}


def test_turns_of_one_that_was_tried_go_to_the_others_in_order() -> None:
    backends = backends_of("a=5 b c")
    balancer = make("round_robin", backends, random.Random(1))

    turns = names([balancer.pick(backends[:1]) for _ in range(6)])

    assert turns in {"b c b c b c", "c b c b c b"}


def test_big_weights_are_not_laid_out_and_yet_spread() -> None:
    balancer = make("round_robin", backends_of("a=1000 b=999 c=998"), random.Random(1))
    turns = serve(balancer, 3000)

    for begin_ in range(0, 2990, 10):
        assert max(Counter(islice(turns, begin_, begin_ + 10)).values()) <= 5


# --- least_requests ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    start=st.lists(st.integers(0, 4), min_size=1, max_size=7),
    acts=st.lists(st.integers(0, 20), max_size=60),
    seed=st.integers(0, 9),
)
def test_least_requests_is_the_least(start: list[int], acts: list[int], seed: int) -> None:
    backends = many(len(start))
    for backend, in_flight in zip(backends, start, strict=True):
        backend.in_flight = in_flight
    balancer = make("least_requests", backends, random.Random(seed))
    for act in acts:
        backend = backends[act % len(backends)]
        if act % 2 and backend.in_flight:
            end(balancer, backend)
        elif act % 5 == 0:
            balancer = make("least_requests", backends, random.Random(act), balancer)
        elif act % 7 == 0:
            begin(balancer, backend)  # Somebody else's doing.
        else:
            picked = balancer.pick()
            assert picked is not None
            assert picked.in_flight == min(one.in_flight for one in backends)
            tried = [backend]
            other = balancer.pick(tried)
            rest = [one for one in backends if one is not backend]
            if other is not None:
                assert other.in_flight == min(one.in_flight for one in rest)
            begin(balancer, picked)


def test_a_slow_backend_gets_what_it_can_do() -> None:
    backends = backends_of("slow b c")
    served = serve_at_once(
        make("least_requests", backends, random.Random(1)),
        12,
        6000,
        lambda backend: 0.2 if backend.key == "slow" else 1.0,
    )

    assert served["slow"] / 6000 == pytest.approx(0.2 / 2.2, abs=0.03)


def test_one_that_was_stuck_gets_no_burst_later() -> None:
    backends = backends_of("stuck b c")
    balancer = make("least_requests", backends, random.Random(1))
    for _ in range(5):
        begin(balancer, backends[0])
    serve(balancer, 1000)
    for _ in range(5):
        end(balancer, backends[0])

    served = names(serve(balancer, 60)).split()

    assert 20 <= served.count("stuck") <= 20 + TURNS_SAVED_MAX + 1


# --- two_choices, peak_ewma -------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["two_choices", "peak_ewma", "least_requests"])
def test_busy_ones_are_passed_over(policy: str) -> None:
    backends = backends_of("busy idle")
    balancer = make(policy, backends, random.Random(1))
    for backend in backends:
        begin(balancer, backend)
        end(balancer, backend)
    for _ in range(3):
        begin(balancer, backends[0])

    assert {backend.key for backend in serve(balancer, 100)} == {"idle"}


def test_two_choices_keeps_queues_short() -> None:
    """The busiest of twenty, at 200 requests at once: about 11; by chance it would be 20."""
    backends = many(20)
    busiest = 0
    balancer = make("two_choices", backends, random.Random(1))
    rng = random.Random(2)
    running: list[Backend] = []
    for _ in range(5000):
        if len(running) == 200:
            end(balancer, running.pop(rng.randrange(200)))
        picked = balancer.pick()
        assert picked is not None
        begin(balancer, picked)
        running.append(picked)
        busiest = max(busiest, picked.in_flight)

    assert busiest <= 14


def peak(weights: str) -> tuple[list[Backend], Balancer[Backend]]:
    backends = backends_of(weights)
    return backends, make("peak_ewma", backends, random.Random(1))


def test_a_latency_jumps_up_and_comes_down_slowly() -> None:
    (a, _), balancer = peak("a b")

    balancer.observe(a, 0.1, 100.0)
    assert a.latency == 0.1
    balancer.observe(a, 2.0, 101.0)
    assert a.latency == 2.0
    balancer.observe(a, 0.1, 101.5)
    assert 1.8 < a.latency < 2.0
    balancer.observe(a, 0.1, 101.5 + 10 * DECAY_S)
    assert a.latency == pytest.approx(0.1, abs=0.01)


def test_a_slow_one_is_left_alone_then_forgiven() -> None:
    (slow, b), balancer = peak("slow b")
    balancer.observe(slow, 0.5, 100.0)
    balancer.observe(b, 0.05, 100.0)

    assert {balancer.pick() for _ in range(50)} == {b}

    balancer.observe(b, 0.05, 100.0 + 6 * DECAY_S)
    assert slow in {balancer.pick() for _ in range(50)}


def test_latencies_outlive_a_swap() -> None:
    backends, balancer = peak("slow b c*")
    balancer.observe(backends[0], 0.5, 100.0)
    balancer.observe(backends[1], 0.05, 100.0)
    balancer.observe(backends[2], 0.05, 100.0)

    after = make("peak_ewma", backends, random.Random(2), balancer)

    assert {after.pick() for _ in range(50)} == {backends[1]}


def test_the_unseen_is_seen_but_not_flooded() -> None:
    (new, b), balancer = peak("new b")
    balancer.observe(b, 0.05, 100.0)

    assert {balancer.pick() for _ in range(50)} == {new}
    begin(balancer, new)
    assert {balancer.pick() for _ in range(50)} == {b}


# --- hash -------------------------------------------------------------------------------------

KEYS = [b"10.1.%d.%d" % (n >> 8, n & 255) for n in range(5000)]


def places(backends: Sequence[Backend]) -> dict[bytes, str]:
    balancer = make("hash", backends, random.Random(1))
    found = {}
    for key in KEYS:
        picked = balancer.pick((), key)
        assert picked is not None
        found[key] = picked.key
    return found


@pytest.mark.parametrize("weights", [(1,), (1, 2, 3), (100, 37)])
@pytest.mark.parametrize("count", [2, 3, 11])
def test_only_keys_of_who_left_move(count: int, weights: tuple[int, ...]) -> None:
    backends = many(count, weights)
    before = places(backends)
    for gone in backends[:3]:
        after = places([backend for backend in backends if backend is not gone])

        moved = {key for key in KEYS if before[key] != after[key]}
        assert moved == {key for key in KEYS if before[key] == gone.key}


def test_keys_of_who_left_are_spread_over_the_others() -> None:
    backends = many(5)
    before = places(backends)
    after = places(backends[1:])

    taken = Counter(after[key] for key in KEYS if before[key] == backends[0].key)

    assert min(taken.values()) > 0.7 * taken.total() / 4


def test_more_weight_only_draws_keys() -> None:
    backends = backends_of("a=2 b=2 c=2")
    before = places(backends)
    backends[0].weight = 3
    after = places(backends)

    assert {after[key] for key in KEYS if after[key] != before[key]} == {"a"}


def test_weights_count_by_their_ratio() -> None:
    assert places(backends_of("a=2 b=4")) == places(backends_of("a b=2"))


def test_the_order_of_backends_is_nothing() -> None:
    backends = many(7)

    assert places(backends) == places(backends[::-1])


def test_a_name_keeps_its_keys_at_a_new_address() -> None:
    moved = [Backend("a", address="10.9.9.9:80"), *backends_of("b c")]

    assert places(moved) == places(backends_of("a b c"))


def test_endpoints_of_one_name_share_its_keys() -> None:
    endpoints = [Backend("web", address=f"10.0.0.{n}:80") for n in range(1, 4)]
    balancer = make("hash", endpoints, random.Random(1))

    served = Counter(balancer.pick((), key) for key in KEYS)

    assert min(served.values()) > 0.9 * len(KEYS) / 3


def test_all_versions_of_accord_put_keys_alike() -> None:
    """Instances of two versions run side by side: a changed table would part their clients."""
    found = places(backends_of("a=3 b=2 c"))

    assert names_of_first(found) == "aaaacabaacabaaaacabbababcbbaaaabbaaccaca"


def names_of_first(found: dict[bytes, str]) -> str:
    return "".join(found[key] for key in KEYS[:40])


def test_a_retry_goes_to_the_same_other_backend() -> None:
    backends = many(6)
    balancer = make("hash", backends, random.Random(1))
    for key in KEYS[:200]:
        first = balancer.pick((), key)
        assert first is not None
        assert len({balancer.pick([first], key) for _ in range(5)}) == 1


def test_the_clients_of_a_small_share_meet_all_backends() -> None:
    """A split and the balancer behind it may go by the same key: they must not go alike."""
    route = Route("r", split=(("canary", 0.02), ("rest", 0.98)))
    clients = [key for key in KEYS if pick_share(route, key) == "canary"]
    balancer = make("hash", many(4), random.Random(1))

    served = Counter(balancer.pick((), key) for key in clients)

    assert len(clients) > 60
    assert min(served.values()) > len(clients) / 10
    assert len(served) == 4


def test_requests_without_a_key_are_spread() -> None:
    balancer = make("hash", many(3), random.Random(1))

    served = Counter(balancer.pick() for _ in range(3000))

    assert min(served.values()) > 800
