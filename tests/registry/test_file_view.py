"""What a changed file still changes: late, old, repeated, crashed and brand-new instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import State
from lb.registry import (
    ApplyFile,
    Change,
    Code,
    Fields,
    Outcome,
    Registry,
    Said,
    Source,
    SyncFile,
    said_by_key,
)
from lb.registry.values import PAST_VIEWS_MAX
from registry.kit import (
    BASE,
    A,
    C,
    app,
    done,
    patch,
    put,
    refused,
    remove,
    run,
)

NEW = Registry("0" * 32)


def says(text: str) -> tuple[Said, ...]:
    """`a=1 b=3+` is what a file says: a with weight 1, b a backup with weight 3."""
    said = []
    for word in text.split():
        name, _, weight = word.partition("=")
        backup = weight.endswith("+")
        said.append(Said(f"{name}:80", name, int(weight.rstrip("+") or 1), backup))
    return tuple(said)


def file(before: str | None, now: str | None, **more: Any) -> ApplyFile:
    """A file that changed; `before` is None on an instance without memory."""
    return ApplyFile(
        remembered=None if before is None else says(before),
        said=None if now is None else says(now),
        **BASE | more,
    )


def holds(registry: Registry) -> str:
    """The upstream's backends as `says` writes them."""
    return written(app(registry).backends)


def view(registry: Registry) -> str:
    """The file's view as `says` writes it."""
    kept = app(registry).view
    return "nothing" if kept is None else written(kept.said)


def written(backends: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={each.weight}{'+' * each.backup}" for key, each in sorted(backends.items())
    )


# --- The first file ---------------------------------------------------------------------------


def test_a_new_upstream_is_taken_from_the_file() -> None:
    registry, reply = run(NEW, file(None, "a=1 b=3+"))

    assert reply.outcome is Outcome.CREATED
    assert [(change.key, change.what) for change in reply.changes] == [
        ("a", "added"),
        ("b", "added"),
    ]
    assert holds(registry) == view(registry) == "a=1 b=3+"
    assert {each.source for each in app(registry).backends.values()} == {Source.FILE}


def test_a_new_upstream_may_start_empty() -> None:
    registry, reply = run(NEW, file(None, ""))

    assert (reply.outcome, reply.revision) == (Outcome.CREATED, 1)
    assert (holds(registry), view(registry)) == ("", "")


def test_no_backends_key_says_nothing() -> None:
    registry, reply = run(NEW, file(None, None))
    assert (reply.outcome, view(registry)) == (Outcome.CREATED, "nothing")

    registry = done(registry, put(A))
    after, reply = run(registry, file(None, None))

    assert after is registry
    assert reply.outcome is Outcome.UNCHANGED


def test_an_empty_list_removes_and_no_list_does_not() -> None:
    registry = done(NEW, file(None, "a b"))

    assert holds(done(registry, file("a b", None))) == "a=1 b=1"
    assert refused(registry, file("a b", "")) is Code.WOULD_EMPTY
    assert holds(done(registry, file("a b", "", force=True))) == ""


def test_the_first_file_to_speak_is_taken_whole_beside_the_api() -> None:
    registry = done(NEW, file(None, None), put("x", Fields(address=C)))

    registry = done(registry, file(None, "a b"))

    assert holds(registry) == "a=1 b=1 x=1"


def test_an_upstream_that_was_removed_is_new_again_whatever_is_remembered() -> None:
    registry = done(NEW, file("a=1 b=2", "a=1 b=2"))

    assert holds(registry) == view(registry) == "a=1 b=2"


# --- A change acts once -----------------------------------------------------------------------


def test_a_change_is_applied_and_the_view_moves() -> None:
    registry = done(NEW, file(None, "a b c"))

    registry, reply = run(registry, file("a b c", "a=5 c d"))

    assert reply.changes == (
        Change("b", "removed"),
        Change("a", "changed", ("weight",)),
        Change("d", "added"),
    )
    assert registry.revision == 2  # All that one file changes is one command.
    assert holds(registry) == view(registry) == "a=5 c=1 d=1"


def test_the_order_in_the_file_is_no_change() -> None:
    registry = done(NEW, file(None, "a b"))

    after, reply = run(registry, file("b a", "b a"))

    assert after is registry
    assert reply.outcome is Outcome.UNCHANGED


def test_a_change_acts_once_however_many_instances_carry_it() -> None:
    registry = done(NEW, file(None, "a b"), file("a b", "a=5 b c"))
    registry = done(registry, patch("a", Fields(weight=9)), remove("c"))

    after, reply = run(registry, file("a b", "a=5 b c"))

    assert after is registry
    assert (reply.outcome, reply.stale) == (Outcome.UNCHANGED, ())


