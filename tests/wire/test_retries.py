"""Answers that are taken elsewhere, and requests that wait for a place."""

from __future__ import annotations

import threading

import pytest

from lb.model import Endpoint, Retries, Upstream, UpstreamLimits
from wire.kit import Connection, Origin, Proxy, answering, read_response, response, until

GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
BUSY = response(b"busy", status=b"503 Service Unavailable")


@pytest.mark.parametrize("octets", [GET_CLOSE, GET_CLOSE.replace(b"GET", b"PUT")])
def test_listed_statuses_are_taken_elsewhere(octets: bytes) -> None:
    upstream = Upstream("app", retries=Retries(statuses=(503,)))
    with (
        Origin(answering(BUSY)) as busy,
        Origin(answering(response(b"good"))) as good,
        Proxy([busy, good], upstream=upstream) as proxy,
    ):
        answers = {proxy.talk(octets)[-4:] for _ in range(6)}

    assert answers == {b"good"}
    assert busy.requests


def test_a_listed_status_stands_where_nothing_better_is_to_be_had() -> None:
    upstream = Upstream("app", retries=Retries(statuses=(503,)))
    with Origin(answering(BUSY)) as one, Origin(answering(BUSY)) as two:
        with Proxy([one, two], upstream=upstream) as proxy:
            assert proxy.talk(GET_CLOSE).endswith(b"busy")
            assert len(one.requests) + len(two.requests) == 2
            assert proxy.talk(POST).endswith(b"busy"), "not repeated: it may have been done"
            assert len(one.requests) + len(two.requests) == 3
        with Proxy([one], upstream=upstream) as proxy:
            assert proxy.talk(GET_CLOSE).endswith(b"busy")


def test_other_statuses_are_answers() -> None:
    upstream = Upstream("app", retries=Retries(statuses=(502,)))
    with (
        Origin(answering(BUSY)) as busy,
        Origin(answering(response(b"good"))) as good,
        Proxy([busy, good], upstream=upstream) as proxy,
    ):
        assert {proxy.talk(GET_CLOSE)[-4:] for _ in range(4)} == {b"busy", b"good"}


def test_any_method_is_repeated_where_the_upstream_says_so() -> None:
    def closing(connection: Connection, number: int) -> None:
        connection.request()

    upstream = Upstream("app", retries=Retries(non_idempotent=True))
    with (
        Origin(closing) as bad,
        Origin(answering(response(b"good"))) as good,
        Proxy([bad, good], upstream=upstream) as proxy,
    ):
        assert {proxy.talk(POST)[-4:] for _ in range(4)} == {b"good"}
        assert bad.requests


def test_requests_wait_for_a_place_and_are_served_in_order() -> None:
    go = threading.Event()
    running: list[int] = []
    most: list[int] = []

    def script(connection: Connection, number: int) -> None:
        while (request := connection.request()) is not None:
            running.append(1)
            most.append(len(running))
            go.wait(10)
            running.pop()
            connection.send(response(request.split()[1]))

    upstream = Upstream("app", limits=UpstreamLimits(per_backend=2, queue=10, queue_timeout=9))
    with Origin(script) as origin, Proxy([origin], upstream=upstream) as proxy:
        socks = [proxy.connect() for _ in range(8)]
        for number, sock in enumerate(socks):
            sock.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            until(lambda: len(origin.requests) == min(number + 1, 2))  # noqa: B023
        go.set()
        bodies = [read_response(sock)[1] for sock in socks]
        for sock in socks:
            sock.close()

    assert bodies == [b"/%d" % number for number in range(8)]
    assert max(most) == 2


def test_who_waits_too_long_or_finds_the_queue_full_is_told() -> None:
    go = threading.Event()

    def script(connection: Connection, number: int) -> None:
        connection.request()
        go.wait(10)
        connection.send(response(b"late"))

    upstream = Upstream("app", limits=UpstreamLimits(per_backend=1, queue=1, queue_timeout=0.3))
    with Origin(script) as origin, Proxy([origin], upstream=upstream) as proxy:
        first, second = proxy.connect(), proxy.connect()
        first.sendall(GET_CLOSE)
        until(lambda: origin.requests)
        second.sendall(GET_CLOSE)
        full = proxy.talk(GET_CLOSE)
        timed_out = second.recv(1000)
        go.set()
        assert read_response(first)[1] == b"late"
        first.close()
        second.close()

    assert full.startswith(b"HTTP/1.1 503 ")
    assert timed_out.startswith(b"HTTP/1.1 503 ")
    assert b"error=connection_limit_reached" in timed_out
    assert b"queue_timeout" in timed_out
    assert b"Retry-After: 1" in timed_out


def test_who_leaves_the_queue_takes_no_place() -> None:
    go = threading.Event()

    def script(connection: Connection, number: int) -> None:
        while connection.request() is not None:
            go.wait(10)
            connection.send(response())

    upstream = Upstream("app", limits=UpstreamLimits(per_backend=1, queue=5, queue_timeout=9))
    with Origin(script) as origin, Proxy([origin], upstream=upstream) as proxy:
        first, leaving, last = proxy.connect(), proxy.connect(), proxy.connect()
        first.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: origin.requests)
        leaving.sendall(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: proxy.clients == 3)
        leaving.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        leaving.close()
        until(lambda: proxy.clients == 2)
        last.sendall(b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
        go.set()
        assert read_response(first)[1] == b"ok"
        assert read_response(last)[1] == b"ok"
        first.close()
        last.close()

    assert [request.split()[1] for request in origin.requests] == [b"/1", b"/3"]


def test_a_limit_sends_requests_to_who_has_room() -> None:
    go = threading.Event()

    def holding(connection: Connection, number: int) -> None:
        connection.request()
        go.wait(10)
        connection.send(response(b"held"))

    upstream = Upstream("app", limits=UpstreamLimits(per_backend=1))
    with (
        Origin(holding) as full,
        Origin(answering(response(b"free"))) as free,
        Proxy([Endpoint("full", full.address), free], upstream=upstream) as proxy,
    ):
        held = proxy.connect()
        while not full.requests:
            held.close()
            held = proxy.connect()
            held.sendall(GET_CLOSE)
            until(lambda: full.requests or len(free.requests))
            free.requests.clear()
        assert {proxy.talk(GET_CLOSE)[-4:] for _ in range(6)} == {b"free"}
        go.set()
        held.close()
