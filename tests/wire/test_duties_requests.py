"""
What an intermediary owes by RFC 9110 (S) and RFC 9112 (M): the requests that it passes on.

Each test bears the number of its duty. The duties that other files hold are in `ELSEWHERE`,
and one test sees to it that none of the 37 is without a test.
"""

from __future__ import annotations

import importlib
import re

import pytest

from lb.model import Endpoint
from wire.kit import Connection, Origin, Proxy, answering, read_all, read_response, response, until

DUTIES = 37
HERE = ("wire.test_duties_requests", "wire.test_duties_responses")
ELSEWHERE = {
    1: ("wire.test_forward.test_what_ends_here_is_not_passed_on",),
    3: ("wire.test_forward.test_what_ends_here_is_not_passed_on",),
    4: ("wire.test_failures.test_bad_requests", "wire.test_failures.test_bad_responses"),
    9: ("wire.test_forward.test_request_and_response_pass",),
    12: ("wire.test_failures.test_backend_that_closes_exactly_at_reuse",),
    13: ("wire.test_forward.test_expectation_goes_on_and_its_answer_comes_back",),
    14: ("wire.test_forward.test_interim_responses_pass_but_not_to_an_old_client",),
    17: ("wire.test_failures.test_all_backends_refuse",),
    23: ("wire.test_failures.test_client_gone_mid_upload_ends_the_backend_request",),
    24: ("wire.test_forward.test_uploads", "test_framing.test_malformed_chunks"),
    25: ("wire.test_forward.test_chunked_response_is_framed_anew",),
    26: ("wire.test_forward.test_old_client_gets_no_chunks_and_a_close",),
    28: ("wire.test_forward.test_absolute_form_decides_the_host",),
    32: ("wire.test_forward.test_early_answer_reaches_a_client_that_still_sends",),
    34: (
        "wire.test_pathologies.test_what_a_backend_says_to_an_idle_connection_is_no_answer",
        "wire.test_forward.test_pipelined_requests_are_answered_in_order",
    ),
    35: ("wire.test_tunnel.test_octets_pass_both_ways_after_an_upgrade",),
    37: (
        "wire.test_tunnel.test_what_may_not_be_asked_is_taken_off_and_an_unasked_101_is_refused",
        "wire.test_tunnel.test_a_101_for_another_protocol_is_refused",
        "wire.test_tunnel.test_a_route_may_allow_other_protocols_or_none",
    ),
}
LAST = b"Connection: close\r\n\r\n"


def request(*fields: bytes, line: bytes = b"GET / HTTP/1.1", body: bytes = b"") -> bytes:
    """Return a request that ends its connection."""
    lines = b"".join(field + b"\r\n" for field in (line, b"Host: a", *fields))
    return lines + LAST + body


def through(*requests: bytes) -> tuple[list[bytes], list[bytes]]:
    """Send each request on a connection of its own; return the answers, and what came through."""
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        answers = [proxy.talk(each) for each in requests]
    return answers, origin.requests


def refused(octets: bytes, status: int = 400) -> None:
    """See that a request is answered by us, that its connection ends, and that nobody gets it."""
    answers, passed = through(octets + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answers[0].startswith(b"HTTP/1.1 %d " % status), answers[0][:100]
    assert answers[0].count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answers[0]
    assert not passed


def fields_of(head: bytes) -> list[bytes]:
    return head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


def values(head: bytes, name: bytes) -> list[bytes]:
    """Return the values of all fields of a name."""
    pairs = [field.partition(b":") for field in fields_of(head)]
    return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]


def test_every_duty_has_a_test() -> None:
    covered = set(ELSEWHERE)
    for name in HERE:
        tests = [each for each in dir(importlib.import_module(name)) if each.startswith("test_")]
        covered |= {int(n) for each in tests for n in re.findall(r"_(\d\d)(?=_)", each)}
    for paths in ELSEWHERE.values():
        for path in paths:
            module, _, test = path.rpartition(".")
            assert hasattr(importlib.import_module(module), test), path
    assert covered == set(range(1, DUTIES + 1))


# --- Fields -----------------------------------------------------------------------------------


def test_duty_01_every_field_that_connection_names_ends_here() -> None:
    sent = request(b"Connection: X-A , ,x-b", b"X-A: 1", b"X-B: 2", b"x-b: 3", b"X-AB: stays")
    _, [passed] = through(sent)
    assert values(passed, b"X-AB") == [b"stays"]
    assert not values(passed, b"X-A") + values(passed, b"X-B") + values(passed, b"Connection")


