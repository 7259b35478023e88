"""What this instance's own file last said of backends, and what to propose when it changes.

The memory makes an edit act once: the registry is told what the file said before and says now,
and judges by both (`lb.registry.file_view`). It is written after the commit. Before the commit
it only notes what is being tried, and when: should we crash in between, the view tells whether
that very write moved it, and if so, it is what the file last said.

An upstream that leaves the file keeps its memory, and so does one that no longer says anything
of backends: should they come back, only what differs from then is a change.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.config.schema import Config
from lb.control.disk import DamagedError, Disk, UnsettledError, seal, unseal
from lb.control.store import NoQuorum, NotStored, Store, UnknownOutcome
from lb.errors import StartError
from lb.registry import (
    ApplyFile,
    By,
    Outcome,
    Registry,
    Reply,
    Said,
    SyncFile,
    apply,
    said_by_key,
    said_from_plain,
)

MEMORY_FILE = "file-memory.json"
MEMORY_FORMAT = 1
UPSTREAMS_MAX = 10_000  # Remembered, most of them perhaps long gone from the file.

SaidList = tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the file last said of one upstream, and what was last `tried`, at which time."""

    said: SaidList | None = None
    tried: SaidList | None = None
    tried_at: float = 0.0


class FileMemory:
    """
    `file-memory.json` in the data_dir.

    `warning` tells that it was damaged: we then go on as a new box, which undoes nothing.
    """

    def __init__(
        self, path: Path, upstreams: Mapping[str, Remembered], disk: Disk, warning: str = ""
    ) -> None:
        self._path = path
        self._upstreams = dict(upstreams)
        self._disk = disk
        self._writing = threading.Lock()  # A caller that gave up leaves its thread writing.
        self.warning = warning

    @classmethod
    def open(cls, data_dir: str | Path, disk: Disk | None = None) -> FileMemory:
        """Read the memory, if there is one. StartError if that cannot be told."""
        disk = disk or Disk()
        path = Path(data_dir) / MEMORY_FILE
        try:
            data = disk.read(path)
        except OSError as error:
            raise StartError(
                f"{path} cannot be read: {error.strerror}", "make it readable, or remove it"
            ) from error
        if data is None:
            return cls(path, {}, disk)
        try:
            return cls(path, _from_file(data), disk)
        except (DamagedError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = str(error) if isinstance(error, DamagedError) else repr(error)
            return cls(
                path,
                {},
                disk,
                f"{path} cannot be used: {reason}; what this file said before is forgotten, "
                "and `lb config sync` makes the registry follow it again",
            )

    def last_said(self, upstream: str, registry: Registry, member: str) -> SaidList | None:
        """What this member's file last said of an upstream, and the registry was told."""
        remembered = self._upstreams.get(upstream, Remembered())
        entry = registry.upstreams.get(upstream)
        if remembered.tried is not None and entry is not None and entry.view is not None:
            moved = entry.view.changed
            if moved.by.member == member and moved.at == remembered.tried_at:
                return remembered.tried
        return remembered.said

    def note_tried(self, tried: Mapping[str, SaidList], at: float) -> None:
        """Write down what is about to be proposed, under the time that its commands carry."""
        with self._writing:
            self._write(
                {
                    name: Remembered(self._upstreams.get(name, Remembered()).said, said, at)
                    for name, said in tried.items()
                }
            )

    def note_said(self, said: Mapping[str, SaidList]) -> None:
        """Write down what the file said, once that has been committed."""
        with self._writing:
            self._write({name: Remembered(each) for name, each in said.items()})

    def _write(self, news: Mapping[str, Remembered]) -> None:
        """Raises OSError or UnsettledError, and then still remembers what the disk has."""
        upstreams = {name: each for name, each in self._upstreams.items() if name not in news}
        upstreams |= news  # At the end: those the file no longer names are the oldest.
        while len(upstreams) > UPSTREAMS_MAX:
            del upstreams[next(iter(upstreams))]
        if upstreams == self._upstreams:
            return
        self._disk.replace(self._path, seal(MEMORY_FORMAT, _to_plain(upstreams)))
        self._upstreams = upstreams


@dataclass(frozen=True, slots=True)
class FileSays:
    """
    What a config file says of membership.

    `upstreams` holds each upstream's list of backends, None where the file says nothing of them;
    `min_active` the share of each upstream that has one.
    """

    upstreams: Mapping[str, SaidList | None]
    version: int = 0
    min_active: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> FileSays:
        """Read it from a checked config."""
        return cls(
            upstreams={
                name: None
                if upstream.backends is None
                else tuple(
                    Said(backend.address, backend.name, backend.weight, backend.backup)
                    for backend in upstream.backends
                )
                for name, upstream in config.upstream.items()
            },
            version=config.version or 0,
            min_active={name: upstream.min_active for name, upstream in config.upstream.items()},
        )


def plan_proposals(
    memory: FileMemory,
    says: FileSays,
    registry: Registry,
    *,
    by: By,
    at: float,
    force: bool = False,
) -> list[ApplyFile]:
    """Return one command for each upstream of which the file says something new."""
    plans = []
    for name, said in says.upstreams.items():
        last = memory.last_said(name, registry, by.member)
        if name in registry.upstreams and (said is None or _same(said, last)):
            continue
        plans.append(
            ApplyFile(
                upstream=name,
                by=by,
                at=at,
                force=force,
                min_active=says.min_active.get(name, 0.0),
                remembered=last,
                said=said,
                version=says.version,
            )
        )
    return plans


def plan_sync(says: FileSays, *, by: By, at: float, force: bool = False) -> list[SyncFile]:
    """Return what `lb config sync` proposes: the view becomes what this file says."""
    return [
        SyncFile(
            upstream=name,
            by=by,
            at=at,
            force=force,
            min_active=says.min_active.get(name, 0.0),
            said=said,
            version=says.version,
        )
        for name, said in says.upstreams.items()
        if said is not None
    ]


@dataclass(slots=True)
class FileOutcome:
    """
    What became of a file's proposals.

    `replies` by upstream; `pending`: upstreams whose proposal could not be decided now and must
    be made again; `why_pending` and `warnings` are for people.
    """

    replies: dict[str, Reply] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    why_pending: str = ""
    warnings: list[str] = field(default_factory=list)

    def changed(self) -> list[dict[str, Any]]:
        """What was done: `{"upstream", "backend", "what", "fields"}` each."""
        return [
            {
                "upstream": name,
                "backend": change.key,
                "what": change.what,
                "fields": list(change.fields),
            }
            for name, reply in self.replies.items()
            for change in reply.changes
        ]

    def refused(self) -> list[dict[str, str]]:
        """As a reload answers them: `{"upstream", "reason", "detail"}`."""
        return [
            {
                "upstream": name,
                "reason": reply.refusal.code.value,
                "detail": reply.refusal.detail,
                "hint": reply.refusal.hint,
            }
            for name, reply in self.replies.items()
            if reply.refusal is not None
        ]

    def stale(self) -> list[dict[str, str]]:
        """Backends of this file that were skipped: others have moved on meanwhile."""
        return [
            {"upstream": name, "backend": key, "reason": "stale-file"}
            for name, reply in self.replies.items()
            for key in reply.stale
        ]

    def differs(self) -> list[dict[str, str]]:
        """Backends by which this file, new here, differs from what files said so far."""
        return [
            {"upstream": name, "backend": key}
            for name, reply in self.replies.items()
            for key in reply.differs
        ]


async def propose_all(
    store: Store, memory: FileMemory, commands: Sequence[ApplyFile | SyncFile]
) -> FileOutcome:
    """
    Propose what was planned, and remember what was committed.

    The memory of a refused upstream is not moved: the next reload tries again.
    """
    outcome = FileOutcome()
    speaking = {command.upstream: command for command in commands if command.said is not None}
    tried = {name: command.said or () for name, command in speaking.items()}
    if speaking:
        at = next(iter(speaking.values())).at
        await _note(lambda: memory.note_tried(tried, at), outcome)
    for command in commands:
        try:
            outcome.replies[command.upstream] = await store.propose(command)
        except (NoQuorum, NotStored, UnknownOutcome) as error:
            # Made again later, it is judged by the same rules, and an edit still acts once.
            outcome.pending.append(command.upstream)
            outcome.why_pending = error.message
    said = {
        name: tried[name]
        for name, reply in outcome.replies.items()
        if name in tried and reply.outcome is not Outcome.REFUSED
    }
    if said:
        await _note(lambda: memory.note_said(said), outcome)
    return outcome


def try_all(registry: Registry, commands: Sequence[ApplyFile | SyncFile]) -> FileOutcome:
    """Return what `propose_all` would say, and change nothing: for a dry run."""
    outcome = FileOutcome()
    for command in commands:
        registry, outcome.replies[command.upstream] = apply(registry, command)
    return outcome


async def _note(note: Callable[[], None], outcome: FileOutcome) -> None:
    try:
        await asyncio.to_thread(note)
    except (OSError, UnsettledError) as error:
        # No harm: after a restart the same is proposed again, and found to be done.
        outcome.warnings.append(f"what the file said could not be kept: {error}")


def _same(said: SaidList, last: SaidList | None) -> bool:
    return last is not None and said_by_key(said) == said_by_key(last)


def _to_plain(upstreams: Mapping[str, Remembered]) -> dict[str, Any]:
    return {
        name: {
            "said": _list_to_plain(each.said),
            "tried": _list_to_plain(each.tried),
            "tried_at": each.tried_at,
        }
        for name, each in upstreams.items()
    }


def _list_to_plain(said: SaidList | None) -> list[Any] | None:
    return None if said is None else [backend.to_plain() for backend in said]


def _list_from_plain(plain: list[Any] | None) -> SaidList | None:
    return None if plain is None else said_from_plain(plain)


def _from_file(data: bytes) -> dict[str, Remembered]:
    form, body = unseal(data)
    if form != MEMORY_FORMAT:
        raise DamagedError(f"it has format {form}, and this version reads {MEMORY_FORMAT}")
    return {
        name: Remembered(
            _list_from_plain(each["said"]), _list_from_plain(each["tried"]), each["tried_at"]
        )
        for name, each in body.items()
    }
