"""What a write through the API does, sentence by sentence of its rules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lb.model import State
from lb.registry import (
    By,
    Change,
    Code,
    Command,
    Fields,
    Outcome,
    Registry,
    RemoveUpstream,
    Source,
    apply,
)
from lb.registry.answers import ANSWERS_MAX, Answer
from registry.kit import (
    BASE,
    BY,
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
    remove,
    run,
    with_backends,
)

# --- Revisions --------------------------------------------------------------------------------


def test_each_command_that_changes_something_adds_one() -> None:
    registry = with_backends(A, B)
    assert registry.revision == 1

    registry = done(registry, put(C), patch(A, Fields(weight=3)), remove(B))

    assert registry.revision == 4
    assert app(registry).revision == 4
    assert {key: each.revision for key, each in app(registry).backends.items()} == {A: 3, C: 2}


def test_a_write_that_changes_nothing_answers_with_the_present_revision() -> None:
    registry = done(with_backends(A, B), put(C), put(C, upstream="app"))
    assert registry.revision == 2

    for command in (
        put(C),
        patch(A, Fields()),
        patch(A, Fields(weight=1, state=State.ACTIVE, backup=False, labels={})),
        edit({A: Fields(weight=1), B: Fields()}),
        edit({}),
    ):
        after, reply = run(registry, command)
        assert after is registry
        assert (reply.outcome, reply.revision) == (Outcome.UNCHANGED, 2)


def test_an_upstream_has_the_revision_of_its_own_last_change() -> None:
    registry = done(with_backends(A), first_file(A, upstream="web"), put(B, upstream="web"))

    assert app(registry).revision == 1
    assert registry.upstreams["web"].revision == 3


def test_each_backend_shows_who_changed_it_when_and_why() -> None:
    registry = done(with_backends(A, B), patch(A, Fields(weight=2), at=2_000.25))

    changed = app(registry).backends[A].changed
    assert (changed.by, changed.revision, changed.at) == (BY, 2, 2_000.25)
    assert app(registry).backends[B].changed.revision == 1


# --- PUT --------------------------------------------------------------------------------------


def test_put_adds_a_backend_by_address() -> None:
    registry, reply = run(with_backends(A), put(B))

    backend = app(registry).backends[B]
    assert reply.outcome is Outcome.CREATED
    assert reply.backend == backend
    assert reply.changes == (Change(B, "added"),)
    assert (backend.address, backend.name, backend.weight) == (B, None, 1)
    assert (backend.state, backend.backup, backend.source) == (State.ACTIVE, False, Source.API)


def test_put_adds_a_backend_by_name() -> None:
    registry = done(with_backends(A), put("blue", Fields(address=B, state=State.DRAINING)))

    backend = app(registry).backends["blue"]
    assert (backend.key, backend.address, backend.state) == ("blue", B, State.DRAINING)


def test_a_name_needs_an_address_the_first_time() -> None:
    registry = with_backends(A)
    assert refused(registry, put("blue")) is Code.INVALID

    registry = done(registry, put("blue", Fields(address=B)), put("blue", Fields(weight=2)))

    assert app(registry).backends["blue"].address == B


def test_a_new_address_under_the_same_name_is_a_change() -> None:
    registry = done(with_backends(A), put("blue", Fields(address=B)))

    after, reply = run(registry, put("blue", Fields(address=C)))

    assert list(app(after).backends) == [A, "blue"]
    assert reply.changes == (Change("blue", "changed", ("address",)),)


def test_an_address_cannot_stand_for_another() -> None:
    registry = with_backends(A)

    assert refused(registry, put(A, Fields(address=B))) is Code.INVALID
    assert refused(registry, patch(A, Fields(address=B))) is Code.INVALID


def test_put_replaces_what_is_unsaid_by_its_default() -> None:
    said = Fields(weight=5, backup=True, labels={"rack": "7"})
    registry = done(with_backends(A), put(B, said))

    registry = done(registry, put(B, Fields(weight=2)))

    backend = app(registry).backends[B]
    assert (backend.weight, backend.backup, backend.labels) == (2, False, {})


def test_put_keeps_state_unless_named() -> None:
    """So registering again never undoes a drain."""
    registry = done(with_backends(A, B), patch(B, Fields(state=State.DRAINING)))

    registry = done(registry, put(B, Fields(weight=2)))
    assert app(registry).backends[B].state is State.DRAINING

    registry = done(registry, put(B, Fields(state=State.ACTIVE)))
    assert app(registry).backends[B].state is State.ACTIVE


def test_put_on_a_file_backend_makes_it_the_apis() -> None:
    registry, reply = run(with_backends(A), put(A))

    assert app(registry).backends[A].source is Source.API
    assert reply.changes == (Change(A, "changed", ("source",)),)
    assert registry.revision == 2


def test_patch_leaves_the_source() -> None:
    registry = done(with_backends(A, B), patch(A, Fields(weight=4, state=State.DISABLED)))

    assert app(registry).backends[A].source is Source.FILE


# --- PATCH, DELETE ----------------------------------------------------------------------------


def test_patch_changes_what_is_said_and_nothing_else() -> None:
    said = Fields(weight=5, backup=True, labels={"rack": "7", "zone": "x"}, state=State.DRAINING)
    registry = done(with_backends(A), put("blue", replace(said, address=B)))

    labels = {"rack": None, "row": "2"}
    registry, reply = run(registry, patch("blue", Fields(weight=0, labels=labels)))

    backend = app(registry).backends["blue"]
    assert (backend.address, backend.weight, backend.backup) == (B, 0, True)
    assert (backend.state, backend.labels) == (State.DRAINING, {"zone": "x", "row": "2"})
    assert reply.changes == (Change("blue", "changed", ("weight", "labels")),)


def test_removal_is_at_once() -> None:
    registry, reply = run(with_backends(A, B), remove(A))

    assert list(app(registry).backends) == [B]
    assert reply.changes == (Change(A, "removed"),)


@pytest.mark.parametrize(
    "command",
    [
        patch(C, Fields(weight=2)),
        remove(C),
        edit({A: Fields(weight=2), C: Fields(weight=2)}),
        edit({A: Fields(weight=2), C: None}),
        put(A, upstream="ap"),
        patch(A, Fields(), upstream="ap"),
        remove(A, upstream="ap"),
        edit({}, upstream="ap"),
        RemoveUpstream(**BASE | {"upstream": "ap"}),
    ],
)
def test_what_is_not_there_is_not_found(command: Command) -> None:
    assert refused(with_backends(A, B), command) is Code.NOT_FOUND


def test_several_backends_change_in_one_revision() -> None:
    registry = with_backends(A, B, C)

    after, reply = run(
        registry, edit({A: Fields(state=State.DRAINING), B: None, C: Fields(weight=7)})
    )

    assert after.revision == 2
    assert reply.backend is None
    assert [(change.key, change.what) for change in reply.changes] == [
        (B, "removed"),
        (A, "changed"),
        (C, "changed"),
    ]
    assert {each.revision for each in app(after).backends.values()} == {2}


def test_several_backends_change_or_none() -> None:
    edits = {A: Fields(weight=9), B: Fields(address=C)}

    assert refused(with_backends(A, B), edit(edits)) is Code.INVALID


def test_blue_becomes_green_in_one_revision() -> None:
    """Judged at the end: on the way nobody is active."""
    registry = done(
        with_backends("10.0.0.1:80"), put("green", Fields(address=B, state=State.DISABLED))
    )

    done(registry, edit({A: Fields(state=State.DRAINING), "green": Fields(state=State.ACTIVE)}))


# --- Conditions -------------------------------------------------------------------------------


def test_if_match_takes_the_upstreams_revision_or_the_backends() -> None:
    registry = done(with_backends(A, B), patch(A, Fields(weight=2)), patch(B, Fields(weight=2)))
    assert app(registry).revision == 3

    for fit in ((3,), (2,), (9, 2), "*"):
        done(registry, patch(A, Fields(weight=5), if_match=fit))
        done(registry, put(A, Fields(weight=5), if_match=fit))
        done(registry, remove(A, if_match=fit))
    for unfit in ((1,), (4,), ()):
        assert refused(registry, patch(A, Fields(), if_match=unfit)) is Code.PRECONDITION_FAILED
        assert refused(registry, put(A, if_match=unfit)) is Code.PRECONDITION_FAILED
        assert refused(registry, remove(A, if_match=unfit)) is Code.PRECONDITION_FAILED


def test_if_match_of_several_backends_is_the_upstreams_revision() -> None:
    registry = done(with_backends(A, B), patch(A, Fields(weight=2)), patch(B, Fields(weight=2)))
    edits = {A: Fields(weight=7)}

    done(registry, edit(edits, if_match=(3,)))
    done(registry, edit(edits, if_match="*"))
    assert refused(registry, edit(edits, if_match=(2,))) is Code.PRECONDITION_FAILED


def test_if_match_on_what_is_not_there() -> None:
    registry = with_backends(A)

    done(registry, put(B, if_match=(1,)))  # Nothing in the upstream has changed.
    assert refused(registry, put(B, if_match="*")) is Code.PRECONDITION_FAILED
    assert refused(registry, put(B, if_match=(7,))) is Code.PRECONDITION_FAILED
    # A condition on what would be answered 404 anyway is not looked at (RFC 9110, 13.2.1).
    assert refused(registry, patch(B, Fields(), if_match=(7,))) is Code.NOT_FOUND
    assert refused(registry, remove(B, if_match=(7,))) is Code.NOT_FOUND


def test_of_two_who_read_the_same_only_one_writes() -> None:
    registry = with_backends(A, B)
    first, second = (patch(A, Fields(weight=weight), if_match=(1,)) for weight in (2, 3))

    registry = done(registry, first)

    assert refused(registry, second) is Code.PRECONDITION_FAILED


def test_if_none_match_creates_only() -> None:
    registry = done(with_backends(A), put(B, if_none_match=True))

    assert refused(registry, put(B, if_none_match=True)) is Code.PRECONDITION_FAILED


# --- Idempotency keys -------------------------------------------------------------------------


def test_a_retried_write_applies_once() -> None:
    command = patch(A, Fields(weight=2), idempotency_key="k1")
    registry, first = run(with_backends(A), command)
    registry = done(registry, patch(A, Fields(weight=9)))

    # Asked of another member, later: still the same write.
    elsewhere = replace(command, by=replace(BY, member="b"), at=9_999.0, min_active=0.5)
    after, again = run(registry, elsewhere)

    assert after is registry
    assert app(after).backends[A].weight == 9
    assert again.repeated
    assert (again.outcome, again.revision) == (first.outcome, first.revision)


def test_the_same_key_with_another_body_is_refused() -> None:
    registry = done(with_backends(A), patch(A, Fields(weight=2), idempotency_key="k1"))

    for other in (
        patch(A, Fields(weight=3), idempotency_key="k1"),
        put(A, Fields(weight=2), idempotency_key="k1"),
        patch(A, Fields(weight=2), idempotency_key="k1", force=True),
        patch(A, Fields(weight=2), idempotency_key="k1", upstream="web"),
    ):
        assert refused(registry, other) is Code.KEY_REUSED


def test_a_refusal_is_remembered_too() -> None:
    """Or a late duplicate could act after its sender has been told no."""
    command = remove(A, idempotency_key="k1")
    registry, first = run(with_backends(A), command)
    assert first.refusal
    assert first.refusal.code is Code.WOULD_EMPTY

    registry = done(registry, put(B))
    after, again = run(registry, command)

    assert A in app(after).backends
    assert again.refusal == first.refusal
    assert again.repeated


def test_each_token_has_its_own_keys() -> None:
    registry = done(with_backends(A, B), remove(A, idempotency_key="k1"))
    other = remove(B, idempotency_key="k1", by=By(token="dev"), force=True)

    assert app(done(registry, other)).backends == {}


def test_remembering_an_answer_takes_no_revision() -> None:
    registry = with_backends(A)

    after, reply = run(registry, patch(A, Fields(), idempotency_key="k1"))

    assert after.revision == registry.revision
    assert after.upstreams is registry.upstreams
    assert reply.outcome is Outcome.UNCHANGED


def test_the_last_ten_thousand_keys_are_kept() -> None:
    registry = with_backends(A)
    answer, answers = registry_with_answer(registry), registry.answers
    for number in range(ANSWERS_MAX):
        answers = answers.with_answer(f"/k{number}", answer)
    registry = replace(registry, answers=answers)

    registry, _ = apply(registry, put(B, idempotency_key="new"))

    assert len(registry.answers) == ANSWERS_MAX == 10_000
    assert "/k0" not in registry.answers
    assert "/k1" in registry.answers
    assert "ops/new" in registry.answers


def registry_with_answer(registry: Registry) -> Answer:
    after, _ = apply(registry, put(B, idempotency_key="x"))
    return after.answers["ops/x"]


# --- Too few left -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        remove(A),
        patch(A, Fields(state=State.DRAINING)),
        patch(A, Fields(state=State.DISABLED)),
        patch(A, Fields(weight=0)),  # Only sticky traffic: nobody new is served.
        put(A, Fields(state=State.DRAINING)),
        edit({A: None}),
        edit({A: Fields(state=State.DRAINING)}),
    ],
)
def test_no_write_leaves_an_upstream_without_an_active_backend(command: Command) -> None:
    registry = done(with_backends(A, B), patch(B, Fields(state=State.DRAINING)))

    assert refused(registry, command) is Code.WOULD_EMPTY
    done(registry, replace(command, force=True))


def test_what_is_empty_already_may_be_written_to() -> None:
    """An upstream may start empty, and be filled with what is not active yet."""
    registry = done(Registry("0" * 32), first_file())

    registry = done(registry, put(A, Fields(state=State.DRAINING)), put(B, Fields(weight=0)))
    registry = done(registry, patch(A, Fields(labels={"a": "b"})), remove(B))

    done(registry, patch(A, Fields(state=State.ACTIVE)))


def test_a_backup_counts_as_active() -> None:
    registry = done(with_backends(A), put(B, Fields(backup=True)))

    done(registry, remove(A))


@pytest.mark.parametrize(
    ("share", "of", "may_drain"),
    [(0.0, 4, 3), (0.2, 5, 4), (0.21, 5, 3), (0.5, 4, 2), (0.75, 4, 1), (0.07, 100, 93), (1, 3, 0)],
)
def test_min_active_is_a_share_that_stays(share: float, of: int, may_drain: int) -> None:
    addresses = [f"10.0.0.{n}:80" for n in range(of)]
    registry = with_backends(*addresses)
    drain, more = Fields(state=State.DRAINING), {"min_active": share}

    done(registry, edit(dict.fromkeys(addresses[:may_drain], drain), **more))
    done(registry, edit(dict.fromkeys(addresses[:may_drain]), **more))  # Or removed.
    too_many = edit(dict.fromkeys(addresses[: may_drain + 1], drain), **more)
    assert refused(registry, too_many) is Code.WOULD_EMPTY
    too_many = edit(dict.fromkeys(addresses[: may_drain + 1]), **more)
    assert refused(registry, too_many) is Code.WOULD_EMPTY
    done(registry, replace(too_many, force=True))


def test_what_takes_none_out_passes_below_min_active() -> None:
    drain = Fields(state=State.DRAINING)
    registry = done(with_backends(A, B, C), edit({A: drain, B: drain}))

    registry = done(
        registry,
        patch(C, Fields(weight=2), min_active=0.9),
        remove(A, min_active=0.9),
        put("10.0.0.4:80", Fields(state=State.DISABLED), min_active=0.9),
    )
    done(registry, edit({C: drain, B: Fields(state=State.ACTIVE)}, min_active=0.9))


# --- Upstreams --------------------------------------------------------------------------------


def test_an_upstream_that_no_config_names_can_be_removed() -> None:
    registry, reply = run(with_backends(A), RemoveUpstream(**BASE))

    assert registry.upstreams == {}
    assert reply.revision == 2


def test_an_upstream_that_a_config_names_stays() -> None:
    command = RemoveUpstream(named_by=("a", "c"), **BASE)

    assert refused(with_backends(A), command) is Code.UPSTREAM_IN_USE
