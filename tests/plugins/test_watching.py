"""A plugin may look at a body without a hand on it."""

from __future__ import annotations

import asyncio

from lb.plugin import Plugin, Reply, Request
from lb.testing import Bench, call, call_async


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended = 0

    def chunk(self, data: bytes) -> None:
        self.heard.append(data)

    def end(self) -> None:
        self.ended += 1


class Listens(Plugin[None]):
    name = "listens"

    def on_request(self, req: Request) -> None:
        self.ear = Ear()
        req.watch_body(self.ear)
        req.state["resized"] = req.resized


def test_what_is_watched_passes_unchanged_and_keeps_its_length() -> None:
    plugin = Listens(None, Bench())

    outcome = call(plugin, "POST /", body=[b"on", b"e"])

    assert outcome.sent is not None
    assert outcome.sent.body == b"one"
    assert plugin.ear.heard == [b"on", b"e"]
    assert plugin.ear.ended == 1
    assert outcome.state["resized"] is False


def test_a_plugin_knows_where_the_file_has_it() -> None:
    assert Listens(None, Bench(place="listener.web#2")).ctx.place == "listener.web#2"


class Remembers(Plugin[None]):
    name = "remembers"
    loop: asyncio.AbstractEventLoop | None = None

    async def on_request(self, req: Request) -> Reply | None:
        assert self.loop in (None, asyncio.get_running_loop())
        self.loop = asyncio.get_running_loop()
        return None


def test_calls_may_share_a_loop() -> None:
    plugin = Remembers(None, Bench())

    async def twice() -> None:
        await call_async(plugin)
        await call_async(plugin)

    asyncio.run(twice())
