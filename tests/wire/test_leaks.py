"""After everything that the tests know to send, in three ways: nothing is left, nobody got it."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pytest

from lb.model import (
    Keepalive,
    Listener,
    ListenerLimits,
    ListenerTimeouts,
    Upstream,
    UpstreamLimits,
    UpstreamTimeouts,
)
from lb.proxy import client_connection, deadlines
from wire.inputs import INPUTS
from wire.kit import DEADLINE_S, LISTENER, Connection, Origin, Proxy, read_response, until
from wire.rivals import read_request
from wire.test_fuzz import REQUESTS, RESPONSES

LISTEN: Final = replace(
    LISTENER,
    timeouts=ListenerTimeouts(header=0.2, stall=0.2, idle=0.2),
    limits=ListenerLimits(per_client=1000),
)
UPSTREAM: Final = Upstream(
    "app",
    timeouts=UpstreamTimeouts(response=0.3, stall=0.3),
    keepalive=Keepalive(idle=0.3),
    limits=UpstreamLimits(per_backend=50),
)
TOKEN: Final = re.compile(rb"X-Whose: ([0-9]+)")


@pytest.fixture(autouse=True)
def _quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "TICK_S", 0.02)
    monkeypatch.setattr(client_connection, "LINGER_S", 0.05)


def send(proxy: Proxy, octets: bytes, way: str) -> None:
    with proxy.connect() as sock, suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if way == "cut":
            for at in range(0, len(octets), max(1, len(octets) // 7)):
                sock.sendall(octets[at : at + max(1, len(octets) // 7)])
        else:
            sock.sendall(octets if way == "whole" else octets[: len(octets) * 2 // 3])
        if way == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass


def left(proxy: Proxy) -> dict[str, int]:
    """Count whatever could be left of a client or of an exchange."""

    def count() -> dict[str, int]:
        board = proxy.switchboard
        upstream: Any = board._upstreams["app"]
        pools: list[Any] = [each.pool for each in proxy.backends]
        doors = board._doors.values()
        return {
            "clients": len(board.clients),
            "open": sum(door.open for door in doors),
            "turned away": sum(door.turned_away for door in doors),
            "addresses": sum(door.kins for door in doors),
            "exchanges": upstream.active,
            "in flight": sum(each.in_flight for each in proxy.backends),
            "retrying": upstream.budget.retrying,
            "queue": len(upstream._queue),
            "full": len(upstream._full),
            "connections": sum(len(pool._all) for pool in pools),
            "idle": sum(len(pool._idle) for pool in pools),
            "connecting": sum(len(pool._connecting) for pool in pools),
            "waits": len(board.worker.deadlines._watched),
        }

    found: dict[str, int] = proxy.call(count)
    return found


def settle(proxy: Proxy) -> None:
    """All of it comes to nothing, once what may be kept has been kept for its time."""
    with suppress(AssertionError):  # What is not nothing is shown below.
        until(lambda: not any(left(proxy).values()), "nothing left")
    assert left(proxy) == dict.fromkeys(left(proxy), 0)


@pytest.mark.parametrize("way", ["whole", "cut", "reset"])
def test_nothing_is_left_after_the_whole_corpus(way: str) -> None:
    corpus = [*INPUTS.values(), *REQUESTS, b"".join(REQUESTS)]
    replies = [
        *RESPONSES,
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
    ]

    def script(connection: Connection, number: int) -> None:
        while read_request(connection) is not None:
            connection.send(replies[number % len(replies)])
            if number % 3 == 0:
                return

    with Origin(script) as origin, Proxy([origin], listener=LISTEN, upstream=UPSTREAM) as proxy:
        send(proxy, REQUESTS[0], way)
        settle(proxy)
        before = len(os.listdir("/proc/self/fd"))

        def send_part(at: int) -> None:
            for each in corpus[at::4]:
                send(proxy, each, way)

        senders = [threading.Thread(target=send_part, args=(at,)) for at in range(4)]
        for each in senders:
            each.start()
        for each in senders:
            each.join(DEADLINE_S * 6)
        settle(proxy)
        assert not proxy.errors
        until(lambda: len(os.listdir("/proc/self/fd")) <= before + 3, "descriptors closed")


def test_nobody_gets_what_is_anothers() -> None:
    """While the corpus goes through, clients that behave get their own answers and nothing else."""
    listener: Listener = replace(LISTEN, timeouts=ListenerTimeouts(header=0.2, stall=0.2))

    def script(connection: Connection, number: int) -> None:
        while (request := read_request(connection)) is not None:
            whose = TOKEN.search(request)
            body = whose[1] if whose else b"nobody's"
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    stop = threading.Event()
    wrong: list[bytes] = []

    def behave(proxy: Proxy, who: int) -> None:
        count = 0
        with proxy.connect() as sock:
            buffer = bytearray()
            while not stop.is_set():
                count += 1
                token = b"%d" % (who * 1_000_000 + count)
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Whose: %b\r\n\r\n" % token)
                _, body = read_response(sock, buffer)
                if body != token or buffer:
                    wrong.append(body + b" for " + token)
                if count % 900 == 0:
                    return  # As many as one connection carries, and a few to spare.

    with Origin(script) as origin, Proxy([origin], listener=listener, upstream=UPSTREAM) as proxy:
        good = [threading.Thread(target=behave, args=(proxy, who)) for who in range(3)]
        for each in good:
            each.start()
        for octets in [*INPUTS.values(), *REQUESTS]:
            send(proxy, octets, "whole")
        stop.set()
        for each in good:
            each.join(DEADLINE_S)
        assert not wrong
        settle(proxy)
