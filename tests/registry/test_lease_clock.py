"""The leader's clock beside the registry: what it proposes the end of, and when."""

from __future__ import annotations

import pytest

from lb.registry import ExpireLeases, Fields, LeaseClock, Registry, RenewLease, apply
from lb.registry import leases as leases_module
from registry.kit import BASE, A, B, app, done, first_file, put, remove, with_backends

TTL = 15.0
GATHER = leases_module.GATHER_SECONDS
ELECTION = 2.0
ONE, TWO, THREE, FOUR = (f"10.1.0.{number}:80" for number in range(1, 5))


class Leader:
    """A registry and the clock of its leader, whose caller comes in time."""

    def __init__(self, *keys: str) -> None:
        self.registry: Registry = with_backends(A)
        for key in keys:
            self.registry = done(self.registry, put(key, Fields(ttl=TTL)))
        self.clock = LeaseClock()
        self.clock.promote(self.registry, 0.0, ELECTION)

    def register(self, key: str, now: float, ttl: float = TTL) -> None:
        self.follow(done(self.registry, put(key, Fields(ttl=ttl))), now)

    def follow(self, registry: Registry, now: float) -> None:
        self.registry = registry
        self.clock.follow(registry, now)

    def due(self, now: float) -> list[str]:
        return [key for _, key, _ in self.clock.due(now)]

    def expire(self, now: float) -> list[str]:
        """Propose what is due, and apply it."""
        due = self.clock.due(now)
        after, reply = apply(self.registry, ExpireLeases(term=1, due=due, at=now), 1)
        self.follow(after, now)
        return [change.key for change in reply.changes if change.what == "removed"]


def test_a_new_leader_gives_every_lease_its_full_ttl_and_an_election_timeout() -> None:
    """T65: whatever the leader before it knew of renewals."""
    leader = Leader(ONE)

    assert leader.due(TTL + ELECTION + GATHER - 0.01) == []
    assert leader.due(TTL + ELECTION + GATHER) == [ONE]


def test_a_lease_that_begins_later_has_its_ttl_from_when_it_was_applied() -> None:
    leader = Leader()

    leader.register(ONE, 10.0)

    assert leader.clock.next_due() == 10.0 + TTL + GATHER
    assert leader.due(10.0 + TTL + GATHER - 0.01) == []
    assert leader.due(10.0 + TTL + GATHER) == [ONE]


def test_renewing_extends() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)

    assert leader.clock.renew("app", ONE, 10.0)

    assert leader.due(TTL + GATHER) == []
    assert leader.due(10.0 + TTL + GATHER) == [ONE]


def test_registering_again_extends() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    before = leader.registry.revision

    leader.register(ONE, 10.0)

    assert leader.registry.revision == before
    assert leader.due(TTL + GATHER) == []
    assert leader.due(10.0 + TTL + GATHER) == [ONE]


def test_registering_with_a_shorter_ttl_shortens() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)

    leader.register(ONE, 1.0, ttl=5.0)

    assert leader.due(1.0 + 5.0 + GATHER) == [ONE]


def test_expiry_holds_all_that_fell_due_within_a_second() -> None:
    leader = Leader()
    for key, at in ((ONE, 0.0), (TWO, 0.5), (THREE, 1.0), (FOUR, 1.1)):
        leader.register(key, at)

    assert leader.due(TTL + GATHER) == [ONE, TWO, THREE]
    assert leader.due(1.1 + TTL + GATHER) == [FOUR]


def test_nothing_falls_due_before_its_time_whatever_else_does() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    leader.register(TWO, 1.01)

    assert leader.due(TTL + GATHER) == [ONE]


def test_what_was_removed_does_not_fall_due() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    leader.follow(done(leader.registry, remove(ONE)), 1.0)

    assert leader.due(TTL + GATHER) == []
    assert leader.clock.next_due() is None
    assert not leader.clock.renew("app", ONE, 2.0)


def test_what_lost_its_lease_does_not_fall_due() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    leader.follow(done(leader.registry, put(ONE)), 1.0)

    assert leader.due(TTL + GATHER) == []


