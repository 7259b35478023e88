"""Tables of slots: the same whatever way they came about, and made in parts while others serve."""

from __future__ import annotations

import asyncio
import os
import random
from zlib import crc32

import pytest
from backends import Backend, backends_of, many, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.balance import Balancer, StandIn, begin, make
from lb.balance.consistent_hash import ConsistentHash
from lb.balance.slots import CLAIMS_A_PART, EMPTY, JOINING_MAX, LOST_MAX, SLOTS, Table, arranging
from lb.balance.stand_in import OVERTAKEN_MAX
from lb.metrics import Meters, create_memory
from lb.model import Endpoint, Upstream
from lb.proxy.deadlines import Deadlines
from lb.proxy.upstream import LiveUpstream

TURNS_MAX = 1000
KEYS = [b"key-%d" % number for number in range(2000)]


def table_of(weights: dict[bytes, int], before: Table = EMPTY) -> Table:
    """Make a table to its end."""
    parts = arranging(before, weights)
    while True:
        try:
            next(parts)
        except StopIteration as made:
            return made.value  # type: ignore[no-any-return]


def owners(table: Table) -> list[bytes]:
    """Return whose each slot is, by identity."""
    names = {member.number: identity for identity, member in table.members.items()}
    return [names[number] for number in table.owners]


def members(count: int) -> dict[bytes, int]:
    """So many, of several weights."""
    return {b"10.0.%d.%d:8080" % (n >> 8, n & 255): 1 + n * 7 % 5 for n in range(count)}


@pytest.mark.parametrize(
    ("weights", "digest"),
    [
        (members(2), 2573615310),
        (members(3), 495935690),
        (members(10), 274213502),
        (dict.fromkeys(members(1000), 1), 4294208026),
    ],
)
def test_all_versions_of_accord_have_the_same_table(weights: dict[bytes, int], digest: int) -> None:
    """Instances of two versions run side by side: another table would part their clients."""
    assert crc32(b"".join(name + b"\n" for name in owners(table_of(weights)))) == digest


@settings(max_examples=12, deadline=None)
@given(
    some=st.sets(st.integers(0, 60), min_size=1, max_size=50),
    steps=st.lists(
        st.tuples(st.sets(st.integers(0, 60), max_size=3), st.integers(1, 4)), max_size=4
    ),
)
def test_a_table_is_the_same_whatever_way_it_came_about(
    some: set[int], steps: list[tuple[set[int], int]]
) -> None:
    weights = {b"member-%d" % number: 1 for number in some}
    table = table_of(weights)
    for others, weight in steps:
        for name in (b"member-%d" % number for number in others):
            if weights.get(name) == weight and len(weights) > 1:
                del weights[name]
            else:
                weights[name] = weight
        table = table_of(weights, table)

        assert owners(table) == owners(table_of(weights))


@pytest.mark.parametrize("count", [99, 1000])
def test_a_small_change_of_many_is_as_if_made_anew(count: int) -> None:
    weights = members(count)
    table = table_of(weights)
    names = list(weights)
    for change in ({names[5]: 0}, {b"new": 2}, {names[7]: 9}, {names[5]: 3, names[8]: 0}):
        weights = {name: one for name, one in (weights | change).items() if one}
        table = table_of(weights, table)

        assert owners(table) == owners(table_of(weights))
        assert len(table.members) == len(weights)


def parts_of(weights: dict[bytes, int], before: Table) -> int:
    """Return after how many parts others have their turn."""
    return sum(1 for _ in arranging(before, weights))


def test_a_small_change_costs_little_and_a_part_is_a_part() -> None:
    weights = dict.fromkeys(members(1000), 1)
    table = table_of(weights)
    anew = parts_of(weights, EMPTY)
    assert anew >= 3 * SLOTS // CLAIMS_A_PART, "claims are looked at in parts"
    assert parts_of(weights | {b"new": 1}, table) <= 4
    assert SLOTS // 1000 < LOST_MAX
    assert JOINING_MAX * 1000 > 1
    assert parts_of(dict(list(weights.items())[1:]), table) < anew


# --- Who serves meanwhile ---------------------------------------------------------------------