@pytest.mark.parametrize("name", [b"Host", b"Content-Length", b"Via", b"Transfer-Encoding"])
def test_duty_01_connection_cannot_take_out_what_frames_or_routes(name: bytes) -> None:
    body = b"Content-Length: 4"
    sent = request(
        b"Connection: " + name, b"Via: 1.1 x", body, line=b"POST / HTTP/1.1", body=b"body"
    )
    _, [passed] = through(sent)
    assert values(passed, b"Host") == [b"a"]
    assert values(passed, b"Content-Length") == [b"4"]
    assert values(passed, b"Via") == [b"1.1 x, 1.1 lb-00000000"]


@pytest.mark.parametrize(
    "field",
    [
        b"Proxy-Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"TE: trailers, deflate",
        b"Trailer: X-Sum",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQAAP__",
        b"Proxy-Authorization: Basic eDp5",
    ],
)
def test_duty_02_fields_of_one_hop_are_dropped_unnamed_too(field: bytes) -> None:
    _, [passed] = through(request(field))
    assert not values(passed, field.partition(b":")[0])


def test_duty_03_unknown_fields_pass_and_keep_their_order() -> None:
    sent = [b"X-Odd!#$%&'*+.^`|~: \x80\xff", b"Cookie: a=1", b"X-Empty:", b"cookie: b=2", b"X: 1"]
    _, [passed] = through(request(*sent, b"x: 2", b"X:\t3 "))
    kept = [field for field in fields_of(passed) if field[:1] in b"XxCc"]
    kept = [field for field in kept if not field.startswith((b"X-Request", b"X-Forwarded"))]
    assert kept == [*sent, b"x: 2", b"X:\t3 "]


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0"])
@pytest.mark.parametrize("place", [b"X-%b: 1", b"X: 1%b2", b"X: 1%b"])
def test_duty_04_cr_lf_and_nul_in_a_field_are_refused(octet: bytes, place: bytes) -> None:
    refused(request(place % octet))


@pytest.mark.parametrize("octet", [b"\x01", b"\x0b", b"\x0c", b"\x1b", b"\x7f"])
def test_duty_04_other_control_octets_are_refused_too(octet: bytes) -> None:
    refused(request(b"X: 1" + octet))


def test_duty_05_a_request_may_come_through_us_but_not_for_ever() -> None:
    ours = b"1.1 lb-00000000"
    answers, passed = through(
        request(b"Via: " + b", ".join([ours] * 3)),
        request(b"Via: " + b", ".join([ours] * 4)),
        request(*[b"Via: " + ours] * 4),
    )
    assert [answer[9:12] for answer in answers] == [b"200", b"508", b"508"]
    assert len(passed) == 1


def test_duty_05_who_routes_to_oneself_gets_an_answer() -> None:
    with Proxy([]) as proxy:
        proxy.install(endpoints=[Endpoint("self", f"127.0.0.1:{proxy.port}")])
        assert proxy.talk(request()).startswith(b"HTTP/1.1 508 ")


def test_duty_06_via_is_one_line_and_ours_comes_last() -> None:
    _, [passed] = through(request(b"Via: 1.0 a", b"X: y", b"via: 2 b"))
    assert values(passed, b"Via") == [b"1.0 a, 2 b, 1.1 lb-00000000"]


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE"])
def test_duty_07_max_forwards_counts_down_and_ends_at_us(method: bytes) -> None:
    line = method + b" / HTTP/1.1"
    answers, passed = through(
        request(b"Max-Forwards: 2", line=line), request(b"Max-Forwards: 0", line=line)
    )
    assert [values(each, b"Max-Forwards") for each in passed] == [[b"1"]]
    assert answers[1][9:12] == (b"200" if method == b"OPTIONS" else b"405")
    assert b"\r\nAllow:" in answers[1] or method == b"OPTIONS"


def test_duty_07_max_forwards_of_other_methods_is_left_alone() -> None:
    _, passed = through(request(b"Max-Forwards: 0"))
    assert [values(each, b"Max-Forwards") for each in passed] == [[b"0"]]


