"""The storage thread: many promises by one sync, none before it, and none after an error."""

from __future__ import annotations

import asyncio
import errno
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from lb.child import EXIT_DISK_FAILED
from lb.control.recovery import recover
from lb.control.storage import Storage, StorageFailedError
from lb.control.storage_thread import GROUP_MAX, StorageThread, Synced
from lb.raft.messages import HardState, Persist, SnapMeta, Snapshot
from raft.fake_disk import FakeDisk
from raft.log_kit import CONF, GROUP, PATH, SMALL, entry, fake_disk, new_log, read_back

PATIENCE = 10.0


class Gate:
    """Holds the disk's syncs up until it is opened."""

    def __init__(self, disk: FakeDisk) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        disk.delays = self._wait

    def _wait(self, call: str, _size: int) -> float:
        if call == "sync":
            self.reached.set()
            assert self._opened.wait(PATIENCE)
        return 0.0

    def open(self) -> None:
        self._opened.set()


class Loop:
    """What `call_soon` was given, to be run by the test."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.synced: list[int] = []
        self.groups: list[int] = []
        self.failed: list[BaseException] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def on_synced(self, synced: Synced) -> None:
        assert synced.seconds >= 0
        self.synced += [persist.seq for persist in synced.persists]
        self.groups.append(len(synced.persists))

    def run_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, "it never came"
            self._calls.get(timeout=left)()


@contextmanager
def storing(disk: FakeDisk, loop: Loop) -> Iterator[StorageThread]:
    thread = StorageThread(new_log(disk), loop.call_soon, loop.on_synced, loop.failed.append)
    thread.start()
    try:
        yield thread
    finally:
        thread.close()


def synced_all(loop: Loop, count: int) -> bool:
    return len(loop.synced) == count


def write(seq: int) -> Persist:
    return Persist(seq, HardState(1, 7, seq - 1), (entry(seq),), None, True, ())


def test_writes_that_queue_up_share_one_sync() -> None:
    disk, loop = fake_disk(), Loop()
    with storing(disk, loop) as thread:
        gate = Gate(disk)
        disk.trace = []
        thread.submit(write(1))
        assert gate.reached.wait(PATIENCE)
        for seq in range(2, 101):
            thread.submit(write(seq))
        assert thread.queued == 99
        assert loop.synced == []
        gate.open()
        loop.run_until(lambda: len(loop.synced) == 100)

    assert loop.synced == list(range(1, 101))
    assert loop.groups == [1, 99]
    assert disk.trace == ["pwrite wal-0000000001", "sync wal-0000000001"] * 2
    assert [e.index for e in read_back(disk).entries] == list(range(1, 101))


def test_a_group_has_a_bound() -> None:
    disk, loop = fake_disk(), Loop()
    with storing(disk, loop) as thread:
        gate = Gate(disk)
        thread.submit(write(1))
        assert gate.reached.wait(PATIENCE)
        for seq in range(2, GROUP_MAX + 12):
            thread.submit(write(seq))
        gate.open()
        loop.run_until(lambda: len(loop.synced) == GROUP_MAX + 11)

    assert loop.groups == [1, GROUP_MAX, 10]


def test_the_event_loop_never_waits_for_the_disk() -> None:
    async def scene() -> list[int]:
        loop, disk = asyncio.get_running_loop(), fake_disk()
        seqs: list[int] = []
        done = asyncio.Event()

        def on_synced(synced: Synced) -> None:
            assert threading.current_thread() is threading.main_thread()
            seqs.extend(persist.seq for persist in synced.persists)
            done.set()

        thread = StorageThread(new_log(disk), loop.call_soon_threadsafe, on_synced)
        thread.start()
        gate = Gate(disk)
        thread.submit(write(1))
        await loop.run_in_executor(None, gate.reached.wait, PATIENCE)
        for _ in range(100):
            await asyncio.sleep(0)
        assert seqs == []
        gate.open()
        await asyncio.wait_for(done.wait(), PATIENCE)
        await loop.run_in_executor(None, thread.close)
        return seqs

    assert asyncio.run(scene()) == [1]


def test_after_an_error_nothing_is_told_any_more() -> None:
    disk, loop = fake_disk(), Loop()
    with storing(disk, loop) as thread:
        thread.submit(write(1))
        loop.run_until(lambda: loop.synced == [1])
        disk.fault = lambda call, _path: errno.EIO if call == "sync" else 0
        thread.submit(write(2))
        deadline = time.monotonic() + PATIENCE
        while not loop.failed and time.monotonic() < deadline:
            time.sleep(0.001)
        disk.fault = None
        with pytest.raises(StorageFailedError):
            thread.submit(write(3))

    assert [type(error) for error in loop.failed] == [StorageFailedError]
    assert loop.synced == [1]


PROGRAM = """
import errno, sys
from lb.control.filesystem import RealFile, RealFileSystem
from lb.control.storage import Sizes, Storage
from lb.control.storage_thread import StorageThread
from lb.control.wal import Identity
from lb.raft.messages import ConfState, Entry, HardState, Kind, Persist

