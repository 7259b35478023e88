"""
What a connection becomes after a 101: octets both ways, until one side ends or none speak.

The two connections carry the octets as bodies without end, so pausing, counting and closing
work as for any body. What is special is here: the tunnel's own clock, keep-alive of TCP, and
the goodbye that a WebSocket gets when we have to end it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from lb.http1.websocket import GOING_AWAY, GOING_AWAY_MASKED, Frames

KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 10
KEEPALIVE_PROBES: Final = 6
WEBSOCKET: Final = b"websocket"


class Tunnel:
    """One tunnel; `idle_s` is how long both sides may be silent."""

    __slots__ = ("_from_backend", "_from_client", "idle_s")

    def __init__(self, token: bytes, idle_s: float) -> None:
        self.idle_s = idle_s
        speaks = token == WEBSOCKET
        self._from_client = Frames() if speaks else None
        self._from_backend = Frames() if speaks else None

    def client_ended(self) -> None:
        """Nothing can be said to the backend any more, a goodbye included."""
        self._from_client = None

    def from_client(self, data: bytes) -> None:
        """Follow what the client sends."""
        if self._from_client is not None:
            self._from_client.take(data)

    def from_backend(self, data: bytes) -> None:
        """Follow what the backend sends."""
        if self._from_backend is not None:
            self._from_backend.take(data)

    def goodbyes(self) -> tuple[bytes, bytes]:
        """
        Return what to send to the client and to the backend before the end.

        Empty where it is no WebSocket, or where a frame is under way.
        """
        to_client, to_backend = self._from_backend, self._from_client
        return (
            GOING_AWAY if to_client is not None and to_client.between else b"",
            GOING_AWAY_MASKED if to_backend is not None and to_backend.between else b"",
        )


def keep_alive(transport: asyncio.Transport) -> None:
    """Let TCP notice a peer that vanished without a word."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