@pytest.mark.parametrize("value", [b"-1", b"1, 1", b"", b"x", b"9" * 30])
def test_duty_07_max_forwards_that_is_no_number_is_refused(value: bytes) -> None:
    refused(request(b"Max-Forwards: " + value, line=b"OPTIONS / HTTP/1.1"))


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_duty_08_we_speak_1_1_whatever_the_client_speaks(version: bytes) -> None:
    answers, [passed] = through(request(line=b"GET / " + version))
    assert passed.startswith(b"GET / HTTP/1.1\r\n")
    assert answers[0].startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "target",
    [
        b"/a%2Fb%2fc", b"/%7Euser/%7euser", b"//double///slash", b"/a/./b/../c", b"/?q=%zz&a=[]|^",
        b"/;a=b/c;d", b"/caf%C3%A9", b"/a?b?c=d//../e", b"/%25%32%65", b"/x|y\"z<>`{}^",
    ],
)  # fmt: skip
def test_duty_09_path_and_query_go_on_to_the_octet(target: bytes) -> None:
    _, [passed] = through(request(line=b"GET " + target + b" HTTP/1.1"))
    assert passed.startswith(b"GET " + target + b" HTTP/1.1\r\n")


def test_duty_10_and_11_content_and_credentials_are_left_alone() -> None:
    body = b"\x1f\x8b\x08 not really \0\xff"
    own = [
        b"Authorization: Digest a=b, c=\"d\"", b"Cache-Control: no-transform",
        b"Accept-Encoding: gzip;q=0.5, br", b"Content-Encoding: gzip", b"Content-MD5: x",
    ]  # fmt: skip
    line = b"PUT / HTTP/1.1"
    sent = request(*own, b"Content-Length: %d" % len(body), line=line, body=body)
    _, [passed] = through(sent)
    assert passed.endswith(b"\r\n\r\n" + body)
    assert [field for field in fields_of(passed) if field in own] == own


def test_duty_15_conditions_and_ranges_go_on() -> None:
    own = [
        b'If-Match: "a"', b'If-None-Match: W/"b", *', b"If-Modified-Since: yesterday",
        b"If-Unmodified-Since: Tue, 15 Nov 1994 12:45:26 GMT", b'If-Range: "c"',
        b"Range: bytes=0-0,-1",
    ]  # fmt: skip
    _, [passed] = through(request(*own))
    assert [field for field in fields_of(passed) if field in own] == own


# --- Framing ----------------------------------------------------------------------------------

BAD_LENGTHS = [
    b"", b"+4", b"-4", b"4,4", b"4, 4", b"0x4", b"4 4", b"4.0", b"4;", b"\x0b4", b"4_0", b"'4'",
    b"18446744073709551620", b"9" * 40, b"\xd9\xa4", b"\xb2", b"4\t;",
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_LENGTHS)
def test_duty_18_and_22_a_length_that_is_none_is_refused(value: bytes) -> None:
    refused(request(b"Content-Length: " + value, line=b"POST / HTTP/1.1", body=b"body"))


@pytest.mark.parametrize("second", [b"4", b"04", b"5", b"0"])
def test_duty_18_two_lengths_are_refused_equal_or_not(second: bytes) -> None:
    lengths = (b"Content-Length: 4", b"content-length:" + second)
    refused(request(*lengths, line=b"POST / HTTP/1.1", body=b"body"))


@pytest.mark.parametrize(
    ("value", "goes_on"), [(b"4", b"4"), (b"0004", b"4"), (b"\t4\t ", b"4"), (b"0", b"0")]
)
def test_duty_18_a_length_goes_on_in_its_plain_form(value: bytes, goes_on: bytes) -> None:
    sent = request(b"Content-Length:" + value, line=b"POST / HTTP/1.1", body=b"body"[: int(value)])
    _, [passed] = through(sent)
    assert values(passed, b"Content-Length") == [goes_on]


