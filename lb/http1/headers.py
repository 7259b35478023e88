"""
The fields of a message, to be read and changed by name.

Made for who is asked of a request (plugins); what changes on every message, and costs every
message, is `forwarding`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from lb.http1.head import field_values

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
FRAMING: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "max-forwards",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    }
)
"""Fields that frame or route a message: plugins may read them, and we write them."""
OURS: Final = frozenset(
    {
        "forwarded",
        "x-client-cert-subject",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-forwarded-server",
        "x-real-ip",
        "x-request-id",
    }
)
"""Fields in which we speak: a client's own are dropped, see `Peer`."""


class Headers:
    """
    The fields of a message, as they go on; names in any case, values as text (latin-1).

    What frames or routes the message (`FRAMING`) can be read and not written. A request's
    X-Forwarded-* and the like (`OURS`) can be neither: a client may write into them what it likes.
    """

    __slots__ = ("_block", "_kept", "_lines", "_owned")

    def __init__(self, block: bytes, kept: bytes, owned: frozenset[str] = FRAMING | OURS) -> None:
        """`block` is what came, `kept` what of it goes on: lines, each led by CRLF."""
        self._block = block
        self._kept = kept
        self._owned = owned
        self._lines: list[tuple[str, bytes]] | None = None  # Name in lower case, line.

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return self._lines is not None

    @property
    def kept(self) -> bytes:
        """What goes on now: lines, each led by CRLF."""
        if self._lines is None:
            return self._kept
        return b"".join(b"\r\n" + line for _, line in self._lines)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a field."""
        values = self.all(name)
        return values[0] if values else default

    def all(self, name: str) -> list[str]:
        """Return all values of a field, in order."""
        lower = name.lower()
        if self._lines is not None and lower not in FRAMING:
            return [_value_of(line) for known, line in self._lines if known == lower]
        block = self._block if lower in FRAMING else self._kept + b"\r\n"
        return [value.decode("latin-1") for value in field_values(block, lower.encode("latin-1"))]

    def __contains__(self, name: str) -> bool:
        """Whether there is such a field."""
        return bool(self.all(name))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield name and value of each field that goes on, in order."""
        for _, line in self._lines if self._lines is not None else _split(self._kept):
            name, _, value = line.partition(b":")
            yield name.decode("latin-1"), value.strip(b" \t").decode("latin-1")

    def set(self, name: str, value: str) -> None:
        """Have a field once, with this value: where its first one was, else at the end."""
        lower, line = self._line(name, value)
        lines = self._writable()
        at = next((index for index, (known, _) in enumerate(lines) if known == lower), len(lines))
        lines[at:] = [(lower, line), *(each for each in lines[at:] if each[0] != lower)]

    def append(self, name: str, value: str) -> None:
        """Add a field at the end, whether or not there is one of that name."""
        lower, line = self._line(name, value)
        self._writable().append((lower, line))

    def remove(self, name: str) -> None:
        """Take out all fields of a name."""
        lower = self._writable_name(name)
        if lower in self:
            lines = self._writable()
            lines[:] = [each for each in lines if each[0] != lower]

    def rename(self, name: str, to: str) -> None:
        """Give all fields of a name another one, in their places."""
        lower, new = self._writable_name(name), self._writable_name(to)
        if lower in self:
            lines = self._writable()
            lines[:] = [
                each if each[0] != lower else (new, to.encode() + b": " + _raw_value_of(each[1]))
                for each in lines
            ]

    def _writable(self) -> list[tuple[str, bytes]]:
        if self._lines is None:
            self._lines = _split(self._kept)
        return self._lines

    def _writable_name(self, name: str) -> str:
        lower = name.lower()
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a header")
        if lower in self._owned:
            raise ValueError(f"{name} is written by the load balancer itself")
        return lower

    def _line(self, name: str, value: str) -> tuple[str, bytes]:
        lower = self._writable_name(name)
        if _VALUE.fullmatch(value) is None:
            raise ValueError(f"what is to stand in {name} has a character that no header may have")
        return lower, f"{name}: {value.strip()}".encode("latin-1")


def can_be_field(name: str, value: str) -> bool:
    """Whether these may stand in a head: a token, and text without line ends (RFC 9110 5.5)."""
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None


def _split(kept: bytes) -> list[tuple[str, bytes]]:
    lines = kept[2:].split(b"\r\n") if kept else []
    return [(line.partition(b":")[0].decode("latin-1").lower(), line) for line in lines]


def _raw_value_of(line: bytes) -> bytes:
    return line.partition(b":")[2].strip(b" \t")


def _value_of(line: bytes) -> str:
    return _raw_value_of(line).decode("latin-1")
