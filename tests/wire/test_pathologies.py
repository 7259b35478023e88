"""Odd moments: what once went wrong for somebody, each with what they would have seen."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lb.errors import OurError
from lb.model import Endpoint, ListenerLimits, ListenerTimeouts, Retries, Upstream
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
HALF_POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf"


def reset(connection: Connection, number: int) -> None:
    connection.reset()


def greet(connection: Connection, number: int) -> None:
    connection.send(b"220 hello\r\n")


def hang_up(connection: Connection, number: int) -> None:
    connection.close()


# --- Backends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [reset, greet, hang_up])
def test_backend_that_is_gone_as_soon_as_it_stands(
    script: Callable[[Connection, int], None],
) -> None:
    """Clients waited for ever for an answer from a backend that closes, or speaks, at once."""
    with Origin(script) as origin, Proxy([origin]) as proxy:
        answers = [proxy.talk(GET_CLOSE) for _ in range(10)]
        assert [answer[:13] for answer in answers] == [b"HTTP/1.1 502 "] * 10
        until(lambda: proxy.running == 0, "every exchange over")


def test_client_and_backend_gone_while_connecting() -> None:
    """No timeout fired any more, for anybody, once a dead connection had got into a pool."""
    gone = threading.Event()

    def script(connection: Connection, number: int) -> None:
        greet(connection, number)
        connection.close()
        gone.set()

    listener = replace(LISTENER, timeouts=ListenerTimeouts(idle=0.1))
    with Origin(script) as origin, Proxy([origin], listener=listener) as proxy:
        for _ in range(5):
            gone.clear()
            proxy.lose_client_while_connecting(HALF_POST, lambda: gone.wait(DEADLINE_S))
            until(lambda: proxy.call(lambda: not proxy.backends[0].pool._connecting), "its end")
            assert (proxy.idle, proxy.busy) == (0, 0)
        assert proxy.talk(b"") == b""


def test_connection_that_was_never_used_dies_at_its_first_request() -> None:
    """A client got a 502, though all that had died was a connection kept from another's request."""
    upstream = Upstream("app", retries=Retries(attempts=1))

    def script(connection: Connection, number: int) -> None:
        if number == 1:
            connection.sock.recv(1)  # A request comes: it is closed at that moment.
        else:
            while connection.request() is not None:
                connection.send(response())

    with Origin(script) as origin, Proxy([origin], upstream=upstream) as proxy:
        proxy.lose_client_while_connecting(HALF_POST)
        until(lambda: proxy.idle == 1, "the connection that nobody waited for")
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 200")
    assert len(origin.connections) == 2


def test_kept_connection_dies_after_another_backend_refused() -> None:
    """Now and then a client got a 502, although one of two backends was well."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        gone = Endpoint("gone", f"127.0.0.1:{sock.getsockname()[1]}")

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(response())
        connection.request()

    with Origin(script) as origin, Proxy([gone, origin]) as proxy:
        answers = [proxy.talk(GET_CLOSE)[:13] for _ in range(20)]
    assert answers == [b"HTTP/1.1 200 "] * 20


def test_what_a_backend_says_to_an_idle_connection_is_no_answer() -> None:
    """A client got a 408 that a backend had said before it saw the request."""
    close, closed = threading.Event(), threading.Event()
    farewell = response(b"", b"Connection: close", status=b"408 Request Timeout")

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(response(b"good"))
        if number == 1:
            close.wait(DEADLINE_S)
            connection.send(farewell)
            closed.set()
        connection.request()

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(GET)
        read_response(sock)

        def both_come_in_one_turn() -> None:
            sock.sendall(GET)
            close.set()
            closed.wait(DEADLINE_S)

        proxy.call(both_come_in_one_turn)
        head, body = read_response(sock)
    assert body == b"good", head


def test_backend_replaced_during_the_pause_before_a_second_try() -> None:
    """A request went back to a backend that had been removed, and failed there."""

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.reset()

    with (
        Origin(script) as old,
        Origin(answering(response())) as new,
        Proxy([old], pause=0.5) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET_CLOSE)
        until(lambda: old.requests, "the first try")
        until(lambda: proxy.call(lambda: proxy.backends[0].in_flight) == 0, "its end")
        proxy.install(endpoints=[Endpoint(new.address, new.address)])
        assert read_all(sock).startswith(b"HTTP/1.1 200")
    assert len(old.requests) == 1


def test_connecting_fails_by_our_own_fault() -> None:
    """A client waited for ever for a backend whose address was no address."""
    with Proxy([Endpoint("odd", "a" * 64 + ".example:80")]) as proxy:
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 502 ")
        assert proxy.errors
        assert all(isinstance(each["exception"], OurError) for each in proxy.errors)
        proxy.errors.clear()


def test_chunks_in_an_old_response_end_the_connection() -> None:
    """A client could get the rest of another's response, framed otherwise by another reader."""
    answer = (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    with Origin(answering(answer)) as origin, Proxy([origin]) as proxy:
        for _ in range(3):
            assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 200")
    assert len(origin.connections) == 3


def test_short_response_to_an_old_client_ends_with_a_reset() -> None:
    """An HTTP/1.0 client took half a download for the whole: it ended as a whole one does."""
    seen = threading.Event()

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        seen.wait(DEADLINE_S)
        connection.reset()

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        got = b""
        while not got.endswith(b"hello"):
            piece = sock.recv(1000)
            assert piece, got
            got += piece
        seen.set()
        with pytest.raises(ConnectionResetError):
            sock.recv(1000)


# --- Clients --------------------------------------------------------------------------------------


def test_thousands_of_empty_lines() -> None:
    """One client's megabyte of empty lines stopped a worker, and all its clients, for seconds."""
    listener = replace(LISTENER, timeouts=ListenerTimeouts(header=60.0))
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=listener) as proxy,
        proxy.connect() as sock,
    ):
        before = proxy.call(time.thread_time)
        sock.sendall(b"\r\n" * 500_000 + GET)
        assert read_response(sock)[1] == b"ok"
        assert proxy.call(time.thread_time) - before < 0.5, "seconds of work"


