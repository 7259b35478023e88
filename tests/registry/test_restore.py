"""A backup put back, the feature level, and what is remembered under idempotency keys."""

from __future__ import annotations

from typing import Any

import pytest

from lb.model import State
from lb.registry import (
    Change,
    Code,
    Fields,
    Outcome,
    PutBackend,
    RaiseLevel,
    Registry,
    RemoveUpstream,
    Restore,
    SyncFile,
    apply,
    change_member,
    encode_member,
    registry_to_plain,
)
from lb.registry.answers import ANSWERS_MAX, PIECE_ANSWERS_MAX, Answer, Answers
from lb.registry.values import PAST_VIEWS_MAX
from registry.kit import (
    BASE,
    BY,
    A,
    B,
    C,
    app,
    done,
    first_file,
    patch,
    put,
    refused,
    remove,
    run,
    through_json,
    with_backends,
)


def backup(registry: Registry) -> dict[str, Any]:
    plain: dict[str, Any] = through_json(registry_to_plain(registry))
    return plain


def restore(content: Any, **more: Any) -> Restore:
    return Restore(**{"content": content, "by": BY, "at": 3_000.0} | more)


def contents(registry: Registry) -> Any:
    """All that a restore brings back, without who changed it when."""
    plain = backup(registry)["upstreams"]
    for upstream in plain.values():
        for each in (*upstream["backends"], upstream["view"], upstream):
            for name in ("changed", "revision", "lease"):
                each.pop(name, None)
        upstream["backends"].sort(key=lambda backend: backend["address"])
    return plain


def test_restore_makes_contents_equal_to_the_file_in_one_new_revision() -> None:
    saved = done(
        with_backends(A, B),
        put(C, Fields(ttl=15.0, weight=3)),
        patch(B, Fields(state=State.DRAINING, labels={"zone": "x"})),
        first_file(A, upstream="web"),
    )
    later = done(
        saved,
        remove(B),
        patch(A, Fields(weight=7)),
        put("10.0.0.9:80"),
        SyncFile(said=(), force=True, **BASE),
        RemoveUpstream(upstream="web", by=BY, at=1.0),
        first_file(A, upstream="new"),
    )

    restored, reply = run(later, restore(backup(saved)))

    assert contents(restored) == contents(saved)
    assert (reply.outcome, restored.revision) == (Outcome.CHANGED, later.revision + 1)
    assert Change("10.0.0.9:80", "removed", upstream="app") in reply.changes
    assert Change(A, "removed", upstream="new") in reply.changes


def test_restore_is_possible_into_an_empty_registry_of_another_group() -> None:
    saved = done(with_backends(A, B), put(C), remove(A), put(A))

    restored = done(Registry("f" * 32), restore(backup(saved)))

    assert contents(restored) == contents(saved)
    assert (restored.id, restored.revision) == ("f" * 32, 1)
    assert {entry.revision for entry in app(restored).backends.values()} == {1}


def test_restore_keeps_id_members_level_and_answers() -> None:
    saved = with_backends(A)
    member = encode_member("a", "10.0.0.1:9901", BY, 1.0)
    later = change_member(done(saved, put(B, idempotency_key="k")), "add", 7, member)

    restored = done(later, restore(backup(saved) | {"id": "f" * 32}))

    assert (restored.id, restored.members, restored.level) == (later.id, later.members, 1)
    assert run(restored, put(B, idempotency_key="k"))[1].repeated


def test_what_is_as_the_backup_has_it_keeps_its_revision() -> None:
    saved = with_backends(A, B)
    later = done(saved, patch(B, Fields(weight=7)))

    restored = done(later, restore(backup(saved)))

    assert {key: entry.revision for key, entry in app(restored).backends.items()} == {A: 1, B: 3}
    assert run(restored, restore(backup(saved)))[1].outcome is Outcome.UNCHANGED


def test_a_restored_lease_begins_anew_and_is_not_suspect() -> None:
    saved = done(with_backends(A), put(B, Fields(ttl=15.0)))
    plain = backup(saved)
    plain["upstreams"]["app"]["backends"][1]["suspect"] = True

    restored = done(saved, remove(B), restore(plain))

    assert app(restored).backends[B].suspect is False
    assert app(restored).backends[B].lease > app(saved).backends[B].lease


def test_restore_with_an_idempotency_key_is_done_once() -> None:
    saved = with_backends(A)
    command = restore(backup(saved), idempotency_key="k")

    registry, reply = run(done(saved, put(B)), command, put(C), command)

    assert reply.repeated
    assert C in app(registry).backends


def test_restore_must_not_empty_an_upstream_without_force() -> None:
    saved = done(with_backends(A), patch(A, Fields(state=State.DISABLED), force=True))
    later = done(saved, patch(A, Fields(state=State.ACTIVE)))

    assert refused(later, restore(backup(saved))) is Code.WOULD_EMPTY
    assert not app(done(later, restore(backup(saved), force=True))).backends[A].takes_traffic


