"""What the registry holds: immutable values and their plain JSON forms.

Every value is deterministic to build, to compare and to write down, since the same commands
must give the same bytes on every member. Mappings keep the order in which things were added.

A field that came later is left out of the plain form while it has its default. So an older
form is read as it is, and two versions give the same state the same hash.

Not here: health, which each instance finds out for itself and never shares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lb.model import State
from lb.registry.answers import Answers

UPSTREAMS_MAX = 4_096
BACKENDS_MAX = 10_000  # Of one upstream.
PAST_VIEWS_MAX = 100
REMOVED_MAX = 1_000  # Ids of members that left; whoever still uses one is told so.
LEVEL = 1  # The newest feature level that this version knows.
DIGEST_LENGTH = 32  # Hexadecimal digits kept of a SHA-256.

Plain = dict[str, Any]


class Source(StrEnum):
    """Who brought a backend in. The file removes only what is still its own."""

    FILE = "file"
    API = "api"


@dataclass(frozen=True, slots=True)
class By:
    """Whose write it was: the token's name, the member asked, by which way, and why."""

    token: str = ""
    member: str = ""
    source: str = "api"
    note: str = ""

    def to_plain(self) -> Plain:
        return {
            "token": self.token,
            "member": self.member,
            "source": self.source,
            "note": self.note,
        }

    @classmethod
    def from_plain(cls, plain: Plain) -> By:
        return cls(plain["token"], plain["member"], plain["source"], plain["note"])


@dataclass(frozen=True, slots=True)
class Changed:
    """The write that left a backend as it is. `at` is the proposer's wall time, in seconds."""

    by: By
    revision: int
    at: float

    def to_plain(self) -> Plain:
        return {"by": self.by.to_plain(), "revision": self.revision, "at": self.at}

    @classmethod
    def from_plain(cls, plain: Plain) -> Changed:
        return cls(By.from_plain(plain["by"]), plain["revision"], plain["at"])


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One backend of one upstream, as the group has agreed on it.

    With a `ttl` it is leased: it ends when nobody renews it for so many seconds. `lease` is the
    number of the lease, never given twice; who ends a lease names it, and so ends no newer one.
    A `suspect` should have ended, but too many at once would have; see `lb.registry.expiry`.
    """

    address: str
    changed: Changed
    name: str | None = None
    weight: int = 1
    state: State = State.ACTIVE
    backup: bool = False
    source: Source = Source.API
    labels: Mapping[str, str] = field(default_factory=dict)
    ttl: float | None = None
    suspect: bool = False
    lease: int = 0

    @property
    def key(self) -> str:
        """The backend's identity, in URLs, metrics and hashing."""
        return self.name or self.address

    @property
    def revision(self) -> int:
        """The revision of the last write that changed this backend."""
        return self.changed.revision

    @property
    def takes_traffic(self) -> bool:
        """Active, as `would-empty` and `min_active` count: new requests may go there."""
        return self.state is State.ACTIVE and self.weight > 0

    def to_plain(self) -> Plain:
        plain: Plain = {
            "address": self.address,
            "name": self.name,
            "weight": self.weight,
            "state": self.state.value,
            "backup": self.backup,
            "source": self.source.value,
            "labels": dict(self.labels),
            "changed": self.changed.to_plain(),
        }
        if self.ttl is not None:
            plain |= {"ttl": self.ttl, "suspect": self.suspect, "lease": self.lease}
        return plain

    @classmethod
    def from_plain(cls, plain: Plain) -> Entry:
        return cls(
            address=plain["address"],
            changed=Changed.from_plain(plain["changed"]),
            name=plain["name"],
            weight=plain["weight"],
            state=State(plain["state"]),
            backup=plain["backup"],
            source=Source(plain["source"]),
            labels=dict(plain["labels"]),
            ttl=plain.get("ttl"),
            suspect=plain.get("suspect", False),
            lease=plain.get("lease", 0),
        )


