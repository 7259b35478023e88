"""A group of cores on a table: a network that does what one says, disks that can be made to wait.

No clock and no chance: every tick, delivery and write happens because a test said so. What must
hold whatever happens is looked at all along: one leader a term, one entry an index.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from lb.errors import AccordError
from lb.raft.log import MemoryLog
from lb.raft.members import Change, ConfChange
from lb.raft.messages import (
    ConfState,
    Entry,
    HardState,
    Kind,
    Message,
    Persist,
    Ready,
    Role,
    SnapMeta,
    Snapshot,
)
from lb.raft.node import Config, Node
from raft.words import say_entry, say_message, say_place

ROUNDS_MAX = 1_000  # Of one `settle`: more means that two members talk for ever.


class Latest(random.Random):
    """A source of chance that always draws the greatest: no election comes by surprise."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return (start if stop is None else stop) - step

    def randint(self, a: int, b: int) -> int:
        return b


@dataclass
class Member:
    """One instance: its core, what is on its disk, and what is on the way there."""

    config: Config
    log: MemoryLog
    hard: HardState
    conf: ConfState
    rng: random.Random
    node: Node | None = None  # None: it is down.
    disk_waits: bool = False
    apply_waits: bool = False
    writes: list[tuple[Persist, Snapshot | None]] = field(default_factory=list)
    unapplied: list[Entry] = field(default_factory=list)
    state: list[str] = field(default_factory=list)  # The machine: all it was told, in order.

    @property
    def up(self) -> Node:
        assert self.node, f"member {self.config.id} is down"
        return self.node


