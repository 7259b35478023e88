"""Contents back from a backup: what the upstreams of a registry must become.

A backend that is as the backup has it stays as it is, with its revision. All else is stamped
with the revision of the restore, whatever the backup says: revisions never go back, or an ETag
of yesterday would match again. Leases begin anew, and nobody is suspect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lb.registry.check import check_entry, check_said, is_name
from lb.registry.commands import Code, Restore
from lb.registry.draft import WRITTEN_FIELDS, Draft, RefusedError
from lb.registry.values import (
    PAST_VIEWS_MAX,
    UPSTREAMS_MAX,
    Changed,
    Entry,
    Registry,
    UpstreamEntry,
    View,
)


def restore(registry: Registry, command: Restore, stamp: Changed) -> tuple[list[Draft], list[str]]:
    """Return a draft of each upstream in the backup, and the names of those that are not in it."""
    content = _read(command.content, registry.level)
    granted = registry.granted
    drafts = []
    for name, upstream in content.items():
        draft = Draft(name, registry.upstreams.get(name), granted)
        _make_equal(draft, upstream, stamp)
        granted = draft.granted
        drafts.append(draft)
    return drafts, [name for name in registry.upstreams if name not in content]


def _make_equal(draft: Draft, content: UpstreamEntry, stamp: Changed) -> None:
    for key in draft.before.backends:
        if key not in content.backends:
            draft.put(key, None)
    for key, entry in content.backends.items():
        before = draft.get(key)
        if before is not None and _same(before, entry):
            continue
        lease = draft.grant() if entry.ttl is not None else 0
        draft.put(key, replace(entry, changed=stamp, suspect=False, lease=lease))
    view = content.view
    if (
        view is None
        or draft.view is None
        or replace(view, changed=draft.view.changed) != draft.view
    ):
        draft.view = view and replace(view, changed=stamp)


def _same(one: Entry, other: Entry) -> bool:
    return all(
        getattr(one, name) == getattr(other, name) for name in WRITTEN_FIELDS if name != "suspect"
    )


def _read(content: Any, level: int) -> dict[str, UpstreamEntry]:
    try:
        if content.get("level", 1) > level:
            raise _bad(f"it needs feature level {content['level']}, and this group has {level}")
        upstreams = {
            name: UpstreamEntry.from_plain(plain) for name, plain in content["upstreams"].items()
        }
        for name, upstream in upstreams.items():
            if not is_name(name):
                raise _bad("a name of an upstream is none")
            for entry in upstream.backends.values():
                if problem := check_entry(entry):
                    raise _bad(f"{name}: {problem.detail}")
            if upstream.view is not None:
                _check_view(name, upstream.view)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad(f"it lacks something, or has it in another form ({error!r})") from error
    if len(upstreams) > UPSTREAMS_MAX:
        raise RefusedError(Code.TOO_MANY, f"a registry has at most {UPSTREAMS_MAX} upstreams")
    return upstreams


def _check_view(name: str, view: View) -> None:
    if problem := check_said(view.said.values()):
        raise _bad(f"{name}: {problem.detail}")
    digests = (*view.past, *view.merged)
    sound = (
        type(view.version) is int
        and all(type(digest) is str for digest in digests)
        and all(type(said.backup) is bool for said in view.said.values())
    )
    if not sound or max(len(view.past), len(view.merged)) > PAST_VIEWS_MAX:
        raise _bad(f"{name}: the file's view is none")


def _bad(detail: str) -> RefusedError:
    return RefusedError(
        Code.INVALID,
        f"this is no backup of a registry: {detail}",
        "take one with `lb group backup`",
    )
