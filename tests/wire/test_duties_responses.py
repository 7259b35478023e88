"""
What an intermediary owes by RFC 9110 (S) and RFC 9112 (M): the responses that it passes on.

They are judged as hard as requests, and a connection in doubt never carries another: each test
bears the number of its duty, see `test_duties_requests`.
"""

from __future__ import annotations

import re
import threading

import pytest

from lb.http1.head import REPLY_HEAD_BYTES_MAX
from lb.model import Upstream, UpstreamTimeouts
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

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"Connection: close\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE
OLD = b"GET / HTTP/1.0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def through(answered: bytes, request: bytes = GET_CLOSE) -> bytes:
    """Return what a client gets when its backend answers so."""
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy:
        return proxy.talk(request)


def refused(answered: bytes) -> None:
    """See that such an answer is a 502, and that its connection carries nothing more."""
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        for number in (1, 2):
            sock.sendall(GET)
            head, body = read_response(sock)
            assert head.startswith(b"HTTP/1.1 502 "), (head, body)
            assert b"error=http_protocol_error" in head
            assert len(origin.connections) == number
        assert proxy.idle == 0


def connections_after(answered: bytes, request: bytes = GET_CLOSE) -> int:
    """Return how many backend connections three requests on new connections took."""
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy:
        for _ in range(3):
            assert proxy.talk(request).startswith(b"HTTP/1.1 ")
        return len(origin.connections)


def fields_of(head: bytes) -> list[bytes]:
    return head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


# --- Fields -----------------------------------------------------------------------------------


