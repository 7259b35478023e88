"""forward_auth: what the other one is shown, and what becomes of his answer."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lb.errors import OperatorError
from lb.plugin import Plugin
from lb.testing import Bench, Outcome, call_async, make
from plugins.web_kit import Handler, serving

PLUGIN = Path(__file__).parents[2] / "plugins" / "forward_auth.py"


class Judge:
    """Answers what it is told to, and remembers who asked."""

    def __init__(self, status: int = 200, headers: Any = (), body: bytes = b"") -> None:
        self.status = status
        self.headers = list(headers)
        self.body = body
        self.asked: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.peers: set[object] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.bodies.append(await request.read())
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        answer = web.Response(status=self.status, body=self.body)
        for name, value in self.headers:
            answer.headers.add(name, value)
        return answer


@asynccontextmanager
async def asking(
    handler: Handler, bench: Bench | None = None, **config: Any
) -> AsyncIterator[Plugin[Any]]:
    async with serving(handler) as url:
        plugin = make(PLUGIN, {"url": f"{url}/verify?rd=1", **config}, bench or Bench())
        yield plugin
        stopped(plugin)


def stopped(plugin: Plugin[Any]) -> None:
    plugin.stop()
    session = plugin._web._session  # type: ignore[attr-defined]
    assert session is None or session.closed, "at once"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario()

    asyncio.run(whole())


def asked_once(judge: Judge, request: str = "GET /", **how: Any) -> Outcome:
    """Send one request past a judge, config and context among `how`."""
    given = {key: how.pop(key) for key in ("body", "client", "scheme") if key in how}
    outcomes = []

    async def scenario() -> None:
        async with asking(judge.answer, **how) as plugin:
            outcomes.append(await call_async(plugin, request, **given))

    run(scenario)
    return outcomes[0]


def test_the_other_one_is_shown_the_request_and_never_its_body() -> None:
    judge = Judge()

    outcome = asked_once(
        judge,
        "POST /a%20b?c=d\nHost: shop.example\nAuthorization: Bearer x\nCookie: a=b\nCookie: c=d\n"
        "X-Other: 1\nAccept-Encoding: gzip",
        body=b"secret",
        client="192.0.2.7",
        scheme="https",
    )

    assert outcome.reply is None
    assert outcome.sent is not None
    assert outcome.sent.body == b"secret"
    (shown,) = judge.asked
    assert (shown.method, shown.path_qs) == ("GET", "/verify?rd=1")
    assert {
        name: shown.headers.getall(name)
        for name in shown.headers
        if name.startswith("X-") or name in ("Authorization", "Cookie")
    } == {
        "X-Forwarded-Method": ["POST"],
        "X-Forwarded-Proto": ["https"],
        "X-Forwarded-Host": ["shop.example"],
        "X-Forwarded-Uri": ["/a%20b?c=d"],
        "X-Forwarded-For": ["192.0.2.7"],
        "X-Request-ID": ["test-1"],
        "Authorization": ["Bearer x"],
        "Cookie": ["a=b", "c=d"],
    }
    assert not {"Accept-Encoding", "User-Agent", "X-Other", "Content-Type"} & set(shown.headers)
    assert judge.bodies == [b""]


@pytest.mark.parametrize(
    ("method", "expected"), [("GET", "GET"), ("HEAD", "HEAD"), ("POST", "POST"), ("same", "PUT")]
)
def test_the_method(method: str, expected: str) -> None:
    judge = Judge()
    outcome = asked_once(judge, "PUT /", body=b"x", method=method)

    assert outcome.reply is None
    assert judge.asked[0].method == expected
    assert judge.bodies == [b""]


def test_octets_that_are_no_ascii_arrive_as_they_are() -> None:
    judge = Judge()
    asked_once(judge, "GET /\nCookie: a=" + "Zoë".encode().decode("latin-1"))

    assert judge.asked[0].headers["Cookie"] == "a=Zoë"


def test_the_backend_gets_what_was_said_and_not_what_the_client_wrote() -> None:
    judge = Judge(202, [("X-User", "alice"), ("x-group", "a"), ("X-Group", "b"), ("X-No", "1")])

    outcome = asked_once(
        judge,
        "GET /\nX-User: admin\nX-Group: admin\nX-Level: 9",
        backend_headers=["x-user", "x-group", "x-level"],
    )

    assert outcome.sent is not None
    headers = outcome.sent.headers
    assert headers.all("x-user") == ["alice"]
    assert headers.all("x-group") == ["a", "b"]
    assert headers.all("x-level") == []
    assert headers.all("x-no") == []


@pytest.mark.parametrize("status", [301, 302, 401, 403, 404, 429, 500])
def test_any_other_answer_is_the_clients(status: int) -> None:
    fields = [
        ("Location", "https://login.example.com/?a=b"),
        ("Set-Cookie", "a=b; HttpOnly"),
        ("Set-Cookie", "c=d"),
        ("WWW-Authenticate", 'Basic realm="x"'),
        ("Keep-Alive", "timeout=5"),
        ("Server", "other"),
    ]
    judge = Judge(status, fields, b"who are you?")

    outcome = asked_once(judge)

    got = outcome.got
    assert (got.status, got.body) == (status, b"who are you?")
    assert got.headers.get("Location") == "https://login.example.com/?a=b"
    assert got.headers.all("Set-Cookie") == ["a=b; HttpOnly", "c=d"]
    assert got.headers.get("WWW-Authenticate") == 'Basic realm="x"'
    assert not {name for name, _ in got.headers} & {
        "Keep-Alive",
        "Server",
        "Date",
        "Content-Length",
    }
    assert outcome.sent is None
    assert len(judge.asked) == 1, "where it leads is for the client to see"
    assert outcome.reply is not None
    assert outcome.reply.end == ("denied" if status >= 400 else "ok")


def test_a_compressed_answer_is_passed_on_as_it_is() -> None:
    judge = Judge(403, [("Content-Encoding", "gzip")], gzip.compress(b"no"))

    got = asked_once(judge).got
    assert got.headers.get("Content-Encoding") == "gzip"
    assert gzip.decompress(got.body) == b"no"


def test_an_answer_without_a_body() -> None:
    assert asked_once(Judge(304)).got.status == 304


# --- Without an answer ------------------------------------------------------------------------


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def huge(request: web.Request) -> web.StreamResponse:
    return web.Response(status=403, body=b"x" * 100_000)


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def odd(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"what?\r\n\r\n")
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize("handler", [never, huge, cut, odd])
@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_without_an_answer(
    handler: Handler, on_failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        bench = Bench()
        config = {"timeout": "200ms", "on_failure": on_failure, "backend_headers": ["x-user"]}
        async with asking(handler, bench, **config) as plugin:
            for _ in range(2):
                outcome = await call_async(plugin, "GET /\nX-User: admin")
                if on_failure == "closed":
                    assert outcome.got.status == 503
                    assert outcome.got.headers.get("Retry-After") == "1"
                else:
                    assert outcome.sent is not None
                    assert "x-user" not in outcome.sent.headers
        assert bench.counts["failed"] == 2

    run(scenario)
    assert sum("got no answer from http://" in text for text in caplog.messages) == 1, (
        "now and then"
    )


def test_nobody_listens() -> None:
    async def scenario() -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            plugin = make(PLUGIN, {"url": f"http://127.0.0.1:{port}/"}, Bench())
            assert (await call_async(plugin)).got.status == 503
            stopped(plugin)

    run(scenario)


def test_more_questions_than_allowed_are_not_asked() -> None:
    async def scenario() -> None:
        gate, there = asyncio.Event(), asyncio.Event()
        judge = Judge()

        async def slowly(request: web.Request) -> web.StreamResponse:
            there.set()
            await gate.wait()
            return await judge.answer(request)

        async with asking(slowly, at_once=1) as plugin:
            first = asyncio.ensure_future(call_async(plugin))
            await there.wait()
            assert (await call_async(plugin)).got.status == 503
            gate.set()
            assert (await first).got.status == 200
            assert (await call_async(plugin)).got.status == 200

    run(scenario)


def test_who_leaves_makes_room() -> None:
    async def scenario() -> None:
        there = asyncio.Event()
        judge = Judge()

        async def slowly_once(request: web.Request) -> web.StreamResponse:
            if not there.is_set():
                there.set()
                await asyncio.Event().wait()
            return await judge.answer(request)

        async with asking(slowly_once, at_once=1) as plugin:
            first = asyncio.ensure_future(call_async(plugin))
            await there.wait()
            first.cancel()
            await asyncio.wait([first])
            assert (await call_async(plugin)).got.status == 200

    run(scenario)


# --- Connections ------------------------------------------------------------------------------


def test_connections_are_kept_and_cookies_are_not() -> None:
    judge = Judge(200, [("Set-Cookie", "session=alice")])

    async def scenario() -> None:
        async with asking(judge.answer) as plugin:
            for _ in range(5):
                await call_async(plugin)

    run(scenario)
    assert len(judge.peers) == 1
    assert [request.headers.get("Cookie") for request in judge.asked] == [None] * 5


def test_a_plugin_that_asked_nobody_has_nothing_to_close() -> None:
    make(PLUGIN, {"url": "http://127.0.0.1:1/"}, Bench()).stop()


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "url"),
        ({"url": "127.0.0.1:9091"}, "is no URL"),
        ({"url": "ftp://a/"}, "is no URL"),
        ({"url": "http:///x"}, "is no URL"),
        ({"url": "http://a:b@c/"}, "is no URL"),
        ({"url": "http://a:99999/"}, "is no URL"),
        ({"url": "http://a/", "timeout": "60s"}, "at most 25s"),
        ({"url": "http://a/", "timeout": "0s"}, "more than 0"),
        ({"url": "http://a/", "at_once": 0}, "at_once"),
        ({"url": "http://a/", "headers": ["host"]}, "load balancer itself"),
        ({"url": "http://a/", "backend_headers": ["x-forwarded-for"]}, "load balancer itself"),
        ({"url": "http://a/", "method": "PUT"}, "method"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