def spoilt(path: str, value: Any) -> Any:
    """A backup with something else at a place in it."""
    plain: Any = backup(done(with_backends(A), put(B, Fields(ttl=15.0, labels={"x": "y"}))))
    inner = plain
    *way, last = path.replace("backend", "upstreams/app/backends/1").split("/")
    for step in way:
        inner = inner[int(step) if step.isdigit() else step]
    inner[last] = value
    return plain


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"upstreams": []},
        {"upstreams": {"app": None}},
        spoilt("level", 2),
        spoilt("level", "new"),
        spoilt("upstreams/a b", {"revision": 1, "backends": [], "view": None}),
        spoilt("backend/address", "nowhere"),
        spoilt("backend/address", ["10.0.0.1:80"]),
        spoilt("backend/name", "a b"),
        spoilt("backend/name", 7),
        spoilt("backend/weight", -1),
        spoilt("backend/weight", "3"),
        spoilt("backend/state", "resting"),
        spoilt("backend/source", "heaven"),
        spoilt("backend/backup", "yes"),
        spoilt("backend/labels", {"x": None}),
        spoilt("backend/labels", {"x": 5}),
        spoilt("backend/ttl", 0),
        spoilt("backend/ttl", 1),
        spoilt("backend/ttl", "15s"),
        spoilt("upstreams/app/view/said", [{"address": "nowhere"}]),
        spoilt("upstreams/app/view/said", [{"address": A, "backup": "yes"}]),
        spoilt("upstreams/app/view/past", [1]),
        spoilt("upstreams/app/view/past", ["x"] * (PAST_VIEWS_MAX + 1)),
        spoilt("upstreams/app/view/version", "2"),
    ],
)
def test_what_is_no_backup_is_refused(content: Any) -> None:
    assert refused(with_backends(A), restore(content)) is Code.INVALID


# --- Levels -----------------------------------------------------------------------------------


def test_the_level_is_raised_and_never_lowered() -> None:
    registry = with_backends(A)

    registry, reply = run(registry, RaiseLevel(level=1, by=BY, at=1.0))

    assert (registry.level, reply.outcome) == (1, Outcome.UNCHANGED)


def test_a_raised_level_takes_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.registry.commands.LEVEL", 2)
    before = with_backends(A)

    after, reply = apply(before, RaiseLevel(level=2, by=BY, at=1.0))

    assert (after.level, after.revision, reply.outcome) == (2, before.revision, Outcome.CHANGED)
    assert apply(after, RaiseLevel(level=1, by=BY, at=1.0))[0] is after


@pytest.mark.parametrize("kind", [RaiseLevel, Restore])
def test_what_is_about_the_whole_registry_names_no_upstream(kind: Any) -> None:
    more: dict[str, Any] = {"level": 1} if kind is RaiseLevel else {"content": {}}

    assert refused(with_backends(A), kind(upstream="app", by=BY, at=1.0, **more)) is Code.INVALID


# --- Answers ----------------------------------------------------------------------------------


def answer(number: int) -> Answer:
    return Answer(f"digest {number}", "changed", number)


def test_answers_are_kept_in_order_and_the_oldest_forgotten() -> None:
    answers = Answers()
    for number in range(ANSWERS_MAX + 2 * PIECE_ANSWERS_MAX + 3):
        answers = answers.with_answer(f"k{number}", answer(number))

    gone = 2 * PIECE_ANSWERS_MAX + 3
    assert len(answers) == ANSWERS_MAX
    assert list(answers) == [f"k{number}" for number in range(gone, gone + ANSWERS_MAX)]
    assert answers[f"k{gone}"] == answer(gone)
    assert f"k{gone - 1}" not in answers


def test_adding_an_answer_shares_all_but_the_ends() -> None:
    before = Answers()
    for number in range(ANSWERS_MAX):
        before = before.with_answer(f"k{number}", answer(number))

    after = before.with_answer("new", answer(0))

    assert "new" not in before
    assert "k0" in before
    assert before._pieces[1:-1] == after._pieces[1:-1]
    assert all(
        one is other for one, other in zip(before._pieces[1:-1], after._pieces[1:-1], strict=True)
    )


def test_answers_go_on_alike_after_they_were_written_down() -> None:
    """Where a piece begins is not written down, and must not matter."""
    one = Answers()
    for number in range(ANSWERS_MAX + 77):
        one = one.with_answer(f"k{number}", answer(number))
    other = Answers.from_plain(through_json(one.to_plain()))

    for number in range(ANSWERS_MAX + 77, ANSWERS_MAX + 500):
        one = one.with_answer(f"k{number}", answer(number))
        other = other.with_answer(f"k{number}", answer(number))
        assert len(one) == len(other)

    assert list(one.items()) == list(other.items())


def test_a_write_with_a_key_is_remembered_beside_the_others() -> None:
    registry = with_backends(A)
    for number in range(3):
        command: PutBackend = put(B, Fields(weight=number), idempotency_key=f"k{number}")
        registry = done(registry, command)

    assert list(registry.answers) == ["ops/k0", "ops/k1", "ops/k2"]
