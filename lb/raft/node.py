"""
A member of the group: the pure core that a driver moves by `step` and `tick`.

A driver feeds what happens, then carries out what `ready` hands out, as numbered there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lb.raft.log import LogView
from lb.raft.members import ConfChange
from lb.raft.messages import ConfState, HardState, Message, Ready, Role, Status

if TYPE_CHECKING:
    import random

__all__ = ["Config", "Node", "Role"]


@dataclass(frozen=True, slots=True)
class Config:
    """Who this member is, how patient it is, and the bounds of what it holds and sends."""

    id: int
    election_ticks: int = 50  # a follower waits this long, and at random up to twice that
    heartbeat_ticks: int = 5
    pre_vote: bool = True  # ask before campaigning, so that who is cut off raises no term
    check_quorum: bool = True  # a leader without a quorum steps down; its voters refuse others
    forward: bool = True  # pass proposals and reads on to the leader
    max_entry_bytes: int = 1 << 20
    max_append_bytes: int = 1 << 20  # of entries in one append; a longer entry goes alone
    inflight_max: int = 256  # appends on their way to one member
    inflight_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 16 << 20
    apply_bytes_max: int = 1 << 20  # handed out to be applied at once
    snapshot_chunk_bytes: int = 64 << 10
    snapshot_bytes_max: int = 64 << 20
    calls_max: int = 4096  # proposals, and reads, without an answer yet
    persists_max: int = 128  # handed out and not acknowledged


class Node:
    """One member. Nothing here waits, and nothing changes but by a call."""

    def __init__(
        self,
        config: Config,
        log: LogView,
        hard: HardState,
        conf: ConfState,
        applied: int,
        rng: random.Random,
    ) -> None:
        """
        Start as a follower, from what the disk holds.

        `conf`: the members as of the snapshot, or those the group was founded with. `applied`:
        where the machine stands, which is the snapshot's index. `rng` is a source of chance of
        this member's own, another one at each start.
        """
        raise NotImplementedError

    # --- What a driver looks at: id, term, vote, role, leader, commit, applied_index, conf ------

    def status(self) -> Status:
        """Return how things stand."""
        raise NotImplementedError

    def conf_at(self, index: int) -> ConfState:
        """Return the members as of an entry: what a snapshot taken there has to say of them."""
        raise NotImplementedError

    # --- What happens -------------------------------------------------------------------------

    def tick(self) -> None:
        """Let a unit of time pass. After a stall once, not once for each tick missed."""
        raise NotImplementedError

    def step(self, message: Message) -> None:
        """Take in one message from another member, however late or often it comes."""
        raise NotImplementedError

    def persisted(self, seq: int) -> None:
        """All that was handed out up to the persist of that number is on the disk."""
        raise NotImplementedError

    def applied(self, index: int) -> None:
        """The machine has applied all up to `index`."""
        raise NotImplementedError

    def report_unreachable(self, peer: int) -> None:
        """A message to that member could not be sent."""
        raise NotImplementedError

    def report_snapshot(self, peer: int, ok: bool) -> None:
        """Sending a snapshot was given up (`ok` false), or the member said it has it."""
        raise NotImplementedError

    # --- What is asked for --------------------------------------------------------------------

    def propose(self, data: bytes, ctx: bytes) -> None:
        """
        Ask for an entry. `placed` and `dropped` of a `Ready` say under `ctx` what became of it.

        NotLeader: there is no leader known, or forwarding is off. Dropped: not taken, and why.
        """
        raise NotImplementedError

    def propose_conf(self, change: ConfChange, ctx: bytes) -> None:
        """Ask for a change of members, of the leader only. NotLeader, Dropped as above."""
        raise NotImplementedError

    def read_index(self, ctx: bytes) -> None:
        """Ask for a consistent read: it may be answered when `ctx` comes in `Ready.reads`."""
        raise NotImplementedError

    def transfer(self, to: int) -> None:
        """Hand leadership over, or ask the leader to; given up after an election timeout."""
        raise NotImplementedError

    def campaign(self) -> None:
        """Try to become leader now, as if the election timeout had passed."""
        raise NotImplementedError

    # --- What a driver has to do --------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether `ready` has something to hand out."""
        raise NotImplementedError

    def ready(self) -> Ready:
        """Hand out what is to be done; see `Ready`."""
        raise NotImplementedError

    def compact(self, index: int) -> int:
        """
        Return how far the log may be forgotten now, at most up to `index`.

        That is not past the snapshot that the log view shows, nor past what a member still
        needs to which a snapshot is under way. The driver then forgets that much.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Assert what must always hold. Done after every call by itself."""
        raise NotImplementedError
