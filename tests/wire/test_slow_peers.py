"""Who reads or writes slowly: it costs them time, and nobody else anything."""

from __future__ import annotations

import json
import select
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lb.model import Listener, ListenerLimits, ListenerTimeouts, Route, Upstream, UpstreamTimeouts
from lb.proxy import client_connection, deadlines
from lb.proxy.deadlines import Deadlines
from wire.kit import (
    DEADLINE_S,
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
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


@pytest.fixture
def _quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let deadlines be looked at often, so that small timeouts are enough."""
    monkeypatch.setattr(deadlines, "TICK_S", 0.02)


pytestmark = pytest.mark.usefixtures("_quick_clock")


def listener(header: float = 60.0, stall: float = 60.0, idle: float = 60.0) -> Listener:
    return replace(LISTENER, timeouts=ListenerTimeouts(header=header, stall=stall, idle=idle))


def readable(sock: socket.socket, seconds: float) -> bool:
    """Whether anything comes within that time."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


# --- Clients that read slowly ---------------------------------------------------------------------


def test_connection_paused_for_a_slow_client_serves_the_next() -> None:
    """A client got a 504 from a healthy backend, since another client had read slowly before."""
    upstream = Upstream("app", timeouts=UpstreamTimeouts(response=0.5))
    big = response(b"x" * 200_000)  # Mostly one read: head, end, and more than the client takes.
    with Origin(answering(big)) as origin, Proxy([origin], upstream=upstream, narrow=True) as proxy:
        for _ in range(3):
            with proxy.connect_slowly() as sock:
                sock.sendall(GET)
                while proxy.idle == 0:
                    until(lambda: proxy.clogged or proxy.idle, "more than it takes")
                    if proxy.idle == 0:  # It came in two reads.
                        sock.recv(65_536)
                answer = proxy.talk(GET_CLOSE)
                assert answer.startswith(b"HTTP/1.1 200"), answer[:60]
    assert len(origin.connections) == 1


@pytest.mark.parametrize("size", [60_000, 1_000_000])  # It clogs between responses, or within.
def test_client_that_sends_ahead_and_never_reads_is_given_up(size: int) -> None:
    """Clients that read nothing held a connection and a backend's slot for ever."""
    upstream = Upstream("app", timeouts=UpstreamTimeouts(response=0.2, stall=0.2))
    impatient = listener(header=0.2, stall=0.2, idle=0.2)
    with (
        Origin(answering(response(b"x" * size))) as origin,
        Proxy([origin], upstream=upstream, listener=impatient, narrow=True) as proxy,
        proxy.connect_slowly() as sock,
    ):
        sock.sendall(GET * 20)
        until(lambda: proxy.clogged, "more than it takes")
        until(lambda: proxy.clients == 0, "the client given up")
        assert proxy.running == 0


def test_requests_sent_ahead_wait_until_the_answers_are_read() -> None:
    """One client that asked much and read little made a worker hold every answer in memory."""
    size, count = 100_000, 20
    with (
        Origin(answering(response(b"x" * size))) as origin,
        Proxy([origin], narrow=True) as proxy,
        proxy.connect_slowly() as sock,
        proxy.connect() as other,
    ):
        sock.sendall(GET * count)
        until(lambda: proxy.clogged and proxy.running == 0, "as many answers as fit")
        before = len(origin.requests)
        for _ in range(20):
            other.sendall(GET)
            read_response(other)
        assert len(origin.requests) - before == 20, "none of them for who does not read"
        buffer = bytearray()
        assert all(len(read_response(sock, buffer)[1]) == size for _ in range(count))


def test_last_answer_leaves_however_slowly_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download broke off near its end, for a client that had sent more than its request."""
    monkeypatch.setattr(client_connection, "LINGER_S", 0.05)
    size = 200_000
    with (
        Origin(answering(response(b"x" * size))) as origin,
        Proxy([origin], narrow=True) as proxy,
        proxy.connect_slowly() as sock,
    ):
        sock.sendall(GET_CLOSE + b"GET /more HTTP/1.1\r\n\r\n")
        until(lambda: proxy.clogged, "more than it takes")
        got = 0
        while proxy.running:
            got += len(sock.recv(4096))
        proxy.await_ticks(10)  # Far longer than it lingers.
        got += len(read_all(sock))
    assert got > size, "head and body"


# --- Clients that write slowly --------------------------------------------------------------------


def test_stall_counts_from_the_end_of_the_head() -> None:
    """An upload was refused as stalled at its first octet, since its head had come slowly."""
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=listener(stall=0.3)) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(POST_HEAD[:-2])
        assert proxy.talk(POST_HEAD).startswith(b"HTTP/1.1 408 ")  # So long is a stall.
        sock.sendall(b"\r\n")
        proxy.await_ticks(2)
        sock.sendall(b"body")
        assert read_response(sock)[0].startswith(b"HTTP/1.1 200")


def test_waiting_for_an_expectations_answer_is_no_stall() -> None:
    """A client that expects 100-continue got a 408 for waiting on a backend that was thinking."""
    go = threading.Event()

    def script(connection: Connection, number: int) -> None:
        if b"Expect" in (connection._until(b"\r\n\r\n") or b""):
            go.wait(DEADLINE_S)
            connection.send(response(b"no", status=b"401 Unauthorized"))
        else:
            connection.sock.recv(1000)

    with (
        Origin(script) as origin,
        Proxy([origin], listener=listener(stall=0.2)) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(POST_HEAD[:-2] + b"Expect: 100-continue\r\n\r\n")
        assert proxy.talk(POST_HEAD).startswith(b"HTTP/1.1 408 ")  # So long is a stall.
        proxy.await_ticks(3)
        go.set()
        assert read_response(sock)[0].startswith(b"HTTP/1.1 401")


def test_slow_upload_is_not_the_backends_fault() -> None:
    """An upload that took longer than timeouts.response ended in a 504 that blamed the backend."""

    def script(connection: Connection, number: int) -> None:
        request = connection.request() or b""
        if request.startswith(b"POST"):
            connection.send(response())
        else:
            connection.request()

    upstream = Upstream("app", timeouts=UpstreamTimeouts(response=0.2))
    with (
        Origin(script) as origin,
        Proxy([origin], upstream=upstream) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(POST_HEAD + b"bo")
        until(lambda: origin.connections, "the upload at its backend")
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 504 ")  # So long it may take.
        proxy.await_ticks(3)
        sock.sendall(b"dy")
        assert read_response(sock)[0].startswith(b"HTTP/1.1 200")


def test_body_slower_than_its_rate_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An octet now and then kept a connection and a backend's slot for ever: no stall, no end."""
    monkeypatch.setattr(client_connection, "RATE_GRACE_S", 0.3)
    slow = replace(listener(), limits=ListenerLimits(body_rate=1000))
    log = tmp_path / "access.log"
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=slow, log=str(log)) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        sent = 0
        while not readable(sock, 0.02):
            sock.sendall(b"x")
            sent += 1
        answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"slower than listener.web.limits.body_rate" in answer
        assert sent > 3, "as long as the grace lasted"
        met = proxy.reading.refresh().by("lb_limits_total", "limit")
        assert met == {("body_rate",): 1}
    [line] = map(json.loads, log.read_text().splitlines())
    assert (line["status"], line["end"]) == (408, "client_slow")