def test_a_crash_between_commit_and_memory_is_harmless() -> None:
    """The same is proposed again, and found to be done."""
    change = file("a b", "a=5")
    registry = done(NEW, file(None, "a b"), change, patch("a", Fields(state=State.ACTIVE)))

    after, _ = run(registry, change)

    assert after is registry


def test_a_late_file_undoes_nothing() -> None:
    """The others are two edits ahead; this instance reads the first of them now."""
    registry = done(NEW, file(None, "a b"), file("a b", "a=2 b"), file("a=2 b", "a=3 b c"))

    after, reply = run(registry, file("a b", "a=2 b"))
    assert (after, reply.stale) == (registry, ())

    after, reply = run(registry, file("a=2 b", "a=3 b c"))
    assert (after, reply.stale) == (registry, ())


def test_an_old_file_undoes_nothing() -> None:
    """An instance comes back with an old disk: file and memory are of long ago."""
    registry = done(NEW, file(None, "a b"), file("a b", "a=2 b"), file("a=2 b", "a=3 b"))

    for old in (file("a b", "a b"), file("a=7", "a b")):
        after, reply = run(registry, old)
        assert (after, reply.stale) == (registry, ())


def test_an_old_file_with_a_newer_memory_undoes_nothing_and_is_reported() -> None:
    """It may be a backup come back, or a change that all others skipped: a person must look."""
    registry = done(NEW, file(None, "a b"), file("a b", "a=2 b"), file("a=2 b", "a=3 b"))

    after, reply = run(registry, file("a=2 b", "a b"))

    assert (after, reply.stale) == (registry, ("a",))


def test_going_back_to_an_old_list_is_a_change_like_any_other() -> None:
    registry = done(NEW, file(None, "a b"), file("a b", "a=2 b"), file("a=2 b", "a b"))

    assert holds(registry) == view(registry) == "a=1 b=1"
    registry = done(registry, file("a=2 b", "a b"))  # The second instance carries it too.
    assert holds(registry) == view(registry) == "a=1 b=1"


@pytest.mark.parametrize("age", [PAST_VIEWS_MAX, PAST_VIEWS_MAX + 1])
def test_the_last_hundred_views_are_known(age: int) -> None:
    registry = done(NEW, file(None, "a=1 b=0"))
    for n in range(age):
        registry = done(registry, file(f"a=1 b={n}", f"a=1 b={n + 1}"))

    after, reply = run(registry, file("a=1", "a=1 b=0"))

    known = age <= PAST_VIEWS_MAX
    assert reply.stale == (() if known else ("b",))
    assert after == registry


# --- Behind: backend by backend ---------------------------------------------------------------


def test_an_instance_that_was_behind_is_judged_backend_by_backend() -> None:
    """The view has moved in a and b; this file changes b, c, d, and what the view has of e."""
    registry = done(NEW, file(None, "a b c d e"), file("a b c d e", "a=2 b=2 c d e=5"))

    registry, reply = run(registry, file("a b c d e", "a b=3 c=3 e=5 f"))

    assert reply.stale == ("b",)
    assert [(change.key, change.what) for change in reply.changes] == [
        ("d", "removed"),
        ("c", "changed"),
        ("f", "added"),
    ]
    assert holds(registry) == view(registry) == "a=2 b=2 c=3 e=5 f=1"


def test_a_stale_removal_and_a_stale_addition() -> None:
    registry = done(NEW, file(None, "a b"), file("a b", "a b=2 c=2"))

    after, reply = run(registry, file("a b", "a c"))

    assert reply.stale == ("b", "c")
    assert (after, reply.outcome) == (registry, Outcome.UNCHANGED)


def test_a_view_that_moved_bit_by_bit_is_a_past_view_as_well() -> None:
    registry = done(NEW, file(None, "a b"), file("a b", "a=2 b"), file("a b", "a b=2"))
    assert view(registry) == "a=2 b=2"

    after, _ = run(registry, file("a=9 b", "a=2 b"))

    assert after is registry


def test_what_came_in_by_a_merge_goes_again_though_the_newest_view_is_an_old_one() -> None:
    """One instance skipped the second file; another brings it late, and then the third."""
    registry = done(NEW, file(None, "a"), file("a", "a b"))

    registry = done(registry, file("a", "a c"))
    assert view(registry) == "a=1 b=1 c=1"
    registry = done(registry, file("a c", "a b"))

    assert holds(registry) == view(registry) == "a=1 b=1"