CHUNKS = b"4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (b"Transfer-Encoding: gzip", 400),
        (b"Transfer-Encoding: identity", 400),
        (b"Transfer-Encoding:", 400),
        (b"Transfer-Encoding: chunked, identity", 400),
        (b"Transfer-Encoding: chunked, gzip", 400),
        (b"Transfer-Encoding: gzip, chunked", 501),
        (b"Transfer-Encoding: chunked, chunked", 400),
        (b"Transfer-Encoding: identity, chunked", 501),
        (b"Transfer-Encoding: ,chunked", 501),
        (b"Transfer-Encoding: chunked,", 400),
        (b"Transfer-Encoding: xchunked", 400),
        (b"Transfer-Encoding: chunkedx", 400),
        (b"Transfer-Encoding: chunked;q=1", 400),
        (b"Transfer-Encoding: \"chunked\"", 400),
        (b"Transfer-Encoding: \x0bchunked", 400),
        (b"Transfer-Encoding: \x00chunked", 400),
        (b"Transfer-Encoding: chunked\x0c", 400),
        (b"Transfer-Encoding: \xa0chunked", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
        (b"Transfer-Encoding:\r\n chunked", 400),
        (b"Transfer-Encoding : chunked", 400),
        (b" Transfer-Encoding: chunked", 400),
        (b"X: y\nTransfer-Encoding: chunked", 400),
        (b"X: y\rTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: chunked\nX: y", 400),
        (b"\x00Transfer-Encoding: chunked", 400),
        (b"Transfer-Encoding\x00: chunked", 400),
        (b"Transfer-Encoding\t: chunked", 400),
    ],
)  # fmt: skip
def test_duty_21_no_spelling_of_transfer_encoding_but_one(coding: bytes, status: int) -> None:
    refused(request(coding, line=b"POST / HTTP/1.1", body=CHUNKS), status)


@pytest.mark.parametrize("coding", [b"Transfer_Encoding: chunked", b"Transfer-Encodin: chunked"])
def test_duty_21_what_only_looks_like_a_coding_frames_nothing(coding: bytes) -> None:
    sent = request(coding, b"Content-Length: 4", line=b"POST / HTTP/1.1", body=b"body")
    _, [passed] = through(sent)
    assert passed.endswith(b"\r\n\r\nbody")
    assert b"Transfer_" not in passed


@pytest.mark.parametrize("spelling", [b"Chunked", b"CHUNKED", b"  chunked "])
def test_duty_21_the_coding_goes_on_in_its_plain_form(spelling: bytes) -> None:
    sent = request(b"TRANSFER-ENCODING:" + spelling, line=b"POST / HTTP/1.1", body=CHUNKS)
    _, [passed] = through(sent)
    assert values(passed, b"Transfer-Encoding") == [b"chunked"]
    assert passed.endswith(b"\r\n\r\n" + CHUNKS)


@pytest.mark.parametrize("length", [b"4", b"0", b"x"])
@pytest.mark.parametrize("first", [True, False])
def test_duty_20_length_beside_chunked_is_refused(length: bytes, first: bool) -> None:
    pair = [b"Content-Length: " + length, b"Transfer-Encoding: chunked"]
    refused(request(*(pair if first else pair[::-1]), line=b"POST / HTTP/1.1", body=CHUNKS))


