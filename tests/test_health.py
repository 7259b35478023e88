"""Verdicts by counting, and who may take traffic by them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.health import JITTER, UNDECIDED_INTERVAL_S, Checkup, eligible
from lb.model import Health, State

# --- Checkup: + a good check, - a bad one; the verdict after each ------------------------------

LETTERS = {
    Health.HEALTHY: "h",
    Health.UNHEALTHY: "u",
    Health.CHECKING: "c",
}


@pytest.mark.parametrize(
    ("start", "checks", "verdicts"),
    [
        (Health.CHECKING, "+", "h"),  # the first decides alone
        (Health.CHECKING, "-", "u"),
        (Health.HEALTHY, "---", "hhu"),  # fall = 3
        (Health.HEALTHY, "--+--+--", "hhhhhhhh"),  # in a row, or not at all
        (Health.UNHEALTHY, "++", "uh"),  # rise = 2
        (Health.UNHEALTHY, "+-+-++", "uuuuuh"),
        (Health.HEALTHY, "---++---", "hhuuhhhu"),
        (Health.CHECKING, "-++", "uuh"),
    ],
)
def test_verdicts(start: Health, checks: str, verdicts: str) -> None:
    checkup = Checkup(rise=2, fall=3, state=start)
    got = ""
    for now, check in enumerate(checks):
        before = checkup.state
        changed = checkup.record(check == "+", f"check {now}", float(now))

        assert changed is (checkup.state is not before)
        assert (checkup.last_ok, checkup.reason) == (check == "+", f"check {now}")
        assert checkup.checked_at == float(now)
        if changed:
            assert checkup.changed_at == float(now)
        got += LETTERS[checkup.state]

    assert got == verdicts


@pytest.mark.parametrize(
    ("start", "checks", "hurries"),
    [
        (Health.CHECKING, "", True),
        (Health.HEALTHY, "", False),
        (Health.HEALTHY, "+", False),
        (Health.HEALTHY, "-", True),
        (Health.HEALTHY, "-+", False),
        (Health.HEALTHY, "---", False),  # down: no hurry
        (Health.UNHEALTHY, "+", True),
        (Health.UNHEALTHY, "++", False),
    ],
)
def test_checks_come_faster_while_a_verdict_is_counted(
    start: Health, checks: str, hurries: bool
) -> None:
    checkup = Checkup(rise=2, fall=3, state=start)
    for check in checks:
        checkup.record(check == "+", "", 0.0)

    delays = [checkup.next_delay(5.0, random.Random(seed)) for seed in range(200)]

    middle = UNDECIDED_INTERVAL_S if hurries else 5.0
    assert middle * (1 - JITTER) <= min(delays) < middle * 0.85
    assert middle * 1.15 < max(delays) <= middle * (1 + JITTER)
    short = checkup.next_delay(0.2, random.Random(1))
    assert 0.16 <= short <= 0.24


@given(
    checks=st.lists(st.booleans(), max_size=20),
    more=st.lists(st.booleans(), max_size=10),
    rise=st.integers(1, 4),
    fall=st.integers(1, 4),
)
def test_a_checkup_goes_on_where_it_was(
    checks: list[bool], more: list[bool], rise: int, fall: int
) -> None:
    checkup = Checkup(rise, fall)
    for ok in checks:
        checkup.record(ok, "first", 1.0)

    again = Checkup.from_plain(json.loads(json.dumps(checkup.to_plain())), rise, fall)

    for ok in more:
        assert again.record(ok, "then", 2.0) is checkup.record(ok, "then", 2.0)
    assert again.to_plain() == checkup.to_plain()


def test_a_lower_bound_is_in_force_at_the_next_check() -> None:
    checkup = Checkup(rise=2, fall=10, state=Health.HEALTHY)
    for _ in range(5):
        checkup.record(False, "", 0.0)
    checkup.fall = 3

    assert checkup.record(False, "", 0.0)


# --- eligible ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    name: str
    weight: int
    state: State
    backup: bool


HEALTHS = {
    "up": Health.HEALTHY,
    "bad": Health.UNHEALTHY,
    "new": Health.CHECKING,
    "any": Health.UNCHECKED,
}


def judged(text: str) -> list[tuple[Endpoint, Health]]:
    """Return what `a=up b*2=bad c/draining=up d+=new` says: weight, state, + for a backup."""
    made = []
    for word in text.split():
        name, _, health = word.partition("=")
        name, _, state = name.partition("/")
        name, _, weight = name.partition("*")
        endpoint = Endpoint(
            name.rstrip("+"), int(weight or 1), State(state or "active"), name.endswith("+")
        )
        made.append((endpoint, HEALTHS[health]))
    return made


PANIC = " PANIC"


@pytest.mark.parametrize(
    ("endpoints", "taking"),
    [
        ("", ""),
        ("a=up b=up", "a b"),
        ("a=any b=any", "a b"),
        ("a=up b=bad", "a"),
        # What people said goes before what probes say, in panic too.
        ("a/draining=up b/disabled=up c=up", "c"),
        ("a/draining=up b/disabled=up", ""),
        ("a/draining=bad b=bad", "b" + PANIC),
        ("a*0=up b=up", "b"),
        ("a*0=up", ""),
        # `checking` serves only while there is no other.
        ("a=new b=new", "a b"),
        ("a=new b=up", "b"),
        ("a=new b+=up", "b"),
        ("a=new b=bad", "a"),
        ("a=new b+=new", "a b"),
        ("a=new b+=bad", "a"),
        # and is no reason for panic: at a start all are.
        ("a=up b=new c=new d=new", "a"),
        ("a=new b=bad c=bad d=bad", "a b c d" + PANIC),
        # Below the share: weight counts, not heads; drained ones don't count.
        ("a=up b=bad c=bad", "a"),
        ("a=up b=bad c=bad d=bad", "a b c d" + PANIC),
        ("a*30=up b*70=bad", "a"),
        ("a*29=up b*71=bad", "a b" + PANIC),
        ("a=up b=bad c/draining=bad d/disabled=bad", "a"),
        ("a=bad", "a" + PANIC),
        # Backups serve when all primaries are bad, and are judged apart from them.
        ("a=bad b=bad c=bad d=bad e+=up", "e"),
        ("a=up b=up c+=bad d+=bad e+=bad f+=bad g+=bad", "a b"),
        ("a=up b=bad c+=up", "a c"),
        ("a=up b=bad c=bad d=bad e+=up", "a b c d e" + PANIC),
        ("a=bad b+=up c+=bad", "b"),
        ("a=bad b+=up c+=bad d+=bad e+=bad", "b c d e" + PANIC),
        ("a=bad b+=bad", "a b" + PANIC),
        ("a+=bad", "a" + PANIC),
        ("a+=up b+=bad", "a"),
    ],
)
def test_who_takes_traffic(endpoints: str, taking: str) -> None:
    chosen, panicking = eligible(judged(endpoints), 0.3)

    assert " ".join(one.name for one in chosen) + (PANIC if panicking else "") == taking


@pytest.mark.parametrize(
    ("endpoints", "taking"),
    [("a=bad b=bad", ""), ("a=up b=bad c=bad d=bad", "a"), ("a=bad b+=bad", ""), ("a=new", "a")],
)
def test_without_panic_health_is_never_ignored(endpoints: str, taking: str) -> None:
    chosen, panicking = eligible(judged(endpoints), 0.0)

    assert not panicking
    assert " ".join(one.name for one in chosen) == taking


@given(
    some=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(State),
            st.booleans(),
            st.sampled_from(Health),
        ),
        max_size=8,
    ),
    panic=st.floats(0, 1),
)
def test_what_holds_for_all_pools(
    some: list[tuple[int, State, bool, Health]], panic: float
) -> None:
    pool = [
        (Endpoint(f"e{number}", weight, state, backup), health)
        for number, (weight, state, backup, health) in enumerate(some)
    ]
    health_of = dict(pool)

    chosen, panicking = eligible(pool, panic)

    assert all(one.state is State.ACTIVE and one.weight for one in chosen)
    assert [one for one, _ in pool if one in chosen] == chosen  # in the order given
    up = {
        one
        for one, health in pool
        if one.state is State.ACTIVE and one.weight and health in (Health.HEALTHY, Health.UNCHECKED)
    }
    assert up & {*chosen} == up or (panicking and all(one.backup for one in chosen))
    if not panicking:
        healths = {health_of[one] for one in chosen}
        assert Health.UNHEALTHY not in healths
        assert Health.CHECKING not in healths or not up
