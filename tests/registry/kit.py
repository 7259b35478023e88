"""Short words for commands, and what holds after every one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lb.registry import (
    ApplyFile,
    By,
    Code,
    Command,
    Fields,
    Outcome,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    Registry,
    RemoveBackend,
    Reply,
    Said,
    UpstreamEntry,
    apply,
    registry_from_plain,
    registry_to_plain,
)

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
BY = By(token="ops", member="a", source="api", note="why not")
BASE: dict[str, Any] = {"upstream": "app", "by": BY, "at": 1_000.5}


def put(key: str, fields: Fields | None = None, **more: Any) -> PutBackend:
    return PutBackend(key=key, fields=fields or Fields(), **BASE | more)


def patch(key: str, fields: Fields, **more: Any) -> PatchBackend:
    return PatchBackend(key=key, fields=fields, **BASE | more)


def remove(key: str, **more: Any) -> RemoveBackend:
    return RemoveBackend(key=key, **BASE | more)


def edit(edits: Mapping[str, Fields | None], **more: Any) -> PatchUpstream:
    return PatchUpstream(edits=tuple(edits.items()), **BASE | more)


def first_file(*addresses: str, **more: Any) -> ApplyFile:
    said = tuple(map(Said, addresses))
    return ApplyFile(remembered=None, said=said, **BASE | more)


def with_backends(*addresses: str) -> Registry:
    """A registry at revision 1 whose upstream `app` came from a file."""
    return done(Registry("0" * 32), first_file(*addresses))


def run(registry: Registry, *commands: Command) -> tuple[Registry, Reply]:
    """Apply all; return the last reply. Whatever happens is checked to be consistent."""
    replies = []
    for command in commands:
        before, (registry, reply) = registry, apply(registry, command)
        check(before, registry, reply)
        replies.append(reply)
    return registry, replies[-1]


def done(registry: Registry, *commands: Command) -> Registry:
    """Apply all, none of which may be refused."""
    for command in commands:
        registry, reply = run(registry, command)
        assert reply.outcome is not Outcome.REFUSED, reply.refusal
    return registry


def refused(registry: Registry, command: Command) -> Code:
    after, reply = run(registry, command)
    assert reply.refusal is not None, reply
    assert (after.upstreams, after.revision) == (registry.upstreams, registry.revision)
    return reply.refusal.code


def check(before: Registry, after: Registry, reply: Reply) -> None:
    """Whatever the command: what holds of every step."""
    assert reply.revision == after.revision or reply.repeated
    assert after.revision - before.revision in (0, 1)
    assert (reply.refusal is not None) == (reply.outcome is Outcome.REFUSED)
    assert registry_from_plain(through_json(registry_to_plain(after))) == after
    assert Reply.from_plain(through_json(reply.to_plain())) == reply
    for entry in after.upstreams.values():
        assert entry.revision <= after.revision
        for key, backend in entry.backends.items():
            assert key == backend.key
            assert backend.revision <= entry.revision


def through_json(plain: Any) -> Any:
    return json.loads(json.dumps(plain))


def app(registry: Registry) -> UpstreamEntry:
    return registry.upstreams["app"]


def refused_quickly(registry: Registry, command: Command) -> Code:
    """As `refused`, without writing ten thousand backends down."""
    after, reply = apply(registry, command)
    assert after is registry
    assert reply.refusal
    return reply.refusal.code
