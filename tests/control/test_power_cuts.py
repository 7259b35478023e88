"""The power goes between any two system calls, and what was promised is there afterwards.

One script writes, overwrites, goes on to new segments, takes snapshots, is sent one, and
compacts (hazard 22). It is run once for each system call it makes, the power cut before that
call, and then what the disk kept is compared with what was promised: all of it, and of the step
under way all or nothing. Afterwards the same is done to the start that cleans up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from lb.control.recovery import NoLogError, Recovered, recover
from lb.control.storage import Sizes, Storage
from lb.control.wal import DamagedLog
from lb.raft.messages import ConfState, Entry, HardState, Persist, SnapMeta, Snapshot
from raft.fake_disk import FakeDisk, PowerCut
from raft.log_kit import CONF, GROUP, PATH, entry, fake_disk, persist

TINY = Sizes(segment=6 << 10, reserve=2 << 10)
LATER = ConfState(frozenset({7}), frozenset())


class Promises:
    """What a member's log must say, in the simplest form."""

    def __init__(self) -> None:
        self.hard = HardState()
        self.snapshot = Snapshot(SnapMeta(0, 0, CONF), b"")
        self.entries: dict[int, Entry] = {}

    def take(self, one: Persist | Snapshot) -> None:
        if isinstance(one, Snapshot):
            self.snapshot = one
            self.commit(one.meta.index)
            return
        if one.snapshot is not None:
            self.snapshot = Snapshot(one.snapshot, state(one.snapshot.index))
            self.entries.clear()
            self.commit(one.snapshot.index)
        for written in one.entries:
            self.entries = {i: e for i, e in self.entries.items() if i < written.index}
            self.entries[written.index] = written
        if one.hard is not None:
            self.hard = one.hard

    def commit(self, index: int) -> None:
        self.hard = HardState(self.hard.term, self.hard.vote, max(self.hard.commit, index))

    def kept_by(self, recovered: Recovered) -> bool:
        """Whether all this was found, and nothing else; entries in the snapshot may be gone."""
        wanted = {i: e for i, e in self.entries.items() if i > recovered.base_index}
        return (
            recovered.hard == self.hard
            and recovered.snapshot == self.snapshot.meta
            and recovered.conf == self.snapshot.meta.conf
            and (recovered.data or b"") == self.snapshot.data
            and recovered.base_index <= self.snapshot.meta.index
            and {e.index: e for e in recovered.entries} == wanted
        )


class Story:
    """The script, and how far it has come."""

    def __init__(self) -> None:
        self.sure: Promises | None = None  # None: not even a log was promised.
        self.maybe: Promises | None = Promises()  # With the step under way.

    def run(self, disk: FakeDisk) -> None:
        storage = Storage.create(disk, PATH, GROUP, CONF, TINY)
        self.sure = self.maybe
        for index in range(1, 9):
            self.write(storage, persist(entry(index), hard=(1, 7, max(0, index - 3))))
        self.write(storage, persist(entry(7, 2), entry(8, 2, b"x" * 1500), hard=(2, 0, 6)))
        self.write(storage, persist(hard=(3, 7, 6)))
        self.save(storage, 6, term=1)
        storage.compact(3)
        for index in range(9, 14):
            self.write(storage, persist(entry(index, 3), hard=(3, 7, index - 1)))
        self.save(storage, 12, term=3)
        storage.compact(12)
        storage.put_snapshot(Snapshot(SnapMeta(30, 4, LATER), state(30)))
        sent = persist(entry(31, 4), hard=(4, 0, 30), snapshot=SnapMeta(30, 4, LATER))
        self.write(storage, sent)
        for index in range(32, 37):
            self.write(storage, persist(entry(index, 4), hard=(4, 0, index - 1)))
        storage.compact(30)
        self.save(storage, 35, term=4)
        storage.compact(35)
        storage.close()

    def write(self, storage: Storage, one: Persist) -> None:
        self.begin(one)
        storage.write([one])
        self.sure = self.maybe
        storage.tend()

    def save(self, storage: Storage, index: int, term: int) -> None:
        snapshot = Snapshot(SnapMeta(index, term, CONF if index < 30 else LATER), state(index))
        self.begin(snapshot)
        storage.put_snapshot(snapshot)
        storage.mark_snapshot(snapshot.meta)
        self.sure = self.maybe

    def begin(self, one: Persist | Snapshot) -> None:
        self.maybe = copy.deepcopy(self.sure)
        assert self.maybe is not None
        self.maybe.take(one)

    def judge(self, disk: FakeDisk) -> None:
        """Fail unless the disk has what was promised, and at most one step more."""
        try:
            recovered = recover(disk, PATH)
        except NoLogError:
            assert self.sure is None, "a log was promised, and there is none"
            return
        assert self.maybe is not None
        kept = [self.sure is not None and self.sure.kept_by(recovered)]
        assert any([*kept, self.maybe.kept_by(recovered)]), recovered


