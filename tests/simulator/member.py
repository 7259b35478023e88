"""One member: the real core, a disk, a machine, and the duties of a driver with time between.

The duties are those that `lb.raft.messages.Ready` numbers. Around each there is a named point
at which the member may be told to crash, since the order of these steps is what safety hangs on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lb.raft.log import MemoryLog
from lb.raft.members import Change, ConfChange
from lb.raft.messages import (
    ConfState,
    Dropped,
    Entry,
    Failed,
    Fate,
    Message,
    NotLeader,
    Persist,
    Placed,
    Ready,
    Role,
    SnapMeta,
    Snapshot,
)
from lb.raft.node import Node
from lb.registry import encode_member
from simulator.clients import Client, No
from simulator.disks import Disk, DiskFailedError
from simulator.leases import Landlord, Tenant
from simulator.machine import NOBODY, Machine, address_of, founded
from simulator.network import show
from simulator.plan import Strike, config_of
from simulator.shadow import ViolationError

if TYPE_CHECKING:
    from simulator.world import World

BACKLOG_MAX = 500  # Messages kept for a member that is paused, as sockets would.


class CrashedError(Exception):
    """The member has come to the point at which it was to crash."""


@dataclass(frozen=True, slots=True)
class Asked:
    """
    A try of a call that waits at this member. `floor`: what was committed when it came.

    `term`: of a renewal, the one in which the lease was extended.
    """

    client: Client | Tenant
    attempt: int
    number: int = 0
    key: str = ""
    floor: int = 0
    term: int = 0


@dataclass(frozen=True, slots=True)
class Errand:
    """Something for the disk: a batch with what it installs, or a snapshot of our own."""

    persist: Persist | None = None
    install: Snapshot | None = None
    own: Snapshot | None = None
    keep: int = 0


class Member:
    """One instance of the group, over all its crashes."""

    def __init__(self, world: World, number: int, conf: ConfState, wants_vote: bool) -> None:
        self.number = number
        self.wants_vote = wants_vote
        self.leaving = False  # It is to be removed.
        self.gone = False  # It will never come back.
        self.tick_scale = 1.0
        self.disk_scale = 1
        self.wall_offset = 0
        self.node: Node | None = None
        self.disk: Disk = world.make_disk(number, conf)
        self.shadow = world.invariants.join(number)
        self._founded = founded(conf, world.plan.seed % 2)
        self.machine = Machine(registry=self._founded)
        self.landlord = Landlord(world.plan, world.agenda)
        self._world = world
        self._agenda = world.agenda
        self._log = MemoryLog()
        self._boot = 0
        self._rng = world.chance(f"member {number}")
        self._paused_until = 0
        self._armed: tuple[str, int, int] | None = None
        self.doomed = False  # Its next sync fails.
        self._fails_for = 0
        self._backlog: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._errands: list[Errand] = []
        self._writing: list[Errand] = []
        self._unapplied: deque[Entry | Snapshot] = deque()
        self._proposed: dict[bytes, Asked] = {}
        self._placed: dict[int, tuple[int, Asked]] = {}
        self._reading: dict[bytes, Asked] = {}
        self._snapshot_at = 0

    # --- Its life -----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self.node is not None

    @property
    def paused(self) -> bool:
        """Whether its process is stopped just now."""
        return self._agenda.now < self._paused_until

    def start(self) -> None:
        """Start the process, from what is on the disk."""
        if self.gone or self.node is not None:
            return
        try:
            contents = self.disk.start()
        except DiskFailedError:
            self._disk_failed()
            return
        meta = contents.snapshot.meta
        self._world.invariants.started(self.shadow, contents)
        data = contents.snapshot.data
        self.machine = Machine.load(data) if meta.index else Machine(registry=self._founded)
        self.landlord = Landlord(self._world.plan, self._agenda)
        self._log = MemoryLog(
            contents.entries, contents.snapshot, (contents.base, contents.base_term)
        )
        self._snapshot_at = meta.index
        self._world.invariants.restored(self.shadow, meta.index, self.machine.mark)
        self._boot += 1
        rng = self._world.chance(f"core {self.number}.{self._boot}")
        self.node = Node(
            config_of(self._world.plan, self.number),
            self._log,
            contents.hard,
            meta.conf,
            meta.index,
            rng,
        )
        self._world.note(f"{self.number} starts: {contents.hard}, last {self._log.last}")
        self._agenda.after(self._rng.randrange(self._world.plan.tick), self._tick, self._boot)
        self._do(lambda: None)

    def crash(self) -> None:
        """Stop the process and lose all that is not on the disk."""
        if self.node is None:
            return
        self._world.note(f"{self.number} crashes")
        self.node = None
        self._boot += 1
        self._paused_until = 0
        self.shadow.writing = [one.persist for one in self._writing if one.persist is not None]
        installs = [one.install for one in self._writing if one.install is not None]
        self.disk.crash(self.shadow.writing, installs)
        for left in (self._backlog, self._errands, self._unapplied, self._writing):
            left.clear()
        for asked in (self._proposed, self._placed, self._reading):
            asked.clear()

    def lose(self) -> None:
        """Be gone for good, the disk too."""
        self.crash()
        self.gone = True

    def crash_at(self, point: str, skip: int, length: int) -> None:
        """Crash when that point is reached for the `skip`-th time from now."""
        self._armed = (point, skip, length)

    def pause(self, length: int) -> None:
        """Stop the process for a while; messages wait."""
        if self.node is not None and not self._world.calm:
            self._paused_until = max(self._paused_until, self._agenda.now + length)
            self._agenda.after(length, self._resume, self._boot)

    def _resume(self, boot: int) -> None:
        if boot != self._boot or self.paused:
            return
        while self._backlog and not self.paused:
            act, args = self._backlog.popleft()
            act(*args)

    def even_clock(self) -> None:
        """Let time pass here as it does elsewhere."""
        self.tick_scale = 1.0

    def even_disk(self) -> None:
        """Let the disk be as quick as others."""
        self.disk_scale = 1

    def fail_disk(self, length: int) -> None:
        """Let the next sync fail; the member is replaced after a while."""
        self._fails_for = length
        self.doomed = True
        self.disk.fail_next()

    def fill_disk(self) -> None:
        """Leave room on the disk for promises only."""
        self.disk.set_full(True)

    def free_disk(self) -> None:
        """Make room again."""
        self.disk.set_full(False)

    def calm_down(self) -> None:
        """End all faults, and start again if stopped."""
        self.even_clock()
        self.even_disk()
        self.free_disk()
        self._armed = None
        self._paused_until = 0
        self._agenda.after(0, self._resume, self._boot)
        self._agenda.after(0, self.start)

    # --- What happens to it -------------------------------------------------------------------

    def _tick(self, boot: int) -> None:
        if boot != self._boot:
            return
        # However long it was stopped, and whatever its clock: one tick, and the inbox first.
        self._agenda.after(int(self._world.plan.tick * self.tick_scale), self._tick, boot)
        if self.node is not None and not self.paused:
            self._do(self.node.tick)
            if self.landlord.term:
                self._do(self._expire)

    def receive(self, message: Message) -> None:
        """Take a message off the network."""
        if self.node is None:
            return
        if self.paused:
            if len(self._backlog) < BACKLOG_MAX:
                self._backlog.append((self.receive, (message,)))
            return
        if self._world.trace is not None:
            self._world.note(f"{self.number} <- {show(message)}")
        counted = self._counted(message)
        self._do(self.node.step, message)
        if self._counted(message) != counted:
            raise ViolationError("acknowledgements are of this term", show(message))

    def _counted(self, message: Message) -> int:
        """How much of a member's log its leader counts, if `message` must not change that."""
        node = self.node
        if node is None or message.term >= node.term or node.role is not Role.LEADER:
            return 0
        peer = node.status().peers.get(message.frm)
        return peer.match if peer is not None else 0

    def _do(self, act: Callable[..., None], *args: Any) -> None:
        """Let the core take something in, and carry out what it hands out."""
        node = self.node
        if node is None:
            return
        try:
            act(*args)
            while node.has_ready():
                self._carry_out(node, node.ready())
            if self._world.plan.tenants:
                self.landlord.look(node, self.machine)
        except CrashedError:
            self._crash_now()
            return
        except DiskFailedError:
            self._disk_failed()
            return
        self._world.invariants.stepped(self.shadow, node)

    def _disk_failed(self) -> None:
        """What this member promised is in doubt, so it must be gone; another comes for it."""
        self._world.tally.fired[Strike.DISK_ERROR.value] += 1
        self._world.replace(self, self._fails_for)

    def _crash_now(self) -> None:
        armed = self._armed
        assert armed is not None
        self._armed = None
        self._world.tally.fired[f"crash {armed[0]}"] += 1
        self.crash()
        self._agenda.after(armed[2], self.start)

    def _point(self, name: str) -> None:
        """Be at a named point: crash, if that was asked for."""
        armed = self._armed
        if armed is None or armed[0] != name:
            return
        if armed[1] > 0:
            self._armed = (name, armed[1] - 1, armed[2])
            return
        raise CrashedError

    # --- The duties of a driver -----------------------------------------------------------------

    def _carry_out(self, node: Node, ready: Ready) -> None:
        if ready.send_now:
            self._point("before sending")
            for message in ready.send_now:
                self._send(message)
        if ready.persist is not None:
            self._save(ready.persist, ready.install)
        self._world.invariants.stepped(self.shadow, node)
        self._unapplied.extend(ready.apply)
        for placed in ready.placed:
            self._take_place(placed)
        if self._unapplied:
            self._apply(node)
        for read in ready.reads:
            self._answer_read(read.ctx, read.index)
        for failed in ready.dropped:
            self._refuse(failed)

    def _save(self, persist: Persist, install: Snapshot | None) -> None:
        self._world.invariants.handed_out(self.shadow, persist)
        self._errands.append(Errand(persist, install))
        if install is not None:
            self._unapplied.append(install)
        self._point("before saving")
        self._begin_writing()

    def _send(self, message: Message) -> None:
        self._world.invariants.sent(self.shadow, message)
        self._world.network.send(message)

    def _begin_writing(self) -> None:
        if self._writing or not self._errands:
            return
        self._writing, self._errands = self._errands, []
        latency = int(self._world.plan.sync * self.disk_scale * (0.5 + self._rng.random()))
        self._agenda.after(latency, self._written, self._boot)

    def _written(self, boot: int) -> None:
        """The storage thread comes back; everything it was given is sure now."""
        if boot != self._boot:
            return
        if self.paused:
            self._backlog.append((self._written, (boot,)))
            return
        self._do(self._finish_writing)

    def _finish_writing(self) -> None:
        self._point("while saving")
        errands = self._writing
        self._write(errands)
        for errand in errands:
            if errand.persist is not None:
                self._world.invariants.durable(self.shadow, errand.persist)
        self._writing = []
        self._point("after saving, before the ack")
        for errand in errands:
            if errand.persist is not None:
                self._acknowledge(errand.persist, errand.install)
            elif errand.own is not None:
                self._let_go(errand.own, errand.keep)
        self._begin_writing()

    def _write(self, errands: list[Errand]) -> None:
        """Write all that lies together by one sync; snapshots of our own break the row."""
        batch: list[Persist] = []
        for errand in errands:
            if errand.install is not None:
                self.disk.put_snapshot(errand.install)
            if errand.persist is not None:
                batch.append(errand.persist)
            elif errand.own is not None:
                if batch:
                    self.disk.write(batch)
                    batch = []
                self.disk.save_snapshot(errand.own)
        if batch:
            self.disk.write(batch)

    def _acknowledge(self, persist: Persist, install: Snapshot | None) -> None:
        assert self.node is not None
        self._log.save(persist, install)
        self.node.persisted(persist.seq)
        self._point("after the ack, before sending")
        for message in persist.then_send:
            self._send(message)
            self._point("while sending what was saved")
        if install is not None:
            self._apply(self.node)

    def _apply(self, node: Node) -> None:
        """Apply all that is due; a snapshot only when it is on the disk, and nothing before it."""
        while self._unapplied:
            next_one = self._unapplied[0]
            if isinstance(next_one, Snapshot):
                if self._log.snapshot_meta().index < next_one.meta.index:
                    return
                self._unapplied.popleft()
                self._install(node, next_one)
                continue
            self._point("before applying")
            last = self.shadow.applied
            while self._unapplied and isinstance(entry := self._unapplied[0], Entry):
                self._unapplied.popleft()
                self._apply_entry(entry)
                last = entry.index
                self._point("while applying")
            node.applied(last)
        if self.shadow.applied - self._snapshot_at >= self._world.plan.compact_every:
            self.snapshot(self._world.plan.keep_entries)

    def _apply_entry(self, entry: Entry) -> None:
        before = self.machine.registry
        told, reply = self.machine.take(entry), self.machine.reply
        effect = self.machine.effect if told is not None else None
        invariants = self._world.invariants
        invariants.applied(self.shadow, entry, self.machine.mark)
        invariants.registered(self.shadow, self.machine.registry)
        self._world.learn_effect(entry.index, effect)
        if reply is not None:
            self._world.leases.applied(entry.index, self.machine.command, before, reply)
        waiting = self._placed.pop(entry.index, None)
        if waiting is None:
            return
        term, asked = waiting
        if term != entry.term:
            asked.client.refused(asked.attempt, No.NOT_DONE)
        elif isinstance(asked.client, Tenant):
            assert reply is not None
            asked.client.replied(asked.attempt, reply)
        elif told is not None and told[1].number == asked.number:
            answer = told[1]
            asked.client.answered(asked.attempt, answer.done, answer.value, answer.revision)

    # --- Snapshots ----------------------------------------------------------------------------

    def _install(self, node: Node, snapshot: Snapshot) -> None:
        self._point("before installing")
        self.machine = Machine.load(snapshot.data)
        index = snapshot.meta.index
        self._world.invariants.restored(self.shadow, index, self.machine.mark)
        self._world.tally.seen["snapshots installed"] += 1
        self._snapshot_at = index
        for placed in [place for place in self._placed if place <= index]:
            _, asked = self._placed.pop(placed)
            asked.client.refused(asked.attempt, No.NOBODY_KNOWS)
        node.applied(index)
        self._point("after installing")

    def snapshot(self, keep: int) -> bool:
        """Save the machine's state, and let go of the log but for `keep` entries."""
        node, index = self.node, self.shadow.applied
        if node is None or index <= self._snapshot_at or self.disk.full or self.paused:
            return False
        self._snapshot_at = index
        meta = SnapMeta(index, self._log_term(index), node.conf_at(index))
        self._errands.append(Errand(own=Snapshot(meta, self.machine.save()), keep=keep))
        self._world.invariants.taken(self.shadow, meta)
        self._begin_writing()
        return True

    def _log_term(self, index: int) -> int:
        """Committed, so all agree on it; this member's log may not have it on disk yet."""
        return self._world.invariants.committed[index].term

    def _let_go(self, own: Snapshot, keep: int) -> None:
        """A snapshot of our own is sure: entries that it stands for may go."""
        assert self.node is not None
        if own.meta.index <= self._log.snapshot_meta().index:
            return  # The leader sent a newer one meanwhile.
        self._log.put_snapshot(own)
        self._world.tally.seen["snapshots taken"] += 1
        self._point("before compacting")
        index = self.node.compact(max(own.meta.index - keep, 0))
        self._log.compact(index)
        self._point("while compacting")
        self.disk.compact(index)
        self._world.invariants.compacted(self.shadow, index)

    # --- Clients ------------------------------------------------------------------------------

    def write(self, client: Client | Tenant, attempt: int, number: int, data: bytes) -> None:
        """Take a command; see `clients.Desk`."""
        if self.paused or self.node is None:
            return
        if self.disk.full:
            client.refused(attempt, No.NOT_DONE)
            return
        ctx = self._world.next_ctx()
        self._proposed[ctx] = Asked(client, attempt, number)
        self._do(self._propose, data, ctx)

    def _propose(self, data: bytes, ctx: bytes) -> None:
        assert self.node is not None
        try:
            self.node.propose(data, ctx)
        except (NotLeader, Dropped):
            self._refuse(Failed(ctx, Fate.NOT_DONE, "refused"))

    def read(self, client: Client | Tenant, attempt: int, key: str, term: int = 0) -> None:
        """Take a read; see `clients.Desk`, and `Asked` for the term."""
        if self.paused or self.node is None:
            return
        ctx = self._world.next_ctx()
        floor = self._world.invariants.commit
        self._reading[ctx] = Asked(client, attempt, key=key, floor=floor, term=term)
        self._do(self._read, ctx)

    def _read(self, ctx: bytes) -> None:
        assert self.node is not None
        try:
            self.node.read_index(ctx)
        except (NotLeader, Dropped):
            self._refuse(Failed(ctx, Fate.NOT_DONE, "refused"))

    def _answer_read(self, ctx: bytes, index: int) -> None:
        asked = self._reading.pop(ctx, None)
        if asked is None:
            return
        self._world.invariants.read(self.shadow, index, asked.floor)
        if isinstance(asked.client, Tenant):
            self.landlord.confirmed(asked.client, asked.attempt, asked.term)
            return
        value, revision = self.machine.read(asked.key)
        asked.client.answered(asked.attempt, True, value, revision)

    def _take_place(self, placed: Placed) -> None:
        """A proposal is in the log; its answer comes when that place is applied, if it still is."""
        asked = self._proposed.pop(placed.ctx, None)
        if asked is None:
            return
        if placed.index > self.shadow.applied:
            self._placed[placed.index] = (placed.term, asked)
            return
        answer = None
        if isinstance(asked.client, Client):
            answer = self.machine.answers.get(asked.client.number)
        if answer is not None and answer.number == asked.number:
            assert isinstance(asked.client, Client)
            asked.client.answered(asked.attempt, answer.done, answer.value, answer.revision)
        else:
            asked.client.refused(asked.attempt, No.NOBODY_KNOWS)

    def _refuse(self, failed: Failed) -> None:
        asked = self._proposed.pop(failed.ctx, None) or self._reading.pop(failed.ctx, None)
        if asked is not None:
            why = No.NOT_DONE if failed.fate is Fate.NOT_DONE else No.NOBODY_KNOWS
            asked.client.refused(asked.attempt, why)

    # --- Leases -------------------------------------------------------------------------------

    @property
    def wall(self) -> float:
        """The clock on the wall, which may be set at any time."""
        return (self._agenda.now + self.wall_offset) / self._world.plan.lease_second

    def renew(self, tenant: Tenant, attempt: int, key: str) -> None:
        """Extend a lease, if this member may."""
        if self.node is not None and not self.paused:
            self.landlord.renew(self, tenant, attempt, key)

    def _expire(self) -> None:
        assert self.node is not None
        data = self.landlord.expire(self.node, self.wall)
        if data:
            self._propose(data, self._world.next_ctx())

    # --- Operators ----------------------------------------------------------------------------

    def hand_over(self, to: int) -> None:
        """Hand leadership over."""
        if self.node is not None and not self.paused:
            self._do(self._transfer, to)

    def _transfer(self, to: int) -> None:
        assert self.node is not None
        try:
            self.node.transfer(to)
        except (NotLeader, Dropped):
            self._world.note(f"{self.number} does not hand over to {to}")

    def change(self, what: Change, number: int) -> None:
        """Ask for a change of members."""
        if self.node is not None and not self.paused:
            context = encode_member(f"m{number}", address_of(number), NOBODY, self.wall)
            self._do(self._change, ConfChange(what, number, context))

    def _change(self, change: ConfChange) -> None:
        assert self.node is not None
        try:
            self.node.propose_conf(change, self._world.next_ctx())
        except (NotLeader, Dropped) as error:
            self._world.note(f"{self.number} refuses {change}: {error}")
