"""compress: what is compressed and how, and above all what is not."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.errors import OperatorError
from lb.plugin import Plugin
from lb.testing import Bench, Outcome, call, call_async, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "compress.py"
brotli = importlib.import_module("brotli")
zstandard = importlib.import_module("zstandard")
TEXT = b"She sells sea shells by the sea shore. " * 100
ALL = "gzip, deflate, br, zstd"
best_of = make(PLUGIN).start.__globals__["best_of"]


def made(bench: Bench | None = None, **config: Any) -> Plugin[Any]:
    return make(PLUGIN, config, bench or Bench())


def got(
    accepted: str | None = ALL,
    response: str = "200 OK\nContent-Type: text/html",
    body: bytes | list[bytes] = TEXT,
    plugin: Plugin[Any] | None = None,
    request: str = "GET /",
) -> Outcome:
    if accepted is not None:
        request += f"\nAccept-Encoding: {accepted}"
    return call(plugin or made(), request, response=response, response_body=body)


def unpacked(outcome: Outcome) -> bytes:
    body = outcome.got.body
    match outcome.got.headers.get("Content-Encoding"):
        case "gzip":
            return gzip.decompress(body)
        case "br":
            return bytes(brotli.decompress(body))
        case "zstd":
            return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(body))
        case _:
            return body


def coding_of(outcome: Outcome) -> str | None:
    return outcome.got.headers.get("Content-Encoding")


# --- Which coding -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("deflate", None),
        ("gzip, br", "br"),
        (ALL, "zstd"),
        ("gzip;q=1, br;q=0.9, zstd;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.0, br;q=0.001", "br"),
        ("*", "zstd"),
        ("*;q=0", None),
        ("*;q=0, gzip", "gzip"),
        ("zstd;q=0, br;q=0, *", "gzip"),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=0.5, identity;q=0.4", "gzip"),
        ("gzip;q=2", None),
        ("gzip;q=x, br", "br"),
        ("gzip ; q=0.8 , br ; q=0.7", "gzip"),
        (";;,,=", None),
    ],
)
def test_the_client_chooses(accepted: str | None, coding: str | None) -> None:
    outcome = got(accepted)

    assert coding_of(outcome) == coding
    assert unpacked(outcome) == TEXT
    if coding is not None:
        assert len(outcome.got.body) < len(TEXT) / 4


def test_two_lines_are_one_list() -> None:
    assert coding_of(got(None, request="GET /\nAccept-Encoding: gzip\nAccept-Encoding: br")) == "br"


@settings(deadline=None)
@given(st.text(st.sampled_from("gzipbrstd*,;=q01. x"), max_size=80))
def test_whatever_is_accepted_is_understood(accepted: str) -> None:
    assert best_of(accepted, ("zstd", "br", "gzip")) in ("zstd", "br", "gzip", "")


def test_codings_may_be_fewer_and_in_another_order() -> None:
    assert coding_of(got(plugin=made(codings=["gzip", "br"]))) == "gzip"
    assert coding_of(got("zstd", plugin=made(codings="gzip"))) is None


# --- What is left alone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        "200 OK",
        "200 OK\nContent-Type: image/png",
        "200 OK\nContent-Type: text/event-stream",
        "200 OK\nContent-Type: text/html\nContent-Encoding: gzip",
        "200 OK\nContent-Type: text/html\nContent-Encoding: identity",
        "200 OK\nContent-Type: text/html\nCache-Control: max-age=1, No-Transform",
        "200 OK\nContent-Type: text/html\nContent-Range: bytes 0-1/2",
        "206 Partial Content\nContent-Type: text/html",
        "206 Partial Content\nContent-Type: multipart/byteranges; boundary=x",
        "200 OK\nContent-Type: text/html\nContent-Digest: sha-256=:AAAA:",
        "200 OK\nContent-Type: text/html\nRepr-Digest: sha-256=:AAAA:",
    ],
)
def test_what_is_left_alone(response: str) -> None:
    outcome = got(response=response)

    assert outcome.got.body == TEXT
    assert coding_of(outcome) == (
        response.rpartition("Content-Encoding: ")[2] if "Content-Encoding" in response else None
    )
    assert "Vary" not in outcome.got.headers


@pytest.mark.parametrize(
    ("request_line", "response", "body"),
    [
        ("HEAD /", "200 OK\nContent-Type: text/html", TEXT),
        ("GET /", "204 No Content\nContent-Type: text/html", b""),
        ("GET /", "304 Not Modified\nContent-Type: text/html", b""),
    ],
)
def test_what_has_no_body(request_line: str, response: str, body: bytes) -> None:
    outcome = got(response=response, body=body, request=request_line)

    assert outcome.got.body == b""
    assert coding_of(outcome) is None


@pytest.mark.parametrize(("size", "coding"), [(0, None), (1023, None), (1024, "zstd")])
def test_what_is_small_is_left_alone(size: int, coding: str | None) -> None:
    outcome = got(body=TEXT[:size])

    assert coding_of(outcome) == coding
    assert unpacked(outcome) == TEXT[:size]


@pytest.mark.parametrize(
    ("kind", "coding"),
    [
        ("text/html; charset=utf-8", "zstd"),
        ("Text/CSS", "zstd"),
        ("application/json", "zstd"),
        ("application/problem+json", "zstd"),
        ("image/svg+xml", "zstd"),
        ("application/octet-stream", None),
        ("application/zip", None),
        ("font/woff2", None),
        ("textual/html", None),
        ("text", None),
        ("json", None),
    ],
)
def test_types(kind: str, coding: str | None) -> None:
    assert coding_of(got(response=f"200 OK\nContent-Type: {kind}")) == coding


def test_types_may_be_others() -> None:
    plugin = made(types=["application/zip", "model/*"])

    def coding(kind: str) -> str | None:
        return coding_of(got(response=f"200 OK\nContent-Type: {kind}", plugin=plugin))

    assert [coding("application/zip"), coding("model/x"), coding("text/html")] == [
        "zstd",
        "zstd",
        None,
    ]


# --- What else changes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vary", "expected"),
    [
        (None, ["Accept-Encoding"]),
        ("Origin", ["Origin", "Accept-Encoding"]),
        ("origin, accept-encoding", ["origin, accept-encoding"]),
        ("*", ["*"]),
    ],
)
@pytest.mark.parametrize("accepted", [ALL, None])
def test_caches_are_told_that_it_depends(
    vary: str | None, expected: list[str], accepted: str | None
) -> None:
    response = "200 OK\nContent-Type: text/html" + (f"\nVary: {vary}" if vary else "")

    assert got(accepted, response).got.headers.all("Vary") == expected


@pytest.mark.parametrize(("etag", "expected"), [('"a"', 'W/"a"'), ('W/"a"', 'W/"a"')])
def test_a_tag_becomes_weak(etag: str, expected: str) -> None:
    response = f"200 OK\nContent-Type: text/html\nETag: {etag}\nAccept-Ranges: bytes"

    headers = got(response=response).got.headers
    assert headers.get("ETag") == expected
    assert "Accept-Ranges" not in headers
    plain = got(None, response).got.headers
    assert plain.get("ETag") == etag
    assert plain.get("Accept-Ranges") == "bytes"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [('W/"a"', 'W/"a"'), ('"x", W/"a"', 'W/"a"'), ('"a"', '"a"'), ("*", '"a"')],
)
def test_whoever_asks_about_a_weak_tag_hears_of_that_one(asked: str, expected: str) -> None:
    outcome = got(
        response='304 Not Modified\nETag: "a"', body=b"", request=f"GET /\nIf-None-Match: {asked}"
    )

    assert outcome.got.headers.get("ETag") == expected


def test_backends_may_be_told_not_to_compress() -> None:
    for offload in (True, False):
        outcome = got(plugin=made(offload=offload))
        assert outcome.sent is not None
        assert ("accept-encoding" in outcome.sent.headers) is not offload
        assert coding_of(outcome) == "zstd"


# --- As it comes ------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_body_of_unknown_length_is_not_held_back(coding: str) -> None:
    pieces = [b"first ", b"second ", b"third"]
    outcome = got(
        coding,
        "200 OK\nContent-Type: text/html\nTransfer-Encoding: chunked",
        pieces,  # As a backend sends them, one by one.
    )
    chunks = outcome.got.chunks
    assert unpacked(outcome) == b"".join(pieces)
    assert so_far(coding, chunks[:1]) == b"first "
    assert so_far(coding, chunks[:2]) == b"first second "


def so_far(coding: str, chunks: list[bytes]) -> bytes:
    """What a client can read of a body that has not ended."""
    match coding:
        case "gzip":
            made = zlib.decompressobj(31)
            return b"".join(made.decompress(chunk) for chunk in chunks)
        case "br":
            other = brotli.Decompressor()
            return b"".join(other.process(chunk) for chunk in chunks)
        case _:
            third = zstandard.ZstdDecompressor().decompressobj()
            return b"".join(third.decompress(chunk) for chunk in chunks)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_events_come_one_by_one_if_at_all(coding: str) -> None:
    plugin = made(types=["text/event-stream"])
    response = "200 OK\nContent-Type: text/event-stream\nContent-Length: 5000"
    outcome = got(coding, response, [b"data: 1\n\n", b"data: 2\n\n"], plugin)

    assert so_far(coding, outcome.got.chunks[:1]) == b"data: 1\n\n"


@settings(deadline=None)
@given(
    coding=st.sampled_from(["gzip", "br", "zstd"]),
    body=st.lists(st.binary(max_size=3000), max_size=20),
    known=st.booleans(),
)
def test_what_is_unpacked_is_what_was_sent(coding: str, body: list[bytes], known: bool) -> None:
    whole = b"".join(body)
    framing = f"Content-Length: {len(whole)}" if known else "Transfer-Encoding: chunked"
    response = f"200 OK\nContent-Type: text/html\n{framing}"

    outcome = got(coding, response, [piece for piece in body if piece], made(size_min="1B"))
    assert unpacked(outcome) == whole


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("size", [2_000, 200_000, 2_000_000])
def test_sizes(coding: str, size: int) -> None:
    whole = (TEXT * (size // len(TEXT) + 1))[:size]
    pieces = [whole[at : at + 65_536] for at in range(0, size, 65_536)]
    response = f"200 OK\nContent-Type: text/html\nContent-Length: {size}"

    outcome = got(coding, response, pieces)
    assert unpacked(outcome) == whole
    assert len(outcome.got.body) < size / 10


# --- How many ---------------------------------------------------------------------------------


def test_more_bodies_than_allowed_pass_as_they_are() -> None:
    async def scenario() -> None:
        bench, gate = Bench(), asyncio.Event()
        plugin: Any = made(bench, at_once=1)

        class Slow(type(plugin)):  # type: ignore[misc]
            async def on_response(self, req: Any, res: Any) -> None:
                super().on_response(req, res)
                await gate.wait()

        plugin.__class__ = Slow
        response = "200 OK\nContent-Type: text/html"

        async def ask() -> Outcome:
            request = "GET /\nAccept-Encoding: gzip"
            return await call_async(plugin, request, response=response, response_body=TEXT)

        both = [asyncio.ensure_future(ask()) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        first, second = await asyncio.gather(*both)
        assert [coding_of(first), coding_of(second)] == ["gzip", None]
        assert second.got.headers.get("Vary") == "Accept-Encoding"
        assert coding_of(await ask()) == "gzip", "there is room again"
        assert bench.counts == {"gzip": 2, "skipped": 1}

    asyncio.run(scenario())


def test_what_is_remembered_is_bounded() -> None:
    plugin: Any = made()
    most = plugin.start.__globals__["KNOWN_MAX"]
    for number in range(most + 10):
        got(f"gzip, x{number}", f"200 OK\nContent-Type: text/{number}", plugin=plugin)
    got("gzip, " + "x" * 1000, plugin=plugin)

    assert len(plugin._liked) <= most
    assert len(plugin._worth) <= most
    assert max(map(len, plugin._liked)) < 300


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"codings": []}, "at least one"),
        ({"codings": ["deflate"]}, "deflate"),
        ({"types": ["html"]}, "html is no type"),
        ({"types": ["text/html; charset=utf-8"]}, "is no type"),
        ({"at_once": 0}, "at_once"),
        ({"levels": {"gzip": 10}}, "levels.gzip is from 1 to 9"),
        ({"levels": {"br": 11}}, "levels.br is from 0 to 6"),
        ({"levels": {"lz4": 1}}, "lz4"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
