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


class Log:
    """
    The whole log: the view, and on top of it the tail that is not on the disk yet.

    What the view holds from the tail's start on has been written over, here if not there.
    """

    __slots__ = ("_handed", "_tail", "_tail_first", "_view", "restoring")

    def __init__(self, view: LogView) -> None:
        self._view = view
        self._tail: list[Entry] = []
        self._tail_first = view.last + 1
        self._handed = view.last  # Handed out to be made sure, up to here.
        self.restoring: Snapshot | None = None  # Taken in, and not on the disk yet.

    # --- What is there ------------------------------------------------------------------------

    @property
    def first(self) -> int:
        """Return the index of the first entry that is not only in a snapshot."""
        return self.restoring.meta.index + 1 if self.restoring else self._view.first

    @property
    def last(self) -> int:
        """Return the index of the last entry."""
        return self._tail_first + len(self._tail) - 1

    @property
    def last_term(self) -> int:
        """Return its term."""
        return self._tail[-1].term if self._tail else self.term(self._tail_first - 1)

    @property
    def stable(self) -> int:
        """Return how far the log is on the disk; 0 while another log is, a snapshot's."""
        return 0 if self.restoring else self._tail_first - 1

    @property
    def snapshot(self) -> Snapshot:
        """Return the newest snapshot that is on the disk."""
        return Snapshot(self._view.snapshot_meta(), self._view.snapshot_data())

    @property
    def snapshot_index(self) -> int:
        """Return the index of that."""
        return self._view.snapshot_meta().index

    def term(self, index: int) -> int:
        """Return an entry's term. Compacted, Unavailable: there is none."""
        place = index - self._tail_first
        if place >= len(self._tail):
            raise Unavailable(f"there is no entry {index} yet")
        if place >= 0:
            return self._tail[place].term
        if self.restoring is None:
            return self._view.term(index)
        if index == self.restoring.meta.index:
            return self.restoring.meta.term
        raise Compacted(f"entry {index} is in a snapshot")

    def matches(self, index: int, term: int) -> bool:
        """Whether that entry is here: if so, all before it are as well, and the same."""
        try:
            return self.term(index) == term
        except LookupError:
            return False

    def as_complete_as(self, index: int, term: int) -> bool:
        """Whether a log that ends there has all that ours may have committed (5.4.1)."""
        return (term, index) >= (self.last_term, self.last)

    def entries(self, lo: int, hi: int, max_bytes: int) -> Sequence[Entry]:
        """Return entries from `lo` on, before `hi`, at least one and else within the bytes."""
        place = lo - self._tail_first
        if place >= 0:
            return within(self._tail[place : hi - self._tail_first], max_bytes)
        if self.restoring is not None:
            raise Compacted(f"entry {lo} is in a snapshot")
        below = self._view.entries(lo, min(hi, self._tail_first), max_bytes)
        if lo + len(below) < self._tail_first or hi <= self._tail_first:
            return below
        return within((*below, *self._tail[: hi - self._tail_first]), max_bytes)

    def last_at_most(self, index: int, term: int) -> tuple[int, int]:
        """
        Return the last place, up to `index`, whose term is at most `term`: (index, term).

        Two logs can't agree at a place whose terms differ, so a whole term is passed over at
        once. Term 0: all we know is that there is a place.
        """
        index = min(index, self.last)
        try:
            while (here := self.term(index)) > term:
                index -= 1
        except Compacted:
            return index, 0
        return index, here

    # --- What changes it ----------------------------------------------------------------------

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries after the last."""
        for entry in entries:
            assert entry.index == self.last + 1, "a log has no gaps"
            self._tail.append(entry)

    def cut(self, index: int) -> None:
        """Take off all from `index` on, to be written over."""
        assert self.first <= index <= self.last
        if index >= self._tail_first:
            del self._tail[index - self._tail_first :]
        else:
            self._tail.clear()
            self._tail_first = index
        self._handed = min(self._handed, index - 1)

    def restore(self, snapshot: Snapshot) -> None:
        """Let a snapshot take the place of all."""
        assert self.restoring is None, "one at a time"
        self.restoring = snapshot
        self._tail.clear()
        self._tail_first = snapshot.meta.index + 1
        self._handed = snapshot.meta.index

    # --- On its way to the disk ---------------------------------------------------------------

    @property
    def has_unhanded(self) -> bool:
        """Whether there are entries to be made sure of."""
        return self._handed < self.last

    def hand_out(self) -> tuple[Entry, ...]:
        """Return those, once."""
        entries = tuple(self._tail[self._handed + 1 - self._tail_first :])
        self._handed = self.last
        return entries

    def made_sure(self, index: int, term: int) -> None:
        """Entries up to this one, which is still in the log, are on the disk and in the view."""
        assert self.restoring is None
        assert self.term(index) == term == self._view.term(index)
        if index >= self._tail_first:
            del self._tail[: index + 1 - self._tail_first]
            self._tail_first = index + 1

    def restored(self) -> None:
        """The snapshot that all was restored from is on the disk and in the view."""
        assert self.restoring is not None
        assert self._view.snapshot_meta() == self.restoring.meta
        self.restoring = None


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
