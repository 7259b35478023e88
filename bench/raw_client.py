"""An HTTP/1.1 client that costs next to nothing: one connection, one request at a time.

Not here: anything that a server under measurement does not send. Bodies come with a length or
in chunks; everything else is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

PATIENCE = 10.0


class Connection(asyncio.Protocol):
    """A connection that is kept; `ask` is called again only when the last answer is there."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""
        self.head = b""  # Of the last answer.

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect on the loopback."""
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(cls, "127.0.0.1", port)
        return made

    async def ask(self, request: bytes, patience: float = PATIENCE) -> tuple[int, bytes]:
        """Send a whole request; return the answer's status and body."""
        if self._transport is None:
            raise ConnectionError("closed")
        waiting: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        self._transport.write(request)
        try:
            async with asyncio.timeout(patience):
                return await waiting
        finally:
            self._waiting = None

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.abort()

    # --- Called by the loop -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class.

    def data_received(self, data: bytes) -> None:
        """Answer whoever waits once an answer is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        whole = answer_in(self._buffer)
        if whole is None:
            return
        self.head, body = whole
        self._buffer = b""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((int(self.head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._transport = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionError("closed before an answer"))


def answer_in(data: bytes) -> tuple[bytes, bytes] | None:
    """Cut an answer into head and body; None while it is not whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, start = data[:end], end + 4
    fields = head.lower()
    place = fields.find(b"\r\ncontent-length:")
    if place >= 0:
        length = int(fields[place + 17 :].split(b"\r\n", 1)[0])
        return (head, data[start : start + length]) if len(data) >= start + length else None
    if b"\r\ntransfer-encoding: chunked" in fields:
        body = b""
        while (line := data.find(b"\r\n", start)) >= 0:
            length = int(data[start:line], 16)
            start = line + 2 + length + 2
            if start > len(data):
                return None
            if not length:
                return head, body
            body += data[line + 2 : line + 2 + length]
        return None
    if head[9:12] in (b"204", b"304"):
        return head, b""
    raise ValueError(f"an answer without a length: {head!r}")


def request(
    method: str, path: str, body: bytes = b"", fields: Mapping[str, str] | None = None
) -> bytes:
    """Make a whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def field_of(head: bytes, name: str) -> str:
    """Return a field of an answer's head, or nothing."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.decode("latin-1").lower() == name:
            return value.strip().decode("latin-1")
    return ""
