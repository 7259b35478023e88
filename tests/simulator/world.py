"""One run: members, network, clients and faults. Chaos first, then calm: all must end well.

`run(plan)` returns what happened. Everything hangs on the plan alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice

from lb.raft.members import Change, conf_after
from lb.raft.messages import ConfState, Message, Role
from simulator.agenda import SECOND, Agenda, stream
from simulator.clients import Client, Desk, Notes
from simulator.disks import Disk, PlainDisk
from simulator.faults import Striker
from simulator.histories import Effect
from simulator.invariants import Invariants
from simulator.leases import Leases
from simulator.member import Member
from simulator.network import Network
from simulator.plan import MEMBERS_MAX, Plan
from simulator.real_disk import RealDisk
from simulator.revisions import check_revisions, initial
from simulator.shadow import Atlas, ViolationError
from simulator.tally import Tally
from simulator.wing_gong import Verdict, check

EVENTS_MAX = 400_000  # Of one run: more means that it goes round and round.
CALM_ELECTIONS_MAX = 150  # How many election timeouts the calm phase may need for everything.
LAST_CALLS = 2  # Each client's, when all is calm.
COMPLAINTS_MAX = 5


@dataclass(slots=True)
class Outcome:
    """What came of one run; `rule` names what did not hold, and is empty if all did."""

    plan: Plan
    tally: Tally
    rule: str = ""
    detail: str = ""
    trace: list[str] | None = None


class World:
    """Everything in one run. `trace`, if asked for, is a line for each event worth one."""

    def __init__(self, plan: Plan, trace: bool = False) -> None:
        self.plan = plan
        self.agenda = Agenda()
        self.tally = Tally(runs=1)
        self.trace: list[str] | None = [] if trace else None
        self.calm = False
        self.effects: list[Effect] = []
        self.effects_to = 0  # The index up to which the log's effects are known.
        founders = frozenset(range(1, plan.members + 1))
        learners = frozenset(range(plan.members + 1, plan.members + plan.learners + 1))
        start = ConfState(founders, learners)
        self.invariants = Invariants(Atlas(start, conf_after), self.tally)
        self.network = Network(
            self.agenda, plan.links, self.chance("network"), self.tally, self._arrive
        )
        self.members: list[Member] = []
        self._by_number: dict[int, Member] = {}
        self._next_number = 1
        self._ctx = 0
        for number in sorted(founders | learners):
            self.found(wants_vote=number in founders)
        self.leases = Leases(self)
        self.striker = Striker(self)
        notes = Notes(self.chance("clients"), self.tally)
        self.history = notes.history
        self.clients = [
            Client(number, plan, self, self.agenda, notes) for number in range(plan.clients)
        ]

    def chance(self, name: str) -> random.Random:
        """Return one part's own stream of chance."""
        return stream(self.plan.seed, name)

    def note(self, text: str) -> None:
        """Add a line to the trace, if there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.agenda.now / SECOND:10.6f} {text}")

    # --- Members ------------------------------------------------------------------------------

    def found(self, wants_vote: bool) -> Member:
        """Start a new member with an empty disk.

        Who joins later is told the first configuration too: it may get the log from its start.
        """
        member = Member(self, self._next_number, self.invariants.atlas.start.conf, wants_vote)
        self._next_number += 1
        self.members.append(member)
        self._by_number[member.number] = member
        member.start()
        return member

    def make_disk(self, number: int, conf: ConfState) -> Disk:
        """Return a new member's disk, empty but for the group it starts from."""
        chance = self.chance(f"disk {number}")
        if self.plan.real_disks:
            return RealDisk(number, conf, chance, self.tally)
        return PlainDisk(conf, chance, self.tally)

    def next_ctx(self) -> bytes:
        """Return a number for a request that was never used before, not even by another life."""
        self._ctx += 1
        return b"%d" % self._ctx

    def leader(self) -> Member | None:
        """Return who leads the newest term, among those that run."""
        found: Member | None = None
        for member in self.members:
            if member.node is None or member.node.role is not Role.LEADER:
                continue
            if found is None or found.node is None or member.node.term > found.node.term:
                found = member
        return found

    def desks(self) -> list[Desk]:
        """Return the members that clients may ask."""
        return [member for member in self.members if member.running and not member.leaving]

    def _arrive(self, message: Message) -> None:
        member = self._by_number.get(message.to)
        if member is not None:
            member.receive(message)

    # --- Membership: what an operator does ----------------------------------------------------

    def conf(self) -> ConfState:
        """Return the configuration of whoever's log is the newest, committed or not."""
        places = [member.shadow.log.last for member in self.members]
        return max(places, key=lambda place: (place.term, place.index)).conf

    def gone(self) -> set[int]:
        """Return members that will never come back, or will soon be gone."""
        return {member.number for member in self.members if member.gone or member.doomed}

    def may_lose(self, target: Member) -> bool:
        """Whether the group can afford to lose a disk for good: it replaces one before the next."""
        # One that is about to be removed is as good as lost: two at once may be a quorum.
        going = self.gone() | {member.number for member in self.members if member.leaving}
        confs = [member.shadow.log.last.conf for member in self.members]
        if any(going & (conf.voters | conf.learners) for conf in confs):
            return False
        return all(
            target.number not in conf.voters or len(conf.voters) >= 3
            for conf in [*confs, self.invariants.committed[-1].conf]
        )

    def replace(self, target: Member, delay: int) -> None:
        """Lose a member's disk; its machine comes back as a new member that joins."""
        target.lose()
        self.agenda.after(delay, self._join_in_place_of, target)

    def _join_in_place_of(self, target: Member) -> None:
        self.found(target.wants_vote)

    def grow(self, voter: bool) -> bool:
        """Start a member more."""
        if sum(not member.gone and not member.leaving for member in self.members) >= MEMBERS_MAX:
            return False
        self.found(voter)
        return True

    def shrink(self, target: Member) -> bool:
        """Have a member removed, unless too few would be left."""
        staying = [m for m in self.members if not m.gone and not m.leaving and m.wants_vote]
        if target.leaving or (target in staying and len(staying) <= 1) or self.gone():
            return False
        target.leaving = True
        return True

    def _administer(self) -> None:
        """Look at what the leader's configuration is and at what it should be; take one step."""
        self.agenda.after(self.plan.election // 2, self._administer)
        leader = self.leader()
        if leader is None or leader.node is None or leader.paused:
            return
        conf = leader.shadow.log.last.conf
        inside = conf.members
        staying = [member for member in self.members if not member.gone and not member.leaving]
        gone = [m.number for m in self.members if m.gone and m.number in inside]
        outside = [m.number for m in staying if m.number not in inside]
        rising = [m.number for m in staying if m.wants_vote and m.number in conf.learners]
        leaving = [m.number for m in self.members if m.leaving and m.number in inside]
        for what, numbers in (
            (Change.REMOVE, gone),
            (Change.ADD_LEARNER, outside),
            (Change.PROMOTE, rising),
            (Change.REMOVE, leaving),
        ):
            if numbers:
                leader.change(what, numbers[0])
                return

    # --- A run --------------------------------------------------------------------------------

    def run(self) -> None:
        """Chaos, then calm, then judgement; ViolationError says what did not hold."""
        plan = self.plan
        for fault in plan.faults:
            self.agenda.at(fault.at, self.striker.strike, fault)
        self.agenda.after(plan.election // 2, self._administer)
        for client in self.clients:
            client.start(-(-plan.calls // plan.clients))
        self.leases.start()
        while self.agenda.now < plan.chaos:
            self._step()
        self._calm_down()
        deadline = self.agenda.now + CALM_ELECTIONS_MAX * plan.election
        while (missing := self._missing()) and self.agenda.now < deadline:
            until = self.agenda.now + plan.election
            while self.agenda.now < until:
                self._step()
        if missing:
            raise ViolationError("liveness", missing)
        self._judge()

    def _step(self) -> None:
        self.agenda.step()
        if self.agenda.events > EVENTS_MAX:
            raise ViolationError("liveness", f"{EVENTS_MAX} events, and no end")

    def _calm_down(self) -> None:
        self.note("calm")
        self.calm = True
        self.network.calm_down()
        for member in self.members:
            member.calm_down()
        for tenant in self.leases.tenants:
            tenant.calm_down()
        for client in self.clients:
            client.left = 0
            client.start(LAST_CALLS)

    def _missing(self) -> str:
        """Say what is still to come before all has ended well."""
        leader = self.leader()
        if leader is None or leader.node is None:
            return "no leader"
        conf = leader.shadow.log.last.conf
        staying = [member for member in self.members if not member.gone and not member.leaving]
        wanted = frozenset(member.number for member in staying)
        voters = frozenset(member.number for member in staying if member.wants_vote)
        if (conf.voters, conf.voters | conf.learners) != (voters, wanted):
            return f"configuration is {conf}, voters {voters} of {wanted} wanted"
        if any(client.call is not None or client.left for client in self.clients):
            calls = [str(client.call) for client in self.clients if client.call is not None]
            return f"calls without an answer: {calls}"
        for member in self.members:
            if member.number not in wanted:
                continue
            if member.node is None or member.shadow.applied != self.invariants.commit:
                return (
                    f"{member.number} applied {member.shadow.applied} of {self.invariants.commit}"
                )
            if member.shadow.log.last is not leader.shadow.log.last:
                return f"{member.number} ends at {member.shadow.log.last}"
        return self.leases.missing(leader.machine.registry)

    def learn_effect(self, index: int, effect: Effect | None) -> None:
        """Note what an entry did, when the first member applies it."""
        if index == self.effects_to + 1:
            self.effects_to = index
            if effect is not None:
                self.effects.append(effect)

    def _judge(self) -> None:
        """Look at what clients were told."""
        complaints = list(islice(check_revisions(self.history, self.effects), COMPLAINTS_MAX))
        if complaints:
            raise ViolationError("client histories", "; ".join(complaints))
        self.tally.seen["histories checked by revision"] += 1
        for key, calls in self.history.by_key().items():
            verdict = check(calls, initial(key))
            self.tally.seen[f"histories {verdict.value}"] += 1
            if verdict is Verdict.NOT:
                raise ViolationError("linearizability", f"of {key}: {list(map(str, calls))}")


def run(plan: Plan, trace: bool = False) -> Outcome:
    """Run a plan to its end or to the first thing that does not hold."""
    world = World.__new__(World)
    try:
        world.__init__(plan, trace)  # type: ignore[misc]  # What it holds is wanted if it fails.
        world.run()
    except AssertionError as error:  # The core's own assertions are invariants too.
        rule = error.rule if isinstance(error, ViolationError) else "assertion of the core"
        outcome = Outcome(plan, world.tally, rule, describe(error), world.trace)
    else:
        outcome = Outcome(plan, world.tally, trace=world.trace)
    outcome.tally.events += world.agenda.events
    return outcome


def describe(error: AssertionError) -> str:
    """Return an assertion's text, or where it stands if it has none."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    code = f" ({place.tb_frame.f_code.co_qualname}:{place.tb_lineno})" if place else ""
    return f"{error}{code}"
