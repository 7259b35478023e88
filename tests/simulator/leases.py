"""Backends that hold leases: who registers and renews them, who ends them, and what must hold.

A lease second is a fraction of the election timeout, so that leaders change within a lease.
The rules, by the names that a mutant is caught by:

- `leases last`: nothing expires, or is suspect, before a TTL has passed since it was registered
  or renewed, by the call that was answered. Whoever led then, and whoever leads now.
- `a new leader gives leases their whole TTL`: it proposes no end before.
- `the last active one stays`: no expiry leaves an upstream without an active backend.
- `liveness`: at the end whoever renews is there, and whoever does not is gone, or suspect.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lb.raft.messages import Role
from lb.registry import (
    By,
    Code,
    Command,
    ExpireLeases,
    Fields,
    LeaseClock,
    Outcome,
    PutBackend,
    Registry,
    RemoveBackend,
    RenewLease,
    Reply,
)
from lb.registry.leases import GATHER_SECONDS
from simulator.clients import No
from simulator.machine import UPSTREAM, encode_for_registry
from simulator.shadow import ViolationError

if TYPE_CHECKING:
    from lb.raft.node import Node
    from simulator.agenda import Agenda
    from simulator.machine import Machine
    from simulator.member import Member
    from simulator.plan import Plan
    from simulator.world import World

TTL = 5  # Lease seconds, the least that there is.


class Landlord:
    """A member's clock of leases, and what its driver owes to it."""

    def __init__(self, plan: Plan, agenda: Agenda) -> None:
        self.clock = LeaseClock()
        self.term = 0  # The one in which it leads and has taken over; else 0.
        self._plan = plan
        self._agenda = agenda
        self._since = 0.0

    def look(self, node: Node, machine: Machine) -> None:
        """Take over, follow, or step down; after every step of the node."""
        now = self._seconds(self._agenda.now)
        if self.term and (node.role is not Role.LEADER or node.term != self.term):
            self.term = 0
            self.clock.demote()
        leads = node.role is Role.LEADER and machine.term == node.term
        if leads and self.term != node.term:
            self.term, self._since = node.term, now
            extra = 2 * self._plan.election / self._plan.lease_second
            self.clock.promote(machine.registry, now, extra)
        elif self.term:
            self.clock.follow(machine.registry, now)

    def renew(self, member: Member, tenant: Tenant, attempt: int, key: str) -> None:
        """Extend a lease, then see whether this member still leads, and only then say so."""
        if not self.term:
            tenant.refused(attempt, No.NOT_DONE)
        elif self.clock.renew(UPSTREAM, key, self._seconds(self._agenda.now)):
            member.read(tenant, attempt, key, self.term)
        else:
            tenant.must_ask(attempt, member)

    def confirmed(self, tenant: Tenant, attempt: int, term: int) -> None:
        """Whoever was found to lead must be who extended it: nobody else knows of that."""
        if term == self.term:
            tenant.renewed(attempt)
        else:
            tenant.refused(attempt, No.NOBODY_KNOWS)

    def expire(self, node: Node, wall: float) -> bytes:
        """Return what to propose: a leader's business alone, and never passed on."""
        if node.role is not Role.LEADER:
            return b""
        now = self._seconds(self._agenda.now)
        due = self.clock.due(now)
        if not due:
            return b""
        if now < self._since + TTL:
            raise ViolationError("a new leader gives leases their whole TTL", str(due))
        return encode_for_registry(ExpireLeases(term=self.term, due=due, at=wall))

    def _seconds(self, now: int) -> float:
        return now / self._plan.lease_second


