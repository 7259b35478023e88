"""Form, bounds and sameness: what holds of every command, whatever it asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lb.registry import (
    ApplyFile,
    By,
    Code,
    Command,
    Fields,
    PatchUpstream,
    Registry,
    Said,
    SyncFile,
    UpstreamEntry,
    command_from_plain,
    command_to_plain,
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
    done,
    edit,
    first_file,
    patch,
    put,
    refused,
    refused_quickly,
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
