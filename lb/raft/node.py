"""
A member of the group: the pure core that a driver moves by `step` and `tick`.

A driver feeds what happens, then carries out what `ready` hands out, as numbered there. What
holds for all roles is in `step`; a role is entered in `become_...` and nowhere else. What a
member promises is in `ledger`, a leader's part in `leading`, a follower's in `following`.

Every message is answered or passed over for a reason that is counted. Every call ends in a
`check`: a member that finds itself in a state that can't be stops, and repairs nothing.

Not here: leases for reads (they hang on clocks), and joint consensus (docs/decisions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lb.raft.calls import Calls
from lb.raft.following import Following
from lb.raft.leading import Leadership
from lb.raft.ledger import Ledger, PassedOver
from lb.raft.log import LogView
from lb.raft.members import BadChangeError, ConfChange
from lb.raft.messages import (
    NOBODY,
    TRANSFER,
    ConfState,
    Dropped,
    Entry,
    Fate,
    HardState,
    Kind,
    Message,
    MessageType,
    NotLeader,
    Ready,
    Role,
    SoftState,
    Status,
)
from lb.raft.quorum import Verdict, tally
from lb.raft.reads import Read
from lb.raft.settings import Config

if TYPE_CHECKING:
    import random

__all__ = ["Config", "Node", "PassedOver", "Role"]

CALL_ELECTIONS_MAX: Final = 2  # So long a call that was passed on waits for its answer.

OF_LEADERS: Final = frozenset({MessageType.APPEND, MessageType.HEARTBEAT, MessageType.SNAPSHOT})

VOTE_REPLIES: Final = frozenset({MessageType.VOTE_REPLY, MessageType.PRE_VOTE_REPLY})
CALL_REPLIES: Final = frozenset({MessageType.PROPOSE_REPLY, MessageType.READ_INDEX_REPLY})
VOTES: Final = frozenset({MessageType.VOTE, MessageType.PRE_VOTE})
CANDIDATES: Final = frozenset({Role.CANDIDATE, Role.PRE_CANDIDATE})


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
        self.config = config
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.applied_index = applied
        self.ledger = Ledger(config.id, log, hard, conf, config.persists_max)
        self._rng = rng
        self._calls = Calls(config.calls_max, rng)
        self._following = Following(self.ledger, config.snapshot_bytes_max)
        self._leading: Leadership | None = None  # While we lead.
        self._votes: dict[int, bool] = {}  # While we campaign.
        self._handed_to_apply = applied
        self._soft: SoftState | None = None  # As it was handed out last.
        self._restart_patience()
        self.check()

    # --- What a driver looks at ---------------------------------------------------------------

    @property
    def id(self) -> int:
        """Return who this is."""
        return self.ledger.id

    @property
    def term(self) -> int:
        """Return the term."""
        return self.ledger.term

    @property
    def vote(self) -> int:
        """Return who has our vote in this term."""
        return self.ledger.vote

    @property
    def commit(self) -> int:
        """Return up to where the log is known to be committed."""
        return self.ledger.commit

    @property
    def conf(self) -> ConfState:
        """Return the members in force."""
        return self.ledger.members.in_force

    def conf_at(self, index: int) -> ConfState:
        """Return the members as of an entry: what a snapshot taken there has to say of them."""
        return self.ledger.members.at(index)

    @property
    def promotable(self) -> bool:
        """Whether this member may campaign."""
        ledger = self.ledger
        return ledger.log.restoring is None and ledger.members.may_campaign(self.id, self.commit)

    def status(self) -> Status:
        """Return how things stand."""
        ledger = self.ledger
        leading = self._leading
        return Status(
            id=self.id,
            role=self.role,
            term=ledger.term,
            vote=ledger.vote,
            leader=self.leader,
            commit=ledger.commit,
            applied=self.applied_index,
            first=ledger.log.first,
            last=ledger.log.last,
            stable=ledger.log.stable,
            conf=self.conf,
            conf_index=ledger.members.changed_at,
            transferee=leading.transferee if leading else NOBODY,
            peers=leading.status() if leading else {},
            passed_over={why.value: count for why, count in ledger.passed_over.items()},
        )

    # --- What happens -------------------------------------------------------------------------

    def tick(self) -> None:
        """Let a unit of time pass. After a stall once, not once for each tick missed."""
        self.ledger.ticks += 1
        self._calls.expire(self.ledger.ticks)
        if self._leading is not None:
            if not self._leading.tick():
                self.become_follower(self.term, NOBODY)
        elif self.ledger.ticks >= self._patience_ends and self.promotable:
            self._campaign()
        self.check()

    def step(self, message: Message) -> None:
        """Take in one message from another member, however late or often it comes."""
        why = self._step(message)
        if why is not None:
            self.ledger.pass_over(why)
        self._settle()

    def persisted(self, seq: int) -> None:
        """All that was handed out up to the persist of that number is on the disk."""
        self.ledger.acknowledge(seq)
        if self.role is Role.CANDIDATE:
            self._count_own_vote()
        elif self._leading is not None:
            self._leading.advance_commit()
        self._settle()

    def applied(self, index: int) -> None:
        """The machine has applied all up to `index`."""
        assert index <= self._handed_to_apply, "applied before it was handed out"
        self.applied_index = max(self.applied_index, index)
        self.check()

    def report_unreachable(self, peer: int) -> None:
        """A message to that member could not be sent."""
        if self._leading is not None:
            self._pass_over(self._leading.unreachable(peer))
        self.check()

    def report_snapshot(self, peer: int, ok: bool) -> None:
        """Sending a snapshot was given up (`ok` false), or the member said it has it."""
        if self._leading is not None:
            self._pass_over(self._leading.snapshot_ended(peer, ok))
        self.check()

    # --- What is asked for --------------------------------------------------------------------

    def propose(self, data: bytes, ctx: bytes) -> None:
        """
        Ask for an entry. `placed` and `dropped` of a `Ready` say under `ctx` what became of it.

        NotLeader: there is no leader known, or forwarding is off. Dropped: not taken, and why.
        """
        if len(data) > self.config.max_entry_bytes:
            raise Dropped(f"an entry may have {self.config.max_entry_bytes} bytes", "send less")
        self._calls.check_room()
        if self._leading is not None:
            index = self._leading.propose(data)
            self._calls.place(ctx, index, self.term)
        else:
            name = self._forward(ctx, is_read=False)
            entry = Entry(0, 0, Kind.NORMAL, data)
            self.ledger.send(MessageType.PROPOSE, self.leader, ctx=name, entries=(entry,))
        self._settle()

    def propose_conf(self, change: ConfChange, ctx: bytes) -> None:
        """Ask for a change of members, of the leader only. NotLeader, Dropped as above."""
        if self._leading is None:
            raise NotLeader(self.leader)
        self._calls.check_room()
        try:
            index = self._leading.propose_conf(change)
        except BadChangeError as error:
            raise Dropped(str(error), "look at who the members are") from None
        self._calls.place(ctx, index, self.term)
        self._settle()

    def read_index(self, ctx: bytes) -> None:
        """
        Ask for a consistent read: it may be answered when `ctx` comes in `Ready.reads`.

        Each call is answered once, under its `ctx`, or fails. Errors as above.
        """
        self._calls.check_room()
        if self._leading is not None:
            if not self._leading.reads.ask(Read(self.id, ctx)):
                raise Dropped("too many reads wait for an answer", "try again in a moment")
        else:
            name = self._forward(ctx, is_read=True)
            self.ledger.send(MessageType.READ_INDEX, self.leader, ctx=name)
        self.check()

    def _forward(self, ctx: bytes, is_read: bool) -> bytes:
        if self.leader == NOBODY or not self.config.forward:
            raise NotLeader(self.leader)
        until = self.ledger.ticks + CALL_ELECTIONS_MAX * self.config.election_ticks
        return self._calls.forward(ctx, is_read, until)

    def transfer(self, to: int) -> None:
        """Hand leadership over, or ask the leader to; given up after an election timeout."""
        if self._leading is not None:
            self._pass_over(self._leading.transfer(to))
        elif self.leader != NOBODY:
            self.ledger.send(MessageType.TRANSFER, self.leader, hint_index=to)
        else:
            self._pass_over(PassedOver.WRONG_ROLE)
        self.check()

    def campaign(self) -> None:
        """Try to become leader now, as if the election timeout had passed."""
        if self._leading is None and self.promotable:
            self._campaign()
        else:
            self._pass_over(PassedOver.NOT_PROMOTABLE)
        self.check()

    # --- What a driver has to do --------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether `ready` may have something to hand out."""
        ledger = self.ledger
        return (
            ledger.outbox.has_work(ledger.hard, ledger.log)
            or (self._leading is not None and self._leading.has_work())
            or self._applicable() > self._handed_to_apply
            or self._calls.has_news(self.applied_index)
            or self._soft != SoftState(self.role, self.leader)
        )

    def ready(self) -> Ready:
        """Hand out what is to be done; see `Ready`."""
        ledger = self.ledger
        if self._leading is not None:
            self._leading.flush()
        now, persist = ledger.outbox.hand_out(ledger.hard, ledger.log)
        install = ledger.log.restoring if persist and persist.snapshot else None
        apply = self._hand_out_to_apply()
        if install is not None:
            assert not apply, "nothing is applied past a snapshot before the snapshot"
            self._handed_to_apply = install.meta.index
        placed, reads, dropped = self._calls.take(self.applied_index)
        soft = SoftState(self.role, self.leader)
        changed = soft if soft != self._soft else None
        self._soft = soft
        self.check()
        return Ready(changed, now, persist, apply, install, reads, dropped, placed)

    def _applicable(self) -> int:
        """
        Return how far may be handed out to be applied.

        What is committed and on this disk too, so that no snapshot ever goes past the log. One
        page at a time, so that applying never takes long.
        """
        if self.ledger.log.restoring is not None or self.applied_index < self._handed_to_apply:
            return self._handed_to_apply
        return min(self.commit, self.ledger.log.stable)

    def _hand_out_to_apply(self) -> tuple[Entry, ...]:
        end = self._applicable()
        if end <= self._handed_to_apply:
            return ()
        page = self.ledger.log.entries(
            self._handed_to_apply + 1, end + 1, self.config.apply_bytes_max
        )
        self._handed_to_apply = page[-1].index
        return tuple(page)

    def compact(self, index: int) -> int:
        """
        Return how far the log may be forgotten now, at most up to `index`.

        That is not past the snapshot that the log view shows, nor past what a member still
        needs to which a snapshot is under way (for a time). The driver then forgets that much.
        """
        index = min(index, self.applied_index, self.ledger.log.snapshot_index)
        self.ledger.members.compact(index)
        return self._leading.keep_pinned(index) if self._leading is not None else index

    # --- Rules of all roles -------------------------------------------------------------------

    def _pass_over(self, why: PassedOver | None) -> None:
        if why is not None:
            self.ledger.pass_over(why)

    def _step(self, message: Message) -> PassedOver | None:
        """Judge by address and term, then by what is asked; return why it was passed over."""
        if message.to != self.id:
            return PassedOver.NOT_FOR_US
        if message.frm in (self.id, NOBODY):
            return PassedOver.FROM_OURSELVES
        if message.term < self.term:
            return self._refuse_stale(message)
        if message.term > self.term:
            if message.type in VOTES and self._in_lease() and message.ctx != TRANSFER:
                return PassedOver.IN_LEASE
            if not self._is_of_a_term_to_come(message):
                leader = message.frm if message.type in OF_LEADERS else NOBODY
                self.become_follower(message.term, leader)
        return self._step_in_term(message)

    def _step_in_term(self, message: Message) -> PassedOver | None:
        """Take in a message of our term, or a question about the next, by our role."""
        if message.type in VOTES:
            why = self._answer_vote(message)
        elif self._leading is not None:
            why = self._leading.step(message)
        elif message.type in OF_LEADERS:
            why = self._step_of_leader(message)
        elif message.type in VOTE_REPLIES:
            why = self._step_vote_reply(message)
        elif message.type in CALL_REPLIES:
            why = self._step_call_reply(message)
        else:
            why = self._step_request(message)
        return why

    def _is_of_a_term_to_come(self, message: Message) -> bool:
        """Whether it carries a term that nobody is in yet: a question "would you", or a yes."""
        return message.type is MessageType.PRE_VOTE or (
            message.type is MessageType.PRE_VOTE_REPLY and not message.reject
        )

    def _in_lease(self) -> bool:
        """Whether we have heard our leader lately: then nobody needs our vote against it."""
        if not self.config.check_quorum or self.leader == NOBODY:
            return False
        if self._leading is not None:
            return True  # It has heard a quorum lately, or would lead no more.
        return self.ledger.ticks - self._heard_at < self.config.election_ticks

    def _refuse_stale(self, message: Message) -> PassedOver | None:
        """
        Answer those whom our term helps on, and only those.

        A leader of an earlier term must learn that it is over; so does a candidate that may be
        needed, and else would ask in vain for ever.
        """
        if message.type in OF_LEADERS:
            self.ledger.send(MessageType.APPEND_REPLY, message.frm, reject=True)
            return None
        if message.type is MessageType.PRE_VOTE:
            self.ledger.send(MessageType.PRE_VOTE_REPLY, message.frm, reject=True)
            return None
        return PassedOver.STALE_TERM

    def _answer_vote(self, message: Message) -> PassedOver | None:
        """Say whether we vote for a candidate, and if it is in earnest, do so (5.2, 5.4.1)."""
        ledger = self.ledger
        free = ledger.vote == NOBODY and self.leader == NOBODY
        may = free or ledger.vote == message.frm or message.term > ledger.term
        grant = may and ledger.log.as_complete_as(message.log_index, message.log_term)
        if message.type is MessageType.PRE_VOTE:
            term = message.term if grant else ledger.term
            ledger.send(MessageType.PRE_VOTE_REPLY, message.frm, term=term, reject=not grant)
            return None
        assert message.term == ledger.term
        if grant:
            if self.role is Role.PRE_CANDIDATE:
                self.become_follower(ledger.term, NOBODY)
            ledger.give_vote(message.frm)
            self._restart_patience()
        ledger.send(MessageType.VOTE_REPLY, message.frm, reject=not grant)
        return None

    def _settle(self) -> None:
        """See to what a change may have brought about, whatever it was; then check."""
        self._calls.committed(self.commit)
        members = self.ledger.members
        removed = self.id not in members.in_force.voters and members.changed_at <= self.commit
        if self._leading is not None and removed:
            self._leading.flush()  # The others learn what is committed, and by it that we go.
            self._leading.name_successor()
            self.become_follower(self.term, NOBODY)
        self.check()

    # --- Roles --------------------------------------------------------------------------------

    def become_follower(self, term: int, leader: int) -> None:
        """Follow `leader`, or nobody yet."""
        if term > self.term:
            self.ledger.adopt(term)
            self._lose_leader("the term is over")
        elif self._leading is not None or self.leader not in (leader, NOBODY):
            self._lose_leader("the leader is none any more")
        self._enter(Role.FOLLOWER, leader)

    def become_pre_candidate(self) -> None:
        """Ask whether a campaign would be won. Changes neither term nor vote."""
        assert self._leading is None
        self._lose_leader("the leader was not heard")
        self._enter(Role.PRE_CANDIDATE, NOBODY)
        self._votes[self.id] = True

    def become_candidate(self) -> None:
        """Campaign in a term of our own. Our own vote counts when it is on the disk."""
        assert self._leading is None
        self._lose_leader("the leader was not heard")
        self.ledger.adopt(self.term + 1)
        self.ledger.give_vote(self.id)
        self._enter(Role.CANDIDATE, NOBODY)

    def become_leader(self) -> None:
        """Lead this term, and open it with an entry of our own."""
        assert self.role is Role.CANDIDATE, "only who was voted for leads"
        self._enter(Role.LEADER, self.id)
        self._following.forget_pieces()
        self._leading = Leadership(self.ledger, self.config, self._calls)

    def _enter(self, role: Role, leader: int) -> None:
        self.role = role
        self.leader = leader
        self._leading = None
        self._votes.clear()
        self._restart_patience()

    def _lose_leader(self, why: str) -> None:
        """Fail all calls that hung on the leader, be it us or another."""
        if self._leading is not None:
            self._leading.end(why)
        self._calls.fail_all(self.commit, why)

    def _restart_patience(self) -> None:
        """Wait for a leader from now on, never equally long: or votes could split for ever."""
        ticks = self.config.election_ticks
        self._heard_at = self.ledger.ticks
        self._patience_ends = self.ledger.ticks + self._rng.randrange(ticks, 2 * ticks)

    # --- Elections ----------------------------------------------------------------------------

    def _campaign(self) -> None:
        if self.config.pre_vote:
            self.become_pre_candidate()
            self._ask_for_votes(MessageType.PRE_VOTE, self.term + 1)
            self._count_votes()
        else:
            self._campaign_in_earnest()

    def _campaign_in_earnest(self, ctx: bytes = b"") -> None:
        self.become_candidate()
        self._ask_for_votes(MessageType.VOTE, self.term, ctx)

    def _ask_for_votes(self, kind: MessageType, term: int, ctx: bytes = b"") -> None:
        log = self.ledger.log
        for voter in sorted(self.conf.voters - {self.id}):
            self.ledger.send(
                kind, voter, term=term, log_index=log.last, log_term=log.last_term, ctx=ctx
            )

    def _count_own_vote(self) -> None:
        sure = self.ledger.outbox.sure
        if (sure.term, sure.vote) == (self.term, self.id):
            self._votes[self.id] = True
            self._count_votes()

    def _count_votes(self) -> None:
        match tally(self._votes, self.conf.voters):
            case Verdict.WON:
                if self.role is Role.PRE_CANDIDATE:
                    self._campaign_in_earnest()
                else:
                    self.become_leader()
            case Verdict.LOST:
                self.become_follower(self.term, NOBODY)
            case Verdict.PENDING:
                pass

    def _step_vote_reply(self, message: Message) -> PassedOver | None:
        role, term = self.role, self.term
        if message.type is MessageType.PRE_VOTE_REPLY:
            if role is not Role.PRE_CANDIDATE:
                return PassedOver.WRONG_ROLE
            if not message.reject and message.term != term + 1:
                return PassedOver.STALE_ANSWER
        elif role is not Role.CANDIDATE:
            return PassedOver.WRONG_ROLE
        # An answer that comes twice says the same: nobody changes its mind within a term.
        self._votes.setdefault(message.frm, not message.reject)
        self._count_votes()
        return None

    # --- Following ----------------------------------------------------------------------------

    def _step_of_leader(self, message: Message) -> PassedOver | None:
        if self.leader not in (message.frm, NOBODY):
            return PassedOver.SECOND_LEADER
        if self.role is not Role.FOLLOWER or self.leader == NOBODY:
            self.become_follower(self.term, message.frm)
        self._restart_patience()
        match message.type:
            case MessageType.APPEND:
                return self._following.append(message)
            case MessageType.HEARTBEAT:
                return self._following.heartbeat(message)
            case _:
                return self._following.snapshot(message)

    def _step_call_reply(self, message: Message) -> PassedOver | None:
        """Take in the leader's answer to a call that we passed on."""
        is_read = message.type is MessageType.READ_INDEX_REPLY
        ctx = self._calls.answered(message.ctx, is_read)
        if ctx is None:
            return PassedOver.UNKNOWN_CALL
        if message.reject:
            # A proposal that the network repeated may have been taken before it was refused.
            fate = Fate.NOT_DONE if is_read else Fate.UNKNOWN
            self._calls.fail(ctx, fate, "the leader refused it")
        elif is_read:
            self._calls.confirm(ctx, message.log_index)
        else:
            self._calls.place(ctx, message.log_index, message.log_term)
        return None

    def _step_request(self, message: Message) -> PassedOver | None:
        """Campaign if the leader wants us to; refuse what only a leader can do."""
        match message.type:
            case MessageType.TIMEOUT_NOW:
                if not self.promotable:
                    return PassedOver.NOT_PROMOTABLE
                self._campaign_in_earnest(TRANSFER)
            case MessageType.PROPOSE:
                self._refuse_call(MessageType.PROPOSE_REPLY, message)
            case MessageType.READ_INDEX:
                self._refuse_call(MessageType.READ_INDEX_REPLY, message)
            case _:
                return PassedOver.WRONG_ROLE
        return None

    def _refuse_call(self, kind: MessageType, message: Message) -> None:
        self.ledger.send(kind, message.frm, ctx=message.ctx, reject=True)

    # --- Invariants ---------------------------------------------------------------------------

    def check(self) -> None:
        """Assert what must always hold. Done after every call by itself."""
        self.ledger.check()
        assert self.applied_index <= self._handed_to_apply <= self.commit
        assert (self._leading is not None) is (self.role is Role.LEADER)
        if self._leading is not None:
            assert self.leader == self.id
            assert self.vote == self.id, "who leads has voted for itself"
            self._leading.check()
        elif self.role in CANDIDATES:
            assert self.leader == NOBODY
            assert self.role is Role.PRE_CANDIDATE or self.vote == self.id
        assert bool(self._votes) <= (self.role in CANDIDATES)
