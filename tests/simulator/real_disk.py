"""A member's disk with the real code for log and snapshots, on a disk that forgets and tears.

See `raft.fake_disk` for what a power cut leaves. A crash while something is being written runs
that very write, and cuts the power before one of its system calls.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Sequence

from lb.control.recovery import NoLogError
from lb.control.storage import DiskFullError, Sizes, Storage, StorageFailedError
from lb.control.wal import DamagedLog, Identity
from lb.errors import StartError
from lb.raft.messages import ConfState, HardState, Persist, SnapMeta, Snapshot
from raft.fake_disk import FakeDisk, PowerCut
from simulator.disks import Contents, DiskFailedError
from simulator.shadow import ViolationError
from simulator.tally import Tally

DIRECTORY = "/raft"
GROUP = bytes(range(16))
SIZES = Sizes(segment=8 << 10, reserve=4 << 10)
CALLS_AT_A_WRITE = 4  # Most are a write and a sync; one that opens a segment has more.


class RealDisk:
    """One machine's disk, and the code that uses it."""

    def __init__(self, number: int, conf: ConfState, rng: random.Random, tally: Tally) -> None:
        self.full = False
        self._identity = Identity(GROUP, number)
        self._conf = conf
        self._rng = rng
        self._tally = tally
        self._files = FakeDisk(rng)
        self._storage: Storage | None = None
        self._made = False
        self._failed = False  # A sync of it has, whatever comes after.

    def start(self) -> Contents:
        """Read the log; make one at the first start."""
        assert self._storage is None
        if not self._made:
            self._made = True
            self._storage = Storage.create(
                self._files, DIRECTORY, self._identity, self._conf, SIZES
            )
            nothing = Snapshot(SnapMeta(0, 0, self._conf), b"")
            return Contents(HardState(), nothing, 0, 0, ())
        try:
            self._storage, found = Storage.open(self._files, DIRECTORY, SIZES)
        except (DamagedLog, NoLogError) as error:
            raise ViolationError("disks keep", f"{error}") from error
        except StartError as error:
            if not self._failed:
                raise
            raise DiskFailedError from error
        meta = SnapMeta(found.snapshot.index, found.snapshot.term, found.conf)
        snapshot = Snapshot(meta, found.data or b"")
        for note in found.notes:
            self._tally.fired["torn write cut off" if "torn" in note else "log repaired"] += 1
        return Contents(found.hard, snapshot, found.base_index, found.base_term, found.entries)

    def _open(self) -> Storage:
        assert self._storage is not None, "used after a crash"
        return self._storage

    def write(self, persists: Sequence[Persist]) -> None:
        """Write one frame, and see to what the next ones need."""
        if self._failed:
            raise ViolationError("a failed sync is the end", "written to after it")
        try:
            self._open().write(persists)
            self._open().tend()
        except StorageFailedError as error:
            raise DiskFailedError from error

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Write the file of a snapshot."""
        try:
            self._open().put_snapshot(snapshot)
        except StorageFailedError as error:
            raise DiskFailedError from error

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Write a snapshot's file and its mark."""
        try:
            self._open().save_snapshot(snapshot)
        except StorageFailedError as error:
            raise DiskFailedError from error

    def compact(self, index: int) -> None:
        """Release segments."""
        try:
            self._open().compact(index)
        except StorageFailedError as error:
            raise DiskFailedError from error

    def crash(self, persists: Sequence[Persist], installs: Sequence[Snapshot]) -> None:
        """Cut the power, in the middle of what was being written."""
        if persists and self._storage is not None:
            self._files.stop_before(self._rng.randrange(CALLS_AT_A_WRITE))
            try:
                with contextlib.suppress(StorageFailedError, DiskFullError):
                    for snapshot in installs:
                        self._storage.put_snapshot(snapshot)
                    self._storage.write(persists)
                    self._storage.tend()
            except PowerCut:
                self._tally.fired["write torn"] += 1
            else:
                self._tally.fired["write kept"] += 1
        self._storage = None
        self._files.power_cut()

    def fail_next(self) -> None:
        """Let the next sync fail, and those after it succeed, as Linux does."""
        self._files.fault = self._fail_once

    def _fail_once(self, call: str, path: str) -> int:
        if call != "sync":
            return 0
        self._files.fault = None
        self._failed = True
        return errno.EIO

    def set_full(self, full: bool) -> None:
        """Say so; there is always room for promises."""
        self.full = full
