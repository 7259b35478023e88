"""Storage on a disk that fails, fills up and is looked at closely; and on the kernel's."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.control.filesystem import RealFileSystem
from lb.control.recovery import NoLogError, recover
from lb.control.storage import DiskFullError, Sizes, Storage, StorageFailedError
from lb.control.wal import DamagedLog
from lb.errors import StartError
from lb.raft.messages import HardState, SnapMeta, Snapshot
from raft.fake_disk import FakeDisk
from raft.log_kit import (
    CONF,
    GROUP,
    PATH,
    SMALL,
    entry,
    fake_disk,
    indexes,
    new_log,
    persist,
    read_back,
    reopened,
    segments,
)


def snapshot(index: int, term: int = 1, data: bytes = b"") -> Snapshot:
    return Snapshot(SnapMeta(index, term, CONF), data or b"state after %d" % index)


def fill(storage: Storage, first: int, last: int, size: int = 700) -> None:
    """Write entries, each in a frame of its own, all but the last committed."""
    for index in range(first, last + 1):
        storage.write([persist(entry(index, data=b"x" * size), hard=(1, 7, index - 1))])
        storage.tend()


def refuses_proposals(storage: Storage) -> bool:
    return storage.full


def snapshots(disk: FakeDisk) -> list[int]:
    names = disk.list_directory(PATH)
    return [int(name[-16:]) for name in names if name.startswith("snap-") and "." not in name]


# --- The order of calls -----------------------------------------------------------------------


def test_a_group_of_writes_is_one_write_and_one_sync() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    disk.trace = []

    storage.write([persist(entry(index), hard=(1, 7, index - 1)) for index in range(1, 9)])

    assert disk.trace == ["pwrite wal-0000000001", "sync wal-0000000001"]
    assert indexes(read_back(disk)) == list(range(1, 9))
    assert read_back(disk).hard == HardState(1, 7, 7)


def test_a_later_write_of_a_group_may_write_over_an_earlier_one() -> None:
    disk = fake_disk()
    storage = new_log(disk)

    storage.write([persist(entry(1), entry(2), entry(3)), persist(entry(2, 2), hard=(2, 0, 0))])

    assert [(e.index, e.term) for e in read_back(disk).entries] == [(1, 1), (2, 2)]


def test_what_need_not_be_sure_waits_for_what_must() -> None:
    disk = fake_disk()
    storage = new_log(disk, persist(entry(1), hard=(1, 7, 0)))
    disk.trace = []
    storage.write([persist(hard=(1, 7, 1), must_sync=False)])
    assert disk.trace == []
    storage.write([persist(entry(2))])

    assert read_back(disk).hard.commit == 1


def test_a_promise_cannot_be_declared_unimportant() -> None:
    storage = new_log(fake_disk(), persist(entry(1), hard=(1, 7, 0)))

    with pytest.raises(AssertionError, match="must be sure"):
        storage.write([persist(hard=(2, 0, 0), must_sync=False)])


def test_the_order_of_a_new_segment() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 7)
    disk.trace = []

    storage.write([persist(entry(8, data=b"x" * 700))])
    storage.tend()

    assert disk.trace == [
        "pwrite spare.tmp",
        "sync spare.tmp",
        "rename wal-0000000002",
        "sync_directory raft",
        "pwrite wal-0000000002",
        "sync wal-0000000002",
        "create spare.tmp",
        "preallocate spare.tmp",
        "sync spare.tmp",
    ]


def test_the_order_of_a_snapshot() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 17)
    for index in (5, 10):
        storage.save_snapshot(snapshot(index))
    disk.trace = []

    storage.save_snapshot(snapshot(15))
    storage.compact(15)

    file = "snap-0000000000000001-0000000000000015"
    assert disk.trace == [
        f"create {file}.tmp",
        f"preallocate {file}.tmp",
        f"pwrite {file}.tmp",
        f"sync {file}.tmp",
        f"rename {file}",
        "sync_directory raft",
        "pwrite wal-0000000003",  # The mark.
        "sync wal-0000000003",
        "unlink snap-0000000000000001-0000000000000005",
        "unlink wal-0000000001",
        "sync_directory raft",
        "unlink wal-0000000002",
        "sync_directory raft",
    ]


# --- Snapshots and compaction -----------------------------------------------------------------


def test_two_snapshots_are_kept_and_the_log_starts_where_it_was_released() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 40)
    for index in (10, 20, 30):
        storage.save_snapshot(snapshot(index))
    storage.compact(25)
    storage.close()

    recovered = reopened(disk)

    assert snapshots(disk) == [20, 30]
    assert recovered.snapshot == SnapMeta(30, 1, CONF)
    assert recovered.data == b"state after 30"
    assert 0 < recovered.base_index <= 25
    assert indexes(recovered) == list(range(recovered.base_index + 1, 41))
    assert recovered.base_term == 1


def test_nothing_is_released_that_no_snapshot_stands_for() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 30)
    storage.save_snapshot(snapshot(2))
    storage.compact(30)

    assert indexes(read_back(disk)) == list(range(1, 31))


def test_a_snapshot_that_was_sent_replaces_the_log() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 20)
    storage.put_snapshot(snapshot(50, term=3))
    storage.write([persist(hard=(3, 0, 50), snapshot=SnapMeta(50, 3, CONF))])
    storage.write([persist(entry(51, 3))])
    storage.compact(50)
    storage.close()

    recovered = reopened(disk)

    assert recovered.snapshot.index == recovered.base_index == 50
    assert (recovered.base_term, indexes(recovered)) == (3, [51])
    assert f"{PATH}/wal-0000000001" not in segments(disk)


def test_a_snapshot_is_put_before_it_is_named() -> None:
    storage = new_log(fake_disk())

    with pytest.raises(AssertionError, match="put before named"):
        storage.write([persist(hard=(3, 0, 50), snapshot=SnapMeta(50, 3, CONF))])


def test_a_snapshot_that_was_never_marked_counts_for_nothing() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 5)
    storage.put_snapshot(snapshot(3))
    storage.close()

    assert reopened(disk).snapshot.index == 0
    assert snapshots(disk) == []


def test_one_of_our_own_that_comes_late_does_not_undo_one_that_was_sent() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 5)
    storage.put_snapshot(snapshot(3))
    storage.put_snapshot(snapshot(9, term=2))
    storage.write([persist(hard=(2, 0, 9), snapshot=SnapMeta(9, 2, CONF))])
    storage.mark_snapshot(SnapMeta(3, 1, CONF))

    assert read_back(disk).snapshot.index == 9


def with_two_snapshots(compacted: int) -> tuple[FakeDisk, str]:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 40)
    storage.save_snapshot(snapshot(10))
    storage.save_snapshot(snapshot(30))
    storage.compact(compacted)
    storage.close()
    return disk, f"{PATH}/snap-0000000000000001-0000000000000030"


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_the_older_snapshot_serves_where_the_log_leads_on_from_it(damage: str) -> None:
    disk, file = with_two_snapshots(compacted=5)
    if damage == "flip":
        disk.flip(file, len(disk.read(file)) - 1)
    elif damage == "cut":
        disk.cut(file, 40)
    else:
        disk.unlink(file)

    storage, recovered = Storage.open(disk, PATH, SMALL)

    assert recovered.snapshot.index == 10
    assert recovered.data == b"state after 10"
    assert set(range(11, 41)) <= set(indexes(recovered))
    assert recovered.hard.commit == 39
    assert any("used snap-" in note for note in recovered.notes)
    storage.compact(40)  # Its mark is at 30, but nothing that is whole stands for that.
    assert recover(disk, PATH).snapshot.index == 10
    storage.save_snapshot(snapshot(35))
    storage.compact(35)
    storage.close()
    assert reopened(disk).data == b"state after 35"


def test_a_damaged_snapshot_without_the_log_before_it_is_damage() -> None:
    disk, file = with_two_snapshots(compacted=25)
    disk.flip(file, 100)

    with pytest.raises(DamagedLog) as caught:
        Storage.open(disk, PATH, SMALL)

    assert caught.value.file == file


def test_each_byte_of_a_snapshot_flipped_is_found() -> None:
    disk, file = with_two_snapshots(compacted=25)
    for offset in range(len(disk.read(file))):
        disk.flip(file, offset, 0x10)
        with pytest.raises(DamagedLog) as caught:
            recover(disk, PATH)
        assert caught.value.file == file
        disk.flip(file, offset, 0x10)
    assert recover(disk, PATH).snapshot.index == 30


def test_snapshots_without_a_log_are_damage_not_a_first_start() -> None:
    disk, _ = with_two_snapshots(compacted=25)
    for name in segments(disk):
        disk.unlink(name)

    with pytest.raises(DamagedLog, match="without the log"):
        Storage.open(disk, PATH, SMALL)


def test_no_log_is_not_a_log_that_says_nothing() -> None:
    with pytest.raises(NoLogError):
        Storage.open(fake_disk(), PATH, SMALL)


# --- A disk that fails ------------------------------------------------------------------------


def work(storage: Storage) -> None:
    fill(storage, 1, 20)
    storage.save_snapshot(snapshot(15))
    storage.compact(15)
    storage.write([persist(hard=(2, 1, 19))])


def calls_of_work() -> tuple[list[str], int]:
    """All system calls of a start and of work, and how many of them are the start's."""
    disk = fake_disk()
    disk.trace = []
    storage = new_log(disk)
    start = len(disk.trace)
    work(storage)
    return disk.trace, start


