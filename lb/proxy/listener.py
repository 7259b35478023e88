"""Sockets that clients connect to: accepting, ceasing to, and ending well."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from time import monotonic
from typing import Final

from lb.proxy.arrival import Arrival
from lb.proxy.client_connection import ClientConnection
from lb.proxy.switchboard import Switchboard
from lb.proxy.tls import TlsTransport

BACKLOG: Final = 4096
DRAIN_POLL_S: Final = 0.05
WAIT_S: Final = 1.0  # that clients over the limit wait before they are told that it is met
ACCEPTED_A_TURN: Final = 32  # where we accept by ourselves
TOLD_A_TICK: Final = 64  # of those, so that telling them is not what there is most to do

Queue = tuple[str, int]  # an address as the config writes it, and a worker slot


class Listeners:
    """The listening sockets that this worker serves; by address and worker slot."""

    def __init__(self, loop: asyncio.AbstractEventLoop, switchboard: Switchboard) -> None:
        self._loop = loop
        self._switchboard = switchboard
        self._servers: dict[Queue, tuple[asyncio.Server | None, socket.socket]] = {}
        self._full_since: dict[Queue, float] = {}  # of those where we hold clients back
        self._watched: set[Queue] = set()  # of those, where we accept by ourselves
        self._opening: set[asyncio.Task[None]] = set()  # ACCEPTED_A_TURN and few more
        self._coming: Counter[str] = Counter()  # accepted by ourselves, and not counted yet
        self._looking = False
        meters, worker = switchboard.worker.meters, switchboard.worker.worker
        self._view = meters.view
        self._paused = meters.gauge("lb_worker_accept_paused", worker=str(worker))
        switchboard.on_full, switchboard.on_gone = self._full, self._gone
        switchboard.worker.deadlines.every_tick(self._let_in)

    @property
    def live(self) -> int:
        """Open client connections."""
        return len(self._switchboard.clients)

    async def open(self, address: str, slot: int, sock: socket.socket) -> None:
        """Accept on a socket that is ours to close; `address` as in the config."""
        if (address, slot) in self._servers:
            sock.close()
            return
        sock.setblocking(False)
        if self._switchboard.descriptors.plenty:
            self._servers[address, slot] = (await self._serve(address, sock), sock)
        else:
            self._servers[address, slot] = (None, sock)
            self._full_since[address, slot] = monotonic()
            self._let_in(monotonic())

    async def _serve(self, address: str, sock: socket.socket) -> asyncio.Server:
        def accept() -> ClientConnection | TlsTransport | Arrival:
            return self._switchboard.accept(address)

        if sock.family == socket.AF_UNIX:
            return await self._loop.create_unix_server(accept, sock=sock.dup(), backlog=BACKLOG)  # type: ignore[arg-type]
        return await self._loop.create_server(accept, sock=sock.dup(), backlog=BACKLOG)  # type: ignore[arg-type]

    async def close(self, address: str, slot: int, *, for_good: bool = True) -> None:
        """
        Stop accepting there.

        Who is in the queue has been told that we are here, so the queue is taken to its end
        first. Connections stay: what runs ends with `Connection: close`. `for_good`: nobody
        else accepts there; a queue that was lent, or that another worker takes over, goes on.
        """
        found = self._servers.pop((address, slot), None)
        if found is None:
            return
        server, sock = found
        if for_good:
            _let_nobody_in(sock)
        self._leave_to_server((address, slot), sock)
        if server is not None:
            server.close()
        await asyncio.sleep(0)  # Handshakes that have begun end in the queue.
        await self._accept_rest(address, sock)
        sock.close()
        if for_good and not any(served == address for served, _ in self._servers):
            for client in tuple(self._switchboard.clients):
                if client.came_to == address:
                    client.draining = True

    async def stop_accepting(self) -> None:
        """Close every listening socket, queues taken to their ends."""
        for address, slot in tuple(self._servers):
            await self.close(address, slot, for_good=False)

    async def drain(self, seconds: float) -> None:
        """Stop accepting, finish what runs within `seconds`, then cut what is left."""
        await self.stop_accepting()
        until = monotonic() + seconds
        while self._switchboard.clients and monotonic() < until:
            for client in tuple(self._switchboard.clients):
                client.drain()
            await asyncio.sleep(DRAIN_POLL_S)
        for client in tuple(self._switchboard.clients):
            client.kill("shutdown")

    # Holding clients back.

    def _full(self, address: str) -> None:
        """No more may come in there, or few: let them wait in the kernel's queue."""
        # Not at once: who is being accepted is still the server's.
        if any(queue[0] == address and found[0] for queue, found in self._servers.items()):
            self._loop.call_soon(self._hold_back, address)

    def _hold_back(self, address: str) -> None:
        self._cease(address)
        self._let_in(monotonic())

    def _cease(self, address: str | None = None) -> None:
        """Have no server accept there, or anywhere."""
        for queue, (server, sock) in self._servers.items():
            if server is not None and address in (None, queue[0]):
                server.close()  # A dup of the socket: the queue stays, and who is in it.
                self._servers[queue] = (None, sock)
                self._full_since[queue] = monotonic()

    def _gone(self) -> None:
        """Somebody left: there may be room."""
        if self._full_since and not self._looking:
            self._looking = True
            self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        self._looking = False
        self._let_in(monotonic())

    def _let_in(self, now: float) -> None:
        """Let in as many as there is room for; tell those who have waited long enough."""
        if self._switchboard.descriptors.room <= 0:
            self._cease()  # Where none is left at all, a server closes whom it accepts.
        held = 0
        for queue, since in tuple(self._full_since.items()):
            _, sock = self._servers[queue]
            room = self._switchboard.room(queue[0]) - self._coming[queue[0]]
            if room > 0:
                self._full_since[queue] = now
                emptied = self._accept_some(queue[0], sock, min(room, ACCEPTED_A_TURN))
                if emptied and self._switchboard.descriptors.plenty:
                    self._spawn(self._reopen(queue))
                else:
                    self._watch(queue, sock)
                continue
            held += 1
            if queue in self._watched:
                self._watched.discard(queue)
                self._loop.remove_reader(sock.fileno())
            if now - since >= WAIT_S and self._switchboard.descriptors.room > 0:
                self._accept_some(queue[0], sock, TOLD_A_TICK)
        self._view[self._paused] = held

    def _watch(self, queue: Queue, sock: socket.socket) -> None:
        """
        Accept by ourselves, some at a time.

        uvloop's server takes a whole queue in one turn, and would take it past our limits.
        """
        if queue not in self._watched:
            self._watched.add(queue)
            self._loop.add_reader(sock.fileno(), self._look_again)

    def _accept_some(self, address: str, sock: socket.socket, most: int) -> bool:
        """Accept so many at most; True if nobody is left in the queue."""
        for _ in range(most):
            try:
                accepted, _ = sock.accept()
            except BlockingIOError:
                return True
            except OSError:  # No descriptor after all, or it went while it stood there.
                return False
            self._coming[address] += 1
            self._spawn(self._take_in(address, accepted))
        return False

    async def _take_in(self, address: str, accepted: socket.socket) -> None:
        try:
            await self._take(address, accepted)
        finally:
            self._coming[address] -= 1

    async def _take(self, address: str, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        with suppress(OSError):  # It went while it stood in the queue.
            await self._loop.connect_accepted_socket(  # type: ignore[type-var]
                lambda: self._switchboard.accept(address), accepted
            )

    async def _reopen(self, queue: Queue) -> None:
        _, sock = self._servers[queue]
        self._leave_to_server(queue, sock)
        server = await self._serve(queue[0], sock)
        found = self._servers.get(queue)
        if found is None or found[1] is not sock:
            server.close()  # It was closed meanwhile.
        else:
            self._servers[queue] = (server, sock)

    def _leave_to_server(self, queue: Queue, sock: socket.socket) -> None:
        self._full_since.pop(queue, None)
        if queue in self._watched:
            self._watched.discard(queue)
            self._loop.remove_reader(sock.fileno())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _accept_rest(self, address: str, sock: socket.socket) -> None:
        while True:
            try:
                accepted, _ = sock.accept()
            except (BlockingIOError, OSError):
                return
            await self._take(address, accepted)


# Drops what opens a connection: a TCP segment with SYN and without ACK. See `_let_nobody_in`.
_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # load the octet of flags
    (0x54, 0, 0, 0x12),  # of these, SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)
_SO_ATTACH_FILTER: Final = 26


def _let_nobody_in(sock: socket.socket) -> None:
    """
    Have the kernel drop who knocks from now on, as if the packet were lost.

    This is the socket's, whoever else holds it, and nothing takes it back.

    Closing resets all who are in the queue, and between our last accept and the close somebody
    may get in. Dropped, a client knocks again a second later, and is refused in good order.
    """
    if sock.family == socket.AF_UNIX:
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("HP", len(_NO_SYN), ctypes.addressof(program)),
    )
