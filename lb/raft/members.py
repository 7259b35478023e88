"""
Who the members are: changes of one at a time, and the configuration in force.

A change is in force from the moment its entry is in the log, committed or not. An entry that is
cut off takes its change with it, so what is in force is always what the log says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from lb.raft.messages import NOBODY, ConfState, Entry, Kind

VOTERS_MAX: Final = 7
LEARNERS_MAX: Final = 1000
CONTEXT_BYTES_MAX: Final = 4096

_FORM: Final = 1
_HEAD: Final = struct.Struct("<BBQ")  # form, what, member; the context follows


class Change(IntEnum):
    """What happens to one member. A voter is always a learner first."""

    ADD_LEARNER = 1
    PROMOTE = 2  # a learner becomes a voter
    REMOVE = 3


@dataclass(frozen=True, slots=True)
class ConfChange:
    """One change; `context` is the driver's: a name, an address."""

    what: Change
    member: int
    context: bytes = b""

    def encode(self) -> bytes:
        """Make the data of an entry."""
        return _HEAD.pack(_FORM, self.what, self.member) + self.context


class BadChangeError(ValueError):
    """Bytes that are no change, or a change that makes no sense for this configuration."""


def decode_change(data: bytes) -> ConfChange:
    """Read what `encode` made."""
    if not _HEAD.size <= len(data) <= _HEAD.size + CONTEXT_BYTES_MAX:
        raise BadChangeError("no change of members has this length")
    form, what, member = _HEAD.unpack_from(data)
    if form != _FORM or what not in set(Change) or member == NOBODY:
        raise BadChangeError("this is not a change of members")
    return ConfChange(Change(what), member, data[_HEAD.size :])


def conf_after(conf: ConfState, data: bytes) -> ConfState:
    """Return the configuration that an entry with this data makes of `conf`."""
    change = decode_change(data)
    member = frozenset({change.member})
    match change.what:
        case Change.ADD_LEARNER:
            if member <= conf.members:
                raise BadChangeError(f"{change.member} is a member already")
            after = ConfState(conf.voters, conf.learners | member)
        case Change.PROMOTE:
            if not member <= conf.learners:
                raise BadChangeError(f"{change.member} is no learner")
            after = ConfState(conf.voters | member, conf.learners - member)
        case _:
            if not member <= conf.members:
                raise BadChangeError(f"{change.member} is no member")
            after = ConfState(conf.voters - member, conf.learners - member)
    if not after.voters:
        raise BadChangeError("a group needs a voter")
    if len(after.voters) > VOTERS_MAX or len(after.learners) > LEARNERS_MAX:
        raise BadChangeError(f"at most {VOTERS_MAX} voters and {LEARNERS_MAX} learners")
    return after


class Members:
    """The configurations that the log goes through, from the one it begins with."""

    __slots__ = ("_steps",)

    def __init__(self, index: int, conf: ConfState) -> None:
        self._steps = [(index, conf)]  # Ascending; never empty.

    @property
    def in_force(self) -> ConfState:
        """Return what the last change in the log made of the group."""
        return self._steps[-1][1]

    @property
    def changed_at(self) -> int:
        """Return the index of that change: it is pending while this is above commit."""
        return self._steps[-1][0]

    def at(self, index: int) -> ConfState:
        """Return the configuration as of an entry."""
        for changed_at, conf in reversed(self._steps):
            if changed_at <= index:
                return conf
        raise AssertionError(f"asked for members as of {index}, which is forgotten")

    def may_campaign(self, member: int, commit: int) -> bool:
        """
        Whether a member has a vote, or had one until a change that is not committed yet.

        The second will not count its own vote, but it may be the only one whose log is complete
        enough to win, and so to commit the change by which it leaves.
        """
        if member in self.in_force.voters:
            return True
        return self.changed_at > commit and member in self.at(commit).voters

    def accepts(self, entries: Sequence[Entry]) -> bool:
        """Whether all changes among entries make sense where they are to be written."""
        conf: ConfState | None = None
        for entry in entries:
            if entry.kind is Kind.CONF:
                try:
                    # As of the first: what our log has from there on will be cut off.
                    conf = conf_after(conf or self.at(entries[0].index - 1), entry.data)
                except BadChangeError:
                    return False
        return True

    def append(self, entries: Iterable[Entry]) -> None:
        """Take in entries that the log took in."""
        for entry in entries:
            if entry.kind is Kind.CONF:
                assert entry.index > self.changed_at
                self._steps.append((entry.index, conf_after(self.in_force, entry.data)))

    def cut(self, index: int) -> None:
        """Forget what entries from `index` on had changed: they are written over."""
        while len(self._steps) > 1 and self._steps[-1][0] >= index:
            self._steps.pop()
        assert self._steps[-1][0] < index, "what was committed is never cut off"

    def restart(self, index: int, conf: ConfState) -> None:
        """Begin anew, from a snapshot."""
        self._steps = [(index, conf)]

    def compact(self, index: int) -> None:
        """Forget changes before the one that is in force at `index`."""
        while len(self._steps) > 1 and self._steps[1][0] <= index:
            del self._steps[0]
