"""
The log: what is on the disk, as the driver shows it, and the tail that is not there yet.

`LogView` is what a driver provides; `MemoryLog` is one. `Log` puts the tail on top of it, and
is what the rest of the core reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from lb.raft.messages import Entry, Persist, SnapMeta, Snapshot


class Compacted(LookupError):  # noqa: N818  # A fact about the log, like the next.
    """That entry is in a snapshot now."""


class Unavailable(LookupError):  # noqa: N818
    """There is no such entry yet."""


class LogView(Protocol):
    """What is on the disk: entries `first` to `last`, and a snapshot that leads up to them."""

    @property
    def first(self) -> int:
        """The first entry that is there; `last + 1` if there is none."""

    @property
    def last(self) -> int:
        """The last entry; `first - 1` if there is none."""

    def term(self, index: int) -> int:
        """Return an entry's term. Also known for `first - 1`, where the log was cut."""

    def entries(self, lo: int, hi: int, max_bytes: int) -> Sequence[Entry]:
        """Return entries from `lo` on, before `hi`, at least one and else within the bytes."""

    def snapshot_meta(self) -> SnapMeta:
        """Return the newest snapshot's; index 0 if there is none."""

    def snapshot_data(self) -> bytes:
        """Return that snapshot's state."""


class MemoryLog:
    """A `LogView` in memory. What it holds is what the disk holds; a driver keeps both alike."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        snapshot: Snapshot | None = None,
        base: tuple[int, int] | None = None,
    ) -> None:
        """Take a log that was read back. `base`: index and term of what precedes `entries`."""
        self._snapshot = snapshot or Snapshot(SnapMeta(), b"")
        meta = self._snapshot.meta
        self._base_index, self._base_term = base or (meta.index, meta.term)
        self._entries: list[Entry] = []
        self.append(entries)
        assert self._base_index <= meta.index <= self.last, "the log leads on from the snapshot"

    @property
    def first(self) -> int:
        return self._base_index + 1

    @property
    def last(self) -> int:
        return self._base_index + len(self._entries)

    def term(self, index: int) -> int:
        if index == self._base_index:
            return self._base_term
        return self._entries[self._place(index)].term

    def entries(self, lo: int, hi: int, max_bytes: int) -> Sequence[Entry]:
        if lo >= hi:
            return ()
        self._place(hi - 1)
        start = self._place(lo)
        return within(self._entries[start : start + hi - lo], max_bytes)

    def snapshot_meta(self) -> SnapMeta:
        return self._snapshot.meta

    def snapshot_data(self) -> bytes:
        return self._snapshot.data

    def save(self, persist: Persist, install: Snapshot | None = None) -> None:
        """Take in what has been made sure. To be called before `Node.persisted`."""
        if persist.snapshot is not None:
            assert install is not None, "a snapshot comes with its state"
            assert install.meta == persist.snapshot
            self._snapshot = install
            self._base_index, self._base_term = install.meta.index, install.meta.term
            self._entries.clear()
        self.append(persist.entries)

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries: the first cuts off whatever stood there or after."""
        for entry in entries:
            place = entry.index - self._base_index - 1
            assert 0 <= place <= len(self._entries), "a log has no gaps"
            if place < len(self._entries):
                del self._entries[place:]
            self._entries.append(entry)

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot that this member took of itself, when it is on the disk."""
        meta = snapshot.meta
        assert meta.index > self._snapshot.meta.index, "a snapshot never goes back"
        assert self.term(meta.index) == meta.term
        self._snapshot = snapshot

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, which a snapshot stands for: see `Node.compact`."""
        assert index <= self._snapshot.meta.index, "nothing is forgotten but what is in a snapshot"
        if index > self._base_index:
            term = self.term(index)
            del self._entries[: index - self._base_index]
            self._base_index, self._base_term = index, term

    def _place(self, index: int) -> int:
        if index <= self._base_index:
            raise Compacted(f"entry {index} is in a snapshot")
        if index > self.last:
            raise Unavailable(f"there is no entry {index} yet")
        return index - self._base_index - 1


def within(entries: Sequence[Entry], max_bytes: int) -> Sequence[Entry]:
    """Return as many of the first as fit, but never none."""
    size = 0
    for count, entry in enumerate(entries):
        size += entry.size
        if size > max_bytes and count > 0:
            return entries[:count]
    return entries
