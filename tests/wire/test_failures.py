"""Clients and backends that go away, stall, or send what is no HTTP: at any octet."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from lb.model import (
    Endpoint,
    Health,
    ListenerLimits,
    ListenerTimeouts,
    Retries,
    Route,
    Upstream,
    UpstreamTimeouts,
)
from wire.kit import (
    LISTENER,
    Connection,
    Origin,
    Proxy,
    answering,
    read_all,
    read_response,
    response,
    until,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"


def refused_address() -> str:
    """Return an address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # a TLS hello
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n" + CHUNKED + b"\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"x" * 9000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, 431),
        (b"GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 42\r\n\r\n", 417),
    ],
)
def test_bad_requests(octets: bytes, status: int) -> None:
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(octets)
        good = proxy.talk(GET_CLOSE)

    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"\r\nConnection: close\r\n" in answer
    assert b"\r\nProxy-Status: lb-00000000; error=" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert good.startswith(b"HTTP/1.1 200")
    assert len(origin.requests) <= 1 + (status == 400)


def test_refused_backend_costs_no_request() -> None:
    gone = Endpoint("gone", refused_address())
    with Origin(answering(response())) as origin, Proxy([gone, origin]) as proxy:
        post_close = POST.replace(b"Host", b"Connection: close\r\nHost")
        answers = [proxy.talk(octets) for octets in [GET_CLOSE, post_close] * 6]

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert len(origin.requests) == 12


def test_all_but_one_refuse_and_nobody_notices() -> None:
    gone = [Endpoint(f"gone{n}", refused_address()) for n in range(5)]
    with Origin(answering(response())) as origin, Proxy([*gone, origin]) as proxy:
        answers = [proxy.talk(GET_CLOSE)[:12] for _ in range(12)]

    assert set(answers) == {b"HTTP/1.1 200"}


def test_all_backends_refuse() -> None:
    gone = Endpoint("gone", refused_address())
    with Proxy([gone]) as proxy:
        answer = proxy.talk(GET_CLOSE)

    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"error=connection_refused" in answer
    assert b"Retry-After: 1" in answer


def test_no_backend_at_all() -> None:
    with Proxy([]) as proxy:
        answer = proxy.talk(GET_CLOSE)

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"error=destination_unavailable" in answer
    assert b"Retry-After: 1" in answer


def test_kept_connection_that_died_costs_no_request() -> None:
    """The backend closes after each response, without saying so; we have heard of it, or not."""

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(response())

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        for octets in [GET, POST] * 200:
            if octets is POST:  # Only what the kernel knows by then can be avoided.
                until(lambda: all(each.sock.fileno() == -1 for each in origin.connections))
            sock.sendall(octets)
            head, _ = read_response(sock)
            assert head.startswith(b"HTTP/1.1 200")
    assert len(origin.requests) == 400


def test_backend_that_closes_exactly_at_reuse() -> None:
    """It reads the second request and closes without a word: safe to repeat only for GET."""

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(response())
        connection.request()

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        for _ in range(100):
            sock.sendall(GET)
            assert read_response(sock)[0].startswith(b"HTTP/1.1 200")
        sock.sendall(POST)
        head, _ = read_response(sock)
    assert head.startswith(b"HTTP/1.1 502 "), "a POST that may have been seen is not repeated"
    assert sum(request.startswith(b"POST") for request in origin.requests) == 1


@pytest.mark.parametrize("reset", [False, True])
def test_backend_gone_at_every_octet(reset: bool) -> None:
    whole = response(b"0123456789")
    head_size = whole.index(b"\r\n\r\n") + 4
    cut = 0

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(whole[:cut])
        if reset:
            connection.reset()

    with Origin(script) as origin, Proxy([origin]) as proxy:
        for cut in range(len(whole)):
            answer = proxy.talk(GET_CLOSE)
            if cut < head_size:
                assert answer.startswith(b"HTTP/1.1 502"), (cut, answer)
            else:
                # It has begun, so it ends short; a RST may overtake even its head.
                assert answer.startswith(b"HTTP/1.1 200") or not answer
                assert len(answer.partition(b"\r\n\r\n")[2]) < 10
        until(lambda: proxy.clients == 0, "every client connection forgotten")
    assert len(origin.requests) == head_size * 2 + 10, "repeated once, until the head was whole"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("octets", [GET, POST])
def test_client_gone_at_every_octet(octets: bytes, reset: bool) -> None:
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        for cut in range(len(octets) + 1):
            with proxy.connect() as sock:
                sock.sendall(octets[:cut])
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: proxy.clients == 0, "every client connection forgotten")
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 200")
    whole = [request for request in origin.requests if request.startswith(b"POST")]
    assert all(request.endswith(b"body") for request in whole)


def test_client_gone_mid_upload_ends_the_backend_request() -> None:
    ends: list[bytes] = []

    def script(connection: Connection, number: int) -> None:
        while octets := connection.sock.recv(65536):
            ends.append(octets)
        ends.append(b"END")

    with Origin(script) as origin, Proxy([origin]) as proxy:
        with proxy.connect() as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
            until(lambda: b"half" in b"".join(ends), "the half body at the backend")
        until(lambda: ends[-1] == b"END" or origin.connections[0].sock.fileno() == -1, "its end")


