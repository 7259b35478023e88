"""Broken variants of the core and of the code around it: each must be caught, or we prove nothing.

A mutant is one function with some of its text replaced. `python -m simulator.mutants` (`make
mutants`) runs each on the same seeds until something does not hold, and prints which seed and
which rule that was. The true code passes those seeds: `simulator.test_seeds` runs them.

Not here: joint consensus and lease reads, which we do not have; repairing damage as if it were
a torn tail, which `raft.test_wal` tries at every byte.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from simulator.plan import draw
from simulator.world import run

SEEDS_MAX = 300
CORE = "assertion of the core"  # The core noticed by itself, and would have stopped.


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken variant. `rules`: those that may catch it, the hazard's own or stronger ones."""

    name: str
    place: str  # module:Class.function
    changes: tuple[tuple[str, str], ...]
    rules: tuple[str, ...]
    more: tuple[tuple[str, str, str], ...] = ()  # Further (place, old, new).
    first: int = 0  # The seed to begin with, where what it takes to notice is rare: saves time.


DURABLE, PROMISES = "committed is durable", "promises are durable"
SAFETY, COMPLETE = "state machine safety", "leader completeness"
LEADING = "lb.raft.leading:Leadership"
OUTBOX = "lb.raft.outbox:Outbox"
LAST = "leases last"
STAYS = (SAFETY, COMPLETE, "log matching", DURABLE, CORE)

