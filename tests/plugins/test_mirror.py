"""mirror: what a copy is like, and that the original never notices."""

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

PLUGIN = Path(__file__).parents[2] / "plugins" / "mirror.py"


class Shadow:
    """Takes copies, and answers with a status and a body."""

    def __init__(self, status: int = 200, body: bytes = b"") -> None:
        self.status = status
        self.body = body
        self.got: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, list[str]]] = []
        self.peers: set[object] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.got.append((request.method, request.raw_path, await request.read()))
        names = set(request.headers)
        self.headers.append({name.lower(): request.headers.getall(name) for name in names})
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        return web.Response(
            status=self.status, body=self.body, headers={"Set-Cookie": "a=b", "Location": "/x"}
        )


class Live(Bench):
    """A context that does what is spawned at once, as a worker does."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Any) -> None:
        """Begin it."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@asynccontextmanager
async def mirroring(
    handler: Handler, bench: Bench | None = None, base: str = "", **config: Any
) -> AsyncIterator[Plugin[Any]]:
    async with serving(handler) as url:
        plugin = make(PLUGIN, {"url": url + base, **config}, bench or Bench())
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


def copied(shadow: Shadow, *requests: str, **how: Any) -> list[Outcome]:
    """Send requests past a shadow, config and context among `how`."""
    given = {key: how.pop(key) for key in ("body", "client", "scheme") if key in how}
    outcomes: list[Outcome] = []

    async def scenario() -> None:
        async with mirroring(shadow.answer, **how) as plugin:
            outcomes.extend([await call_async(plugin, each, **given) for each in requests])

    run(scenario)
    return outcomes


# --- What a copy is like ----------------------------------------------------------------------


def test_a_copy_is_the_request_and_says_that_it_is_one() -> None:
    shadow = Shadow(500, b"who cares")
    body = gzip.compress(b"onetwo")

    (outcome,) = copied(
        shadow,
        "PUT /a%2Fb/%7Ec//d?e=f%20g\nHost: shop.example\nCookie: a=b\nX-Zoe: Zo\xc3\xab\n"
        "X-Two: 1\nX-Two: 2\nContent-Encoding: gzip",
        body=[body[:5], body[5:]],
        client="192.0.2.7",
        scheme="https",
    )

    assert outcome.got.status == 200
    assert outcome.sent is not None
    assert outcome.sent.body == body
    assert "x-mirrored" not in outcome.sent.headers
    assert shadow.got == [("PUT", "/a%2Fb/%7Ec//d?e=f%20g", b"onetwo")], "unpacked by its taker"
    (headers,) = shadow.headers
    assert headers == {
        "host": ["shop.example"],
        "cookie": ["a=b"],
        "x-zoe": ["Zoë"],
        "x-two": ["1", "2"],
        "content-encoding": ["gzip"],
        "content-length": [str(len(body))],
        "x-forwarded-for": ["192.0.2.7"],
        "x-forwarded-host": ["shop.example"],
        "x-forwarded-proto": ["https"],
        "x-request-id": ["test-1"],
        "x-mirrored": ["1"],
    }


def test_a_body_keeps_its_length() -> None:
    """Or the original would come in chunks, which not every backend takes."""
    shadow = Shadow()
    bench = Bench()

    async def scenario() -> None:
        async with mirroring(shadow.answer, bench) as plugin:
            seen = []

            class Spy(type(plugin)):  # type: ignore[misc]
                def on_request(self, req: Any) -> None:
                    super().on_request(req)
                    seen.append((len(req.transforms), req.resized))

            plugin.__class__ = Spy
            await call_async(plugin, "POST /", body=b"x")
            assert seen == [(1, False)]

    run(scenario)


def test_where_it_goes() -> None:
    shadow = Shadow()
    copied(shadow, "GET /a?b=c", base="/base/", host="url")

    assert shadow.got == [("GET", "/base/a?b=c", b"")]
    assert shadow.headers[0]["host"][0].startswith("127.0.0.1:")


def test_what_is_nobodys_business_is_left_out() -> None:
    shadow = Shadow()
    (outcome,) = copied(
        shadow,
        "GET /\nAuthorization: x\nCookie: a=b\nX-A: 1",
        strip=["authorization", "cookie"],
        mark="x-copy",
    )

    assert {"authorization", "cookie"}.isdisjoint(shadow.headers[0])
    assert shadow.headers[0]["x-copy"] == ["1"]
    assert outcome.sent is not None
    assert outcome.sent.headers.get("authorization") == "x"


def test_a_copy_is_not_copied() -> None:
    shadow = Shadow()
    copied(shadow, "GET /\nX-Mirrored: 1")

    assert not shadow.got


def test_what_becomes_another_protocol_is_not_copied() -> None:
    shadow = Shadow()
    copied(shadow, "GET /\nConnection: Upgrade\nUpgrade: websocket")

    assert not shadow.got