def test_a_merge_is_taken_back_however_many_old_lists_come_between() -> None:
    """Two lists late: c came in by a merge, and the last of the lists is without it."""
    registry = done(NEW, file(None, "a x"), file("a x", "a=2 c x"), file("a=2 c x", "x"))

    for before, now in (("a x", "a c x"), ("a c x", "a=2 c x"), ("a=2 c x", "x")):
        registry = done(registry, file(before, now))

    assert holds(registry) == view(registry) == "x=1"


# --- File and API -----------------------------------------------------------------------------


def test_the_file_never_writes_state() -> None:
    registry = done(NEW, file(None, "a b"), patch("a", Fields(state=State.DRAINING)))

    registry = done(registry, file("a b", "a=5 b"))

    backend = app(registry).backends["a"]
    assert (backend.weight, backend.state, backend.source) == (5, State.DRAINING, Source.FILE)


def test_the_file_removes_only_what_is_still_its_own() -> None:
    registry = done(NEW, file(None, "a b c"), put("a", Fields(weight=2)))
    registry = done(registry, patch("b", Fields(weight=2)))

    registry, reply = run(registry, file("a b c", "c"))

    assert reply.changes == (Change("b", "removed"),)
    assert holds(registry) == "a=2 c=1"
    assert view(registry) == "c=1"


def test_a_view_that_moves_alone_takes_no_revision() -> None:
    registry = done(NEW, file(None, "a b"), put("a"))

    after, reply = run(registry, file("a b", "b"))

    assert view(after) == "b=1"
    assert (reply.outcome, reply.revision) == (Outcome.UNCHANGED, registry.revision)
    assert app(after).revision == app(registry).revision
    kept = app(after).view
    assert kept
    assert kept.changed.revision == registry.revision


def test_what_was_set_through_the_api_survives_an_edit_of_something_else() -> None:
    registry = done(NEW, file(None, "a b c"), patch("a", Fields(weight=9)), remove("b"), put(A))

    registry = done(registry, file("a b c", "a=1+ b c=4"))

    assert holds(registry) == f"{A}=1 a=9+ c=4"


def test_the_file_may_name_what_the_api_put() -> None:
    """The newest write says the weight; the source was set at creation, and stays."""
    registry = done(NEW, file(None, "a"), put("b", Fields(address="b:80", weight=7)))

    registry = done(registry, file("a", "a b=3"))
    assert app(registry).backends["b"].weight == 3
    assert app(registry).backends["b"].source is Source.API

    registry = done(registry, file("a b=3", "a"))
    assert holds(registry) == "a=1 b=3"


def test_an_edited_backend_that_the_api_removed_is_there_again() -> None:
    registry = done(NEW, file(None, "a b"), remove("b"))
    assert holds(done(registry, file("a b", "a=2 b"))) == "a=2"

    registry = done(registry, file("a b", "a b=2"))

    assert holds(registry) == "a=1 b=2"
    assert app(registry).backends["b"].source is Source.FILE


def test_a_new_address_under_the_same_name() -> None:
    registry = done(NEW, file(None, "a b"))
    moved = (Said("c:80", "a"), *says("b"))

    registry, reply = run(registry, replace(file("a b", ""), said=moved))

    assert reply.changes == (Change("a", "changed", ("address",)),)


# --- Too few left -----------------------------------------------------------------------------


def test_a_file_is_judged_at_its_end_and_refused_whole() -> None:
    registry = done(NEW, file(None, "a b"), patch("a", Fields(state=State.DRAINING)))

    assert refused(registry, file("a b", "a=7 c=0")) is Code.WOULD_EMPTY
    assert view(registry) == "a=1 b=1"
    assert holds(done(registry, file("a b", "a=7 c=0", force=True))) == "a=7 c=0"
    done(registry, file("a b", "c"))  # On the way nobody is active; at the end c is.


def test_a_refused_file_can_be_proposed_again() -> None:
    registry = done(NEW, file(None, "a b"), put(A), patch(A, Fields(state=State.DISABLED)))
    again = file("a b", "")
    assert refused(registry, again) is Code.WOULD_EMPTY

    registry = done(registry, patch(A, Fields(state=State.ACTIVE)), again)

    assert holds(registry) == f"{A}=1"


def test_a_file_keeps_min_active() -> None:
    registry = done(NEW, file(None, "a b c d"))

    assert refused(registry, file("a b c d", "a", min_active=0.5)) is Code.WOULD_EMPTY
    done(registry, file("a b c d", "a b", min_active=0.5))


