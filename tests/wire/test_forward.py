"""What passes through, and how it is changed on the way; on raw octets."""

from __future__ import annotations

import re
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lb.model import Endpoint, Listener, Respond, Route, Upstream
from wire.kit import (
    DEADLINE_S,
    Connection,
    Origin,
    Proxy,
    answering,
    read_all,
    read_response,
    response,
    until,
)

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"


def test_request_and_response_pass() -> None:
    with Origin(answering(response(b"hello", b"X-Kept: 1"))) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(
            b"GET /a%2fb?x=1 HTTP/1.1\r\nHost: A.example\r\nConnection: close\r\n\r\n"
        )

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX-Kept: 1\r\nContent-Length: 5\r\nDate: ")
    assert head.endswith(b"\r\nConnection: close")
    assert body == b"hello"
    [request] = origin.requests
    line, *fields = request[:-4].split(b"\r\n")
    assert line == b"GET /a%2fb?x=1 HTTP/1.1"
    assert re.fullmatch(rb"X-Request-ID: [0-9a-f]{10}-[0-9a-f]{8}", fields[0])
    assert fields[1:] == [
        b"Host: A.example",
        b"X-Forwarded-For: 127.0.0.1",
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: A.example",
        b"Via: 1.1 lb-00000000",
    ]


def test_what_ends_here_is_not_passed_on() -> None:
    sent = [
        b"GET / HTTP/1.1",
        b"Host: a",
        b"Connection: X-Secret, keep-alive",
        b"X-Secret: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQAAP__",
        b"X-Forwarded-For: 6.6.6.6",
        b"X_Forwarded_For: 6.6.6.6",
        b"Forwarded: for=6.6.6.6",
        b"X-Kept: yes",
        b"x-kept: twice",
        b"Via: 1.0 other",
    ]
    answered = response(b"ok", b"Connection: X-Gone", b"X-Gone: 1", b"Keep-Alive: timeout=9")
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(b"\r\n".join(sent) + b"\r\n\r\n")
        head, _ = read_response(sock)

    assert b"gone" not in head.lower()
    assert b"keep-alive" not in head.lower()
    [request] = origin.requests
    kept = request.split(b"\r\n")[3:-2]
    assert kept == [
        b"X-Kept: yes",
        b"x-kept: twice",
        b"X-Forwarded-For: 127.0.0.1",
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: a",
        b"Via: 1.0 other, 1.1 lb-00000000",
    ]


def test_connections_are_kept_on_both_sides() -> None:
    with (
        Origin(answering(response())) as origin,
        Proxy([origin]) as proxy,
        proxy.connect() as sock,
    ):
        for _ in range(20):
            sock.sendall(GET)
            assert read_response(sock)[1] == b"ok"

        assert len(origin.requests) == 20
        assert len(origin.connections) == 1


def test_fields_that_change_are_read_anew() -> None:
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        for name in (b"one", b"two", b"two", b"one"):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: %b.example\r\n\r\n" % name)
            read_response(sock)

    hosts = [re.search(rb"Host: (\w+)", request) for request in origin.requests]
    assert [host[1] for host in hosts if host] == [b"one", b"two", b"two", b"one"]


def test_pipelined_requests_are_answered_in_order() -> None:
    def script(connection: Connection, number: int) -> None:
        while (request := connection.request()) is not None:
            connection.send(response(request.split(b" ")[1]))

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        ahead = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(500))
        sock.sendall(ahead)
        buffer = bytearray()
        bodies = [read_response(sock, buffer)[1] for _ in range(500)]

    assert bodies == [b"/%d" % n for n in range(500)]


def test_thousands_sent_ahead_that_we_answer_ourselves() -> None:
    """Each answer is ready at once: the next must not be begun from within it."""
    listener = Listener("web", ("127.0.0.1:0",), upstream=None)
    routes = [Route("other", path="/other", upstream="app")]
    with Proxy([], listener=listener, routes=routes) as proxy, proxy.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)
        received = read_all(sock)

    assert received.count(b"HTTP/1.1 404 ") == 1000, "and then the connection has carried enough"
    assert received.count(b"Connection: close") == 1


