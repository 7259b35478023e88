"""From octets to facts: `lb.http1.head`, and what `forwarding` makes of them."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import BackendError, ClientError
from lb.http1.forwarding import request_block, response_framing, response_head
from lb.http1.head import (
    RequestHead,
    cookie_value,
    field_values,
    judge_request,
    read_request_fields,
    read_request_line,
    read_response_fields,
    read_status_line,
    split_absolute,
)
from lb.http1.peers import direct

TOKEN = st.text("abcXYZ019-!#$", min_size=1, max_size=12).map(str.encode)
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20).map(str.encode)


@given(st.lists(st.tuples(TOKEN, VALUE), max_size=20))
def test_unknown_fields_go_on_as_they_came(fields: list[tuple[bytes, bytes]]) -> None:
    known = {b"via", b"host", b"te"}
    fields = [(name, value) for name, value in fields if name.lower() not in known]
    block = b"".join(b"\r\n%b: %b" % field for field in fields) + b"\r\n"

    read = read_request_fields(block, 100)

    assert read.kept == block[:-2]


@given(st.lists(st.tuples(TOKEN, VALUE), max_size=10), VALUE)
def test_what_goes_out_is_read_alike_by_another_parser(
    fields: list[tuple[bytes, bytes]], path: bytes
) -> None:
    reserved = {b"via", b"host", b"te"}
    fields = [(name, value) for name, value in fields if name.lower() not in reserved]
    block = b"\r\nHost: a.example" + b"".join(b"\r\n%b: %b" % f for f in fields) + b"\r\n"
    head = RequestHead(b"", b"GET", b"/", 1, read_request_fields(block, 100))

    out = request_block(head, host=b"a.example", peer=direct("192.0.2.1"), via=b"lb-1")

    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET /" + path.replace(b"?", b"") + b" HTTP/1.1" + out)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    got = [field for field in request.headers if not field[0].startswith(b"x-forwarded")]
    expected = [(name.lower(), value) for name, value in fields]
    assert got == [(b"host", b"a.example"), *expected, (b"via", b"1.1 lb-1")]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1\r\n", None),
        (b"GET  / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1 \r\n", 400),
        (b"GET /a b HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.12\r\n", 400),
        (b"GET / http/1.1\r\n", 400),
        (b"G(T / HTTP/1.1\r\n", 400),
        (b"GET /\x7f HTTP/1.1\r\n", 400),
        (b"GET / HTTP/0.9\r\n", 400),
        (b"GET / HTTP/3.0\r\n", 505),
    ],
)
def test_request_lines(line: bytes, status: int | None) -> None:
    if status is None:
        assert read_request_line(line) == (b"GET", b"/", 1, len(line) - 2)
    else:
        with pytest.raises(ClientError) as raised:
            read_request_line(line)
        assert raised.value.status == status


def test_newer_minor_versions_are_spoken_to_as_1_1() -> None:
    assert read_request_line(b"GET / HTTP/1.7\r\n")[2] == 1


@pytest.mark.parametrize(
    "value", [b"", b"+1", b"-1", b"1 2", b"1,1", b"0x1", b"1_0", b"\xb2", b"9" * 19, b"1.0"]
)
def test_lengths_that_are_none(value: bytes) -> None:
    block = b"\r\nContent-Length: " + value + b"\r\n"

    with pytest.raises(ClientError):
        read_request_fields(block, 100)
    with pytest.raises(BackendError):
        read_response_fields(block)


def test_equal_lengths_of_a_response_are_one() -> None:
    read = read_response_fields(b"\r\nContent-Length: 42\r\nContent-Length: 42\r\n")

    assert response_framing(200, read, minor=1, open_ended=False) == b"\r\nContent-Length: 42"
    with pytest.raises(BackendError):
        read_response_fields(b"\r\nContent-Length: 42\r\nContent-Length: 43\r\n")


def test_connection_cannot_take_out_what_routes_or_frames() -> None:
    block = (
        b"\r\nHost: a\r\nConnection: host, content-length, X-A\r\nX-A: 1\r\nContent-Length: 3\r\n"
    )

    read = read_request_fields(block, 100)

    assert read.host == b"a"
    assert read.length == 3
    assert read.kept == b""


@given(st.binary(max_size=120))
def test_any_octets_are_a_head_or_the_clients_fault(octets: bytes) -> None:
    head = octets + b"\r\n\r\n"
    try:
        _, _, _, end = read_request_line(head)
        judge_request(head)
        read_request_fields(head[end:-2], 100)
    except ClientError:
        pass
    try:
        read_status_line(head)
        read_response_fields(b"\r\n" + octets + b"\r\n")
    except BackendError:
        pass


def test_values_and_cookies() -> None:
    block = b"\r\nCookie: a=1; b=2\r\nX-A:  one \r\nCOOKIE: c=3\r\nx-a: two\r\n"

    assert field_values(block, b"x-a") == [b"one", b"two"]
    assert [cookie_value(block, name) for name in (b"a", b"b", b"c", b"d")] == [
        b"1",
        b"2",
        b"3",
        None,
    ]


def test_absolute_targets() -> None:
    assert split_absolute(b"http://a:80/p?q") == (b"a:80", b"/p?q")
    assert split_absolute(b"HTTPS://a?q") == (b"a", b"/?q")
    for target in (b"ftp://a/", b"a:80", b"http:///p", b"http://u@a/", b"*"):
        with pytest.raises(ClientError):
            split_absolute(target)


def test_response_head_gets_a_date_only_where_it_has_none() -> None:
    dated = read_response_fields(b"\r\nDate: then\r\n")
    undated = read_response_fields(b"\r\nX: 1\r\n")

    assert response_head(b"200 OK", dated, b"", b"now", close=False).count(b"Date") == 1
    assert b"Date: now" in response_head(b"200 OK", undated, b"", b"now", close=False)
