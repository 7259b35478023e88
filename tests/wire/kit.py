"""What the wire tests share: the data path on a loop of its own, raw origins, raw clients."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import uvloop

from lb.metrics import Meters, Reading, create_memory
from lb.model import AccessLog, Endpoint, Health, Listener, Plans, Route, Upstream
from lb.proxy.listener import Listeners
from lb.proxy.shared_table import SharedTables
from lb.proxy.shared_table import create as create_tables
from lb.proxy.switchboard import Switchboard
from lb.proxy.upstream import LiveEndpoint

DEADLINE_S = 30.0
LISTENER = Listener("web", ("127.0.0.1:0",), upstream="app")


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if result := condition():
            return result
        threading.Event().wait(0.005)
    raise AssertionError(f"{what} did not come true in {DEADLINE_S} s")


class Pauses(random.Random):
    """Makes every pause before the same backend is tried again equally long."""

    pause = 0.0

    def uniform(self, a: float, b: float) -> float:
        return self.pause


class Proxy:
    """
    A worker's data path in a thread. `errors` holds what its loop could not handle: any entry
    is a bug of ours, and leaving the context fails on it. `pause` is how long it waits before
    it tries the same backend again. `narrow`: the kernel takes little for its clients, so what
    they do not read stays with us.
    """

    def __init__(
        self,
        origins: Sequence[Origin | Endpoint],
        *,
        listener: Listener = LISTENER,
        upstream: Upstream | None = None,
        routes: Iterable[Route] = (),
        log: str = "off",
        pause: float = 0.001,
        narrow: bool = False,
        material: dict[str, bytes] | None = None,
    ) -> None:
        self.errors: list[dict[str, Any]] = []
        self._memory = create_memory()
        self.reading = Reading([self._memory])
        self._loop = uvloop.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        if narrow:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.port = self._sock.getsockname()[1]
        self.listener = replace(listener, addresses=(f"127.0.0.1:{self.port}",))
        self._rng = Pauses(7)
        self._rng.pause = pause
        self._material = material
        self._plans = Plans(
            node="test",
            via="lb-00000000",
            generation=1,
            listeners=(self.listener,),
            routes=tuple(routes),
            upstreams=(upstream or Upstream("app"),),
            access_log=AccessLog(output=log),
        )
        self._endpoints = tuple(
            each if isinstance(each, Endpoint) else Endpoint(each.address, each.address)
            for each in origins
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.call(self._start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.listeners.drain(0.0), self._loop).result(DEADLINE_S)
        self.call(self.switchboard.close)
        for _ in range(3):
            self.call(lambda: None)  # Turns of the loop, in which closed transports end.
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()
        # Those who look at the counts have them mapped: a descriptor more for each of hundreds
        # of tests is what a process does not have.
        os.close(self._memory)
        if kind is None:
            assert not self.errors, self.errors

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function (or what it returns, if that is a coroutine) on the proxy's loop."""

        async def run() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE_S)

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        tables = create_tables(64)
        self.switchboard = Switchboard(
            loop, 0, 1, Meters(self._memory), self._rng, SharedTables(tables).table
        )
        os.close(tables)
        self.listeners = Listeners(loop, self.switchboard)
        self._ticks = 0
        self.switchboard.worker.deadlines.every_tick(self._count_tick)
        self.switchboard.install(self._plans, {"app": self._endpoints}, {}, self._material)
        await self.listeners.open(self.listener.addresses[0], 0, self._sock)

    def install(
        self,
        plans: Plans | None = None,
        endpoints: Iterable[Endpoint] | None = None,
        verdicts: dict[str, Health] | None = None,
    ) -> None:
        """Swap an edition in."""
        self.call(
            lambda: self.switchboard.install(
                plans,
                None if endpoints is None else {"app": tuple(endpoints)},
                None if verdicts is None else {"app": verdicts},
            )
        )

    def connect(self) -> socket.socket:
        """Open a connection to the listener."""
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)

    def talk(self, octets: bytes) -> bytes:
        """Send octets on a new connection; return all that comes until it ends."""
        with self.connect() as sock:
            sock.sendall(octets)
            return read_all(sock)

    def connect_slowly(self) -> socket.socket:
        """Open a connection that takes little at a time, so that what is unread stays with us."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE_S)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def await_ticks(self, count: int) -> None:
        """Wait until the clock that all deadlines hang on has ticked so often."""
        last = self._ticks + count
        until(lambda: self._ticks >= last, "the proxy's clock")

    def _count_tick(self, now: float) -> None:
        self._ticks += 1

    @property
    def clients(self) -> int:
        """Open client connections."""
        return self.listeners.live

    @property
    def clogged(self) -> bool:
        """Whether some client does not take what we have for it."""
        return bool(self.call(lambda: any(each.clogged for each in self.switchboard.clients)))

    @property
    def backends(self) -> list[LiveEndpoint]:
        """The endpoints of the upstream; look at them on the loop, by `call`."""
        return list(self.switchboard._upstreams["app"]._endpoints.values())

    @property
    def running(self) -> int:
        """Exchanges that are under way, by every account that is kept of them."""

        def count() -> int:
            upstream = self.switchboard._upstreams["app"]
            by_endpoint = sum(each.in_flight for each in self.backends)
            return max(upstream.active, by_endpoint, upstream.budget.retrying, key=abs)

        return int(self.call(count))

    @property
    def idle(self) -> int:
        """Connections to backends that are kept for later."""
        return int(self.call(lambda: sum(each.pool.idle_count for each in self.backends)))

    @property
    def busy(self) -> int:
        """Connections to backends that carry something."""
        return int(self.call(lambda: sum(each.pool.busy_count for each in self.backends)))

    def lose_client_while_connecting(
        self, octets: bytes, meanwhile: Callable[[], Any] = bool
    ) -> None:
        """
        Send octets of a request; lose the client while its backend is being connected to.

        `meanwhile` runs on the loop, before it learns that the connection stands.
        """
        with self.connect() as sock:
            lost = asyncio.run_coroutine_threadsafe(self._lose_who_connects(meanwhile), self._loop)
            self.call(lambda: None)  # It looks from here on.
            sock.sendall(octets)
            lost.result(DEADLINE_S)

    async def _lose_who_connects(self, meanwhile: Callable[[], Any]) -> None:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            for client in self.switchboard.clients:
                if client.exchange is not None and client.exchange._connecting is not None:
                    client.kill("client_closed")
                    await asyncio.sleep(0)  # In this turn it begins to connect.
                    meanwhile()
                    return
            await asyncio.sleep(0)
        raise AssertionError("no client's request led to a new connection")


class Origin:
    """
    A raw backend: `script(connection, number)` runs in a thread for each connection and may do
    to its socket whatever it likes; the connection is closed when it returns.
    """

    def __init__(self, script: Callable[[Connection, int], None]) -> None:
        self._script = script
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.connections: list[Connection] = []
        self.requests: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and close every connection."""
        self._sock.close()
        for connection in self.connections:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            sock.settimeout(DEADLINE_S)
            connection = Connection(sock, self.requests)
            self.connections.append(connection)
            number = len(self.connections)
            threading.Thread(target=self._run, args=(connection, number), daemon=True).start()

    def _run(self, connection: Connection, number: int) -> None:
        try:
            self._script(connection, number)
        except OSError:
            pass  # The proxy closed, which many a script provokes.
        finally:
            connection.close()


