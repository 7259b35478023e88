"""What changes of members do to the registry, and old forms that know nothing of members."""

from __future__ import annotations

import pytest

from lb.registry import (
    By,
    Changed,
    Code,
    Member,
    MoveMember,
    Outcome,
    Registry,
    UnknownCommandError,
    apply,
    change_member,
    encode_member,
    member_named,
    registry_from_plain,
    registry_to_plain,
    state_hash,
)
from lb.registry.values import REMOVED_MAX
from registry.kit import BY, A, through_json, with_backends

ADDRESS = "10.0.0.1:9901"


def context(name: str = "", address: str = "") -> bytes:
    return encode_member(name, address, BY, 2_000.0)


def test_a_member_is_added_promoted_and_removed() -> None:
    registry = change_member(with_backends(A), "add", 7, context("a", ADDRESS))
    assert registry.members == {7: Member(7, "a", ADDRESS, False, Changed(BY, 2, 2_000.0))}

    registry = change_member(registry, "promote", 7, context())
    assert registry.members == {7: Member(7, "a", ADDRESS, True, Changed(BY, 3, 2_000.0))}

    registry = change_member(registry, "remove", 7, context())
    assert (registry.members, registry.removed, registry.revision) == ({}, (7,), 4)


def test_of_two_of_one_name_the_newer_one_is_meant() -> None:
    registry = change_member(Registry("0" * 32), "add", 7, context("a", ADDRESS))
    registry = change_member(registry, "add", 3, context("a", "10.0.0.2:9901"))

    member = member_named(registry, "a")
    assert member is not None
    assert member.id == 3
    assert member_named(registry, "b") is None


def test_ids_of_those_who_left_are_bounded() -> None:
    registry = Registry("0" * 32)
    for number in range(1, REMOVED_MAX + 3):
        registry = change_member(registry, "remove", number, context())

    assert registry.removed == tuple(range(3, REMOVED_MAX + 3))


@pytest.mark.parametrize(
    ("what", "data"),
    [("rename", context()), ("add", b""), ("add", b"[]"), ("add", b"{}"), ("add", b"\xff")],
)
def test_a_change_that_cannot_be_read_stops(what: str, data: bytes) -> None:
    with pytest.raises(UnknownCommandError):
        change_member(Registry("0" * 32), what, 1, data)


def test_a_long_note_does_not_outgrow_its_entry() -> None:
    by = By(token="t" * 63, member="m" * 63, note="\U0001f980" * 1_000)

    assert len(encode_member("n" * 63, "a" * 300, by, 1e10 / 3)) < 4_096


def test_members_are_part_of_the_plain_form_and_of_the_hash() -> None:
    before = with_backends(A)
    after = change_member(before, "add", 7, context("a", ADDRESS))
    after = change_member(after, "remove", 8, context())

    assert registry_from_plain(through_json(registry_to_plain(after))) == after
    assert state_hash(before) != state_hash(after)


def test_a_registry_of_an_older_version_is_read() -> None:
    plain = registry_to_plain(with_backends(A))
    assert sorted(plain) == ["answers", "id", "revision", "upstreams"]

    registry = registry_from_plain(plain)

    assert (registry.members, registry.removed, registry.level) == ({}, (), 1)


def test_a_registry_of_a_newer_level_is_not_read() -> None:
    with pytest.raises(ValueError, match="feature level 99"):
        registry_from_plain(registry_to_plain(with_backends(A)) | {"level": 99})


def test_a_member_that_moved_is_found_at_its_new_address() -> None:
    registry = change_member(Registry(id="g"), "add", 7, encode_member("a", "h:1", By(), 1.0))
    move = MoveMember(member=7, address="h:2", by=By(member="a"), at=2.0)

    after, reply = apply(registry, move)
    again, unchanged = apply(after, move)

    assert after.members[7].address == "h:2"
    assert after.members[7].changed.by.member == "a"
    assert reply.revision == after.revision == registry.revision + 1
    assert again is after
    assert unchanged.outcome is Outcome.UNCHANGED


def test_nobody_moves_who_is_no_member() -> None:
    registry = Registry(id="g")

    after, reply = apply(registry, MoveMember(member=7, address="h:2", by=By(), at=2.0))

    assert after is registry
    assert reply.refusal is not None
    assert reply.refusal.code is Code.NOT_FOUND