def test_duty_20_chunked_in_http_1_0_is_refused() -> None:
    refused(request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0", body=CHUNKS))


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
def test_duty_23_half_a_body_is_never_pooled_nor_taken_for_a_whole(framing: bytes) -> None:
    ends: list[bytes | None] = []

    def script(connection: Connection, number: int) -> None:
        connection._until(b"\r\n\r\n")
        ends.append(connection._until(b"end of the body"))

    with Origin(script) as origin, Proxy([origin]) as proxy:
        with proxy.connect() as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n4\r\nha")
            until(lambda: proxy.busy == 1, "half of it at the backend")
        until(lambda: ends == [None], "its end")
        assert proxy.idle == 0


@pytest.mark.parametrize(
    "chunks",
    [
        b"+4\r\nbody\r\n0\r\n\r\n",
        b"-4\r\nbody\r\n0\r\n\r\n",
        b" 4\r\nbody\r\n0\r\n\r\n",
        b"0x4\r\nbody\r\n0\r\n\r\n",
        b"4\nbody\n0\n\n",
        b"4\r\nbody\n0\r\n\r\n",
        b"4\r\nbody!\r\n0\r\n\r\n",
        b"3\r\nbody\r\n0\r\n\r\n",
        b"\r\nbody\r\n0\r\n\r\n",
        b"4;\n\r\nbody\r\n0\r\n\r\n",
        b"4;x\0\r\nbody\r\n0\r\n\r\n",
        b"ffffffffffffffff4\r\nbody\r\n0\r\n\r\n",
        b"10000000000000004\r\nbody\r\n0\r\n\r\n",
        b"4;" + b"x" * 300 + b"\r\nbody\r\n0\r\n\r\n",
        b"4\r\nbody\r\n0\r\nX : y\r\n\r\n",
        b"4\r\nbody\r\n0\r\n folded\r\n\r\n",
        b"4\r\nbody\r\n0\r\nno colon\r\n\r\n",
        b"4\r\nbody\r\n0\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
    ],
)
def test_duty_24_and_25_chunks_and_trailers_that_are_none(chunks: bytes) -> None:
    sent = request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1", body=chunks)
    answers, passed = through(sent + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answers[0].startswith(b"HTTP/1.1 400 "), answers[0][:100]
    assert answers[0].count(b"HTTP/1.1 ") == 1
    assert not any(b"smuggled" in each or each.endswith(b"0\r\n\r\n") for each in passed)


def test_duty_24_and_25_extensions_and_trailers_end_here() -> None:
    chunks = b'0004;a="b;\x80"\r\nbody\r\n00;last\r\nHost: evil\r\nContent-Length: 3\r\n\r\n'
    sent = request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1", body=chunks)
    _, [passed] = through(sent)
    assert passed.endswith(b"\r\n\r\n" + CHUNKS)
    assert values(passed, b"Host") == [b"a"]


# --- Start line and Host ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "hosts",
    [
        [], [b"a", b"a"], [b"a", b"b"], [b"a b"], [b"a/b"], [b"a?b"], [b"a#b"],
        [b"u@a"], [b"a:80:80"], [b"a:http"], [b"a:-1"], [b"[::1"], [b"[x]"], [b"a\\b"],
        [b"\xc3\xa4"], [b"a\tb"], [b"<a>"], [b'"a"'],
    ],
)  # fmt: skip
def test_duty_27_host_is_there_once_and_a_host(hosts: list[bytes]) -> None:
    lines = b"".join(b"Host: " + host + b"\r\n" for host in hosts)
    refused(b"GET / HTTP/1.1\r\n" + lines + LAST)


@pytest.mark.parametrize("host", [b"a:", b"a:8080", b"[::1]:80", b"A.Example.", b"127.0.0.1"])
def test_duty_27_a_host_goes_on_as_it_came(host: bytes) -> None:
    _, [passed] = through(b"GET / HTTP/1.1\r\nhost:" + host + b"\r\n" + LAST)
    assert values(passed, b"Host") == [host]


def test_duty_27_an_old_client_need_not_say_a_host() -> None:
    answers, [passed] = through(b"GET / HTTP/1.0\r\n\r\n")
    assert answers[0].startswith(b"HTTP/1.1 200 ")
    assert re.fullmatch(rb"127\.0\.0\.1:[0-9]+", values(passed, b"Host")[0])


@pytest.mark.parametrize(
    ("line", "goes_on", "host"),
    [
        (b"GET http://b:81/p?q HTTP/1.1", b"GET /p?q HTTP/1.1", b"b:81"),
        (b"GET HTTPS://b HTTP/1.1", b"GET / HTTP/1.1", b"b"),
        (b"GET http://b?q HTTP/1.1", b"GET /?q HTTP/1.1", b"b"),
        (b"OPTIONS * HTTP/1.1", b"OPTIONS * HTTP/1.1", b"a"),
        (b"OPTIONS http://b HTTP/1.1", b"OPTIONS * HTTP/1.1", b"b"),
        (b"OPTIONS http://b/ HTTP/1.1", b"OPTIONS / HTTP/1.1", b"b"),
        (b"OPTIONS http://b?q HTTP/1.1", b"OPTIONS /?q HTTP/1.1", b"b"),
    ],
)
def test_duty_28_absolute_form_becomes_origin_form(
    line: bytes, goes_on: bytes, host: bytes
) -> None:
    _, [passed] = through(request(line=line))
    assert passed.startswith(goes_on + b"\r\n")
    assert values(passed, b"Host") == [host]
    assert values(passed, b"X-Forwarded-Host") == [host]


@pytest.mark.parametrize(
    "target",
    [
        b"http:///p", b"http://u@b/", b"ftp://b/", b"http:/b/", b"http://b b/", b"http://b:x/",
        b"*", b"a", b"?q", b"/a#b", b"http://b/#c", b"/a\\..\\b", b"/\x7f", b"/\x80", b"/a\tb",
    ],
)  # fmt: skip
def test_duty_28_and_36_targets_that_are_none(target: bytes) -> None:
    refused(request(line=b"GET " + target + b" HTTP/1.1"))


@pytest.mark.parametrize("space", [b" ", b"\t"])
@pytest.mark.parametrize("name", [b"X", b"Content-Length", b"Host"])
def test_duty_29_space_before_the_colon_is_refused(name: bytes, space: bytes) -> None:
    refused(request(name + space + b": 4", line=b"POST / HTTP/1.1", body=b"body"))


@pytest.mark.parametrize("fold", [b"X: 1\r\n 2", b"X: 1\r\n\t2", b"X:\r\n 1", b"X: 1\r\n "])
def test_duty_30_folded_lines_are_refused(fold: bytes) -> None:
    refused(request(fold))


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n Host: a\r\n" + LAST,
        b"GET / HTTP/1.1\r\n\tX: y\r\nHost: a\r\n" + LAST,
        b"GET / HTTP/1.1\r\rHost: a\r\n" + LAST,
        b"GET / HTTP/1.1\rHost: a\r\n" + LAST,
        b"GET / HTTP/1.1\nHost: a\r\n" + LAST,
        b"GET / HTTP/1.1\r\nHost: a\r\n: no name\r\n" + LAST,
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n" + LAST,
        b"GET / HTTP/1.1\r\nHost: a\r\nX\xc3\xa4: y\r\n" + LAST,
        b"GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n" + LAST,
        b"GET / HTTP/1.1\r\nHost: a\r\nX(y): z\r\n" + LAST,
        b"\xef\xbb\xbfGET / HTTP/1.1\r\nHost: a\r\n" + LAST,
    ],
)
def test_duty_31_lines_end_in_crlf_and_begin_with_a_name(octets: bytes) -> None:
    refused(octets)


