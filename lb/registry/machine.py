"""The replicated machine: one command in, the next registry and a reply out.

It decides alone, from its own state and the command, and so alike on every member: no clock,
no random source, no disk. What cannot be done is refused and leaves the registry as it was;
no command raises.
"""

from __future__ import annotations

from dataclasses import replace

from lb.model import State
from lb.registry import file_view
from lb.registry.answers import Answer
from lb.registry.check import ABOUT_NONE, LABELS_MAX, check_command, is_name
from lb.registry.commands import (
    ApplyFile,
    Change,
    Code,
    Command,
    ExpireLeases,
    Fields,
    MoveMember,
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
from lb.registry.draft import Draft, RefusedError
from lb.registry.expiry import judge_due
from lb.registry.restore import restore
from lb.registry.values import (
    BACKENDS_MAX,
    UPSTREAMS_MAX,
    Changed,
    Entry,
    Registry,
    Source,
    UpstreamEntry,
    said_by_key,
)

SHARE_UNITS = 10_000  # Shares are compared in whole units: 20 % of 5 is exactly 1.


def apply(registry: Registry, command: Command, term: int = 0) -> tuple[Registry, Reply]:
    """
    Apply one command; `term` is the one in which its entry came into the log.

    Returned is the same registry, not a copy, where nothing at all changed. With an idempotency
    key the answer is remembered, a refusal too: a retry must not succeed where the first try was
    told no, or a late duplicate could act after its sender gave up.
    """
    if command.idempotency_key is None:
        return _apply_once(registry, command, term)
    # Each token has its own keys: nobody can take another's answer, or spoil it.
    key = f"{command.by.token}/{command.idempotency_key}"
    answer = registry.answers.get(key)
    if answer is not None:
        return registry, _answer_again(registry, command, answer)
    after, reply = _apply_once(registry, command, term)
    if reply.refusal is not None and reply.refusal.code is Code.INVALID:
        return after, reply  # Decided by the command alone; its key may be as bad as the rest.
    answers = registry.answers.with_answer(key, _answer(command, reply))
    return replace(after, answers=answers), reply


def _apply_once(registry: Registry, command: Command, term: int) -> tuple[Registry, Reply]:
    gone: list[str] = []  # Upstreams that a restore takes out.
    try:
        if refusal := check_command(command):
            raise RefusedError(refusal.code, refusal.detail, refusal.hint)
        match command:
            case RemoveUpstream():
                return _remove_upstream(registry, command)
            case ExpireLeases():
                drafts = _expire(registry, command, term)
            case RaiseLevel():
                return _raise_level(registry, command)
            case MoveMember():
                return _move_member(registry, command)
            case Restore():
                stamp = Changed(command.by, registry.revision + 1, command.at)
                drafts, gone = restore(registry, command, stamp)
            case _:
                drafts = [_draft(registry, command)]
        return _settle(registry, command, drafts, gone)
    except RefusedError as error:
        return registry, Reply(Outcome.REFUSED, registry.revision, refusal=error.refusal)


def _draft(registry: Registry, command: Command) -> Draft:
    stamp = Changed(command.by, registry.revision + 1, command.at)
    upstream = registry.upstreams.get(command.upstream)
    if upstream is None and not isinstance(command, ApplyFile | SyncFile):
        raise _unknown_upstream(command)
    draft = Draft(command.upstream, upstream, registry.granted)
    match command:
        case PutBackend():
            _put(draft, command, stamp)
        case PatchBackend():
            _require_match(command, draft.before, command.key)
            _edit(draft, command.key, command.fields)
            draft.about = command.key
        case RemoveBackend():
            _require_match(command, draft.before, command.key)
            _edit(draft, command.key, None)
        case PatchUpstream():
            _require_match(command, draft.before, None)
            for key, fields in command.edits:
                _edit(draft, key, fields)
        case RenewLease():
            _require_match(command, draft.before, command.key)
            _renew(draft, command.key)
        case ApplyFile():
            _take_file(draft, command, stamp)
        case SyncFile():
            speech = file_view.Speech(said_by_key(command.said), command.version, stamp)
            _take_judgement(draft, file_view.take_whole(draft.view, speech), stamp)
        case _:
            raise AssertionError(f"no way to apply {command.kind}")
    return draft


def _put(draft: Draft, command: PutBackend, stamp: Changed) -> None:
    key, fields = command.key, command.fields
    before = draft.get(key)
    if command.if_none_match and before is not None:
        raise RefusedError(Code.PRECONDITION_FAILED, f"{key} is already in {command.upstream}")
    _require_match(command, draft.before, key)
    address = fields.address or (before.address if before else key)
    _require_address(key, address)
    entry = Entry(
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
    draft.put(key, _leased(draft, entry, fields.ttl or 0.0))
    draft.about = key


def _leased(draft: Draft, entry: Entry, ttl: float) -> Entry:
    """
    Return it with a lease that begins now; without one where `ttl` is 0.

    It gets a number of its own though nothing else may change: what the leader has proposed
    about the lease before must not end this one.
    """
    if not ttl:
        return replace(entry, ttl=None, suspect=False, lease=0)
    return replace(entry, ttl=float(ttl), suspect=False, lease=draft.grant())


def _edit(draft: Draft, key: str, fields: Fields | None) -> None:
    """Change or remove one backend that must be there."""
    before = _present(draft, key)
    if fields is None:
        draft.put(key, None)
        return
    address = fields.address or before.address
    _require_address(key, address)
    merged = {**before.labels, **(fields.labels or {})}
    labels = {name: value for name, value in merged.items() if value is not None}
    if len(labels) > LABELS_MAX:
        raise RefusedError(Code.TOO_MANY, f"a backend has at most {LABELS_MAX} labels")
    entry = replace(
        before,
        address=address,
        weight=before.weight if fields.weight is None else fields.weight,
        state=fields.state or before.state,
        backup=before.backup if fields.backup is None else fields.backup,
        labels=labels,
    )
    draft.put(key, entry if fields.ttl is None else _leased(draft, entry, fields.ttl))


def _renew(draft: Draft, key: str) -> None:
    before = _present(draft, key)
    if before.ttl is None:
        raise RefusedError(
            Code.NOT_FOUND, f"{key} has no lease to renew", 'register it again, with a "ttl"'
        )
    draft.put(key, _leased(draft, before, before.ttl))
    draft.about = key


def _present(draft: Draft, key: str) -> Entry:
    entry = draft.get(key)
    if entry is None:
        raise RefusedError(
            Code.NOT_FOUND,
            f"{draft.name} has no backend {key}",
            f"`lb backend list {draft.name}` shows those it has",
        )
    return entry


def _require_address(key: str, address: str) -> None:
    """A backend is known by its name, or else by its address and no other."""
    if not is_name(key) and address != key:
        raise RefusedError(
            Code.INVALID,
            f"{key} has no name: its address is what it is known by",
            "remove it and add the new address, or add that under a name",
        )
    if is_name(key) and address == key:
        raise RefusedError(
            Code.INVALID, f"{key} is a name, and no address is given for it", 'say "address" too'
        )


def _take_file(draft: Draft, command: ApplyFile, stamp: Changed) -> None:
    if command.said is None:
        return  # The file only names the upstream.
    remembered = None if command.remembered is None else said_by_key(command.remembered)
    speech = file_view.Speech(said_by_key(command.said), command.version, stamp)
    _take_judgement(draft, file_view.judge(draft.view, remembered, speech), stamp)


def _take_judgement(draft: Draft, judgement: file_view.Judgement, stamp: Changed) -> None:
    for change in judgement.apply:
        key = change[0]
        draft.put(key, file_view.entry_after(draft.get(key), change, stamp))
    draft.view = judgement.view
    draft.stale = judgement.stale
    draft.differs = judgement.differs


def _expire(registry: Registry, command: ExpireLeases, term: int) -> list[Draft]:
    """What is due by the clock of a leader that leads no more is not due any more."""
    if command.term != term:
        return []
    due: dict[str, list[tuple[str, int]]] = {}
    for name, key, lease in command.due:
        due.setdefault(name, []).append((key, lease))
    drafts = []
    for name, leases in due.items():
        upstream = registry.upstreams.get(name)
        if upstream is None:
            continue
        verdict = judge_due(upstream, leases, command.at)
        draft = Draft(name, upstream, registry.granted)
        for key in verdict.suspect:
            draft.put(key, replace(upstream.backends[key], suspect=True))
        for key in verdict.ended:
            draft.put(key, None)
        draft.expired = verdict.expired
        drafts.append(draft)
    return drafts


def _settle(
    registry: Registry, command: Command, drafts: list[Draft], gone: list[str]
) -> tuple[Registry, Reply]:
    """Judge the end state, then make it the registry's in one revision."""
    _require_room(registry, drafts, gone)
    if not isinstance(command, ExpireLeases):  # That has a guard of its own.
        for draft in drafts:
            _require_enough(command, draft)
    changes = {draft.name: draft.changes() for draft in drafts}
    is_new = any(draft.new or changes[draft.name] for draft in drafts) or bool(gone)
    revision = registry.revision + is_new
    stamp = Changed(command.by, revision, command.at)
    after = {draft.name: draft.finish(changes[draft.name], stamp) for draft in drafts}
    for name in gone:
        keys = registry.upstreams[name].backends
        changes[name] = tuple(Change(key, "removed") for key in keys)
    if gone or any(after[draft.name] is not draft.before for draft in drafts):
        upstreams = {**registry.upstreams, **after}
        for name in gone:
            del upstreams[name]
        granted = max(draft.granted for draft in drafts) if drafts else registry.granted
        registry = replace(registry, revision=revision, upstreams=upstreams, granted=granted)
    seen = tuple(
        change if command.upstream else replace(change, upstream=name)
        for name, each in changes.items()
        for change in each
    )
    if isinstance(command, ABOUT_NONE):
        outcome = Outcome.CHANGED if is_new else Outcome.UNCHANGED
        return registry, Reply(outcome, revision, changes=seen)
    (draft,) = drafts
    return registry, Reply(
        _outcome(command, draft.new, seen),
        revision,
        backend=None if draft.about is None else after[draft.name].backends[draft.about],
        changes=seen,
        stale=draft.stale,
        differs=draft.differs,
    )


def _outcome(command: Command, new: bool, changes: tuple[Change, ...]) -> Outcome:
    if new:
        return Outcome.CREATED
    if not changes:
        return Outcome.UNCHANGED
    if isinstance(command, PutBackend) and changes[0].what == "added":
        return Outcome.CREATED
    return Outcome.CHANGED


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
        raise RefusedError(Code.PRECONDITION_FAILED, f"{command.upstream} has no backend {key}")
    if upstream.revision in command.if_match:
        return
    if entry is not None and entry.revision in command.if_match:
        return
    what, at = (
        (command.upstream, upstream.revision) if entry is None else (entry.key, entry.revision)
    )
    raise RefusedError(
        Code.PRECONDITION_FAILED,
        f"{what} is not as it was: its revision is {at}",
        "read it again, then decide again",
    )


def _require_room(registry: Registry, drafts: list[Draft], gone: list[str]) -> None:
    for draft in drafts:
        if draft.size > BACKENDS_MAX:
            raise RefusedError(
                Code.TOO_MANY, f"{draft.name} would have more than {BACKENDS_MAX} backends"
            )
    new = sum(draft.new for draft in drafts)
    if new and len(registry.upstreams) + new - len(gone) > UPSTREAMS_MAX:
        raise RefusedError(
            Code.TOO_MANY,
            f"the registry already has {len(registry.upstreams)} upstreams",
            "`lb upstream remove` those that no config names any more",
        )


def _require_enough(command: Command, draft: Draft) -> None:
    """
    Refuse what takes backends out and leaves none, or too few, active.

    A share is one of what the upstream had before, or has now if that is more: else a list
    cut down to one backend would leave all of them active. What takes none out may pass
    whatever is left: it makes nothing worse.
    """
    if command.force or not draft.loses_any():
        return
    hint = "add or enable others first, or repeat with force"
    if not any(draft.active()):
        raise RefusedError(
            Code.WOULD_EMPTY, f"{draft.name} would be left without an active backend", hint
        )
    units = round(command.min_active * SHARE_UNITS)
    if not units:
        return  # Nobody needs them counted.
    left, of = len(list(draft.active())), max(len(draft.before.backends), draft.size)
    if left * SHARE_UNITS < units * of:
        raise RefusedError(
            Code.WOULD_EMPTY,
            f"{draft.name} would be left with {left} active of {of} backends, "
            f"fewer than min_active = {command.min_active:.4g}",
            hint,
        )


def _raise_level(registry: Registry, command: RaiseLevel) -> tuple[Registry, Reply]:
    if command.level <= registry.level:
        return registry, Reply(Outcome.UNCHANGED, registry.revision)
    return replace(registry, level=command.level), Reply(Outcome.CHANGED, registry.revision)


def _move_member(registry: Registry, command: MoveMember) -> tuple[Registry, Reply]:
    before = registry.members.get(command.member)
    if before is None:
        raise RefusedError(Code.NOT_FOUND, "that is no member of the group")
    if before.address == command.address:
        return registry, Reply(Outcome.UNCHANGED, registry.revision)
    revision = registry.revision + 1
    stamp = Changed(command.by, revision, command.at)
    moved = replace(before, address=command.address, changed=stamp)
    members = {**registry.members, command.member: moved}
    return replace(registry, revision=revision, members=members), Reply(Outcome.CHANGED, revision)


def _remove_upstream(registry: Registry, command: RemoveUpstream) -> tuple[Registry, Reply]:
    upstream = registry.upstreams.get(command.upstream)
    if upstream is None:
        raise _unknown_upstream(command)
    if command.named_by:
        raise RefusedError(
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


def _unknown_upstream(command: Command) -> RefusedError:
    return RefusedError(
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
    if upstream is not None and isinstance(command, PutBackend | PatchBackend | RenewLease):
        backend = upstream.backends.get(command.key)
    return Reply(
        Outcome(answer.outcome),
        answer.revision,
        refusal=Refusal(Code(answer.code), answer.detail, answer.hint) if answer.code else None,
        backend=backend,
        repeated=True,
    )


def _answer(command: Command, reply: Reply) -> Answer:
    refusal = reply.refusal
    return Answer(
        digest=digest_of_command(command),
        outcome=reply.outcome.value,
        revision=reply.revision,
        code=refusal.code.value if refusal else "",
        detail=refusal.detail if refusal else "",
        hint=refusal.hint if refusal else "",
    )
