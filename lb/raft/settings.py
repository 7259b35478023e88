"""How patient a member is, and the bounds of what it holds and sends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """One member's settings. Times are in ticks, whatever a tick is."""

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

    def __post_init__(self) -> None:
        assert self.id > 0, "0 is nobody"
        assert 0 < self.heartbeat_ticks < self.election_ticks, "leaders must be heard in time"