def test_duty_31_values_are_octets() -> None:
    _, [passed] = through(request(b"X: \xc3\xa4 \xff\xfe \xa0"))
    assert values(passed, b"X") == [b"\xc3\xa4 \xff\xfe \xa0"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"BREW / HTTP/1.1", 501),
        (b"get / HTTP/1.1", 501),
        (b"GETGET / HTTP/1.1", 501),
        (b"CONNECT a:80 HTTP/1.1", 501),
        (b"CONNECT / HTTP/1.1", 501),
        (b"G(T / HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b"GET / x HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1.", 400),
        (b"GET / HTTP/11", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / HTTP/0.9", 400),
        (b"GET / HTP/1.1", 400),
        (b"GET /", 400),
        (b"GET", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/3.0", 505),
        (b"GET / HTTP/9.9", 505),
        (b"PRI * HTTP/2.0", 505),
    ],
)
def test_duty_36_request_lines_that_are_not_ours(line: bytes, status: int) -> None:
    refused(request(line=line), status)


# --- Connections ------------------------------------------------------------------------------


def test_duty_33_an_old_client_never_keeps_its_connection() -> None:
    old = b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nKeep-Alive: timeout=60\r\n\r\n"
    answers, passed = through(old + old)
    assert answers[0].count(b"HTTP/1.1 200 ") == 1
    assert b"\r\nConnection: close\r\n" in answers[0]
    assert b"keep-alive" not in answers[0].lower()
    assert len(passed) == 1


def test_duty_35_after_close_nothing_more_is_looked_at() -> None:
    answers, passed = through(request() + request(line=b"POST /more HTTP/1.1"))
    assert answers[0].count(b"HTTP/1.1 ") == 1
    assert len(passed) == 1


@pytest.mark.parametrize("option", [b"CLOSE", b"keep-alive, close", b"x ,\tClose", b"close, x"])
def test_duty_35_close_is_found_among_other_options(option: bytes) -> None:
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + option + b"\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in answer


def test_duty_35_a_backends_connection_is_kept_though_the_clients_ends() -> None:
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        for _ in range(3):
            proxy.talk(request())
    assert len(origin.connections) == 1


def test_duty_34_answers_keep_the_order_of_the_requests() -> None:
    """Ours among the backend's: the second is answered at once, but not before the first."""
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy, proxy.connect() as sock:
        trace = b"OPTIONS /2 HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n" + trace + request())
        buffer = bytearray()
        bodies = [read_response(sock, buffer)[1] for _ in range(3)]
        assert read_all(sock) == b""
    assert bodies == [b"ok", b"", b"ok"]
