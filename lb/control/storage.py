"""A member's log and snapshots on its disk: what is promised here outlives a power cut.

Used by one thread at a time, and never by the event loop: see `storage_thread`. The form of
what is written is in `wal` and `snapshot_file`; all system calls go through `FileSystem`, so
that the simulator runs this very code on a disk that forgets, tears and fails.

Order, each step sure before the next begins:

- a frame: written, synced; then it may be told.
- a new segment: written and synced under another name, renamed, its directory synced; only
  then does the next frame go into it.
- a snapshot: its file written, synced, renamed, its directory synced; a mark in the log, synced;
  then older snapshots and segments may go, the oldest segment first, each for sure.

An error of the disk is final: it is kept, every later call fails alike, and the process has to
end. A sync that failed may have dropped what it was to write, and the next would succeed. So
the directory is also condemned: what can be read there may not be on the disk at all.

A full disk is foreseen instead. The next segment is made ahead of its need, and a reserve is
kept. When either cannot be, `full` says so: proposals are refused then, while votes and what a
leader sends still find room.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lb.control.filesystem import File, FileSystem
from lb.control.recovery import (
    BROKEN_SUFFIX,
    CONDEMNED_FILE,
    RESERVE_FILE,
    UNFINISHED_SUFFIX,
    Found,
    NoLogError,
    Recovered,
    read_file,
    read_log,
)
from lb.control.snapshot_file import encode_head, snapshot_name, snapshot_position
from lb.control.wal import (
    SECTOR,
    Identity,
    Link,
    Mark,
    Record,
    SegmentHeader,
    encode_frame,
    padded,
    segment_name,
)
from lb.errors import AccordError, StartError
from lb.raft.messages import ConfState, Entry, HardState, Persist, SnapMeta, Snapshot

LOCK_FILE = "lock"
SPARE_FILE = "spare" + UNFINISHED_SUFFIX
SNAPSHOTS_KEPT = 2
WRITE_BYTES_MAX = 1 << 20  # Of a snapshot, in one call.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class StorageFailedError(AccordError):
    """The disk failed: nothing more can be promised, and this process has to end."""


class DiskFullError(AccordError):
    """There is no room for a snapshot. Nothing was promised, nothing is broken."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much room is taken ahead."""

    segment: int = 8 << 20
    reserve: int = 32 << 20


@dataclass(slots=True)
class _Kept:
    """A segment on the disk, and the highest index in it that may still be wanted."""

    name: str
    last_index: int


