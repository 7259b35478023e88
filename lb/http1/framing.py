"""
Where a body ends.

httptools is not asked: it reports a POST with Upgrade and a length as complete without its
body, which then parses as a second request; a reply to HEAD swallows the next reply; and a
chunk extension of a megabyte passes. Whoever decides where a message ends decides what the
next one is, so that is decided here, once, for both directions (RFC 9112 6 and 7).

A reader's `take(data)` returns `(payload, rest)`: the body's own octets in `data`, and None
while the body goes on, else what follows it (perhaps b""). `FramingError` says that the
octets are no body; what came before it must not be reused.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from lb.http1.head import RequestFields, ResponseFields

CHUNK_LINE_MAX: Final = 256  # size and extensions; extensions are dropped (RFC 9112 7.1.1)
CHUNK_SIZE_DIGITS_MAX: Final = 15  # hexadecimal: under 2**60
TRAILERS_BYTES_MAX: Final = 8 * 1024

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")


Octets = bytes | memoryview  # views spare big bodies a copy


class FramingError(Exception):
    """The octets received cannot be part of the body that was announced."""


class BodyReader(Protocol):
    """Finds a body's end; `open_ended` bodies end with their connection."""

    open_ended: bool

    def take(self, data: Octets) -> tuple[Octets, Octets | None]:
        """Return the body's octets in `data`, and what follows it or None. FramingError."""
        ...


class LengthBody:
    """A body of known length."""

    __slots__ = ("left",)
    open_ended = False

    def __init__(self, length: int) -> None:
        self.left = length

    def take(self, data: Octets) -> tuple[Octets, Octets | None]:
        """See `BodyReader`."""
        left = self.left
        size = len(data)
        if size < left:
            self.left = left - size
            return data, None
        self.left = 0
        if size == left:
            return data, b""
        return data[:left], data[left:]


class CloseBody:
    """A response body that ends with the connection (RFC 9112 6.3, last case)."""

    __slots__ = ()
    open_ended = True

    def take(self, data: Octets) -> tuple[Octets, Octets | None]:
        """See `BodyReader`."""
        return data, None


class ChunkedBody:
    """
    The chunked coding (RFC 9112 7.1), decoded.

    Extensions are dropped and so are trailers (RFC 9110 6.5.1 allows it); both are bounded
    and must be well-formed, or another reader might see a different end.
    """

    __slots__ = ("_held", "_left", "_trailer_bytes", "_want")
    open_ended = False

    def __init__(self) -> None:
        self._held = b""  # an incomplete line
        self._left = 0  # octets left of the present chunk
        self._want = _SIZE
        self._trailer_bytes = 0

    def take(self, data: Octets) -> tuple[Octets, Octets | None]:
        """See `BodyReader`."""
        data = self._held + bytes(data)
        self._held = b""
        pieces: list[bytes] = []
        at = 0
        size = len(data)
        while True:
            if self._want is _DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    return b"".join(pieces), None
                self._want = _DATA_END
            end = data.find(b"\r\n", at, at + CHUNK_LINE_MAX + 2)
            if end < 0:
                self._hold(data[at:], size - at)
                return b"".join(pieces), None
            line = data[at:end]
            at = end + 2
            if self._want is _DATA_END:
                if line:
                    raise FramingError("a chunk is longer than its size says")
                self._want = _SIZE
            elif self._want is _SIZE:
                self._take_size(line)
            elif not line:
                return b"".join(pieces), data[at:]
            else:
                self._take_trailer(line)

    def _take_size(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise FramingError("malformed chunk size")
        self._left = int(match[1], 16)
        self._want = _DATA if self._left else _TRAILERS

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > TRAILERS_BYTES_MAX or _TRAILER.fullmatch(line) is None:
            raise FramingError("malformed or endless trailers")

    def _hold(self, line: bytes, size: int) -> None:
        """Keep an unfinished line for the next call, if it can still become a good one."""
        limit = 1 if self._want is _DATA_END else CHUNK_LINE_MAX + 1
        if size > limit:
            raise FramingError("a chunk's line is too long")
        if b"\n" in line or (b"\r" in line and not line.endswith(b"\r")):
            raise FramingError("bare CR or LF in a chunk's line")
        if self._want is _DATA_END and line not in (b"", b"\r"):
            raise FramingError("a chunk is longer than its size says")
        self._held = line


_SIZE: Final = "size"
_DATA: Final = "data"
_DATA_END: Final = "data end"
_TRAILERS: Final = "trailers"


def request_body(fields: RequestFields) -> BodyReader | None:
    """Return the reader of a request's body, None where it has none (RFC 9112 6.3)."""
    if fields.chunked:
        return ChunkedBody()
    if fields.length > 0:
        return LengthBody(fields.length)
    return None


def response_body(method: bytes, status: int, fields: ResponseFields) -> BodyReader | None:
    """Return the reader of a final response's body, None where it has none (RFC 9112 6.3)."""
    if method == b"HEAD" or status in (204, 304):
        return None
    if fields.chunked:
        return ChunkedBody()
    if fields.length < 0:
        return CloseBody()
    if fields.length > 0:
        return LengthBody(fields.length)
    return None


def chunk(payload: Octets) -> bytes:
    """Return `payload` as one chunk in canonical form."""
    return b"".join((b"%x\r\n" % len(payload), payload, b"\r\n"))


LAST_CHUNK: Final = b"0\r\n\r\n"
