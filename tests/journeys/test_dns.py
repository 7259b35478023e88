"""Backends that are names: followed as DNS changes, kept when it fails (fault 12)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from dns_server import DnsServer

from journeys.conftest import Make
from journeys.kit import Backend, Daemon, until


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer(ttl=1) as server:
        yield server


def config_of(*addresses: str) -> str:
    backends = ", ".join(f'"{address}"' for address in addresses)
    return (
        '[listener.web]\naddress = "127.0.0.1:{port}"\n'
        f'[upstream.app]\nbackends = [{backends}]\nkeepalive = {{ idle = "100ms" }}\n'
    )


def answers(one: Daemon, count: int = 8) -> set[str]:
    return {one.ask().text for _ in range(count)}


def same_port(wheres: str) -> list[Backend]:
    """Make backends on several addresses and one port, since a name has only addresses."""
    with ExitStack() as stack:
        first, *others = wheres.split()
        made = [Backend(first, first)]
        stack.callback(made[0].close)
        for where in others:
            made.append(Backend(where, where, made[0].port))
            stack.callback(made[-1].close)
        stack.pop_all()
        return made


def test_a_name_is_followed_and_kept(dns: DnsServer, daemon: Make) -> None:
    backends = same_port("127.0.0.2 127.0.0.3 127.0.0.4")
    two, three, four = (backend.name for backend in backends)
    try:
        dns.records = {("app.test.", "A"): [two, three]}
        address = f"app.test:{backends[0].port}"
        one = daemon(config_of(address), node=f'resolver = ["{dns.address}"]').start()
        assert answers(one) == {two, three}, "all addresses are used"
        path = f"/v1/upstreams/app/backends/{address}"
        assert len(one.admin(path).json()["endpoints"]) == 2

        dns.records = {("app.test.", "A"): [three, four]}
        until(lambda: answers(one) == {three, four}, "the change is followed")

        for trouble in ("SERVFAIL", "silence", "NXDOMAIN"):
            dns.trouble = trouble
            asked = dns.asked.total()
            until(lambda: dns.asked.total() >= asked + 2, f"more questions: {trouble}")  # noqa: B023
            assert answers(one) == {three, four}
        assert "its last addresses stay" in one.log()

        dns.trouble = ""
        dns.records = {("app.test.", "A"): [two]}
        until(lambda: answers(one) == {two}, "it goes on")
        assert "app.test is resolved again" in one.log()
    finally:
        for backend in backends:
            backend.close()


def test_what_runs_on_an_address_that_left_is_finished(dns: DnsServer, daemon: Make) -> None:
    backends = same_port("127.0.0.2 127.0.0.3")
    old, new = backends
    try:
        dns.records = {("app.test.", "A"): [old.name]}
        address = f"app.test:{old.port}"
        one = daemon(config_of(address), node=f'resolver = ["{dns.address}"]').start()
        with ThreadPoolExecutor() as pool:
            running = pool.submit(one.ask, "/hold")
            assert old.holding.wait(10)
            dns.records = {("app.test.", "A"): [new.name]}
            until(lambda: answers(one) == {new.name}, "the change is followed")
            assert not running.done()
            old.hold.set()
            assert running.result(10).text == old.name
    finally:
        for backend in backends:
            backend.close()


def test_services_say_their_ports(dns: DnsServer, daemon: Make, backends: list[Backend]) -> None:
    service = ("_http._tcp.app.test.", "SRV")
    dns.records = {
        service: [f"1 1 {backend.port} here.test." for backend in backends],
        ("here.test.", "A"): ["127.0.0.1"],
    }
    config = config_of("srv://_http._tcp.app.test")
    one = daemon(config, node=f'resolver = ["{dns.address}"]').start()
    assert answers(one) == {"a", "b"}
    dns.records[service] = [f"1 1 {backends[1].port} here.test."]
    until(lambda: answers(one) == {"b"}, "the change is followed")