@dataclass(frozen=True, slots=True)
class Said:
    """What a file says of one backend: never its state, which is a person's intent of the day."""

    address: str
    name: str | None = None
    weight: int = 1
    backup: bool = False

    @property
    def key(self) -> str:
        """As the backend's key in the registry."""
        return self.name or self.address

    def to_plain(self) -> Plain:
        return {
            "address": self.address,
            "name": self.name,
            "weight": self.weight,
            "backup": self.backup,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Said:
        return cls(
            address=plain["address"],
            name=plain.get("name"),
            weight=plain.get("weight", 1),
            backup=plain.get("backup", False),
        )


SaidList = tuple[Said, ...]


def said_by_key(said: Iterable[Said]) -> dict[str, Said]:
    """Index what a file says; of two that share a key the last counts."""
    return {backend.key: backend for backend in said}


def said_from_plain(plain: Iterable[Mapping[str, Any]]) -> SaidList:
    """Read a file's list of backends from its plain form."""
    return tuple(map(Said.from_plain, plain))


def digest_of(said: Mapping[str, Said]) -> str:
    """Name a list by its contents; the order in the file is of no importance."""
    return digest([said[key].to_plain() for key in sorted(said)])


@dataclass(frozen=True, slots=True)
class View:
    """
    The file's view of one upstream: what a file last said, whichever instance applied it.

    `changed` is the write that last moved it, by which an instance that crashed knows its own.
    `version` is the highest top-level `version` of the files that moved it, 0 if none had one.
    `past` holds digests of what the view has been, the newest last, at most `PAST_VIEWS_MAX`;
    `merged` as many of lists that were not taken whole, but in part.
    """

    said: Mapping[str, Said]
    changed: Changed
    version: int = 0
    past: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()

    def moved(self, said: Mapping[str, Said], changed: Changed, version: int) -> View:
        """The view after it has been told something new."""
        past = (*self.past, digest_of(self.said))[-PAST_VIEWS_MAX:]
        return View(said, changed, max(self.version, version), past, self.merged)

    def to_plain(self) -> Plain:
        return {
            "said": [backend.to_plain() for backend in self.said.values()],
            "changed": self.changed.to_plain(),
            "version": self.version,
            "past": list(self.past),
            "merged": list(self.merged),
        }

    @classmethod
    def from_plain(cls, plain: Plain) -> View:
        said = said_by_key(said_from_plain(plain["said"]))
        changed = Changed.from_plain(plain["changed"])
        return cls(said, changed, plain["version"], tuple(plain["past"]), tuple(plain["merged"]))


@dataclass(frozen=True, slots=True)
class Expired:
    """How many leases of `ttl` seconds ended at a time: the guard counts them for one TTL."""

    at: float
    ttl: float
    count: int

    def to_plain(self) -> list[Any]:
        return [self.at, self.ttl, self.count]


@dataclass(frozen=True, slots=True)
class UpstreamEntry:
    """
    One upstream's backends by key, and the file's view of them: None until a file spoke.

    `expired` is what the guard of leases remembers, the newest last.
    """

    revision: int
    backends: Mapping[str, Entry] = field(default_factory=dict)
    view: View | None = None
    expired: tuple[Expired, ...] = ()

    def to_plain(self) -> Plain:
        plain: Plain = {
            "revision": self.revision,
            "backends": [backend.to_plain() for backend in self.backends.values()],
            "view": None if self.view is None else self.view.to_plain(),
        }
        if self.expired:
            plain["expired"] = [each.to_plain() for each in self.expired]
        return plain

    @classmethod
    def from_plain(cls, plain: Plain) -> UpstreamEntry:
        backends = [Entry.from_plain(backend) for backend in plain["backends"]]
        return cls(
            revision=plain["revision"],
            backends={backend.key: backend for backend in backends},
            view=None if plain["view"] is None else View.from_plain(plain["view"]),
            expired=tuple(Expired(at, ttl, count) for at, ttl, count in plain.get("expired", ())),
        )


@dataclass(frozen=True, slots=True)
class Member:
    """One instance of the group. `id` is never given twice; a learner is no `voter` yet."""

    id: int
    name: str
    address: str
    voter: bool
    changed: Changed

    def to_plain(self) -> Plain:
        return {
            "id": self.id,
            "name": self.name,
            "address": self.address,
            "voter": self.voter,
            "changed": self.changed.to_plain(),
        }

    @classmethod
    def from_plain(cls, plain: Plain) -> Member:
        changed = Changed.from_plain(plain["changed"])
        return cls(plain["id"], plain["name"], plain["address"], plain["voter"], changed)


@dataclass(frozen=True, slots=True)
class Registry:
    """
    The replicated state. `lb.registry.apply` makes the next one; nothing changes in place.

    `revision` grows by one with each command that changed an upstream or a backend, and with
    each change of members. The file's view, the remembered answers and leases that begin anew
    move without it: nobody routes by them.

    `granted` counts the leases that were ever granted, and so numbers them.
    `removed` holds ids of members that left, the newest last, at most `REMOVED_MAX`. `level` is
    the feature level: what a member must know to be one.
    """

    id: str
    revision: int = 0
    upstreams: Mapping[str, UpstreamEntry] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    members: Mapping[int, Member] = field(default_factory=dict)
    removed: tuple[int, ...] = ()
    level: int = 1
    granted: int = 0


def registry_to_plain(registry: Registry) -> Plain:
    """The registry as JSON can hold it; `registry_from_plain` is the way back."""
    plain: Plain = {
        "id": registry.id,
        "revision": registry.revision,
        "upstreams": {name: entry.to_plain() for name, entry in registry.upstreams.items()},
        "answers": registry.answers.to_plain(),
    }
    if registry.granted:
        plain["granted"] = registry.granted
    if registry.members:
        plain["members"] = [member.to_plain() for member in registry.members.values()]
    if registry.removed:
        plain["removed"] = list(registry.removed)
    if registry.level > 1:
        plain["level"] = registry.level
    return plain


def registry_from_plain(plain: Plain) -> Registry:
    """Read what `registry_to_plain` wrote; KeyError, TypeError or ValueError if it is not that."""
    level = plain.get("level", 1)
    if level > LEVEL:
        raise ValueError(f"it has feature level {level}, and this version knows {LEVEL}")
    members = [Member.from_plain(member) for member in plain.get("members", ())]
    return Registry(
        id=plain["id"],
        revision=plain["revision"],
        upstreams={
            name: UpstreamEntry.from_plain(entry) for name, entry in plain["upstreams"].items()
        },
        answers=Answers.from_plain(plain["answers"]),
        granted=plain.get("granted", 0),
        members={member.id: member for member in members},
        removed=tuple(plain.get("removed", ())),
        level=level,
    )


def state_hash(registry: Registry) -> str:
    """A name for the whole state: members that applied the same commands have the same one."""
    return digest(registry_to_plain(registry))


def digest(plain: Any) -> str:
    """Name a plain value by its contents. Not orjson: its bytes may differ between versions."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
