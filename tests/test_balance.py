"""What every policy promises, and what each promises besides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.balance import POLICIES, Balancer, make
from lb.balance.consistent_hash import SLOTS
from lb.balance.least_requests import TURNS_SAVED_MAX
from lb.balance.peak_ewma import DECAY_S
from lb.balance.round_robin import PASSES_MAX, lay_out_turns
from lb.model import Route
from lb.routing import pick_share

every_policy = pytest.mark.parametrize("policy", POLICIES)


class Backend:
    """A candidate that counts how often it is looked at."""

    looks = 0

    def __init__(self, key: str, weight: int = 1, backup: bool = False, address: str = "") -> None:
        self.key = key
        self.address = address or f"{key}:80"
        self.weight = weight
        self.backup = backup
        self.latency = 0.0
        self._in_flight = 0

    def __repr__(self) -> str:
        return f"{self.key}={self.weight}{'b' if self.backup else ''}"

    @property
    def in_flight(self) -> int:
        Backend.looks += 1
        return self._in_flight

    @in_flight.setter
    def in_flight(self, value: int) -> None:
        self._in_flight = value


class Tried(Collection[Backend]):
    """What was tried, counting how often it is asked."""

    def __init__(self, backends: Collection[Backend] = ()) -> None:
        self._backends = set(backends)
        self.asked = 0

    def __contains__(self, backend: object) -> bool:
        self.asked += 1
        return backend in self._backends

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends)

    def __len__(self) -> int:
        return len(self._backends)


def backends_of(text: str) -> list[Backend]:
    """Return backends as `a=5 b c*` has them: weight 1 unless said, a star for backups."""
    made = []
    for word in text.split():
        name, _, weight = word.rstrip("*").partition("=")
        made.append(Backend(name, int(weight or 1), word.endswith("*")))
    return made


def many(count: int, weights: Sequence[int] = (1,)) -> list[Backend]:
    return [Backend(f"10.0.{n >> 8}.{n & 255}", weights[n % len(weights)]) for n in range(count)]


def begin(balancer: Balancer[Backend], backend: Backend) -> None:
    backend.in_flight += 1
    if balancer.counts:
        balancer.taken(backend)


def end(balancer: Balancer[Backend], backend: Backend, seconds: float = 0.05) -> None:
    backend.in_flight -= 1
    if balancer.counts:
        balancer.returned(backend)
    if balancer.observes:
        balancer.observe(backend, seconds, 1.0)


def serve(
    balancer: Balancer[Backend], count: int, tried: Collection[Backend] = ()
) -> list[Backend]:
    """Send requests one after the other, each with a key of its own."""
    served = []
    for number in range(count):
        backend = balancer.pick(tried, b"client-%d" % number)
        assert backend is not None
        begin(balancer, backend)
        end(balancer, backend)
        served.append(backend)
    return served


def serve_at_once(
    balancer: Balancer[Backend],
    at_once: int,
    count: int,
    speed: Callable[[Backend], float] = lambda _: 1.0,
) -> Counter[str]:
    """Keep `at_once` requests running, which take about as long on every backend."""
    rng = random.Random(5)
    running: list[tuple[float, int, Backend]] = []
    served: Counter[str] = Counter()
    now = 0.0
    for number in range(count):
        if len(running) == at_once:
            now, _, done = heappop(running)
            end(balancer, done)
        backend = balancer.pick((), b"client-%d" % number)
        assert backend is not None
        begin(balancer, backend)
        heappush(running, (now + rng.expovariate(1) / speed(backend), number, backend))
        served[backend.key] += 1
    return served


def names(backends: Sequence[Backend | None]) -> str:
    return " ".join("-" if backend is None else backend.key for backend in backends)


def furthest_off(served: Counter[str], backends: Sequence[Backend]) -> float:
    """Return the worst difference of a share from its weight, as a share of what is due."""
    total = sum(backend.weight for backend in backends)
    requests = served.total()
    return max(
        abs(served[backend.key] / requests * total / backend.weight - 1)
        for backend in backends
        if backend.weight
    )


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