def state(index: int) -> bytes:
    return b"state after %d;" % index * 50


def calls_of(story: Story) -> int:
    disk = fake_disk()
    story.run(disk)
    return disk.calls


def cut_story(call: int, seed: int, keep: float) -> tuple[Story, FakeDisk]:
    """Run the script until the power goes before that call."""
    story, disk = Story(), fake_disk(seed)
    disk.keep = keep
    disk.stop_before(call)
    with pytest.raises(PowerCut):
        story.run(disk)
    disk.power_cut()
    return story, disk


def start(disk: FakeDisk) -> Storage:
    try:
        return Storage.open(disk, PATH, TINY)[0]
    except NoLogError:
        return Storage.create(disk, PATH, GROUP, CONF, TINY)


CALLS = calls_of(Story())
KEEPS = [0.0, 0.2, 0.5, 0.5, 0.5, 0.5, 0.8, 1.0]


def sweep() -> None:
    for call in range(CALLS):
        for seed, keep in enumerate(KEEPS):
            story, disk = cut_story(call, seed, keep)
            story.judge(disk)
            start(disk).close()
            story.judge(disk)


def test_the_script_goes_everywhere() -> None:
    story, disk = Story(), fake_disk()
    disk.trace = []
    story.run(disk)

    calls = {line.split(" ")[0] for line in disk.trace}
    assert calls == {
        "make_directory", "create", "preallocate", "pwrite", "sync", "rename", "unlink",
        "sync_directory",
    }  # fmt: skip
    for name in ("wal-0000000003", "snap-", "reserve", "spare"):
        assert any(name in line for line in disk.trace)
    assert any(line.startswith("unlink wal-") for line in disk.trace)
    assert any(line.startswith("unlink snap-") for line in disk.trace)


def test_power_cut_before_every_system_call() -> None:
    """T60: rotation, snapshot, rename, compaction, the reserve: there is no wrong moment."""
    sweep()


def test_power_cut_while_the_last_one_is_being_made_good() -> None:
    cuts = 0
    for call in range(0, CALLS, 2):
        for again in range(0, 16, 3):
            story, disk = cut_story(call, seed=call, keep=0.5)
            disk.stop_before(again)
            try:
                start(disk).close()
            except PowerCut:
                cuts += 1
            disk.power_cut()
            story.judge(disk)
            storage = start(disk)
            last = storage.last_index
            storage.write([persist(entry(last + 1, 9), hard=(9, 7, 0))])
            storage.close()
            assert recover(disk, PATH).entries[-1] == entry(last + 1, 9)
    assert cuts > CALLS


def test_the_process_ends_at_every_system_call() -> None:
    """The machine stays up, so the page cache may hold what is not on the disk: it is synced."""
    for call in range(CALLS):
        story, disk = Story(), fake_disk()
        disk.keep = 0.0
        disk.stop_before(call)
        with pytest.raises(PowerCut):
            story.run(disk)
        disk.kill()
        story.judge(disk)
        storage = start(disk)
        seen = recover(disk, PATH)
        storage.close()
        disk.power_cut()
        assert recover(disk, PATH) == seen


def no_sync(storage: Storage, file: object) -> None:
    """Promise without waiting for the disk."""


def no_directory_sync(storage: Storage) -> None:
    """Take names for sure at once."""


def release_first(storage: Storage, snapshot: Snapshot) -> None:
    """Make room for a snapshot before it is there."""
    storage._mark = snapshot.meta
    storage._sound_index = snapshot.meta.index
    storage.compact(snapshot.meta.index)
    SAVE(storage, snapshot)


SAVE = Storage.put_snapshot


@pytest.mark.parametrize(
    ("method", "mistake"),
    [
        ("_sync", no_sync),
        ("_sync_directory", no_directory_sync),
        ("put_snapshot", release_first),
    ],
)
def test_the_sweep_finds_mistakes(
    method: str, mistake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, method, mistake)

    with pytest.raises((AssertionError, DamagedLog)):
        sweep()
