"""rate_limit: who is counted, how often one may come, and what a client is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.errors import OperatorError
from lb.plugin import Plugin
from lb.proxy.shared_table import SharedTables, create
from lb.testing import Bench, Outcome, call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "rate_limit.py"


def made(bench: Bench | None = None, **config: Any) -> Plugin[Any]:
    return make(PLUGIN, {"rate": "10/s", **config}, bench or Bench())


def passes(plugin: Plugin[Any], request: str = "GET /", **given: Any) -> bool:
    return call(plugin, request, **given).reply is None


def allowed(plugin: Plugin[Any], times: int = 100, **given: Any) -> int:
    return sum(passes(plugin, **given) for _ in range(times))


# --- How often --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "burst", "at_once"),
    [
        ("10/s", None, 10),
        ("30/m", None, 1),
        ("1.5/s", None, 1),
        ("1/h", None, 1),
        ("10/s", 3, 3),
        ("1/m", 20, 20),
    ],
)
def test_the_burst(rate: str, burst: int | None, at_once: int) -> None:
    config = {"rate": rate} if burst is None else {"rate": rate, "burst": burst}

    assert allowed(made(**config), 50) == at_once


def test_it_comes_back_as_the_rate_says() -> None:
    bench = Bench()
    plugin = made(bench, burst=2)
    assert allowed(plugin) == 2

    bench.time += 0.05
    assert not passes(plugin), "half a request's worth"
    bench.time += 0.05
    assert passes(plugin)
    assert not passes(plugin)
    bench.time += 3600
    assert allowed(plugin) == 2, "never more than the burst"


@settings(deadline=None)
@given(
    rate=st.integers(1, 1000),
    burst=st.integers(1, 50),
    waits=st.lists(st.floats(0, 0.5), min_size=1, max_size=100),
)
def test_never_more_than_rate_and_burst(rate: int, burst: int, waits: list[float]) -> None:
    bench = Bench()
    plugin = make(PLUGIN, {"rate": f"{rate}/s", "burst": burst}, bench)
    began, through = bench.time, 0
    for wait in waits:
        bench.time += wait
        through += passes(plugin)
        assert through <= burst + rate * (bench.time - began) + 0.01


@settings(deadline=None)
@given(rate=st.integers(1, 1000), burst=st.integers(1, 50), count=st.integers(1, 60))
def test_who_keeps_to_the_rate_is_never_turned_away(rate: int, burst: int, count: int) -> None:
    bench = Bench()
    plugin = make(PLUGIN, {"rate": f"{rate}/s", "burst": burst}, bench)
    for number in range(count):
        bench.time = 1000.0 + number / rate
        assert passes(plugin)


def test_who_is_turned_away_loses_nothing_by_asking() -> None:
    bench = Bench()
    plugin = made(bench, burst=1)
    assert passes(plugin)
    assert allowed(plugin) == 0

    bench.time += 0.1
    assert passes(plugin)


def test_a_slower_limit_of_before_a_reload_does_not_last() -> None:
    bench = Bench()
    slow = make(PLUGIN, {"rate": "1/h", "burst": 10}, bench)
    assert allowed(slow) == 10
    fast = made(bench, burst=2)

    assert not passes(fast), "it counts as one that has had its burst"
    bench.time += 0.1
    assert passes(fast)


# --- Who --------------------------------------------------------------------------------------

ONE: dict[str, Any] = {"burst": 1}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("unix:", "unix:", True),
        ("unix:", "192.0.2.1", False),
        ("3130:2e30:2e30:2e31::", "10.0.0.1", False),
    ],
)
def test_addresses(first: str, second: str, same: bool) -> None:
    plugin = made(**ONE)
    assert passes(plugin, client=first)

    assert passes(plugin, client=second) is not same


@pytest.mark.parametrize(
    ("key", "field"), [("header:x-key", "X-Key: {}"), ("cookie:key", "Cookie: a=b; key={}")]
)
def test_headers_and_cookies(key: str, field: str) -> None:
    plugin = made(key=key, **ONE)
    long = "x" * 500

    assert passes(plugin, "GET /\n" + field.format("a"), client="192.0.2.1")
    assert not passes(plugin, "GET /\n" + field.format("a"), client="192.0.2.2")
    assert passes(plugin, "GET /\n" + field.format("b"), client="192.0.2.1")
    assert passes(plugin, "GET /\n" + field.format(long + "a"))
    assert not passes(plugin, "GET /\n" + field.format(long + "a"))
    assert passes(plugin, "GET /\n" + field.format(long + "b"))


@pytest.mark.parametrize("key", ["header:x-key", "cookie:key"])
def test_without_a_value_the_address_is_counted(key: str) -> None:
    plugin = made(key=key, **ONE)

    assert passes(plugin, client="192.0.2.1")
    assert not passes(plugin, client="192.0.2.1")
    assert not passes(plugin, "GET /\nX-Key: \nCookie: key=", client="192.0.2.1")
    assert passes(plugin, client="192.0.2.2")


def test_nobody_is_charged_for_a_value_that_looks_like_his_address() -> None:
    plugin = made(key="header:x-key", **ONE)
    assert passes(plugin, "GET /\nX-Key: 192.0.2.1", client="192.0.2.9")

    assert passes(plugin, client="192.0.2.1")


def test_all_are_counted_together() -> None:
    plugin = made(key="all", **ONE)

    assert passes(plugin, client="192.0.2.1")
    assert not passes(plugin, client="192.0.2.2")


def test_each_use_counts_for_itself() -> None:
    bench = Bench(place="route.a")
    first = made(bench, **ONE)
    bench.place = "route.b"
    second = made(bench, **ONE)

    assert passes(first)
    assert passes(second)
    assert not passes(first)


def test_what_is_remembered_of_networks_is_bounded() -> None:
    plugin = made(key="client_ip")
    module = __import__("sys").modules[type(plugin).__module__]
    by_address = plugin._key_of  # type: ignore[attr-defined]
    known = next(
        cell.cell_contents
        for cell in by_address.__closure__
        if isinstance(cell.cell_contents, dict)
    )
    for number in range(module.NETWORKS_MAX + 10):
        assert passes(plugin, client=f"2001:db8:{number:x}::1")

    assert len(known) <= module.NETWORKS_MAX


# --- The group, and the workers ---------------------------------------------------------------


def test_a_limit_of_the_group_is_divided_by_who_lives() -> None:
    bench = Bench(instances=5)
    plugin = made(bench, shared="group")
    assert allowed(plugin) == 2
    bench.time += 1
    assert allowed(plugin) == 2

    bench.instances = 1
    for _, again in bench.periodic:
        again()
    bench.time += 100
    assert allowed(plugin) == 10


def test_in_a_large_group_one_request_is_the_least() -> None:
    bench = Bench(instances=50)
    plugin = made(bench, shared="group")

    assert allowed(plugin) == 1
    bench.time += 4.9
    assert not passes(plugin)
    bench.time += 0.1
    assert passes(plugin)


def test_a_limit_of_an_instance_does_not_care_how_many_there_are() -> None:
    bench = Bench(instances=5)

    assert allowed(made(bench)) == 10
    assert not bench.periodic


class Worker(Bench):
    """A context with the table of an instance's workers."""

    def __init__(self, tables: SharedTables) -> None:
        super().__init__()
        self._shared = tables

    def table(self, name: str) -> Any:
        return self._shared.table(name)


