"""Who is let in, and as whom: PROXY headers, and connections counted by client."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from lb.http1.proxy_protocol import LOCAL, V2_SIGNATURE, Ends, write_proxy_header
from lb.model import Listener, ListenerLimits, ListenerTimeouts
from lb.proxy import deadlines
from wire.kit import (
    DEADLINE_S,
    LISTENER,
    Origin,
    Proxy,
    answering,
    read_all,
    read_response,
    response,
    until,
)
from wire.tls_kit import MATERIAL, TLS, trusting

T = TypeVar("T")
GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
ENDS = Ends(("192.0.2.7", 4711), ("198.51.100.1", 443))
V1, V2 = write_proxy_header("v1", ENDS), write_proxy_header("v2", ENDS)
LOOPBACK = ("127.0.0.0/8",)
PROXIED = replace(LISTENER, proxy_protocol=True, trusted_proxies=LOOPBACK)


@pytest.fixture(autouse=True)
def _quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "TICK_S", 0.02)


@contextmanager
def serving(listener: Listener, log: str = "off") -> Iterator[tuple[Proxy, Origin]]:
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=listener, log=log, material=MATERIAL) as proxy,
    ):
        yield proxy, origin
        until(lambda: proxy.clients == 0, "every client gone")


def refused(proxy: Proxy, reason: str) -> float:
    name = "lb_connections_refused_total"
    return proxy.reading.refresh().by(name, "reason").get((reason,), 0)


def limit_met(proxy: Proxy, limit: str) -> float:
    return proxy.reading.refresh().by("lb_limits_total", "limit").get((limit,), 0)


# --- What a trusted proxy says -------------------------------------------------------------------


@pytest.mark.parametrize("header", [V1, V2])
def test_the_client_is_whom_the_header_names(header: bytes, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with serving(PROXIED, str(log)) as (proxy, origin):
        assert proxy.talk(header + CLOSE).startswith(b"HTTP/1.1 200 ")
        assert b"\r\nX-Forwarded-For: 192.0.2.7\r\n" in origin.requests[0]
    [line] = map(json.loads, log.read_text().splitlines())
    assert line["client"] == "192.0.2.7"


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", LOCAL])
def test_a_proxy_that_speaks_for_itself(header: bytes) -> None:
    with serving(PROXIED) as (proxy, origin):
        assert proxy.talk(header + CLOSE).startswith(b"HTTP/1.1 200 ")
        assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in origin.requests[0]


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_octet_by_octet_and_a_request_kept_waiting(header: bytes) -> None:
    with serving(PROXIED) as (proxy, origin), proxy.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in header:
            sock.sendall(bytes([octet]))
            proxy.call(lambda: None)
        for _ in range(3):  # One header for all that the connection carries.
            sock.sendall(GET)
            assert read_response(sock)[0].startswith(b"HTTP/1.1 200 ")
        assert len(origin.requests) == 3


def test_who_is_named_is_believed_no_further() -> None:
    """Else any client of a trusted proxy could name another one in X-Forwarded-For."""
    said = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n"
    with serving(PROXIED) as (proxy, origin):
        proxy.talk(V1 + said)
        assert b"\r\nX-Forwarded-For: 192.0.2.7\r\n" in origin.requests[0]


def test_a_chain_of_proxies_is_walked_from_the_header_on() -> None:
    said = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n"
    trusts = replace(PROXIED, trusted_proxies=(*LOOPBACK, "192.0.2.7/32"))
    with serving(trusts) as (proxy, origin):
        proxy.talk(V1 + said)
        assert b"\r\nX-Forwarded-For: 203.0.113.9, 192.0.2.7\r\n" in origin.requests[0]


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("together", [True, False])
def test_tls_begins_behind_the_header(header: bytes, together: bool) -> None:
    """With the hello in the same segment a handshake could hang, were it begun too late."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting().wrap_bio(incoming, outgoing, server_hostname="a.example")
    with serving(replace(PROXIED, tls=TLS)) as (proxy, origin), proxy.connect() as sock:

        def step(what: Callable[[], T]) -> T:
            while True:
                try:
                    return what()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65_536))

        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        if together:
            sock.sendall(header + outgoing.read())
        else:
            sock.sendall(header)
            proxy.call(lambda: None)
        step(tls.do_handshake)
        tls.write(CLOSE)
        assert step(lambda: tls.read(65_536)).startswith(b"HTTP/1.1 200 ")
        assert (
            b"\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
            in (origin.requests[0])
        )