CALLS, START = calls_of_work()


def failing_disk(number: int) -> FakeDisk:
    """A disk whose call of that number fails, and all others go well."""
    disk = fake_disk()
    disk.fault = lambda _call, _path: errno.EIO if disk.calls == number + 1 else 0
    return disk


@pytest.mark.parametrize("number", range(START))
def test_an_error_at_the_start_is_no_start(number: int) -> None:
    with pytest.raises(StartError, match=r"cannot be used: .*Input/output error"):
        new_log(failing_disk(number))


@pytest.mark.parametrize("number", range(START, len(CALLS)))
def test_an_error_of_any_call_is_final(number: int) -> None:
    """Hazard 33: one error, then all would go well again; it must not be tried."""
    disk = failing_disk(number)
    storage = new_log(disk)
    with pytest.raises(StorageFailedError, match="Input/output error"):
        work(storage)
    disk.fault = None
    with pytest.raises(StorageFailedError):
        storage.write([persist(entry(99))])
    with pytest.raises(StorageFailedError):
        storage.tend()
    with pytest.raises(StorageFailedError):
        storage.compact(1)
    with pytest.raises(StorageFailedError):
        storage.save_snapshot(snapshot(99))
    storage.close()
    disk.kill()

    if "sync" in CALLS[number]:  # What reads well may be in the page cache only.
        with pytest.raises(DamagedLog, match="a sync failed"):
            Storage.open(disk, PATH, SMALL)
    else:
        reopened(disk)


