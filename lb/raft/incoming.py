"""
A snapshot that a leader sends, piece by piece, until it is whole.

Pieces come in order, each with its checksum, and the whole has one too. A leader that is gone
may have sent the beginning: another goes on with it, if it sends the same.
"""

from __future__ import annotations

import google_crc32c

from lb.raft.messages import SnapChunk, SnapMeta, Snapshot


class Incoming:
    """What has arrived so far."""

    __slots__ = ("_data", "meta", "total", "whole_crc")

    def __init__(self, first: SnapChunk) -> None:
        self.meta: SnapMeta = first.meta
        self.total = first.total
        self.whole_crc = first.whole_crc
        self._data = bytearray()

    @property
    def offset(self) -> int:
        """Return how much is here, from the start."""
        return len(self._data)

    @property
    def whole(self) -> bool:
        """Whether all is here."""
        return len(self._data) == self.total

    def belongs(self, chunk: SnapChunk) -> bool:
        """Whether a chunk is of this very snapshot."""
        return (chunk.meta, chunk.total, chunk.whole_crc) == (
            self.meta,
            self.total,
            self.whole_crc,
        )

    def is_newer_than(self, chunk: SnapChunk) -> bool:
        """Whether a chunk is of a snapshot that this one has overtaken."""
        return (self.meta.index, self.meta.term) > (chunk.meta.index, chunk.meta.term)

    def add(self, chunk: SnapChunk) -> None:
        """Take in the piece that is due; another one changes nothing."""
        if chunk.offset == len(self._data):
            self._data += chunk.data

    def assemble(self) -> Snapshot | None:
        """Return the snapshot; None if the pieces do not make what was promised."""
        data = bytes(self._data)
        if google_crc32c.value(data) != self.whole_crc:
            return None
        return Snapshot(self.meta, data)


def is_sound(chunk: SnapChunk, bytes_max: int) -> bool:
    """Whether a chunk is what it says it is, and of a size that we keep."""
    return (
        0 <= chunk.offset <= chunk.offset + len(chunk.data) <= chunk.total <= bytes_max
        and (len(chunk.data) > 0 or chunk.total == 0)
        and chunk.meta.index > 0
        and google_crc32c.value(chunk.data) == chunk.crc
    )