def test_workers_count_together() -> None:
    descriptor = create()
    first = made(Worker(SharedTables(descriptor)))
    second = made(Worker(SharedTables(descriptor)))
    os.close(descriptor)

    assert [allowed(first, 6), allowed(second, 6), allowed(first, 6)] == [6, 4, 0]


# --- What is said -----------------------------------------------------------------------------


def refused(plugin: Plugin[Any]) -> Outcome:
    while True:
        outcome = call(plugin)
        if outcome.reply is not None:
            return outcome


@pytest.mark.parametrize(
    ("config", "wait", "policy", "limit"),
    [
        ({"rate": "10/s"}, "1", '"default";q=10;w=1', '"default";r=0;t=1'),
        ({"rate": "10/s", "burst": 2}, "1", '"default";q=10;w=1', '"default";r=0;t=1'),
        ({"rate": "30/m", "policy": "per minute"}, "2", '"per minute";q=1;w=2', None),
        ({"rate": "1/m", "burst": 5}, "60", '"default";q=5;w=300', '"default";r=0;t=60'),
        ({"rate": "100/s", "burst": 250}, "1", '"default";q=300;w=3', None),
    ],
)
def test_a_429_says_when_to_come_again(
    config: dict[str, Any], wait: str, policy: str, limit: str | None
) -> None:
    bench = Bench()
    outcome = refused(made(bench, **config))

    assert outcome.got.status == 429
    assert outcome.got.headers.get("Retry-After") == wait
    assert outcome.got.headers.get("RateLimit-Policy") == policy
    assert limit is None or outcome.got.headers.get("RateLimit") == limit
    assert outcome.reply is not None
    assert outcome.reply.end == "limited"
    assert bench.counts["limited"] == 1


def test_who_waits_as_long_as_he_is_told_is_let_in() -> None:
    bench = Bench()
    plugin = made(bench, rate="7/m", burst=3)
    outcome = refused(plugin)

    bench.time += int(outcome.got.headers.get("Retry-After") or 0)
    assert passes(plugin)


def test_by_default_only_a_429_tells() -> None:
    assert call(made()).got.headers.get("RateLimit") is None
    assert not hasattr(made(), "on_response"), "or every response would have to be shown to it"


def test_all_answers_tell_if_asked() -> None:
    plugin = made(burst=2, tell="always")
    limits = [call(plugin).got.headers.all("RateLimit") for _ in range(3)]

    assert limits == [['"default";r=1;t=0'], ['"default";r=0;t=1'], ['"default";r=0;t=1']]


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "rate"),
        ({"rate": "0/s"}, "not a rate"),
        ({"rate": "10"}, "rate"),
        ({"rate": "1/s", "burst": 0}, "burst is from 1"),
        ({"rate": "1/s", "burst": 10_000_000}, "burst is from 1"),
        ({"rate": "1/s", "key": "address"}, "client_ip"),
        ({"rate": "1/s", "key": "header:"}, "client_ip"),
        ({"rate": "1/s", "key": "header:X-Forwarded-For"}, "believed"),
        ({"rate": "1/s", "shared": "worker"}, "shared"),
        ({"rate": "1/s", "policy": 'a"b'}, "policy"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
