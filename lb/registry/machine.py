"""The replicated machine: one command in, the next registry and a reply out.

It decides alone, from its own state and the command, and so alike on every member: no clock,
no random source, no disk. What cannot be done is refused and leaves the registry as it was;
no command raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lb.model import State
from lb.registry import file_view
from lb.registry.check import LABELS_MAX, check_command, is_name
from lb.registry.commands import (
    ApplyFile,
    Change,
    Code,
    Command,
    ExpireLeases,
    Fields,
    Outcome,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    RaiseLevel,
    Refusal,
    RemoveBackend,
    RemoveUpstream,
    RenewLease,
    Reply,
    Restore,
    SyncFile,
    digest_of_command,
)
from lb.registry.values import (
    ANSWERS_MAX,
    BACKENDS_MAX,
    UPSTREAMS_MAX,
    Answer,
    Changed,
    Entry,
    Registry,
    Source,
    UpstreamEntry,
    View,
    said_by_key,
)

SHARE_UNITS = 10_000  # Shares are compared in whole units: 20 % of 5 is exactly 1.
WRITTEN_FIELDS = ("address", "weight", "state", "backup", "source", "labels")


class _RefusedError(Exception):
    """Ends the judging of one command; never leaves this module."""

    def __init__(self, code: Code, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.refusal = Refusal(code, detail, hint)


@dataclass(slots=True)
class _Draft:
    """What a command would make of one upstream, before it is judged as a whole."""

    backends: dict[str, Entry]
    view: View | None
    about: str | None = None  # The key of the backend that the reply shows.
    stale: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


def apply(registry: Registry, command: Command, term: int = 0) -> tuple[Registry, Reply]:
    """
    Apply one command; `term` is the one in which its entry came into the log.

    Returned is the same registry, not a copy, where nothing at all changed. With an idempotency
    key the answer is remembered, a refusal too: a retry must not succeed where the first try was
    told no, or a late duplicate could act after its sender gave up.
    """
    if command.idempotency_key is None:
        return _apply_once(registry, command)
    # Each token has its own keys: nobody can take another's answer, or spoil it.
    key = f"{command.by.token}/{command.idempotency_key}"
    answer = registry.answers.get(key)
    if answer is not None:
        return registry, _answer_again(registry, command, answer)
    after, reply = _apply_once(registry, command)
    if reply.refusal is not None and reply.refusal.code is Code.INVALID:
        return after, reply  # Decided by the command alone; its key may be as bad as the rest.
    return replace(after, answers=_remember(registry.answers, key, command, reply)), reply


def _apply_once(registry: Registry, command: Command) -> tuple[Registry, Reply]:
    try:
        if refusal := check_command(command):
            raise _RefusedError(refusal.code, refusal.detail, refusal.hint)
        if isinstance(command, RemoveUpstream):
            return _remove_upstream(registry, command)
        if isinstance(command, RenewLease | ExpireLeases | RaiseLevel | Restore):
            raise _RefusedError(Code.NOT_SUPPORTED, f"{command.kind} is not yet supported")
        upstream = registry.upstreams.get(command.upstream)
        if upstream is None and not isinstance(command, ApplyFile | SyncFile):
            raise _unknown_upstream(command)
        return _settle(registry, command, upstream, _draft(registry, command, upstream))
    except _RefusedError as error:
        return registry, Reply(Outcome.REFUSED, registry.revision, refusal=error.refusal)


def _draft(registry: Registry, command: Command, upstream: UpstreamEntry | None) -> _Draft:
    stamp = Changed(command.by, registry.revision + 1, command.at)
    if upstream is None:
        upstream = UpstreamEntry(0)
    draft = _Draft(dict(upstream.backends), upstream.view)
    match command:
        case PutBackend():
            _put(draft, command, upstream, stamp)
        case PatchBackend():
            _require_match(command, upstream, command.key)
            _edit(draft, command, command.key, command.fields)
            draft.about = command.key
        case RemoveBackend():
            _require_match(command, upstream, command.key)
            _edit(draft, command, command.key, None)
        case PatchUpstream():
            _require_match(command, upstream, None)
            for key, fields in command.edits:
                _edit(draft, command, key, fields)
        case ApplyFile():
            _take_file(draft, command, stamp)
        case SyncFile():
            speech = file_view.Speech(said_by_key(command.said), command.version, stamp)
            _take_judgement(draft, file_view.take_whole(draft.view, speech), stamp)
        case _:
            raise AssertionError(f"no way to apply {command.kind}")
    return draft


def _put(draft: _Draft, command: PutBackend, upstream: UpstreamEntry, stamp: Changed) -> None:
    key, fields = command.key, command.fields
    before = draft.backends.get(key)
    if command.if_none_match and before is not None:
        raise _RefusedError(Code.PRECONDITION_FAILED, f"{key} is already in {command.upstream}")
    _require_match(command, upstream, key)
    address = fields.address or (before.address if before else key)
    _require_address(key, address)
    draft.backends[key] = Entry(
        address=address,
        changed=before.changed if before else stamp,
        name=None if address == key else key,
        weight=1 if fields.weight is None else fields.weight,
        # Unsaid, it is kept: registering again must not undo a drain.
        state=fields.state or (before.state if before else State.ACTIVE),
        backup=bool(fields.backup),
        source=Source.API,
        labels={name: value for name, value in (fields.labels or {}).items() if value is not None},
    )
    draft.about = key


def _edit(draft: _Draft, command: Command, key: str, fields: Fields | None) -> None:
    """Change or remove one backend that must be there."""
    before = draft.backends.get(key)
    if before is None:
        raise _RefusedError(
            Code.NOT_FOUND,
            f"{command.upstream} has no backend {key}",
            f"`lb backend list {command.upstream}` shows those it has",
        )
    if fields is None:
        del draft.backends[key]
        return
    address = fields.address or before.address
    _require_address(key, address)
    merged = {**before.labels, **(fields.labels or {})}
    labels = {name: value for name, value in merged.items() if value is not None}
    if len(labels) > LABELS_MAX:
        raise _RefusedError(Code.TOO_MANY, f"a backend has at most {LABELS_MAX} labels")
    draft.backends[key] = replace(
        before,
        address=address,
        weight=before.weight if fields.weight is None else fields.weight,
        state=fields.state or before.state,
        backup=before.backup if fields.backup is None else fields.backup,
        labels=labels,
    )


def _require_address(key: str, address: str) -> None:
    """A backend is known by its name, or else by its address and no other."""
    if not is_name(key) and address != key:
        raise _RefusedError(
            Code.INVALID,
            f"{key} has no name: its address is what it is known by",
            "remove it and add the new address, or add that under a name",
        )
    if is_name(key) and address == key:
        raise _RefusedError(
            Code.INVALID, f"{key} is a name, and no address is given for it", 'say "address" too'
        )


def _take_file(draft: _Draft, command: ApplyFile, stamp: Changed) -> None:
    if command.said is None:
        return  # The file only names the upstream.
    remembered = None if command.remembered is None else said_by_key(command.remembered)
    speech = file_view.Speech(said_by_key(command.said), command.version, stamp)
    _take_judgement(draft, file_view.judge(draft.view, remembered, speech), stamp)


def _take_judgement(draft: _Draft, judgement: file_view.Judgement, stamp: Changed) -> None:
    for change in judgement.apply:
        file_view.apply_change(draft.backends, change, stamp)
    draft.view = judgement.view
    draft.stale = judgement.stale
    draft.differs = judgement.differs


def _settle(
    registry: Registry, command: Command, upstream: UpstreamEntry | None, draft: _Draft
) -> tuple[Registry, Reply]:
    """Judge the end state, then make it the registry's in one revision."""
    before = upstream.backends if upstream else {}
    changes = tuple(_compare(before, draft.backends))
    _require_room(registry, command, upstream, draft)
    _require_enough(command, before, draft.backends)
    routed_differently = bool(changes) or upstream is None
    revision = registry.revision + routed_differently
    stamp = Changed(command.by, revision, command.at)
    for change in changes:
        if change.what == "changed":
            draft.backends[change.key] = replace(draft.backends[change.key], changed=stamp)
    if draft.view is not None and draft.view.changed.revision > revision:
        # Moved, but nobody routes otherwise: the revision foreseen for it is not taken.
        draft.view = replace(draft.view, changed=stamp)
    if upstream is None or changes or draft.view != upstream.view:
        entry = UpstreamEntry(
            revision if upstream is None or changes else upstream.revision,
            draft.backends,
            draft.view,
        )
        registry = replace(
            registry,
            revision=revision,
            upstreams={**registry.upstreams, command.upstream: entry},
        )
    reply = Reply(
        _outcome(command, upstream, changes),
        revision,
        backend=None if draft.about is None else draft.backends[draft.about],
        changes=changes,
        stale=draft.stale,
        differs=draft.differs,
    )
    return registry, reply


