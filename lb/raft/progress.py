"""
What a leader knows of one member, and how much it may send to it.

`match` is what the member has said to be on its disk, `next` what it is sent next.
Invariant: match < next, and match never goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import google_crc32c

from lb.raft.messages import Entry, PeerStatus, ProgressState, SnapChunk, Snapshot

RESENT_MAX: Final = 5  # A chunk without an answer is sent again so often, then all is given up.


class Inflights:
    """Appends on their way: the last index and the bytes of each, oldest first."""

    __slots__ = ("_bytes", "_bytes_max", "_count_max", "_sent")

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._sent: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent."""
        return len(self._sent) >= self._count_max or self._bytes >= self._bytes_max

    def add(self, last: int, size: int) -> None:
        """Note one that was sent."""
        self._sent.append((last, size))
        self._bytes += size

    def free(self, match: int) -> None:
        """Let go of those that have arrived."""
        while self._sent and self._sent[0][0] <= match:
            self._bytes -= self._sent.popleft()[1]

    def clear(self) -> None:
        """Let go of all."""
        self._sent.clear()
        self._bytes = 0


@dataclass(slots=True)
class Sending:
    """A snapshot on its way to one member, one chunk at a time."""

    snapshot: Snapshot
    whole_crc: int
    asked_at: int  # the tick at which the chunk on its way was sent
    offset: int = 0  # of that chunk: all before it has arrived
    resent: int = 0

    def chunk(self, size: int) -> SnapChunk:
        """Return the chunk that is due."""
        data = self.snapshot.data[self.offset : self.offset + size]
        total = len(self.snapshot.data)
        crc = google_crc32c.value(data)
        return SnapChunk(self.snapshot.meta, self.offset, total, data, crc, self.whole_crc)


class Progress:
    """One member, as its leader sees it. The state changes in `become_...` only."""

    __slots__ = (
        "asked",
        "commit_sent",
        "due",
        "heard_at",
        "inflights",
        "match",
        "next",
        "paused",
        "round_at",
        "round_end",
        "round_ticks",
        "sending",
        "state",
    )

    def __init__(self, last: int, inflights: Inflights, now: int) -> None:
        self.state = ProgressState.PROBE
        self.match = 0
        self.next = last + 1
        self.inflights = inflights
        self.paused = False  # Until an answer, or a heartbeat's.
        self.due = True  # Something may be to send: see `Leadership.flush`.
        self.asked = True  # An append is to be sent even if it is empty.
        self.commit_sent = 0
        self.heard_at = now
        self.sending: Sending | None = None
        self.round_at = now
        self.round_end = last
        self.round_ticks: int | None = None  # What the last round took; None: none is over.

    # --- States -------------------------------------------------------------------------------

    def become_probe(self) -> None:
        """Look for the place where the logs agree, one append at a time."""
        if self.state is not ProgressState.PROBE:  # What is on its way may be lost.
            self.next = self.match + 1
        self._enter(ProgressState.PROBE)

    def become_replicate(self) -> None:
        """The logs agree up to `match`: send on without waiting for answers."""
        self.next = self.match + 1
        self._enter(ProgressState.REPLICATE)

    def become_snapshot(self, snapshot: Snapshot, now: int) -> None:
        """What it needs is gone from the log: send a snapshot, and no appends meanwhile."""
        self._enter(ProgressState.SNAPSHOT)
        self.sending = Sending(snapshot, google_crc32c.value(snapshot.data), now)

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.inflights.clear()
        self.sending = None
        self.due = True

    # --- What was sent, and what came back ----------------------------------------------------

    def sent(self, entries: Sequence[Entry]) -> None:
        """Note an append that was sent."""
        self.asked = False
        if self.state is ProgressState.PROBE:
            self.paused = True  # Nobody knows yet whether it fits.
        elif entries:
            self.next = entries[-1].index + 1
            self.inflights.add(entries[-1].index, sum(entry.size for entry in entries))
        if self.inflights.full:
            self.paused = True

    def acknowledge(self, index: int) -> bool:
        """Take in that all up to `index` has arrived; False if that was known."""
        if index < self.match or (index == self.match and self.state is not ProgressState.PROBE):
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.inflights.free(index)
        self.paused = False
        return True

    def refuse(self, rejected: int, hint: int) -> bool:
        """
        Take in that an append after `rejected` did not fit; `hint`: where the logs may agree.

        False if the answer is to something older than what was sent last: a place that was
        acknowledged fits, and while probing only one question is open.
        """
        if self.state is ProgressState.SNAPSHOT or rejected <= self.match:
            return False
        if self.state is ProgressState.REPLICATE:
            self.become_probe()
            self.next = max(min(self.next, hint + 1), self.match + 1)
            return True
        if rejected != self.next - 1:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.paused = False
        return True

    def count_round(self, last: int, now: int) -> None:
        """See whether a round is over: it has what the leader had at the round's start."""
        if self.match >= self.round_end:
            self.round_ticks = now - self.round_at
            self.round_at, self.round_end = now, last

    def keeps_up(self, patience: int) -> bool:
        """Whether its last round was short: a group that counts on it won't wait for it."""
        return self.round_ticks is not None and self.round_ticks < patience

    def status(self, now: int, patience: int) -> PeerStatus:
        """Return how things stand."""
        return PeerStatus(
            state=self.state,
            match=self.match,
            next=self.next,
            inflight=len(self.inflights),
            recent_active=now - self.heard_at < patience,
            caught_up=self.keeps_up(patience),
            snapshot_offset=self.sending.offset if self.sending else 0,
        )

    def check(self, last: int) -> None:
        """Assert what must always hold."""
        assert self.match < self.next <= last + 1
        assert (self.sending is not None) is (self.state is ProgressState.SNAPSHOT)
