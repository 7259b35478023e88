"""A member's place in its group, as its data_dir has it: who it is, and its log.

`member.json` says which id this instance has, or has chosen. The log under `raft/` says what it
has promised under that id. An id is written down before anybody is told of it, and used again
only while no log has ever been begun under it: whoever lost its log may have lost a vote, and
gets another id.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from lb.control.disk import DamagedError, Disk, UnsettledError, seal, unseal
from lb.control.filesystem import FileSystem, RealFileSystem
from lb.control.recovery import LOG_DIRECTORY, RESERVE_FILE, Recovered, read_log
from lb.control.state_machine import encode_state
from lb.control.storage import LOCK_FILE, SPARE_FILE, Sizes, Storage
from lb.control.wal import DamagedLog, Identity
from lb.errors import StartError
from lb.raft.messages import NOBODY, ConfState, HardState, Persist, SnapMeta, Snapshot
from lb.registry import Registry

log = logging.getLogger(__name__)

SEAT_FILE = "member.json"
SEAT_FORMAT = 1
GROUP_BYTES = 16
MEMBERS_MAX = 1 << 53  # Ids stay whole numbers in every JSON reader.
SIZES = Sizes(segment=4 << 20, reserve=16 << 20)

FIRST = (1, 1)  # Index and term of the snapshot that every group begins with.


class Standing(Enum):
    """How far a member has come."""

    JOINING = "joining"  # The id is chosen; no log has been begun.
    FOUNDING = "founding"  # The log is being begun, and nobody knows of the group.
    MEMBER = "member"


@dataclass(frozen=True, slots=True)
class Seat:
    """
    Which member of which group; `group` is empty while that is not known.

    `stopped` says why it must not go on with its log, and what to do; it is no part of who it is.
    """

    group: str
    member: int
    standing: Standing
    stopped: str = field(default="", compare=False)


def new_group() -> str:
    """Return a fresh id for a group."""
    return secrets.token_hex(GROUP_BYTES)


def new_member() -> int:
    """Return a fresh id for a member."""
    return secrets.randbelow(MEMBERS_MAX - 1) + 1


class SeatFiles:
    """What of a data_dir is a member's. Blocks; not for the loop but at a start."""

    def __init__(
        self, data_dir: str | Path, files: FileSystem | None = None, disk: Disk | None = None
    ) -> None:
        self._folder = Path(data_dir).absolute()
        self._path = self._folder / SEAT_FILE
        self.log_path = str(self._folder / LOG_DIRECTORY)
        self._files = files or RealFileSystem()
        self._disk = disk or Disk()

    @property
    def has_log(self) -> bool:
        """Whether there is anything of a log; room that was kept for one is nothing."""
        names = self._files.list_directory(self.log_path)
        return any(n not in (LOCK_FILE, RESERVE_FILE) and n != SPARE_FILE for n in names)

    def read(self) -> Seat | None:
        """Return the seat; None if there has been none. StartError: it can't be told."""
        try:
            data = self._disk.read(self._path)
            if data is None:
                return None
            _, body = unseal(data)
            standing, stopped = Standing(body["standing"]), str(body.get("stopped", ""))
            return Seat(body["group"], body["member"], standing, stopped)
        except (OSError, DamagedError, KeyError, TypeError, ValueError) as error:
            raise StartError(
                f"{self._path} cannot be used: {error}",
                f"remove it and {self.log_path}: this instance then joins under a new id",
            ) from error

    def write(self, seat: Seat) -> None:
        """Keep a seat, for sure."""
        body = {"group": seat.group, "member": seat.member, "standing": seat.standing.value}
        body |= {"stopped": seat.stopped} if seat.stopped else {}
        try:
            self._disk.replace(self._path, seal(SEAT_FORMAT, body))
        except (OSError, UnsettledError) as error:
            raise StartError(
                f"{self._path} cannot be written: {error}",
                "see that node.data_dir is on a sound disk with room left, and ours to write",
            ) from error

    def stop(self, seat: Seat, why: str) -> Seat:
        """Keep that this member must not go on, as far as the disk lets us."""
        seat = replace(seat, stopped=why)
        try:
            self.write(seat)
        except StartError as error:
            log.error("a restart will not know that this member has stopped: %s", error.brief)
        return seat

    def of_log(self) -> Seat:
        """Return whose the log is, and write that down: the file that said so is gone."""
        seat = _seat_of(read_log(self._files, self.log_path).recovered.identity)
        self.write(seat)
        return seat

    def open(self, seat: Seat) -> tuple[Storage, Recovered]:
        """
        Go on with the log of a seat. NoLogError, StartError as `Storage.open`.

        DamagedLog: as there; or it is another's, brought here from another box.
        """
        storage, recovered = Storage.open(self._files, self.log_path, SIZES)
        ours = _seat_of(recovered.identity)
        if ours != seat:
            storage.close()
            raise DamagedLog(
                self.log_path,
                0,
                f"it is of member {ours.member:x} of group {ours.group}, and by {self._path} "
                f"this is member {seat.member:x} of group {seat.group}",
            )
        return storage, recovered

    def found(self, group: str, registry: Registry, member: int) -> Seat:
        """
        Begin a group of which this instance is the only member, with what `registry` holds.

        It begins with a snapshot, so that whoever joins later is sent one, members and all.
        """
        seat = Seat(group, member, Standing.FOUNDING)
        self.write(seat)
        index, term = FIRST
        meta = SnapMeta(index, term, ConfState(frozenset({member})))
        hard = HardState(term, NOBODY, index)
        with closing(self._create(seat, ConfState(frozenset({member})))) as storage:
            storage.put_snapshot(Snapshot(meta, encode_state(registry)))
            storage.write([Persist(1, hard, (), meta, True, ())])
        seat = replace(seat, standing=Standing.MEMBER)
        self.write(seat)
        return seat

    def join(self, seat: Seat) -> Seat:
        """Begin the log of a member that a group has taken in; the leader sends it the rest."""
        self._create(seat, ConfState()).close()
        seat = replace(seat, standing=Standing.MEMBER)
        self.write(seat)
        return seat

    def set_aside(self, why: str) -> str:
        """Move a log out of the way, that is not to be used again; return its new name."""
        for number in range(1, 1000):
            aside = f"{self.log_path}.{why}-{number}"
            if not self._files.exists(aside):
                self._files.rename(self.log_path, aside)
                self._files.sync_directory(str(self._folder))
                return aside
        raise StartError(f"there are too many old logs beside {self.log_path}", "remove them")

    def put_back(self, aside: str, seat: Seat) -> None:
        """Undo `set_aside`, and whatever was begun in its place."""
        self.discard_unfinished()
        self._files.rename(aside, self.log_path)
        self._files.sync_directory(str(self._folder))
        self.write(seat)

    def discard_unfinished(self) -> None:
        """Remove a log whose beginning was cut short: nothing was promised by it."""
        for name in self._files.list_directory(self.log_path):
            self._files.unlink(f"{self.log_path}/{name}")

    def _create(self, seat: Seat, conf: ConfState) -> Storage:
        identity = Identity(bytes.fromhex(seat.group), seat.member)
        return Storage.create(self._files, self.log_path, identity, conf, SIZES)


def _seat_of(identity: Identity) -> Seat:
    return Seat(identity.group.hex(), identity.member, Standing.MEMBER)
