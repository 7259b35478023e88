"""Commands as bytes, for the log: one byte that names the form, then JSON, packed if it is long.

A member that cannot read a command must stop applying: whoever skipped it would have another
state than the rest from there on, and not know it.
"""

from __future__ import annotations

import json
import zlib
from typing import Final

from lb.errors import OperatorError
from lb.registry.commands import Command, command_from_plain, command_to_plain

JSON: Final = 1
PACKED: Final = 2  # JSON, compressed with zlib.

PACK_FROM_BYTES: Final = 16 << 10
COMMAND_BYTES_MAX: Final = 64 << 20  # Of the JSON, however small it was packed.


class UnknownCommandError(OperatorError):
    """An entry of the log that this version cannot read, and so must not pass over."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the log holds a command that this version cannot read: {why}",
            "upgrade this instance to the version that the rest of the group runs",
        )


def encode_command(command: Command) -> bytes:
    """Make the data of an entry."""
    text = json.dumps(command_to_plain(command), separators=(",", ":")).encode()
    if len(text) < PACK_FROM_BYTES:
        return bytes([JSON]) + text
    return bytes([PACKED]) + zlib.compress(text, level=1)


def decode_command(data: bytes) -> Command:
    """Read what `encode_command` made, this version's or an older one's; UnknownCommandError."""
    text = _unpack(data)
    try:
        plain = json.loads(text)
        return command_from_plain(plain)
    except KeyError as error:
        raise UnknownCommandError(f"it has or lacks {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UnknownCommandError(str(error)) from error


def _unpack(data: bytes) -> bytes:
    form, body = data[:1], data[1:]
    if form == bytes([JSON]):
        return body
    if form != bytes([PACKED]):
        raise UnknownCommandError(f"it is of form {form.hex() or 'nothing'}")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(body, COMMAND_BYTES_MAX)
    except zlib.error as error:
        raise UnknownCommandError(str(error)) from error
    if not unpacker.eof or unpacker.unused_data:
        raise UnknownCommandError(f"it is cut short, or longer than {COMMAND_BYTES_MAX} bytes")
    return text
