"""
What a member has promised and knows, whatever its role: term, vote, log, commit, members.

Roles come and go in `node`; these only ever grow. Every change of them is made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Any

from lb.raft.log import Log, LogView
from lb.raft.members import Members
from lb.raft.messages import (
    NOBODY,
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    Snapshot,
)
from lb.raft.outbox import Outbox


class PassedOver(Enum):
    """Why a message, or a call by the driver, had no effect."""

    NOT_FOR_US = "addressed to another member"
    FROM_OURSELVES = "says that it is from this member"
    NOT_A_MEMBER = "from somebody who is no member"
    STALE_TERM = "of an earlier term"
    STALE_ANSWER = "an answer to something older, or given before"
    WRONG_ROLE = "for a role that this member does not have"
    SECOND_LEADER = "from a second leader of our term"
    IN_LEASE = "a vote was asked while the leader is well"
    MALFORMED = "makes no sense"
    BEYOND_LOG = "speaks of entries that this log does not have"
    RESTORING = "a snapshot is being written to the disk"
    OLDER_SNAPSHOT = "of a snapshot that a newer one has overtaken"
    UNKNOWN_CALL = "an answer that nobody waits for"
    NOT_PROMOTABLE = "asks a member to campaign that has no vote"
    NO_SUCH_TARGET = "leadership can't be handed to that member"
    TOO_MUCH_WAITING = "too many answers wait for the disk"


class Ledger:
    """The part of a member that outlives its roles."""

    __slots__ = (
        "commit",
        "id",
        "log",
        "members",
        "outbox",
        "passed_over",
        "term",
        "ticks",
        "vote",
    )

    def __init__(
        self, member: int, view: LogView, hard: HardState, conf: ConfState, writes_max: int
    ) -> None:
        meta = view.snapshot_meta()
        self.id = member
        self.term = hard.term
        self.vote = hard.vote
        self.commit = max(hard.commit, meta.index)
        self.log = Log(view)
        self.members = Members(meta.index, meta.conf if meta.index else conf)
        self.outbox = Outbox(hard, writes_max)
        self.ticks = 0
        self.passed_over: Counter[PassedOver] = Counter()
        assert meta.index <= self.commit <= self.log.last, "what was committed is on the disk"
        self.members.append(view.entries(meta.index + 1, view.last + 1, 1 << 62))

    @property
    def hard(self) -> HardState:
        """Return what must not be forgotten."""
        return HardState(self.term, self.vote, self.commit)

    # --- Saying things ------------------------------------------------------------------------

    def send(self, kind: MessageType, to: int, **fields: Any) -> None:
        """Send a message in our term; `term` in `fields` for those of another."""
        fields.setdefault("term", self.term)
        if not self.outbox.send(Message(kind, self.id, to, **fields)):
            self.pass_over(PassedOver.TOO_MUCH_WAITING)

    def pass_over(self, why: PassedOver) -> None:
        """Count what has no effect."""
        self.passed_over[why] += 1

    # --- Promises -----------------------------------------------------------------------------

    def adopt(self, term: int) -> None:
        """Enter a later term, in which nobody has our vote."""
        assert term > self.term
        self.term = term
        self.vote = NOBODY

    def give_vote(self, to: int) -> None:
        """Vote, once a term."""
        assert self.vote in (NOBODY, to), "one vote a term"
        self.vote = to

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries after the last; changes of members among them are in force from now on."""
        self.log.append(entries)
        self.members.append(entries)

    def overwrite_from(self, index: int) -> None:
        """Take off the log what a later leader contradicts."""
        assert index > self.commit, "what is committed is never taken back"
        self.log.cut(index)
        self.members.cut(index)
        self.outbox.cut(index)

    def restore(self, snapshot: Snapshot) -> None:
        """Let a snapshot stand for all."""
        assert snapshot.meta.index > self.commit, "a snapshot never takes us back"
        self.log.restore(snapshot)
        self.members.restart(snapshot.meta.index, snapshot.meta.conf)
        self.outbox.restart()
        self.commit = snapshot.meta.index

    def commit_to(self, index: int) -> None:
        """All up to `index` is committed. Never goes back."""
        if index > self.commit:
            assert index <= self.log.last, "only what is in the log can be committed"
            self.commit = index

    def acknowledge(self, seq: int) -> None:
        """All writes up to `seq` are on the disk."""
        sure = self.outbox.acknowledge(seq)
        if sure.restored:
            self.log.restored()
        if sure.last is not None:
            self.log.made_sure(*sure.last)

    def check(self) -> None:
        """Assert what must always hold."""
        log = self.log
        assert log.first - 1 <= self.commit <= log.last, "commit is in the log"
        assert log.stable <= log.last
        assert log.last_term <= self.term, "no entry is of a term to come"
        assert self.outbox.sure.term <= self.term, "the disk is never ahead"
        assert self.members.changed_at <= log.last, "who is in force is what the log says"
        assert log.snapshot_index <= self.commit
