"""
A follower's part: taking in what a leader sends, be it entries or a snapshot.

The leader of the term is known when these are called; see `Node`.
"""

from __future__ import annotations

from typing import Final

from lb.raft.incoming import Incoming, is_sound
from lb.raft.ledger import Ledger, PassedOver
from lb.raft.messages import Entry, Message, MessageType

ANSWER: Final = MessageType.APPEND_REPLY


class Following:
    """What a member keeps while others lead: its log, and the pieces of a snapshot."""

    __slots__ = ("_bytes_max", "_incoming", "_ledger")

    def __init__(self, ledger: Ledger, snapshot_bytes_max: int) -> None:
        self._ledger = ledger
        self._bytes_max = snapshot_bytes_max
        self._incoming: Incoming | None = None

    # --- Entries ------------------------------------------------------------------------------

    def append(self, message: Message) -> PassedOver | None:
        """Take in entries where they fit, and say how far our logs are the same."""
        ledger = self._ledger
        log = ledger.log
        if not is_chain(message):
            return PassedOver.MALFORMED
        if message.log_index < ledger.commit:
            # What is committed is the same everywhere: no need to look, or to write.
            ledger.send(ANSWER, message.frm, log_index=ledger.commit)
            return None
        if not log.matches(message.log_index, message.log_term):
            self._refuse(message)
            return None
        new = self._new(message.entries)
        if not ledger.members.accepts(new):
            return PassedOver.MALFORMED
        if new:
            if new[0].index <= log.last:
                ledger.overwrite_from(new[0].index)
            ledger.append(new)
        verified = message.log_index + len(message.entries)
        # Beyond what this message verified, our log may be another leader's.
        ledger.commit_to(min(message.commit, verified))
        ledger.send(ANSWER, message.frm, log_index=verified)
        return None

    def _new(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Return those from the first that is not here: only a conflict cuts anything off."""
        for position, entry in enumerate(entries):
            if not self._ledger.log.matches(entry.index, entry.term):
                return entries[position:]
        return ()

    def _refuse(self, message: Message) -> None:
        """Say no, and where we may agree: at the last place whose term is not above the asked."""
        hint, term = self._ledger.log.last_at_most(message.log_index, message.log_term)
        self._ledger.send(
            ANSWER,
            message.frm,
            reject=True,
            log_index=message.log_index,
            hint_index=hint,
            hint_term=term,
        )

    def heartbeat(self, message: Message) -> PassedOver | None:
        """Hear that the leader is well, and what is committed of what we have acknowledged."""
        ledger = self._ledger
        if message.commit > ledger.log.last:
            return PassedOver.BEYOND_LOG
        ledger.commit_to(message.commit)
        ledger.send(MessageType.HEARTBEAT_REPLY, message.frm, ctx=message.ctx)
        return None

    # --- A snapshot ---------------------------------------------------------------------------

    def snapshot(self, message: Message) -> PassedOver | None:
        """Take in a piece of a snapshot, and say how much is here."""
        ledger = self._ledger
        chunk = message.chunk
        if chunk is None or not is_sound(chunk, self._bytes_max) or chunk.meta.term > message.term:
            return PassedOver.MALFORMED
        if ledger.log.restoring is not None:
            return PassedOver.RESTORING
        meta = chunk.meta
        if meta.index <= ledger.commit or ledger.log.matches(meta.index, meta.term):
            # We have all that it stands for, and what follows it here is kept.
            ledger.commit_to(meta.index)
            self._incoming = None
            ledger.send(ANSWER, message.frm, log_index=ledger.commit)
            return None
        incoming = self._incoming
        if incoming is None or not incoming.belongs(chunk):
            if incoming is not None and incoming.is_newer_than(chunk):
                return PassedOver.OLDER_SNAPSHOT
            incoming = self._incoming = Incoming(chunk)
        incoming.add(chunk)
        if incoming.whole:
            self._incoming = None
            snapshot = incoming.assemble()
            if snapshot is not None:
                ledger.restore(snapshot)
                ledger.send(ANSWER, message.frm, log_index=meta.index)
                return None
        offset = self._incoming.offset if self._incoming else 0
        ledger.send(
            MessageType.SNAPSHOT_REPLY,
            message.frm,
            log_index=meta.index,
            log_term=meta.term,
            hint_index=offset,
        )
        return None

    def forget_pieces(self) -> None:
        """Let go of an unfinished snapshot: we lead, so nobody sends the rest."""
        self._incoming = None


def is_chain(message: Message) -> bool:
    """Whether entries follow each other, and what they follow, as a log's do."""
    index, term = message.log_index, message.log_term
    if term > message.term:
        return False
    for entry in message.entries:
        if entry.index != index + 1 or not term <= entry.term <= message.term:
            return False
        index, term = entry.index, entry.term
    return True
