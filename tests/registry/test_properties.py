"""What holds of any commands in any order: found by trying many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import State
from lb.registry import (
    LEVEL,
    ApplyFile,
    By,
    Command,
    ExpireLeases,
    Fields,
    LeaseClock,
    Outcome,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    RaiseLevel,
    Registry,
    RemoveBackend,
    RemoveUpstream,
    RenewLease,
    Restore,
    Said,
    SyncFile,
    UpstreamEntry,
    apply,
    change_member,
    decode_command,
    encode_command,
    encode_member,
    registry_from_plain,
    registry_to_plain,
    state_hash,
)
from registry.kit import BASE, A, B, C, check, put, through_json, with_backends

KEYS = st.sampled_from([A, B, C, "blue", "green", "nowhere", ""])
STATES = st.none() | st.sampled_from(State)
FIELDS = st.builds(
    Fields,
    address=st.none() | st.sampled_from([A, B, C, "junk", "\ud800:80"]),
    weight=st.none() | st.integers(0, 3),
    state=STATES,
    backup=st.none() | st.booleans(),
    labels=st.none() | st.dictionaries(st.sampled_from("ab"), st.none() | st.just("x"), max_size=2),
    ttl=st.none() | st.sampled_from([0, 5, 15.0, 1]),
)
SAID = st.lists(
    st.builds(
        Said,
        address=st.sampled_from([A, B, C]),
        name=st.none() | st.sampled_from(["blue", "green"]),
        weight=st.integers(0, 2),
    ),
    max_size=3,
    unique_by=lambda said: said.key,
).map(tuple)
COMMON: dict[str, Any] = {
    "upstream": st.sampled_from(["app", "web"]),
    "by": st.builds(By, token=st.sampled_from(["", "ops"]), member=st.sampled_from("abc")),
    "at": st.floats(0, 2e9),
    "force": st.booleans(),
    "min_active": st.sampled_from([0.0, 0.5]),
    "if_match": st.none() | st.just("*") | st.tuples(st.integers(0, 9)),
    "idempotency_key": st.none() | st.sampled_from(["k1", "k2"]),
}
ABOUT_NONE: dict[str, Any] = COMMON | {"upstream": st.just("")}
DUE = st.tuples(st.sampled_from(["app", "web"]), KEYS, st.integers(0, 5))
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(PutBackend, key=KEYS, fields=FIELDS, if_none_match=st.booleans(), **COMMON),
    st.builds(PatchBackend, key=KEYS, fields=FIELDS, **COMMON),
    st.builds(RemoveBackend, key=KEYS, **COMMON),
    st.builds(
        PatchUpstream,
        edits=st.lists(st.tuples(KEYS, st.none() | FIELDS), max_size=3).map(tuple),
        **COMMON,
    ),
    st.builds(
        ApplyFile,
        remembered=st.none() | SAID,
        said=st.none() | SAID,
        version=st.integers(0, 2),
        **COMMON,
    ),
    st.builds(SyncFile, said=SAID, version=st.integers(0, 2), **COMMON),
    st.builds(RemoveUpstream, named_by=st.just(()) | st.just(("a",)), **COMMON),
    st.builds(RenewLease, key=KEYS, **COMMON),
    st.builds(
        ExpireLeases,
        term=st.integers(1, 2),
        due=st.lists(DUE, max_size=4).map(tuple),
        **ABOUT_NONE,
    ),
    st.builds(RaiseLevel, level=st.integers(0, LEVEL), **ABOUT_NONE),
    st.builds(Restore, content=st.just({}), **ABOUT_NONE),
)
CHANGES_OF_MEMBERS = st.tuples(
    st.sampled_from(["add", "promote", "remove"]),
    st.integers(1, 3),
    st.builds(encode_member, st.sampled_from(["a", "b"]), st.just(A), st.just(By()), st.just(1.0)),
)


@settings(deadline=None)  # Others may want the machine, too.
@given(st.lists(st.tuples(COMMANDS, st.integers(1, 2)), max_size=14), st.integers(0, 13))
def test_any_commands_give_the_same_on_every_member(
    commands: list[tuple[Command, int]], saved_at: int
) -> None:
    """Applied as they are, and as they come out of a log on a member restored from a snapshot."""
    here = there = Registry("0" * 32)
    saved: dict[str, Any] = {}
    for number, (drawn, term) in enumerate(commands):
        if number == saved_at:
            saved = through_json(registry_to_plain(here))
        command = replace(drawn, content=saved) if isinstance(drawn, Restore) else drawn
        travelled = decode_command(encode_command(command))
        assert travelled == command

        before, (here, reply) = here, apply(here, command, term)
        check(before, here, reply)
        restored = registry_from_plain(through_json(registry_to_plain(there)))
        there, echo = apply(restored, travelled, term)

        assert (there, echo) == (here, reply)
        assert state_hash(there) == state_hash(here)
        assert list(there.upstreams) == list(here.upstreams)
        if not command.force and not reply.repeated:
            nobody_is_left_without(before, here)


def nobody_is_left_without(before: Registry, after: Registry) -> None:
    """Whatever was not forced: an upstream that had an active backend has one, or is gone."""
    for name, entry in before.upstreams.items():
        if actives(entry) and name in after.upstreams:
            assert actives(after.upstreams[name])


def actives(entry: UpstreamEntry) -> int:
    return sum(each.takes_traffic for each in entry.backends.values())


@settings(deadline=None)
@given(st.lists(st.one_of(COMMANDS, CHANGES_OF_MEMBERS), max_size=14))
def test_members_and_contents_do_not_touch_each_other(steps: list[Any]) -> None:
    both = contents = members = Registry("0" * 32)
    for step in steps:
        if isinstance(step, tuple):
            both, members = change_member(both, *step), change_member(members, *step)
        elif not isinstance(step.if_match, tuple):  # Revisions differ, and nothing else.
            both, _ = apply(both, step, 1)
            contents, _ = apply(contents, step, 1)

    assert both.revision == contents.revision + members.revision
    assert both.members.keys() == members.members.keys()
    assert both.removed == members.removed
    assert both.upstreams.keys() == contents.upstreams.keys()
    assert registry_from_plain(through_json(registry_to_plain(both))) == both


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("rxpu"), st.integers(0, 5), st.integers(0, 40))))
def test_a_lease_lasts_its_ttl_after_whatever_was_answered_last(
    steps: list[tuple[str, int, int]],
) -> None:
    """Registered, renewed, expired and taken over by other leaders, in any order and pace."""
    registry = with_backends(A)
    clock, now, promised = LeaseClock(), 0.0, dict[str, float]()
    clock.promote(registry, now, 2.0)
    for what, number, tenths in steps:
        now += tenths / 10
        key = f"10.1.0.{number}:80"
        if what == "p":
            clock = LeaseClock()
            clock.promote(registry, now, 2.0)
        elif what == "u" or (what == "r" and not clock.renew("app", key, now)):
            command: Command = put(key, Fields(ttl=5))
            if what == "r":
                command = RenewLease(key=key, **BASE)
            registry, reply = apply(registry, command, 1)
            if reply.outcome is not Outcome.REFUSED:
                promised[key] = now + 5
        elif what == "r":
            promised[key] = now + 5
        else:
            due = ExpireLeases(term=1, due=clock.due(now), at=now)
            registry, reply = apply(registry, due, 1)
            for change in reply.changes:
                assert promised[change.key] <= now, (change, now)
        clock.follow(registry, now)
