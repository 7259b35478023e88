"""What may be asked of the registry, and what it answers.

Commands are plain values: they travel through a log and are applied again after a restart, so
each holds all that its outcome depends on, the time included. `command_to_plain` and
`command_from_plain` are their JSON forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Literal

from lb.model import State
from lb.registry.values import LEVEL, By, Entry, Plain, SaidList, digest, said_from_plain

IfMatch = tuple[int, ...] | Literal["*"] | None
Due = tuple[str, str, int]  # Upstream, key of a backend, generation of its lease.

LEASES = By(source="lease")  # By whom backends end that nobody renews.


@dataclass(frozen=True, slots=True)
class Fields:
    """
    What a write says of a backend; None is left unsaid.

    `labels` of a PATCH are merged, and one that is None is taken away.
    """

    address: str | None = None
    weight: int | None = None
    state: State | None = None
    backup: bool | None = None
    labels: Mapping[str, str | None] | None = None
    ttl: float | None = None

    def to_plain(self) -> Plain:
        """Only what is said: a command of a thousand backends stays small."""
        plain: Plain = {}
        for name in ("address", "weight", "backup", "ttl"):
            if (value := getattr(self, name)) is not None:
                plain[name] = value
        if self.state is not None:
            plain["state"] = self.state.value
        if self.labels is not None:
            plain["labels"] = dict(self.labels)
        return plain

    @classmethod
    def from_plain(cls, plain: Plain) -> Fields:
        known = dict(plain)
        if "state" in known:
            known["state"] = State(known["state"])
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """
    Common to all commands. `upstream` is empty where one is about no single upstream.

    `if_match` holds the revisions one of which must be the upstream's or the backend's; an
    empty tuple matches nothing, `"*"` whatever exists. `min_active` is the share of active
    backends that the proposer's config wants kept. `force` passes both that and `would-empty`.
    """

    kind: ClassVar[str]

    upstream: str
    by: By
    at: float
    force: bool = False
    min_active: float = 0.0
    if_match: IfMatch = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBackend(Command):
    """Add a backend, or replace one: what is unsaid gets its default, but `state` is kept."""

    kind: ClassVar[str] = "put-backend"

    key: str
    fields: Fields = Fields()
    if_none_match: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchBackend(Command):
    """Change what is said of one backend, and nothing else."""

    kind: ClassVar[str] = "patch-backend"

    key: str
    fields: Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveBackend(Command):
    """Take a backend out."""

    kind: ClassVar[str] = "remove-backend"

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchUpstream(Command):
    """Change several backends in one revision; None for its fields takes a backend out."""

    kind: ClassVar[str] = "patch-upstream"

    edits: tuple[tuple[str, Fields | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyFile(Command):
    """
    One instance's file changed from `remembered` to `said`; see `lb.registry.file_view`.

    `remembered` is None on an instance without memory. `said` is None where the file names the
    upstream and says nothing of backends: the upstream is made known, and that is all.
    """

    kind: ClassVar[str] = "apply-file"

    remembered: SaidList | None
    said: SaidList | None
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFile(Command):
    """Make the file's view what this file says, whatever it was: `lb config sync`."""

    kind: ClassVar[str] = "sync-file"

    said: SaidList
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveUpstream(Command):
    """Forget an upstream. `named_by`: the live members whose config still names it."""

    kind: ClassVar[str] = "remove-upstream"

    named_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewLease(Command):
    """
    Begin a backend's lease anew.

    Only where the leader may not decide alone: the lease is suspect, which this ends, or its
    end has been proposed already.
    """

    kind: ClassVar[str] = "renew-lease"

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireLeases(Command):
    """
    End the leases that fell due. Proposed by the leader of `term`, and never passed on.

    `due` names each lease with its generation: one that was begun anew meanwhile stays.
    """

    kind: ClassVar[str] = "expire-leases"

    upstream: str = ""
    by: By = LEASES
    term: int
    due: tuple[Due, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseLevel(Command):
    """Let all use what needs feature level `level`: every member has said that it knows it."""

    kind: ClassVar[str] = "raise-level"

    upstream: str = ""
    level: int

    def __post_init__(self) -> None:
        if self.level > LEVEL:
            raise ValueError(f"feature level {self.level}; this version knows {LEVEL}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveMember(Command):
    """Have the others reach a member at another address: its own config says so."""

    kind: ClassVar[str] = "move-member"

    upstream: str = ""
    member: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(Command):
    """
    Make all upstreams what `content`, the plain form of a registry, has of them.

    Id, members, level and remembered answers stay as they are.
    """

    kind: ClassVar[str] = "restore"

    upstream: str = ""
    content: Plain


class Outcome(StrEnum):
    """How a command ended."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


class Code(StrEnum):
    """Why a command was refused: the `code` of the problem that a person gets."""

    WOULD_EMPTY = "would-empty"
    NOT_FOUND = "not-found"
    PRECONDITION_FAILED = "precondition-failed"
    KEY_REUSED = "key-reused"
    INVALID = "invalid"
    NOT_SUPPORTED = "not-supported"
    UPSTREAM_IN_USE = "upstream-in-use"
    TOO_MANY = "too-many"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: one line, and the cure where there is one."""

    code: Code
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """
    What a command did to one backend; `fields` names what differs where it was `changed`.

    `upstream` is the backend's where the command names none, or several.
    """

    key: str
    what: Literal["added", "changed", "removed"]
    fields: tuple[str, ...] = ()
    upstream: str = ""

    def to_plain(self) -> list[Any]:
        plain = [self.key, self.what, list(self.fields)]
        return [*plain, self.upstream] if self.upstream else plain

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Change:
        key, what, of, *upstream = plain
        return cls(key, what, tuple(of), *upstream)


@dataclass(frozen=True, slots=True)
class Reply:
    """
    The answer to a command.

    `revision` is the registry's after it. `backend` is the one that the command was about, as
    it now is. `stale` names backends of a file that were skipped because the view has moved on
    without this instance (`stale-file`); `differs` those where a file without memory differs
    from the view, which was left alone. `repeated`: answered before, under the same key.
    """

    outcome: Outcome
    revision: int
    refusal: Refusal | None = None
    backend: Entry | None = None
    changes: tuple[Change, ...] = ()
    stale: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    repeated: bool = False

    def to_plain(self) -> Plain:
        refusal = self.refusal
        return {
            "outcome": self.outcome.value,
            "revision": self.revision,
            "refusal": refusal and [refusal.code.value, refusal.detail, refusal.hint],
            "backend": self.backend and self.backend.to_plain(),
            "changes": [change.to_plain() for change in self.changes],
            "stale": list(self.stale),
            "differs": list(self.differs),
            "repeated": self.repeated,
        }

    @classmethod
    def from_plain(cls, plain: Plain) -> Reply:
        refusal = plain["refusal"]
        backend = plain["backend"]
        return cls(
            outcome=Outcome(plain["outcome"]),
            revision=plain["revision"],
            refusal=refusal and Refusal(Code(refusal[0]), refusal[1], refusal[2]),
            backend=backend and Entry.from_plain(backend),
            changes=tuple(map(Change.from_plain, plain["changes"])),
            stale=tuple(plain["stale"]),
            differs=tuple(plain["differs"]),
            repeated=plain["repeated"],
        )


COMMANDS: Mapping[str, type[Command]] = {
    command.kind: command
    for command in (
        PutBackend,
        PatchBackend,
        RemoveBackend,
        PatchUpstream,
        ApplyFile,
        SyncFile,
        RemoveUpstream,
        RenewLease,
        ExpireLeases,
        RaiseLevel,
        MoveMember,
        Restore,
    )
}


def command_to_plain(command: Command) -> Plain:
    """The command as JSON can hold it, tagged with its kind."""
    plain: Plain = {"kind": command.kind}
    for each in fields(command):
        plain[each.name] = _value_to_plain(getattr(command, each.name))
    return plain


def command_from_plain(plain: Plain) -> Command:
    """Read a command; KeyError for a kind that this version does not know."""
    values = {name: value for name, value in plain.items() if name != "kind"}
    for name, read in _READERS.items():
        if values.get(name) is not None:
            values[name] = read(values[name])
    return COMMANDS[plain["kind"]](**values)


def digest_of_command(command: Command) -> str:
    """
    Name what the client asked for.

    Left out is what a retry may rightly have otherwise: the time, the member asked, that
    member's `min_active`, and who names an upstream by then.
    """
    plain = command_to_plain(command)
    for name in ("at", "min_active", "idempotency_key", "named_by"):
        plain.pop(name, None)
    del plain["by"]["member"]
    return digest(plain)


def _value_to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_value_to_plain(each) for each in value]
    if hasattr(value, "to_plain"):
        return value.to_plain()
    return value


def _read_edits(plain: list[list[Any]]) -> tuple[tuple[str, Fields | None], ...]:
    return tuple((key, None if said is None else Fields.from_plain(said)) for key, said in plain)


_READERS: Mapping[str, Any] = {
    "by": By.from_plain,
    "fields": Fields.from_plain,
    "edits": _read_edits,
    "remembered": said_from_plain,
    "said": said_from_plain,
    "named_by": tuple,
    "due": lambda plain: tuple((upstream, key, lease) for upstream, key, lease in plain),
    "if_match": lambda plain: plain if plain == "*" else tuple(plain),
}
