"""Sockets that clients connect to: accepting, ceasing to, and ending well."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from contextlib import suppress
from time import monotonic
from typing import Final

from lb.proxy.arrival import Arrival
from lb.proxy.client_connection import ClientConnection
from lb.proxy.switchboard import Switchboard
from lb.proxy.tls import TlsTransport

BACKLOG: Final = 4096
DRAIN_POLL_S: Final = 0.05


class Listeners:
    """The listening sockets that this worker serves; by address and worker slot."""

    def __init__(self, loop: asyncio.AbstractEventLoop, switchboard: Switchboard) -> None:
        self._loop = loop
        self._switchboard = switchboard
        self._servers: dict[tuple[str, int], tuple[asyncio.Server, socket.socket]] = {}

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

        def accept() -> ClientConnection | TlsTransport | Arrival:
            return self._switchboard.accept(address)

        if sock.family == socket.AF_UNIX:
            making = self._loop.create_unix_server(accept, sock=sock.dup(), backlog=BACKLOG)  # type: ignore[arg-type]
        else:
            making = self._loop.create_server(accept, sock=sock.dup(), backlog=BACKLOG)  # type: ignore[arg-type]
        server = await making
        self._servers[address, slot] = (server, sock)

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

    async def _accept_rest(self, address: str, sock: socket.socket) -> None:
        while True:
            try:
                accepted, _ = sock.accept()
            except (BlockingIOError, OSError):
                return
            accepted.setblocking(False)
            with suppress(OSError):  # It went while it stood in the queue.
                await self._loop.connect_accepted_socket(  # type: ignore[type-var]
                    lambda: self._switchboard.accept(address), accepted
                )


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
