"""A body that is there before its plugins are: each plugin sees all of it all the same."""

from __future__ import annotations

import contextlib
import socket

import pytest

from lb.model import Route
from wire.kit import Origin, answering, read_response, response, until
from wire.plugin_kit import hooked, plugin

BODY = b"first, second and third, " * 40
WAITS = """
def start(self):
    self.gate = asyncio.Event()
    self.waiting = 0
async def on_request(self, req):
    self.waiting += 1
    await self.gate.wait()
"""
DOUBLES = """
def on_request(self, req):
    class Double:
        def chunk(self, data):
            return data + data
        def end(self):
            return b"end"
    req.transform_body(Double())
"""
WATCHES = """
def on_request(self, req):
    seen = self.seen = bytearray()
    class Watch:
        def chunk(self, data):
            seen.extend(data)
        def end(self):
            seen.extend(b"|end")
    req.watch_body(Watch())
"""
ALL_AT_ONCE = [
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (len(BODY), BODY),
]


def unchunked(octets: bytes) -> bytes:
    """Read the chunks of a request strictly, and nothing may follow them."""
    body = b""
    rest = octets.partition(b"\r\n\r\n")[2]
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        if not length:
            assert rest == b"\r\n"
            return body
        body, rest = body + rest[:length], rest[length + 2 :]


def released(proxy: object, name: str = "one") -> None:
    """Let those go who wait, once somebody does."""
    until(lambda: plugin(proxy, name).waiting, "somebody waits")  # type: ignore[arg-type]
    proxy.call(plugin(proxy, name).gate.set)  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize("whole", ALL_AT_ONCE, ids=["length", "chunks"])
def test_a_change_is_made_to_what_came_before_it_was_asked_for(whole: bytes) -> None:
    """Half of it framed by the old length and half by chunks would be two requests to a backend."""
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": WAITS, "two": DOUBLES}) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(whole)
        released(proxy)
        assert read_response(sock)[1] == b"ok"
        (got,) = origin.requests
        assert b"\r\nTransfer-Encoding: chunked\r\n" in got
        assert unchunked(got) == BODY + BODY + b"end"


@pytest.mark.parametrize("whole", ALL_AT_ONCE, ids=["length", "chunks"])
def test_who_watches_sees_what_came_before(whole: bytes) -> None:
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": WAITS, "two": WATCHES}) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(whole)
        released(proxy)
        assert read_response(sock)[1] == b"ok"
        assert bytes(plugin(proxy, "two").seen) == BODY + b"|end"
        (got,) = origin.requests
        if b"Content-Length" in whole:
            assert b"\r\nContent-Length: %d\r\n" % len(BODY) in got
            assert got.endswith(b"\r\n\r\n" + BODY)
        else:
            assert unchunked(got) == BODY


def test_what_comes_meanwhile_is_bounded_and_lost_to_nobody() -> None:
    """A client that sends on while a hook waits is held, and then heard to the end."""
    body = bytes(range(256)) * 48 * 1024
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": WAITS, "two": WATCHES}) as proxy,
        proxy.connect() as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        until(lambda: plugin(proxy).waiting, "it waits")
        sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(body):
                sent += sock.send(body[sent : sent + 65_536])
        assert sent < len(body), "what the kernel holds is full, and we take no more"
        sock.settimeout(20)
        released(proxy)
        sock.sendall(body[sent:])
        assert read_response(sock)[1] == b"ok"
        assert bytes(plugin(proxy, "two").seen) == body + b"|end"
        assert origin.requests[0].endswith(body)


def test_a_body_over_its_limit_that_came_meanwhile_is_refused() -> None:
    route = Route(name="r", upstream="app", body_max=100)
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": WAITS, "two": DOUBLES}, routes=[route]) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(ALL_AT_ONCE[1])
        released(proxy)
        assert read_response(sock)[0].startswith(b"HTTP/1.1 413 ")
        assert not origin.requests


def test_a_refusal_leaves_the_connection_where_the_next_request_begins() -> None:
    says_no = WAITS + "    return reply(403)\n"
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": says_no}) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(ALL_AT_ONCE[0])
        released(proxy)
        for _ in range(2):
            assert read_response(sock)[0].startswith(b"HTTP/1.1 403 ")
            sock.sendall(ALL_AT_ONCE[1])
        assert not origin.requests
