"""Transcripts: commands, a line of dashes, and what came of them.

A transcript is read as a story and run as a test. `python -m raft.transcripts` (in `tests`;
`make transcripts`) writes what happens now in the place of what is said to happen; a change of
that is committed only by somebody who knows why it is right.

The commands are the methods `do_...` of `Script`. In the outcome first come the members whose
role, term, leader or commit changed, then what happened, in order. `2/5` is index 5 of term 2.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.raft.log import MemoryLog
from lb.raft.messages import ConfState, HardState
from lb.raft.node import Config
from raft.group import Group, Latest, Member
from raft.words import (
    parse_log,
    parse_message,
    parse_set,
    say_entries,
    say_members,
    say_message,
    say_peer,
    say_place,
    say_status,
)

HERE = Path(__file__).parent
DASHES = "----"
TRANSCRIPTS = sorted(HERE.glob("*.txt"))
QUICK = {"election_ticks": 10, "heartbeat_ticks": 1}
HURRIED = {"settle", "run"}  # In a block with one of them, what is sent goes unsaid.
SETTINGS = {"on": True, "off": False}


@dataclass(frozen=True)
class Block:
    """Some commands and their outcome; `before` is the comment above them."""

    before: str
    commands: tuple[str, ...]
    outcome: str
    line: int


def read_blocks(text: str) -> list[Block]:
    """Return a transcript's blocks; a comment belongs to the block below it."""
    blocks = []
    before: list[str] = []
    commands: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if line == DASHES:
            start = at
            while at < len(lines) and lines[at]:
                at += 1
            outcome = "\n".join(lines[start:at])
            blocks.append(Block("\n".join(before), tuple(commands), outcome, start))
            before, commands = [], []
        elif line.startswith("#"):
            before.append(line)
        elif line:
            commands.append(line)
    assert not commands, f"commands without an outcome: {commands}"
    return blocks


def write_blocks(blocks: list[Block]) -> str:
    """Return a transcript's text."""
    parts = []
    for block in blocks:
        lines = [block.before] if block.before else []
        lines += [*block.commands, DASHES]
        lines += [block.outcome] if block.outcome else []
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def play(blocks: list[Block]) -> list[Block]:
    """Return the blocks with what really comes of their commands."""
    script = Script()
    return [
        Block(block.before, block.commands, script.run(block.commands), block.line)
        for block in blocks
    ]