def test_what_was_never_leased_cannot_be_renewed() -> None:
    assert not Leader().clock.renew("app", A, 1.0)
    assert not LeaseClock().renew("app", A, 1.0)


def test_a_renewal_that_comes_while_the_end_is_proposed_is_for_the_registry_to_judge() -> None:
    """Else it would be promised a whole TTL, and end the moment after."""
    leader = Leader()
    leader.register(ONE, 0.0)
    due = leader.clock.due(TTL + GATHER)

    assert not leader.clock.renew("app", ONE, TTL + GATHER + 0.1)
    leader.follow(done(leader.registry, RenewLease(key=ONE, **BASE)), TTL + GATHER + 0.2)
    late, _ = apply(leader.registry, ExpireLeases(term=1, due=due, at=0.0), 1)

    assert ONE in app(late).backends
    assert leader.clock.renew("app", ONE, TTL + GATHER + 0.3)


def test_what_was_proposed_and_came_to_nothing_is_proposed_again() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    first = TTL + GATHER
    assert leader.due(first) == [ONE]

    assert leader.due(first + TTL) == []
    assert leader.due(first + TTL + GATHER) == [ONE]


def test_a_suspect_is_proposed_again_and_expires_when_the_share_has_fallen() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    leader.register(TWO, 0.0)
    first = TTL + GATHER
    assert leader.expire(first) == []
    assert not leader.clock.renew("app", TWO, first + 1.0)
    leader.follow(done(leader.registry, RenewLease(key=TWO, **BASE)), first + 1.0)
    assert leader.clock.renew("app", TWO, first + TTL)

    assert leader.expire(first + TTL + GATHER) == [ONE]


def test_a_new_leader_does_not_renew_a_suspect_by_itself() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    leader.register(TWO, 0.0)
    leader.expire(TTL + GATHER)

    heir = LeaseClock()
    heir.promote(leader.registry, 500.0, ELECTION)

    assert not heir.renew("app", ONE, 501.0)


def test_after_a_stall_nothing_expires_and_all_begins_anew() -> None:
    """Hazard 28: while the leader was stalled, nobody could renew."""
    leader = Leader()
    leader.register(ONE, 0.0)
    late = TTL + GATHER + leases_module.LATE_SECONDS + 5.0

    assert leader.due(late) == []
    assert leader.due(late + TTL + GATHER - 0.01) == []
    assert leader.due(late + TTL + GATHER) == [ONE]


def test_a_caller_that_sleeps_until_next_due_is_not_late() -> None:
    leader = Leader()
    leader.register(ONE, 0.0)
    leader.clock.renew("app", ONE, 10.0)
    wakes: list[tuple[float, list[str]]] = []
    while (at := leader.clock.next_due()) is not None and not wakes[2:]:
        wakes.append((at, leader.due(at)))

    assert wakes[:2] == [(TTL + GATHER, []), (10.0 + TTL + GATHER, [ONE])]


def test_who_leads_no_more_proposes_nothing() -> None:
    leader = Leader(ONE)

    leader.clock.demote()
    leader.register(TWO, 1.0)

    assert leader.clock.next_due() is None
    assert leader.due(1_000.0) == []
    assert not leader.clock.renew("app", ONE, 1.0)


def test_an_upstream_comes_whole_and_the_rest_in_the_next_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases_module, "DUE_MAX", 1)
    leader = Leader()
    leader.register(ONE, 0.0)
    leader.register(TWO, 0.0)
    registry = done(leader.registry, first_file(B, upstream="web"))
    leader.follow(done(registry, put(B, Fields(ttl=TTL), upstream="web")), 0.0)

    assert leader.due(TTL + GATHER) == [ONE, TWO]
    assert leader.due(TTL + GATHER) == [B]


def test_leases_that_are_gone_are_forgotten_long_before_they_would_fall_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases_module, "GONE_MAX", 10)
    leader = Leader()
    for number in range(200):
        key = f"10.1.0.{number}:80"
        leader.register(key, 0.0, ttl=86_400.0)
        leader.follow(done(leader.registry, remove(key)), 0.0)
        assert leader.clock.count <= 2 + 10
