"""
Consistent reads, as a leader answers them: nothing is written, but leadership is confirmed.

A read is answered at the commit index of when its round began, once a quorum has answered a
heartbeat of that round or of a later one. Rounds have numbers that only grow; a heartbeat
carries the newest. So an answer to a heartbeat that left before the read was asked can't count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lb.raft.quorum import reached


@dataclass(frozen=True, slots=True)
class Read:
    """One read: who asked, and the asker's name for it."""

    frm: int
    ctx: bytes


@dataclass(frozen=True, slots=True)
class _Round:
    number: int
    index: int
    reads: tuple[Read, ...]


class Reads:
    """All reads of one leader that are not confirmed yet."""

    __slots__ = ("_acknowledged", "_calls_max", "_count", "_number", "_rounds", "_waiting")

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._count = 0
        self._number = 0
        self._waiting: list[Read] = []
        self._rounds: list[_Round] = []  # Not more than there are reads.
        self._acknowledged: dict[int, int] = {}  # The newest round that each has answered.

    @property
    def waiting(self) -> bool:
        """Whether there are reads without a round."""
        return bool(self._waiting)

    @property
    def open_round(self) -> int:
        """Return the number that heartbeats have to carry; 0 if nobody waits for a round."""
        return self._number if self._rounds else 0

    def ask(self, read: Read) -> bool:
        """Take in a read; False if there are too many."""
        if self._count >= self._calls_max:
            return False
        self._count += 1
        self._waiting.append(read)
        return True

    def begin_round(self, commit: int) -> None:
        """Give a round to all that wait. The commit index is of this term: see `Leadership`."""
        self._number += 1
        self._rounds.append(_Round(self._number, commit, tuple(self._waiting)))
        self._waiting.clear()

    def acknowledge(self, member: int, number: int) -> bool:
        """Take in a member's answer; False if it says nothing new."""
        if not self._acknowledged.get(member, 0) < number <= self._number:
            return False
        self._acknowledged[member] = number
        return True

    def confirmed(self, leader: int, voters: Collection[int]) -> list[tuple[Read, int]]:
        """Return reads that a quorum has confirmed, and the index of each; once."""
        done = []
        number = reached({**self._acknowledged, leader: self._number}, voters)
        while self._rounds and self._rounds[0].number <= number:
            ended = self._rounds.pop(0)
            done += [(read, ended.index) for read in ended.reads]
        self._count -= len(done)
        return done

    def give_up(self) -> list[Read]:
        """Return all that are left, since this leader is none any more."""
        left = [read for ended in self._rounds for read in ended.reads] + self._waiting
        self._rounds.clear()
        self._waiting.clear()
        self._count = 0
        return left
