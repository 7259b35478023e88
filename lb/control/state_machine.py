"""What the log's entries do: to the registry, one after the other, alike on every member.

An entry that this version can't read ends the applying. Passing over it would leave this member
with another registry than the rest, and nobody would know.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import orjson

from lb.errors import AccordError, StartError
from lb.raft.members import BadChangeError, Change, decode_change
from lb.raft.messages import Entry, Kind
from lb.registry import (
    By,
    Command,
    Registry,
    Reply,
    apply,
    change_member,
    made_by,
    registry_from_plain,
    registry_to_plain,
)
from lb.registry.wire import UnknownCommandError, decode_command

STATE_FORM = 1
STATE_BYTES_MAX = 256 << 20  # Unpacked.

CHANGES = {Change.ADD_LEARNER: "add", Change.PROMOTE: "promote", Change.REMOVE: "remove"}


class CannotApplyError(AccordError):
    """This version does not know an entry: nothing after it may be applied here either."""


class BadStateError(StartError):
    """The state in a snapshot is none that this version reads."""


@dataclass(frozen=True, slots=True)
class Applied:
    """
    What one entry did. `registry` is the one after it.

    `command` and `reply` are those of an ordinary entry; `member_change` is `add`, `promote` or
    `remove`, `member` the name that it is about, and `by`, `at` whose change it was and when.
    `changed`: it took a revision. `replayed`: it was known to be committed before this start.
    """

    index: int
    term: int
    registry: Registry
    changed: bool = False
    command: Command | None = None
    reply: Reply | None = None
    member_change: str = ""
    member: str = ""
    by: By | None = None
    at: float = 0.0
    replayed: bool = False

    @property
    def revision(self) -> int:
        """The registry's revision after it."""
        return self.registry.revision


class StateMachine:
    """The registry as of an index of the log; up to `replayed_to` all was applied before."""

    def __init__(self, registry: Registry, replayed_to: int = 0) -> None:
        self.registry = registry
        self._replayed_to = replayed_to

    def apply(self, entry: Entry) -> Applied:
        """Apply the next entry. CannotApplyError: it is not known here, and nothing changed."""
        try:
            applied = self._apply(entry)
        except (UnknownCommandError, BadChangeError) as error:
            raise CannotApplyError(
                f"entry {entry.index} holds what this version does not know: {error}",
                "upgrade this instance",
            ) from error
        if entry.index <= self._replayed_to:
            return replace(applied, replayed=True)
        return applied

    def _apply(self, entry: Entry) -> Applied:
        before = self.registry
        match entry.kind:
            case Kind.NOOP:
                return Applied(entry.index, entry.term, before)
            case Kind.CONF:
                change = decode_change(entry.data)
                what = CHANGES[change.what]
                after = change_member(before, what, change.member, change.context)
                made = made_by(change.context)
                self.registry = after
                member = after.members.get(change.member) or before.members.get(change.member)
                return Applied(
                    entry.index,
                    entry.term,
                    after,
                    True,
                    member_change=what,
                    member=member.name if member else "",
                    by=made.by,
                    at=made.at,
                )
            case Kind.NORMAL:
                command = decode_command(entry.data)
                self.registry, reply = apply(before, command, entry.term)
                after = self.registry
                changed = after.revision != before.revision
                return Applied(entry.index, entry.term, after, changed, command, reply)


def encode_state(registry: Registry) -> bytes:
    """Make the bytes of a snapshot."""
    return bytes([STATE_FORM]) + zlib.compress(orjson.dumps(registry_to_plain(registry)), 1)


def decode_state(data: bytes) -> Registry:
    """Read them back; BadStateError if this version can't."""
    if not data or data[0] != STATE_FORM:
        raise BadStateError(
            f"a snapshot of form {data[0] if data else 'none'}; this version reads {STATE_FORM}",
            "start the version that wrote it",
        )
    try:
        unpacker = zlib.decompressobj()
        body = unpacker.decompress(data[1:], STATE_BYTES_MAX)
        if unpacker.unconsumed_tail:
            raise BadStateError(f"a state of more than {STATE_BYTES_MAX} bytes")
        return registry_from_plain(orjson.loads(body))
    except (zlib.error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadStateError(f"a snapshot that holds no registry: {error!r}") from error