def test_a_stranger_is_refused_whatever_it_says(caplog: pytest.LogCaptureFixture) -> None:
    strict = replace(PROXIED, trusted_proxies=("203.0.113.0/24",))
    with caplog.at_level(logging.WARNING), serving(strict) as (proxy, origin):
        for octets in (V1 + GET, V2 + GET, GET, b""):
            assert proxy.talk(octets) == b""
        assert refused(proxy, "proxy_untrusted") == 4
        assert not origin.connections
    assert caplog.text.count("it is not in trusted_proxies") == 1, "once a minute"


@pytest.mark.parametrize(
    ("octets", "reason", "words"),
    [
        (GET, "proxy_header", "no PROXY header"),
        (b"\x16\x03\x01\x02\x00\x01", "proxy_header", "no PROXY header"),
        (V2_SIGNATURE + b"\x11\x11\0\0", "proxy_header", "version 1"),
        (V2_SIGNATURE + b"\x31\x11\0\0", "proxy_header", "version 3"),
        (b"PROXY TCP4 192.0.2.1 oops 1 2\r\n", "proxy_header", "malformed PROXY line"),
        (V1[:20], "proxy_truncated", "ended before its PROXY header"),
        (V2[:20], "proxy_truncated", "ended before its PROXY header"),
        (b"", "proxy_truncated", "ended before its PROXY header"),
    ],
)
def test_what_is_no_header_is_refused_counted_and_logged(
    octets: bytes, reason: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), serving(PROXIED) as (proxy, origin):
        with proxy.connect() as sock:
            sock.sendall(octets)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        until(lambda: refused(proxy, reason) == 1, "the refusal counted")
        assert not origin.connections
    assert words in caplog.text
    assert "listener web: refused a connection from 127.0.0.1" in caplog.text


def test_a_header_that_does_not_come_in_time() -> None:
    patient = replace(PROXIED, timeouts=ListenerTimeouts(header=0.2))
    with serving(patient) as (proxy, _), proxy.connect() as sock:
        sock.sendall(V1[:-2])
        assert read_all(sock) == b""
        assert refused(proxy, "proxy_timeout") == 1


def test_a_stop_ends_who_has_not_said_its_header() -> None:
    with serving(PROXIED) as (proxy, _), proxy.connect() as sock:
        until(lambda: proxy.clients, "the client accepted")
        proxy.call(lambda: proxy.listeners.drain(0.0))
        assert read_all(sock) == b""


# --- Connections counted by client ---------------------------------------------------------------

LIMITED = replace(LISTENER, limits=ListenerLimits(per_client=3))


def test_connections_of_one_client_are_bounded() -> None:
    with serving(LIMITED) as (proxy, _), ExitStack() as stack:
        socks = [stack.enter_context(proxy.connect()) for _ in range(3)]
        for sock in socks:
            sock.sendall(GET)
            read_response(sock)
        answer = proxy.talk(b"")
        assert answer.startswith(b"HTTP/1.1 429 "), answer
        assert b"limits.per_client (3) are open from your address" in answer
        assert refused(proxy, "per_client") == limit_met(proxy, "per_client") == 1
        with socket.create_connection(  # Another address is another client.
            ("127.0.0.1", proxy.port), DEADLINE_S, source_address=("127.0.0.2", 0)
        ) as other:
            other.sendall(GET)
            assert read_response(other)[0].startswith(b"HTTP/1.1 200 ")
        socks[0].close()
        until(lambda: proxy.talk(CLOSE).startswith(b"HTTP/1.1 200 "), "room again")
    # `serving` has waited for all to go: nobody is remembered.
    [door] = proxy.switchboard._doors.values()
    assert (door.kins, door.open, door.turned_away) == (0, 0, 0)


