"""What operators and other members ask of the group, answered on any instance.

Whatever only a leader can do is passed on to it: the methods between members, which are named
in `methods`, do there what the same call does here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from lb.control.desk import GroupStanding, GroupState, MemberStanding
from lb.control.desk import Role as RoleWord
from lb.control.duties import Duties
from lb.control.founding import after_disaster
from lb.control.group import TRANSFER_SECONDS_MAX, Group
from lb.control.peers import CallRefused, Claim, Method, PeerRefused, PeerTimeout, PeerUnreachable
from lb.control.replica import ELECTION_SECONDS, Replica
from lb.control.seat import Standing
from lb.control.store import NoQuorum, NotStored, RefusedError, UnknownOutcome
from lb.errors import AccordError
from lb.raft.messages import NOBODY, Role
from lb.registry import LEVEL, By, Member, RenewLease, member_named, registry_to_plain

ASK_SECONDS_MAX = 4.5
FOUND_SECONDS_MAX = 10.0

Plain = dict[str, Any]

ROLES: Mapping[Role, RoleWord] = {
    Role.LEADER: "leader",
    Role.FOLLOWER: "follower",
    Role.PRE_CANDIDATE: "candidate",
    Role.CANDIDATE: "candidate",
}


class GroupDesk:
    """`desk.GroupDesk`, over a `Group`."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._current_at = -math.inf

    # --- How things stand ---------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The newest term that we know of."""
        replica = self._group.replica
        return replica.node.term if replica else 0

    def standing(self) -> GroupStanding:
        """How the group looks from here."""
        group, replica = self._group, self._group.replica
        registry = group.registry
        state, detail = self._state()
        leader = registry.members.get(group.leader)
        return GroupStanding(
            id=registry.id,
            role=self._role(),
            leader=leader.name if leader else "",
            term=self.term,
            revision=registry.revision,
            commit=replica.node.commit if replica else 0,
            applied=replica.node.applied_index if replica else 0,
            quorum=self._quorum(),
            state=state,
            waiting_for=group.founding.waiting.for_,
            members=self._members(),
            detail=detail,
            age_s=self._age(),
            leader_changes=group.leader_changes,
            sync_seconds=replica.sync_seconds if replica else 0.0,
        )

    def _state(self) -> tuple[GroupState, str]:
        group = self._group
        if group.trouble is not None:
            return cast(GroupState, group.trouble.state), group.trouble.detail
        if group.replica is None:
            return "forming", group.founding.waiting.why
        if not self._quorum():
            refusals = group.peers.refusals.values() if group.peers else ()
            why = {
                f"{each.message} ({each.hint})" if each.code == "second" else each.message
                for each in refusals
            }
            told = group.stranger or "; ".join(sorted(why))
            return "no-quorum", f"there is no leader that could be reached{told and f': {told}'}"
        copies = group.peers.copies.told() if group.peers else ""
        return "ok", "; ".join(filter(None, (group.stranger, copies)))

    def _role(self) -> RoleWord:
        group, replica = self._group, self._group.replica
        if group.trouble is not None:
            return "removed" if group.trouble.state == "removed" else "damaged"
        if replica is None:
            return "forming"
        own = group.registry.members.get(replica.id)
        role = ROLES[replica.node.role]
        return "learner" if role == "follower" and own and not own.voter else role

    def _quorum(self) -> bool:
        """Whether a leader is known that was heard lately; a leader has heard a quorum itself."""
        group, replica = self._group, self._group.replica
        if replica is None or not replica.running or group.leader == NOBODY:
            return False
        if replica.leads:
            return True
        heard = replica.heard_at.get(group.leader, 0.0)
        return self._loop.time() - heard < 2 * ELECTION_SECONDS

    def _age(self) -> float:
        """Seconds since what we route by was last known to be what the group has agreed on."""
        replica = self._group.replica
        if replica is not None and replica.leads:
            self._current_at = self._loop.time()
        elif replica is not None and self._group.leader != NOBODY:
            heard = replica.heard_at.get(self._group.leader, -math.inf)
            self._current_at = max(self._current_at, heard)
        return round(self._loop.time() - max(self._current_at, self._group.kept_at), 3)

    def _members(self) -> tuple[MemberStanding, ...]:
        members = self._group.registry.members.values()
        return tuple(self._member(each) for each in sorted(members, key=lambda each: each.name))

    def _member(self, member: Member) -> MemberStanding:
        role: Literal["voter", "learner"] = "voter" if member.voter else "learner"
        shown = MemberStanding(member.name, member.address, role, member.id)
        group, replica = self._group, self._group.replica
        said = group.news.get(member.name, {})
        if replica is None:
            return shown
        progress = self.progress() if replica.leads else self._leaders_progress()
        match, contact = progress.get(member.name, (None, None))
        if member.id == replica.id:
            own = replica.node.ledger.log.stable
            return replace(
                shown,
                match=own,
                lag=self._lag(own),
                last_contact_ms=0,
                version=group.own_news().get("version", ""),
                config_hash=group.own_news().get("config_hash", ""),
                live=True,
            )
        mine = self._heard_ago(member.id)
        return replace(
            shown,
            match=match,
            lag=None if match is None else self._lag(match),
            last_contact_ms=contact if mine is None else mine,
            version=said.get("version", ""),
            config_hash=said.get("config_hash", ""),
            live=bool(said) and "error" not in said,
        )

    def _heard_ago(self, member: int) -> int | None:
        """Milliseconds since we heard a member; followers hear each other's pings and no more."""
        replica, peers = self._group.replica, self._group.peers
        met = peers.connected.get(member) if peers is not None else None
        heard = [] if met is None else [met.last_heard]
        if replica is not None and member in replica.heard_at:
            heard.append(replica.heard_at[member])
        return round((self._loop.time() - max(heard)) * 1000) if heard else None

    def _lag(self, match: int) -> int:
        replica = self._group.replica
        return max(replica.node.commit - match, 0) if replica else 0

    def progress(self) -> dict[str, tuple[int | None, int | None]]:
        """What we know, as the leader, of each member: how far its log is, and when heard (ms)."""
        replica = self._group.replica
        if replica is None or not replica.leads:
            return {}
        found: dict[str, tuple[int | None, int | None]] = {}
        for id_, peer in replica.status().peers.items():
            member = self._group.registry.members.get(id_)
            if member is not None:
                found[member.name] = (peer.match, self._heard_ago(id_))
        found[self._group.name] = (replica.node.ledger.log.stable, 0)
        return found

    def _leaders_progress(self) -> dict[str, tuple[int | None, int | None]]:
        for said in self._group.news.values():
            if said.get("progress"):
                return {name: (match, ago) for name, match, ago in said["progress"]}
        return {}

    # --- What operators ask -------------------------------------------------------------------

    async def confirm(self) -> None:
        """Return when the registry here is as new as any was at the call."""
        await self._group.member().confirm()

    async def add_member(self, name: str, address: str, by: By) -> Plain:
        """Invite an instance that waits to join: it asks to be taken in by itself."""
        group = self._group
        group.member()
        known = member_named(group.registry, name)
        if known is not None and known.address == address:
            return {"revision": group.registry.revision, "member": name, "state": "member"}
        if known is not None:
            raise RefusedError(
                "name-taken",
                f"the group has a member {name} at {known.address}",
                "remove it first, or give the new one another node.name",
            )
        leader = group.registry.members.get(group.leader)
        if group.peers is None or leader is None:
            raise NoQuorum("the group has no leader just now", "try again in a moment")
        try:
            invitation = {"group": group.registry.id, "leader": leader.address}
            said = await group.peers.call(address, "invite", invitation, FOUND_SECONDS_MAX)
        except (PeerUnreachable, PeerTimeout) as error:
            raise RefusedError(
                "not-found",
                f"no instance that could join answers at {address}: {error.message}",
                f'start one there with node.name = "{name}" and group.join = ["{leader.address}"]',
            ) from None
        except PeerRefused as error:
            raise RefusedError(error.code, error.message, error.hint) from None
        if said["name"] != name:
            raise RefusedError("conflict", f'the instance at {address} is "{said["name"]}"')
        return {"revision": group.registry.revision, "member": name, "state": "joining"}

    async def remove_member(self, name: str, by: By, *, force: bool) -> Plain:
        """Take a member out; one that leads hands over first, as nobody can tell its own end."""
        params = {"name": name, "force": force, "by": by.to_plain()}
        if self.standing().leader == name and len(self._group.registry.members) > 1:
            await self._by_leader("transfer", {"to": None, "by": by.to_plain()})
            # Both of us have to know of the new leader.
            await self._group.until(lambda: self.standing().leader not in ("", name), 1.0)
        try:
            return await self._by_leader("remove", params)
        except UnknownOutcome:
            gone = self._group
            if name == gone.name and await gone.until(lambda: gone.trouble is not None, 1.0):
                return {"revision": gone.registry.revision}  # That was us: we were cut off by it.
            raise

    async def transfer(self, to: str | None, by: By) -> Plain:
        """Hand leadership over."""
        return await self._by_leader("transfer", {"to": to, "by": by.to_plain()})

    async def renew(self, upstream: str, key: str, by: By) -> Plain:
        """Extend a lease."""
        params = {"upstream": upstream, "key": key, "by": by.to_plain()}
        return await self._by_leader("renew", params)

    async def found(self, by: By) -> Plain:
        """Found the group though not every listed member has answered."""
        group = self._group
        if group.replica is not None or group.trouble is not None:
            raise RefusedError("conflict", "this instance belongs to a group already")
        group.founding.now = True
        try:
            founded = await group.until(lambda: group.replica is not None, FOUND_SECONDS_MAX)
        finally:
            group.founding.now = False  # Not later on, when nobody looks.
        if not founded:
            waiting = group.founding.waiting
            why = waiting.why or f"waiting for {', '.join(waiting.for_)}"
            raise RefusedError("conflict", f"it could not be founded: {why}")
        return {"group": group.registry.id, "revision": group.registry.revision}

    async def recover(self, lost: tuple[str, ...], by: By) -> Plain:
        """Make what we have a new group of one. Workers go on meanwhile, and after."""
        group, replica = self._group, self._group.replica
        if replica is None or group.trouble is not None or group.seat is None:
            raise RefusedError("conflict", "this instance takes no part in a group")
        registry = replica.registry
        voters = {each.name for each in registry.members.values() if each.voter} - {group.name}
        if set(lost) != voters:
            raise RefusedError(
                "conflict",
                f"every other voter must be named as lost: {', '.join(sorted(voters)) or 'none'}",
            )
        up = {each.name for each in group.peers.connected.values()} if group.peers else set()
        if here := sorted(up & voters):
            raise RefusedError("conflict", f"{', '.join(here)} can be reached, so is not lost")
        seat = group.seat
        await group.end_replica()
        aside = await asyncio.to_thread(group.files.set_aside, "lost")
        try:
            await group.founding.begin_anew(after_disaster(registry))
        except AccordError:
            group.seat = seat
            await asyncio.to_thread(group.files.put_back, aside, seat)
            await group.begin()
            raise
        return {"group": group.registry.id, "revision": group.registry.revision}

    async def ask_all(self, method: str, params: Plain, seconds: float) -> Mapping[str, Plain]:
        """Ask every other member."""
        return await self._group.ask_all(method, params, seconds)

    def backup(self) -> Plain:
        """Return all that the registry holds."""
        return registry_to_plain(self._group.registry)

    async def _by_leader(self, method: str, params: Plain) -> Plain:
        """Do what only a leader can, here or there."""
        replica = self._group.member()
        if not replica.leads:
            return await self._group.ask_leader(method, params, ASK_SECONDS_MAX)
        return await self._own()[method](params)

    # --- What only a leader does --------------------------------------------------------------

    def _own(self) -> Mapping[str, Callable[[Plain], Awaitable[Plain]]]:
        return {
            "renew": self._renew,
            "remove": self._remove,
            "transfer": self._transfer,
        }

    def _leading(self) -> tuple[Replica, Duties]:
        replica, duties = self._group.replica, self._group.duties
        if replica is None or duties is None or not replica.leads:
            raise NoQuorum(f"{self._group.name} does not lead the group", "ask the leader")
        return replica, duties

    async def _renew(self, params: Plain) -> Plain:
        replica, duties = self._leading()
        upstream, key = params["upstream"], params["key"]
        entry = replica.registry.upstreams.get(upstream)
        backend = entry.backends.get(key) if entry else None
        if backend is None or backend.ttl is None:
            raise RefusedError(
                "not-found", f"{upstream} has no leased backend {key}", "register it again"
            )
        if not await duties.renew(upstream, key):
            by = By.from_plain(params["by"])
            now = self._group.wall()
            command = RenewLease(upstream=upstream, by=by, at=now, key=key)
            reply = await replica.propose(command)
            if reply.refusal is not None:
                raise RefusedError(
                    reply.refusal.code.value, reply.refusal.detail, reply.refusal.hint
                )
        return {"ttl": backend.ttl, "suspect": False}

    async def _remove(self, params: Plain) -> Plain:
        replica, duties = self._leading()
        # One that has just taken over changes nobody before its first entry is decided.
        await self._group.until(lambda: replica.up_to_date, ELECTION_SECONDS)
        await duties.remove(params["name"], By.from_plain(params["by"]), force=params["force"])
        return {"revision": replica.registry.revision}

    async def _transfer(self, params: Plain) -> Plain:
        replica, duties = self._leading()
        to = params["to"]
        wanted = member_named(replica.registry, to) if to else duties.successor()
        if wanted is None:
            raise RefusedError(
                "not-found", f"there is no member {to}" if to else "no other voter is up"
            )
        if wanted.id == replica.id:
            return {"leader": wanted.name}
        if not wanted.voter:
            raise RefusedError("conflict", f"{wanted.name} is a learner and can't lead")
        replica.transfer(wanted.id)
        patience = TRANSFER_SECONDS_MAX + ELECTION_SECONDS
        if await self._group.until(lambda: self._group.leader == wanted.id, patience):
            return {"leader": wanted.name}
        raise NoQuorum(f"{wanted.name} has not taken over in time", "look at `lb group status`")

    # --- What members ask each other ----------------------------------------------------------

    def methods(self) -> Mapping[str, Method]:
        """Return what the others may call, by name."""

        def by_name(name: str) -> Method:
            async def method(_: Claim, params: Plain) -> Plain:
                self._leading()
                return await self._own()[name](params)

            return _refusing(method)

        return {
            "who": _refusing(self._who),
            "join": _refusing(self._join),
            "invite": _refusing(self._invite),
            **{name: by_name(name) for name in self._own()},
        }

    def news(self) -> Plain:
        """What we say of ourselves beside version and config; see `Group.news`."""
        config = self._group.config()
        progress = [[name, *each] for name, each in self.progress().items()]
        return {
            "voter": config.voter if config else "auto",
            "level": LEVEL,
            "full": replica.full if (replica := self._group.replica) else False,
            "progress": progress,
            "hashes": self._group.agreement.to_plain(),
        }

    async def _who(self, _: Claim, __: Plain) -> Plain:
        group = self._group
        replica = group.replica
        leader = group.registry.members.get(group.leader)
        at = group.address if replica and replica.leads else leader.address if leader else ""
        seat = group.seat  # Whether or not it takes part just now.
        return {
            "name": group.name,
            "group": seat.group if seat and seat.standing is Standing.MEMBER else "",
            "leader": at,
        }

    async def _join(self, claim: Claim, params: Plain) -> Plain:
        replica, duties = self._leading()
        name, address, id_ = params["name"], params["address"], params["member"]
        if claim.name != name:
            raise RefusedError("forbidden", f'"{claim.name}" asks to join as "{name}"')
        now = replica.registry
        by = By(member=name, source="group")
        changed = replace(next(iter(now.members.values())).changed, by=by)
        await duties.add(Member(id_, name, address, voter=False, changed=changed), by)
        members = replica.registry.members.values()
        return {
            "group": replica.registry.id,
            "members": [[each.id, each.name, each.address] for each in members],
        }

    async def _invite(self, _: Claim, params: Plain) -> Plain:
        group = self._group
        if group.replica is not None or group.trouble is not None:
            raise RefusedError("conflict", f"{group.name} belongs to a group already")
        group.founding.invited = params["leader"]
        return {"name": group.name}


def _refusing(method: Method) -> Method:
    """Have what is wrong told to the caller by its code."""

    async def call(claim: Claim, params: Plain) -> Plain:
        try:
            return await method(claim, params)
        except (KeyError, TypeError, ValueError) as error:
            raise CallRefused("bad-request", f"it makes no sense: {error!r}", "") from None
        except AccordError as error:
            raise CallRefused(_code(error), error.message, error.hint) from None

    return call


def _code(error: AccordError) -> str:
    match error:
        case RefusedError():
            return error.code
        case UnknownOutcome():
            return "unknown-outcome"
        case NoQuorum() | NotStored():
            return "no-quorum"
        case _:
            return "conflict"