class Script:
    """One transcript's group, and the commands by which it is moved."""

    def __init__(self) -> None:
        self.group = Group()
        self.told: dict[int, str] = {}  # What was last said of each member's state.

    def run(self, commands: tuple[str, ...]) -> str:
        """Carry out commands; return what changed and what happened."""
        self.group.said.clear()
        self.group.quiet = any(command.split()[0] in HURRIED for command in commands)
        for command in commands:
            name, *words = command.split()
            getattr(self, "do_" + name)(*words)
        return "\n".join([*self.changes(), *together(self.group.said)])

    def changes(self) -> list[str]:
        """Return the state of each member of which it is not what was last said."""
        lines = []
        for number, member in sorted(self.group.members.items()):
            state = say_status(member.node.status()) if member.node else f"{number} down"
            if self.told.get(number) != state:
                lines.append(state)
            self.told[number] = state
        return lines

    # --- Members and their time ---------------------------------------------------------------

    def do_group(self, *words: str) -> None:
        """Begin anew: `group 1@1.1.2 2@1/3,vote=1 3 learners=3 pre_vote=off`; see `make_group`."""
        before = self.group
        self.group = make_group(words)
        self.group.said, self.group.quiet = before.said, before.quiet
        self.told = {}
        for number in self.group.members:
            self.group.start(number)

    def do_tick(self, number: str, times: str = "1") -> None:
        """Let time pass for one member."""
        for _ in range(int(times)):
            self.group.do(int(number), lambda node: node.tick())

    def do_campaign(self, number: str) -> None:
        """Say that a member's election timeout has passed."""
        self.group.do(int(number), lambda node: node.campaign())

    def do_crash(self, number: str) -> None:
        """Lose all that is not on the member's disk."""
        self.group.crash(int(number))

    def do_restart(self, number: str, *options: str) -> None:
        """Start again from the disk: `restart 1 pre_vote=on`."""
        self.group.restart(int(number), parse_options(options))

    def do_disk(self, number: str, *words: str) -> None:
        """`disk 1 waits`: what is to be written stays in memory. `disk 1 goes on`."""
        self.group.hold_disk(int(number), waits=words == ("waits",))

    def do_write(self, number: str) -> None:
        """Let the oldest write of a waiting disk end."""
        self.group.write(int(number))

    def do_apply(self, number: str, *words: str) -> None:
        """`apply 1 waits`: committed entries are not applied. `apply 1 goes on`."""
        self.group.hold_apply(int(number), waits=words == ("waits",))

    # --- Messages -----------------------------------------------------------------------------

    def do_deliver(self, *links: str) -> None:
        """Deliver what is on the wires now, or on some of them; answers stay on the wires."""
        for message in self.group.take(links):
            self.group.deliver(message)

    def do_settle(self) -> None:
        """Deliver until nothing is on the wires; what was sent goes unsaid."""
        self.group.settle()

    def do_drop(self, *links: str) -> None:
        """Lose what is on the wires."""
        self.group.take(links)

    def do_cut(self, link: str) -> None:
        """`cut 1->2` one way, `cut 1<->2` both, `cut 3` all that goes to it and comes from it."""
        self.group.cuts |= self.group.pairs(link)

    def do_run(self, ticks: str) -> None:
        """Let time pass for all, and deliver what is on the wires after each tick."""
        self.group.run(int(ticks))

    def do_heal(self) -> None:
        """Mend all cuts; what was lost is lost."""
        self.group.cuts.clear()

    def do_send(self, *words: str) -> None:
        """Deliver a message that nobody sent: `send 2->1 Vote term=5 last=3/7`."""
        self.group.deliver(parse_message(words))

    # --- What users and drivers ask -----------------------------------------------------------

    def do_propose(self, number: str, text: str) -> None:
        """Propose an entry; `refused` says why it was not taken."""
        self.group.ask(int(number), lambda node: node.propose(text.encode(), text.encode()))

    def do_read(self, number: str, ctx: str) -> None:
        """Ask for the index that a consistent read has to wait for."""
        self.group.ask(int(number), lambda node: node.read_index(ctx.encode()))

    def do_transfer(self, number: str, to: str) -> None:
        """Ask a member to hand leadership over."""
        self.group.ask(int(number), lambda node: node.transfer(int(to)))

    def do_conf(self, number: str, what: str, whom: str) -> None:
        """Propose a change of members: `conf 1 add-learner 4`, `promote`, `remove`."""
        self.group.change(int(number), what, int(whom))

    def do_compact(self, number: str, index: str) -> None:
        """Take a snapshot at an index and forget the log up to it."""
        self.group.compact(int(number), int(index))

    def do_unreachable(self, number: str, peer: str) -> None:
        """Say that a message to a peer could not be sent."""
        self.group.do(int(number), lambda node: node.report_unreachable(int(peer)))

    def do_snapshot(self, number: str, peer: str, outcome: str) -> None:
        """Say how sending a snapshot to a peer ended."""
        self.group.do(int(number), lambda node: node.report_snapshot(int(peer), outcome == "done"))

    # --- Looking ------------------------------------------------------------------------------

    def do_show(self, what: str) -> None:
        """`show logs`, `wires`, `writes`, `progress`, `members` or `state`."""
        self.group.said += getattr(self, "say_" + what)()

    def up(self) -> list[tuple[int, Member]]:
        """Return the members that are up."""
        return [(number, member) for number, member in self.group.members.items() if member.node]

    def say_logs(self) -> list[str]:
        """What is on the disks: where a snapshot leads to, and the entries that are kept."""
        lines = []
        for number, member in self.group.members.items():
            log = member.log
            snapshot = log.snapshot_meta()
            place = f"snapshot {say_place(snapshot.term, snapshot.index)}, "
            entries = log.entries(log.first, log.last + 1, 1 << 30)
            lines.append(f"{number}: {place * bool(snapshot.index)}{say_entries(entries)}")
        return lines

    def say_wires(self) -> list[str]:
        """What is on its way, in the order of sending."""
        return [say_message(message) for message in self.group.wires] or ["nothing"]

    def say_writes(self) -> list[str]:
        """What waits to be written."""
        lines = []
        for number, member in self.group.members.items():
            for persist, _ in member.writes:
                hard = persist.hard
                vote = f"term={hard.term} vote={hard.vote} " if hard else ""
                lines.append(f"{number} writes {vote}[{say_entries(persist.entries)}]")
                lines += [f"  then {say_message(message)}" for message in persist.then_send]
        return lines or ["nothing"]

    def say_progress(self) -> list[str]:
        """What leaders know of the others."""
        return [
            f"{number} of {say_peer(peer, status)}"
            for number, member in self.up()
            for peer, status in sorted(member.up.status().peers.items())
        ]

    def say_members(self) -> list[str]:
        """The configuration in force, in each member's eyes."""
        return [f"{number}: {say_members(member.up.status().conf)}" for number, member in self.up()]

    def say_state(self) -> list[str]:
        """Every member, whether it changed or not."""
        return [say_status(member.up.status()) for _, member in self.up()]


