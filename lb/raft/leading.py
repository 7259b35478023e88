"""
A leader's part: sending the log, counting who has it, confirming reads, handing over.

Made when a member becomes leader and thrown away when it is none any more, so nothing of one
term gets into another.
"""

from __future__ import annotations

from typing import Final

from lb.raft.calls import Calls, decode_number, encode_number
from lb.raft.ledger import Ledger, PassedOver
from lb.raft.log import Compacted
from lb.raft.members import Change, ConfChange, conf_after
from lb.raft.messages import (
    NOBODY,
    Dropped,
    Entry,
    Fate,
    Kind,
    Message,
    MessageType,
    PeerStatus,
    ProgressState,
)
from lb.raft.progress import RESENT_MAX, Inflights, Progress
from lb.raft.quorum import reached, size
from lb.raft.reads import Read, Reads
from lb.raft.settings import Config

PINNED_ELECTIONS_MAX: Final = 100  # The log is kept so long for a snapshot that gets nowhere.


class Leadership:
    """One leader in one term."""

    __slots__ = (
        "_calls",
        "_config",
        "_heartbeat_at",
        "_ledger",
        "_pinned_at",
        "_transfer_until",
        "_uncommitted",
        "_uncommitted_bytes",
        "noop_index",
        "peers",
        "reads",
        "transferee",
    )

    def __init__(self, ledger: Ledger, config: Config, calls: Calls) -> None:
        self._ledger = ledger
        self._config = config
        self._calls = calls
        self._heartbeat_at = ledger.ticks
        self._pinned_at = ledger.ticks  # Nobody was being sent a snapshot then.
        self._transfer_until = 0
        self._uncommitted_bytes = 0
        self._uncommitted: dict[int, int] = {}  # Bytes by index, in order.
        self.transferee = NOBODY
        self.reads = Reads(config.calls_max)
        self.peers: dict[int, Progress] = {}  # Everybody in force but ourselves, by number.
        log = ledger.log
        for entry in log.entries(ledger.commit + 1, log.last + 1, 1 << 62):
            self._count_uncommitted(entry)
        self._meet_members()
        self.noop_index = log.last + 1
        self._append(Kind.NOOP, b"")

    @property
    def owns_commit(self) -> bool:
        """Whether an entry of our term is committed: only then is our commit index the group's."""
        return self._ledger.commit >= self.noop_index

    # --- Time ---------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Let time pass; False if a quorum has not been heard for an election timeout."""
        ledger = self._ledger
        if self._config.check_quorum and not self._hears_a_quorum():
            return False
        if self.transferee and ledger.ticks >= self._transfer_until:
            self.transferee = NOBODY
        if ledger.ticks - self._heartbeat_at >= self._config.heartbeat_ticks:
            self._heartbeat_at = ledger.ticks
            self._send_heartbeats()
            for peer, progress in self.peers.items():
                self._resend_chunk(peer, progress)
        return True

    def _hears(self, progress: Progress) -> bool:
        return self._ledger.ticks - progress.heard_at < self._config.election_ticks

    def _hears_a_quorum(self) -> bool:
        voters = self._ledger.members.in_force.voters
        heard = sum(voter == self._ledger.id or self._hears(self.peers[voter]) for voter in voters)
        return heard >= size(voters)

    def _send_heartbeats(self) -> None:
        number = self.reads.open_round
        ctx = encode_number(number) if number else b""
        for peer, progress in self.peers.items():
            # Never more than it has acknowledged: it commits by this without looking.
            commit = min(progress.match, self._ledger.commit)
            self._ledger.send(MessageType.HEARTBEAT, peer, commit=commit, ctx=ctx)

    # --- Proposals ----------------------------------------------------------------------------

    def propose(self, data: bytes) -> int:
        """Append an entry and return its index. Dropped: it was not taken."""
        entry_bytes = len(data)
        if self.transferee:
            raise Dropped("leadership is being handed over", "try again in a moment")
        if self._ledger.id not in self._ledger.members.in_force.members:
            raise Dropped("this leader is being removed", "try again in a moment")
        room = self._config.uncommitted_bytes_max - self._uncommitted_bytes
        if self._uncommitted and entry_bytes > room:
            raise Dropped("too much is not committed yet", "try again in a moment")
        return self._append(Kind.NORMAL, data)

    def propose_conf(self, change: ConfChange) -> int:
        """Append a change of members, in force at once. BadChangeError, Dropped: it was not."""
        ledger = self._ledger
        members = ledger.members
        data = change.encode()
        after = conf_after(members.in_force, data)
        if self.transferee:
            raise Dropped("leadership is being handed over", "try again in a moment")
        if not self.owns_commit:
            raise Dropped("this leader is new and has committed nothing", "try again in a moment")
        if members.changed_at > ledger.commit:
            raise Dropped("another change of members is under way", "try again when it is done")
        if change.what is Change.PROMOTE and not self._keeps_up(change.member):
            raise Dropped(f"learner {change.member} has not caught up", "try again when it has")
        voters = after.voters - {ledger.id}
        heard = sum(voter in self.peers and self._hears(self.peers[voter]) for voter in voters)
        if heard + (ledger.id in after.voters) < size(after.voters):
            raise Dropped("too few of those who would remain can be heard", "bring them back first")
        index = self._append(Kind.CONF, data)
        self._meet_members()
        return index

    def _keeps_up(self, learner: int) -> bool:
        progress = self.peers[learner]
        return (
            progress.keeps_up(self._config.election_ticks)
            and self._hears(progress)
            and progress.state is ProgressState.REPLICATE
        )

    def _append(self, kind: Kind, data: bytes) -> int:
        ledger = self._ledger
        entry = Entry(ledger.log.last + 1, ledger.term, kind, data)
        ledger.append((entry,))
        self._count_uncommitted(entry)
        self._all_due()
        return entry.index

    def _count_uncommitted(self, entry: Entry) -> None:
        self._uncommitted[entry.index] = len(entry.data)
        self._uncommitted_bytes += len(entry.data)

    def _meet_members(self) -> None:
        """Follow the configuration in force: who is new gets a progress, who left has none."""
        ledger = self._ledger
        config = self._config
        known = self.peers
        self.peers = {}
        for member in sorted(ledger.members.in_force.members - {ledger.id}):
            self.peers[member] = known.get(member) or Progress(
                ledger.log.last,
                Inflights(config.inflight_max, config.inflight_bytes_max),
                ledger.ticks,
            )
        if self.transferee not in ledger.members.in_force.voters:
            self.transferee = NOBODY

    # --- Commit -------------------------------------------------------------------------------

    def advance_commit(self) -> None:
        """
        Commit what a quorum has on its disks, if it is of our own term.

        An older leader's entry is committed by one of ours after it, never by being counted
        (figure 8). Our own disk counts as everybody's does, and only if we have a vote.
        """
        ledger = self._ledger
        matches = {peer: progress.match for peer, progress in self.peers.items()}
        matches[ledger.id] = ledger.log.stable
        index = reached(matches, ledger.members.in_force.voters)
        if index <= ledger.commit or ledger.log.term(index) != ledger.term:
            return
        for passed in range(ledger.commit + 1, index + 1):
            self._uncommitted_bytes -= self._uncommitted.pop(passed)
        ledger.commit_to(index)
        self._all_due()

    # --- Sending ------------------------------------------------------------------------------

    def _all_due(self) -> None:
        for progress in self.peers.values():
            progress.due = True

    def has_work(self) -> bool:
        """Whether `flush` may have something to send."""
        return any(progress.due for progress in self.peers.values()) or (
            self.reads.waiting and self.owns_commit
        )

    def flush(self) -> None:
        """Send what has come together since the last time: so many proposals share an append."""
        if self.reads.waiting and self.owns_commit:
            self.reads.begin_round(self._ledger.commit)
            self.confirm_reads()
            if self.reads.open_round:
                self._send_heartbeats()
        for peer, progress in self.peers.items():
            if progress.due:
                progress.due = False
                while self._send_append(peer, progress):
                    pass

    def _send_append(self, peer: int, progress: Progress) -> bool:
        """Send one append, if there is a reason and room; False if that was all for now."""
        if progress.paused or progress.state is ProgressState.SNAPSHOT:
            return False
        ledger = self._ledger
        log = ledger.log
        before = progress.next - 1
        try:
            before_term = log.term(before)
        except Compacted:
            self._begin_snapshot(peer, progress)
            return False
        entries: tuple[Entry, ...] = ()
        if not progress.inflights.full:
            entries = tuple(log.entries(progress.next, log.last + 1, self._config.max_append_bytes))
        tells_commit = progress.commit_sent < min(ledger.commit, before)
        if not entries and not progress.asked and not tells_commit:
            return False
        ledger.send(
            MessageType.APPEND,
            peer,
            log_index=before,
            log_term=before_term,
            commit=ledger.commit,
            entries=entries,
        )
        progress.sent(entries)
        progress.commit_sent = ledger.commit
        return bool(entries)

    def _begin_snapshot(self, peer: int, progress: Progress) -> None:
        """Send a snapshot, unless nobody seems to be there to get it."""
        snapshot = self._ledger.log.snapshot
        assert snapshot.meta.index >= self._ledger.log.first - 1, "the log leads on from it"
        if self._hears(progress):
            progress.become_snapshot(snapshot, self._ledger.ticks)
            self._send_chunk(peer, progress)

    def _send_chunk(self, peer: int, progress: Progress) -> None:
        assert progress.sending is not None
        chunk = progress.sending.chunk(self._config.snapshot_chunk_bytes)
        progress.sending.asked_at = self._ledger.ticks
        self._ledger.send(MessageType.SNAPSHOT, peer, chunk=chunk)

    def _resend_chunk(self, peer: int, progress: Progress) -> None:
        """Send a chunk again that has had no answer for long; not too often, then begin anew."""
        sending = progress.sending
        if sending is None:
            return
        patience = self._config.election_ticks << sending.resent  # A slow link is not a lost one.
        if self._ledger.ticks - sending.asked_at < patience or not self._hears(progress):
            return
        if sending.resent >= RESENT_MAX:
            progress.become_probe()
            return
        sending.resent += 1
        self._send_chunk(peer, progress)

    def keep_pinned(self, index: int) -> int:
        """
        Return how far, up to `index`, the log may go while snapshots are under way.

        Who has got its snapshot needs the log after it, or it would need another, and so on.
        But one that never gets it must not keep the log for ever.
        """
        ledger = self._ledger
        pinned = [
            progress.sending.snapshot.meta.index
            for progress in self.peers.values()
            if progress.sending is not None and self._hears(progress)
        ]
        if not pinned:
            self._pinned_at = ledger.ticks
        patience = PINNED_ELECTIONS_MAX * self._config.election_ticks
        if ledger.ticks - self._pinned_at >= patience:
            return index
        return min([index, *pinned])

    # --- Answers ------------------------------------------------------------------------------

    def step(self, message: Message) -> PassedOver | None:
        """Take in what a leader is told."""
        progress = self.peers.get(message.frm)
        if progress is None:
            return PassedOver.NOT_A_MEMBER
        progress.heard_at = self._ledger.ticks
        match message.type:
            case MessageType.APPEND_REPLY:
                why = self._on_append_reply(message, progress)
            case MessageType.HEARTBEAT_REPLY:
                why = self._on_heartbeat_reply(message, progress)
            case MessageType.SNAPSHOT_REPLY:
                why = self._on_snapshot_reply(message, progress)
            case MessageType.PROPOSE:
                why = self._on_propose(message)
            case MessageType.READ_INDEX:
                why = self._on_read(message)
            case MessageType.TRANSFER:
                why = self.transfer(message.hint_index)
            case MessageType.APPEND | MessageType.HEARTBEAT | MessageType.SNAPSHOT:
                why = PassedOver.SECOND_LEADER
            case _:
                why = PassedOver.WRONG_ROLE
        return why

    def _on_append_reply(self, message: Message, progress: Progress) -> PassedOver | None:
        log = self._ledger.log
        if message.log_index > log.last:
            return PassedOver.BEYOND_LOG
        if message.reject:
            hint, _ = log.last_at_most(message.hint_index, message.hint_term)
            if not progress.refuse(message.log_index, hint):
                return PassedOver.STALE_ANSWER
            progress.asked = progress.due = True
            return None
        if not progress.acknowledge(message.log_index):
            return PassedOver.STALE_ANSWER
        if progress.state is ProgressState.PROBE:
            progress.become_replicate()
        elif progress.state is ProgressState.SNAPSHOT and progress.match >= log.first - 1:
            progress.become_replicate()  # Whatever became of the snapshot: the log leads on.
        progress.due = True
        self._count_round(progress)
        self.advance_commit()
        self._finish_transfer(message.frm)
        return None

    def _count_round(self, progress: Progress) -> None:
        ledger = self._ledger
        progress.count_round(ledger.log.last, ledger.ticks)

    def _on_heartbeat_reply(self, message: Message, progress: Progress) -> PassedOver | None:
        progress.paused = False
        self._count_round(progress)  # An idle group has no appends by which to show that.
        if progress.match < self._ledger.log.last or progress.state is ProgressState.PROBE:
            # An append may have been lost, and nothing else may come that would show it.
            progress.asked = progress.due = True
        if message.ctx and self.reads.acknowledge(message.frm, decode_number(message.ctx)):
            self.confirm_reads()
        return None

    def _on_snapshot_reply(self, message: Message, progress: Progress) -> PassedOver | None:
        sending = progress.sending
        if sending is None:
            return PassedOver.STALE_ANSWER
        meta = sending.snapshot.meta
        if (message.log_index, message.log_term) != (meta.index, meta.term):
            return PassedOver.STALE_ANSWER
        offset = message.hint_index
        if offset > len(sending.snapshot.data):
            return PassedOver.BEYOND_LOG
        waited = self._ledger.ticks - sending.asked_at >= self._config.election_ticks
        if offset == sending.offset or (offset < sending.offset and not waited):
            return PassedOver.STALE_ANSWER  # It asks for what is on its way.
        sending.offset = offset
        sending.resent = 0
        if offset < len(sending.snapshot.data):
            self._send_chunk(message.frm, progress)
        return None

    def unreachable(self, peer: int) -> PassedOver | None:
        """What was sent to that member may be lost: ask before sending on."""
        progress = self.peers.get(peer)
        if progress is None:
            return PassedOver.NOT_A_MEMBER
        if progress.state is not ProgressState.PROBE:
            progress.become_probe()
            progress.paused = True  # Until it is heard again.
        return None

    def snapshot_ended(self, peer: int, ok: bool) -> PassedOver | None:
        """Sending a snapshot has ended; what the member has will show by asking."""
        progress = self.peers.get(peer)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return PassedOver.STALE_ANSWER
        progress.become_probe()
        progress.paused = not ok  # Failed: wait for a heartbeat's answer before trying again.
        progress.asked = True
        return None

    # --- Calls of other members ---------------------------------------------------------------

    def _on_propose(self, message: Message) -> PassedOver | None:
        if len(message.entries) != 1 or message.entries[0].kind is not Kind.NORMAL:
            return PassedOver.MALFORMED
        data = message.entries[0].data
        if len(data) > self._config.max_entry_bytes:
            return PassedOver.MALFORMED
        reply = MessageType.PROPOSE_REPLY
        try:
            index = self.propose(data)
        except Dropped:
            self._ledger.send(reply, message.frm, ctx=message.ctx, reject=True)
            return None
        self._ledger.send(
            reply, message.frm, ctx=message.ctx, log_index=index, log_term=self._ledger.term
        )
        return None

    def _on_read(self, message: Message) -> PassedOver | None:
        if not self.reads.ask(Read(message.frm, message.ctx)):
            self._ledger.send(
                MessageType.READ_INDEX_REPLY, message.frm, ctx=message.ctx, reject=True
            )
        return None

    def confirm_reads(self) -> None:
        """Answer reads that a quorum has confirmed."""
        ledger = self._ledger
        for read, index in self.reads.confirmed(ledger.id, ledger.members.in_force.voters):
            if read.frm == ledger.id:
                self._calls.confirm(read.ctx, index)
            else:
                ledger.send(MessageType.READ_INDEX_REPLY, read.frm, ctx=read.ctx, log_index=index)

    # --- Handing over -------------------------------------------------------------------------

    def transfer(self, to: int) -> PassedOver | None:
        """Begin to hand leadership over: no proposals from now on, so that `to` can catch up."""
        ledger = self._ledger
        if to == ledger.id or to not in ledger.members.in_force.voters:
            return PassedOver.NO_SUCH_TARGET
        if to != self.transferee:
            self.transferee = to
            self._transfer_until = ledger.ticks + self._config.election_ticks
            self.peers[to].asked = self.peers[to].due = True
            self._finish_transfer(to)
        return None

    def _finish_transfer(self, peer: int) -> None:
        """Let the one who is to lead begin, if it has all that we have."""
        if peer == self.transferee and self.peers[peer].match == self._ledger.log.last:
            self._ledger.send(MessageType.TIMEOUT_NOW, peer)

    def end(self, why: str) -> None:
        """This leader is none any more: say so to all who wait, and to who is to follow."""
        for read in self.reads.give_up():
            if read.frm == self._ledger.id:
                self._calls.fail(read.ctx, Fate.NOT_DONE, why)

    def name_successor(self) -> None:
        """We are removed: have the voter with the most of the log campaign at once."""
        voters = sorted(self._ledger.members.in_force.voters)
        best = max(voters, key=lambda voter: self.peers[voter].match)
        self._ledger.send(MessageType.TIMEOUT_NOW, best)

    # --- Looking ------------------------------------------------------------------------------

    def status(self) -> dict[int, PeerStatus]:
        """Return how things stand with each member."""
        return {
            peer: progress.status(self._ledger.ticks, self._config.election_ticks)
            for peer, progress in self.peers.items()
        }

    def check(self) -> None:
        """Assert what must always hold of a leader."""
        ledger = self._ledger
        assert ledger.log.last >= self.noop_index, "a leader's log only grows"
        assert ledger.log.last_term == ledger.term
        assert ledger.log.restoring is None
        members = ledger.members.in_force.members - {ledger.id}
        assert len(self.peers) == len(members), "a leader follows exactly the members in force"
        assert self._uncommitted_bytes >= 0
        assert self.transferee == NOBODY or self.transferee in self.peers
        for progress in self.peers.values():
            progress.check(ledger.log.last)