class Storage:
    """One member's disk. Made by `create` or `open`."""

    def __init__(self, files: FileSystem, path: str, identity: Identity, sizes: Sizes) -> None:
        self.path = path
        self.identity = identity
        self.full = False  # Refuse proposals: what is left of the disk is for promises.
        self.failed: StorageFailedError | None = None
        self._files = files
        self._sizes = sizes
        self._lock: File | None = None
        self._spare: File | None = None
        self._spare_size = 0
        self._reserve = False
        self._segments: list[_Kept] = []  # The last is the one being written.
        self._file: File | None = None
        self._header = SegmentHeader(identity, 0, 0, 1, Link(0, 0))
        self._salt = 0
        self._offset = 0
        self._link = Link(0, 0)
        self._hard = self._sure_hard = HardState(0, 0, 0)
        self._mark = self._sure_mark = SnapMeta(0, 0, ConfState(frozenset(), frozenset()))
        self._sound_index = 0  # Of the newest snapshot whose file is known to be whole.
        self.last_index = 0  # The last entry's, or the snapshot's if nothing follows it.

    # --- Beginning and end --------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        files: FileSystem,
        path: str,
        identity: Identity,
        conf: ConfState,
        sizes: Sizes | None = None,
    ) -> Storage:
        """Begin the log of a member that has promised nothing yet, with the group it starts from.

        A power cut before the end leaves no log at all.
        """
        storage = cls(files, path, identity, sizes or Sizes())
        with storage._starting():
            if not files.exists(path):
                files.make_directory(path)
                files.sync_directory(path.rpartition("/")[0] or "/")
            storage._take_lock()
            storage._remove_unfinished()
            storage._mark = storage._sure_mark = SnapMeta(0, 0, conf)
            storage._begin_segment(0, first_index=1)
            storage.tend()
        return storage

    @classmethod
    def open(
        cls, files: FileSystem, path: str, sizes: Sizes | None = None
    ) -> tuple[Storage, Recovered]:
        """
        Go on with a log: read it, make good what a power cut left undone, and make that sure.

        NoLogError: there is none. DamagedLog: see there; nothing was changed.
        """
        if not files.exists(path):
            raise NoLogError(f"there is no log in {path}")
        nobody = Identity(bytes(16), 0)
        storage = cls(files, path, nobody, sizes or Sizes())
        with storage._starting():
            storage._take_lock()
            found = read_log(files, path)
            storage.identity = found.recovered.identity
            storage._remove_unfinished()
            storage._go_on_with(found)
            storage.tend()
        return storage, found.recovered

    def close(self) -> None:
        """Let go of files and lock. All that was promised is on the disk already."""
        for file in (self._file, self._spare, self._lock):
            if file is not None:
                file.close()
        self._file = self._spare = self._lock = None

    # --- What a member asks for ---------------------------------------------------------------

    @property
    def hard(self) -> HardState:
        """Term, vote and commit index as they are sure."""
        return self._sure_hard

    def write(self, persists: Sequence[Persist]) -> None:
        """
        Make all of these sure, in order, by one frame and one sync.

        What need not be sure yet (`must_sync` false) waits for the next frame that must be
        written. The file of a snapshot that one of them names has been `put_snapshot` before.
        """
        self._check()
        records: list[Record] = []
        for persist in persists:
            records += self._take_in(persist)
        if any(persist.must_sync for persist in persists):
            with self._latched():
                self._append([*records, self._hard])
        if any(persist.snapshot for persist in persists):
            self._sound_index = self._mark.index
            self._prune_snapshots()

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """
        Make a snapshot's file sure. It counts once `write` or `mark_snapshot` has named it.

        DiskFullError: there is no room; nothing has changed. May run beside `write`.
        """
        self._check()
        file = f"{self.path}/{snapshot_name(snapshot.meta)}"
        unfinished = file + UNFINISHED_SUFFIX
        data = encode_head(self.identity, snapshot) + snapshot.data
        with self._latched():
            if self._files.exists(unfinished):
                self._files.unlink(unfinished)
            self._write_new(unfinished, data)
            self._files.rename(unfinished, file)
            self._sync_directory()

    def mark_snapshot(self, meta: SnapMeta) -> None:
        """Let a snapshot that this member took itself stand for all up to its index."""
        self._check()
        if meta.index > self._mark.index:  # Else one that the leader sent has overtaken it.
            with self._latched():
                self._mark = meta
                self._hard = _at_least(self._hard, meta.index)
                self._append([Mark(meta, restart=False), self._hard])
            self._prune_snapshots()
        if meta.index == self._mark.index:
            self._sound_index = meta.index

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Put a snapshot of our own and mark it."""
        self.put_snapshot(snapshot)
        self.mark_snapshot(snapshot.meta)

    def compact(self, index: int) -> None:
        """Release the segments in which no entry after `index` lies; a snapshot has the rest."""
        self._check()
        index = min(index, self._sound_index)
        with self._latched():
            while len(self._segments) > 1 and self._segments[0].last_index <= index:
                self._files.unlink(f"{self.path}/{self._segments[0].name}")
                # One by one: names may go in any order, and a gap in the middle is damage.
                self._sync_directory()
                del self._segments[0]

    def tend(self) -> None:
        """
        Make ahead what will be needed: the next segment, and the reserve. Judge if it is `full`.

        To be called after each `write`, when the answers are on their way, and while `full`
        again and again.
        """
        self._check()
        if self._spare is not None and self._reserve and not self.full:
            return
        with self._latched():
            try:
                if self._spare is None:
                    self._make_spare(self._sizes.segment)
                if not self._reserve:
                    self._make_reserve()
                self.full = False
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                self.full = True
                if self._spare is None and self._release_reserve():
                    with contextlib.suppress(OSError):
                        self._make_spare(self._sizes.segment)

    # --- Frames and segments ------------------------------------------------------------------

    def _take_in(self, persist: Persist) -> list[Record]:
        """Turn one into records, and know from now on what they say."""
        records: list[Record] = []
        before = self._hard  # Perhaps of an earlier one of the same group, and sure together.
        if persist.snapshot is not None:
            meta = persist.snapshot
            assert self._files.exists(f"{self.path}/{snapshot_name(meta)}"), "put before named"
            assert meta.index > self._mark.index, "a snapshot never goes back"
            self.last_index = meta.index
            for kept in self._segments:
                kept.last_index = min(kept.last_index, meta.index)
            self._mark = meta
            self._hard = _at_least(self._hard, meta.index)
            records.append(Mark(meta, restart=True))
        for entry in persist.entries:
            self._take_entry(entry)
            records.append(entry)
        if persist.hard is not None:
            assert persist.hard.term >= self._hard.term, "a term never goes back"
            self._hard = _at_least(persist.hard, self._hard.commit)
        promises = records or (self._hard.term, self._hard.vote) != (before.term, before.vote)
        assert persist.must_sync or not promises, "a promise must be sure before it is told"
        return records

    def _take_entry(self, entry: Entry) -> None:
        assert entry.index <= self.last_index + 1, "a log has no gaps"
        assert entry.index > self._hard.commit, "what was committed is never written over"
        self.last_index = entry.index

    def _append(self, records: Sequence[Record]) -> None:
        indexes = [record.index for record in records if isinstance(record, Entry)]
        frame, link = encode_frame(self._salt, self._link, records)
        if self._offset + len(frame) > self._header.size:
            self._begin_segment(len(frame), min(indexes, default=self.last_index + 1))
            frame, link = encode_frame(self._salt, self._link, records)
        assert self._file is not None
        self._file.pwrite(frame, self._offset)
        self._sync(self._file)
        self._offset += len(frame)
        self._link = link
        self._sure_hard, self._sure_mark = self._hard, self._mark
        newest = self._segments[-1]
        newest.last_index = max(newest.last_index, *indexes, 0)

    def _begin_segment(self, need: int, first_index: int) -> None:
        """Go on in a new segment. It opens with what must be known when the older ones are gone."""
        opening: list[Record] = [Mark(self._sure_mark, restart=False), self._sure_hard]
        opening_bytes = len(encode_frame(0, self._link, opening)[0])
        file = self._take_spare(SECTOR + opening_bytes + need)
        number = self._header.number + 1
        header = SegmentHeader(self.identity, number, self._spare_size, first_index, self._link)
        salt = header.salt
        frame, link = encode_frame(salt, self._link, opening)
        name = segment_name(number)
        file.pwrite(header.encode() + frame, 0)
        self._sync(file)
        self._files.rename(f"{self.path}/{SPARE_FILE}", f"{self.path}/{name}")
        self._sync_directory()
        if self._file is not None:
            self._file.close()
        self._file, self._header, self._salt = file, header, salt
        self._offset, self._link = SECTOR + len(frame), link
        self._segments.append(_Kept(name, 0))

    def _take_spare(self, room: int) -> File:
        room = max(self._sizes.segment, padded(room))
        try:
            self._make_spare(room)
        except OSError as error:
            if error.errno not in NO_ROOM or not self._release_reserve():
                raise
            self.full = True
            self._make_spare(room)
        spare, self._spare = self._spare, None
        assert spare is not None
        return spare

    def _make_spare(self, room: int) -> None:
        """Have a file of zeros of at least this size, to be the next segment."""
        path = f"{self.path}/{SPARE_FILE}"
        if self._spare is not None and self._spare_size >= room:
            return
        if self._spare is None:
            self._spare = self._files.open(path, create=True)
        try:
            self._spare.preallocate(room)
        except OSError:
            self._spare.close()
            self._spare = None
            self._files.unlink(path)
            raise
        self._sync(self._spare)
        self._spare_size = room

    # --- Room kept back -----------------------------------------------------------------------

    def _make_reserve(self) -> None:
        path = f"{self.path}/{RESERVE_FILE}"
        file = self._files.open(path + UNFINISHED_SUFFIX, create=True)
        try:
            file.preallocate(self._sizes.reserve)
        except OSError:
            self._files.unlink(path + UNFINISHED_SUFFIX)
            raise
        finally:
            file.close()
        self._files.rename(path + UNFINISHED_SUFFIX, path)
        self._reserve = True

    def _release_reserve(self) -> bool:
        """Give the reserve up, if it is still there."""
        if not self._reserve:
            return False
        self._files.unlink(f"{self.path}/{RESERVE_FILE}")
        self._sync_directory()
        self._reserve = False
        return True

    # --- Snapshots ----------------------------------------------------------------------------

    def _write_new(self, path: str, data: bytes) -> None:
        """Make a file and be sure of it; DiskFullError, and no file, if there is no room."""
        file = self._files.open(path, create=True)
        try:
            file.preallocate(len(data))
            for at in range(0, len(data), WRITE_BYTES_MAX):
                file.pwrite(data[at : at + WRITE_BYTES_MAX], at)
        except OSError as error:
            file.close()
            if error.errno not in NO_ROOM:
                raise
            self._files.unlink(path)
            self.full = True
            raise DiskFullError(f"there is no room for {path}", "free disk space") from None
        self._sync(file)
        file.close()

    def _prune_snapshots(self) -> None:
        """Remove all but the newest that count. What a power cut brings back goes at the start."""
        with self._latched():
            names = self._files.list_directory(self.path)
            found = [(position, name) for name in names if (position := snapshot_position(name))]
            found = [(at, name) for at, name in sorted(found) if at[1] <= self._mark.index]
            for _, name in found[:-SNAPSHOTS_KEPT]:
                self._files.unlink(f"{self.path}/{name}")

    # --- Start ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """Say what keeps a member from starting, and leave nothing open then."""
        try:
            yield
        except (OSError, StorageFailedError) as error:
            self.close()
            raise StartError(
                f"the log in {self.path} cannot be used: {error}",
                "make room, or make the directory writable for this user",
            ) from error
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            self._lock = self._files.lock(f"{self.path}/{LOCK_FILE}")
        except BlockingIOError:
            raise StartError(
                f"the log in {self.path} is in use", "stop the other daemon of this data_dir"
            ) from None

    def _remove_unfinished(self) -> None:
        for name in self._files.list_directory(self.path):
            if name.endswith(UNFINISHED_SUFFIX):
                self._files.unlink(f"{self.path}/{name}")
        self._reserve = self._files.exists(f"{self.path}/{RESERVE_FILE}")

    def _go_on_with(self, found: Found) -> None:
        """Cut off a torn tail, make sure of all that was read, and stand where it ends."""
        newest, recovered = found.segments[-1], found.recovered
        self._header, self._salt = newest.header, newest.header.salt
        self._offset, self._link = newest.end, newest.link
        self._hard = self._sure_hard = recovered.hard
        self._mark = self._sure_mark = found.mark
        self._sound_index = recovered.snapshot.index
        self.last_index = recovered.base_index + len(recovered.entries)
        self._segments = [
            _Kept(segment.name.rpartition("/")[2], segment.last_index) for segment in found.segments
        ]
        self._file = self._files.open(newest.name)
        self._file.preallocate(newest.header.size)
        if newest.torn is not None:
            self._keep_broken(newest.name, newest.torn.offset, newest.torn.stop)
            self._file.pwrite(bytes(newest.header.size - newest.torn.offset), newest.torn.offset)
        # What was read may so far be in the page cache only: the process ended, not the machine.
        self._sync(self._file)
        self._remove_orphans(found)
        self._sync_directory()
        if not newest.frames:  # Its opening was cut off; older segments still said it.
            with self._latched():
                self._append([Mark(self._mark, restart=False), self._hard])

    def _keep_broken(self, name: str, start: int, stop: int) -> None:
        """Keep a copy of what is cut off, for whoever wonders; not at the price of a start."""
        path = name + BROKEN_SUFFIX
        with contextlib.suppress(OSError):
            if self._files.exists(path):
                self._files.unlink(path)
            file = self._files.open(path, create=True)
            file.pwrite(read_file(self._files, name)[start:stop], 0)
            file.close()

    def _remove_orphans(self, found: Found) -> None:
        """Take snapshots out of the way that were never marked, or are damaged."""
        damaged = found.mark.index if found.recovered.snapshot != found.mark else None
        for name in self._files.list_directory(self.path):
            position = snapshot_position(name)
            if position is None:
                continue
            path = f"{self.path}/{name}"
            if position[1] > found.mark.index:
                self._files.unlink(path)
            elif position[1] == damaged:
                self._files.rename(path, path + BROKEN_SUFFIX)

    # --- What may fail --------------------------------------------------------------------------

    def _check(self) -> None:
        if self.failed is not None:
            raise self.failed

    @contextlib.contextmanager
    def _latched(self) -> Iterator[None]:
        """Let an error of the disk be the last word."""
        self._check()
        try:
            yield
        except OSError as error:
            self.failed = StorageFailedError(
                f"the disk under {self.path} failed: {error.strerror}",
                "look at the disk; this process ends, since it can promise nothing any more",
            )
            raise self.failed from error

    def _sync(self, file: File) -> None:
        try:
            file.sync()
        except OSError as error:
            self._condemn(error)
            raise

    def _sync_directory(self) -> None:
        try:
            self._files.sync_directory(self.path)
        except OSError as error:
            self._condemn(error)
            raise

    def _condemn(self, error: OSError) -> None:
        """Leave word for the next start, as far as that is still possible."""
        note = f"a sync failed ({error.strerror}): what reads well here may not be on the disk"
        with contextlib.suppress(OSError):
            file = self._files.open(f"{self.path}/{CONDEMNED_FILE}", create=True)
            file.pwrite(note.encode() + b"\n", 0)
            file.sync()
            self._files.sync_directory(self.path)


def _at_least(hard: HardState, commit: int) -> HardState:
    return HardState(hard.term, hard.vote, max(hard.commit, commit))
