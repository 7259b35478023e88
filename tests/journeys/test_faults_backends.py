"""Backends that are late, slow, or not who they should be; checks that hang or lie."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, Backend, Daemon, loaded, until

OLD = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
SLOW = "/slow"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
Script = Callable[[socket.socket], None]


class Raw:
    """A backend that does with each of its connections what `script` says, each in a thread."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self._script, self._context = script, context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.at_once = self.most_at_once = 0
        self.asked = bytearray()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while not self._stopping.is_set():
                sock, _ = self._server.accept()
                sock.settimeout(PATIENCE)
                self._threads.append(threading.Thread(target=self._run, args=(sock,)))
                self._threads[-1].start()

    def _run(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            wrapped = self._context.wrap_socket(sock, server_side=True) if self._context else sock
            with wrapped:
                self.asked += wrapped.recv(65536)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    self._script(wrapped)
                finally:
                    self.at_once -= 1

    def pause(self, seconds: float) -> None:
        """Let time pass, but for a close."""
        self._stopping.wait(seconds)

    def close(self) -> None:
        self._stopping.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(PATIENCE)


MakeRaw = Callable[..., Raw]


@pytest.fixture
def raw() -> Iterator[MakeRaw]:
    with contextlib.ExitStack() as stack:

        def make(script: Script, context: ssl.SSLContext | None = None) -> Raw:
            made = Raw(script, context)
            stack.callback(made.close)
            return made

        yield make


def beside(backends: list[Backend], slow: str, timeouts: str) -> str:
    """A config with one route to a slow backend, and all else to a good one."""
    return (
        config_of(backends[1:], listener='upstream = "app"')
        + f'[route.slow]\npath = "{SLOW}"\nupstream = "slow"\n'
        + f'[upstream.slow]\nbackends = ["{slow}"]\ntimeouts = {{ {timeouts} }}\n'
    )


def connections(one: Daemon, address: str) -> set[float]:
    """How many there are to a backend, busy or idle."""
    lines = one.admin("/metrics").text.splitlines()
    wanted = [each for each in lines if each.startswith("lb_backend_connections{")]
    return {float(each.split()[-1]) for each in wanted if address in each}


def test_an_answer_that_comes_too_late(backends: list[Backend], daemon: Make) -> None:
    """Fault 6: 504 at the set time, its connection is not used again, others notice nothing."""
    late = backends[0]
    late.answer = lambda handler: bool(  # type: ignore[method-assign]
        handler.rfile.readline() and late.hold.wait(PATIENCE)
    )
    one = daemon(beside(backends, late.address, 'response = "400ms"'), workers=1).start()
    with loaded(one.port) as load:
        for number in range(1, 4):
            began = time.monotonic()
            answer = one.ask(SLOW)
            assert answer.status == 504
            assert 0.4 <= time.monotonic() - began < 3
            assert late.connections == number, "tried once, over a connection of its own"
        load.more(20)
    assert load.failures == []
    plain = one.admin(f"/v1/upstreams/slow/backends/{late.address}").json()
    assert plain["errors"] == 3
    until(lambda: connections(one, late.address) == {0.0}, "nothing is left of it")


def test_a_head_octet_by_octet(raw: MakeRaw, backends: list[Backend], daemon: Make) -> None:
    """Fault 7: the time for a head is for all of it."""

    def trickle(sock: socket.socket) -> None:
        for octet in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":
            sock.sendall(bytes((octet,)))
            slow.pause(0.1)

    slow = raw(trickle)
    one = daemon(beside(backends, slow.address, 'response = "600ms"')).start()
    began = time.monotonic()
    assert one.ask(SLOW).status == 504
    assert time.monotonic() - began < 3


def test_a_body_octet_by_octet(raw: MakeRaw, backends: list[Backend], daemon: Make) -> None:
    """Fault 7: a body may take as long as it likes, but not stop."""
    stops = threading.Event()

    def trickle(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n")
        for octet in b"a long story":
            sock.sendall(bytes((octet,)))
            slow.pause(PATIENCE if stops.is_set() else 0.15)

    slow = raw(trickle)
    one = daemon(beside(backends, slow.address, 'response = "5s", stall = "700ms"')).start()
    began = time.monotonic()
    assert one.ask(SLOW).text == "a long story"
    assert time.monotonic() - began > 1.4, "twice the time that it may be silent"
    stops.set()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        one.ask(SLOW)


REPLIES = {
    b"": "no answer within 0.3s",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsick": "the body lacks 'well'",
    b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n": "status 302",
}


def test_checks_that_hang_or_are_answered_otherwise(
    raw: MakeRaw, backends: list[Backend], daemon: Make
) -> None:
    """Fault 15: it is down as configured; there is one check at a time of each backend."""

    def answering(reply: bytes) -> Raw:
        def script(sock: socket.socket) -> None:
            sock.sendall(reply)
            sock.recv(1)  # Until we have enough of it.

        return raw(script)

    bad: dict[str, Raw] = {words: answering(reply) for reply, words in REPLIES.items()}
    good = backends[0]
    good.name = "well"
    addresses = ", ".join(
        f'"{each}"' for each in (*(b.address for b in bad.values()), good.address)
    )
    check = (
        'panic = "0%"\nhealth = { path = "/healthz", expect = "200", body = "well", '
        'interval = "100ms", timeout = "300ms", fall = 2, rise = 1 }\n'
    )
    one = daemon(config_of([good], check).replace(f'"{good.address}"', addresses)).start()
    for words, each in bad.items():
        until(lambda each=each: f"app/{each.address} is unhealthy" in one.log(), "a verdict")  # type: ignore[misc]
        assert any(each.address in line and words in line for line in one.log().splitlines())
    with loaded(one.port) as load:
        load.more(50)
    assert (load.failures, set(load.answers)) == ([], {"well"})
    assert [each.most_at_once for each in bad.values()] == [1, 1, 1]


def context_of(cert: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    cert.configure_cert(context)
    return context


def test_backends_that_cannot_prove_who_they_are(
    raw: MakeRaw, daemon: Make, tmp_path: Path
) -> None:
    """Fault 16: 502 and a word of why; not one octet of the request, in plain text or not."""
    ca = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    certs = {
        "certificate has expired": ca.issue_cert("127.0.0.1", not_after=OLD),
        "IP address mismatch": ca.issue_cert("other.example"),
        "unable to get local issuer certificate": trustme.CA().issue_cert("127.0.0.1"),
    }
    config = '[access_log]\noutput = "stdout"\n[listener.web]\naddress = "127.0.0.1:{port}"\n'
    made = []
    for number, cert in enumerate(certs.values()):
        made.append(raw(lambda sock: sock.sendall(OK), context_of(cert)))
        config += (
            f'[route.r{number}]\npath = "/{number}"\nupstream = "u{number}"\n'
            f'[upstream.u{number}]\nbackends = ["https://{made[-1].address}"]\n'
            f'tls = {{ ca = "{tmp_path}/ca.pem" }}\n'
        )
    one = daemon(config).start()
    for number, words in enumerate(certs):
        assert one.ask(f"/{number}").status == 502
        until(lambda words=words: words in one.out.read_text() + one.log(), words)  # type: ignore[misc]
    assert [each.asked for each in made] == [b"", b"", b""]
