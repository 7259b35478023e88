"""A member's log on a fake disk, small enough to be tried at every byte."""

from __future__ import annotations

import random
from collections.abc import Iterable

from lb.control.recovery import Recovered, recover, segment_files
from lb.control.storage import Sizes, Storage
from lb.control.wal import Identity
from lb.raft.messages import ConfState, Entry, HardState, Kind, Persist, SnapMeta
from raft.fake_disk import FakeDisk

PATH = "/raft"
GROUP = Identity(b"sixteen bytes id", 7)
CONF = ConfState(frozenset({1, 2, 7}), frozenset({9}))
SMALL = Sizes(segment=8 << 10, reserve=16 << 10)


def fake_disk(seed: int = 0, capacity: int | None = None) -> FakeDisk:
    return FakeDisk(random.Random(seed), capacity)


def entry(index: int, term: int = 1, data: bytes = b"") -> Entry:
    return Entry(index, term, Kind.NORMAL, data or b"entry %d of term %d" % (index, term))


def persist(
    *entries: Entry,
    hard: tuple[int, int, int] | None = None,
    snapshot: SnapMeta | None = None,
    must_sync: bool = True,
) -> Persist:
    state = HardState(*hard) if hard else None
    return Persist(0, state, entries, snapshot, must_sync, ())


def new_log(disk: FakeDisk, *persists: Persist, sizes: Sizes = SMALL) -> Storage:
    """A log with these writes in it, each in a frame of its own."""
    storage = Storage.create(disk, PATH, GROUP, CONF, sizes)
    for one in persists:
        storage.write([one])
        storage.tend()
    return storage


def segments(disk: FakeDisk) -> list[str]:
    return [f"{PATH}/{name}" for name in segment_files(disk.list_directory(PATH))]


def indexes(recovered: Recovered) -> list[int]:
    return [entry.index for entry in recovered.entries]


def read_back(disk: FakeDisk) -> Recovered:
    """What the log says, read without changing it."""
    return recover(disk, PATH)


def reopened(disk: FakeDisk, sizes: Sizes = SMALL) -> Recovered:
    """What a member knows that starts on this disk, and that it can go on from there."""
    storage, recovered = Storage.open(disk, PATH, sizes)
    last = storage.last_index
    storage.write([persist(entry(last + 1, max(recovered.hard.term, 1)))])
    storage.close()
    again = recover(disk, PATH)
    assert again.entries[-1].index == last + 1
    assert again.hard == recovered.hard
    return recovered


def texts(entries: Iterable[Entry]) -> list[str]:
    return [entry.data.decode() for entry in entries]
