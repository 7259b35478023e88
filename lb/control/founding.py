"""How this instance gets its place: by founding a group, or by joining one.

The rule is in `forming`; here is the asking, and what comes of it on the disk. It ends as soon
as there is a place, and traffic never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lb.config.schema import Group as GroupConfig
from lb.control.disk import Disk
from lb.control.forming import Answer, Found, Join, Wait, decide
from lb.control.peers import PeerRefused, Peers, PeerTimeout, PeerUnreachable
from lb.control.replica import Replica
from lb.control.seat import Seat, SeatFiles, Standing, new_group, new_member
from lb.control.store import REGISTRY_FILE, read_registry_file
from lb.errors import AccordError
from lb.registry import By, Changed, Member, Registry

log = logging.getLogger(__name__)

ASK_SECONDS_MAX = 2.0  # For one answer to `who`.
ASK_EVERY = 0.5
JOIN_SECONDS_MAX = 15.0  # Two changes of members may be decided meanwhile.
REVISION_LEAP = 1_000_000  # After a disaster: no revision is ever given twice.


class Place(Protocol):
    """What this has to do with: a `Group`. `begin` takes part, from what the log holds."""

    name: str
    config: Callable[[], GroupConfig | None]
    wall: Callable[[], float]
    files: SeatFiles
    seat: Seat | None
    kept: Registry | None
    replica: Replica | None
    peers: Peers | None

    @property
    def address(self) -> str: ...

    async def begin(self) -> None: ...


class Founding:
    """The time before an instance has a place in a group; and after a disaster, again."""

    def __init__(self, group: Place, data_dir: str | Path) -> None:
        self.waiting = Wait()
        self.now = False  # An operator said: found, whoever is missing.
        self.invited = ""  # The address of a leader who wants us.
        self._group = group
        self._folder = Path(data_dir)

    async def found(self, kept: Registry | None) -> None:
        """Found a group, of what this instance has: its last good registry, or nothing."""
        before = kept or await asyncio.to_thread(read_registry_file, self._folder)
        if before is None:
            before = Registry(id=new_group())
        elif before is kept:
            log.warning("the log is gone: founding anew from the last good registry")
            before = after_disaster(before)
        await self.begin_anew(before)

    async def begin_anew(self, before: Registry) -> None:
        """Make a registry that of a new group, whose one member we are."""
        group, member = self._group, new_member()
        stamp = Changed(By(member=group.name, source="group"), before.revision, group.wall())
        own = Member(member, group.name, group.address, voter=True, changed=stamp)
        registry = replace(before, members={member: own}, removed=())
        group.seat = await asyncio.to_thread(group.files.found, before.id, registry, member)
        await group.begin()
        await asyncio.to_thread(self._set_aside_old_registry)
        if group.config() is not None:
            log.info("founded group %s", before.id)

    def _set_aside_old_registry(self) -> None:
        old = self._folder / REGISTRY_FILE
        if old.exists():
            try:
                Disk().rename(old, old.with_suffix(".taken-over"))
            except OSError as error:
                log.warning("%s is of no more use and cannot be moved: %s", old, error)

    async def run(self) -> None:
        """Ask the others until it is clear what to do, then found or join."""
        while self._group.replica is None:
            try:
                await self._look_around()
            except AccordError as error:
                self._wait(Wait(why=f"{error.message}; {error.hint}"))
            if self._group.replica is None:
                await asyncio.sleep(ASK_EVERY)
        self.waiting = Wait()

    async def _look_around(self) -> None:
        group, config = self._group, self._group.config()
        assert config is not None, "an instance alone has nobody to ask"
        answers = await self._ask_who(config)
        decision = decide(group.name, config.members, tuple(config.join), answers)
        if self.now and not any(answer.group for answer in answers.values()):
            decision = Found()  # Never beside a group that is there, even without a leader.
        match decision:
            case Found():
                await self.found(group.kept)
            case Join():
                await self._join(decision)
            case Wait():
                self._wait(decision)

    def _wait(self, decision: Wait) -> None:
        if decision != self.waiting:
            why = f": {decision.why}" if decision.why else ""
            log.info("forming a group: waiting for %s%s", ", ".join(decision.for_) or "you", why)
        self.waiting = decision

    async def _ask_who(self, config: GroupConfig) -> dict[str, Answer]:
        """Ask every address that the file names, all at once."""
        addresses = {
            address for name, address in config.members.items() if name != self._group.name
        }
        addresses |= set(config.join) | ({self.invited} if self.invited else set())
        answers: dict[str, Answer] = {}

        async def take(address: str) -> None:
            answer = await self.ask(address)
            if answer is not None:
                answers[address] = answer

        await asyncio.gather(*(take(address) for address in sorted(addresses)))
        return answers

    async def _join(self, decision: Join) -> None:
        """Ask the leader to be taken in, under an id that nobody has had."""
        group = self._group
        if group.seat is None:
            group.seat = Seat("", new_member(), Standing.JOINING)
            await asyncio.to_thread(group.files.write, group.seat)
        params = {"name": group.name, "address": group.address, "member": group.seat.member}
        try:
            assert group.peers is not None
            said = await group.peers.call(decision.leader, "join", params, JOIN_SECONDS_MAX)
        except PeerRefused as error:
            if error.code == "removed":  # Of a former try, which was given up on meanwhile.
                group.seat = None
            self._wait(Wait((decision.leader,), f"{error.message}; {error.hint}"))
            return
        except (PeerUnreachable, PeerTimeout) as error:
            self._wait(Wait((decision.leader,), error.message))
            return
        seat = replace(group.seat, group=said["group"])
        group.seat = await asyncio.to_thread(group.files.join, seat)
        await group.begin()
        others = [each for each in said["members"] if each[0] != seat.member]
        group.peers.meet({id_: (name, address) for id_, name, address in others})
        log.info("joined group %s", seat.group)

    async def ask(self, address: str) -> Answer | None:
        """Ask an instance which group it holds; None if it does not answer."""
        assert self._group.peers is not None
        try:
            said = await self._group.peers.call(address, "who", {}, ASK_SECONDS_MAX)
        except PeerRefused as error:
            log.debug("%s: %s", address, error.message)
            return None
        except (PeerUnreachable, PeerTimeout):
            return None
        return Answer(said["name"], said["group"], said["leader"])


def after_disaster(registry: Registry) -> Registry:
    """Return it as a new group's: no revision that may have been given is given again."""
    return replace(registry, id=new_group(), revision=registry.revision + REVISION_LEAP)
