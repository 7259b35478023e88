"""What the admin API asks of the controller: one small Protocol and the values it hands over.

The controller implements `Desk`; the admin holds no state of its own beside it. Everything
here is read fresh for each request, so an answer never shows a mixture of two moments that
the admin itself kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lb.config.schema import Config
from lb.control.forced import Forced
from lb.control.store import Store
from lb.edition import Edition, Resolved
from lb.metrics import Reading
from lb.model import Health
from lb.outlier import Ejected
from lb.registry import By


@dataclass(frozen=True, slots=True)
class Check:
    """
    One endpoint as the prober sees it; `last_check`: `{"at", "ok", "reason", "ms"}` or None.

    `passed` and `failed` count its probes since it came under watch.
    """

    verdict: Health
    last_check: Mapping[str, Any] | None = None
    passed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStanding:
    """One worker slot. `edition` is the newest that is live in it, 0 while there is none."""

    slot: int
    pid: int
    up: bool
    edition: int
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """
    What `/v1/status` tells of the instance beside registry and metrics.

    `started` is wall time. `on_disk` is `same`, `changed` or `invalid: ...`. `error` is the
    full text of the last failed reload, or None. `files` are all files of the config in force.
    `reloads` counts reloads by result (`ok`, `failed`); `reloaded` is the time of the last good
    one. `certificates`: `{"used_by", "cert", "names", "expires", "error"}` of each.
    `stopping` is true from the first stop signal on. `pid` is the supervisor's. `upgrade`:
    `{"state", "error", "at"}`: one that failed, or under way.
    """

    name: str
    pid: int
    started: float
    generation: int
    source: str
    files: tuple[str, ...]
    on_disk: str
    error: str | None
    reloaded: float
    reloads: Mapping[str, int]
    workers: Sequence[WorkerStanding]
    stopping: bool = False
    certificates: Sequence[Mapping[str, Any]] = ()
    upgrade: Mapping[str, Any] | None = None


Plain = dict[str, Any]

Role = Literal["leader", "follower", "candidate", "learner", "forming", "removed", "damaged"]
GroupState = Literal["ok", "forming", "no-quorum", "removed", "damaged", "stopped-apply"]


@dataclass(frozen=True, slots=True)
class MemberStanding:
    """
    One member, as far as this instance can tell; None where it cannot.

    `match` is how far the leader knows its log to be, `lag` how many entries that is behind.
    """

    name: str
    address: str
    role: Literal["voter", "learner"]
    id: int
    match: int | None = None
    lag: int | None = None
    last_contact_ms: int | None = None
    version: str = ""
    config_hash: str = ""
    live: bool = False


@dataclass(frozen=True, slots=True)
class GroupStanding:
    """
    How the group looks from here.

    `leader` is a name, empty while there is none. `age_s` is how long ago the registry was last
    known to be current. `detail` says what is wrong and what to do, `waiting_for` whom a first
    start waits for.
    """

    id: str
    role: Role
    leader: str
    term: int
    revision: int
    commit: int
    applied: int
    quorum: bool
    state: GroupState
    waiting_for: tuple[str, ...] = ()
    members: tuple[MemberStanding, ...] = ()
    detail: str = ""
    age_s: float = 0.0
    leader_changes: int = 0
    sync_seconds: float = 0.0  # The last write of the log.


class GroupDesk(Protocol):
    """The group, as the admin sees it. What is refused is an AccordError; see `store`."""

    @property
    def term(self) -> int:
        """The newest term that this instance knows of."""
        ...

    def standing(self) -> GroupStanding: ...

    async def confirm(self) -> None:
        """Return when the registry here is as new as any was at the call; NoQuorum."""
        ...

    async def add_member(self, name: str, address: str, by: By) -> Plain:
        """Expect an instance of that name: it may join under it, from then on."""
        ...

    async def remove_member(self, name: str, by: By, *, force: bool) -> Plain: ...

    async def transfer(self, to: str | None, by: By) -> Plain:
        """Hand leadership to a member, or to the one that is furthest; `{"leader": name}`."""
        ...

    async def found(self, by: By) -> Plain:
        """Found the group now, though not every listed member has answered."""
        ...

    async def recover(self, lost: tuple[str, ...], by: By) -> Plain:
        """Make what this instance has a new group of one; every other voter is lost."""
        ...

    async def renew(self, upstream: str, key: str, by: By) -> Plain:
        """Extend a lease: `{"ttl": seconds, "suspect": bool}`."""
        ...

    async def ask_all(self, method: str, params: Plain, seconds: float) -> Mapping[str, Plain]:
        """Ask every other member, by name; one that does not answer has `{"error": text}`."""
        ...

    def backup(self) -> Plain:
        """Return all that the registry holds, as `restore` takes it."""
        ...


class Desk(Protocol):
    """The controller, as the admin sees it. Nothing but `reload`, `sync` and `stop` changes it."""

    @property
    def name(self) -> str:
        """This instance's."""
        ...

    @property
    def group(self) -> GroupDesk: ...

    @property
    def config(self) -> Config:
        """The config in force."""
        ...

    @property
    def store(self) -> Store: ...

    @property
    def edition(self) -> Edition:
        """The newest edition composed, live or on its way to the workers."""
        ...

    def standing(self) -> Standing: ...

    def checks(self, upstream: str) -> Mapping[str, Check]:
        """What the prober knows of this upstream's endpoints, by endpoint address."""
        ...

    def ejected(self) -> Ejected:
        """Endpoints that are out by what traffic showed, by upstream and address."""
        ...

    def forced(self) -> Forced:
        """Backends that are forced up or down on this instance alone."""
        ...

    def force(self, upstream: str, key: str, to: str, why: str) -> None:
        """Force a backend `up` or `down` here alone; `auto` ends that. `why` is for the log."""
        ...

    def cut(self, upstream: str, key: str) -> None:
        """Have this instance's workers cut what still runs on a backend that was removed."""
        ...

    def resolved(self) -> Resolved:
        """Endpoint addresses of each backend address that is a name."""
        ...

    def reading(self, max_age: float = 0.0) -> Reading:
        """All workers' counters, added up now, or at most so many seconds ago."""
        ...

    def unready(self) -> str:
        """Why this instance should get no traffic, in words; empty when it is ready."""
        ...

    def note_asked(self) -> None:
        """Somebody asked for readiness: a stop has reason to wait for `node.grace`."""
        ...

    def routed_revision(self) -> int:
        """The newest revision by which *every* worker of this instance routes."""
        ...

    async def wait_routed(self, revision: int, seconds: float) -> bool:
        """Wait until `routed_revision` is at least `revision`; False when time ran out."""
        ...

    async def reload(self, by: By, *, dry_run: bool, force: bool) -> Mapping[str, Any]:
        """
        Reload, or with `dry_run` only say what would change.

        Returns the plain reply of the design; raises `lb.config.load.ConfigErrors` for a bad
        file and other `AccordError`s for what kept a good one from going live.
        """
        ...

    async def sync(self, by: By, *, dry_run: bool) -> Mapping[str, Any]:
        """Make the registry's view of the file what this instance's file says (`config sync`)."""
        ...

    async def stop(self, drain: float | None) -> None:
        """Pass a graceful stop to the supervisor; `drain` in place of `node.drain`."""
        ...

    async def upgrade(self) -> int:
        """Run what is installed now; the new supervisor's pid once its workers serve.

        OperatorError, with the reason, where it does not: then nothing has changed.
        """
        ...