storage = Storage.create(
    RealFileSystem(), sys.argv[1], Identity(bytes(16), 1), ConfState(), Sizes(8192, 8192)
)
def fails(file):
    raise OSError(errno.EIO, "the disk said no")
RealFile.sync = fails
thread = StorageThread(storage, lambda call: call(), lambda synced: print("promised"))
thread.start()
thread.submit(Persist(1, HardState(1, 1, 0), (Entry(1, 1, Kind.NOOP),), None, True, ()))
thread.close()
print("went on")
"""


def test_an_error_of_a_sync_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "raft")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, check=False, timeout=30
    )

    assert done.returncode == EXIT_DISK_FAILED
    assert done.stdout == ""
    assert "the disk said no" in done.stderr
    assert (tmp_path / "raft" / "condemned").exists()


def test_closing_finishes_what_was_submitted() -> None:
    disk, loop = fake_disk(), Loop()
    marked: list[bool] = []
    with storing(disk, loop) as thread:
        for seq in range(1, 31):
            thread.submit(write(seq))
        thread.save_snapshot(Snapshot(SnapMeta(5, 1, CONF), b"state"), marked.append)
        thread.compact(5)
    loop.run_until(lambda: bool(marked))

    assert marked == [True]
    assert loop.synced == list(range(1, 31))
    recovered = recover(disk, PATH)
    assert recovered.snapshot.index == 5
    assert recovered.entries[-1].index == 30


def test_a_snapshot_for_which_there_is_no_room() -> None:
    disk, loop = fake_disk(), Loop()
    told: list[bool] = []
    with storing(disk, loop) as thread:
        thread.submit(write(1))
        loop.run_until(lambda: loop.synced == [1])
        disk.capacity = disk.used
        thread.save_snapshot(Snapshot(SnapMeta(1, 1, CONF), b"state"), told.append)
        thread.put_snapshot(Snapshot(SnapMeta(9, 1, CONF), b"state"), told.append)
        loop.run_until(lambda: len(told) == 2)
        thread.submit(write(2))
        loop.run_until(lambda: loop.synced == [1, 2])

    assert told == [False, False]
    assert read_back(disk).snapshot.index == 0


def test_a_snapshot_that_was_sent() -> None:
    disk, loop = fake_disk(), Loop()
    told: list[bool] = []
    meta = SnapMeta(9, 2, CONF)
    with storing(disk, loop) as thread:
        thread.put_snapshot(Snapshot(meta, b"sent"), told.append)
        loop.run_until(lambda: told == [True])
        thread.submit(Persist(1, HardState(2, 0, 9), (), meta, True, ()))
        loop.run_until(lambda: loop.synced == [1])

    assert recover(disk, PATH).data == b"sent"


def test_room_is_looked_for_again_while_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lb.control.storage_thread.TEND_EVERY", 0.01)
    disk, loop = fake_disk(), Loop()
    with storing(disk, loop) as thread:
        disk.capacity = disk.used
        while not thread.full:
            done = len(loop.synced)
            thread.submit(write(done + 1))
            loop.run_until(partial(synced_all, loop, done + 1))
        disk.capacity = None
        deadline = time.monotonic() + PATIENCE
        while thread.full and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not thread.full


def test_a_bug_in_the_thread_is_not_silent() -> None:
    disk, loop = fake_disk(), Loop()
    seen: list[BaseException | None] = []
    before = threading.excepthook
    threading.excepthook = lambda arguments: seen.append(arguments.exc_value)
    try:
        with storing(disk, loop) as thread:
            thread.submit(Persist(1, None, (entry(5),), None, True, ()))
    finally:
        threading.excepthook = before

    assert [str(error) for error in loop.failed] == ["a log has no gaps"]
    assert seen == loop.failed
    assert loop.synced == []


def test_a_storage_reopens_what_its_thread_wrote() -> None:
    disk, loop = fake_disk(), Loop()
    with storing(disk, loop) as thread:
        thread.submit(write(1))
    storage, recovered = Storage.open(disk, PATH, SMALL)
    storage.close()

    assert recovered.identity == GROUP
    assert [e.index for e in recovered.entries] == [1]
