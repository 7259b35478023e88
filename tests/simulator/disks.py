"""A member's disk, in two forms with one face: a plain one that is quick, and the real code.

What is written is sure when `write` returns. A crash may come while something is being written:
then some of it may be there afterwards, and nobody has been told.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lb.raft.messages import ConfState, Entry, HardState, Persist, SnapMeta, Snapshot
from simulator.tally import Tally


class DiskFailedError(Exception):
    """A sync failed: who had it must end, and its disk is of no use."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a member starts from. Entries follow `base`, which may lie before the snapshot."""

    hard: HardState
    snapshot: Snapshot  # Its index is 0 if there is none.
    base: int
    base_term: int
    entries: tuple[Entry, ...]


class Disk(Protocol):
    """What a member keeps over a crash."""

    full: bool

    def start(self) -> Contents:
        """Read everything, after the first start or a crash."""

    def write(self, persists: Sequence[Persist]) -> None:
        """Make these sure, all or none."""

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Make the file of a snapshot sure that the leader sent; a `write` will name it."""

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Make a snapshot of our own sure."""

    def compact(self, index: int) -> None:
        """Release entries up to an index."""

    def crash(self, persists: Sequence[Persist], installs: Sequence[Snapshot]) -> None:
        """The machine stops while these are being written."""

    def fail_next(self) -> None:
        """Let the next sync fail."""

    def set_full(self, full: bool) -> None:
        """Fill the disk, or make room."""


class PlainDisk:
    """Values in memory. A crash keeps some of the batches that were being written, in order."""

    def __init__(self, conf: ConfState, rng: random.Random, tally: Tally) -> None:
        self.full = False
        self._rng = rng
        self._tally = tally
        self._hard = HardState(0, 0, 0)
        self._snapshot = Snapshot(SnapMeta(0, 0, conf), b"")
        self._files: dict[SnapMeta, Snapshot] = {}  # Put, and not named by any batch yet.
        self._base = (0, 0)
        self._entries: list[Entry] = []
        self._fails = False

    def start(self) -> Contents:
        """Return what is there."""
        base, term = self._base
        return Contents(self._hard, self._snapshot, base, term, tuple(self._entries))

    def write(self, persists: Sequence[Persist]) -> None:
        """Take batches in."""
        if self._fails:
            raise DiskFailedError
        for persist in persists:
            self._take(persist)

    def _take(self, persist: Persist) -> None:
        meta = persist.snapshot
        if meta is not None:
            self._snapshot = self._files.pop(meta)
            if self._term(meta.index) != meta.term:
                self._base, self._entries = (meta.index, meta.term), []
        if persist.entries:
            keep = persist.entries[0].index - self._base[0] - 1
            assert 0 <= keep <= len(self._entries), "a gap in what is saved"
            del self._entries[keep:]
            self._entries += persist.entries
        if persist.hard is not None:
            self._hard = persist.hard

    def _term(self, index: int) -> int | None:
        position = index - self._base[0]
        if position == 0:
            return self._base[1]
        if 0 < position <= len(self._entries):
            return self._entries[position - 1].term
        return None

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it aside."""
        if self._fails:
            raise DiskFailedError
        self._files[snapshot.meta] = snapshot

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Take it, unless a newer one came from the leader meanwhile."""
        if self._fails:
            raise DiskFailedError
        if snapshot.meta.index > self._snapshot.meta.index:
            self._snapshot = snapshot

    def compact(self, index: int) -> None:
        """Let go of entries."""
        index = min(index, self._snapshot.meta.index)
        term = self._term(index)
        if term is None or index <= self._base[0]:
            return
        del self._entries[: index - self._base[0]]
        self._base = (index, term)

    def crash(self, persists: Sequence[Persist], installs: Sequence[Snapshot]) -> None:
        """Keep the first few batches that were under way; or none; or all."""
        kept = self._rng.randrange(len(persists) + 1)
        if persists:
            self._tally.fired["write lost" if kept < len(persists) else "write kept"] += 1
        self._files = {snapshot.meta: snapshot for snapshot in installs}
        for persist in persists[:kept]:
            self._take(persist)
        self._files.clear()

    def fail_next(self) -> None:
        """Fail from now on."""
        self._fails = True

    def set_full(self, full: bool) -> None:
        """Say so; there is always room for promises."""
        self.full = full
