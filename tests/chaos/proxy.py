"""A bad network between members, in user space: one listening address stands for each member.

Members' addresses in the configs are this proxy's; what an instance listens on is its own. A
dialer's first frame has its name in clear, so every octet that passes is known to go from one
member to another, and faults are set for such a directed pair: of a link from `a` to `b` both
what `a` says on connections that it dialled, and what it answers on those that `b` dialled.

What a link can do: nothing (cut: octets wait, as in a kernel that sends again and again; closing
one end waits as well), be late, be slow, swap two frames, repeat one, spoil one, and be reset.
Under TLS frames are not seen: only cutting, delaying, slowing and resetting work then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TypeVar

HEADER = struct.Struct("<I")  # The length of all that follows; see docs/group-wire.md.
FRAME_BYTES_MAX = 5 << 20
HELD_BYTES_MAX = 4 << 20  # Waiting in one direction of one connection; then reading stops.
CHUNK_BYTES = 64 << 10
NAME = re.compile(rb'"name"\s*:\s*"([\w.-]+)"')
SWAP_WITHIN = 1.0  # Seconds that a frame is held back for another to overtake it.
HELLO_WITHIN = 5.0
ANYBODY = "*"  # Who a dialer is under TLS, where nothing can be read.
PATIENCE = 10.0

T = TypeVar("T")


@dataclass(slots=True)
class Link:
    """What the network does to octets from one member to another. Set from any thread."""

    cut: bool = False
    delay: float = 0.0  # Seconds for everything, and up to `jitter` more for each piece.
    jitter: float = 0.0
    pace: float = 0.0  # Bytes a second; 0 is no bound.
    swaps: int = 0  # So many frames yet to be overtaken by the next one.
    repeats: int = 0  # So many frames yet to be sent twice.
    spoils: int = 0  # So many frames yet to have a bit turned.

    def heal(self) -> None:
        """Be a good network again."""
        self.cut = False
        self.delay = self.jitter = self.pace = 0.0
        self.swaps = self.repeats = self.spoils = 0


class Proxy:
    """
    The network of one group, in a thread of its own.

    `fired` counts what was done to octets, not what was set: a cut link that nobody used proves
    nothing. `expect` before the instances start, since it gives the addresses of their configs.
    """

    def __init__(self, seed: int = 0, *, tls: bool = False) -> None:
        self.fired: Counter[str] = Counter()
        self.dialled: Counter[tuple[str, str]] = Counter()  # Whom by whom.
        self.tls = tls
        self._rng = random.Random(seed)
        self._closing = False
        self._links: dict[tuple[str, str], Link] = {}
        self._passages: set[_Passage] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # --- Called by tests ----------------------------------------------------------------------

    def expect(self, name: str, target: tuple[str, int]) -> str:
        """Stand for the member of this name, which listens at `target`; return our address."""
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(256)

        async def serve() -> None:
            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._accept(name, target, reader, writer)

            server = await asyncio.start_server(accept, sock=sock, limit=FRAME_BYTES_MAX)
            self._servers.append(server)

        self._do(serve)
        return f"127.0.0.1:{sock.getsockname()[1]}"

    def link(self, frm: str, to: str) -> Link:
        """Return the link from one member to another, to be looked at."""
        return self._links.setdefault((frm, to), Link())

    def set(self, frm: str, to: str, change: Callable[[Link], None]) -> None:
        """Have a link changed; what waits on it sees the change at once."""

        async def apply() -> None:
            change(self.link(frm, to))
            self._wake()

        self._do(apply)

    def cut(self, frm: str, to: str) -> None:
        """Let nothing through from one to the other; the way back stays as it is."""

        def change(link: Link) -> None:
            link.cut = True

        self.set(frm, to, change)

    def isolate(self, name: str, others: Iterable[str]) -> None:
        """Cut a member off from others, both ways."""
        for other in others:
            self.cut(name, other)
            self.cut(other, name)

    def reset(self, frm: str, to: str) -> int:
        """Reset the connections between two members that `frm` dialled; return how many."""

        async def apply() -> int:
            hit = [each for each in self._passages if (each.frm, each.to) == (frm, to)]
            for passage in hit:
                passage.abort()
            self.fired["reset"] += len(hit)
            return len(hit)

        return self._do(apply)

    def heal(self) -> None:
        """Be a good network everywhere."""

        async def apply() -> None:
            for link in self._links.values():
                link.heal()
            self._wake()

        self._do(apply)

    def connections(self) -> list[tuple[str, str]]:
        """Return who dialled whom, for each connection that stands."""

        async def look() -> list[tuple[str, str]]:
            return sorted((each.frm, each.to) for each in self._passages)

        return self._do(look)

    def close(self) -> None:
        """Stop, and reset what stands."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for passage in self._passages:
                passage.abort()
            self._closing = True
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        async def call() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    # --- In the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _wake(self) -> None:
        """Have all that wait on links look at them again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seconds: float | None) -> None:
        """Wait until some link changed, or so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _accept(
        self,
        name: str,
        target: tuple[str, int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        passage = _Passage(self, name, target, _End(reader, writer))
        self._passages.add(passage)
        try:
            await passage.run()
        except (OSError, TimeoutError, EOFError):
            self.fired["broken off"] += 1  # A side went away, as sides do.
        except asyncio.CancelledError:
            if not self._closing:
                raise
        finally:
            passage.abort()
            self._passages.discard(passage)
            self._tasks.discard(task)

    def treat(self, link: Link, frame: bytes) -> list[bytes]:
        """Return what becomes of one frame, but for swapping."""
        if link.spoils and len(frame) > HEADER.size:
            link.spoils -= 1
            self.fired["spoilt"] += 1
            place = self._rng.randrange(HEADER.size, len(frame))
            spoilt = bytearray(frame)
            spoilt[place] ^= 1 << self._rng.randrange(8)
            return [bytes(spoilt)]
        if link.repeats:
            link.repeats -= 1
            self.fired["repeated"] += 1
            return [frame, frame]
        return [frame]

    def lateness(self, link: Link) -> float:
        """Return how late the next piece is to be."""
        if not link.delay and not link.jitter:
            return 0.0
        self.fired["delayed"] += 1
        return link.delay + link.jitter * self._rng.random()


@dataclass(frozen=True, slots=True)
class _End:
    """One side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def abort(self) -> None:
        self.writer.transport.abort()


class _Passage:
    """One connection through the proxy: who dialled whom, and a way in each direction."""

    def __init__(self, proxy: Proxy, to: str, target: tuple[str, int], dialer: _End) -> None:
        self.frm = ANYBODY
        self.to = to
        self._proxy = proxy
        self._target = target
        self._dialer = dialer
        self._ends = [dialer]

    async def run(self) -> None:
        """Carry octets until either side ends."""
        first = b""
        if not self._proxy.tls:
            async with asyncio.timeout(HELLO_WITHIN):
                first = await read_piece(self._dialer.reader, framed=True)
            self.frm = name_in(first)
        self._proxy.dialled[self.frm, self.to] += 1
        out = self._proxy.link(self.frm, self.to)
        # Not before the link is there: a target that nobody can reach sees no connection either.
        while out.cut:
            self._proxy.fired["cut"] += 1
            await self._proxy.changed(None)
        try:
            answerer = _End(*await asyncio.open_connection(*self._target, limit=FRAME_BYTES_MAX))
        except OSError:
            return  # Nobody listens: the dialer sees a reset.
        self._ends.append(answerer)
        there = _Way(self._proxy, out, self._dialer.reader, answerer.writer, first)
        back = _Way(
            self._proxy,
            self._proxy.link(self.to, self.frm),
            answerer.reader,
            self._dialer.writer,
        )
        works = [asyncio.ensure_future(work) for way in (there, back) for work in way.works()]
        try:
            # A side's end travels like its octets. Whoever has passed it on is done.
            await asyncio.wait([works[1], works[3]], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    def abort(self) -> None:
        """Reset both sides."""
        for end in self._ends:
            end.abort()


class _Way:
    """One direction of a connection: what was read and waits to be sent on."""

    def __init__(
        self,
        proxy: Proxy,
        link: Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        first: bytes = b"",
    ) -> None:
        self._proxy = proxy
        self._link = link
        self._reader = reader
        self._writer = writer
        self._held: deque[tuple[float, bytes]] = deque()  # HELD_BYTES_MAX; b"" is the end.
        self._held_bytes = 0
        self._news = asyncio.Event()
        self._framed = not proxy.tls
        self._reading: asyncio.Future[bytes] | None = None
        if first:
            self._hold(first)

    def works(self) -> tuple[Coroutine[None, None, None], Coroutine[None, None, None]]:
        """Return the two loops of a way: reading, and sending on."""
        return self._take(), self._give()

    def _hold(self, piece: bytes) -> None:
        due = time.monotonic() + self._proxy.lateness(self._link)
        if self._held:
            due = max(due, self._held[-1][0])  # TCP keeps the order, however late it is.
        self._held.append((due, piece))
        self._held_bytes += len(piece)
        self._news.set()

    async def _take(self) -> None:
        try:
            while piece := await self._next():
                for each in await self._swapped(piece) if self._framed else [piece]:
                    for treated in self._proxy.treat(self._link, each) if self._framed else [each]:
                        self._hold(treated)
                while self._held_bytes > HELD_BYTES_MAX:
                    self._news.clear()
                    await self._news.wait()
            self._hold(b"")
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def _next(self, within: float | None = None) -> bytes | None:
        """Return the next piece, b"" at the end; None if it did not come in time."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(read_piece(self._reader, framed=self._framed))
        # Not `wait_for`, which would throw away the half of a frame that has come.
        await asyncio.wait([self._reading], timeout=within)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except OSError:
            return b""  # To the other side a reset is an end like any other.

    async def _swapped(self, frame: bytes) -> list[bytes]:
        """Let the next frame overtake this one, if that is wanted and there soon is a next one."""
        if not self._link.swaps:
            return [frame]
        after = await self._next(SWAP_WITHIN)
        if not after:
            return [frame]
        self._link.swaps = max(0, self._link.swaps - 1)
        self._proxy.fired["reordered"] += 1
        return [after, frame]

    async def _give(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                while not self._held:
                    self._news.clear()
                    await self._news.wait()
                await self._until_passable()
                _, piece = self._held.popleft()
                self._held_bytes -= len(piece)
                self._news.set()
                if not piece:
                    return
                self._writer.write(piece)
                await self._writer.drain()

    async def _until_passable(self) -> None:
        """Wait as long as the link wants the oldest piece to wait."""
        due, piece = self._held[0]
        if self._link.pace and piece:
            self._proxy.fired["slowed"] += 1
            due = max(due, time.monotonic() + len(piece) / self._link.pace)
        told = False
        while self._link.cut or time.monotonic() < due:
            if self._link.cut and not told:
                self._proxy.fired["cut"] += 1
                told = True
            await self._proxy.changed(None if self._link.cut else due - time.monotonic())


async def read_piece(reader: asyncio.StreamReader, *, framed: bool) -> bytes:
    """Read one frame, or what there is; nothing at the end. What is no frame passes as it is."""
    if not framed:
        return await reader.read(CHUNK_BYTES)
    try:
        header = await reader.readexactly(HEADER.size)
        (length,) = HEADER.unpack(header)
        if length > FRAME_BYTES_MAX:
            return header + await reader.read(CHUNK_BYTES)
        return header + await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        return error.partial


def name_in(hello: bytes) -> str:
    """Return the name in a dialer's first frame, whose body is, or holds, JSON."""
    found = NAME.search(hello)
    return found[1].decode() if found else ANYBODY