@pytest.mark.parametrize(
    ("answered", "why"),
    [
        (b"HTTP/2.0 200 OK\r\n\r\n", "status line"),
        (b"220 smtp ready\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "malformed"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "both",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding"),
        (b"HTTP/1.1 200 OK\r\nX : 1\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nX: 1\n\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "65536"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "upgrade"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17, ""),
    ],
)
def test_bad_responses(answered: bytes, why: str) -> None:
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(GET_CLOSE)

    final = answer.rpartition(b"HTTP/1.1 ")[2]
    if answer.startswith(b"HTTP/1.1 103"):
        assert len(origin.requests) == 1
    else:
        assert final.startswith(b"502 "), answer
        assert why.encode() in final or b"http_protocol_error" in final
        assert len(origin.requests) == 1, "what was answered badly is not repeated"


def test_octets_after_a_response_are_never_anyones_answer() -> None:
    def script(connection: Connection, number: int) -> None:
        while connection.request() is not None:
            connection.send(response(b"%d" % number) + response(b"poison"))

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        bodies = []
        for _ in range(3):
            sock.sendall(GET)
            bodies.append(read_response(sock)[1])
    assert bodies == [b"1", b"2", b"3"]
    assert len(origin.connections) == 3


def stalling(octets: bytes) -> Callable[[Connection, int], None]:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(octets)
        connection.request()

    return script


def test_slow_response_head_is_a_504_and_never_repeated() -> None:
    upstream = Upstream("app", timeouts=UpstreamTimeouts(response=0.3))
    with Origin(stalling(b"HTTP/1.1 200")) as origin, Proxy([origin], upstream=upstream) as proxy:
        answer = proxy.talk(GET_CLOSE)

    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"timeouts.response" in answer
    assert len(origin.requests) == 1


def test_stalled_body_is_cut() -> None:
    upstream = Upstream("app", timeouts=UpstreamTimeouts(stall=0.3))
    whole = response(b"0123456789")
    with Origin(stalling(whole[:-3])) as origin, Proxy([origin], upstream=upstream) as proxy:
        answer = proxy.talk(GET_CLOSE)

    assert not answer.endswith(b"789")
    assert len(origin.requests) == 1


def test_black_hole_is_given_up_after_connect() -> None:
    upstream = Upstream("app", timeouts=UpstreamTimeouts(connect=0.3), retries=Retries(attempts=1))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        # Its queue is full, so the kernel drops what else comes.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        hole = Endpoint("hole", f"127.0.0.1:{full.getsockname()[1]}")
        with Proxy([hole], upstream=upstream) as proxy:
            answer = proxy.talk(GET_CLOSE)
        for filler in fillers:
            filler.close()

    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"timeouts.connect" in answer


def test_slow_head_is_a_408_and_idling_a_plain_close() -> None:
    listener = replace(LISTENER, timeouts=ListenerTimeouts(header=0.3, stall=0.3, idle=0.3))
    with Origin(answering(response())) as origin, Proxy([origin], listener=listener) as proxy:
        assert proxy.talk(b"GET / HT").startswith(b"HTTP/1.1 408 ")
        assert proxy.talk(b"") == b""
        assert b"timeouts.stall" in proxy.talk(POST[:-2])
        until(lambda: proxy.clients == 0)


def test_body_over_the_routes_limit() -> None:
    route = Route("up", path="/", upstream="app", body_max=10)
    with Origin(answering(response())) as origin, Proxy([origin], routes=[route]) as proxy:
        answers = [
            proxy.talk(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n" + b"x" * 11),
            proxy.talk(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11
            ),
        ]

    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 413 "), answer
        assert b"route.up.body_max" in answer


def test_whole_exchange_timeout() -> None:
    route = Route("slow", path="/", upstream="app", timeout=0.3)
    with Origin(stalling(b"")) as origin, Proxy([origin], routes=[route]) as proxy:
        answer = proxy.talk(GET_CLOSE)

    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"route.slow.timeout" in answer


def test_connections_over_the_limit_are_told() -> None:
    listener = replace(LISTENER, limits=ListenerLimits(connections=2))
    with Origin(answering(response())) as origin, Proxy([origin], listener=listener) as proxy:
        with proxy.connect() as one, proxy.connect() as two:
            for sock in (one, two):
                sock.sendall(GET)
                read_response(sock)
            with proxy.connect() as three:
                assert read_all(three).startswith(b"HTTP/1.1 503 ")
        until(lambda: proxy.clients == 0)
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 200")


def test_unhealthy_backends_get_nothing_until_all_are() -> None:
    with (
        Origin(answering(response(b"a"))) as a,
        Origin(answering(response(b"b"))) as b,
        Proxy([a, b], upstream=Upstream("app", checked=True)) as proxy,
        proxy.connect() as sock,
    ):

        def seen() -> set[bytes]:
            bodies = set()
            for _ in range(6):
                sock.sendall(GET)
                bodies.add(read_response(sock)[1])
            return bodies

        assert seen() == {b"a", b"b"}
        proxy.install(verdicts={a.address: Health.UNHEALTHY, b.address: Health.HEALTHY})
        assert seen() == {b"b"}
        proxy.install(verdicts={a.address: Health.UNHEALTHY, b.address: Health.UNHEALTHY})
        assert seen() == {b"a", b"b"}


def test_slow_client_pauses_the_backend() -> None:
    size = 64 * 1024 * 1024
    sent = [0]

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = b"x" * 65536
        for _ in range(size // len(piece)):
            connection.send(piece)
            sent[0] += len(piece)

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(GET_CLOSE)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        last = -1

        def settled() -> bool:
            nonlocal last
            before, last = last, sent[0]
            return before == last

        until(settled)
        assert sent[0] < size / 2
        assert len(read_all(sock)) > size - 1000
        assert len(origin.requests) == 1
