"""A member at work: the pure core, its disk, its clock, and what others say.

All of it happens in one loop: the inbox first, then a tick if one is due (`pace`), then what
the core hands out (`drive`). Only the disk is waited for elsewhere, in the storage thread. A core
that finds itself in a state that can't be, or an entry that this version does not know, stops
this member and nothing else: traffic goes on by what was applied last.

Not here: who the members are and what a leader sees to (`duties`), and the time before there
is a group (`group`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from lb.control import drive
from lb.control.pace import Pace, calm
from lb.control.recovery import Recovered
from lb.control.state_machine import (
    Applied,
    BadStateError,
    CannotApplyError,
    StateMachine,
    decode_state,
    encode_state,
)
from lb.control.storage import Storage
from lb.control.storage_thread import StorageThread, Synced
from lb.control.store import NoQuorum, NotStored, RefusedError, UnknownOutcome
from lb.control.waiting import End, Waiting
from lb.raft.codec import BadMessageError, decode, encode
from lb.raft.log import MemoryLog
from lb.raft.members import Change, ConfChange
from lb.raft.messages import (
    NOBODY,
    Dropped,
    Entry,
    Failed,
    Message,
    MessageType,
    NotLeader,
    Persist,
    Placed,
    ReadState,
    Role,
    SnapMeta,
    Snapshot,
    SoftState,
    Status,
)
from lb.raft.node import Config, Node
from lb.registry import Command, Registry, Reply
from lb.registry.wire import encode_command

log = logging.getLogger(__name__)

TICK = 0.02  # Seconds.
ELECTION_TICKS = 50  # A follower waits one to two seconds for its leader.
HEARTBEAT_TICKS = 5
ELECTION_SECONDS = TICK * ELECTION_TICKS
# Who heard others later than this many ticks ago has nothing else to fear for two heartbeats.
CALM_TICKS = ELECTION_TICKS - 2 * HEARTBEAT_TICKS

ANSWER_SECONDS_MAX = 4.5  # For a proposal or a read; the design promises an answer within 5 s.
AGAIN_SECONDS = 0.05  # Between two tries of one proposal, unless there is news of a leader.
INBOX_MAX = 8192  # Messages; more are dropped, as a network may.
WAITING_MAX = 4096
SNAPSHOT_ENTRIES = 10_000  # Applied since the last snapshot; then there is another.
SNAPSHOT_BYTES = 16 << 20  # The same, of entries' data.
TRAILING_ENTRIES = 5_000  # Kept behind a snapshot, for members that lag a little.
SNAPSHOT_AGAIN = 30.0  # The same for one of our own, which frees room in the end.
NO_ROOM_AGAIN = 1.0  # Seconds until a snapshot that found no room on the disk is tried again.


@dataclass(frozen=True, slots=True)
class Outside:
    """
    What a replica needs of others, and whom it tells.

    `send` puts a message's bytes on their way to a member, or returns False. `applied` hears of
    entries, in order; `restored` of a registry that came whole, from a snapshot; `looked` of
    each change of role or leader. `halted` says that this member has stopped, and why.
    """

    send: Callable[[int, bytes], bool]
    reaches: Callable[[int], bool]
    applied: Callable[[Sequence[Applied]], None]
    restored: Callable[[Registry], None]
    looked: Callable[[SoftState], None]
    halted: Callable[[str, str], None]


class Replica:
    """One member. `start` begins, `close` ends; in between it obeys nobody but its group."""

    def __init__(self, storage: Storage, recovered: Recovered, outside: Outside) -> None:
        meta = recovered.snapshot
        registry = Registry(id=storage.identity.group.hex())
        if recovered.data is not None:
            registry = decode_state(recovered.data)
        self.machine = StateMachine(registry, recovered.hard.commit)
        self.sync_seconds = 0.0  # How long the disk took for the last write.
        self.heard_at: dict[int, float] = {}  # When each member was heard last, by the loop.
        self.led_since = 0.0  # When it began to lead, or to wait for a leader.
        self._outside = outside
        self._loop = asyncio.get_running_loop()
        self._log = MemoryLog(
            recovered.entries,
            Snapshot(meta, recovered.data or b""),
            (recovered.base_index, recovered.base_term),
        )
        self.node = Node(
            Config(storage.identity.member, ELECTION_TICKS, HEARTBEAT_TICKS),
            self._log,
            recovered.hard,
            recovered.conf,
            meta.index,
            random.Random(),
        )
        self._disk = StorageThread(storage, self._loop.call_soon_threadsafe, self._synced)
        self._inbox: list[Message] = []
        self._woken = False
        self._running = False
        self._ticker: asyncio.TimerHandle | None = None
        self._pace = Pace(TICK, self._loop.time())
        self._since_beat = 0  # Ticks of a leader since its last heartbeat.
        self._waiting = Waiting()
        self._news: asyncio.Future[None] = self._loop.create_future()
        self._unreachable: set[int] = set()
        self._installs: dict[int, Snapshot] = {}  # By the persist that names them.
        self._since_snapshot = [0, 0]  # Entries and bytes.
        self._snapshotting: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None
        for note in recovered.notes:
            log.warning("%s", note)

    # --- Beginning and end --------------------------------------------------------------------

    def start(self) -> None:
        """Begin. A member that is its whole group leads at once."""
        self._disk.start()
        self._running = True
        self._pace = Pace(TICK, self._loop.time())
        self._tick()
        if self.votes_alone and self._running:
            self._do(self.node.campaign)

    async def close(self) -> None:
        """Stop; what was promised is on the disk."""
        self._stop()
        tasks = [task for task in (self._restoring, self._snapshotting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._disk.close)

    def _stop(self) -> None:
        self._running = False
        if self._ticker is not None:
            self._ticker.cancel()
        self._waiting.end()

    def halt(self, why: str, hint: str) -> None:
        """Stop for good: this member can't go on, and says so."""
        if self._running:
            self._stop()
            log.critical("this member of the group has stopped: %s; %s", why, hint)
            self._outside.halted(why, hint)

    # --- What others see ----------------------------------------------------------------------

    @property
    def registry(self) -> Registry:
        """The newest registry that is committed and applied here."""
        return self.machine.registry

    @property
    def id(self) -> int:
        """This member's id."""
        return self.node.id

    @property
    def running(self) -> bool:
        """Whether it takes part."""
        return self._running

    @property
    def leads(self) -> bool:
        """Whether it leads, as far as it knows."""
        return self._running and self.node.role is Role.LEADER

    @property
    def votes_alone(self) -> bool:
        """Whether nobody's vote but ours is needed."""
        return self.node.conf.voters == {self.node.id}

    @property
    def full(self) -> bool:
        """Whether the disk is nearly full."""
        return self._disk.full

    def status(self) -> Status:
        """How the core stands."""
        return self.node.status()

    @property
    def up_to_date(self) -> bool:
        """Whether a leader that leads has all its predecessors' entries applied."""
        return self.leads and self.node.ledger.log.matches(self.node.applied_index, self.node.term)

    # --- What is asked for --------------------------------------------------------------------

    async def propose(self, command: Command, term: int = 0) -> Reply:
        """
        Commit a command and apply it here; see `store.Store.propose`.

        With a `term`, only as that term's leader: such a command is never passed on.
        """
        data = encode_command(command)
        if len(data) > self.node.config.max_entry_bytes:
            raise RefusedError(
                "too-large",
                f"this takes {len(data)} bytes in the log, and one entry may have "
                f"{self.node.config.max_entry_bytes}",
                "write less at once, as with PATCH /v1/upstreams/NAME for one upstream at a time",
            )
        if self._disk.full and self.leads:
            raise NotStored("the disk of the group's leader is nearly full", "free disk space")

        def attempt(ctx: bytes) -> None:
            if term and (not self.leads or self.node.term != term):
                raise Dropped("this member leads no more")
            self.node.propose(data, ctx)

        applied = await self._decide(attempt, repeatable=command.idempotency_key is not None)
        assert applied.reply is not None, "what was proposed here is a command"
        return applied.reply

    async def change(self, what: Change, member: int, context: bytes = b"") -> Applied:
        """Change the members. Of the leader only; NoQuorum, NotStored, UnknownOutcome."""
        change = ConfChange(what, member, context)

        def attempt(ctx: bytes) -> None:
            self.node.propose_conf(change, ctx)

        return await self._decide(attempt, repeatable=False)

    async def confirm(self) -> None:
        """Return once the registry here is as new as any was at the call; NoQuorum."""
        until = self._loop.time() + ANSWER_SECONDS_MAX
        while True:
            ctx = self._waiting.new_ctx()
            try:
                self._require_leader()
                answer = self._waiting.asked(ctx)
                self._do(partial(self.node.read_index, ctx))
                async with asyncio.timeout_at(until):
                    if await answer is None:
                        return
            except (NotLeader, Dropped):
                pass
            except TimeoutError:
                raise self._no_quorum() from None
            finally:
                self._waiting.forget(ctx)
            await self._wait_for_news(until)

    def transfer(self, to: int) -> None:
        """Begin to hand leadership over."""
        self._do(lambda: self.node.transfer(to))

    async def _decide(self, attempt: Callable[[bytes], None], *, repeatable: bool) -> Applied:
        """Try until it is decided, or time is up; then say what is known."""
        until = self._loop.time() + ANSWER_SECONDS_MAX
        perhaps = False
        while True:
            try:
                end = await self._try(attempt, until)
            except NotStored:
                if perhaps:
                    raise _unknown_outcome() from None
                raise
            if isinstance(end, Applied):
                return end
            if end is End.UNKNOWN:
                perhaps = True
                if not repeatable or self._loop.time() >= until:
                    raise _unknown_outcome()
            try:
                await self._wait_for_news(until)
            except NoQuorum:
                if perhaps:
                    raise _unknown_outcome() from None
                raise

    async def _try(self, attempt: Callable[[bytes], None], until: float) -> Applied | End:
        """Make one try."""
        if len(self._waiting) >= WAITING_MAX:
            raise NotStored(f"{WAITING_MAX} writes wait already", "try again in a moment")
        ctx = self._waiting.new_ctx()
        answer = self._waiting.proposed(ctx)
        try:
            self._require_leader()
            self._do(lambda: attempt(ctx))
        except NotLeader:
            self._waiting.forget(ctx)
            return End.NOT_DONE
        except Dropped as error:
            self._waiting.forget(ctx)
            raise NotStored(error.message, error.hint) from None
        try:
            async with asyncio.timeout_at(until):
                return await answer
        except TimeoutError:
            return End.UNKNOWN
        finally:
            self._waiting.forget(ctx)

    def _require_leader(self) -> None:
        """NotLeader unless there is a leader whom a call can reach."""
        leader = self.node.leader
        if not self._running or leader == NOBODY:
            raise NotLeader(leader)
        if leader != self.id and not self._outside.reaches(leader):
            raise NotLeader(leader)

    async def _wait_for_news(self, until: float) -> None:
        """Wait a little, or until something is heard of a leader; NoQuorum when time is up."""
        left = until - self._loop.time()
        if left <= 0 or not self._running:
            raise self._no_quorum()
        await asyncio.wait({self._news}, timeout=min(left, AGAIN_SECONDS))

    def _no_quorum(self) -> NoQuorum:
        if not self._running:
            return NoQuorum("this member of the group has stopped", "look at `lb group status`")
        return NoQuorum(
            "the group has no leader that could decide: a quorum of voters is not reachable",
            "look at `lb group status`; traffic goes on meanwhile",
        )

    # --- What comes in ------------------------------------------------------------------------

    def hear(self, frm: int, data: bytes) -> None:
        """Take in a message, from the member that its connection was made by."""
        if not self._running:
            return
        try:
            message = decode(data)
        except BadMessageError as error:
            log.warning("member %d sent what is no message: %s", frm, error.message)
            return
        if message.frm != frm or message.to != self.id or len(self._inbox) >= INBOX_MAX:
            return
        if message.type is MessageType.PROPOSE and self._disk.full and self.leads:
            return  # What room is left is for promises. Whoever waits asks our successor.
        self.heard_at[frm] = self._loop.time()
        self._inbox.append(message)
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._woken = False
        if self._running:
            self._do(self._read)

    def _read(self) -> None:
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            self.node.step(message)

    def _tick(self) -> None:
        """
        Let time pass, as much as was slept through, however late we are.

        Messages that have come meanwhile are heard before the last tick passes, and nothing is
        due before that one. So a pause makes nobody campaign against a living leader.
        """

        def work() -> None:
            self._read()
            self._pass_tick()

        self._do(work)
        self._pace.woke(self._loop.time())
        if self._running:
            self._sleep()

    def _pass_tick(self) -> None:
        self.node.tick()
        if self.leads:
            # All that came before has been carried out: what there is to do now is a heartbeat.
            self._since_beat = 0 if self.node.has_ready() else self._since_beat + 1

    def _sleep(self) -> None:
        """Sleep until the next tick at which anything can be due."""
        ticks = 1
        if calm(self.node, self.heard_at, self._loop.time() - CALM_TICKS * TICK):
            ticks = 2 * HEARTBEAT_TICKS
            if self.leads:
                ticks = HEARTBEAT_TICKS - self._since_beat % HEARTBEAT_TICKS
        self._pace.rest(ticks)
        if self._ticker is not None:
            self._ticker.cancel()
        self._ticker = self._loop.call_at(self._pace.due, self._tick)

    def _do(self, work: Callable[[], None]) -> None:
        """Have the core do something, and carry out what comes of it."""
        if not self._running:
            raise NotLeader(NOBODY)
        try:
            for _ in range(self._pace.passed(self._loop.time())):
                self._pass_tick()
            work()
            drive.drive(self.node, self)
            while self._unreachable:
                self.node.report_unreachable(self._unreachable.pop())
                drive.drive(self.node, self)
        except AssertionError:
            log.exception("the group's core is in a state that can't be; this is a bug")
            self.halt("it is in a state that can't be", "report the traceback above; restart")
        except (NotLeader, Dropped):
            raise  # The answer to a call.
        except Exception:
            # Half done, it must not go on: what comes next would be built on it.
            log.exception("this member of the group has failed; this is a bug")
            self.halt("it has failed", "report the traceback above; restart")

    def _synced(self, synced: Synced) -> None:
        """The disk has made sure of writes."""
        self.sync_seconds = synced.seconds
        if not self._running:
            return

        def work() -> None:
            for persist in synced.persists:
                install = self._installs.pop(persist.seq, None)
                drive.saved(self.node, self._log, persist, install, self)

        self._do(work)

    # --- The core's hands: see `drive.Hands` --------------------------------------------------

    def send(self, messages: Iterable[Message]) -> None:
        """Put messages on their way."""
        for message in messages:
            if not self._outside.send(message.to, encode(message)):
                self._unreachable.add(message.to)

    def save(self, persist: Persist, install: Snapshot | None) -> None:
        """Have the disk make sure of something."""
        if install is None:
            self._disk.submit(persist)
            return
        self._installs[persist.seq] = install

        def done(room: bool) -> None:
            if not self._running:
                return
            if room:
                self._disk.submit(persist)
            else:
                log.error("there is no room for a snapshot of the group's state: free disk space")
                self._loop.call_later(NO_ROOM_AGAIN, put)

        def put() -> None:
            if self._running:
                self._disk.put_snapshot(install, done)

        put()

    def restore(self, snapshot: Snapshot) -> None:
        """Start again from a snapshot. It is read in a thread: it may be large."""
        self._restoring = self._loop.create_task(self._restore(snapshot))
        self._restoring.add_done_callback(self._see_to_bug)

    async def _restore(self, snapshot: Snapshot) -> None:
        try:
            registry = await asyncio.to_thread(decode_state, snapshot.data)
        except BadStateError as error:
            self.halt(error.message, error.hint)
            return
        self.machine.registry = registry
        self._waiting.skipped(snapshot.meta.index)
        self._since_snapshot = [0, 0]
        self._outside.restored(registry)
        if self._running:
            self._do(lambda: self.node.applied(snapshot.meta.index))

    def apply(self, entries: Sequence[Entry]) -> None:
        """Apply a page of entries."""
        news: list[Applied] = []
        for entry in entries:
            try:
                applied = self.machine.apply(entry)
            except CannotApplyError as error:
                self._outside.applied(news)
                self.halt(error.message, error.hint)
                return
            self._waiting.applied(entry, applied)
            self._since_snapshot[0] += 1
            self._since_snapshot[1] += entry.size
            news.append(applied)
        self.node.applied(entries[-1].index)
        self._outside.applied(news)
        entries_since, bytes_since = self._since_snapshot
        if entries_since >= SNAPSHOT_ENTRIES or bytes_since >= SNAPSHOT_BYTES:
            self._take_snapshot()

    def place(self, placed: Placed) -> None:
        """Hear where a proposal is in the log."""
        self._waiting.place(placed, self.node.applied_index)

    def answer_read(self, read: ReadState) -> None:
        """Answer a read."""
        self._waiting.answer_read(read.ctx)

    def fail(self, failed: Failed) -> None:
        """Hear what is not followed any further."""
        self._waiting.fail(failed)

    def look(self, soft: SoftState) -> None:
        """Hear who leads."""
        news, self._news = self._news, self._loop.create_future()
        news.set_result(None)
        self.led_since = self._loop.time()
        self._since_beat = 0  # Whoever begins to lead is heard at once.
        if self._running:
            self._sleep()  # What was slept through as one role may be due in another.
        self._outside.looked(soft)

    # --- Snapshots of our own -----------------------------------------------------------------

    def _take_snapshot(self) -> None:
        if self._snapshotting is not None:
            return
        self._since_snapshot = [0, 0]
        index = self.node.applied_index
        meta = SnapMeta(index, self._log.term(index), self.node.conf_at(index))
        self._snapshotting = self._loop.create_task(
            self._write_snapshot(meta, self.machine.registry)  # As it is now, at that index.
        )
        self._snapshotting.add_done_callback(self._wrote_snapshot)

    async def _write_snapshot(self, meta: SnapMeta, registry: Registry) -> None:
        # The registry never changes in place, so it may be read beside everything else.
        data = await asyncio.to_thread(encode_state, registry)
        if not self._running:
            return
        snapshot = Snapshot(meta, data)
        written: asyncio.Future[bool] = self._loop.create_future()

        def done(room: bool) -> None:
            if not written.done():  # We may be closing.
                written.set_result(room)

        self._disk.save_snapshot(snapshot, done)
        if not await written:
            log.error("there is no room for a snapshot of the group's state: free disk space")
            await asyncio.sleep(SNAPSHOT_AGAIN)
            self._since_snapshot[0] += SNAPSHOT_ENTRIES  # The next entry brings the next try.
        elif self._running and meta.index > self._log.snapshot_meta().index:
            self._log.put_snapshot(snapshot)
            self._do(self._compact)

    def _wrote_snapshot(self, task: asyncio.Task[None]) -> None:
        self._snapshotting = None
        self._see_to_bug(task, halts=False)

    def _see_to_bug(self, task: asyncio.Task[None], *, halts: bool = True) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._loop.call_exception_handler(
            {"message": "a snapshot failed; this is a bug", "exception": error}
        )
        if halts:  # What the core hands out next would be applied to another state.
            self.halt("it could not take in a snapshot", "report the traceback above; restart")

    def _compact(self) -> None:
        index = self.node.compact(self._log.snapshot_meta().index - TRAILING_ENTRIES)
        self._log.compact(index)
        self._disk.compact(index)


def _unknown_outcome() -> UnknownOutcome:
    return UnknownOutcome(
        "the write was sent, and it is not known whether the group has decided on it",
        "repeat it with the same idempotency key: it will not act twice",
    )
