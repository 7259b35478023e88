"""The threads that wait for the disk, so that the event loop never does.

One writes, first come first served. It takes all that has queued up while it was waiting and
makes it sure by one sync: many small promises cost as much as one. A second one writes the
files of snapshots, which are large, beside it; only their marks go through the queue.

The callbacks run where `call_soon` puts them, which is the event loop. An error of the disk
ends the process, here and at once: whoever still waits for an answer must not get one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from lb.child import EXIT_DISK_FAILED
from lb.control.storage import DiskFullError, Storage, StorageFailedError
from lb.raft.messages import Persist, Snapshot

QUEUED_MAX = 4096  # Writes waiting. The core's own bounds are lower; more is a bug.
SNAPSHOTS_QUEUED_MAX = 4
GROUP_MAX = 512  # Writes in one frame.
GROUP_BYTES_MAX = 4 << 20
TEND_EVERY = 1.0  # Seconds between looks for room on a full disk.


def end_process(error: BaseException) -> NoReturn:
    """End at once: nothing that runs in this process may promise anything any more."""
    sys.stderr.write(f"lb: {error}\n")
    sys.stderr.flush()
    os._exit(EXIT_DISK_FAILED)


@dataclass(frozen=True, slots=True)
class Synced:
    """What one sync made sure, and how long the disk took for it."""

    persists: tuple[Persist, ...]
    seconds: float


class _Phase(Enum):
    OPEN = "takes all that is submitted"
    CLOSING = "finishes what was submitted"
    ENDING = "no snapshot is under way any more, so nothing more will come"


class StorageThread:
    """Stands between an event loop and a `Storage`, which from now on is this thread's."""

    def __init__(
        self,
        storage: Storage,
        call_soon: Callable[[Callable[[], None]], object],
        on_synced: Callable[[Synced], None],
        on_failed: Callable[[BaseException], None] = end_process,
    ) -> None:
        self._storage = storage
        self._call_soon = call_soon  # A loop's call_soon_threadsafe.
        self._on_synced = on_synced
        self._on_failed = on_failed  # Called in the thread that failed, not in the loop.
        self._queue: deque[Persist | Callable[[], None]] = deque()
        self._snapshots: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._phase = _Phase.OPEN
        self._writer = threading.Thread(target=self._guarded, args=(self._write,), name="storage")
        self._copier = threading.Thread(target=self._guarded, args=(self._copy,), name="snapshots")

    def start(self) -> None:
        """Start both threads. Whatever forks must do so before."""
        self._writer.start()
        self._copier.start()

    @property
    def full(self) -> bool:
        """The disk is nearly full: refuse proposals, go on with everything else."""
        return self._storage.full

    @property
    def queued(self) -> int:
        """How many writes wait."""
        return len(self._queue)

    def submit(self, persist: Persist) -> None:
        """Have this made sure after all that was submitted before; `on_synced` tells."""
        self._check_open()
        self._enqueue(persist)

    def compact(self, index: int) -> None:
        """Have the log up to `index` released, when what was submitted before is sure."""
        self._check_open()
        self._enqueue(lambda: self._storage.compact(index))

    def put_snapshot(self, snapshot: Snapshot, done: Callable[[bool], None]) -> None:
        """
        Have the file of a snapshot that was sent made sure, to be named by a `submit` later.

        `done` is told True, or False if the disk has no room for it.
        """

        def work() -> None:
            room = self._put_file(snapshot)
            self._call_soon(lambda: done(room))

        self._enqueue_snapshot(work)

    def save_snapshot(self, snapshot: Snapshot, done: Callable[[bool], None]) -> None:
        """Have a snapshot of our own made sure and marked in the log; `done` as above."""

        def mark() -> None:
            self._storage.mark_snapshot(snapshot.meta)
            self._call_soon(lambda: done(True))

        def work() -> None:
            if self._put_file(snapshot):
                self._enqueue(mark)
            else:
                self._call_soon(lambda: done(False))

        self._enqueue_snapshot(work)

    def close(self) -> None:
        """Finish all that was submitted, end the threads, and let go of the files. Blocks."""
        self._enter(_Phase.CLOSING)
        self._copier.join()
        self._enter(_Phase.ENDING)
        self._writer.join()
        self._storage.close()

    def _enter(self, phase: _Phase) -> None:
        with self._changed:
            self._phase = phase
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._storage.failed is not None:
            raise self._storage.failed
        assert self._phase is _Phase.OPEN, "nothing is submitted after close"

    def _enqueue(self, work: Persist | Callable[[], None]) -> None:
        with self._changed:
            assert len(self._queue) < QUEUED_MAX, "the core bounds what it hands out"
            self._queue.append(work)
            self._changed.notify_all()

    def _enqueue_snapshot(self, work: Callable[[], None]) -> None:
        self._check_open()
        with self._changed:
            assert len(self._snapshots) < SNAPSHOTS_QUEUED_MAX, "one snapshot at a time"
            self._snapshots.append(work)
            self._changed.notify_all()

    # --- In the threads -----------------------------------------------------------------------

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except StorageFailedError as error:
            self._on_failed(error)
        except BaseException as error:  # A bug: no answer may leave, and it must be seen.
            self._on_failed(error)
            raise

    def _write(self) -> None:
        while (work := self._next()) is not None:
            if callable(work):
                work()
            elif work:
                started = time.monotonic()
                self._storage.write(work)
                self._tell(Synced(work, time.monotonic() - started))
            self._storage.tend()

    def _copy(self) -> None:
        while True:
            with self._changed:
                while not self._snapshots:
                    if self._phase is not _Phase.OPEN:
                        return
                    self._changed.wait()
                work = self._snapshots.popleft()
            work()

    def _next(self) -> tuple[Persist, ...] | Callable[[], None] | None:
        """Take what can be done in one go: a group of writes, one call, or, at times, nothing."""
        with self._changed:
            while not self._queue:
                if self._phase is _Phase.ENDING:
                    return None
                if not self._changed.wait(TEND_EVERY if self._storage.full else None):
                    return ()
            group: list[Persist] = []
            size = 0
            while self._queue and len(group) < GROUP_MAX:
                work = self._queue[0]
                if callable(work):
                    if not group:
                        self._queue.popleft()
                        return work
                    break
                size += sum(len(entry.data) for entry in work.entries)
                if group and size > GROUP_BYTES_MAX:
                    break
                group.append(work)
                self._queue.popleft()
            return tuple(group)

    def _tell(self, synced: Synced) -> None:
        self._call_soon(lambda: self._on_synced(synced))

    def _put_file(self, snapshot: Snapshot) -> bool:
        try:
            self._storage.put_snapshot(snapshot)
        except DiskFullError:
            return False
        return True
