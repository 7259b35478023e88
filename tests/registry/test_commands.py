"""Form, bounds and sameness: what holds of every command, whatever it asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import State
from lb.registry import (
    ApplyFile,
    By,
    Code,
    Command,
    Fields,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    Registry,
    RemoveBackend,
    RemoveUpstream,
    Said,
    SyncFile,
    UpstreamEntry,
    apply,
    command_from_plain,
    command_to_plain,
    registry_from_plain,
    registry_to_plain,
    state_hash,
)
from lb.registry.answers import Answers
from lb.registry.check import EDITS_MAX, LABELS_MAX, NOTE_LENGTH_MAX
from lb.registry.values import BACKENDS_MAX, UPSTREAMS_MAX
from registry.kit import (
    BASE,
    A,
    B,
    C,
    app,
    check,
    done,
    edit,
    first_file,
    patch,
    put,
    refused,
    refused_quickly,
    through_json,
    with_backends,
)

# --- Form and bounds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:80", "[::1]:8080", "app.internal:1", "a_b.c-d:65535", "unix:/run/a b.sock"],
)
def test_addresses(address: str) -> None:
    registry = done(with_backends(A), put(address))

    assert app(registry).backends[address].address == address


@pytest.mark.parametrize(
    "address",
    [
        "", ":", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:080",
        "10.0.0.300:80", "1.2.3:80", "::1:80", "[::1]", "[::g]:80", "a b:80", "a..b:80", "-a:80",
        "http://a:80", "a:80/x", "unix:", "unix:run", "unix:/a\0b", "unix:/" + "x" * 107,
        "x" * 400 + ":80", "\ud800:80", "unix:/\udcff", "a:+80", "a:8_0", "a:٨٠", "é:80",
    ],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    assert refused(with_backends(A), put("x", Fields(address=address))) is Code.INVALID


@pytest.mark.parametrize("address", ["srv://_http._tcp.a"])
def test_addresses_that_come_later(address: str) -> None:
    assert refused(with_backends(A), put("x", Fields(address=address))) is Code.NOT_SUPPORTED


@pytest.mark.parametrize(
    "command",
    [
        put(B, upstream=""),
        put(B, upstream="a/b"),
        put(B, upstream="x" * 64),
        put("a b"),
        put(B, Fields(weight=-1)),
        put(B, Fields(weight=1001)),
        put(B, Fields(weight=True)),
        put(B, Fields(ttl=4.9)),
        put(B, Fields(ttl=-1)),
        put(B, Fields(ttl=True)),
        put(B, Fields(ttl=86_401)),
        put(B, Fields(ttl=float("nan"))),
        patch(A, Fields(ttl=1)),
        edit({A: Fields(ttl=1)}),
        put(B, Fields(labels={"a b": "c"})),
        put(B, Fields(labels={"a": "\ud800"})),
        put(B, Fields(labels={"a": None})),
        put(B, Fields(labels={f"l{n}": "" for n in range(LABELS_MAX + 1)})),
        put(B, by=By(note="x" * (NOTE_LENGTH_MAX + 1))),
        put(B, by=By(note="\udcff")),
        put(B, idempotency_key=""),
        put(B, idempotency_key="x" * 256),
        put(B, idempotency_key="\udcff"),
        put(B, min_active=1.5),
        put(B, min_active=float("nan")),
        PatchUpstream(edits=((A, Fields()), (A, None)), **BASE),
        first_file(A, A),
        first_file("nowhere"),
        ApplyFile(remembered=None, said=(Said(A, name="a b"),), **BASE),
        ApplyFile(remembered=None, said=(Said(A, weight=9_999),), **BASE),
        SyncFile(said=(Said(A), Said(B, name="x"), Said(C, name="x")), **BASE),
    ],
)
def test_what_makes_no_sense_is_refused(command: Command) -> None:
    assert refused(with_backends(A), command) is Code.INVALID


def test_everything_is_bounded() -> None:
    registry = with_backends(*(f"h{n}:80" for n in range(BACKENDS_MAX)))
    assert refused_quickly(registry, put("one-more:80")) is Code.TOO_MANY
    one_more = first_file(*(f"h{n}:80" for n in range(BACKENDS_MAX + 1)))
    assert refused_quickly(Registry("0"), one_more) is Code.TOO_MANY

    edits = {f"h{n}:80": Fields(weight=2) for n in range(EDITS_MAX + 1)}
    assert refused_quickly(registry, edit(edits)) is Code.TOO_MANY

    upstream = UpstreamEntry(1)
    full = Registry("0", 1, {f"u{n}": upstream for n in range(UPSTREAMS_MAX)})
    assert refused_quickly(full, first_file(A)) is Code.TOO_MANY

    some = Fields(labels={f"a{n}": "" for n in range(LABELS_MAX)})
    registry = done(with_backends(A), patch(A, some))
    assert refused(registry, patch(A, Fields(labels={"more": ""}))) is Code.TOO_MANY


# --- The same everywhere ----------------------------------------------------------------------

KEYS = st.sampled_from([A, B, C, "blue", "green", "nowhere", ""])
STATES = st.none() | st.sampled_from(State)
FIELDS = st.builds(
    Fields,
    address=st.none() | st.sampled_from([A, B, C, "junk", "\ud800:80"]),
    weight=st.none() | st.integers(0, 3),
    state=STATES,
    backup=st.none() | st.booleans(),
    labels=st.none() | st.dictionaries(st.sampled_from("ab"), st.none() | st.just("x"), max_size=2),
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
)


@settings(deadline=None)  # Others may want the machine, too.
@given(st.lists(COMMANDS, max_size=12))
def test_any_commands_give_the_same_on_every_member(commands: list[Command]) -> None:
    """Applied as they are, and as they come out of a log on a member restored from a snapshot."""
    here = there = Registry("0" * 32)
    for command in commands:
        travelled = command_from_plain(through_json(command_to_plain(command)))
        assert travelled == command

        active = {name: actives(entry) for name, entry in here.upstreams.items()}
        before, (here, reply) = here, apply(here, command)
        check(before, here, reply)
        there, echo = apply(registry_from_plain(through_json(registry_to_plain(there))), travelled)

        assert (there, echo) == (here, reply)
        assert state_hash(there) == state_hash(here)
        assert list(there.upstreams) == list(here.upstreams)
        if not command.force and active.get(command.upstream) and not reply.repeated:
            removed = command.upstream not in here.upstreams
            assert removed or actives(here.upstreams[command.upstream])


def actives(entry: UpstreamEntry) -> int:
    return sum(each.takes_traffic for each in entry.backends.values())


def test_the_state_hash_sees_everything() -> None:
    registry = done(with_backends(A, B), patch(A, Fields(weight=2), idempotency_key="k1"))
    others = [
        replace(registry, id="1" * 32),
        replace(registry, revision=7),
        replace(registry, answers=Answers()),
        done(registry, patch(A, Fields(weight=3))),
        done(registry, SyncFile(said=(Said(A),), **BASE)),
    ]

    assert len({state_hash(each) for each in (registry, *others)}) == 6
    # Members of the version before have this one too: a new field must not change it.
    assert state_hash(registry) == "aead9223aff37b9a9930ea7121e1a0fd"


def test_an_unknown_command_is_never_skipped() -> None:
    plain = command_to_plain(put(A)) | {"kind": "grant-lease"}

    with pytest.raises(KeyError, match="grant-lease"):
        command_from_plain(plain)