def test_an_unreadable_file_is_damage() -> None:
    disk = fake_disk()
    new_log(disk, persist(entry(1))).close()
    disk.fault = lambda call, path: errno.EIO if call == "read" and "wal" in path else 0

    with pytest.raises(DamagedLog, match="cannot be read") as caught:
        Storage.open(disk, PATH, SMALL)

    assert caught.value.file == segments(disk)[0]


def test_a_directory_in_use_is_refused() -> None:
    disk = fake_disk()
    storage = new_log(disk)

    with pytest.raises(StartError, match="in use"):
        Storage.open(disk, PATH, SMALL)

    storage.close()
    reopened(disk)


# --- A disk that is full ----------------------------------------------------------------------


def test_a_full_disk_refuses_proposals_first_and_still_keeps_promises() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    disk.capacity = disk.used
    fill(storage, 1, 12)
    assert refuses_proposals(storage)
    assert f"{PATH}/reserve" not in disk.list_directory(PATH)
    fill(storage, 13, 20)  # What the reserve gave.
    storage.write([persist(hard=(2, 1, 19))])
    storage.tend()
    assert refuses_proposals(storage)

    disk.capacity += 64 << 10
    storage.tend()

    assert not refuses_proposals(storage)
    assert "reserve" in disk.list_directory(PATH)
    storage.close()
    assert reopened(disk).hard == HardState(2, 1, 19)


