"""More clients, or more work, than there is room for."""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from lb.model import ListenerLimits, Upstream
from lb.proxy import listener as listening
from lb.proxy.pool import Pool
from lb.retry import Failure
from wire.kit import LISTENER, Origin, Proxy, answering, read_all, read_response, response, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def held_back(proxy: Proxy) -> bool:
    return bool(proxy.call(lambda: proxy.listeners._full_since))


def test_clients_over_the_limit_wait_and_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "WAIT_S", 60.0)
    limited = replace(LISTENER, limits=ListenerLimits(connections=2))
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=limited) as proxy,
        ExitStack() as stack,
    ):
        inside = [stack.enter_context(proxy.connect()) for _ in range(2)]
        for sock in inside:
            sock.sendall(GET)
            read_response(sock)
        until(lambda: held_back(proxy), "the pause")
        waiting = [stack.enter_context(proxy.connect()) for _ in range(3)]
        for sock in waiting:
            sock.sendall(GET_CLOSE)
        for sock in inside:
            sock.sendall(GET)
            assert read_response(sock), "who is inside is served"
        inside.pop().close()
        for sock in waiting:
            assert read_all(sock).startswith(b"HTTP/1.1 200 "), "one after the other"
        until(lambda: not held_back(proxy), "the door is open again")
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 200 ")


def test_waiting_at_a_limit_costs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "WAIT_S", 60.0)
    limited = replace(LISTENER, limits=ListenerLimits(connections=1))
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=limited) as proxy,
        proxy.connect() as inside,
        proxy.connect(),
    ):
        inside.sendall(GET)
        read_response(inside)
        until(lambda: held_back(proxy), "the pause")
        before = proxy.call(time.thread_time)
        proxy.await_ticks(4)
        assert proxy.call(time.thread_time) - before < 0.1, "seconds of a second"


def test_out_of_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """Fault 41: new clients wait, those inside are served, and it goes on when some have left."""
    caplog.set_level("INFO")
    with (
        Origin(answering(response())) as origin,
        Proxy([origin]) as proxy,
        ExitStack() as stack,
    ):
        descriptors = proxy.switchboard.descriptors

        def look(limit: int) -> None:
            """Have this process seem to be allowed so many; the clients are in it as well."""
            descriptors.read_limit = lambda: limit
            descriptors._look_at = descriptors._say_at = 0.0

        inside = [stack.enter_context(proxy.connect()) for _ in range(4)]
        for sock in inside:
            sock.sendall(GET)
            read_response(sock)
        proxy.call(lambda: look(20))
        until(lambda: descriptors.room <= 0, "it notices")
        first = stack.enter_context(proxy.connect())  # With it the door closes.
        until(lambda: held_back(proxy), "the pause")
        waiting = [first, *(stack.enter_context(proxy.connect()) for _ in range(3))]
        for sock in waiting:
            sock.sendall(GET_CLOSE)
        for sock in inside:
            sock.sendall(GET)
            assert read_response(sock)[0].startswith(b"HTTP/1.1 200 ")
        assert any("out of descriptors: " in line for line in caplog.messages)
        assert any("raise LimitNOFILE" in line for line in caplog.messages)
        proxy.call(lambda: look(100_000))
        for sock in waiting:
            assert read_all(sock).startswith(b"HTTP/1.1 200 ")
        assert any("new clients are accepted again" in line for line in caplog.messages)


def test_a_machine_out_of_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever our own limit: a server that finds none would close whom it accepts."""
    with (
        Origin(answering(response())) as origin,
        Proxy([origin]) as proxy,
        proxy.connect() as inside,
        ExitStack() as stack,
    ):
        descriptors = proxy.switchboard.descriptors
        inside.sendall(GET)
        read_response(inside)
        assert not held_back(proxy)
        descriptors.try_one = lambda: errno.ENFILE
        until(lambda: held_back(proxy), "the pause, without a client that comes")
        assert any("this machine has none left" in line for line in caplog.messages)
        waiting = [stack.enter_context(proxy.connect()) for _ in range(3)]
        for sock in waiting:
            sock.sendall(GET_CLOSE)
        inside.sendall(GET)
        assert read_response(inside)[0].startswith(b"HTTP/1.1 200 ")
        assert proxy.clients == 1
        descriptors.try_one = lambda: 0
        for sock in waiting:
            assert read_all(sock).startswith(b"HTTP/1.1 200 ")
        until(lambda: not held_back(proxy), "the door is open again")


def test_what_was_used_just_now_is_not_closed_for_its_descriptor() -> None:
    with (
        Origin(answering(response())) as origin,
        Proxy([origin]) as proxy,
        proxy.connect() as one,
        proxy.connect() as other,
    ):
        for sock in (one, other):
            sock.sendall(GET)  # Both at once: two connections to the backend.
        for sock in (one, other):
            read_response(sock)
        until(lambda: proxy.idle == 2)
        live = proxy.backends[0].pool
        proxy.call(live.drop_unused)
        assert proxy.idle == 2
        one.sendall(GET)
        read_response(one)
        until(lambda: proxy.idle == 2)
        proxy.call(live.drop_unused)
        assert proxy.idle == 1, "the one that was used"
        proxy.call(live.drop_unused)
        assert proxy.idle == 0


def test_no_descriptor_for_a_backend_is_503_and_no_blame() -> None:
    with Origin(answering(response())) as origin, Proxy([origin], upstream=ONE_TRY) as proxy:
        with proxy.connect() as client:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            until(lambda: proxy.clients == 1)
            with socket.socket() as probe:
                lowest = probe.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                client.sendall(GET_CLOSE)
                answer = read_all(client)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" in answer
        assert not proxy.call(lambda: proxy.backends[0].failures)


ONE_TRY = Upstream("app", retries=replace(Upstream("app").retries, attempts=1))


def test_a_drowning_worker_turns_away_but_for_readiness() -> None:
    ready = replace(LISTENER, ready_path="/-/ready")
    with Origin(answering(response())) as origin, Proxy([origin], listener=ready) as proxy:

        def drown() -> None:
            proxy.switchboard.load.look = lambda now: None  # type: ignore[method-assign]
            proxy.switchboard.load.shed = 1.0

        proxy.call(drown)
        answer = proxy.talk(GET_CLOSE)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        assert b"this worker has more to do than it can" in answer
        assert proxy.talk(GET_CLOSE.replace(b"/ H", b"/-/ready H")).startswith(b"HTTP/1.1 200 ")
        assert not origin.requests


@pytest.mark.parametrize(
    ("number", "blamed"),
    [
        (errno.EMFILE, Failure.LIMITED),
        (errno.ENFILE, Failure.LIMITED),
        (errno.EADDRNOTAVAIL, Failure.LIMITED),  # Fault 42: no local port is left.
        (errno.ENOMEM, Failure.LIMITED),
        (errno.ECONNREFUSED, Failure.REFUSED),
        (errno.EHOSTUNREACH, Failure.REFUSED),
    ],
)
def test_whose_fault_it_is_that_there_is_no_connection(
    number: int, blamed: Failure, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy([]) as proxy:
        loop = proxy._loop
        pool = Pool("10.0.0.1:80", loop, proxy.switchboard.worker.deadlines, random.Random())
        error = OSError(number, os.strerror(number))
        assert {pool.blame(error) for _ in range(3)} == {blamed}
    assert len(caplog.messages) == (1 if blamed is Failure.LIMITED else 0)
