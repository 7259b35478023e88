"""The supervisor as the controller sees it: holds sockets, keeps editions, knows the workers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from lb import link
from lb.control.desk import WorkerStanding
from lb.errors import OperatorError, StartError
from lb.link import Message
from lb.metrics import Reading

BIND_SECONDS_MAX = 10.0  # The supervisor tries for 2 s; it has other things to do, but not many.
UPGRADE_SECONDS_MAX = 60.0  # It gives up before that by itself.


class Saying(Protocol):
    """The way to the supervisor: `child.Post`."""

    def send(self, kind: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Say one thing."""
        ...


class Supervising:
    """What is asked of the supervisor, and what it told last."""

    def __init__(self, post: Saying) -> None:
        self._post = post
        self._asked = 0
        self._answers: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._workers: list[Message] = []
        self.metrics: dict[int, int] = {}  # The counters' memory of each slot, and retired ones.
        self._reading: Reading | None = None
        self._read_at = 0.0
        self._reading_of: tuple[int, ...] = ()  # The slots in it.
        self.upgrading: Mapping[str, Any] | None = None  # How the last went, if it is not done.

    # What it told

    def bound(self, message: Message, fds: list[int]) -> None:
        """Take the answer to a `bind`; nobody may be waiting for it any more."""
        answer = self._answers.pop(message["id"], None)
        if answer is None or answer.done():
            link.close_all(fds)
        else:
            answer.set_result((message, fds))

    def take_welcome(self, message: Message) -> None:
        """Take what came of the last upgrade: we may stand in the middle of it."""
        failed = message["upgrade"]
        self.upgrading = {"state": "failed", **failed} if failed else None
        if message["taking"]:
            self.upgrading = {"state": "taking over", "error": None, "at": None}

    def yours(self, _: Message, __: list[int]) -> None:
        """Hear that the program before ours has left the instance to us."""
        self.upgrading = None

    def upgraded(self, message: Message, _: list[int]) -> None:
        """Take how an upgrade went, as far as that is known; we may not have asked for it."""
        if message["error"]:
            error, at = message["error"], message["at"]
            self.upgrading = {"state": "failed", "error": error, "at": at}
        answer = self._answers.pop(message["id"], None)
        if answer is not None and not answer.done():
            answer.set_result((message, []))

    def take_workers(self, message: Message) -> None:
        """Take what runs in each slot now."""
        self._workers = message["workers"]

    def take_metrics(self, message: Message, fds: list[int]) -> None:
        """Take the descriptors of counters; a slot keeps its memory for good."""
        for slot, fd in zip(message["slots"], fds, strict=True):
            if slot in self.metrics:
                os.close(fd)
            else:
                self.metrics[slot] = fd

    def workers(self, edition_of: Callable[[int], int]) -> list[WorkerStanding]:
        """Say who works in each slot, and which edition is live there."""
        return [
            WorkerStanding(
                slot=each["slot"],
                pid=each["pid"],
                up=each["up"],
                edition=edition_of(each["slot"]),
                restarts=each["restarts"],
            )
            for each in self._workers
        ]

    def reading(self, now: float, max_age: float = 0.0) -> Reading:
        """Return all counters, added up now or a little ago."""
        if self._reading is None or self._reading_of != tuple(self.metrics):
            if self._reading is not None:
                self._reading.close()
            self._reading_of = tuple(self.metrics)
            self._reading = Reading(self.metrics.values())
        elif now - self._read_at < max_age:
            return self._reading
        self._read_at = now
        return self._reading.refresh()

    # What is asked of it

    async def ensure(self, addresses: Iterable[str]) -> None:
        """Hold sockets for these listeners' addresses. StartError where one cannot be had."""
        await self._bind(list(addresses), [])

    async def own(self, addresses: Sequence[str]) -> list[socket.socket]:
        """Hold sockets that we accept on ourselves, and return them in this order."""
        return [socket.socket(fileno=fd) for fd in await self._bind([], list(addresses))]

    def forget(self, addresses: Iterable[str]) -> None:
        """Let go of listeners' addresses; their queues are accepted to empty first."""
        gone = list(addresses)
        if gone:
            self._post.send("forget", addresses=gone)

    def settle(self, workers: int, grace: float, drain: float, log: Mapping[str, str]) -> None:
        """Tell what the config says that the supervisor acts on."""
        self._post.send("settings", workers=workers, grace=grace, drain=drain, log=dict(log))

    def keep(self, number: int, packed: bytes) -> None:
        """Hand over the newest edition, for those who start later."""
        fd = link.seal(f"lb-edition-{number}", packed)
        self._post.send("edition", [fd], number=number)
        os.close(fd)

    def replace(self, slot: int) -> None:
        """Have a silent worker replaced."""
        self._post.send("restart", slot=slot)

    def stop(self, drain: float | None) -> None:
        """Have the whole instance stopped gracefully."""
        self._post.send("stop", drain=drain)

    def close(self) -> None:
        """Let go of what it gave us."""
        if self._reading is not None:
            self._reading.close()
        link.close_all(list(self.metrics.values()))
        self.metrics.clear()

    def reloading(self) -> None:
        """Say that a reload begins."""
        self._post.send("reloading")

    def reloaded(self, error: str = "") -> None:
        """Say that it is over, and why it changed nothing if so."""
        self._post.send("reloaded", error=error)

    def up(self) -> None:
        """Say that our start is over."""
        self._post.send("up")

    async def upgrade(self) -> int:
        """Have what is installed now run in our place; return its process, once it serves."""
        message, _ = await self._ask("upgrade", UPGRADE_SECONDS_MAX)
        if message["error"]:
            raise OperatorError(message["error"], "it goes on as before; see its log")
        return int(message["pid"])

    async def _ask(self, kind: str, seconds: float, **fields: Any) -> tuple[Message, list[int]]:
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[tuple[Message, list[int]]]
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._post.send(kind, id=number, **fields)
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise OperatorError("the supervisor does not answer", "restart this instance") from None
        finally:
            self._answers.pop(number, None)

    async def _bind(self, addresses: list[str], own: list[str]) -> list[int]:
        message, fds = await self._ask("bind", BIND_SECONDS_MAX, addresses=addresses, own=own)
        if message["error"]:
            raise StartError(message["error"], message["hint"])
        return fds
