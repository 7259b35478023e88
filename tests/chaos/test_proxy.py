"""The proxy itself: what it lets through, and what it does to it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from chaos.proxy import Link, Proxy
from journeys.kit import PATIENCE, until

HELLO = b'{"name":"a"}'


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


class Ends:
    """A dialer named `a` and the member `b` that answers, with the proxy between them."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        host, port = proxy.expect("b", self.listener.getsockname()).split(":")
        self.dialer = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self.dialer.sendall(frame(HELLO))
        self.answerer, _ = self.listener.accept()
        self.answerer.settimeout(PATIENCE)
        assert read(self.answerer) == HELLO

    def close(self) -> None:
        for sock in (self.dialer, self.answerer, self.listener):
            sock.close()


def read(sock: socket.socket) -> bytes:
    """Read one frame's body."""
    (length,) = struct.unpack("<I", exactly(sock, 4))
    return exactly(sock, length)


def exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = sock.recv(count - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


def nothing_comes(sock: socket.socket, within: float = 0.3) -> bool:
    sock.settimeout(within)
    try:
        return sock.recv(1) == b"at the end of the stream"
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy(7)
    yield made
    made.close()


@pytest.fixture
def ends(proxy: Proxy) -> Iterator[Ends]:
    made = Ends(proxy)
    yield made
    made.close()


def test_it_carries_both_ways_and_knows_who_dialled(ends: Ends) -> None:
    ends.dialer.sendall(frame(b"there"))
    ends.answerer.sendall(frame(b"back") + frame(b""))
    assert read(ends.answerer) == b"there"
    assert (read(ends.dialer), read(ends.dialer)) == (b"back", b"")
    assert ends.proxy.connections() == [("a", "b")]


def test_a_large_frame_in_pieces(ends: Ends) -> None:
    large = bytes(range(256)) * 4096
    sender = threading.Thread(target=ends.dialer.sendall, args=(frame(large),))
    sender.start()
    assert read(ends.answerer) == large
    sender.join(PATIENCE)


def test_one_way_is_cut_and_the_other_is_not(ends: Ends) -> None:
    ends.proxy.cut("a", "b")
    ends.dialer.sendall(frame(b"lost"))
    ends.answerer.sendall(frame(b"back"))
    assert read(ends.dialer) == b"back"
    assert nothing_comes(ends.answerer)
    ends.proxy.heal()
    assert read(ends.answerer) == b"lost"  # As a kernel would send it again.
    assert ends.proxy.fired["cut"] == 1


def test_nobody_can_dial_through_a_cut(ends: Ends) -> None:
    ends.proxy.cut("a", "b")
    address = ends.dialer.getpeername()
    with socket.create_connection(address, timeout=PATIENCE) as other:
        other.sendall(frame(HELLO))
        ends.listener.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ends.listener.accept()
        ends.listener.settimeout(PATIENCE)
        ends.proxy.heal()
        accepted, _ = ends.listener.accept()
        with accepted:
            assert read(accepted) == HELLO


def test_late_frames_stay_in_order(ends: Ends) -> None:
    def change(link: Link) -> None:
        link.delay, link.jitter = 0.1, 0.1

    ends.proxy.set("a", "b", change)
    began = time.monotonic()
    for number in range(20):
        ends.dialer.sendall(frame(b"%d" % number))
    assert [read(ends.answerer) for _ in range(20)] == [b"%d" % number for number in range(20)]
    assert 0.1 <= time.monotonic() - began < PATIENCE
    assert ends.proxy.fired["delayed"] == 20


def test_a_slow_link(ends: Ends) -> None:
    def change(link: Link) -> None:
        link.pace = 10_000.0

    ends.proxy.set("a", "b", change)
    began = time.monotonic()
    ends.dialer.sendall(frame(bytes(3_000)))
    read(ends.answerer)
    assert time.monotonic() - began >= 0.3


def test_frames_are_swapped_repeated_and_spoilt(ends: Ends) -> None:
    def swap(link: Link) -> None:
        link.swaps = 1

    ends.proxy.set("a", "b", swap)
    ends.dialer.sendall(frame(b"one"))
    ends.dialer.sendall(frame(b"two"))
    ends.dialer.sendall(frame(b"three"))
    assert [read(ends.answerer) for _ in range(3)] == [b"two", b"one", b"three"]
    assert ends.proxy.fired["reordered"] == 1

    def repeat(link: Link) -> None:
        link.repeats = 1

    ends.proxy.set("a", "b", repeat)
    ends.dialer.sendall(frame(b"five"))
    assert [read(ends.answerer) for _ in range(2)] == [b"five", b"five"]

    def spoil(link: Link) -> None:
        link.spoils = 1

    ends.proxy.set("a", "b", spoil)
    ends.dialer.sendall(frame(b"six"))
    assert read(ends.answerer) != b"six"


def test_a_frame_that_nothing_overtakes_goes_on_by_itself(ends: Ends) -> None:
    def swap(link: Link) -> None:
        link.swaps = 1

    ends.proxy.set("a", "b", swap)
    ends.dialer.sendall(frame(b"alone") + frame(b"half a frame")[:6])
    assert ends.answerer.recv(1, socket.MSG_PEEK)
    assert read(ends.answerer) == b"alone"
    ends.dialer.sendall(frame(b"half a frame")[6:])
    assert read(ends.answerer) == b"half a frame"


def test_connections_are_reset(ends: Ends) -> None:
    assert ends.proxy.reset("b", "a") == 0
    assert ends.proxy.reset("a", "b") == 1
    for sock in (ends.dialer, ends.answerer):
        with pytest.raises((ConnectionResetError, EOFError)):
            exactly(sock, 1)
    until(lambda: not ends.proxy.connections(), "nothing stands any more")


def test_an_end_travels_like_its_octets(ends: Ends) -> None:
    ends.dialer.sendall(frame(b"last"))
    ends.dialer.close()
    assert read(ends.answerer) == b"last"
    with pytest.raises((ConnectionResetError, EOFError)):
        exactly(ends.answerer, 1)


def test_nobody_listens(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = gone.getsockname()
    host, port = proxy.expect("b", target).split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as dialer:
        dialer.sendall(frame(HELLO))
        with pytest.raises((ConnectionResetError, EOFError)):
            exactly(dialer, 1)