@pytest.mark.parametrize("chunked", [False, True])
def test_body_that_keeps_its_rate_may_take_long(
    monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(client_connection, "RATE_GRACE_S", 0.3)
    slow = replace(listener(), limits=ListenerLimits(body_rate=1000))
    piece = b"64\r\n" + b"x" * 100 + b"\r\n" if chunked else b"x" * 100
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 2000"
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=slow) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        for _ in range(20):  # Twice as fast as it must, three times as long as the grace.
            assert not readable(sock, 0.05)
            sock.sendall(piece)
        sock.sendall(b"0\r\n\r\n" if chunked else b"")
        assert read_response(sock)[0].startswith(b"HTTP/1.1 200 ")


def test_waiting_for_the_backend_is_not_a_slow_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """While we don't read, or nobody has invited the body, its clock stands still."""
    monkeypatch.setattr(client_connection, "RATE_GRACE_S", 0.2)
    slow = replace(listener(), limits=ListenerLimits(body_rate=1000))
    go = threading.Event()

    def script(connection: Connection, number: int) -> None:
        connection._until(b"\r\n\r\n")
        go.wait(DEADLINE_S)
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sock.recv(100)
        connection.send(response())

    with (
        Origin(script) as origin,
        Proxy([origin], listener=slow) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(POST_HEAD[:-2] + b"Expect: 100-continue\r\n\r\n")
        until(lambda: origin.connections, "the request at its backend")
        proxy.await_ticks(20)  # Twice the grace.
        go.set()
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"body")
        assert read_response(sock)[0].startswith(b"HTTP/1.1 200 ")


def test_client_may_write_on_when_two_deadlines_pass_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that wrote on behind an upload that stalled met a broken pipe, not its answer."""
    monkeypatch.setattr(deadlines, "TICK_S", 0.25)  # Both pass in one.
    routes = [Route("up", path="/", upstream="app", timeout=0.3)]
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=listener(stall=0.3), routes=routes) as proxy,
    ):
        socks = [proxy.connect() for _ in range(12)]
        for sock in socks:
            sock.sendall(POST_HEAD + b"bo")
        until(lambda: len(origin.connections) == 12, "every upload at its backend")
        until(lambda: proxy.running == 0, "every answer")
        proxy.await_ticks(1)
        for octets in (b"d", b"y"):  # The first is answered by a RST if nobody reads on.
            for sock in socks:
                sock.sendall(octets)
        for sock in socks:
            with sock:
                assert read_all(sock)[9:12] in {b"408", b"504"}


def test_deadline_moved_by_another_of_the_same_tick() -> None:
    """What was given more time at the last moment was ended all the same."""
    ended: list[Waiting] = []

    class Waiting:
        deadline = 0.0
        other: Waiting

        def on_deadline(self, now: float) -> None:
            ended.append(self)
            self.other.deadline = now + 60

    one, two = Waiting(), Waiting()
    one.other, two.other = two, one
    with Proxy([]) as proxy:
        clock: Deadlines = proxy.switchboard.worker.deadlines

        def watch_both() -> None:
            clock.watch(one)
            clock.watch(two)

        proxy.call(watch_both)
        until(lambda: ended, "a deadline")
        proxy.await_ticks(1)
        proxy.call(lambda: (clock.forget(one), clock.forget(two)))
    assert {id(each) for each in ended} in ({id(one)}, {id(two)})