def owner_of(balancer: Balancer[Backend], key: bytes) -> str:
    picked = balancer.pick((), key)
    assert picked is not None
    return picked.key


def places(balancer: Balancer[Backend]) -> list[str]:
    return [owner_of(balancer, key) for key in KEYS]


def begun(backends: list[Backend], before: Balancer[Backend]) -> StandIn[Backend]:
    balancer = begin("hash", backends, random.Random(1), before)
    assert isinstance(balancer, StandIn)
    return balancer


def settle(balancer: StandIn[Backend]) -> Balancer[Backend]:
    while not balancer.go_on():
        pass
    return balancer.settled()


def test_keys_stay_until_the_new_table_is_there() -> None:
    backends = many(40)
    before = make("hash", backends, random.Random(1))
    old = places(before)

    balancer = begun([*backends[1:], *backends_of("new=5")], before)

    meanwhile = places(balancer)
    assert all(now in {then, *meanwhile} for now, then in zip(meanwhile, old, strict=True))
    stayed = [now == then for now, then in zip(meanwhile, old, strict=True)]
    assert stayed == [then != backends[0].key for then in old]
    after = settle(balancer)
    assert isinstance(after, ConsistentHash)
    fresh = make("hash", [*backends[1:], *backends_of("new=5")], random.Random(1))
    assert places(after) == places(fresh)


@pytest.mark.parametrize("policy", ["round_robin", "least_requests", "random", "peak_ewma"])
def test_any_policy_stands_in(policy: str) -> None:
    backends = many(20)
    balancer = begun(backends[5:], make(policy, backends[:10], random.Random(1)))

    assert {one.key for one in serve(balancer, 200)} == {one.key for one in backends[5:10]}
    assert balancer.pick(backends) is None
    assert settle(balancer).pick(backends) is None


@pytest.mark.parametrize("before", ["", "x y z", "x*"])
def test_where_nobody_is_left_of_before_it_is_made_at_once(before: str) -> None:
    backends = [*many(20), *backends_of("x*")]
    balancer = begun(backends, make("hash", backends_of(before), random.Random(1)))

    assert places(balancer) == places(make("hash", backends, random.Random(1)))
    assert balancer.go_on()


def test_changes_that_never_cease_are_followed_all_the_same() -> None:
    backends = many(40)
    balancer: Balancer[Backend] = make("hash", backends, random.Random(1))
    for number in range(OVERTAKEN_MAX + 1):
        balancer = begun(backends[: 30 - number], balancer)
        assert owner_of(balancer, b"some") in {one.key for one in backends[: 30 - number]}

    assert balancer.go_on(), "it is ready, and not begun anew for ever"


def test_backups_are_got_ready_too() -> None:
    backends = [*many(5), *backends_of("x* y*")]
    balancer = make("hash", backends, random.Random(1))

    assert {one.key for one in serve(balancer, 100, backends[:5])} == {"x", "y"}


# --- In a worker ------------------------------------------------------------------------------


def endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{n}:80", f"10.0.0.{n}:80") for n in range(count)]


async def turns(upstream: LiveUpstream) -> int:
    """Let the loop turn until the balancer is there; return how often it did."""
    count = 0
    while isinstance(upstream.balancer, StandIn):
        await asyncio.sleep(0)
        count += 1
        assert count < TURNS_MAX
    return count


def test_a_worker_makes_a_part_at_each_turn_of_its_loop() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        memory = create_memory()
        meters = Meters(memory)
        os.close(memory)
        upstream = LiveUpstream("app", loop, Deadlines(loop), meters, random.Random(1))
        policy = Upstream("app", balance="hash")
        upstream.install(policy, endpoints(40), {}, {})
        assert await turns(upstream) > 5
        owner = upstream.pick((), b"some", 0.0)
        assert owner is not None

        rest = [each for each in endpoints(40) if each.key != owner.key]
        upstream.install(policy, rest, {}, {})

        meanwhile = upstream.pick((), b"some", 0.0)
        assert meanwhile is not None
        assert meanwhile.key != owner.key
        assert await turns(upstream) > 1
        assert isinstance(upstream.balancer, ConsistentHash)

    asyncio.run(run())