class Leases:
    """All tenants of a run, and what they were promised."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._until: dict[str, int] = {}  # By key: before this it must not expire.
        self._fell_at: dict[str, int] = {}  # By key: when it expired or became suspect.
        self._applied_to = 0
        rng = world.chance("tenants")
        self.tenants = [Tenant(number, world, rng) for number in range(1, world.plan.tenants + 1)]

    def start(self) -> None:
        """Let all come."""
        for tenant in self.tenants:
            tenant.start()

    def promise(self, key: str, until: int) -> None:
        """A tenant was told that its lease lasts."""
        self._until[key] = max(self._until.get(key, 0), until)

    def check_renewed(self, key: str, called: int) -> None:
        """A tenant was told that it was renewed by a call that it made then."""
        if self._fell_at.get(key, -1) >= called:
            raise ViolationError("leases last", f"{key} is told that it is renewed, and it is not")

    def forget(self, key: str) -> None:
        """A tenant wants to leave: it has no claim any more."""
        self._until.pop(key, None)

    def applied(self, index: int, command: Command | None, before: Registry, reply: Reply) -> None:
        """Look at what an entry did, when the first member applies it."""
        if index <= self._applied_to:
            return
        self._applied_to = index
        if isinstance(command, RenewLease | PutBackend) and reply.refusal is None:
            self._fell_at.pop(command.key, None)
        if not isinstance(command, ExpireLeases):
            return
        seen = self._world.tally.seen
        for change in reply.changes:
            seen["leases expired" if change.what == "removed" else "leases suspect"] += 1
            self._fell_at[change.key] = now = self._world.agenda.now
            early = self._until.get(change.key, 0) - now
            if early > 0:
                raise ViolationError("leases last", f"{change.key} at {index}, {early} early")
        backends = before.upstreams[UPSTREAM].backends if reply.changes else {}
        ended = {change.key for change in reply.changes if change.what == "removed"}
        active = {key for key, entry in backends.items() if entry.takes_traffic}
        if active and active <= ended:
            raise ViolationError("the last active one stays", f"at {index}: {sorted(ended)}")

    def missing(self, registry: Registry) -> str:
        """Say what is still to come before all has ended well."""
        backends = registry.upstreams[UPSTREAM].backends
        for tenant in self.tenants:
            entry = backends.get(tenant.key)
            if tenant.left:
                if entry is not None and not entry.suspect:
                    return f"{tenant.key} is not renewed, and does not expire"
            elif entry is None or entry.suspect:
                return f"{tenant.key} is renewed, and {'suspect' if entry else 'not there'}"
        return ""


class Tenant:
    """One backend's own process: registers it and renews, leaves, dies and comes back."""

    def __init__(self, number: int, world: World, rng: random.Random) -> None:
        self.number = number
        self.key = f"10.0.0.{number}:80"
        self.left = False  # When all is calm: it renews no more.
        self._world = world
        self._agenda = world.agenda
        self._second = world.plan.lease_second
        self._rng = rng
        self._registered = False
        self._renewing = False
        self._command: Command | None = None
        self._called = 0
        self._attempt = 0
        self._keys = 0

    def start(self) -> None:
        """Come up some time soon."""
        self._agenda.after(self._rng.randrange(self._second), self._next, self._attempt)

    def calm_down(self) -> None:
        """Half of them leave for good, without a word; the others renew to the end."""
        self.left = self.number % 2 == 0
        self._world.note(f"tenant {self.number} {'leaves' if self.left else 'stays'}")

    # --- What it does -------------------------------------------------------------------------

    def _next(self, attempt: int) -> None:
        if attempt != self._attempt or self.left:
            return
        choice = self._rng.random()
        if self._registered and not self._world.calm and choice < 0.15:
            self._die()
            return
        self._called = self._agenda.now
        self._renewing = self._registered and (choice < 0.75 or self._world.calm)
        if self._renewing:
            self._command = RenewLease(key=self.key, **self._stamp())
        elif self._registered and choice < 0.82:
            self._world.leases.forget(self.key)
            self._registered = False
            self._command = RemoveBackend(key=self.key, force=True, **self._stamp())
        else:
            self._keys += 1
            named = f"{self.number}.{self._keys}" if choice < 0.9 else None
            fields = Fields(ttl=TTL, weight=1 + self._keys % 2)
            self._command = PutBackend(
                key=self.key, fields=fields, idempotency_key=named, **self._stamp()
            )
        self._try()

    def _die(self) -> None:
        """Be dead for a while, then renew or register: often just when the lease runs out."""
        self._attempt += 1
        self._registered = self._rng.random() < 0.5
        seconds = TTL * 3 * self._rng.random()
        if self._rng.random() < 0.5:
            seconds = (TTL + GATHER_SECONDS) * (0.95 + 0.1 * self._rng.random())
        self._agenda.after(int(self._second * seconds), self._next, self._attempt)

    def _stamp(self) -> dict[str, Any]:
        return {"upstream": UPSTREAM, "by": By(token=f"tenant {self.number}"), "at": 0.0}

    def _try(self) -> None:
        assert self._command is not None
        self._attempt += 1
        wait = int(self._world.plan.election * (0.5 + self._rng.random()))
        self._agenda.after(wait, self._waited, self._attempt)
        desk = self._desk()
        if desk is None:
            return
        if self._renewing:
            desk.renew(self, self._attempt, self.key)
        else:
            self._write(desk)

    def _write(self, desk: Member) -> None:
        assert self._command is not None
        stamped = replace(self._command, at=desk.wall)
        desk.write(self, self._attempt, 0, encode_for_registry(stamped))

    def _desk(self) -> Member | None:
        """Return whom to ask: who leads the newest term, or just anyone, who may think it leads."""
        leader = self._world.leader()
        if leader is not None and self._rng.random() < (0.8 if self._renewing else 0.5):
            return leader
        running = [member for member in self._world.members if member.running]
        return self._rng.choice(running) if running else None

    def _waited(self, attempt: int) -> None:
        if attempt == self._attempt and not self.left:
            if self._agenda.now > self._called + TTL * self._second:
                self._next(attempt)
            else:
                self._try()

    # --- What it is told ----------------------------------------------------------------------

    def must_ask(self, attempt: int, desk: Member) -> None:
        """Hear that the leader may not renew by itself: the registry is asked."""
        if attempt == self._attempt:
            self._write(desk)

    def renewed(self, attempt: int) -> None:
        """Hear that the lease lasts a TTL from when this was asked, or longer."""
        if attempt == self._attempt:
            self._world.tally.seen["leases renewed"] += 1
            self._world.leases.check_renewed(self.key, self._called)
            self._promised()

    def replied(self, attempt: int, reply: Reply) -> None:
        """Hear what the registry says."""
        if attempt != self._attempt:
            return
        if reply.outcome is Outcome.REFUSED:
            assert reply.refusal is not None
            assert reply.refusal.code is Code.NOT_FOUND, reply.refusal
            self._registered = False
            self._later(0.1)
        elif isinstance(self._command, RemoveBackend):
            self._later(2.0)
        else:
            self._world.tally.seen["leases granted"] += not self._renewing
            self._registered = True
            self._promised()

    def refused(self, attempt: int, why: No) -> None:
        """Hear that a try came to nothing, or that nobody knows: try again, soon."""
        del why
        if attempt == self._attempt:
            self._attempt += 1
            pause = int(self._world.plan.election * (0.05 + 0.2 * self._rng.random()))
            self._agenda.after(pause, self._waited, self._attempt)

    def _promised(self) -> None:
        self._world.leases.promise(self.key, self._called + TTL * self._second)
        self._later(TTL / 3)

    def _later(self, seconds: float) -> None:
        self._attempt += 1
        pause = int(self._second * seconds * (0.5 + 0.5 * self._rng.random()))
        self._agenda.after(pause, self._next, self._attempt)