@pytest.mark.parametrize("size", [0, 1, 70_000, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_uploads(size: int, chunked: bool) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        if chunked:
            framed = b"".join(
                b"%X;ext=1\r\n%b\r\n" % (len(piece), piece)
                for piece in (body[at : at + 999] for at in range(0, size, 999))
            )
            sock.sendall(
                b"POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                + framed
                + b"0\r\nX-Trailer: gone\r\n\r\n"
            )
        else:
            sock.sendall(
                b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body
            )
        assert read_response(sock)[1] == b"ok"
        sock.sendall(GET)
        assert read_response(sock)[1] == b"ok"

    head, _, got = origin.requests[0].partition(b"\r\n\r\n")
    if chunked:
        assert b"Transfer-Encoding: chunked" in head
        assert b"ext" not in got
        assert b"Trailer" not in got
        assert got.endswith(b"0\r\n\r\n")
        assert unchunk(got) == body
    else:
        assert b"Content-Length: %d" % size in head
        assert got == body


def unchunk(octets: bytes) -> bytes:
    pieces = []
    while octets:
        line, _, octets = octets.partition(b"\r\n")
        size = int(line, 16)
        pieces.append(octets[:size])
        octets = octets[size + 2 :]
    return b"".join(pieces)


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
)


def test_chunked_response_is_framed_anew() -> None:
    with Origin(answering(CHUNKED)) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(GET_CLOSE)

        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"\r\nTransfer-Encoding: chunked" in head
        assert unchunk(body) == b"abcde"
        assert b"x=y" not in body
        assert b"T: 1" not in body
        proxy.talk(GET_CLOSE)
        assert len(origin.connections) == 1


def test_old_client_gets_no_chunks_and_a_close() -> None:
    with Origin(answering(CHUNKED)) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert body == b"abcde"
    assert origin.requests[0].startswith(b"GET / HTTP/1.1\r\n")


def test_body_that_ends_with_its_connection() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        for _ in range(2):
            sock.sendall(GET)
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += sock.recv(65536)
            assert unchunk(received.partition(b"\r\n\r\n")[2]) == b"all of it"
        assert len(origin.connections) == 2


@pytest.mark.parametrize(
    ("method", "answered"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
def test_responses_without_a_body_keep_the_connection(method: bytes, answered: bytes) -> None:
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        for _ in range(3):
            sock.sendall(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += sock.recv(65536)
            assert received.startswith(answered[:20])
        assert len(origin.connections) == 1


def test_interim_responses_pass_but_not_to_an_old_client() -> None:
    answered = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + response()
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy:
        new = proxy.talk(GET_CLOSE)
        old = proxy.talk(b"GET / HTTP/1.0\r\n\r\n")

    assert new.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK")
    assert old.startswith(b"HTTP/1.1 200 OK")


def test_expectation_goes_on_and_its_answer_comes_back() -> None:
    def script(connection: Connection, number: int) -> None:
        head = connection._until(b"\r\n\r\n")
        assert head is not None
        assert b"Expect: 100-continue" in head
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert connection.sock.recv(4) == b"body"
        connection.send(response(b"thanks"))

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"body")
        assert read_response(sock)[1] == b"thanks"


def test_early_answer_reaches_a_client_that_still_sends() -> None:
    def script(connection: Connection, number: int) -> None:
        connection._until(b"\r\n\r\n")
        connection.send(response(b"no", status=b"401 Unauthorized"))
        while connection.sock.recv(65536):  # Lingers, as good servers do.
            pass

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 300_000
        )
        answer = read_all(sock)

    assert answer.startswith(b"HTTP/1.1 401")
    assert b"Connection: close" in answer
    assert answer.endswith(b"no")


def test_half_closed_client_gets_its_answer() -> None:
    still = answering(response(b"still"))
    with Origin(still) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(GET)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).endswith(b"still")


def test_absolute_form_decides_the_host() -> None:
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        proxy.talk(
            b"GET http://real.example/p?q HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n"
        )

    [request] = origin.requests
    assert request.startswith(b"GET /p?q HTTP/1.1\r\n")
    assert b"\r\nHost: real.example\r\n" in request
    assert b"other" not in request


@pytest.mark.parametrize(
    ("policy", "host"),
    [("keep", b"a.example"), ("backend", None), ("fixed.example", b"fixed.example")],
)
def test_host_policy(policy: str, host: bytes | None) -> None:
    upstream = Upstream("app", host=policy)
    with Origin(answering(response())) as origin, Proxy([origin], upstream=upstream) as proxy:
        proxy.talk(GET_CLOSE)

    expected = host or origin.address.encode()
    assert b"\r\nHost: " + expected + b"\r\n" in origin.requests[0]
    assert b"X-Forwarded-Host: a.example" in origin.requests[0]


def test_routes_and_own_answers() -> None:
    routes = [
        Route("old", path="/old", respond=Respond(308, "https://new.example/")),
        Route("post", path="/form", methods=("POST",), upstream="app"),
    ]
    listener = Listener("web", ("127.0.0.1:0",), upstream=None, ready_path="/-/ready")
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=listener, routes=routes) as proxy,
        proxy.connect() as sock,
    ):
        answers = []
        for target in (b"/old/x", b"/form", b"/else", b"/-/ready", b"/o%6cd", b"/a/../../b"):
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
            answers.append(read_response(sock))

    heads = [head for head, _ in answers]
    assert [head[9:12] for head in heads] == [b"308", b"405", b"404", b"200", b"308", b"400"]
    assert b"\r\nLocation: https://new.example/" in heads[0]
    assert b"\r\nAllow: POST" in heads[1]
    assert b"Proxy-Status: lb-00000000; error=http_request_denied" in heads[2]
    assert not origin.requests