MUTANTS = (
    Mutant(
        "a leader counts itself before its own disk",
        f"{LEADING}.advance_commit",
        (("ledger.log.stable", "ledger.log.last"),),
        (DURABLE, SAFETY),
    ),
    Mutant(
        "a vote is not written down",
        f"{OUTBOX}._must_write",
        (("(hard.term, hard.vote) != (asked.term, asked.vote)", "hard.term != asked.term"),),
        (PROMISES, "one vote a term", "election safety"),
    ),
    Mutant(
        "term and vote in two writes",
        f"{OUTBOX}._write",
        (
            (
                "self._asked = hard",
                "if hard.term != self._asked.term:\n"
                "        changed = hard = HardState(hard.term, 0, hard.commit)\n"
                "    self._asked = hard",
            ),
        ),
        (PROMISES, "one vote a term", "election safety"),
    ),
    Mutant(
        "an acknowledgement leaves before the disk",
        f"{OUTBOX}._must_wait",
        (("message.type in PROMISES", "message.type in PROMISES - {MessageType.APPEND_REPLY}"),),
        (PROMISES, DURABLE),
    ),
    Mutant(
        "entries of older terms are committed by counting",
        f"{LEADING}.advance_commit",
        ((" or ledger.log.term(index) != ledger.term", ""),),
        ("own term first", COMPLETE, SAFETY),
    ),
    Mutant(
        "every append cuts off what follows",
        "lb.raft.following:Following._new",
        (("if not self._ledger.log.matches(entry.index, entry.term):", "if True:"),),
        (*STAYS, PROMISES),
    ),
    Mutant(
        "heartbeats tell of commits that nobody has verified",
        f"{LEADING}._send_heartbeats",
        (("min(progress.match, self._ledger.commit)", "self._ledger.commit"),),
        (SAFETY, CORE),
        (
            ("lb.raft.following:Following.heartbeat", "message.commit > ledger.log.last", "False"),
            (
                "lb.raft.following:Following.heartbeat",
                "ledger.commit_to(message.commit)",
                "ledger.commit_to(min(message.commit, ledger.log.last))",
            ),
        ),
    ),
    Mutant(
        "whoever asks gets the vote, however short its log",
        "lb.raft.log:Log.as_complete_as",
        (("return (term, index) >= (self.last_term, self.last)", "return True"),),
        STAYS,
    ),
    Mutant(
        "two votes in one term",
        "lb.raft.node:Node._answer_vote",
        (("may = free or", "may = True or"),),
        ("one vote a term", "election safety", PROMISES, CORE),
        (
            (
                "lb.raft.ledger:Ledger.give_vote",
                'assert self.vote in (NOBODY, to), "one vote a term"',
                "",
            ),
        ),
    ),
    Mutant(
        "learners are counted",
        f"{LEADING}.advance_commit",
        (
            (
                "index = reached(matches, ledger.members.in_force.voters)",
                "index = sorted(matches.values())[-size(ledger.members.in_force.voters)]",
            ),
        ),
        (DURABLE,),
    ),
    Mutant(
        "a removed leader counts itself",
        f"{LEADING}.advance_commit",
        (
            (
                "reached(matches, ledger.members.in_force.voters)",
                "reached(matches, ledger.members.in_force.voters | {ledger.id})",
            ),
        ),
        (DURABLE,),
    ),
    Mutant(
        "members change before the leader has committed anything",
        f"{LEADING}.propose_conf",
        (("if not self.owns_commit:", "if False:"),),
        ("configuration", *STAYS),
    ),
    Mutant(
        "two changes of members at once",
        f"{LEADING}.propose_conf",
        (("if members.changed_at > ledger.commit:", "if False:"),),
        ("configuration", *STAYS),
        first=70,
    ),
    Mutant(
        "members of an entry that was cut off stay in force",
        "lb.raft.ledger:Ledger.overwrite_from",
        (("self.members.cut(index)", "pass"),),
        ("configuration", CORE),
        first=160,
    ),
    Mutant(
        "a snapshot drops what follows it",
        "lb.raft.following:Following.snapshot",
        ((" or ledger.log.matches(meta.index, meta.term)", ""),),
        ("snapshots keep what follows", PROMISES),
        first=1_450,  # A snapshot has to overtake the entries after it.
    ),
    Mutant(
        "a snapshot takes commit back",
        "lb.raft.following:Following.snapshot",
        (
            (
                "if meta.index <= ledger.commit or ledger.log.matches(meta.index, meta.term):",
                "if False:",
            ),
        ),
        ("no step back", "snapshots keep what follows", CORE),
        (
            (
                "lb.raft.ledger:Ledger.restore",
                "assert snapshot.meta.index > self.commit",
                "assert True",
            ),
        ),
        first=210,
    ),
    Mutant(
        "reads without a round",
        "lb.raft.reads:Reads.confirmed",
        (
            (
                "number = reached({**self._acknowledged, leader: self._number}, voters)",
                "number = self._number",
            ),
        ),
        ("reads are fresh", "client histories"),
        first=200,
    ),
    Mutant(
        "reads before the leader has committed anything",
        f"{LEADING}.flush",
        (("if self.reads.waiting and self.owns_commit:", "if self.reads.waiting:"),),
        ("reads are fresh", "client histories"),
        ((f"{LEADING}.has_work", "self.reads.waiting and self.owns_commit", "self.reads.waiting"),),
        first=140,
    ),
    Mutant(
        "asking for votes in advance raises the term",
        "lb.raft.node:Node.become_pre_candidate",
        (("self._enter(", "self.ledger.adopt(self.term + 1)\n    self._enter("),),
        ("pre-votes change nothing",),
    ),
    Mutant(
        "acknowledgements of older terms count",
        "lb.raft.node:Node._refuse_stale",
        (
            (
                "if message.type in OF_LEADERS:",
                "if self._leading is not None and message.type is MessageType.APPEND_REPLY:\n"
                "        return self._leading.step(message)\n"
                "    if message.type in OF_LEADERS:",
            ),
        ),
        ("acknowledgements are of this term", *STAYS),
        first=160,
    ),
    Mutant(
        "the disk's answers are known by index only",
        f"{OUTBOX}.cut",
        (("if write.last is not None and write.last[0] >= index:", "if False:"),),
        ("stable is on the disk", *STAYS, PROMISES),
        (
            (
                "lb.raft.log:Log.made_sure",
                "assert self.term(index) == term == self._view.term(index)",
                "index = min(index, self.last, self._view.last)",
            ),
        ),
    ),
    Mutant(
        "answers to clients are left out of snapshots",
        "simulator.machine:Machine.save",
        (("in self.answers.items()", "in ()"),),
        ("client histories", SAFETY),
    ),
    Mutant(
        "what a snapshot holds is applied again after a restart",
        "lb.raft.node:Node.__init__",
        (("self._handed_to_apply = applied", "self._handed_to_apply = max(log.first - 1, 0)"),),
        (SAFETY, CORE),
        (
            (
                "lb.raft.node:Node.check",
                "assert self.applied_index <= self._handed_to_apply <= self.commit",
                "",
            ),
            ("lb.raft.node:Node._applicable", " or self.applied_index < self._handed_to_apply", ""),
        ),
    ),
    Mutant(
        "names are not synced",
        "lb.control.storage:Storage._sync_directory",
        (("self._files.sync_directory(self.path)", "pass"),),
        ("disks keep", CORE),
    ),
    Mutant(
        "writes are not synced",
        "lb.control.storage:Storage._sync",
        (("file.sync()", "pass"),),
        ("disks keep", CORE),
    ),
    Mutant(
        "expiry forwarded by an old leader",
        "simulator.leases:Landlord.expire",
        (("if node.role is not Role.LEADER:", "if not self.term:"),),
        (LAST,),
        (
            ("simulator.leases:Landlord.look", "self.clock.demote()", "pass"),
            ("simulator.leases:Landlord.look", "        self.term = 0\n", ""),
            ("lb.registry.machine:_expire", "if command.term != term:", "if False:"),
        ),
    ),
    Mutant(
        "a new leader lets leases run out that it knows nothing of",
        "lb.registry.leases:LeaseClock.promote",
        (("now + entry.ttl + extra", "now"),),
        (LAST, "a new leader gives leases their whole TTL"),
    ),
    Mutant(
        "a lease is renewed though its end is proposed",
        "lb.registry.leases:LeaseClock.renew",
        ((" or lease.claimed", ""),),
        (LAST, "liveness"),
        first=70,
    ),
    Mutant(
        "leases are taken over before an entry of the own term is applied",
        "simulator.leases:Landlord.look",
        ((" and machine.term == node.term", ""),),
        (LAST,),
        first=230,
    ),
    Mutant(
        "leases are known by their backend, not by number",
        "lb.registry.expiry:_still_leased",
        ((" and entry.lease == lease", ""),),
        (LAST,),
        first=70,
    ),
    Mutant(
        "the last active backend expires",
        "lb.registry.expiry:_others_active",
        (("return any(", "return True or any("),),
        ("the last active one stays",),
    ),
    Mutant(
        "the registry's dedupe table is left out of snapshots",
        "lb.registry.answers:Answers.from_plain",
        (("in plain.items()", "in ()"),),
        (SAFETY,),
    ),
    Mutant(
        "a failed sync is tried again",
        "simulator.real_disk:RealDisk.write",
        (("raise DiskFailedError from error", "self._storage.failed = None"),),
        ("a failed sync is the end", "disks keep"),
        first=150,
    ),
)


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Have the mutant in the place of the true code, for a while."""
    changes: dict[str, list[tuple[str, str]]] = {mutant.place: list(mutant.changes)}
    for place, old, new in mutant.more:
        changes.setdefault(place, []).append((old, new))
    kept: list[tuple[Any, str, Any]] = []
    try:
        for place, pairs in changes.items():
            owner, name, function, text = find(place)
            for old, new in pairs:
                assert text.count(old) == 1, f"{place} is not as `{mutant.name}` knows it: {old}"
                text = text.replace(old, new)
            made: dict[str, Any] = {}
            code = compile(text, f"<mutant of {place}>", "exec")
            exec(code, vars(importlib.import_module(place.partition(":")[0])), made)
            kept.append((owner, name, function))
            setattr(owner, name, made[name])
        yield
    finally:
        for owner, name, function in reversed(kept):
            setattr(owner, name, function)


def find(place: str) -> tuple[Any, str, Any, str]:
    """Return who has a function, its name, itself, and its text."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function = vars(owner)[name]
    return owner, name, function, textwrap.dedent(inspect.getsource(function))


def catch(mutant: Mutant, seeds_max: int = SEEDS_MAX) -> tuple[int, str, str] | None:
    """Return the first seed that shows the mutant, the rule that caught it, and the detail."""
    with planted(mutant):
        for seed in range(mutant.first, mutant.first + seeds_max):
            outcome = run(draw(seed))
            if outcome.rule:
                return seed, outcome.rule, outcome.detail
    return None


def main() -> int:
    """Run all, and print a table."""
    gc.disable()
    escaped = 0
    for mutant in MUTANTS:
        started = time.monotonic()
        caught = catch(mutant)
        seconds = time.monotonic() - started
        gc.collect()
        what = f"seed {caught[0]:3}, {caught[1]}" if caught else "NOT CAUGHT"
        right = caught is not None and caught[1] in mutant.rules
        escaped += not right
        note = "" if right or not caught else f"  <- not one of {mutant.rules}: {caught[2]}"
        print(f"{mutant.name:56} {what}  ({seconds:.1f} s){note}", flush=True)
    print(f"{len(MUTANTS) - escaped} of {len(MUTANTS)} caught within {SEEDS_MAX} seeds")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