def test_a_disk_without_any_room_left_ends_it_and_nothing_promised_is_lost() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    disk.capacity = disk.used
    with pytest.raises(StorageFailedError):
        fill(storage, 1, 200)
    promised = storage.last_index - 1
    storage.close()
    assert promised > 20
    disk.power_cut()
    disk.capacity += 64 << 10

    assert indexes(reopened(disk))[:promised] == list(range(1, promised + 1))


def test_no_room_for_a_snapshot_is_no_disaster() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 5)
    disk.capacity = disk.used + 1000
    with pytest.raises(DiskFullError):
        storage.save_snapshot(snapshot(3, data=b"x" * 2000))
    assert not [name for name in disk.list_directory(PATH) if name.startswith("snap-")]
    fill(storage, 6, 6)
    disk.capacity = None
    storage.tend()
    storage.save_snapshot(snapshot(4, data=b"x" * 2000))
    storage.close()

    assert reopened(disk).snapshot.index == 4


def test_a_start_on_a_full_disk_goes_well_with_the_reserve() -> None:
    disk = fake_disk()
    storage = new_log(disk)
    fill(storage, 1, 5)
    storage.close()
    disk.unlink(f"{PATH}/spare.tmp")
    disk.capacity = disk.used

    storage, recovered = Storage.open(disk, PATH, SMALL)

    assert refuses_proposals(storage)
    assert recovered.hard == HardState(1, 7, 4)
    fill(storage, 6, 20)


# --- The kernel's -----------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system of its own")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_on_the_kernels_files(tmp_path: Path) -> None:
    files, path = RealFileSystem(), str(tmp_path / "raft")
    storage = Storage.create(files, path, GROUP, CONF, SMALL)
    fill(storage, 1, 40)
    storage.save_snapshot(snapshot(30, data=b"state" * 500_000))
    storage.compact(25)
    with pytest.raises(StartError, match="in use"):
        Storage.open(files, path, SMALL)
    storage.close()

    storage, recovered = Storage.open(files, path, SMALL)
    storage.close()

    assert recovered.hard == HardState(1, 7, 39)
    assert recovered.data == b"state" * 500_000
    assert recovered.entries[-1].index == 40
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in Path(path).iterdir()} == {0o600}


def test_a_torn_tail_on_the_kernels_files(tmp_path: Path) -> None:
    files, path = RealFileSystem(), str(tmp_path / "raft")
    storage = Storage.create(files, path, GROUP, CONF, SMALL)
    fill(storage, 1, 3)
    storage.close()
    segment = Path(path) / "wal-0000000001"
    with open(segment, "r+b") as file:
        file.truncate(4 * 512 + 1000)

    storage, recovered = Storage.open(files, path, SMALL)
    storage.close()

    assert indexes(recovered) == [1]
    assert len(recovered.notes) == 1
    assert segment.stat().st_size == SMALL.segment


def test_a_file_system_that_is_really_full(tiny_disk: Path) -> None:
    files, path = RealFileSystem(), str(tiny_disk / "raft")
    sizes = Sizes(segment=64 << 10, reserve=128 << 10)
    storage = Storage.create(files, path, GROUP, CONF, sizes)
    filler = tiny_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    left = os.statvfs(tiny_disk)
    filler.write_bytes(bytes(left.f_bavail * left.f_frsize))

    index = 0
    while not refuses_proposals(storage):
        index += 1
        fill(storage, index, index)
    fill(storage, index + 1, index + 50)
    with pytest.raises(DiskFullError):
        storage.save_snapshot(snapshot(index, data=bytes(1 << 20)))
    fill(storage, index + 51, index + 60)
    filler.unlink()
    storage.tend()
    assert not refuses_proposals(storage)
    storage.save_snapshot(snapshot(index))
    storage.close()

    assert recover(files, path).hard.commit == index + 59


def test_a_file_system_full_to_the_last_byte(tiny_disk: Path) -> None:
    files, path = RealFileSystem(), str(tiny_disk / "raft")
    storage = Storage.create(files, path, GROUP, CONF, Sizes(64 << 10, 128 << 10))
    with pytest.raises(StorageFailedError, match="No space"):
        fill(storage, 1, 5000)
    promised = storage.last_index - 1
    storage.close()
    assert promised > 500

    assert len(recover(files, path).entries) == promised
