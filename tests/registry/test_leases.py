"""Leases, by the sentences of the contract: what a `ttl` does, and the guard of its end.

All is judged by `apply` alone, by the times in the commands. What the leader's clock proposes
is in `test_lease_clock`.
"""

from __future__ import annotations

from typing import Any

import pytest

from lb.model import State
from lb.registry import (
    By,
    Change,
    Code,
    ExpireLeases,
    Fields,
    Outcome,
    Registry,
    RenewLease,
    Reply,
    apply,
    registry_from_plain,
    registry_to_plain,
)
from lb.registry.expiry import PAST_EXPIRIES_MAX
from registry.kit import (
    BASE,
    A,
    B,
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

TTL = 15.0
START = 1_000.0


def keys(count: int) -> list[str]:
    return [f"10.1.{number >> 8}.{number & 255}:80" for number in range(count)]


def with_leased(count: int, *others: str, ttl: float = TTL) -> Registry:
    """A registry whose upstream has `count` leased backends, and others that are not."""
    registry = with_backends(*others)
    for key in keys(count):
        registry, _ = apply(registry, put(key, Fields(ttl=ttl)))
    return registry


def expire(registry: Registry, *due: str, after: float = 0.0, **more: Any) -> ExpireLeases:
    """Of `app`, with the leases as they are now; `after` seconds from `START`."""
    leases = tuple(("app", key, app(registry).backends[key].lease) for key in due)
    plain: dict[str, Any] = {"term": 0, "due": leases, "at": START + after}
    return ExpireLeases(**plain | more)


def renew(key: str, **more: Any) -> RenewLease:
    return RenewLease(key=key, **BASE | more)


def suspects(registry: Registry) -> list[str]:
    return [key for key, entry in app(registry).backends.items() if entry.suspect]


def lease_of(registry: Registry, key: str) -> int:
    return app(registry).backends[key].lease


# --- Having one -------------------------------------------------------------------------------


def test_put_with_ttl_grants_a_lease() -> None:
    registry, reply = run(with_backends(A), put(B, Fields(ttl=15)))

    assert reply.outcome is Outcome.CREATED
    assert reply.backend is not None
    assert (reply.backend.ttl, reply.backend.lease, reply.backend.suspect) == (15.0, 1, False)
    assert app(registry).backends[A].ttl is None


def test_a_put_on_what_exists_keeps_state_so_registering_again_never_undoes_a_drain() -> None:
    registry = done(with_leased(1, A), patch(keys(1)[0], Fields(state=State.DRAINING)))

    registry, reply = run(registry, put(keys(1)[0], Fields(ttl=TTL)))

    assert reply.outcome is Outcome.UNCHANGED
    assert app(registry).backends[keys(1)[0]].state is State.DRAINING


def test_a_put_on_what_exists_changes_state_if_it_is_named() -> None:
    registry = done(with_leased(1, A), patch(keys(1)[0], Fields(state=State.DRAINING)))

    registry = done(registry, put(keys(1)[0], Fields(ttl=TTL, state=State.ACTIVE)))

    assert app(registry).backends[keys(1)[0]].state is State.ACTIVE


def test_registering_again_takes_no_revision_but_begins_the_lease_anew() -> None:
    before = with_leased(1, A)

    after, reply = run(before, put(keys(1)[0], Fields(ttl=TTL)))

    assert (reply.outcome, reply.changes) == (Outcome.UNCHANGED, ())
    assert after.revision == before.revision
    assert app(after).revision == app(before).revision
    assert lease_of(after, keys(1)[0]) > lease_of(before, keys(1)[0])
    assert lease_of(done(after, expire(before, *keys(1))), keys(1)[0])


def test_a_put_without_ttl_and_a_patch_to_zero_end_the_lease_and_keep_the_backend() -> None:
    for command in (put(keys(1)[0]), patch(keys(1)[0], Fields(ttl=0))):
        registry, reply = run(with_leased(1, A), command)

        entry = app(registry).backends[keys(1)[0]]
        assert (entry.ttl, entry.lease) == (None, 0)
        assert reply.changes == (Change(keys(1)[0], "changed", ("ttl",)),)


def test_a_patch_that_says_nothing_of_ttl_leaves_the_lease_alone() -> None:
    before = with_leased(1, A)

    after = done(before, patch(keys(1)[0], Fields(weight=7)))

    assert lease_of(after, keys(1)[0]) == lease_of(before, keys(1)[0])
    assert app(after).backends[keys(1)[0]].ttl == TTL


def test_a_patch_with_ttl_grants_a_lease() -> None:
    registry, reply = run(with_backends(A), patch(A, Fields(ttl=30)))

    assert app(registry).backends[A].ttl == 30.0
    assert reply.changes == (Change(A, "changed", ("ttl",)),)


def test_a_lease_is_never_numbered_twice() -> None:
    registry = with_leased(2, A)
    first = lease_of(registry, keys(2)[1])

    registry = done(registry, remove(keys(2)[1]), put(keys(2)[1], Fields(ttl=TTL)))

    assert lease_of(registry, keys(2)[1]) > first


def test_a_file_neither_grants_nor_ends_a_lease() -> None:
    said = first_file(A, keys(1)[0], version=2)

    registry = done(with_leased(1, A), said)

    assert app(registry).backends[keys(1)[0]].ttl == TTL
    assert app(registry).backends[A].ttl is None


# --- Renewing ---------------------------------------------------------------------------------


def test_renewing_takes_no_revision() -> None:
    before = with_leased(1, A)

    after, reply = run(before, renew(keys(1)[0]))

    assert reply.outcome is Outcome.UNCHANGED
    assert after.revision == before.revision
    assert reply.backend is not None
    assert reply.backend.lease > lease_of(before, keys(1)[0])


def test_renewing_what_is_gone_or_never_was_leased_says_register_again() -> None:
    registry = with_leased(1, A)

    assert refused(registry, renew(B)) is Code.NOT_FOUND
    assert refused(registry, renew(A)) is Code.NOT_FOUND
    assert refused(registry, renew(A, upstream="other")) is Code.NOT_FOUND


# --- Expiry -----------------------------------------------------------------------------------


def test_expiry_is_one_command_and_one_revision_over_all_upstreams() -> None:
    registry = done(with_leased(4, A), first_file(B, upstream="web"))
    registry = done(registry, put(A, Fields(ttl=TTL), upstream="web"))
    lease = registry.upstreams["web"].backends[A].lease
    of_app = expire(registry, keys(4)[0])

    after, reply = run(registry, expire(registry, due=(*of_app.due, ("web", A, lease))))

    assert after.revision == registry.revision + 1
    assert reply.changes == (
        Change(keys(4)[0], "removed", upstream="app"),
        Change(A, "removed", upstream="web"),
    )
    assert app(after).revision == after.upstreams["web"].revision == after.revision


def test_a_lease_that_was_begun_anew_does_not_expire() -> None:
    before = with_leased(4, A)
    after = done(before, renew(keys(4)[0]))

    registry, reply = run(after, expire(before, keys(4)[0]))

    assert reply.outcome is Outcome.UNCHANGED
    assert registry is after


def test_what_is_not_there_does_not_expire() -> None:
    before = with_leased(4, A)
    after = done(before, remove(keys(4)[0]))

    assert run(after, expire(before, keys(4)[0]))[0] is after
    assert run(after, ExpireLeases(term=0, at=START, due=(("none", A, 1),)))[0] is after
    assert run(after, ExpireLeases(term=0, at=START, due=(("app", A, 0),)))[0] is after


def test_what_a_leader_of_another_term_proposed_does_nothing() -> None:
    """Hazard 27: an old leader's command must not act under a new one."""
    registry = with_leased(4, A)

    stale = expire(registry, keys(4)[0], term=3)
    assert apply(registry, stale, 4) == (registry, Reply(Outcome.UNCHANGED, registry.revision))
    assert apply(registry, stale, 3)[0].revision == registry.revision + 1


def test_it_shows_that_a_lease_made_the_change() -> None:
    registry = with_leased(2, A)

    registry = done(registry, expire(registry, *keys(2)))

    assert app(registry).backends[keys(1)[0]].changed.by == By(source="lease")


def test_one_may_always_expire() -> None:
    """Though it is more than 30 % of the leased backends: one of one, of two, of three."""
    for count in (1, 2, 3):
        registry = with_leased(count, A)

        registry = done(registry, expire(registry, keys(count)[0]))

        assert keys(count)[0] not in app(registry).backends


def test_one_may_always_expire_once_a_ttl() -> None:
    registry = with_leased(3, A)
    first, second, _ = keys(3)

    registry = done(registry, expire(registry, first))
    assert suspects(done(registry, expire(registry, second, after=TTL - 0.1))) == [second]
    assert second not in app(done(registry, expire(registry, second, after=TTL))).backends


def test_the_last_active_one_never_expires() -> None:
    registry = done(with_leased(1, A), patch(A, Fields(state=State.DRAINING)))

    registry = done(registry, expire(registry, keys(1)[0]))
    assert suspects(registry) == keys(1)

    registry, reply = run(registry, expire(registry, keys(1)[0], after=3 * TTL))
    assert (reply.outcome, suspects(registry)) == (Outcome.UNCHANGED, keys(1))


def test_the_last_active_one_expires_when_another_has_come() -> None:
    registry = done(with_leased(1, A), patch(A, Fields(state=State.DRAINING)))
    registry = done(registry, expire(registry, keys(1)[0]))

    registry = done(registry, put(B), expire(registry, keys(1)[0], after=TTL))

    assert keys(1)[0] not in app(registry).backends


def test_one_that_takes_no_traffic_expires_though_none_is_active() -> None:
    registry = done(with_leased(1, A), patch(keys(1)[0], Fields(state=State.DRAINING)))
    registry = done(registry, remove(A, force=True))

    registry = done(registry, expire(registry, keys(1)[0]))

    assert app(registry).backends == {}


def test_of_those_due_the_last_active_stays_and_the_drained_one_goes() -> None:
    registry = done(with_leased(10), patch(keys(10)[0], Fields(state=State.DRAINING)))
    registry = done(registry, *(patch(k, Fields(weight=0), force=True) for k in keys(10)[2:]))

    registry = done(registry, expire(registry, *keys(10)[:2]))

    assert keys(10)[0] not in app(registry).backends
    assert suspects(registry) == [keys(10)[1]]


@pytest.mark.parametrize(("leased", "due"), [(10, 3), (7, 2), (100, 30)])
def test_a_share_of_up_to_30_percent_expires(leased: int, due: int) -> None:
    registry = with_leased(leased, A)

    registry = done(registry, expire(registry, *keys(due)))

    assert len(app(registry).backends) == 1 + leased - due


@pytest.mark.parametrize(("leased", "due"), [(10, 4), (7, 3), (100, 31), (3, 2), (2, 2)])
def test_where_more_than_30_percent_are_due_they_become_suspect(leased: int, due: int) -> None:
    registry = with_leased(leased, A, B)

    registry, reply = run(registry, expire(registry, *keys(due)))

    assert suspects(registry) == keys(due)
    assert reply.outcome is Outcome.CHANGED
    assert {change.fields for change in reply.changes} == {("suspect",)}


def test_only_leased_backends_count_for_the_share() -> None:
    registry = with_leased(5, *(f"10.9.0.{number}:80" for number in range(1, 50)))

    assert suspects(done(registry, expire(registry, *keys(2)))) == keys(2)


def test_what_expired_within_the_last_ttl_counts_for_the_share() -> None:
    registry = with_leased(10, A)
    registry = done(registry, expire(registry, *keys(10)[:2]))
    registry = done(registry, expire(registry, keys(10)[2], after=TTL / 2))

    registry = done(registry, expire(registry, keys(10)[3], after=TTL - 0.1))

    assert suspects(registry) == [keys(10)[3]]


def test_what_expired_before_the_last_ttl_does_not_count() -> None:
    registry = with_leased(10, A)
    registry = done(registry, expire(registry, *keys(10)[:3]))

    registry = done(registry, expire(registry, *keys(10)[3:5], after=TTL))

    assert list(app(registry).backends) == [A, *keys(10)[5:]]


def test_what_is_suspect_counts_for_the_share() -> None:
    registry = with_leased(10, A)
    registry = done(registry, expire(registry, *keys(10)[:4]))

    registry = done(registry, expire(registry, keys(10)[4], after=3 * TTL))

    assert suspects(registry) == keys(10)[:5]


def test_a_suspect_is_still_routed() -> None:
    registry = with_leased(2)

    registry = done(registry, expire(registry, *keys(2)))

    assert all(entry.takes_traffic for entry in app(registry).backends.values())
    assert len(suspects(registry)) == 2


def test_suspicion_ends_by_renewal() -> None:
    registry = with_leased(2, A)
    registry = done(registry, expire(registry, *keys(2)))

    after, reply = run(registry, renew(keys(2)[0]))

    assert reply.changes == (Change(keys(2)[0], "changed", ("suspect",)),)
    assert after.revision == registry.revision + 1
    assert suspects(after) == keys(2)[1:]


def test_suspicion_ends_by_registering_again() -> None:
    registry = with_leased(2, A)
    registry = done(registry, expire(registry, *keys(2)))

    registry = done(registry, put(keys(2)[0], Fields(ttl=TTL)))

    assert suspects(registry) == keys(2)[1:]


def test_suspicion_ends_by_removal() -> None:
    registry = with_leased(2, A)
    registry = done(registry, expire(registry, *keys(2)))

    assert suspects(done(registry, remove(keys(2)[0]))) == keys(2)[1:]


def test_a_suspect_expires_when_the_share_has_fallen() -> None:
    registry = with_leased(10, A)
    registry = done(registry, expire(registry, *keys(10)[:4]))
    still = run(registry, expire(registry, *keys(10)[:4], after=TTL))
    assert still[1].outcome is Outcome.UNCHANGED

    registry = done(registry, renew(keys(10)[0]))
    registry = done(registry, expire(registry, *keys(10)[1:4], after=2 * TTL))

    assert suspects(registry) == []
    assert list(app(registry).backends) == [A, keys(10)[0], *keys(10)[4:]]


def test_a_clock_that_was_set_forgets_and_does_not_freeze_the_guard() -> None:
    registry = with_leased(10, A)
    registry = done(registry, expire(registry, *keys(10)[:3]))

    for jump in (3_600.0, -3_600.0):
        after = done(registry, expire(registry, *keys(10)[3:5], after=jump))
        assert suspects(after) == []


def test_what_the_guard_remembers_is_bounded_and_part_of_the_plain_form() -> None:
    count = PAST_EXPIRIES_MAX + 10
    registry = with_leased(4 * count, A, ttl=3_600.0)
    for number, key in enumerate(keys(count)):
        registry, _ = apply(registry, expire(registry, key, after=number))

    assert len(app(registry).expired) == PAST_EXPIRIES_MAX
    assert sum(gone.count for gone in app(registry).expired) == count
    assert registry_from_plain(through_json(registry_to_plain(registry))) == registry
