"""Each limit of a listener or a route: its status, its count, and its word in the access log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lb.model import ListenerLimits, Route
from wire.kit import LISTENER, Origin, Proxy, answering, response, until

LIMITS = ListenerLimits(connections=2, header_bytes=2048, headers=10, request_line=200)
ROUTES = [Route("up", path="/", upstream="app", body_max=10)]


def request(line: bytes = b"GET / HTTP/1.1", *fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: a", b"Connection: close", *fields, b"", body])


@pytest.mark.parametrize(
    ("limit", "status", "end", "octets"),
    [
        ("header_bytes", 431, "too_large", request(b"GET / HTTP/1.1", b"X: " + b"x" * 2048)),
        ("header_bytes", 431, "too_large", request(b"GET / HTTP/1.1", b"X: " + b"x" * 9999)[:5000]),
        ("headers", 431, "too_large", request(b"GET / HTTP/1.1", *[b"X: y"] * 10)),
        ("request_line", 414, "too_large", request(b"GET /" + b"x" * 200 + b" HTTP/1.1")),
        ("request_line", 414, "too_large", b"GET /" + b"x" * 300),
        ("body_max", 413, "too_large",
         request(b"POST / HTTP/1.1", b"Content-Length: 11", body=b"x" * 11)),
        ("body_max", 413, "too_large",
         request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"b\r\n" + b"x" * 11)),
    ],
)  # fmt: skip
def test_a_request_over_a_limit(
    limit: str, status: int, end: str, octets: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    listener = replace(LISTENER, limits=LIMITS)
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=listener, routes=ROUTES, log=str(log)) as proxy,
    ):
        answer = proxy.talk(octets)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert limit.encode() in answer, "it names the key"
        assert proxy.reading.refresh().by("lb_limits_total", "listener", "limit") == {
            ("web", limit): 1
        }
        assert not origin.requests
    [line] = map(json.loads, log.read_text().splitlines())
    assert (line["status"], line["end"]) == (status, end)


def test_connections_over_their_limit(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    listener = replace(LISTENER, limits=LIMITS)
    with Proxy([], listener=listener, log=str(log)) as proxy:
        with proxy.connect(), proxy.connect():
            until(lambda: proxy.clients == 2, "two clients")
            answer = proxy.talk(b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"listener.web.limits.connections" in answer
        assert proxy.reading.refresh().by("lb_limits_total", "limit") == {("connections",): 1}
        refused = proxy.reading.by("lb_connections_refused_total", "reason")
        assert refused == {("limit",): 1}
    [line] = map(json.loads, log.read_text().splitlines())
    assert (line["status"], line["end"]) == (503, "limited")


def test_what_is_wrong_by_itself_is_no_limit() -> None:
    """The hint to a client was once taken for a setting: "listener.web.write % as %25"."""
    with Origin(answering(response())) as origin, Proxy([origin]) as proxy:
        answer = proxy.talk(request(b"GET /% HTTP/1.1"))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"(write % as %25)" in answer
        assert not proxy.reading.refresh().by("lb_limits_total", "limit")
