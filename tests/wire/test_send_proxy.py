"""PROXY headers that backends get: whose connection it is, and that it stays theirs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace

import pytest

from lb.config.upstreams import Health
from lb.control.probe import Answer, Asker, Subject
from lb.http1.proxy_protocol import Ends, read_proxy_header, write_proxy_header
from lb.model import Endpoint, Upstream
from wire.kit import (
    DEADLINE_S,
    LISTENER,
    Connection,
    Origin,
    Proxy,
    answering,
    read_response,
    response,
    until,
)
from wire.tls_kit import BACKEND, MATERIAL, secure, trusting, upstream

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])


class Told(Origin):
    """A backend that wants a PROXY header first, and keeps what each connection said."""

    def __init__(self, then: Callable[[Connection], None] | None = None) -> None:
        self.told: list[Ends | None] = []
        self._then = then
        super().__init__(self._listen)

    def _listen(self, connection: Connection, number: int) -> None:
        while (header := read_proxy_header(connection._buffer)) is None:
            more = connection.sock.recv(1)  # Not an octet of a TLS hello.
            if not more:
                return
            connection._buffer += more
        self.told.append(header.ends)
        connection._buffer = b""
        if self._then is not None:
            self._then(connection)
        answering(response())(connection, number)


def ends_of(sock: socket.socket) -> Ends:
    return Ends(sock.getsockname(), sock.getpeername())


def ask(sock: socket.socket) -> None:
    sock.sendall(GET)
    assert read_response(sock)[0].startswith(b"HTTP/1.1 200 ")


@VERSIONS
def test_a_connection_is_its_clients_alone(version: str) -> None:
    with (
        Told() as origin,
        Proxy([origin], upstream=Upstream("app", send_proxy=version)) as proxy,
        proxy.connect() as one,
        socket.create_connection(
            ("127.0.0.1", proxy.port), DEADLINE_S, source_address=("127.0.0.2", 0)
        ) as two,
    ):
        for sock in (one, two, one, two, two, one):
            ask(sock)
        assert origin.told == [ends_of(one), ends_of(two)]
        assert proxy.idle == 2


@VERSIONS
def test_over_tls_the_header_comes_first(version: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    BACKEND.configure_cert(context)

    def shake(connection: Connection) -> None:
        connection.sock = context.wrap_socket(connection.sock, server_side=True)

    policy = replace(upstream(), send_proxy=version)
    with (
        Told(shake) as origin,
        Proxy([secure(origin)], upstream=policy, material=MATERIAL) as proxy,
        proxy.connect() as sock,
    ):
        ask(sock)
        ask(sock)
        assert origin.told == [ends_of(sock)]


def test_what_a_header_said_is_said_on() -> None:
    listener = replace(LISTENER, proxy_protocol=True, trusted_proxies=("127.0.0.0/8",))
    said = Ends(("2001:db8::7", 99), ("2001:db8::1", 443))
    policy = Upstream("app", send_proxy="v2")
    with Told() as origin, Proxy([origin], listener=listener, upstream=policy) as proxy:
        proxy.talk(write_proxy_header("v1", said) + CLOSE)
        assert origin.told == [said]


def test_whom_a_trusted_proxy_names_is_the_source() -> None:
    listener = replace(LISTENER, trusted_proxies=("127.0.0.0/8",))
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %b\r\n\r\n"
    policy = Upstream("app", send_proxy="v1")
    with (
        Told() as origin,
        Proxy([origin], listener=listener, upstream=policy) as proxy,
        proxy.connect() as sock,
    ):
        for address in (b"192.0.2.1", b"192.0.2.2", b"192.0.2.1", b"2001:db8::5"):
            sock.sendall(request % address)
            read_response(sock)
        sources = [ends.source for ends in origin.told if ends is not None]
        assert sources == [("192.0.2.1", 0), ("192.0.2.2", 0), ("2001:db8::5", 0)]


def test_a_stale_connection_is_replaced_by_one_that_says_the_same() -> None:
    with (
        Told() as origin,
        Proxy([origin], upstream=Upstream("app", send_proxy="v1")) as proxy,
        proxy.connect() as sock,
    ):
        ask(sock)
        origin.connections[0].close()
        ask(sock)
        assert origin.told == [ends_of(sock)] * 2


def test_kept_connections_of_clients_that_went_make_room() -> None:
    """Else clients that are gone would hold every place, and nobody's would be kept."""
    policy = Upstream("app", send_proxy="v1")
    policy = replace(policy, keepalive=replace(policy.keepalive, idle_max=2))
    with Told() as origin, Proxy([origin], upstream=policy) as proxy:
        for _ in range(4):
            proxy.talk(CLOSE)
        with proxy.connect() as sock:
            ask(sock)
            ask(sock)
            assert len(origin.told) == 5
        assert proxy.idle == 2


def test_turning_it_on_and_off_uses_no_connection_again() -> None:
    """A connection that says nothing would pass for the next client's, or ours for another's."""
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        proxy.talk(CLOSE)
        until(lambda: proxy.idle == 1, "a connection kept")
        policy = Upstream("app", send_proxy="v1")
        with Told() as told:
            endpoint = Endpoint(told.address, told.address)
            for send_proxy, count in (("v1", 1), ("v2", 2), ("v2", 3)):
                upstreams = (replace(policy, send_proxy=send_proxy),)
                proxy.install(replace(proxy._plans, upstreams=upstreams), [endpoint])
                proxy.talk(CLOSE)
                assert len(told.told) == count
        assert len(origin.connections) == 1


async def no_sockets_left() -> None:
    """Wait until what was closed has ended: TLS says goodbye first, and waits for an answer."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while len(selector.get_map()) > 1:  # noqa: ASYNC110 - one is the loop's own
            await asyncio.sleep(0)


@VERSIONS
@pytest.mark.parametrize("kind", ["http", "https", "tcp"])
def test_a_check_speaks_for_itself(version: str, kind: str) -> None:
    """A backend that wants a header answers nobody without one, the check included."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    BACKEND.configure_cert(context)

    def shake(connection: Connection) -> None:
        connection.sock = context.wrap_socket(connection.sock, server_side=True)

    check = Health.model_validate({"type": "tcp"} if kind == "tcp" else {"path": "/healthz"})
    with Told(shake if kind == "https" else None) as origin:
        subject = Subject(
            "app", origin.address, "a", check, greeting=write_proxy_header(version, None)
        )
        if kind == "https":
            address = f"https://{origin.address}"
            subject = replace(subject, address=address, tls=trusting(), name="127.0.0.1")

        async def probe() -> Answer:
            asker = Asker()
            try:
                return await asker.ask(subject)
            finally:
                await asker.close()
                await no_sockets_left()

        answer = asyncio.run(probe())
        assert answer.ok, answer
        until(lambda: origin.told, "the header")
        assert origin.told == [None]