def test_duty_01_every_field_that_connection_names_ends_here() -> None:
    answer = through(
        response(b"ok", b"Connection: , X-A ,,x-b", b"X-Kept: 1", b"X-A: 1", b"X-b: 2")
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nX-Kept: 1\r\n")
    assert b"x-a" not in answer.lower()
    assert b"x-b" not in answer.lower()


@pytest.mark.parametrize(
    "field",
    [
        b"Proxy-Connection: close", b"Keep-Alive: timeout=5", b"TE: trailers", b"Trailer: X",
        b"Upgrade: h2,h2c", b"Proxy-Authenticate: Basic", b"HTTP2-Settings: x",
    ],
)  # fmt: skip
def test_duty_02_fields_of_one_hop_end_here(field: bytes) -> None:
    name = b"\r\n" + field.partition(b":")[0].lower() + b":"
    assert name not in through(response(b"ok", field)).lower()


def test_duty_03_and_11_all_else_passes_in_its_order() -> None:
    own = [
        b"Set-Cookie: a=1", b"X_Odd: kept", b"set-cookie: b=2",
        b'WWW-Authenticate: Basic realm="x"',
        b"Allow: GET, BREW", b"Server: mine", b"Set-Cookie: c=\xff", b"X-Empty:", b"Via: 1.1 far",
        b"WWW-Authenticate: Negotiate", b'ETag: W/"x"', b"Content-Range: bytes 0-1/9",
    ]  # fmt: skip
    answer = through(response(b"ok", *own, status=b"206 Partial"))
    assert answer.startswith(b"HTTP/1.1 206 Partial\r\n")
    assert [field for field in fields_of(answer) if field in own] == own


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0", b"\x01", b"\x0b", b"\x7f"])
def test_duty_04_control_octets_in_a_field_are_a_502(octet: bytes) -> None:
    refused(response(b"ok", b"X: 1" + octet + b"2"))


def test_duty_08_we_speak_1_1_whatever_the_backend_speaks() -> None:
    for request in (GET_CLOSE, OLD):
        answer = through(b"HTTP/1.0 200 Fine\r\nContent-Length: 2\r\n\r\nok", request)
        assert answer.startswith(b"HTTP/1.1 200 Fine\r\n")


def test_duty_10_content_is_left_alone() -> None:
    body = b"\x1f\x8b\x08 not really \0\xff\r\n"
    own = [b"Content-Encoding: gzip", b"Cache-Control: no-transform", b"Content-Type: x"]
    answer = through(response(body, *own))
    assert answer.endswith(b"\r\n\r\n" + body)
    assert [field for field in fields_of(answer) if field in own] == own


def test_duty_16_date_is_added_where_it_is_missing() -> None:
    dates = re.findall(rb"(?i)date: ([^\r]*)", through(response()))
    assert len(dates) == 1
    assert re.fullmatch(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", dates[0])
    dates = re.findall(rb"(?i)date: ([^\r]*)", through(response(b"", b"date: long ago")))
    assert dates == [b"long ago"]


# --- Framing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"", b"+2", b"-2", b"2, 2", b"2,3", b"0x2", b"2 2", b"9" * 40, b"two", b"1" * 20],
)  # fmt: skip
def test_duty_18_and_22_a_length_that_is_none_is_a_502(value: bytes) -> None:
    refused(b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\nok")


def test_duty_18_two_lengths() -> None:
    for second in (b"1", b"2", b"02"):
        twice = b"Content-Length: 2\r\nContent-Length: " + second
        refused(b"HTTP/1.1 200 OK\r\n" + twice + b"\r\n\r\nok")
    answer = through(b"HTTP/1.1 200 OK\r\nContent-Length: 002\r\n\r\nok")
    assert answer.count(b"Content-Length: 2\r\n") == 1


@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n", b"Content-Length: 5\r\n"])
def test_duty_19_no_length_and_no_chunks_in_204(length: bytes) -> None:
    for coding in (b"", b"Transfer-Encoding: chunked\r\n"):
        if not (length and coding):
            answer = through(b"HTTP/1.1 204 No Content\r\n" + length + coding + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 204 ")
            assert b"content-length" not in answer.lower()
            assert b"transfer-encoding" not in answer.lower()


def test_duty_19_no_length_and_no_chunks_in_1xx() -> None:
    for field in (b"Content-Length: 5", b"Transfer-Encoding: chunked"):
        answer = through(b"HTTP/1.1 103 Hints\r\nX: y\r\n" + field + b"\r\n\r\n" + response())
        assert answer.startswith(b"HTTP/1.1 103 Hints\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("length", [b"2", b"0", b"x"])
def test_duty_20_length_beside_chunked_is_a_502(length: bytes) -> None:
    body = b"\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    pair = [b"Content-Length: " + length, b"Transfer-Encoding: chunked"]
    for fields in (pair, pair[::-1]):
        refused(b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(fields) + body)


@pytest.mark.parametrize(
    "coding",
    [
        b"gzip", b"identity", b"gzip, chunked", b"chunked, chunked", b"xchunked", b"",
        b"chunked;a", b"\x0bchunked", b"chunked\r\nTransfer-Encoding: chunked",
        b"chunked\r\nTransfer-Encoding: x",
    ],
)  # fmt: skip
def test_duty_21_a_coding_other_than_chunked_is_a_502(coding: bytes) -> None:
    refused(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "answered",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        CHUNKED + b"9\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n",
        CHUNKED + b"4\r\nhalf\r\n0\r\n",
        CHUNKED + b"4\r\nhalf\r\n0\r\nX: y\r\n",
    ],
)
def test_duty_23_a_short_response_never_looks_whole(answered: bytes) -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(answered)

    with Origin(script) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(GET)  # It asks for more; the connection ends all the same.
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"half" in answer
        assert b"\r\n0\r\n" not in answer
        assert proxy.idle == 0
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    "chunks",
    [b"x\r\n", b"+2\r\nok\r\n", b"2\nok\n0\n\n", b"1\r\nok\r\n0\r\n\r\n", b"f" * 17 + b"\r\n",
     b"2;" + b"x" * 300 + b"\r\nok\r\n0\r\n\r\n", b"0\r\n" + b"X: y\r\n" * 3000 + b"\r\n"],
)  # fmt: skip
def test_duty_24_chunks_that_are_none_end_both_connections(chunks: bytes) -> None:
    answer = through(CHUNKED + chunks)
    assert answer.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 200 "))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not (answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"0\r\n\r\n"))


def test_duty_25_and_26_trailers_end_here_and_old_clients_get_no_chunks() -> None:
    answered = CHUNKED + b"2;x\r\nok\r\n0\r\nSet-Cookie: evil\r\n\r\n"
    assert through(answered).endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    old = through(answered, OLD)
    assert old.endswith(b"\r\n\r\nok")
    assert b"Transfer-Encoding" not in old
    assert b"\r\nConnection: close\r\n" in old


# --- Heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"X : 1", b"X\t: 1", b"Content-Length : 2", b" X: 1", b": 1", b"no colon", b"X\xc3: 1",
        b"X: 1\r\n folded", b"X: 1\r\n\tfolded", b"X: 1\nY: 2", b"X: 1\rY: 2",
    ],
)  # fmt: skip
def test_duty_29_30_and_31_lines_that_are_none_are_a_502(line: bytes) -> None:
    refused(b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/2 200 OK", b"HTTP/1.2 200 OK", b"HTTP/0.9 200 OK", b"http/1.1 200 OK",
        b"HTTP/1.1  200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 099 OK",
        b"HTTP/1.1 +20 OK", b"HTTP/1.1 200OK", b"HTTP/1.1 OK", b"HTTP/1.1 200 O\0K",
        b" HTTP/1.1 200",
        b"ICY 200 OK", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1\t200 OK",
    ],
)  # fmt: skip
def test_duty_31_status_lines_that_are_none_are_a_502(line: bytes) -> None:
    refused(line + b"\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize("text", [b"200", b"200 ", b"200 \xc3\xa4 ok", b"299 X", b"599", b"999 X"])
def test_duty_31_codes_and_reasons_pass_as_they_came(text: bytes) -> None:
    answer = through(b"HTTP/1.1 " + text + b"\r\nContent-Length: 2\r\n\r\nok")
    assert answer.startswith(b"HTTP/1.1 " + text + b"\r\n")


@pytest.mark.parametrize("whole", [True, False])
def test_an_oversized_head_is_a_502(whole: bool) -> None:
    big = b"HTTP/1.1 200 OK\r\nX: " + b"y" * REPLY_HEAD_BYTES_MAX
    answer = through(big + (b"\r\nContent-Length: 0\r\n\r\n" if whole else b""))
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"65536" in answer
    many = response(b"ok", *[b"X: y"] * 300)
    assert through(many).startswith(b"HTTP/1.1 502 ")
    most = response(b"ok", *[b"X: y"] * 200)
    assert through(most).startswith(b"HTTP/1.1 200 ")


# --- Without a body, and to the end of the connection -----------------------------------------


@pytest.mark.parametrize(
    ("method", "answered"),
    [
        (b"HEAD", response(b"a body that HEAD may not have")),
        (b"HEAD", CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok"),
        (b"GET", b"HTTP/1.1 304 Not\r\nContent-Length: 2\r\n\r\nok"),
        (b"GET", response(b"ok") + b"more"),
        (b"GET", response(b"ok") + response(b"an answer that nobody asked for")),
        (b"GET", CHUNKED + b"0\r\n\r\n\r\n"),
    ],
)
def test_octets_after_the_end_reach_nobody(method: bytes, answered: bytes) -> None:
    request = method + b" / HTTP/1.1\r\nHost: a\r\n\r\n"
    with Origin(answering(answered)) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(request * 2)
        sock.sendall(request.replace(b"\r\n\r\n", b"\r\n" + CLOSE))
        answer = read_all(sock)
        assert proxy.idle == 0
    assert len(origin.connections) == 3
    assert answer.count(b"HTTP/1.1 ") == 3
    assert not re.search(rb"may not|more|nobody", answer)


@pytest.mark.parametrize(
    ("answered", "request_", "connections"),
    [
        (response(), GET_CLOSE, 1),
        (response(b"ok", b"Connection: close"), GET_CLOSE, 3),
        (response(b"ok", b"Connection: Keep-Alive, CLOSE"), GET_CLOSE, 3),
        (response().replace(b"1.1", b"1.0"), GET_CLOSE, 3),
        (response(b"ok", b"Connection: keep-alive").replace(b"1.1", b"1.0"), GET_CLOSE, 1),
        (response(b"ok", b"Keep-Alive: timeout=0"), GET_CLOSE, 3),
        (b"HTTP/1.1 304 Not\r\nTransfer-Encoding: chunked\r\n\r\n", GET_CLOSE, 1),
        (response(b"no", status=b"500 No"), GET_CLOSE, 1),
    ],
)
def test_duty_35_which_connections_are_kept(
    answered: bytes, request_: bytes, connections: int
) -> None:
    assert connections_after(answered, request_) == connections


def test_a_body_to_the_end_of_its_connection() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nall ")
        connection.send(b"of it")

    with Origin(script) as origin, Proxy([origin]) as proxy:
        new, old = proxy.talk(GET_CLOSE), proxy.talk(OLD)
        head = proxy.talk(b"HEAD / HTTP/1.1\r\nHost: a\r\n" + CLOSE)
        assert proxy.idle == 0
    assert re.sub(rb"\r\n\d\r\n|\r\n0\r\n\r\n", b"", new.partition(b"\r\n\r\n")[2])
    assert new.endswith(b"\r\n0\r\n\r\n")
    assert old.endswith(b"\r\n\r\nall of it")
    assert head.endswith(b"\r\n\r\n")


def test_a_body_to_the_end_that_is_reset_is_not_taken_for_whole() -> None:
    got = threading.Event()

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        got.wait(DEADLINE_S)
        connection.reset()

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(GET)
        answer = b""
        while not answer.endswith(b"half\r\n"):
            answer += sock.recv(1000)
        got.set()
        assert read_all(sock) == b"", "no last chunk"


# --- 1xx --------------------------------------------------------------------------------------


def test_duty_14_all_interim_answers_pass_in_order() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n"
    more = b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\nHTTP/1.1 199 Odd\r\n\r\n"
    answer = through(interim + more + response())
    assert answer.startswith(interim + more + b"HTTP/1.1 200 OK\r\n")


def test_duty_14_fields_of_one_hop_end_here_in_1xx_too() -> None:
    answer = through(
        b"HTTP/1.1 103 E\r\nConnection: X-A\r\nX-A: 1\r\nKeep-Alive: x\r\n\r\n" + response()
    )
    assert answer.startswith(b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_an_interim_answer_without_a_final_one() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 103 Early\r\n\r\n")

    with Origin(script) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(GET_CLOSE)
    assert answer.startswith(b"HTTP/1.1 103 Early\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 0
    assert len(origin.requests) == 1, "it had begun, so nobody else may be asked"


@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"])
def test_duty_37_a_101_that_nobody_asked_for_is_a_502(upgrade: bytes) -> None:
    answer = through(b"HTTP/1.1 101 Switching\r\n" + upgrade + b"\r\nraw octets")
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"raw octets" not in answer


# --- Before it was asked ----------------------------------------------------------------------


def test_duty_34_an_answer_before_the_question_is_nobodys() -> None:
    """It comes with the connection, before a request was written."""

    def script(connection: Connection, number: int) -> None:
        connection.send(response(b"poison"))
        while connection.request() is not None:
            connection.send(response(b"good"))

    with Origin(script) as origin, Proxy([origin]) as proxy:
        answers = []
        for _ in range(4):
            answers.append(proxy.talk(GET_CLOSE))
            until(lambda: proxy.idle == 0, "a connection with octets on it is closed")
    # What arrives together with the request's leaving cannot be told from its answer; the
    # good one that follows must be nobody's.
    assert all(answer.count(b"HTTP/1.1 ") == 1 for answer in answers)
    assert len(origin.connections) >= 4


def test_duty_34_octets_on_an_idle_connection_end_it() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(response(b"good"))
        spoken.wait(DEADLINE_S)
        connection.send(response(b"poison"))
        connection.request()

    spoken = threading.Event()
    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        sock.sendall(GET)
        read_response(sock)
        until(lambda: proxy.idle == 1, "its connection kept")
        spoken.set()
        until(lambda: proxy.idle == 0, "and given up")
        sock.sendall(GET)
        assert read_response(sock)[1] == b"good"


def test_duty_17_which_codes_are_ours() -> None:
    """503 and 504 are made here and never 421; a backend's own 421 passes."""
    with Proxy([]) as proxy:
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 503 ")
    upstream = Upstream("app", timeouts=UpstreamTimeouts(response=0.1))

    def silent(connection: Connection, number: int) -> None:
        connection.request()
        connection.request()

    with Origin(silent) as origin, Proxy([origin], upstream=upstream) as proxy:
        assert proxy.talk(GET_CLOSE).startswith(b"HTTP/1.1 504 ")
    assert through(response(status=b"421 Misdirected")).startswith(b"HTTP/1.1 421 ")


def test_a_head_that_repeats_is_not_read_into_the_next_one() -> None:
    """Responses with equal heads are read once: their bodies differ all the same."""

    def script(connection: Connection, number: int) -> None:
        for body in (b"one", b"two", b"six"):
            connection.request()
            connection.send(response(body))
        connection.request()

    with Origin(script) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        bodies = []
        for _ in range(3):
            sock.sendall(GET)
            bodies.append(read_response(sock)[1])
    assert bodies == [b"one", b"two", b"six"]