def together(said: list[str]) -> list[str]:
    """Return what happened, with what one member applies in a row in one line."""
    lines: list[str] = []
    for line in said:
        head, applies, what = line.partition(" applies ")
        if applies and lines and lines[-1].startswith(head + applies):
            lines[-1] += f" {what}"
        else:
            lines.append(line)
    return lines


# --- Groups -----------------------------------------------------------------------------------


def parse_options(words: Iterable[str]) -> dict[str, int | bool]:
    """Return `name=value` pairs: `on`, `off` or a number."""
    pairs = (word.split("=") for word in words)
    return {name: SETTINGS[text] if text in SETTINGS else int(text) for name, text in pairs}


def make_group(words: Sequence[str]) -> Group:
    """
    Make what `group` says.

    Members are numbers, each with its log (`1@1.1.2` by terms, `1@2/5` five entries of term 2)
    and what else it starts with (`3@1,term=4,vote=2,commit=1,pre_vote=off`). `voters=1,2` and
    `learners=3`: who counts; else all vote. `seed=7`: timeouts are drawn, else the longest holds.
    Any other option is one of `Config`, for all.
    """
    options = dict(word.split("=", 1) for word in words if not word[0].isdigit())
    described = [word.split(",") for word in words if word[0].isdigit()]
    numbers = [int(first.partition("@")[0]) for first, *_ in described]
    learners = parse_set(options.pop("learners", ""))
    voters = options.pop("voters", None)
    conf = ConfState(parse_set(voters) if voters else frozenset(numbers) - learners, learners)
    seed = options.pop("seed", None)
    shared = QUICK | parse_options("=".join(pair) for pair in options.items())
    group = Group()
    for number, (first, *rest) in zip(numbers, described, strict=True):
        entries = parse_log(first.partition("@")[2])
        own = parse_options(rest)
        term = int(own.pop("term", entries[-1].term if entries else 0))
        hard = HardState(term, int(own.pop("vote", 0)), int(own.pop("commit", 0)))
        settings: dict[str, Any] = shared | own
        rng = random.Random(int(seed) * 100 + number) if seed else Latest()
        config = Config(id=number, **settings)
        group.members[number] = Member(config, MemoryLog(entries), hard, conf, rng)
    return group


def rewrite() -> None:
    """Write what happens now into all transcripts, and say which have changed."""
    for path in TRANSCRIPTS:
        text = path.read_text()
        now = write_blocks(play(read_blocks(text)))
        if now != text:
            path.write_text(now)
            print(f"{path.name} has changed; commit it only if you know why it is right")


if __name__ == "__main__":
    rewrite()