def test_connections_turned_away_do_not_count() -> None:
    """A listener at its limit stayed closed while those it had refused lingered."""
    listener = replace(LISTENER, limits=ListenerLimits(connections=1))
    with Origin(answering(response())) as origin, Proxy([origin], listener=listener) as proxy:
        with proxy.connect() as served:
            served.sendall(GET)
            read_response(served)
            refused = [proxy.connect() for _ in range(3)]
            for sock in refused:
                assert sock.recv(1000).startswith(b"HTTP/1.1 503 ")
        until(lambda: proxy.clients == 3, "only who was refused left")
        answer = proxy.talk(GET_CLOSE)
        for sock in refused:
            sock.close()
    assert answer.startswith(b"HTTP/1.1 200")


def test_big_heads_are_not_kept_for_idle_clients() -> None:
    """A worker's memory grew by several times the head that each idle client had once sent."""
    big = b"X-Big: " + b"y" * 30_000
    head = GET[:-2] + big + b"\r\n\r\n"
    with (
        Origin(answering(response(b"ok", big))) as origin,
        Proxy([origin]) as proxy,
        proxy.connect() as sock,
    ):
        for _ in range(2):
            sock.sendall(head)
            read_response(sock)

        def remembered() -> int:
            [client] = proxy.switchboard.clients
            [backend] = proxy.backends[0].pool._idle
            heads = [each for each in (client._head, backend._head) if each is not None]
            return sum(
                sys.getsizeof(part)
                for each in heads
                for part in (each.octets, each.fields.block, each.fields.kept)
            )

        assert proxy.call(remembered) < 20_480


# --- Stopping, and new editions -------------------------------------------------------------------


def test_what_runs_while_draining_is_answered_with_a_close() -> None:
    """Clients sent their next request into a connection that a stopping worker then closed."""
    go = threading.Event()

    def script(connection: Connection, number: int) -> None:
        while connection.request() is not None:
            go.wait(DEADLINE_S)
            connection.send(response())

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(GET)
        until(lambda: origin.requests, "the request at its backend")
        proxy.call(lambda: proxy.listeners.close(proxy.listener.addresses[0], 0))
        go.set()
        head, _ = read_response(sock)
    assert b"\r\nConnection: close" in head


def test_clients_of_an_address_that_left_its_listener() -> None:
    """Who had come through an address that a reload took away was never asked to go."""
    moved = replace(LISTENER, addresses=("127.0.0.1:1",))
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(GET)
        read_response(sock)
        proxy.install(replace(proxy._plans, listeners=(moved,)))
        proxy.call(lambda: proxy.listeners.close(proxy.listener.addresses[0], 0))
        sock.sendall(GET)
        head, _ = read_response(sock)
    assert b"\r\nConnection: close" in head


def test_stopping_between_a_clients_arrival_and_its_connection() -> None:
    """Stopping a busy worker ended in a traceback, and left a client that nobody served."""
    with socket.create_server(("127.0.0.1", 0)) as peer, Proxy([]) as proxy:

        async def drain_before_it_stands() -> None:
            # uvloop makes the protocol a turn before it connects it.
            client = proxy.switchboard.accept(proxy.listener.addresses[0])
            await proxy.listeners.drain(0.0)
            loop: Any = asyncio.get_running_loop()  # A client is no asyncio.Protocol by name.
            await loop.create_connection(lambda: client, *peer.getsockname())

        proxy.call(drain_before_it_stands)
        accepted, _ = peer.accept()
        with accepted:
            accepted.settimeout(DEADLINE_S)
            assert read_all(accepted) == b""
        until(lambda: proxy.clients == 0, "the client forgotten")
