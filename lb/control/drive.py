"""
The loop of a member, without its clock and sockets: what the core hands out, carried out in order.

The duties are numbered in `Ready`, and so are the steps here. Whoever drives a core, the replica
of this process or a test, gives it `Hands`; nothing here waits, and nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from lb.raft.log import MemoryLog
from lb.raft.messages import (
    Entry,
    Failed,
    Message,
    Persist,
    Placed,
    ReadState,
    Snapshot,
    SoftState,
)
from lb.raft.node import Node


class Hands(Protocol):
    """What a core can't do itself."""

    def send(self, messages: Iterable[Message]) -> None:
        """Put messages on their way; they may be lost."""

    def save(self, persist: Persist, install: Snapshot | None) -> None:
        """Make sure of a snapshot's file if there is one, then of a persist; then call `saved`."""

    def restore(self, snapshot: Snapshot) -> None:
        """Have the machine start again from a snapshot, then call `node.applied`."""

    def apply(self, entries: Sequence[Entry]) -> None:
        """Have the machine apply entries, then call `node.applied`."""

    def place(self, placed: Placed) -> None:
        """Hear where a proposal is in the log."""

    def answer_read(self, read: ReadState) -> None:
        """Answer a read: the machine is as far as it has to be."""

    def fail(self, failed: Failed) -> None:
        """Tell whoever waits that a call is not followed any further."""

    def look(self, soft: SoftState) -> None:
        """Hear who leads."""


def drive(node: Node, hands: Hands) -> None:
    """Carry out all that a core hands out."""
    while node.has_ready():
        ready = node.ready()
        hands.send(ready.send_now)  # 1
        if ready.persist is not None:
            hands.save(ready.persist, ready.install)  # 2 and 3, which end in `saved`
        if ready.apply:
            hands.apply(ready.apply)  # 5; an `install` before it has been applied: see `saved`
        for placed in ready.placed:  # 6
            hands.place(placed)
        for read in ready.reads:
            hands.answer_read(read)
        for failed in ready.dropped:
            hands.fail(failed)
        if ready.soft is not None:
            hands.look(ready.soft)


def saved(
    node: Node, log: MemoryLog, persist: Persist, install: Snapshot | None, hands: Hands
) -> None:
    """Go on when a persist is sure: the end of duty 3, and 4. `drive` comes next."""
    log.save(persist, install)
    node.persisted(persist.seq)
    hands.send(persist.then_send)  # Not before: these are the promises.
    if install is not None:
        hands.restore(install)  # 4
