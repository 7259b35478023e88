"""When time passes for a member's core, which counts it in ticks: as seldom as may be.

A core at rest has nothing to do at most of its ticks. So several are slept through, and given
to it together: those that have passed before it does anything else, the last when its time has
come. Which ones may be slept through is for the caller to say; `calm` says it of a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lb.raft.messages import NOBODY, Role
from lb.raft.node import Node
from lb.raft.quorum import size


class Pace:
    """
    Counts the ticks of one core, of `seconds` each, by a clock that is an argument.

    However late the last tick of a sleep comes, no more pass than were slept through: time in
    which this process stood still is no time in which others were silent.
    """

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._from = now
        self._length = 1  # Ticks of the present sleep,
        self._given = 0  # and how many of them have passed.

    @property
    def due(self) -> float:
        """When the last tick of this sleep is to pass."""
        return self._from + self._length * self._seconds

    def passed(self, now: float) -> int:
        """Return how many ticks have passed since the last call, but for the sleep's last."""
        whole = min(int((now - self._from) / self._seconds), self._length - 1)
        news = max(0, whole - self._given)
        self._given += news
        return news

    def woke(self, now: float) -> None:
        """The last tick has passed; the next one is a tick later, or at once if this was late."""
        self._from = max(self.due, now - self._seconds)
        self._length, self._given = 1, 0

    def rest(self, ticks: int) -> None:
        """Sleep through so many ticks, counted from the last one that has passed."""
        self._from += self._given * self._seconds
        self._length, self._given = max(1, ticks), 0


def calm(node: Node, heard_at: Mapping[int, float], since: float) -> bool:
    """
    Whether nothing but a leader's heartbeat can be due for a while.

    That is while whoever decides was heard later than `since`: our leader, or as a leader a
    quorum of voters.
    """
    if node.role is Role.FOLLOWER:
        return node.leader != NOBODY and heard_at.get(node.leader, since) > since
    if node.role is not Role.LEADER or node.status().transferee != NOBODY:
        return False
    return _hears_a_quorum(node, [who for who, at in heard_at.items() if at > since])


def _hears_a_quorum(node: Node, heard: Iterable[int]) -> bool:
    voters = node.conf.voters
    others = voters.intersection(heard) - {node.id}
    return len(others) + (node.id in voters) >= size(voters)