# --- Without memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 2, 3])
def test_a_new_box_changes_nothing_and_is_told_the_differences(version: int) -> None:
    registry = done(NEW, file(None, "a b c", version=3))

    after, reply = run(registry, file(None, "a=2 b d", version=version))

    assert after is registry
    assert (reply.outcome, reply.differs) == (Outcome.UNCHANGED, ("c", "a", "d"))


def test_a_new_box_with_the_same_file_has_nothing_to_be_told() -> None:
    registry = done(NEW, file(None, "a b"))

    after, reply = run(registry, file(None, "b a"))

    assert (after, reply.differs) == (registry, ())


def test_a_new_box_with_a_higher_version_takes_the_view_as_remembered() -> None:
    registry = done(NEW, file(None, "a b", version=3), patch("b", Fields(weight=9)), put(A))

    registry, reply = run(registry, file(None, "a=2 b c", version=4))

    assert reply.differs == ()
    assert holds(registry) == f"{A}=1 a=2 b=9 c=1"
    assert view(registry) == "a=2 b=1 c=1"
    after, _ = run(registry, file(None, "a b", version=4))
    assert after is registry


def test_a_version_never_goes_back() -> None:
    registry = done(NEW, file(None, "a", version=5), file("a", "a=2", version=2))

    after, reply = run(registry, file(None, "a=3", version=5))

    assert (after, reply.differs) == (registry, ("a",))


# --- lb config sync ---------------------------------------------------------------------------


def test_sync_makes_the_view_what_this_file_says() -> None:
    registry = done(NEW, file(None, "a b", version=3), patch("b", Fields(weight=9)), put(A))

    registry, reply = run(registry, SyncFile(said=says("a=2 b c"), **BASE))

    assert view(registry) == "a=2 b=1 c=1"
    assert holds(registry) == f"{A}=1 a=2 b=9 c=1"
    assert [change.key for change in reply.changes] == ["a", "c"]


def test_sync_minds_who_would_be_left() -> None:
    registry = done(NEW, file(None, "a b"))

    assert refused(registry, SyncFile(said=(), **BASE)) is Code.WOULD_EMPTY


def test_sync_of_an_upstream_that_is_not_known_makes_it_known() -> None:
    registry = done(NEW, SyncFile(said=says("a"), **BASE))

    assert holds(registry) == "a=1"


def test_after_a_sync_the_others_files_are_old() -> None:
    registry = done(NEW, file(None, "a b"), SyncFile(said=says("a=2 b"), **BASE))

    after, reply = run(registry, file("a=3 b", "a b"))

    assert (after, reply.stale) == (registry, ())


# --- A fleet ----------------------------------------------------------------------------------


@dataclass
class Instance:
    """Reads one file after the other; a crash after the commit makes it propose the same again."""

    memory: str
    read: int = 0
    told: bool = False  # That something of its file was skipped.

    def reload(self, registry: Registry, files: list[str], upto: int, crash: bool) -> Registry:
        change = file(self.memory, files[upto], force=True)
        registry, reply = run(registry, *[change] * (1 + crash))
        self.told |= bool(reply.stale)
        self.memory, self.read = files[upto], upto
        return registry


FILES = st.lists(
    st.tuples(*(st.sampled_from(["", "{}=1", "{}=2", "{}=3"]) for _ in "abc")).map(
        lambda words: " ".join(word.format(name) for word, name in zip(words, "abc", strict=True))
    ),
    min_size=2,
    max_size=5,
    unique=True,
)


@settings(max_examples=200, deadline=None)
@given(FILES, st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.booleans()), max_size=12))
def test_a_fleet_comes_to_what_the_newest_file_says(
    files: list[str], steps: list[tuple[int, int, bool]]
) -> None:
    """
    Three instances read a row of files in order, each at its own pace, and may skip some.

    Once all have read the last, the view says just that, and the registry has it beside what
    the API put: or else somebody was told that something was skipped.
    """
    fleet = [Instance(files[0]) for _ in range(3)]
    registry = done(NEW, file(None, files[0]), put("api", Fields(address=C)))
    last = len(files) - 1
    for who, pace, crash in steps:
        upto = min(fleet[who].read + pace, last)
        registry = fleet[who].reload(registry, files, upto, crash)
    for instance in fleet:
        while instance.read < last:
            registry = instance.reload(registry, files, instance.read + 1, False)

    if not any(instance.told for instance in fleet):
        assert view(registry) == written(said_by_key(says(files[-1])))
        assert set(holds(registry).split()) == {*view(registry).split(), "api=1"}
