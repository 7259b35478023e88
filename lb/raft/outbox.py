"""
What leaves a member, and when: a message never before what it promises is on the disk.

Every message goes through `send`. One that promises something, and any that carries a term
which is not on the disk yet, waits for the next write and all before it. So there is no other
way to say a thing too early than to leave a type out of `PROMISES`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from lb.raft.log import Log
from lb.raft.messages import HardState, Message, MessageType, Persist

WAITING_MAX: Final = 8192  # Messages that wait for the disk. They may be lost, so the rest is.

PROMISES: Final = frozenset(
    {
        MessageType.VOTE,  # My own vote is mine.
        MessageType.VOTE_REPLY,
        MessageType.PRE_VOTE_REPLY,
        MessageType.APPEND_REPLY,
    }
)
# They carry a term that nobody is in.
WITHOUT_OUR_TERM: Final = frozenset({MessageType.PRE_VOTE})


@dataclass(slots=True)
class _Write:
    """One persist that was handed out and not acknowledged."""

    seq: int
    hard: HardState
    last: tuple[int, int] | None  # index and term of the last entry that is still in the log
    restores: bool


@dataclass(frozen=True, slots=True)
class Sure:
    """What an acknowledgement made sure."""

    last: tuple[int, int] | None
    restored: bool


class Outbox:
    """Messages and writes of one member."""

    __slots__ = ("_asked", "_later", "_now", "_seq", "_writes", "_writes_max", "sure")

    def __init__(self, hard: HardState, writes_max: int) -> None:
        self.sure = hard  # On the disk.
        self._asked = hard  # On the disk when all that was handed out is.
        self._writes_max = writes_max
        self._writes: deque[_Write] = deque()
        self._seq = 0
        self._now: list[Message] = []
        self._later: list[Message] = []

    def send(self, message: Message) -> bool:
        """Have a message sent as soon as may be; False if too many wait already."""
        if not self._must_wait(message):
            self._now.append(message)
        elif len(self._later) < WAITING_MAX:
            self._later.append(message)
        else:
            return False
        return True

    def _must_wait(self, message: Message) -> bool:
        if message.type in PROMISES:
            return True
        return message.term > self.sure.term and message.type not in WITHOUT_OUR_TERM

    # --- Handing out --------------------------------------------------------------------------

    def has_work(self, hard: HardState, log: Log) -> bool:
        """Whether `hand_out` has something."""
        return bool(self._now) or (
            self._may_write and (bool(self._later) or self._must_write(hard, log))
        )

    @property
    def _may_write(self) -> bool:
        if len(self._writes) >= self._writes_max:
            return False
        return not any(write.restores for write in self._writes)

    def _must_write(self, hard: HardState, log: Log) -> bool:
        """Whether there is something new. A new commit index alone goes with the next write."""
        asked = self._asked
        return (
            log.has_unhanded
            or (hard.term, hard.vote) != (asked.term, asked.vote)
            or self._is_new(log)
        )

    def _is_new(self, log: Log) -> bool:
        """Whether there is a snapshot to restore from that was not handed out yet."""
        return log.restoring is not None and not any(write.restores for write in self._writes)

    def hand_out(self, hard: HardState, log: Log) -> tuple[tuple[Message, ...], Persist | None]:
        """Return what to send now, and what to write and send after that."""
        persist = None
        if self._may_write:
            if self._must_write(hard, log):
                persist = self._write(hard, log)
            elif self._writes and self._later:
                # Nothing new; but what these promise is among what is still being written.
                persist = self._persist(None, log, restores=False, must_sync=False)
            else:
                self._now += self._later  # All that they promise is on the disk.
                self._later.clear()
        now = tuple(self._now)
        self._now.clear()
        return now, persist

    def _write(self, hard: HardState, log: Log) -> Persist:
        changed = hard if hard != self._asked else None
        self._asked = hard
        return self._persist(changed, log, restores=self._is_new(log), must_sync=True)

    def _persist(
        self, hard: HardState | None, log: Log, restores: bool, must_sync: bool
    ) -> Persist:
        entries = log.hand_out() if must_sync else ()
        last = (entries[-1].index, entries[-1].term) if entries else None
        self._seq += 1
        self._writes.append(_Write(self._seq, self._asked, last, restores))
        restoring = log.restoring if restores else None
        persist = Persist(
            seq=self._seq,
            hard=hard,
            entries=entries,
            snapshot=restoring.meta if restoring else None,
            must_sync=must_sync,
            then_send=tuple(self._later),
        )
        self._later.clear()
        return persist

    # --- Coming back --------------------------------------------------------------------------

    def cut(self, index: int) -> None:
        """
        The log was cut at `index`: no write that is under way makes anything sure from there on.

        What it wrote is written over by a later one, even by the same entries again.
        """
        for write in self._writes:
            if write.last is not None and write.last[0] >= index:
                write.last = None

    def restart(self) -> None:
        """The log was replaced as a whole."""
        for write in self._writes:
            write.last = None

    def acknowledge(self, seq: int) -> Sure:
        """Take in that all writes up to `seq` are on the disk."""
        assert seq <= self._seq, "acknowledged before it was handed out"
        last = None
        restored = False
        while self._writes and self._writes[0].seq <= seq:
            write = self._writes.popleft()
            self.sure = write.hard
            last = write.last or last
            restored = restored or write.restores
        return Sure(last, restored)