def test_edition_swap_keeps_connections_and_serves_by_the_new_one() -> None:
    with (
        Origin(answering(response(b"one"))) as one,
        Origin(answering(response(b"two"))) as two,
        Proxy([one]) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET)
        assert read_response(sock)[1] == b"one"
        proxy.install(endpoints=[Endpoint(two.address, two.address)])
        sock.sendall(GET)
        assert read_response(sock)[1] == b"two"
        until(lambda: one.connections[0].sock.fileno() == -1, "the old backend's idle one closing")


def test_a_trusted_proxy_names_its_client_and_nobody_else_does() -> None:
    listener = Listener("web", ("127.0.0.1:0",), upstream="app", trusted_proxies=("127.0.0.0/8",))
    claims = (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.5"
        b"\r\nX-Forwarded-Proto: https\r\nX-Request-ID: abc\r\n\r\n"
    )
    with Origin(answering(response())) as origin:
        with Proxy([origin], listener=listener) as proxy:
            proxy.talk(claims)
        with Proxy([origin]) as proxy:
            proxy.talk(claims)

    believed, dropped = origin.requests
    assert b"\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.5, 127.0.0.1\r\n" in believed
    assert b"\r\nX-Forwarded-Proto: https\r\n" in believed
    assert b"\r\nX-Request-ID: abc\r\n" in believed
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in dropped
    assert b"6.6.6.6" not in dropped
    assert b"abc" not in dropped


# --- ACME by webroot --------------------------------------------------------------------------


def test_an_acme_challenge_passes_while_all_else_is_sent_to_tls(tmp_path: Path) -> None:
    """An authority asks in plain HTTP for a file; what answers it is a file server as it is."""
    token = "J5lJ_2bZ-q0Yk9xv1nq0JcLk7m9wY2-3fR8uT1o4eHs"
    folder = tmp_path / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True)
    (folder / token).write_text(f"{token}.thumbprint")

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(tmp_path))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # As inherited.
            """Say nothing."""

    routes = [
        Route("acme", path="/.well-known/acme-challenge/", upstream="app"),
        Route("rest", respond=Respond(308, location="https://a.example/")),
    ]
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"127.0.0.1:{server.server_address[1]}"
        try:
            with Proxy([Endpoint(address, address)], routes=routes) as proxy:
                ask = b"GET %b HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
                answer = proxy.talk(ask % f"/.well-known/acme-challenge/{token}".encode())
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.endswith(f"\r\n\r\n{token}.thumbprint".encode())
                for path in (b"/", b"/.well-known/acme-challenge", b"/.well-known/other"):
                    said = proxy.talk(ask % path)[:13]
                    assert said != b"HTTP/1.1 200 ", path
                assert proxy.talk(ask % b"/x").startswith(b"HTTP/1.1 308 ")
        finally:
            server.shutdown()
            thread.join(DEADLINE_S)
