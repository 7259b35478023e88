"""
Sends editions to workers: composes when anything changed, sends what changed, knows who has it.

Changes that come close together make one edition. A worker that is slow to take one up gets
the newest afterwards, not each in turn, so that what is on its way to it has a bound. The
newest edition, packed, goes to the supervisor as well, for workers and controllers to come.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lb.edition import Composer, Edition, Sources, digest, pack
from lb.errors import OperatorError

log = logging.getLogger(__name__)

UNLIVE_MAX = 2  # Editions sent to a worker that it did not yet call live.
WAITERS_MAX = 1024  # Requests that wait for workers at once.
PAUSE_MIN = 0.002  # Seconds after an edition; what changes meanwhile is one edition.
PAUSE_COSTS = 3.0  # As many times longer than making it took: the larger, the fewer.


class Sender(Protocol):
    """The way to one worker: `link.Stream`, as far as we use it. Keeps the order, never blocks."""

    def send(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        """Say one thing."""
        ...


@dataclass(slots=True)
class _Worker:
    """One attached worker: what it was sent and what it made live."""

    way: Sender
    sent: dict[str, bytes]  # Parts that it holds once it has read all that was sent.
    sent_number: int = 0
    live_number: int = 0
    live_revision: int = 0
    unlive: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=UNLIVE_MAX))


class Publisher:
    """
    The one place where editions come from.

    `sources` is asked for what to compose, `extra` for the `control/` parts; `keep` gets
    number and packed bytes of each new edition. `last` is the edition that a controller
    before us left: numbers go on from there.
    """

    def __init__(
        self,
        composer: Composer,
        sources: Callable[[], Sources],
        keep: Callable[[int, bytes], None],
        extra: Callable[[], Mapping[str, bytes]] = dict,
        last: Edition | None = None,
    ) -> None:
        self._composer = composer
        self._sources = sources
        self._keep = keep
        self._extra = extra
        self._number = 0 if last is None else last.number
        self._edition: Edition | None = None
        self._workers: dict[int, _Worker] = {}
        self._waiters: set[tuple[Callable[[], bool], asyncio.Future[None]]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = float("-inf")
        self._closed = False

    # What others ask

    @property
    def edition(self) -> Edition:
        """The newest edition; the first question composes the first one."""
        return self._edition or self.publish()

    def live_number(self, slot: int) -> int:
        """The newest edition that this worker called live; 0 if none or not attached."""
        worker = self._workers.get(slot)
        return 0 if worker is None else worker.live_number

    def behind(self, number: int) -> set[int]:
        """The attached workers in which the edition `number` is not live yet."""
        return {slot for slot, each in self._workers.items() if each.live_number < number}

    def routed_revision(self) -> int:
        """The newest registry revision by which every attached worker routes; 0 without any."""
        return min((each.live_revision for each in self._workers.values()), default=0)

    async def wait_live(self, number: int, seconds: float) -> set[int]:
        """Wait until no attached worker is behind `number`; the slots that still are."""
        await self._wait(lambda: not self.behind(number), seconds)
        return self.behind(number)

    async def wait_routed(self, revision: int, seconds: float) -> bool:
        """Wait until every worker routes by `revision`; False when time ran out."""
        return await self._wait(lambda: self.routed_revision() >= revision, seconds)

    # What changes

    def touch(self) -> None:
        """Something that editions are made of has changed: make one soon."""
        if self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            at = max(loop.time(), self._next_at)
            self._timer = loop.call_at(at, self.publish)

    def publish(self) -> Edition:
        """Make an edition of things as they are now, and send it; the last one if none differs."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        sources = self._sources()
        edition = self._composer.compose(sources, self._number + 1, self._extra())
        if self._edition is not None and _same(edition, self._edition):
            return self._edition
        self._number += 1
        self._edition = edition
        for worker in self._workers.values():
            self._send(worker, edition)
        self._keep(edition.number, pack(edition))
        done = loop.time()
        self._next_at = done + max(PAUSE_MIN, PAUSE_COSTS * (done - began))
        return edition

    def rehearse(self) -> None:
        """Compose, and send nothing: raises if things as they are now make no edition."""
        self._composer.compose(self._sources(), self._number + 1)

    def attach(
        self, slot: int, way: Sender, held: Mapping[str, str] | None = None, number: int = 0
    ) -> None:
        """
        A worker is there and holds these parts, by digest: send it all others.

        `number` is the edition that it serves by; ours must come after it, or it would take
        a new one for old.
        """
        edition = self.edition
        if number >= self._number:
            # A controller before us got further than what the supervisor kept of it.
            self._number = number + 1
            edition = Edition(self._number, edition.revision, edition.parts)
            self._edition = edition
            self._keep(edition.number, pack(edition))
            for worker in self._workers.values():
                self._send(worker, edition)
        parts = edition.for_workers()
        # A part that it holds and that we do not know in this form stands as empty bytes,
        # which no part is: it is replaced, or dropped.
        sent = {
            name: parts[name] if name in parts and digest(parts[name]) == mark else b""
            for name, mark in (held or {}).items()
        }
        worker = _Worker(way, sent)
        self._workers[slot] = worker
        self._send(worker, edition)

    def detach(self, slot: int) -> None:
        """The worker, or the way to it, is gone; nobody waits for it any longer."""
        if self._workers.pop(slot, None) is not None:
            self._wake()

    def on_live(self, slot: int, number: int) -> None:
        """A worker says that the edition `number` is live in it."""
        worker = self._workers.get(slot)
        if worker is None:
            return  # It was detached while this was on its way.
        while worker.unlive and worker.unlive[0][0] <= number:
            worker.live_number, worker.live_revision = worker.unlive.popleft()
        if self._edition is not None:
            self._send(worker, self._edition)
        self._wake()

    def close(self) -> None:
        """Send nothing more; whoever waits is told that it is behind."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _, future in self._waiters:
            if not future.done():
                future.set_result(None)

    # Within

    def _send(self, worker: _Worker, edition: Edition) -> None:
        """Bring a worker to `edition`, unless it has enough to do: then `on_live` comes again."""
        if worker.sent_number >= edition.number or len(worker.unlive) >= UNLIVE_MAX:
            return
        parts = edition.for_workers()
        for name in worker.sent.keys() - parts.keys():
            worker.way.send("gone", name=name)
        for name, body in parts.items():
            if worker.sent.get(name) != body:  # Mostly the same object, so this costs nothing.
                worker.way.send("part", body, name=name)
        worker.way.send("commit", number=edition.number)
        worker.sent = parts
        worker.sent_number = edition.number
        worker.unlive.append((edition.number, edition.revision))

    async def _wait(self, reached: Callable[[], bool], seconds: float) -> bool:
        if reached() or self._closed:
            return reached()
        if len(self._waiters) >= WAITERS_MAX:
            raise OperatorError(
                f"{WAITERS_MAX} requests wait for workers already", "try again in a second"
            )
        waiter = (reached, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter[1]
        except TimeoutError:
            return reached()
        finally:
            self._waiters.discard(waiter)
        return reached()

    def _wake(self) -> None:
        for reached, future in self._waiters:
            if not future.done() and reached():
                future.set_result(None)


def _same(edition: Edition, last: Edition) -> bool:
    """Whether workers would not notice; the `control/` parts alone are worth no edition."""
    return edition.revision == last.revision and edition.for_workers() == last.for_workers()