def test_the_refusal_has_its_own_word_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    listener = replace(LISTENER, limits=ListenerLimits(per_client=1))
    with serving(listener, str(log)) as (proxy, _), proxy.connect():
        until(lambda: proxy.clients, "the first in")
        proxy.talk(b"")
    [line] = map(json.loads, log.read_text().splitlines())
    assert (line["status"], line["end"]) == (429, "client_limited")


def test_clients_behind_a_proxy_are_counted_by_its_headers() -> None:
    listener = replace(PROXIED, limits=ListenerLimits(per_client=1))
    with serving(listener) as (proxy, _), ExitStack() as stack:
        for last in range(3):
            sock = stack.enter_context(proxy.connect())
            ends = Ends((f"192.0.2.{last}", 1), ("198.51.100.1", 443))
            sock.sendall(write_proxy_header("v2", ends) + GET)
            assert read_response(sock)[0].startswith(b"HTTP/1.1 200 ")
        again = Ends(("192.0.2.1", 2), ("198.51.100.1", 443))
        assert proxy.talk(write_proxy_header("v1", again) + GET).startswith(b"HTTP/1.1 429 ")


def test_hosts_of_one_ipv6_network_are_one_client() -> None:
    listener = replace(PROXIED, limits=ListenerLimits(per_client=1))

    def header(address: str) -> bytes:
        return write_proxy_header("v1", Ends((address, 1), ("2001:db8::1", 443)))

    with serving(listener) as (proxy, _), proxy.connect() as sock:
        sock.sendall(header("2001:db8:1:2::3") + GET)
        read_response(sock)
        assert proxy.talk(header("2001:db8:1:2:ffff::1") + CLOSE).startswith(b"HTTP/1.1 429 ")
        assert proxy.talk(header("2001:db8:1:3::3") + CLOSE).startswith(b"HTTP/1.1 200 ")


def test_a_trusted_proxys_connections_are_not_one_clients() -> None:
    listener = replace(LIMITED, trusted_proxies=LOOPBACK)
    with serving(listener) as (proxy, _), ExitStack() as stack:
        for _ in range(6):
            sock = stack.enter_context(proxy.connect())
            sock.sendall(GET)
            assert read_response(sock)[0].startswith(b"HTTP/1.1 200 ")


def test_the_limit_holds_during_handshakes_too() -> None:
    listener = replace(LISTENER, tls=TLS, limits=ListenerLimits(per_client=2))
    with serving(listener) as (proxy, _), ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(proxy.connect())  # It never says hello.
        until(lambda: proxy.clients == 2, "two of them in")
        with (
            proxy.connect() as raw,
            trusting().wrap_socket(raw, server_hostname="a.example") as sock,
        ):
            assert read_all(sock).startswith(b"HTTP/1.1 429 ")


def test_limits_in_all_and_per_client_are_counted_apart() -> None:
    limits = ListenerLimits(connections=1, per_client=5)
    with serving(replace(LISTENER, limits=limits)) as (proxy, _), proxy.connect():
        until(lambda: proxy.clients == 1, "the first in")
        assert proxy.talk(b"").startswith(b"HTTP/1.1 503 ")
        assert (limit_met(proxy, "connections"), limit_met(proxy, "per_client")) == (1, 0)


def test_a_resetting_client_leaves_nothing_behind() -> None:
    listener = replace(PROXIED, limits=ListenerLimits(per_client=2))
    with serving(listener) as (proxy, _):
        for octets in (b"", V1[:9], V1, V1 + GET[:9], V1 + GET):
            for _ in range(5):
                with proxy.connect() as sock:
                    sock.sendall(octets)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert proxy.talk(V1 + CLOSE).startswith(b"HTTP/1.1 200 ")
        until(lambda: proxy.clients == 0, "all gone")
        [door] = proxy.switchboard._doors.values()
        assert (door.kins, door.open, door.turned_away) == (0, 0, 0)
