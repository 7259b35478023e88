"""Answers that come before the request has ended, and clients that go: nobody loses an answer."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from lb.model import Respond, Route
from lb.proxy import client_connection
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
from wire.tls_kit import MATERIAL, TLS, trusting

EXPECTING = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MEGABYTE = 1024 * 1024
NOTICED_S = 1.0


# --- Expect -----------------------------------------------------------------------------------


def answering_heads(answer: bytes) -> Callable[[Connection, int], None]:
    """Make a script that answers a request's head and reads on until the end."""

    def script(connection: Connection, number: int) -> None:
        connection._until(b"\r\n\r\n")
        connection.send(answer)
        while connection.sock.recv(65536):
            pass

    return script


@pytest.mark.parametrize("status", [b"417 Expectation Failed", b"401 Unauthorized", b"200 OK"])
def test_a_final_answer_to_an_expectation_ends_the_connection(status: bytes) -> None:
    """The client may or may not send its body now, so nobody can tell what comes next."""
    final = answering_heads(response(b"said", status=status))
    with Origin(final) as origin, Proxy([origin]) as proxy:
        with proxy.connect() as sock:
            sock.sendall(EXPECTING)
            head, body = read_response(sock)
            sock.sendall(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_all(sock) == b""
        assert proxy.idle == 0
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nConnection: close" in head
    assert body == b"said"
    assert len(origin.connections) == 1


def test_a_client_that_expects_may_send_at_once() -> None:
    continuing = answering(CONTINUE + response())
    with Origin(continuing) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        buffer = bytearray()
        sock.sendall(EXPECTING + b"body" + EXPECTING + b"more")
        heads = [read_response(sock, buffer)[0] for _ in range(4)]
    assert [head[9:12] for head in heads] == [b"100", b"200"] * 2
    assert [request[-4:] for request in origin.requests] == [b"body", b"more"]


def test_an_expectation_that_we_answer_ourselves() -> None:
    routes = [
        Route("no", path="/", respond=Respond(403, body="no")),
        Route("small", path="/small", upstream="app", body_max=3),
    ]
    with Origin(answering(response())) as origin, Proxy([origin], routes=routes) as proxy:
        answers = [proxy.talk(EXPECTING), proxy.talk(EXPECTING.replace(b"/ ", b"/small "))]
    assert [answer[9:12] for answer in answers] == [b"403", b"413"]
    assert all(b"\r\nConnection: close\r\n" in answer for answer in answers)
    assert not origin.requests


def test_an_old_client_expects_nothing() -> None:
    octets = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody"
    with Origin(answering(CONTINUE + response())) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(octets)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Expect" not in origin.requests[0]


# --- No client loses an answer to a RST -------------------------------------------------------

REFUSALS = {
    b"/big": b"413",
    b"/nobody": b"403",
    b"/../up": b"400",
    b"/refused": b"401",
}


@pytest.mark.parametrize("target", REFUSALS)
def test_a_client_that_sends_all_before_it_reads_gets_its_answer(target: bytes) -> None:
    """http.client does so, and what stands upon it: a RST within its writing is all it sees."""
    routes = [
        Route("big", path="/big", upstream="app", body_max=10),
        Route("nobody", path="/nobody", respond=Respond(403, body="no")),
    ]
    no = answering_heads(response(b"no", status=b"401 Unauthorized"))
    with Origin(no) as origin, Proxy([origin], routes=routes) as proxy:
        client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=DEADLINE_S)
        client.request("POST", target.decode(), b"x" * (24 * MEGABYTE))
        got = client.getresponse()
        assert got.status == int(REFUSALS[target])
        got.read()
        client.close()
        until(lambda: proxy.clients == 0, "the client forgotten")


def test_a_client_that_sends_slowly_on_gets_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer was written long ago; it reads only once it has sent everything."""
    monkeypatch.setattr(client_connection, "LINGER_S", 0.6)
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(b"POST /../ HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
        for _ in range(6):
            sock.sendall(b"x")
            proxy.await_ticks(1)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")


def test_an_answer_that_came_before_a_backends_reset_is_passed_on() -> None:
    def script(connection: Connection, number: int) -> None:
        connection._until(b"\r\n\r\n")
        connection.send(response(b"too much", status=b"413 Payload Too Large"))
        time.sleep(0)  # Let it leave; what the proxy still sends is answered by a RST.
        connection.close()

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9000)
        head, body = read_response(sock)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert body == b"too much"


# --- Clients that go --------------------------------------------------------------------------


def leave(sock: socket.socket, reset: bool) -> float:
    """Close, by a FIN or a RST; return when."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    return time.monotonic()


