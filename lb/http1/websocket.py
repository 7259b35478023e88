"""
Where a WebSocket's frames end, and how to say goodbye between two of them (RFC 6455 5).

A tunnel passes octets, not frames. But whoever ends a tunnel from the middle should say so,
and a close frame is one only where a frame could begin: so the frames are counted along.
"""

from __future__ import annotations

from typing import Final

GOING_AWAY: Final = b"\x88\x02\x03\xe9"  # close, code 1001, as a server sends it
GOING_AWAY_MASKED: Final = b"\x88\x82\0\0\0\0\x03\xe9"  # as a client must; a mask of zeros is one
HEAD_BYTES_MAX: Final = 14


class Frames:
    """Follows the frames of one direction."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""  # of a frame, as far as it has come
        self._left = 0  # octets left of the present frame

    @property
    def between(self) -> bool:
        """Whether the next octet begins a frame."""
        return not self._left and not self._head

    def take(self, data: bytes) -> None:
        """Follow `data`, whatever it is: octets that are no frames do no harm."""
        at = 0
        size = len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            head = self._head + data[at : at + HEAD_BYTES_MAX - len(self._head)]
            length = _head_length(head)
            if length is None or length > len(head):
                self._head = head
                return
            at += length - len(self._head)
            self._head = b""
            self._left = _payload_length(head)


def _head_length(head: bytes) -> int | None:
    """Return how many octets a frame's head has, None while that is not known."""
    if len(head) < 2:
        return None
    short = head[1] & 0x7F
    more = {126: 2, 127: 8}.get(short, 0)
    return 2 + more + (4 if head[1] & 0x80 else 0)


def _payload_length(head: bytes) -> int:
    short = head[1] & 0x7F
    if short == 126:
        return int.from_bytes(head[2:4], "big")
    if short == 127:
        return int.from_bytes(head[2:10], "big")
    return short
