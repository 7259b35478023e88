"""Sockets that clients connect to: accepting, ceasing to, and ending well."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from time import monotonic
from typing import Final

from lb.proxy.client_connection import ClientConnection
from lb.proxy.switchboard import Switchboard

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

        def accept() -> ClientConnection:
            return self._switchboard.accept(address)

        if sock.family == socket.AF_UNIX:
            making = self._loop.create_unix_server(accept, sock=sock.dup(), backlog=BACKLOG)  # type: ignore[arg-type]
        else:
            making = self._loop.create_server(accept, sock=sock.dup(), backlog=BACKLOG)  # type: ignore[arg-type]
        server = await making
        self._servers[address, slot] = (server, sock)

    async def close(self, address: str, slot: int) -> None:
        """
        Stop accepting there.

        Who is in the queue has been told that we are here, so the queue is taken to its end
        first. Connections stay: what runs ends with `Connection: close`.
        """
        found = self._servers.pop((address, slot), None)
        if found is None:
            return
        server, sock = found
        server.close()
        await self._accept_rest(address, sock)
        sock.close()
        if not any(served == address for served, _ in self._servers):
            for client in tuple(self._switchboard.clients):
                if client.came_to == address:
                    client.draining = True

    async def stop_accepting(self) -> None:
        """Close every listening socket, queues taken to their ends."""
        for address, slot in tuple(self._servers):
            await self.close(address, slot)

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
