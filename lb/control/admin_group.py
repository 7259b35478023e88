"""The group, by HTTP: how it stands, who is in it, who leads it, and what to do after a disaster.

Everything here that changes something is done by the group itself, which also refuses it; judged
here is the form of what is asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Mapping
from dataclasses import asdict
from typing import Any, Final

from aiohttp import web
from pydantic_core import PydanticCustomError

from lb.config.group import MemberAddress
from lb.config.kinds import NAME
from lb.control.admin_guard import by_unix_socket, flag, read_object, respond
from lb.control.admin_writes import Writes, by_of
from lb.control.desk import Desk, GroupStanding
from lb.control.problems import Problem
from lb.registry import registry_from_plain

RESTORE_BYTES_MAX: Final = 64 << 20
RESTORE_BODY_SECONDS_MAX: Final = 60.0
ACT_SECONDS_MAX: Final = 20.0
LOST_MAX: Final = 16

Plain = dict[str, Any]


class GroupActs:
    """Handlers of `/v1/group` and what is below it."""

    def __init__(self, desk: Desk, writes: Writes) -> None:
        self._desk = desk
        self._writes = writes

    async def get(self, request: web.Request) -> web.Response:
        """How the group stands, seen from here."""
        return respond({"name": self._name(), **group_as_plain(self._desk.group.standing())})

    async def put_member(self, request: web.Request) -> web.Response:
        """Expect a new member; it comes in as a learner."""
        name = _name_in(request.match_info["name"])
        body = only(await read_object(request), "address")
        address = _member_address(body.get("address"))
        return await self._act(self._desk.group.add_member(name, address, self._by(request)))

    async def delete_member(self, request: web.Request) -> web.Response:
        """Take a member out for good."""
        name = _name_in(request.match_info["name"])
        force = flag(request, "force")
        return await self._act(self._desk.group.remove_member(name, self._by(request), force=force))

    async def transfer(self, request: web.Request) -> web.Response:
        """Hand leadership over, to somebody or to whoever is furthest."""
        to = only(await read_object(request), "to").get("to")
        if to is not None and not isinstance(to, str):
            raise Problem("bad-request", '"to" is the name of a member')
        by = self._by(request)
        return await self._act(self._desk.group.transfer(None if to is None else _name_in(to), by))

    async def found(self, request: web.Request) -> web.Response:
        """Found the group now, without those that have not answered."""
        only(await read_object(request))
        return await self._act(self._desk.group.found(self._by(request)))

    async def recover(self, request: web.Request) -> web.Response:
        """Go on from here alone; only for who is on this machine."""
        if not is_local(request):
            raise Problem(
                "forbidden",
                "a group is recovered from the survivor's own machine",
                "ask there, by the unix socket or a loopback address",
            )
        lost = only(await read_object(request), "lost").get("lost")
        if not isinstance(lost, list) or len(lost) > LOST_MAX:
            raise Problem("bad-request", '"lost" must be a list of the voters that are lost')
        names = tuple(_name_in(each) for each in lost)
        return await self._act(self._desk.group.recover(names, self._by(request)))

    async def ok_to_stop(self, request: web.Request) -> web.Response:
        """Whether the group has a quorum without this instance."""
        return respond(without_us(self._desk.group.standing(), self._name()))

    async def backup(self, request: web.Request) -> web.Response:
        """All that the registry holds; needs no quorum."""
        revision = self._desk.store.registry.revision
        named = f'attachment; filename="registry-{revision}.json"'
        return respond(self._desk.group.backup(), Content_Disposition=named)

    async def restore(self, request: web.Request) -> web.Response:
        """Make the registry what a backup says, in one revision."""
        content = await read_large(request)
        try:
            registry_from_plain(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Problem(
                "bad-request", f"this is no backup of a registry ({error!r})", "see lb group backup"
            ) from None
        return await self._writes.restore(request, content)

    async def _act(self, work: Awaitable[Plain]) -> web.Response:
        try:
            async with asyncio.timeout(ACT_SECONDS_MAX):
                return respond(await work)
        except TimeoutError:
            raise Problem(
                "unknown-outcome",
                f"the group has not answered within {ACT_SECONDS_MAX:.0f} s",
                "GET /v1/group shows what came of it",
            ) from None

    def _by(self, request: web.Request) -> Any:
        return by_of(request, self._name())

    def _name(self) -> str:
        return self._desk.standing().name


def group_as_plain(standing: GroupStanding) -> Plain:
    """Return the group as the design shows it."""
    return {
        "id": standing.id,
        "role": standing.role,
        "leader": standing.leader,
        "term": standing.term,
        "revision": standing.revision,
        "commit": standing.commit,
        "applied": standing.applied,
        "quorum": standing.quorum,
        "state": standing.state,
        "detail": standing.detail,
        "age_s": round(standing.age_s, 3),
        "waiting_for": list(standing.waiting_for),
        "members": [asdict(each) for each in standing.members],
    }


def without_us(standing: GroupStanding, own: str) -> Plain:
    """Say whether those voters that are up would be a quorum if this instance stopped."""
    voters = [each for each in standing.members if each.role == "voter"]
    needed = len(voters) // 2 + 1
    left = sum(each.live for each in voters if each.name != own)
    ok = standing.quorum and left >= needed
    if ok:
        reason = f"{left} of {len(voters)} voters stay up, and {needed} are a quorum"
    elif not standing.quorum:
        reason = f"the group has no quorum as it is ({standing.state})"
    elif len(voters) == 1:
        reason = "this is the only voter: nothing can be written while it is down"
    else:
        reason = f"only {left} of {len(voters)} voters would be up, and {needed} are a quorum"
    return {"ok": ok, "reason": reason, "voters": len(voters), "needed": needed, "left": left}


def is_local(request: web.Request) -> bool:
    """Whether the caller is on this machine: by the unix socket, or a loopback address."""
    if by_unix_socket(request):
        return True
    try:
        return ipaddress.ip_address((request.remote or "").partition("%")[0]).is_loopback
    except ValueError:
        return False


def only(body: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a body that says nothing but these."""
    for name in body:
        if name not in names:
            hint = f"there is {', '.join(names)}" if names else "it takes none"
            raise Problem("bad-request", f'"{name}" is not known here', hint)
    return body


async def read_large(request: web.Request) -> Plain:
    """Return the JSON object that is the body, which may be as large as a whole registry."""
    body = bytearray()
    try:
        async with asyncio.timeout(RESTORE_BODY_SECONDS_MAX):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > RESTORE_BYTES_MAX:
                    raise Problem(
                        "too-large", f"a backup may have at most {RESTORE_BYTES_MAX} bytes"
                    )
    except TimeoutError:
        raise Problem(
            "too-slow", f"the body did not come within {RESTORE_BODY_SECONDS_MAX:.0f} s"
        ) from None
    except ConnectionError:
        raise Problem("bad-request", "the connection ended before the body did") from None
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem("bad-request", f"the body is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise Problem("bad-request", "the body must be a JSON object")
    return plain


def _name_in(text: object) -> str:
    if isinstance(text, str) and NAME.fullmatch(text):
        return text
    raise Problem(
        "bad-request", f'"{text}" is no name of a member', "letters, digits, _ - . and at most 63"
    )


def _member_address(text: object) -> str:
    try:
        return MemberAddress().read(text)
    except PydanticCustomError as error:
        hint = str((error.context or {}).get("hint", ""))
        raise Problem("bad-request", f"address: {error.message()}", hint) from None
