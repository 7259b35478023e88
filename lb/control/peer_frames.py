"""
Frames between members: cut out of a stream, and held against their seal.

    u32 length of all that follows   u8 kind   body   [32 bytes of seal]

Numbers are little-endian. The seal is an HMAC-SHA256 over the frame's number in its direction,
its length, its kind and its body, by a key of this connection and direction alone. The number is
not sent: both ends count. So a frame that was changed, repeated, left out, moved or taken from
another connection does not fit, and nothing of it is handed on. Where TLS guards the stream, and
on loopback without a secret, there is no seal.

Pure: bytes in, bytes out. What the kinds mean is for `peer_connection`, their bytes are in
docs/group-wire.md.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from lb.errors import AccordError

BODY_BYTES_MAX: Final = (4 << 20) + 1024  # A message of Raft's, and room for what calls add.
GREETING_BYTES_MAX: Final = 4096  # The same before anybody has proved anything.
SEAL_BYTES: Final = 32

_HEAD: Final = struct.Struct("<IB")
_LENGTH: Final = struct.Struct("<I")
_NUMBER: Final = struct.Struct("<Q")
_LENGTH_BYTES: Final = _LENGTH.size
_HEAD_BYTES: Final = _HEAD.size


class Kind(IntEnum):
    """What a frame is. Numbers are on wires: they are never given another meaning."""

    HELLO = 1
    WELCOME = 2
    PROOF = 3
    READY = 4
    REFUSED = 5
    RAFT = 16
    PING = 17
    PONG = 18
    CALL = 19
    ANSWER = 20
    FAILURE = 21


class BadFrameError(AccordError):
    """Bytes that no member of ours sends, or not in this place."""


class FrameWriter:
    """Makes the frames of one direction. Unsealed until `seal_with`."""

    def __init__(self) -> None:
        self._seal: _Seal | None = None

    def seal_with(self, key: bytes) -> None:
        """Seal every frame from here on."""
        self._seal = _Seal(key)

    def frame(self, kind: int, body: bytes) -> bytes:
        """Return a frame as it travels; each call is the next frame of this direction."""
        if self._seal is None:
            return _HEAD.pack(1 + len(body), kind) + body
        head = _HEAD.pack(1 + len(body) + SEAL_BYTES, kind)
        return b"".join((head, body, self._seal.next(head, body)))


class FrameReader:
    """
    Cuts what arrives into frames.

    Until `open_up` a frame may have `GREETING_BYTES_MAX` and has no seal. A length is held
    against its bound as soon as it is there, before the frame it speaks of is waited for.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._seal: _Seal | None = None
        self._body_max = GREETING_BYTES_MAX

    def open_up(self, key: bytes | None) -> None:
        """Take whole frames from here on, sealed by `key` if there is one."""
        self._body_max = BODY_BYTES_MAX
        self._seal = None if key is None else _Seal(key)

    @property
    def halfway(self) -> int:
        """Bytes of a frame whose rest has not come yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """
        Take in what arrived and yield each frame that is whole now, as kind and body.

        BadFrameError: nothing after this can be trusted. What was yielded before is good.
        `open_up` counts from the next frame on, also within one `feed`.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            data = bytes(buffer) if self._whole(buffer) else b""
            if not data:
                return
            buffer.clear()
        start, end = 0, len(data)
        while end - start >= _LENGTH_BYTES:
            length = self._judged(data, start)
            stop = start + _LENGTH_BYTES + length
            if stop > end:
                break
            kind = data[start + _LENGTH_BYTES]
            body_start = start + _HEAD_BYTES
            if self._seal is None:
                body = data[body_start:stop]
            else:
                body = data[body_start : stop - SEAL_BYTES]
                seal = self._seal.next(data[start:body_start], body)
                if not hmac.compare_digest(seal, data[stop - SEAL_BYTES : stop]):
                    raise BadFrameError("a frame whose seal does not fit")
            start = stop
            yield kind, body
        buffer += data[start:]

    def _whole(self, buffer: bytearray) -> bool:
        """Whether a first frame is there, so that nothing is copied for each piece of it."""
        if len(buffer) < _LENGTH_BYTES:
            return False
        return len(buffer) >= _LENGTH_BYTES + self._judged(buffer, 0)

    def _judged(self, data: bytes | bytearray, start: int) -> int:
        (length,) = _LENGTH.unpack_from(data, start)
        least = 1 if self._seal is None else 1 + SEAL_BYTES
        if not least <= length <= least + self._body_max:
            raise BadFrameError(f"a frame that claims {length} bytes")
        return int(length)


class _Seal:
    """The seals of one direction, in order."""

    def __init__(self, key: bytes) -> None:
        # Copied for each frame: half of what making one from the key would cost.
        self._keyed = hmac.new(key, digestmod="sha256")
        self._number = 0

    def next(self, head: bytes, body: bytes) -> bytes:
        """Return the seal of the next frame."""
        seal = self._keyed.copy()
        seal.update(_NUMBER.pack(self._number) + head)
        seal.update(body)
        self._number += 1
        return seal.digest()