def _outcome(
    command: Command, upstream: UpstreamEntry | None, changes: tuple[Change, ...]
) -> Outcome:
    if upstream is None:
        return Outcome.CREATED
    if not changes:
        return Outcome.UNCHANGED
    if isinstance(command, PutBackend) and changes[0].what == "added":
        return Outcome.CREATED
    return Outcome.CHANGED


def _compare(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[Change]:
    changes = [Change(key, "removed") for key in before if key not in after]
    for key, entry in after.items():
        old = before.get(key)
        if old is None:
            changes.append(Change(key, "added"))
        elif old != entry:
            differing = [n for n in WRITTEN_FIELDS if getattr(old, n) != getattr(entry, n)]
            changes.append(Change(key, "changed", tuple(differing)))
    return changes


def _require_match(command: Command, upstream: UpstreamEntry, key: str | None) -> None:
    """Hold `if_match` against the upstream's revision and, where one is meant, the backend's."""
    if command.if_match is None:
        return
    entry = None if key is None else upstream.backends.get(key)
    if entry is None and not isinstance(command, PutBackend | PatchUpstream):
        return  # It is answered that there is no such backend.
    if command.if_match == "*":
        if key is None or entry is not None:
            return
        raise _RefusedError(Code.PRECONDITION_FAILED, f"{command.upstream} has no backend {key}")
    if upstream.revision in command.if_match:
        return
    if entry is not None and entry.revision in command.if_match:
        return
    what, at = (
        (command.upstream, upstream.revision) if entry is None else (entry.key, entry.revision)
    )
    raise _RefusedError(
        Code.PRECONDITION_FAILED,
        f"{what} is not as it was: its revision is {at}",
        "read it again, then decide again",
    )


def _require_room(
    registry: Registry, command: Command, upstream: UpstreamEntry | None, draft: _Draft
) -> None:
    if len(draft.backends) > BACKENDS_MAX:
        raise _RefusedError(
            Code.TOO_MANY, f"{command.upstream} would have more than {BACKENDS_MAX} backends"
        )
    if upstream is None and len(registry.upstreams) >= UPSTREAMS_MAX:
        raise _RefusedError(
            Code.TOO_MANY,
            f"the registry already has {UPSTREAMS_MAX} upstreams",
            "`lb upstream remove` those that no config names any more",
        )


def _require_enough(
    command: Command, before: Mapping[str, Entry], after: Mapping[str, Entry]
) -> None:
    """
    Refuse what takes backends out and leaves none, or too few, active.

    A share is one of what the upstream had before, or has now if that is more: else a list
    cut down to one backend would leave all of them active. What takes none out may pass
    whatever is left: it makes nothing worse.
    """
    had = sum(entry.takes_traffic for entry in before.values())
    left = sum(entry.takes_traffic for entry in after.values())
    if command.force or left >= had:
        return
    hint = "add or enable others first, or repeat with force"
    if left == 0:
        raise _RefusedError(
            Code.WOULD_EMPTY, f"{command.upstream} would be left without an active backend", hint
        )
    of = max(len(before), len(after))
    if left * SHARE_UNITS < round(command.min_active * SHARE_UNITS) * of:
        raise _RefusedError(
            Code.WOULD_EMPTY,
            f"{command.upstream} would be left with {left} active of {of} backends, "
            f"fewer than min_active = {command.min_active:.4g}",
            hint,
        )


def _remove_upstream(registry: Registry, command: RemoveUpstream) -> tuple[Registry, Reply]:
    upstream = registry.upstreams.get(command.upstream)
    if upstream is None:
        raise _unknown_upstream(command)
    if command.named_by:
        raise _RefusedError(
            Code.UPSTREAM_IN_USE,
            f"{command.upstream} is named by the config of {', '.join(command.named_by)}",
            "take it out of their files and reload them first",
        )
    _require_match(command, upstream, None)
    upstreams = {n: entry for n, entry in registry.upstreams.items() if n != command.upstream}
    revision = registry.revision + 1
    changes = tuple(Change(key, "removed") for key in upstream.backends)
    return (
        replace(registry, revision=revision, upstreams=upstreams),
        Reply(Outcome.CHANGED, revision, changes=changes),
    )


def _unknown_upstream(command: Command) -> _RefusedError:
    return _RefusedError(
        Code.NOT_FOUND,
        f"the registry has no upstream {command.upstream}",
        "add it to the file and reload: upstreams come from there",
    )


def _answer_again(registry: Registry, command: Command, answer: Answer) -> Reply:
    if answer.digest != digest_of_command(command):
        refusal = Refusal(
            Code.KEY_REUSED,
            f"the idempotency key {command.idempotency_key} was used for another write",
            "take a new key for a new write",
        )
        return Reply(Outcome.REFUSED, registry.revision, refusal=refusal)
    upstream = registry.upstreams.get(command.upstream)
    backend = None
    if upstream is not None and isinstance(command, PutBackend | PatchBackend):
        backend = upstream.backends.get(command.key)
    return Reply(
        Outcome(answer.outcome),
        answer.revision,
        refusal=Refusal(Code(answer.code), answer.detail, answer.hint) if answer.code else None,
        backend=backend,
        repeated=True,
    )


def _remember(
    answers: Mapping[str, Answer], key: str, command: Command, reply: Reply
) -> Mapping[str, Answer]:
    refusal = reply.refusal
    after = dict(answers)
    after[key] = Answer(
        digest=digest_of_command(command),
        outcome=reply.outcome.value,
        revision=reply.revision,
        code=refusal.code.value if refusal else "",
        detail=refusal.detail if refusal else "",
        hint=refusal.hint if refusal else "",
    )
    while len(after) > ANSWERS_MAX:
        del after[next(iter(after))]
    return after
