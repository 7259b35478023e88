"""What a leader sees to beside the log: leases that end, members that come and go, full disks.

Everything here ends in an ordinary entry of the log, proposed by the leader itself and bound to
its term, so that nothing a former leader meant to do is ever done late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lb.control.chores import Chores
from lb.control.replica import ELECTION_SECONDS, Replica
from lb.control.store import NoQuorum, NotStored, RefusedError, UnknownOutcome
from lb.raft.members import VOTERS_MAX, Change
from lb.raft.messages import NOBODY
from lb.registry import LEVEL, By, ExpireLeases, Member, RaiseLevel, encode_member, member_named
from lb.registry.leases import LeaseClock

log = logging.getLogger(__name__)

LOOK_EVERY = 0.1  # Seconds between two looks at what there is to do,
REST = 1.0  # and between two while there is nothing, unless we are woken.
STALL_SECONDS = 0.5  # So much late, this process stood still, and nobody could renew a lease.
SILENT_ELECTIONS = 10  # Election timeouts that a member was not heard; then its name is free.


@dataclass(frozen=True, slots=True)
class Wish:
    """What a member says of itself: whether it wants a vote, and what it knows."""

    voter: bool | str  # True, False or "auto"
    level: int
    full: bool = False  # Its disk is: it should not lead.


class Duties:
    """A leader's; on other members it does nothing."""

    def __init__(
        self,
        replica: Replica,
        voters: int,
        own: str,
        wishes: Callable[[], Mapping[str, Wish]],
        wall: Callable[[], float],
    ) -> None:
        self._replica = replica
        self._voters = voters
        self._own = own
        self._wishes = wishes  # Of the other members that are up, by name.
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._leases = LeaseClock()
        self._term = 0  # The one whose leases we time.
        self._members: Mapping[int, Member] = {}  # As of the last look.
        self._rung: asyncio.Future[None] = self._loop.create_future()
        self._changing = asyncio.Lock()  # One change of members at a time.
        self._chores = Chores()
        # Apart: a change of members may wait long for its quorum, and leases are timed meanwhile.
        self._chores.begin(self._time_leases)
        self._chores.begin(self._see_to_members)

    async def close(self) -> None:
        """Stop."""
        await self._chores.close()

    def follow(self) -> None:
        """The registry has changed."""
        registry = self._replica.registry
        leased = self._leases.next_due() is not None
        if self._term:
            self._leases.follow(registry, self._loop.time())
        if (
            (self._replica.leads and not self._term)
            or registry.members is not self._members
            or (self._leases.next_due() is not None) != leased
        ):
            self._members = registry.members
            self._ring()

    def _ring(self) -> None:
        rung, self._rung = self._rung, self._loop.create_future()
        rung.set_result(None)

    async def _rest(self, *, busy: bool) -> float:
        """Wait until it is time for another look; return how long that may have taken."""
        pause = LOOK_EVERY if busy else REST
        await asyncio.wait({self._rung}, timeout=pause)
        return pause

    # --- Leases -------------------------------------------------------------------------------

    async def renew(self, upstream: str, key: str) -> bool:
        """Extend a lease by its whole time. False: only a `RenewLease` can decide that."""
        term = self._term
        if not term or not self._leases.renew(upstream, key, self._loop.time()):
            return False
        # Who only believes to lead has extended nothing; nor has who leads no more, though a
        # read that it passes on to the next leader is confirmed all the same.
        await self._replica.confirm()
        if not self._replica.leads or self._replica.node.term != term:
            raise NoQuorum("the group has another leader by now", "try again in a moment")
        return True

    async def _time_leases(self) -> None:
        while True:
            before = self._loop.time()
            pause = await self._rest(busy=self._leases.next_due() is not None)
            self._watch_term()
            if self._loop.time() > before + pause + STALL_SECONDS:
                self._leases.extend(self._loop.time())
            if self._term:
                with self._put_off():
                    await self._expire()

    async def _see_to_members(self) -> None:
        while True:
            await self._rest(busy=self._has_changes())
            if not self._replica.up_to_date:
                continue
            with self._put_off():
                await self._promote()
                await self._raise_level()
            if self._replica.full and self._replica.leads:
                self._hand_over()

    def _has_changes(self) -> bool:
        """Whether a vote, a new kind of command or the lead may have to be given to somebody."""
        if not self._replica.leads:
            return False
        registry = self._replica.registry
        voters = all(member.voter for member in registry.members.values())
        return self._replica.full or registry.level < LEVEL or not voters

    @contextmanager
    def _put_off(self) -> Iterator[None]:
        """What the group can't decide now is tried again at the next look."""
        try:
            yield
        except (NoQuorum, NotStored, UnknownOutcome, RefusedError) as error:
            log.debug("put off: %s", error.message)

    def _watch_term(self) -> None:
        """Begin to time leases when we lead and know all that was decided before us; or end."""
        term = self._replica.node.term if self._replica.up_to_date else 0
        if term == self._term:
            return
        self._leases.demote()
        self._term = term
        if term:
            self._leases.promote(self._replica.registry, self._loop.time(), ELECTION_SECONDS)

    async def _expire(self) -> None:
        """Propose the end of leases that are due, having seen that we still lead."""
        due_at = self._leases.next_due()
        if due_at is None or self._loop.time() < due_at:
            return
        await self._replica.confirm()
        due = self._leases.due(self._loop.time())
        if due and self._term:
            by = By(member=self._own, source="lease")
            command = ExpireLeases(by=by, at=self._wall(), term=self._term, due=due)
            await self._replica.propose(command, self._term)

    # --- Members ------------------------------------------------------------------------------

    async def _promote(self) -> None:
        """Give a vote to a learner that has caught up, while there are too few voters."""
        replica = self._replica
        members = replica.registry.members
        learners = [member for member in members.values() if not member.voter]
        if not learners or self._changing.locked():
            return
        voters = len(replica.node.conf.voters)
        peers = replica.status().peers
        wishes = self._wishes()
        for member in sorted(learners, key=lambda each: each.name):
            wish, peer = wishes.get(member.name), peers.get(member.id)
            if wish is None or peer is None or not peer.caught_up:
                continue
            wanted = wish.voter is True or (wish.voter == "auto" and voters < self._voters)
            if wanted and voters < VOTERS_MAX:
                async with self._changing:
                    by = By(member=self._own, source="group")
                    await self._decide(Change.PROMOTE, member, by)
                log.info("%s has caught up and has a vote now", member.name)
                return

    async def add(self, member: Member, by: By) -> None:
        """
        Take in a learner under a fresh id.

        RefusedError `name-taken`: a member of this name is there, and was heard lately. One
        that was not heard for long has lost its disk, or is being replaced: it is removed.
        """
        async with self._changing:
            before = member_named(self._replica.registry, member.name)
            if before is not None and before.id == member.id:
                return  # It asks again: our answer was lost.
            if member.id in self._replica.registry.removed:
                raise RefusedError(
                    "removed", "this id was removed from the group", "join under a fresh one"
                )
            if before is not None:
                self._require_silent(before)
                await self._decide(Change.REMOVE, before, by)
                log.warning("%s is replaced: its former self was not heard any more", before.name)
            await self._decide(Change.ADD_LEARNER, member, by)
        log.info("%s (%s) has joined", member.name, member.address)

    async def remove(self, name: str, by: By, *, force: bool) -> None:
        """Take a member out. RefusedError: unknown, or too few voters would be up."""
        async with self._changing:
            member = member_named(self._replica.registry, name)
            if member is None:
                raise RefusedError("not-found", f"the group has no member {name}")
            voters = self._replica.node.conf.voters
            if voters == {member.id}:
                raise RefusedError(
                    "conflict", f"{name} is the only voter", "there is no group then"
                )
            left = voters - {member.id}
            up = sum(1 for each in left if self._is_up(each))
            if not force and member.voter and up * 2 <= len(left):
                raise RefusedError(
                    "conflict",
                    f"without {name} only {up} of {len(left)} voters would be up: no quorum",
                    "bring the others up first, or repeat with force",
                )
            await self._decide(Change.REMOVE, member, by)
        log.info("%s has been removed", name)

    def _is_up(self, member: int) -> bool:
        return member == self._replica.id or self._silent_for(member) < ELECTION_SECONDS

    def _silent_for(self, member: int) -> float:
        return self._loop.time() - self._replica.heard_at.get(member, self._replica.led_since)

    def _require_silent(self, before: Member) -> None:
        patience = SILENT_ELECTIONS * ELECTION_SECONDS
        silent = self._silent_for(before.id)
        if before.id == self._replica.id or silent < patience:
            raise RefusedError(
                "name-taken",
                f"the name {before.name} is taken: that member was heard {silent:.0f} s ago",
                f"if it is gone for good, try again when it was silent for {patience:.0f} s; "
                "else give this instance another node.name",
            )

    async def _decide(self, what: Change, member: Member, by: By) -> None:
        context = encode_member(member.name, member.address, by, self._wall())
        await self._replica.change(what, member.id, context)

    # --- The rest -----------------------------------------------------------------------------

    async def _raise_level(self) -> None:
        """Let new kinds of commands be used, once every member knows them."""
        registry, wishes = self._replica.registry, self._wishes()
        if registry.level >= LEVEL:
            return
        others = [each.name for each in registry.members.values() if each.name != self._own]
        if all(name in wishes and wishes[name].level >= LEVEL for name in others):
            by = By(member=self._own, source="group")
            command = RaiseLevel(by=by, at=self._wall(), level=LEVEL)
            await self._replica.propose(command, self._replica.node.term)

    def successor(self, *, with_room: bool = False) -> Member | None:
        """Return the voter that is furthest, and up; None if there is no other."""
        replica = self._replica
        peers = replica.status().peers
        able = [
            (peers[id_].match, id_)
            for id_ in replica.node.conf.voters - {replica.id}
            if id_ in peers and self._is_up(id_) and not (with_room and self._is_full(id_))
        ]
        return replica.registry.members.get(max(able)[1]) if able else None

    def _is_full(self, member: int) -> bool:
        known = self._replica.registry.members.get(member)
        wish = self._wishes().get(known.name) if known else None
        return wish is not None and wish.full

    def _hand_over(self) -> None:
        """Let one lead whose disk has room; if none has, to pass it round would help nobody."""
        successor = self.successor(with_room=True)
        if successor is not None and self._replica.status().transferee == NOBODY:
            log.error("the disk is nearly full: %s is to lead the group", successor.name)
            self._replica.transfer(successor.id)
