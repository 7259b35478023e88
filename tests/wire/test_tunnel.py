"""Upgrades: what may become a tunnel, what passes through it, and how it ends."""

from __future__ import annotations

import socket

import pytest

from lb.http1.websocket import GOING_AWAY, GOING_AWAY_MASKED
from lb.model import Endpoint, Route, Upstream, UpstreamTimeouts
from wire.kit import Connection, Origin, Proxy, read_all, response, until

ASK = (
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Key: x\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: y\r\n\r\n"
)
HELLO = b"\x81\x05hello"


def echoing(connection: Connection, number: int) -> None:
    """Switch, then send back whatever comes."""
    if connection.request() is None:
        return
    connection.send(SWITCHING + HELLO)
    while data := connection.sock.recv(65536):
        connection.send(data)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = sock.recv(size - len(received))
        assert piece, received
        received += piece
    return received


def open_tunnel(proxy: Proxy, more: bytes = b"") -> socket.socket:
    sock = proxy.connect()
    sock.sendall(ASK + more)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"), head
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head
    assert b"\r\nSec-WebSocket-Accept: y\r\n" in head
    return sock


def first_line(proxy: Proxy, octets: bytes) -> bytes:
    """Send a request on a new connection; return the beginning of what comes back."""
    with proxy.connect() as sock:
        sock.sendall(octets)
        return sock.recv(1000).partition(b"\r\n")[0]


def test_octets_pass_both_ways_after_an_upgrade() -> None:
    with Origin(echoing) as origin, Proxy([origin]) as proxy:
        with open_tunnel(proxy, more=b"sent ahead") as sock:
            assert read_exactly(sock, 17) == HELLO + b"sent ahead"
            big = bytes(range(256)) * 4000
            sock.sendall(big[:500_000])
            assert read_exactly(sock, 500_000) == big[:500_000]
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        until(lambda: proxy.clients == 0)

    [request] = origin.requests
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in request
    assert b"\r\nSec-WebSocket-Key: x\r\n" in request


@pytest.mark.parametrize(
    "asked",
    [
        ASK.replace(b"WebSocket", b"h2c"),
        ASK.replace(b"keep-alive, Upgrade", b"keep-alive"),
        ASK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ASK.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi"),
    ],
)
def test_what_may_not_be_asked_is_taken_off_and_an_unasked_101_is_refused(asked: bytes) -> None:
    def script(connection: Connection, number: int) -> None:
        request = connection.request()
        assert request is not None
        connection.send(SWITCHING if number > 1 else response(b"plain", b"Connection: close"))

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(asked.replace(b"Host: a\r\n", b"Host: a\r\nConnection: close\r\n"))
        assert read_all(sock).endswith(b"plain")
        answer = first_line(proxy, asked)

    assert b"upgrade: " not in origin.requests[0].lower()
    assert answer.startswith(b"HTTP/1.1 502 ")


def test_a_101_for_another_protocol_is_refused() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(SWITCHING.replace(b"websocket", b"irc"))

    with Origin(script) as origin, Proxy([origin]) as proxy:
        assert first_line(proxy, ASK).startswith(b"HTTP/1.1 502 ")


def test_a_refused_upgrade_is_a_plain_answer() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(response(b"no", status=b"403 Forbidden"))

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(ASK)
        assert sock.recv(1000).startswith(b"HTTP/1.1 403 ")


def test_a_route_may_allow_other_protocols_or_none() -> None:
    routes = [Route("irc", path="/chat", upstream="app", upgrade=("irc",))]
    with Origin(echoing) as origin, Proxy([origin], routes=routes) as proxy:
        assert first_line(proxy, ASK).startswith(b"HTTP/1.1 502 ")
    assert b"upgrade: " not in origin.requests[0].lower()


def test_silence_ends_a_tunnel_with_a_goodbye_to_both() -> None:
    heard: list[bytes] = []

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(SWITCHING)
        while data := connection.sock.recv(1000):
            heard.append(data)

    upstream = Upstream("app", timeouts=UpstreamTimeouts(stall=0.2, tunnel=0.6))
    with Origin(script) as origin, Proxy([origin], upstream=upstream) as proxy:
        with open_tunnel(proxy) as sock:
            assert read_all(sock) == GOING_AWAY
        until(lambda: b"".join(heard) == GOING_AWAY_MASKED, "the backend's goodbye")
        until(lambda: proxy.clients == 0)


def test_a_drain_ends_tunnels_with_1001() -> None:
    with Origin(echoing) as origin, Proxy([origin]) as proxy, open_tunnel(proxy) as sock:
        assert read_exactly(sock, 7) == HELLO
        proxy.call(lambda: proxy.listeners.drain(0.0))
        assert read_all(sock) == GOING_AWAY


def test_no_goodbye_within_a_frame() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(SWITCHING + b"\x81\x7e\x01\x00begun")
        connection.sock.recv(1)

    with Origin(script) as origin, Proxy([origin]) as proxy, open_tunnel(proxy) as sock:
        assert read_exactly(sock, 9) == b"\x81\x7e\x01\x00begun"
        proxy.call(lambda: proxy.listeners.drain(0.0))
        assert read_all(sock) == b""


def test_tunnels_outlive_editions() -> None:
    with (
        Origin(echoing) as origin,
        Origin(echoing) as other,
        Proxy([origin]) as proxy,
        open_tunnel(proxy) as sock,
    ):
        assert read_exactly(sock, 7) == HELLO
        proxy.install(endpoints=[Endpoint(other.address, other.address)])
        sock.sendall(b"still here")
        assert read_exactly(sock, 10) == b"still here"


def test_a_backend_that_goes_ends_the_tunnel() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(SWITCHING + HELLO)

    with Origin(script) as origin, Proxy([origin]) as proxy:
        with open_tunnel(proxy) as sock:
            assert read_all(sock) == HELLO
        until(lambda: proxy.clients == 0)
