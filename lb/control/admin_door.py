"""
The admin's door: one connection of a client, as aiohttp serves it, with our bounds on it.

aiohttp bounds how large a head may be, not how long it may take, nor how many may be on their
way; and it answers what is no HTTP with a text of its own, which quotes what came.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from aiohttp import web

from lb.control.admin_guard import HEADERS, as_response
from lb.control.problems import Problem

BACKLOG = 128
CONNECTIONS_MAX = 1024  # On one admin address. Those past it are closed at once.
HEAD_SECONDS_MAX = 10.0  # From a connection's start to the end of its first head.
KEEPALIVE_SECONDS = 75.0  # From an answer to the end of the next head.
HEAD_BYTES_MAX = 16 * 1024
HEAD_END = b"\r\n\r\n"

log = logging.getLogger("lb.admin.http")


class Door:
    """Lets clients of one listening socket in to `server`."""

    def __init__(self, server: web.Server) -> None:
        self._rooms = server
        self._listening: asyncio.Server | None = None

    async def open(self, sock: socket.socket) -> None:
        """Accept on a listening socket; TCP or unix."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._let_in, sock=sock, backlog=BACKLOG)

    def close(self) -> None:
        """Accept no more."""
        if self._listening is not None:
            self._listening.close()

    def _let_in(self) -> asyncio.Protocol:
        if len(self._rooms.connections) >= CONNECTIONS_MAX:
            return _Refusal()
        return Visit(self._rooms, asyncio.get_running_loop())


class Visit(web.RequestHandler):
    """One connection."""

    __slots__ = ("_deadline", "_tail")

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None is its word for none.
            logger=log,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=HEAD_BYTES_MAX,
            max_field_size=HEAD_BYTES_MAX,
        )
        self._deadline: asyncio.TimerHandle | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(HEAD_SECONDS_MAX, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            self._look_for_the_end(data)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._come_in()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP as every other error is answered. It is nobody's bug."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        response = as_response(Problem("bad-request", "this is no HTTP request that we can read"))
        response.headers.update(HEADERS)
        response.force_close()
        return response

    def _look_for_the_end(self, data: bytes) -> None:
        seen = self._tail + data
        if not self._tail.strip():
            seen = seen.lstrip()  # Empty lines before a head are none of it, nor its end.
        if HEAD_END in seen:
            self._come_in()
        self._tail = seen[-len(HEAD_END) + 1 :]

    def _come_in(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.transport is not None:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
        self.force_close()


class _Refusal(asyncio.Protocol):
    """Whoever comes when all is full."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
