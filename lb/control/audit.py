"""
The audit log: one line on every member for each write that the group agreed on, and by whom.

It is written where the write is applied, so that no member can be left out of it, and a member
that was away writes what it missed when it catches up. After a restart the last lines may come
once more (how far the log was committed is written down with the next entry): revision and time
are in each, and say so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, Protocol

from lb.control.reloader import in_one_line
from lb.registry import (
    By,
    Change,
    Command,
    ExpireLeases,
    MoveMember,
    RaiseLevel,
    Registry,
    RemoveUpstream,
    RenewLease,
    Reply,
    Restore,
)

LINE_MAX: Final = 2_000  # Characters of one line.
NOTE_MAX: Final = 200  # Of these the note.

log = logging.getLogger("lb.audit")
log.setLevel(logging.INFO)  # Whatever `log.level` is: who wants no audit log filters it out.

MEMBERS: Final = {
    "add": "member {} added, as a learner",
    "promote": "member {} votes from now on",
    "remove": "member {} removed",
}


class Applied(Protocol):
    """What an entry of the log did; see `state_machine`."""

    @property
    def registry(self) -> Registry: ...

    @property
    def command(self) -> Command | None: ...

    @property
    def reply(self) -> Reply | None: ...

    @property
    def member_change(self) -> str: ...

    @property
    def member(self) -> str: ...

    @property
    def by(self) -> By | None: ...

    @property
    def at(self) -> float: ...

    @property
    def replayed(self) -> bool: ...

    @property
    def revision(self) -> int: ...


def write_down(applied: Applied) -> None:
    """Write the line of an entry that changed the revision; once, and not at each start."""
    if not applied.replayed:
        log.info("%s", line_of(applied))


def line_of(applied: Applied) -> str:
    """Say what was written, at which revision, by whom, and why."""
    command, reply = applied.command, applied.reply
    if command is not None and reply is not None:
        what, by, at = _in_words(command, reply, applied.registry), command.by, command.at
    else:
        what = MEMBERS[applied.member_change].format(applied.member)
        by, at = applied.by or By(source="group"), applied.at
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at else ""
    tail = f"; revision {applied.revision}{when and f' at {when}'}, by {_whom(by)}"
    room = LINE_MAX - len(tail)
    what = f"audit: {what}"
    return (what if len(what) <= room else f"{what[: room - 3]}...") + tail


def asker(by: By) -> str:
    """Say who asked for what is no write, and which way: `ops, by api`, or the way alone."""
    return f"{by.token}, by {by.source}" if by.token else by.source


def _whom(by: By) -> str:
    who = by.token or ("this machine's operator" if by.source == "api" else by.source)
    note = f": {by.note[:NOTE_MAX]}" if by.note else ""
    way = f" ({by.source})" if by.token or by.source == "api" else ""
    return f"{who}{f' on {by.member}' if by.member else ''}{way}{note}"


def _in_words(command: Command, reply: Reply, registry: Registry) -> str:
    match command:
        case RaiseLevel():
            return f"feature level {command.level}"
        case MoveMember():
            member = registry.members[command.member]
            return f"{member.name} is at {member.address or 'no address'} now"
        case RemoveUpstream():
            return f"{command.upstream}: forgotten"
        case RenewLease():
            return f"{command.upstream}: {command.key} has its lease anew"
        case Restore():
            head = "restored from a backup: "
        case ExpireLeases():
            head = "nobody renewed: "
        case _:
            head = f"{command.upstream}: "
    words = list(_changes_in_words(command, reply, registry))
    return head + (in_one_line(words) if words else "what its file says was taken down")


def _changes_in_words(command: Command, reply: Reply, registry: Registry) -> Iterator[str]:
    for change in reply.changes:
        name = f"{change.upstream} " if change.upstream and not command.upstream else ""
        yield name + change_in_words(change, change.upstream or command.upstream, registry)


def change_in_words(change: Change, name: str, registry: Registry) -> str:
    """Say what became of one backend."""
    upstream = registry.upstreams.get(name)
    entry = upstream.backends.get(change.key) if upstream is not None else None
    if entry is None or change.what != "changed":
        return f"{change.key} {change.what}"
    if change.fields == ("suspect",):
        return f"{change.key} is {'suspect, and kept' if entry.suspect else 'no longer suspect'}"
    plain = entry.to_plain()
    plain["labels"] = " ".join(f"{label}={text}" for label, text in entry.labels.items()) or "none"
    said = ", ".join(f"{field} {plain.get(field)}" for field in change.fields)
    return f"{change.key} now has {said}"
