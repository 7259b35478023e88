"""
The words of consensus: what members tell each other, what is kept, what a driver is asked to do.

Everything here is a frozen value. Member ids are whole numbers above 0, never given twice;
0 is nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from lb.errors import AccordError

NOBODY: Final = 0
ENTRY_OVERHEAD: Final = 24  # bytes that an entry costs besides its data, on wires and in bounds


class Kind(IntEnum):
    """What an entry is for."""

    NORMAL = 0  # a command of the state machine
    CONF = 1  # members change; see `members`
    NOOP = 2  # a new leader's first: by committing it, all before it is committed


class Role(Enum):
    """What a member is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class MessageType(IntEnum):
    """
    What a message says, and by which fields besides `frm`, `to` and `term`.

    Numbers are on wires: they are never given another meaning.
    """

    PRE_VOTE = 1  # "would you vote for me in `term`, my log ending at log_index/log_term?"
    PRE_VOTE_REPLY = 2  # `reject`; a yes repeats the term asked for, a no tells ours
    VOTE = 3  # the same, in earnest; ctx TRANSFER: a leader has asked me to
    VOTE_REPLY = 4  # `reject`
    APPEND = 5  # `entries` follow log_index/log_term; `commit`
    APPEND_REPLY = 6  # all up to log_index is on disk and as yours; or `reject`, see hints
    HEARTBEAT = 7  # `commit`, at most what you have acknowledged; ctx: round of reads
    HEARTBEAT_REPLY = 8  # ctx as it came
    SNAPSHOT = 9  # `chunk`
    SNAPSHOT_REPLY = 10  # of log_index/log_term I have the first hint_index bytes
    PROPOSE = 11  # `entries` without places, one; ctx: the sender's number for it
    PROPOSE_REPLY = 12  # ctx; it is at log_index/log_term now; or `reject`
    READ_INDEX = 13  # ctx: the sender's number for the read
    READ_INDEX_REPLY = 14  # ctx; log_index: apply up to there, then read; or `reject`
    TIMEOUT_NOW = 15  # campaign at once, you are to lead
    TRANSFER = 16  # please hand leadership over to member hint_index


TRANSFER: Final = b"transfer"  # ctx of a VOTE that a leader has asked for


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log. `index` and `term` are its place."""

    index: int
    term: int
    kind: Kind
    data: bytes = b""

    @property
    def size(self) -> int:
        """What it counts for wherever bytes are bounded."""
        return ENTRY_OVERHEAD + len(self.data)


@dataclass(frozen=True, slots=True)
class HardState:
    """What a member must never forget: one record, since term and vote change together."""

    term: int = 0
    vote: int = NOBODY
    commit: int = 0  # may be behind, never ahead


@dataclass(frozen=True, slots=True)
class ConfState:
    """Who the members are. Voters are counted; learners only follow."""

    voters: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()

    @property
    def members(self) -> frozenset[int]:
        """Return both kinds."""
        return self.voters | self.learners


@dataclass(frozen=True, slots=True)
class SnapMeta:
    """Which entries a snapshot stands for: all up to `index`; and who the members were there."""

    index: int = 0  # 0: there is no snapshot
    term: int = 0
    conf: ConfState = ConfState()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of the machine, as bytes."""

    meta: SnapMeta
    data: bytes


@dataclass(frozen=True, slots=True)
class SnapChunk:
    """A piece of a snapshot on its way."""

    meta: SnapMeta
    offset: int
    total: int  # bytes of the whole snapshot
    data: bytes
    crc: int  # CRC-32C of `data`
    whole_crc: int  # CRC-32C of all `total` bytes


@dataclass(frozen=True, slots=True)
class Message:
    """What one member tells another. Which fields mean something depends on `type`."""

    type: MessageType
    frm: int
    to: int
    term: int
    log_index: int = 0
    log_term: int = 0
    commit: int = 0
    entries: tuple[Entry, ...] = ()
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0
    ctx: bytes = b""
    chunk: SnapChunk | None = None


@dataclass(frozen=True, slots=True)
class Persist:
    """
    What must be on the disk before `then_send` may leave.

    These are written in the order of `seq`, each whole or not at all, none left out. Writing an
    entry writes over whatever stood there and after it. A snapshot's file is on the disk before
    this; when it is here, all entries before are gone.
    """

    seq: int
    hard: HardState | None  # None: as it was
    entries: tuple[Entry, ...]
    snapshot: SnapMeta | None
    must_sync: bool  # False: there is nothing to write, only an order to keep
    then_send: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read may be answered now: the machine has applied up to `index` or further."""

    ctx: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A proposal has a place: it is done if what is applied at `index` is of `term`, else not."""

    ctx: bytes
    index: int
    term: int


class Fate(Enum):
    """What is known of a call that failed."""

    NOT_DONE = "not done, for certain"
    UNKNOWN = "may be done yet, or be done already"


@dataclass(frozen=True, slots=True)
class Failed:
    """A proposal or read that this member does not follow any further."""

    ctx: bytes
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True)
class SoftState:
    """Whom to ask. Worth nothing as a promise: use it for hints and health."""

    role: Role
    leader: int


@dataclass(frozen=True, slots=True)
class Ready:
    """
    What a driver has to do now. Each thing is handed out once, and the order is a promise:

    1. Send `send_now`. Messages may be lost, repeated and mixed up; that is harmless.
    2. If there is an `install`, make its file sure. (Its `persist` names it; no other `persist`
       is handed out until this one is acknowledged.)
    3. Make `persist` sure, put the same into the log that the node reads, call
       `node.persisted(seq)`, and only then send its `then_send`. This may take its time:
       other work goes on, and later ones queue behind it.
    4. If there was an `install`, give its state to the machine once it is persisted, and call
       `node.applied(install.meta.index)`.
    5. Apply `apply`, in order, after everything handed out before; call `node.applied(index)`.
    6. Tell whoever asked: `placed`, `reads`, `dropped`.
    """

    soft: SoftState | None = None  # None: as it was
    send_now: tuple[Message, ...] = ()
    persist: Persist | None = None
    apply: tuple[Entry, ...] = ()
    install: Snapshot | None = None
    reads: tuple[ReadState, ...] = ()
    dropped: tuple[Failed, ...] = ()
    placed: tuple[Placed, ...] = ()


class ProgressState(Enum):
    """How a leader sends to one member."""

    PROBE = "probe"  # one append at a time, to find where the logs agree
    REPLICATE = "replicate"  # many on their way at once
    SNAPSHOT = "snapshot"  # the log it needs is gone


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a leader knows of one member."""

    state: ProgressState
    match: int
    next: int
    inflight: int
    recent_active: bool
    caught_up: bool  # a learner that may be promoted
    snapshot_offset: int  # bytes of a snapshot that have arrived


@dataclass(frozen=True, slots=True)
class Status:
    """A member, looked at."""

    id: int
    role: Role
    term: int
    vote: int
    leader: int
    commit: int
    applied: int
    first: int
    last: int
    stable: int  # all up to here is on this member's disk
    conf: ConfState  # in force
    conf_index: int  # of the entry that says so
    transferee: int
    peers: dict[int, PeerStatus]  # empty unless it leads
    passed_over: dict[str, int]  # messages without an effect, by reason


class NotLeader(AccordError):  # noqa: N818  # It says where to go, more than what went wrong.
    """This member does not lead; `leader` does, as far as it knows."""

    def __init__(self, leader: int) -> None:
        super().__init__("this member does not lead the group", "ask the leader")
        self.leader = leader


class Dropped(AccordError):  # noqa: N818  # The same.
    """A request was not taken, so it is certainly not done."""