class Connection:
    """One accepted connection of an origin."""

    def __init__(self, sock: socket.socket, requests: list[bytes]) -> None:
        self.sock = sock
        self._requests = requests
        self._buffer = b""

    def request(self) -> bytes | None:
        """Read a whole request; None at the end of the connection."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        body = b""
        lower = head.lower()
        if b"content-length: " in lower:
            size = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(self._buffer) < size:
                if not (more := self.sock.recv(65536)):
                    return None
                self._buffer += more
            body, self._buffer = self._buffer[:size], self._buffer[size:]
        elif b"transfer-encoding: chunked" in lower:
            body = self._until(b"0\r\n\r\n") or b""
        self._requests.append(head + body)
        return head + body

    def send(self, octets: bytes) -> None:
        """Send octets as they are."""
        self.sock.sendall(octets)

    def reset(self) -> None:
        """Close with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def close(self) -> None:
        """Close so that the other side notices although a thread may be reading."""
        with suppress(OSError):  # Closed already, by us or by the proxy.
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _until(self, end: bytes) -> bytes | None:
        while end not in self._buffer:
            if not (more := self.sock.recv(65536)):
                return None
            self._buffer += more
        found, _, self._buffer = self._buffer.partition(end)
        return found + end


def answering(octets: bytes) -> Callable[[Connection, int], None]:
    """Make a script that answers every request with the same octets, keeping the connection."""

    def script(connection: Connection, number: int) -> None:
        while connection.request() is not None:
            connection.send(octets)

    return script


def response(body: bytes = b"ok", *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a plain response with a length."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def read_all(sock: socket.socket) -> bytes:
    """Read until the connection ends, by FIN or RST."""
    pieces = []
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def read_response(sock: socket.socket, buffer: bytearray | None = None) -> tuple[bytes, bytes]:
    """Read one response that has a length; return head and body. Octets after it stay."""
    buffer = bytearray() if buffer is None else buffer
    while b"\r\n\r\n" not in buffer:
        more = sock.recv(65536)
        assert more, f"closed within a head: {bytes(buffer)!r}"
        buffer += more
    head, _, _ = bytes(buffer).partition(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length: "):
            size = int(line[16:])
    total = len(head) + 4 + size
    while len(buffer) < total:
        more = sock.recv(65536)
        assert more, "closed within a body"
        buffer += more
    body = bytes(buffer[len(head) + 4 : total])
    del buffer[:total]
    return head, body
