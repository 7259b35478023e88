"""Questions to a real DNS server, over UDP, and to a hosts file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from dns_server import DnsServer

from lb.control import names as naming
from lb.control.names import Found, LookupFailedError, NameServers, NoSuchNameError


def ask(server: DnsServer, question: str, hosts: str = "/nowhere") -> Found:
    return asyncio.run(NameServers([server.address], hosts)(question))


@pytest.fixture(autouse=True)
def _ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "_has_ipv6", lambda: True)


def test_all_addresses_and_the_shortest_time() -> None:
    with DnsServer(ttl=7) as server:
        server.records = {
            ("app.test.", "A"): ["10.0.0.1", "10.0.0.2"],
            ("app.test.", "AAAA"): ["2001:db8::1"],
        }
        assert ask(server, "app.test") == Found(("10.0.0.1", "10.0.0.2", "2001:db8::1"), 7.0)
        assert set(server.asked) == {("app.test.", "A"), ("app.test.", "AAAA")}


def test_one_kind_is_enough() -> None:
    with DnsServer() as server:
        server.records = {("six.test.", "AAAA"): ["2001:db8::1"], ("x.test.", "A"): ["10.0.0.1"]}
        assert ask(server, "six.test").answers == ("2001:db8::1",)
        assert ask(server, "x.test").answers == ("10.0.0.1",)


def test_no_aaaa_where_there_is_no_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "_has_ipv6", lambda: False)
    with DnsServer() as server:
        server.records = {("app.test.", "A"): ["10.0.0.1"], ("app.test.", "AAAA"): ["2001:db8::1"]}
        assert ask(server, "app.test").answers == ("10.0.0.1",)


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        ("NXDOMAIN", NoSuchNameError, "there is no such name (NXDOMAIN)"),
        ("SERVFAIL", LookupFailedError, "no DNS server could say: "),
        ("REFUSED", LookupFailedError, "no DNS server could say: "),
        ("silence", LookupFailedError, "no DNS server answered in time"),
    ],
)
def test_trouble(
    trouble: str, kind: type[LookupFailedError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "ASK_S", 0.2)
    monkeypatch.setattr(naming, "ASK_ALL_S", 0.4)
    with DnsServer() as server:
        server.trouble = trouble
        with pytest.raises(LookupFailedError) as caught:
            ask(server, "app.test")
    assert type(caught.value) is kind
    assert words in str(caught.value.strerror)


def test_a_service() -> None:
    with DnsServer(ttl=9) as server:
        server.records = {
            ("_http._tcp.app.test.", "SRV"): [
                "10 5 8001 one.test.", "10 5 8002 two.test.", "20 5 8003 far.test.",
            ],
            ("one.test.", "A"): ["10.0.0.1", "10.0.0.2"],
            ("two.test.", "AAAA"): ["2001:db8::1"],
            ("far.test.", "A"): ["10.0.0.9"],
        }  # fmt: skip
        found = ask(server, "srv://_http._tcp.app.test")
        assert sorted(found.answers) == ["10.0.0.1:8001", "10.0.0.2:8001", "[2001:db8::1]:8002"]
        assert found.ttl == 9.0
        server.records["_http._tcp.app.test.", "SRV"] = ["10 5 8001 one.test.", "10 5 1 no.test."]
        assert ask(server, "srv://_http._tcp.app.test").answers == (
            "10.0.0.1:8001",
            "10.0.0.2:8001",
        )
        server.records["_http._tcp.app.test.", "SRV"] = ["0 0 0 ."]
        with pytest.raises(NoSuchNameError):
            ask(server, "srv://_http._tcp.app.test")


def test_the_hosts_file_goes_first_and_may_change(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# ours\n10.9.9.9 app.test App # one\n\nnonsense here\n::1 six.test\n")

    async def play() -> None:
        names = NameServers([server.address], str(hosts))
        assert (await names("app.test")).answers == ("10.9.9.9",)
        assert (await names("app")).answers == ("10.9.9.9",)
        assert (await names("six.test")).answers == ("::1",)
        assert (await names("localhost")).answers == ("127.0.0.1",)
        hosts.write_text("10.9.9.8 app.test\n")
        os.utime(hosts, (1, 1))
        assert (await names("app.test")).answers == ("10.9.9.8",)

    with DnsServer() as server:
        asyncio.run(play())
        assert not server.asked


def test_other_servers_are_asked_when_told_to() -> None:
    async def play(old: DnsServer, new: DnsServer) -> None:
        names = NameServers([old.address], "/nowhere")
        assert (await names("app.test")).answers == ("10.0.0.1",)
        names.use([new.address])
        assert (await names("app.test")).answers == ("10.0.0.2",)

    with DnsServer() as old, DnsServer() as new:
        old.records = {("app.test.", "A"): ["10.0.0.1"]}
        new.records = {("app.test.", "A"): ["10.0.0.2"]}
        asyncio.run(play(old, new))
