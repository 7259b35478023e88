"""Where bodies end: `lb.http1.framing` under every split of every body."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.http1.framing import (
    CHUNK_LINE_MAX,
    TRAILERS_BYTES_MAX,
    BodyReader,
    ChunkedBody,
    CloseBody,
    FramingError,
    LengthBody,
    chunk,
    request_body,
    response_body,
)
from lb.http1.head import read_request_fields, read_response_fields


def read(body: BodyReader, octets: bytes, cuts: list[int]) -> tuple[bytes, bytes | None]:
    """Give octets in pieces; return the payload, and what follows the body or None."""
    payload = b""
    edges = [0, *sorted({cut % (len(octets) + 1) for cut in cuts}), len(octets)]
    for start, end in pairwise(edges):
        if start == end:
            continue
        piece, rest = body.take(octets[start:end])
        payload += piece
        if rest is not None:
            return payload, bytes(rest) + octets[end:]
    return payload, None


extensions = st.sampled_from([b"", b";a", b"; a=b", b' ;a="b c"'])
trailers = st.sampled_from([b"", b"X: 1\r\n", b"X: 1\r\nY: \t2\r\n"])
cuts = st.lists(st.integers(0, 10_000), max_size=12)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), extensions)), trailers, cuts)
def test_chunked_is_the_same_however_it_is_cut(
    pieces: list[tuple[bytes, bytes]], trailer: bytes, at: list[int]
) -> None:
    octets = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), ext, piece) for piece, ext in pieces)
    octets += b"0\r\n" + trailer + b"\r\n"

    payload, rest = read(ChunkedBody(), octets + b"GET /next", at)

    assert payload == b"".join(piece for piece, _ in pieces)
    assert rest == b"GET /next"


@given(st.binary(max_size=300), st.binary(max_size=50), cuts)
def test_length_is_the_same_however_it_is_cut(body: bytes, after: bytes, at: list[int]) -> None:
    if body:
        assert read(LengthBody(len(body)), body + after, at) == (body, after)


@given(st.binary(max_size=300), cuts)
def test_open_ended_never_ends(body: bytes, at: list[int]) -> None:
    assert read(CloseBody(), body, at) == (body, None)


@given(st.lists(st.binary(min_size=1)))
def test_what_we_chunk_reads_back(pieces: list[bytes]) -> None:
    octets = b"".join(map(chunk, pieces)) + b"0\r\n\r\n"

    assert read(ChunkedBody(), octets, []) == (b"".join(pieces), b"")


@pytest.mark.parametrize(
    "octets",
    [
        b"+3\r\nabc\r\n",
        b"-3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"3 4\r\nabc\r\n",
        b"1_0\r\n",
        b"\r\n",
        b";x\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\nabc\r\n",
        b"3\rX\r\nabc",
        b"3;\x00\r\nabc",
        b"3;a\nb\r\nabc",
        b"f" * 16 + b"\r\n",
        b"0" * 300 + b"\r\n",
        b"3;" + b"x" * (CHUNK_LINE_MAX + 1) + b"\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n: x\r\n\r\n",
        b"0\r\nX: \x00\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * (TRAILERS_BYTES_MAX // 6 + 1),
    ],
)
def test_malformed_chunks(octets: bytes) -> None:
    for size in (len(octets), 1, 2, 7):
        cuts_at = list(range(0, len(octets), size))
        with pytest.raises(FramingError):
            read(ChunkedBody(), octets, cuts_at)


@given(st.binary(max_size=200), cuts)
def test_any_octets_are_a_body_or_an_error(octets: bytes, at: list[int]) -> None:
    outcomes = []
    for cut in ([], at):
        try:
            outcomes.append(read(ChunkedBody(), octets, cut))
        except FramingError:
            outcomes.append((b"error", None))
    whole, split = outcomes
    # A cut may show an error sooner than the payload before it, never another message.
    assert whole == split or (b"error", None) in outcomes


@pytest.mark.parametrize(
    ("method", "status", "block", "kind"),
    [
        (b"HEAD", 200, b"\r\nContent-Length: 5\r\n", None),
        (b"GET", 204, b"\r\n", None),
        (b"GET", 304, b"\r\nContent-Length: 5\r\n", None),
        (b"GET", 200, b"\r\nContent-Length: 0\r\n", None),
        (b"GET", 200, b"\r\nContent-Length: 5\r\n", LengthBody),
        (b"GET", 200, b"\r\nTransfer-Encoding: Chunked\r\n", ChunkedBody),
        (b"GET", 200, b"\r\n", CloseBody),
    ],
)
def test_response_bodies(method: bytes, status: int, block: bytes, kind: type | None) -> None:
    body = response_body(method, status, read_response_fields(block))

    assert type(body) is (kind or type(None))


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (b"\r\nHost: a\r\n", None),
        (b"\r\nContent-Length: 0\r\n", None),
        (b"\r\nContent-Length: 1\r\n", LengthBody),
        (b"\r\nTransfer-Encoding: chunked\r\n", ChunkedBody),
    ],
)
def test_request_bodies(block: bytes, kind: type | None) -> None:
    assert type(request_body(read_request_fields(block, 100))) is (kind or type(None))