class Silent(Origin):
    """Takes connections and reads nothing from them."""

    def __init__(self) -> None:
        self._over = threading.Event()
        super().__init__(self._wait)

    def _wait(self, connection: Connection, number: int) -> None:
        self._over.wait()

    def close(self) -> None:
        self._over.set()
        super().close()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("begin", [b"Content-Length: 99999999\r\n\r\n", b"%b\r\n\r\nfffffff\r\n"])
def test_a_client_gone_while_its_body_waits_is_noticed(begin: bytes, reset: bool) -> None:
    """Its backend takes nothing more, so neither do we: the loop says nothing of its going."""
    begin = begin.replace(b"%b", b"Transfer-Encoding: chunked")
    with Silent() as origin, Proxy([origin]) as proxy:
        sock = proxy.connect()
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + begin)

        def held() -> bool:
            sock.sendall(b"x" * 65536)
            return bool(proxy.call(lambda: any(each._held for each in proxy.switchboard.clients)))

        until(held, "more than the backend takes")
        sock.sendall(b"x" * 10_000)
        left = leave(sock, reset)
        until(lambda: proxy.running == 0, "the exchange over")
        assert time.monotonic() - left < NOTICED_S + 0.5, "and something for a busy machine"
        until(lambda: proxy.clients == 0, "the client forgotten")
        assert proxy.busy == 0


@pytest.mark.parametrize("begin", [b"Content-Length: 99999999\r\n\r\n", b"%b\r\n\r\nfffffff\r\n"])
def test_a_client_gone_while_its_sealed_body_waits_is_noticed(begin: bytes) -> None:
    """TLS hides where a body stands, so that one was waited for as long as its backend slept."""
    begin = begin.replace(b"%b", b"Transfer-Encoding: chunked")
    listener = replace(LISTENER, tls=TLS)
    with Silent() as origin, Proxy([origin], listener=listener, material=MATERIAL) as proxy:
        sock = trusting().wrap_socket(proxy.connect(), server_hostname="a.example")
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + begin)

        def held() -> bool:
            sock.sendall(b"x" * 65536)
            return bool(proxy.call(lambda: any(each._held for each in proxy.switchboard.clients)))

        until(held, "more than the backend takes")
        sock.sendall(b"x" * 10_000)
        left = leave(sock, reset=False)
        until(lambda: proxy.running == 0, "the exchange over")
        assert time.monotonic() - left < NOTICED_S + 0.5, "and something for a busy machine"
        until(lambda: proxy.clients == 0, "the client forgotten")
        assert proxy.busy == 0


def test_a_whole_sealed_upload_that_waits_behind_its_end_is_delivered() -> None:
    go = threading.Event()
    size = 3 * MEGABYTE

    def script(connection: Connection, number: int) -> None:
        go.wait(DEADLINE_S)
        request = connection.request() or b""
        connection.send(response(b"%d" % len(request.partition(b"\r\n\r\n")[2])))

    listener = replace(LISTENER, tls=TLS)
    with (
        Origin(script) as origin,
        Proxy([origin], listener=listener, material=MATERIAL) as proxy,
        trusting().wrap_socket(proxy.connect(), server_hostname="a.example") as sock,
    ):

        def send() -> None:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            sock.sendall(b"x" * size)
            sock.shutdown(socket.SHUT_WR)  # Without close_notify, as many a client ends.

        sender = threading.Thread(target=send)
        sender.start()
        until(lambda: proxy.busy == 1, "it under way")
        proxy.await_ticks(5)
        go.set()
        sender.join(DEADLINE_S)
        assert sender.is_alive() is False
        until(lambda: origin.requests, "all of it at the backend")
        assert len(origin.requests[0]) > size


@pytest.mark.parametrize("ahead", [b"", b"GET /ahead HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_client_that_resets_while_it_waits_is_noticed(ahead: bytes) -> None:
    """With and without a request sent ahead, for which we stop reading."""
    with Silent() as origin, Proxy([origin]) as proxy:
        sock = proxy.connect()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + ahead)
        until(lambda: proxy.busy == 1, "the request at its backend")
        left = leave(sock, reset=True)
        until(lambda: proxy.running == 0, "the exchange over")
        assert time.monotonic() - left < NOTICED_S + 0.5
        until(lambda: proxy.clients == 0, "the client forgotten")


def test_a_whole_upload_that_waits_behind_its_end_is_delivered() -> None:
    """A half-closed client whose body we have not read yet is not gone."""
    size = 3 * MEGABYTE
    go = threading.Event()

    def script(connection: Connection, number: int) -> None:
        go.wait(DEADLINE_S)
        request = connection.request() or b""
        connection.send(response(b"%d" % len(request.partition(b"\r\n\r\n")[2])))

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:

        def send() -> None:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            sock.sendall(b"x" * size)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        until(lambda: proxy.busy == 1, "it under way")
        proxy.await_ticks(5)
        go.set()
        sender.join(DEADLINE_S)
        assert read_all(sock).endswith(b"\r\n\r\n%d" % size)