def test_a_share() -> None:
    shadow = Shadow()
    copied(shadow, *["GET /"] * 200, share="25%", bench=Bench(seed=7))

    assert 30 <= len(shadow.got) <= 70


def test_where_an_answer_leads_is_not_followed_and_cookies_are_not_kept() -> None:
    shadow = Shadow(302)
    copied(shadow, "GET /", "GET /")

    assert len(shadow.got) == 2
    assert all("cookie" not in headers for headers in shadow.headers)
    assert len(shadow.peers) == 1, "the connection is kept"


# --- What it costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_not_copied(declared: bool) -> None:
    shadow, bench = Shadow(), Bench()
    head = "POST /" if declared else "POST /\nTransfer-Encoding: chunked"
    body = [b"x" * 1000] * 3

    (outcome, again) = copied(
        shadow, head, head, body=body, bench=bench, body_max="2000B", at_once=1
    )

    assert outcome.sent is not None
    assert outcome.sent.body == b"".join(body)
    assert again.sent is not None
    assert not shadow.got
    assert bench.counts["too_large"] == 2, "the first one made room for the second"


def test_one_that_is_just_not_too_large_is() -> None:
    shadow = Shadow()
    copied(shadow, "POST /\nTransfer-Encoding: chunked", body=[b"x" * 1000] * 2, body_max="2000B")

    assert [len(body) for _, _, body in shadow.got] == [2000]


def test_the_original_waits_for_no_copy_and_copies_are_few() -> None:
    async def scenario() -> None:
        gate, bench, shadow = asyncio.Event(), Live(), Shadow()

        async def slowly(request: web.Request) -> web.StreamResponse:
            await gate.wait()
            return await shadow.answer(request)

        async with mirroring(slowly, bench, at_once=2) as plugin:
            for _ in range(5):
                outcome = await call_async(plugin, "POST /", body=b"x")
                assert outcome.got.status == 200
            assert bench.counts == {"dropped": 3}
            gate.set()
            await asyncio.wait(bench.tasks)
            assert bench.counts == {"dropped": 3, "sent": 2}
            await call_async(plugin)
            await asyncio.wait(bench.tasks)
            assert bench.counts["sent"] == 3

    run(scenario)


def test_a_body_that_never_comes_whole_is_let_go() -> None:
    async def scenario() -> None:
        bench, shadow = Bench(), Shadow()
        async with mirroring(shadow.answer, bench, at_once=1) as plugin:

            class Cut(type(plugin)):  # type: ignore[misc]
                def on_request(self, req: Any) -> None:
                    super().on_request(req)
                    (watched,) = req.transforms
                    watched.chunk(b"half")
                    req.transforms = ()

            whole, plugin.__class__ = plugin.__class__, Cut
            await call_async(plugin, "POST /", body=b"half a body")
            assert bench.counts == {"dropped": 1}
            plugin.__class__ = whole
            await call_async(plugin, "POST /", body=b"whole")
            assert [body for _, _, body in shadow.got] == [b"whole"]

    run(scenario)


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def odd(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"what?\r\n\r\n")
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize("handler", [never, odd])
def test_a_copy_that_fails_is_counted_and_said_now_and_then(
    handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        bench = Bench()
        async with mirroring(handler, bench, timeout="100ms", at_once=1) as plugin:
            for _ in range(3):
                assert (await call_async(plugin)).got.status == 200
        assert bench.counts == {"failed": 3}

    run(scenario)
    assert sum("mirror could not send" in text for text in caplog.messages) == 1


def test_nobody_listens() -> None:
    async def scenario() -> None:
        bench = Bench()
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{held.getsockname()[1]}"
            plugin = make(PLUGIN, {"url": url}, bench)
            assert (await call_async(plugin)).got.status == 200
            stopped(plugin)
        assert bench.counts == {"failed": 1}

    run(scenario)


def test_of_a_long_answer_only_so_much_is_read() -> None:
    shadow, bench = Shadow(200, b"x" * 4_000_000), Bench()
    copied(shadow, "GET /", "GET /", bench=bench)

    assert bench.counts == {"sent": 2}
    assert len(shadow.peers) == 2, "nor is its connection used again"


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "url"),
        ({"url": "shadow:9000"}, "is no URL"),
        ({"url": "http://shadow/?a=b"}, "is no URL"),
        ({"url": "http://a:b@shadow/"}, "is no URL"),
        ({"url": "http://a/", "at_once": 501}, "at_once is from 1 to 500"),
        ({"url": "http://a/", "at_once": 500, "body_max": "1MiB"}, "at most 256MiB"),
        ({"url": "http://a/", "timeout": "2m"}, "at most 60s"),
        ({"url": "http://a/", "mark": "host"}, "load balancer itself"),
        ({"url": "http://a/", "strip": ["connection"]}, "load balancer itself"),
        ({"url": "http://a/", "share": "200%"}, "share"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
