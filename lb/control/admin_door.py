"""
The admin's door: one connection of a client, as aiohttp serves it, with our bounds on it.

aiohttp bounds how large a head may be, not how long it may take, nor how many may be on their
way; and it answers what is no HTTP with a text of its own, which quotes what came.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from aiohttp import web

from lb.control.admin_guard import HEADERS, as_response
from lb.control.problems import Problem

BACKLOG = 128
CONNECTIONS_MAX = 1024  # On one admin address. Those past it are closed at once.
HEAD_SECONDS_MAX = 10.0  # From a connection's start to the end of its first head.
KEEPALIVE_SECONDS = 75.0  # From an answer to the end of the next head.
LINGER_SECONDS_MAX = 2.0  # For the rest of a body that was refused.
HEAD_BYTES_MAX = 16 * 1024
HEAD_END = b"\r\n\r\n"
ACCEPTED_AT_ONCE_MAX: Final = 16  # In one turn of the loop, which has leases and probes as well.
SHUTDOWN_SECONDS_MAX = 1.0  # For TLS to end in order.
BREATHER = 1.0  # Seconds without accepting, where we have no descriptor left.

HANDSHAKE: Final = {
    "ssl_handshake_timeout": HEAD_SECONDS_MAX,
    "ssl_shutdown_timeout": SHUTDOWN_SECONDS_MAX,
}

log = logging.getLogger("lb.admin.http")


Tls = Callable[[], ssl.SSLContext | None]  # What to speak TLS by from now on; None for none.


def plain() -> None:
    """Speak no TLS."""
    return


class Door:
    """Lets clients of one listening socket in to `server`."""

    def __init__(self, server: web.Server, tls: Tls = plain) -> None:
        self._rooms = server
        self._tls = tls
        self._sock: socket.socket | None = None
        self._arriving: set[asyncio.Task[None]] = set()  # Bounded with those who have come in.
        self._breather: asyncio.TimerHandle | None = None

    async def open(self, sock: socket.socket) -> None:
        """Accept on a listening socket; TCP or unix."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Accept no more."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._breather is not None:
            self._breather.cancel()
        self._loop.remove_reader(sock)
        sock.close()
        for task in self._arriving:
            task.cancel()

    def _accept(self) -> None:
        # By hand, so that each handshake goes by the certificates that there are by then.
        assert self._sock is not None
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("admin: nobody can be let in for now: %s", error.strerror or error)
                self._loop.remove_reader(self._sock)
                self._breather = self._loop.call_later(BREATHER, self._go_on)
                return
            if len(self._rooms.connections) + len(self._arriving) >= CONNECTIONS_MAX:
                sock.close()
                continue
            sock.setblocking(False)
            task = self._loop.create_task(self._let_in(sock))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    def _go_on(self) -> None:
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._accept)

    async def _let_in(self, sock: socket.socket) -> None:
        context = self._tls()
        bounds = {} if context is None else HANDSHAKE
        try:
            await self._loop.connect_accepted_socket(self._visit, sock, ssl=context, **bounds)
        except OSError as error:  # No TLS, a bad certificate, or too slow: theirs to find out.
            log.debug("admin: a connection ended before a request: %s", error)

    def _visit(self) -> Visit:
        return Visit(self._rooms, self._loop)


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
            lingering_time=LINGER_SECONDS_MAX,
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