class Group:
    """Members and the wires between them. `said` is what happened, a line each."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.wires: list[Message] = []  # In the order in which they were sent.
        self.cuts: set[tuple[int, int]] = set()
        self.said: list[str] = []
        self.quiet = False  # What is sent goes unsaid.
        self._leaders: dict[int, int] = {}  # By term.
        self._applied: dict[int, str] = {}  # By index.

    # --- A member's life ----------------------------------------------------------------------

    def start(self, number: int) -> None:
        """Start a member from what is on its disk."""
        member = self.members[number]
        member.state = member.log.snapshot_data().decode().splitlines()
        member.node = Node(
            member.config,
            member.log,
            member.hard,
            member.conf,
            member.log.snapshot_meta().index,
            member.rng,
        )
        self._act(member)

    def crash(self, number: int) -> None:
        """Lose all that is not on the disk."""
        member = self.members[number]
        member.node = None
        member.writes.clear()
        member.unapplied.clear()

    def restart(self, number: int, options: dict[str, Any]) -> None:
        """Start a member that is down again, with another configuration."""
        member = self.members[number]
        assert not member.node
        member.config = replace(member.config, **options)
        self.start(number)

    # --- What happens to it -------------------------------------------------------------------

    def do(self, number: int, act: Callable[[Node], object]) -> None:
        """Do something to a member that is up, and carry out what it hands out."""
        member = self.members[number]
        if member.node:
            before = dict(member.node.status().passed_over)
            act(member.node)
            for reason, count in member.node.status().passed_over.items():
                if count > before.get(reason, 0) and not self.quiet:
                    self.said.append(f"{number} passes over: {reason}")
            self._act(member)

    def ask(self, number: int, act: Callable[[Node], object]) -> None:
        """Ask a member for something that it may refuse."""
        try:
            self.do(number, act)
        except AccordError as refusal:
            self.said.append(f"{number} refuses: {refusal}")

    def change(self, number: int, what: str, whom: int) -> None:
        """Ask for a change of members: `add-learner`, `promote` or `remove`."""
        change = ConfChange(Change[what.upper().replace("-", "_")], whom)
        self.ask(number, lambda node: node.propose_conf(change, what.encode()))

    def compact(self, number: int, index: int) -> None:
        """Take a snapshot as of an index, and forget what the core lets go of the log up to it."""
        member = self.members[number]
        meta = SnapMeta(index, member.log.term(index), member.up.conf_at(index))
        assert member.up.status().applied >= index
        state = [line for line in member.state if int(line.split("/")[1].split(":")[0]) <= index]
        member.log.put_snapshot(Snapshot(meta, "\n".join(state).encode()))
        member.log.compact(member.up.compact(index))
        self.do(number, lambda node: node.check())

    # --- The duties of a driver ---------------------------------------------------------------

    def _act(self, member: Member) -> None:
        """Carry out what a core hands out, until it has nothing more."""
        while member.up.has_ready():
            self._carry_out(member, member.up.ready())
        self._check(member)

    def _carry_out(self, member: Member, ready: Ready) -> None:
        self._send(ready.send_now)
        if ready.persist:
            member.writes.append((ready.persist, ready.install))
            if not member.disk_waits:
                self._write_all(member)
        else:
            assert not ready.install
        member.unapplied += ready.apply
        if not member.apply_waits:
            self._apply(member)
        number = member.config.id
        for placed in ready.placed:
            place = say_place(placed.term, placed.index)
            if not self.quiet:
                self.said.append(f"{number} has placed {placed.ctx.decode()} at {place}")
        for read in ready.reads:
            self.said.append(f"{number} may read {read.ctx.decode()} at {read.index}")
        for failed in ready.dropped:
            what = f"{failed.ctx.decode()}: {failed.fate.value}: {failed.why}"
            self.said.append(f"{number} gives up {what}")

    def _send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            lost = self._is_cut(message)
            if not lost:
                self.wires.append(message)
            if not self.quiet:
                self.said.append(say_message(message) + " (lost)" * lost)

    def _write_all(self, member: Member) -> None:
        while member.writes:
            self._write(member)

    def _write(self, member: Member) -> None:
        """Let the oldest write end: it is on the disk, the core hears of it, its messages leave."""
        persist, install = member.writes.pop(0)
        member.log.save(persist, install)
        member.hard = persist.hard or member.hard
        member.up.persisted(persist.seq)
        self._send(persist.then_send)
        if install:
            member.state = install.data.decode().splitlines()
            member.conf = install.meta.conf
            place = say_place(install.meta.term, install.meta.index)
            self.said.append(f"{member.config.id} installs the state of {place}")
            member.up.applied(install.meta.index)

    def _apply(self, member: Member) -> None:
        entries, member.unapplied = member.unapplied, []
        for entry in entries:
            line = say_entry(entry)
            first = self._applied.setdefault(entry.index, line)
            assert first == line, f"entry {entry.index} is {first} here and {line} there"
            member.state.append(line)
            if entry.kind is Kind.NORMAL:
                self.said.append(f"{member.config.id} applies {line}")
        if entries:
            member.up.applied(entries[-1].index)

    def _check(self, member: Member) -> None:
        """Fail on what must never be: two leaders in a term."""
        node = member.up
        node.check()
        status = node.status()
        if status.role is Role.LEADER:
            first = self._leaders.setdefault(status.term, status.id)
            assert first == status.id, f"term {status.term} has two leaders"

    # --- Disks --------------------------------------------------------------------------------

    def hold_disk(self, number: int, waits: bool) -> None:
        """Let a disk wait, or finish all that waited and go on."""
        member = self.members[number]
        member.disk_waits = waits
        if not waits:
            self._write_all(member)
            self._act(member)

    def write(self, number: int) -> None:
        """Let the oldest write of a disk that waits end."""
        member = self.members[number]
        self._write(member)
        self._act(member)

    def hold_apply(self, number: int, waits: bool) -> None:
        """Let a machine wait, or apply all that waited and go on."""
        member = self.members[number]
        member.apply_waits = waits
        if not waits:
            self._apply(member)
            self._act(member)

    # --- Wires --------------------------------------------------------------------------------

    def _is_cut(self, message: Message) -> bool:
        return (message.frm, message.to) in self.cuts

    def pairs(self, link: str) -> set[tuple[int, int]]:
        """Return what `1->2`, `1<->2` or `3` means: all that goes to 3 or comes from it."""
        if "<->" in link:
            one, other = map(int, link.split("<->"))
            return {(one, other), (other, one)}
        if "->" in link:
            one, other = map(int, link.split("->"))
            return {(one, other)}
        one = int(link)
        return {pair for other in self.members for pair in ((one, other), (other, one))}

    def take(self, links: Iterable[str]) -> list[Message]:
        """Take messages off the wires: those of some links, or all."""
        chosen = set().union(*map(self.pairs, links))
        taken: list[Message] = []
        kept: list[Message] = []
        for message in self.wires:
            fits = not chosen or (message.frm, message.to) in chosen
            (taken if fits else kept).append(message)
        self.wires = kept
        return taken

    def deliver(self, message: Message) -> None:
        """Give a message to whom it is for, unless its wire has been cut meanwhile."""
        if message.to in self.members and not self._is_cut(message):
            self.do(message.to, lambda node: node.step(message))

    def settle(self) -> None:
        """Deliver until nothing is on the wires."""
        for _ in range(ROUNDS_MAX):
            if not self.wires:
                break
            for message in self.take(()):
                self.deliver(message)
        else:
            raise AssertionError("the members talk for ever")

    def run(self, ticks: int) -> None:
        """Let time pass for all, and deliver what is on the wires after each tick."""
        for _ in range(ticks):
            for number in self.members:
                self.do(number, lambda node: node.tick())
            for message in self.take(()):
                self.deliver(message)
