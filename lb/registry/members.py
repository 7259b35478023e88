"""Who the members are, by name and address: what a change of members does to the registry.

Whether a change makes sense is judged by `lb.raft.members`, which counts votes by it. Here it
is only written down, for people and for those that must find each other.
"""

from __future__ import annotations

import json
from dataclasses import replace

from lb.registry.values import REMOVED_MAX, By, Changed, Member, Registry
from lb.registry.wire import UnknownCommandError

NOTE_LENGTH_MAX = 200  # Of a note that goes with a change: its entry has little room.


def encode_member(name: str, address: str, by: By, at: float) -> bytes:
    """Make the context of a change. Only `add` needs name and address."""
    cut = replace(by, note=by.note[:NOTE_LENGTH_MAX])
    plain = {"name": name, "address": address, "by": cut.to_plain(), "at": at}
    return json.dumps(plain, separators=(",", ":")).encode()


def change_member(registry: Registry, what: str, member: int, context: bytes) -> Registry:
    """
    Return the registry after a change: `add`, `promote` or `remove`. It takes one revision.

    UnknownCommandError: a change, or a context, that this version does not know.
    """
    name, address, stamp = _read(context, registry.revision + 1)
    members, removed = dict(registry.members), registry.removed
    match what:
        case "add":
            members[member] = Member(member, name, address, False, stamp)
        case "promote":
            before = members.get(member) or Member(member, name, address, False, stamp)
            members[member] = replace(before, voter=True, changed=stamp)
        case "remove":
            members.pop(member, None)
            removed = (*removed, member)[-REMOVED_MAX:]
        case _:
            raise UnknownCommandError(f'"{what}" is no change of members')
    return replace(registry, revision=registry.revision + 1, members=members, removed=removed)


def made_by(context: bytes) -> Changed:
    """Say by whom a change was made, and when; of one who was removed nothing else tells."""
    return _read(context, 0)[2]


def member_named(registry: Registry, name: str) -> Member | None:
    """Return the member of this name; of several, the one that came last."""
    named = [member for member in registry.members.values() if member.name == name]
    return named[-1] if named else None


def _read(context: bytes, revision: int) -> tuple[str, str, Changed]:
    try:
        plain = json.loads(context)
        stamp = Changed(By.from_plain(plain["by"]), revision, plain["at"])
        return plain["name"], plain["address"], stamp
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UnknownCommandError(f"no context of a change of members ({error!r})") from error
