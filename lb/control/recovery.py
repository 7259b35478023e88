"""What a member's directory says: read, judged, and told apart from damage. Changes nothing.

`read_log` is what a start, `lb storage verify` and `lb storage dump` have in common; `storage`
then makes good what a power cut may leave undone.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from lb.control.filesystem import FileSystem
from lb.control.snapshot_file import decode_snapshot, snapshot_name, snapshot_position
from lb.control.wal import DamagedLog, Identity, Replay, Segment, read_segment
from lb.errors import StartError
from lb.raft.messages import ConfState, Entry, HardState, SnapMeta, Snapshot

LOG_DIRECTORY = "raft"  # In the data_dir.
SEGMENT_PREFIX = "wal-"
BROKEN_SUFFIX = ".broken"
UNFINISHED_SUFFIX = ".tmp"
CONDEMNED_FILE = "condemned"  # Says that what can be read here may not be on the disk at all.
RESERVE_FILE = "reserve"


class NoLogError(StartError):
    """There is no log in this directory: a member that has promised nothing yet, or no member."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a member knew when it stopped, and what the reader of its log has to tell."""

    identity: Identity
    hard: HardState
    conf: ConfState  # as of the snapshot; entries after it may change it
    snapshot: SnapMeta  # index 0: there has been none yet
    data: bytes | None  # the snapshot's state; None at index 0
    base_index: int  # entries begin after it; at most snapshot.index
    base_term: int
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]  # what was repaired or done without, for the log


@dataclass(slots=True)
class Found:
    """All that lies in the directory, whole."""

    path: str
    segments: list[Segment]
    recovered: Recovered
    mark: SnapMeta  # The newest snapshot that counts; `recovered` may have had to use an older.
    notes: list[str] = field(default_factory=list)


def read_log(files: FileSystem, path: str) -> Found:
    """
    Read a member's log and its snapshot.

    NoLogError: there is none. DamagedLog: not all is there that this member promised to keep.
    """
    names = files.list_directory(path)
    _check_not_condemned(files, path, names)
    segments = _read_segments(files, path, names)
    if not segments:
        if left := [name for name in names if snapshot_position(name)]:
            raise DamagedLog(f"{path}/{left[-1]}", 0, "a snapshot without the log it belongs to")
        raise NoLogError(f"there is no log in {path}")
    replay = Replay()
    for segment in segments:
        for frame in segment.frames:
            try:
                for record in frame.records:
                    replay.take(record)
            except ValueError as error:
                raise DamagedLog(segment.name, frame.offset, str(error)) from None
    last = segments[-1]
    try:
        hard, mark = replay.finish()
    except ValueError as error:
        raise DamagedLog(last.name, last.end, str(error)) from None
    notes = [
        f"{segment.name}: cut off a torn write at byte {segment.torn.offset}: {segment.torn.why}"
        for segment in segments
        if segment.torn
    ]
    snapshot = _choose_snapshot(files, path, segments[0].header.identity, mark, replay, notes)
    recovered = _recovered(segments[0].header.identity, hard, mark, snapshot, replay, notes)
    return Found(path, segments, recovered, mark)


def recover(files: FileSystem, path: str) -> Recovered:
    """What the member of this directory knew when it stopped; see `read_log`."""
    return read_log(files, path).recovered


def read_file(files: FileSystem, path: str) -> bytes:
    """Read a file of the log; what the disk can't give back is damage too."""
    try:
        return files.read(path)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOENT):
            raise DamagedLog(path, 0, f"it cannot be read: {error.strerror}") from None
        raise StartError(
            f"{path} cannot be read: {error.strerror}", "make it readable for this user"
        ) from None


def _check_not_condemned(files: FileSystem, path: str, names: list[str]) -> None:
    if CONDEMNED_FILE in names:
        file = f"{path}/{CONDEMNED_FILE}"
        raise DamagedLog(file, 0, read_file(files, file).decode(errors="replace").strip())


def segment_files(names: list[str]) -> list[str]:
    """The segments among the names in a log's directory, in order."""
    return [name for name in names if name.startswith(SEGMENT_PREFIX) and "." not in name]


def _read_segments(files: FileSystem, path: str, names: list[str]) -> list[Segment]:
    known = segment_files(names)
    segments: list[Segment] = []
    for name in known:
        file = f"{path}/{name}"
        before = segments[-1] if segments else None
        data = read_file(files, file)
        segments.append(read_segment(file, data, before, last=name == known[-1]))
    return segments


def _choose_snapshot(
    files: FileSystem,
    path: str,
    identity: Identity,
    mark: SnapMeta,
    replay: Replay,
    notes: list[str],
) -> Snapshot | None:
    """Read the newest snapshot that counts, or an older one from which the log leads on."""
    if mark.index == 0:
        return None
    file = f"{path}/{snapshot_name(mark)}"
    try:
        return decode_snapshot(file, read_file(files, file), identity)
    except DamagedLog as damage:
        for name in reversed(files.list_directory(path)):
            position = snapshot_position(name)
            if position is None or not _leads_on(replay, mark, position):
                continue
            older = f"{path}/{name}"
            try:
                snapshot = decode_snapshot(older, read_file(files, older), identity)
            except DamagedLog as also:
                notes.append(str(also))
                continue
            notes.append(f"{damage}; used {name} and the log after it")
            return snapshot
        raise


def _leads_on(replay: Replay, mark: SnapMeta, position: tuple[int, int]) -> bool:
    """Whether the log has all from an older snapshot up to the mark and fits both."""
    term, index = position
    if index >= mark.index or not replay.entries:
        return False
    first = replay.entries[0].index
    if first > index + 1 or replay.entries[-1].index < mark.index:
        return False
    if first <= index and replay.entries[index - first].term != term:
        return False
    return replay.entries[mark.index - first].term == mark.term


def _recovered(
    identity: Identity,
    hard: HardState,
    mark: SnapMeta,
    snapshot: Snapshot | None,
    replay: Replay,
    notes: list[str],
) -> Recovered:
    meta = snapshot.meta if snapshot else mark
    entries = replay.entries
    base_index, base_term = meta.index, meta.term
    if entries and entries[0].index <= meta.index:
        # What stays for others that lag. The first gives its place and term as a beginning.
        base_index, base_term = entries[0].index, entries[0].term
        entries = entries[1:]
        if base_index == 1:
            base_index, base_term, entries = 0, 0, replay.entries
    return Recovered(
        identity,
        hard,
        meta.conf,
        meta,
        snapshot.data if snapshot else None,
        base_index,
        base_term,
        tuple(entries),
        tuple(notes),
    )
