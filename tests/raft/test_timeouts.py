"""T08, hazard 34: election timeouts spread out, and votes that split do not split for ever."""

from __future__ import annotations

import random
import statistics
from collections import Counter

from lb.raft.log import MemoryLog
from lb.raft.messages import ConfState, HardState, Role
from lb.raft.node import Config, Node
from raft.transcripts import make_group

TICKS = 50  # As delivered: an election timeout is 50 ticks of 20 ms.
MEMBERS = frozenset({1, 2, 3, 4, 5})
SEEDS = 300


def ticks_until_campaign(number: int, rng: random.Random) -> int:
    config = Config(id=number, election_ticks=TICKS)
    node = Node(config, MemoryLog(), HardState(), ConfState(MEMBERS), 0, rng)
    for ticks in range(1, 2 * TICKS + 1):
        node.tick()
        if node.role is not Role.FOLLOWER:
            return ticks
    raise AssertionError("it never campaigned")


def test_timeouts_span_the_whole_range() -> None:
    rng = random.Random(8)

    drawn = Counter(ticks_until_campaign(1, rng) for _ in range(2_000))

    assert min(drawn) == TICKS
    assert max(drawn) == 2 * TICKS - 1
    assert len(drawn) == TICKS, "every length comes up"


def test_few_campaign_at_the_same_moment() -> None:
    rng = random.Random(8)
    ties = 0
    for _ in range(SEEDS):
        first, second, *_ = sorted(ticks_until_campaign(number, rng) for number in MEMBERS)
        ties += first == second

    assert ties / SEEDS < 0.3


def terms_until_leader(seed: int) -> int:
    """Let five coarse members start at the same moment, messages taking as long as a tick."""
    group = make_group(["1", "2", "3", "4", "5", f"seed={seed}", "pre_vote=off"])
    for number in group.members:
        group.start(number)
    for _ in range(100):
        group.run(5)
        leaders = [
            member.up.term for member in group.members.values() if member.up.role is Role.LEADER
        ]
        if leaders:
            return max(leaders)
    raise AssertionError(f"seed {seed}: no leader in 50 election timeouts")


def test_split_votes_end() -> None:
    """Ticks are coarse here on purpose: ten to an election timeout, and no pre-vote."""
    rounds = [terms_until_leader(seed) for seed in range(1, SEEDS + 1)]

    assert statistics.median(rounds) <= 2
