"""
What most voters say: votes won or lost, and the highest number that most have reached.

A learner's word is never counted, nor that of anybody else who is not given as a voter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum


class Verdict(Enum):
    """How an election stands."""

    WON = "won"
    LOST = "lost"
    PENDING = "pending"


def size(voters: Collection[int]) -> int:
    """Return how many voters are a quorum: any two quorums share one."""
    return len(voters) // 2 + 1


def tally(votes: Mapping[int, bool], voters: Collection[int]) -> Verdict:
    """Count votes; who has not answered may yet say either."""
    yes = sum(votes.get(voter, False) for voter in voters)
    no = sum(not votes.get(voter, True) for voter in voters)
    if yes >= size(voters):
        return Verdict.WON
    if len(voters) - no < size(voters):
        return Verdict.LOST
    return Verdict.PENDING


def reached(numbers: Mapping[int, int], voters: Collection[int]) -> int:
    """Return the highest number that a quorum has reached; who is not in `numbers` is at 0."""
    if not voters:
        return 0
    ascending = sorted(numbers.get(voter, 0) for voter in voters)
    return ascending[len(voters) - size(voters)]
