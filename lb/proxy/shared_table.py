"""
Numbers by key in memory that all workers of an instance share, and that no worker waits for.

The memory (a memfd that the supervisor makes and each worker maps) is a header and then places of
16 bytes, eight to a bucket:

    header      magic and format 8 bytes, number of places 8, salt 32, nothing to 64
    place       the number times the key's tag, and the number: two float64; zeros where unused

A key belongs into one bucket and has a tag, 52 bits as a float64 from 1 to 2; its digest says
both, so at most eight places are looked at. The digest is keyed by the salt, which only workers
know: no client can make up keys that meet another's. In a full bucket the smallest number makes
room. Numbers are mostly times, so that is the one that is over first; and who asks with ever new
keys pushes out his own before any that lies further ahead.

Nobody locks. A place is written by one copy of 16 bytes, and its first half fits only its second
and its key: what is torn, or mixed from two writers, reads as nothing. (A product of floats and
not a hash, because it costs a tenth.) Two workers that write at once may lose one of the writes,
and that is all they may lose. What one reads was put for this key, by somebody, whole.

Not here: growing, counting, taking out; a memory that should be larger is made larger at start.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from hashlib import blake2b
from struct import Struct
from typing import Final

PLACES_MAX: Final = 262_144  # 4 MiB, and a page costs nothing until something is in it.
KNOWN_MAX: Final = 8_192  # Keys of one table whose place a worker remembers.
KNOWN_BYTES_MAX: Final = 64  # Of a key that is remembered: clients choose how long keys are.
NUMBER_MAX: Final = sys.float_info.max / 2  # Times any tag it is still a number.

FORMAT: Final = 1
MAGIC: Final = b"LBTABL\0" + bytes([FORMAT])
SALT_BYTES: Final = 32
_HEADER: Final = Struct("=8sQ32s")
_PLACE: Final = Struct("@dd")
_BUCKET: Final = Struct("@16d")
_DIGEST: Final = Struct("=QQ")
_FIRST: Final = 64  # Where places begin.
_IN_BUCKET: Final = 8

_Known = tuple[float, int, slice]  # A key's tag, where its place begins, and its place.


def create(places: int = PLACES_MAX) -> int:
    """
    Make a memory with a new salt; returns the descriptor, which the caller owns.

    `places` is a power of two, and at least eight.
    """
    assert places >= _IN_BUCKET, "one bucket is the least"
    assert places & (places - 1) == 0, "a digest's low bits choose the bucket"
    descriptor = os.memfd_create("lb-tables", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _FIRST + places * _PLACE.size)
    # Nobody can shorten it under a worker, which would die of SIGBUS.
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.write(descriptor, _HEADER.pack(MAGIC, places, os.urandom(SALT_BYTES)))
    return descriptor


class SharedTables:
    """A worker's view of the memory: gives out tables by name."""

    def __init__(self, memory: int | mmap.mmap) -> None:
        """
        A descriptor is mapped, and stays the caller's to close.

        ValueError if it is no memory of this format: one that another version made.
        """
        mapped = mmap.mmap(memory, 0) if isinstance(memory, int) else memory
        self._view = memoryview(mapped)
        size = len(self._view)
        if size < _FIRST:
            raise ValueError("too short for a table")
        magic, places, self._salt = _HEADER.unpack_from(self._view)
        if magic != MAGIC or size != _FIRST + places * _PLACE.size or places & (places - 1):
            raise ValueError("not a table of this format")
        self._buckets = places // _IN_BUCKET

    def table(self, name: str) -> SharedTable:
        """Return the table of a name; all of one name are one, in all workers."""
        person = blake2b(name.encode(), digest_size=blake2b.PERSON_SIZE).digest()
        keyed = blake2b(digest_size=_DIGEST.size, key=self._salt, person=person)
        return SharedTable(self._view, self._buckets, keyed)


class SharedTable:
    """One table, as `lb.plugin.Table` has it. A number of zero is as good as none."""

    __slots__ = ("_keyed", "_known", "_mask", "_view")

    def __init__(self, view: memoryview, buckets: int, keyed: blake2b) -> None:
        self._view = view
        self._mask = buckets - 1
        self._keyed = keyed
        self._known: dict[bytes, _Known] = {}

    def get(self, key: bytes) -> float:
        """Return the number; 0.0 if there is none."""
        known = self._known.get(key)
        if known is not None:
            tag, at, _ = known
            check, number = _read(self._view, at)
            if check == number * tag and number:
                return number  # type: ignore[no-any-return]
        tag, first = self._digest(key)
        at, number = self._find(tag, first)
        if at >= 0:
            self._remember(key, tag, at)
        return number

    def put(self, key: bytes, value: float) -> None:
        """Keep a number; what is none (NaN), or has no end, is not kept."""
        if not -NUMBER_MAX < value < NUMBER_MAX:
            return
        known = self._known.get(key)
        if known is not None:
            tag, at, place = known
            check, number = _read(self._view, at)
            if check == number * tag and number:
                self._view[place] = _write(value * tag, value)
                return
        tag, first = self._digest(key)
        at, _ = self._find(tag, first)
        if at < 0:
            at = self._smallest(first)
        place = self._remember(key, tag, at)
        self._view[place] = _write(value * tag, value)

    def _digest(self, key: bytes) -> tuple[float, int]:
        """Return a key's tag, and where its bucket begins."""
        keyed = self._keyed.copy()
        keyed.update(key)
        low, high = _DIGEST.unpack(keyed.digest())
        return 1.0 + (high >> 12) / 2.0**52, _FIRST + (low & self._mask) * _BUCKET.size

    def _find(self, tag: float, first: int) -> tuple[int, float]:
        """Return where a key's place begins, and its number; -1 if it has none."""
        found = _BUCKET.unpack_from(self._view, first)
        for index in range(0, 2 * _IN_BUCKET, 2):
            number = found[index + 1]
            if found[index] == number * tag and number:
                return first + index * 8, number
        return -1, 0.0

    def _smallest(self, first: int) -> int:
        """Return the place in a bucket that makes room: one that is not used has zero in it."""
        numbers = _BUCKET.unpack_from(self._view, first)[1::2]
        leaves = 0.0 if 0.0 in numbers else min(numbers)
        return first + numbers.index(leaves) * _PLACE.size

    def _remember(self, key: bytes, tag: float, at: int) -> slice:
        place = slice(at, at + _PLACE.size)
        if len(key) <= KNOWN_BYTES_MAX:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = (tag, at, place)
        return place


_read = _PLACE.unpack_from
_write = _PLACE.pack
