"""Ejection by what real traffic shows: what counts, who goes, for how long, who stays."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import Outlier
from lb.outlier import (
    EJECT_MAX_S,
    FORGIVEN_S,
    JITTER,
    TRIAL_PATIENCE_S,
    Ejection,
    Ejections,
    cause_of_failure,
    cause_of_status,
    is_outlier,
    why_not,
)
from lb.retry import Failure

RULE = Outlier(errors=3, within=10.0, eject=10.0, max_ejected=0.5)
NO_JITTER = random.Random()
NO_JITTER.uniform = lambda a, b: a  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (Failure.REFUSED, "connect"),
        (Failure.CONNECT_TIMEOUT, "connect"),
        (Failure.TLS, "tls"),
        (Failure.RESET, "reset"),
        (Failure.CLOSED, "reset"),
        (Failure.TIMEOUT, "timeout"),
        (Failure.BAD_RESPONSE, "protocol"),
        (Failure.STALE, ""),  # A kept connection that died says nothing of its backend.
        (Failure.LIMITED, ""),  # Our own limits are not its fault.
        (Failure.STATUS, ""),  # The status says it, see below.
    ],
)
def test_which_failures_count(failure: Failure, cause: str) -> None:
    assert cause_of_failure(failure) == cause


@pytest.mark.parametrize(
    ("status", "counts"),
    [(200, False), (404, False), (499, False), (500, False), (501, False), (502, True),
     (503, True), (504, True), (505, False), (507, False)],
)  # fmt: skip
def test_which_answers_count(status: int, counts: bool) -> None:
    assert bool(cause_of_status(status)) is counts


@pytest.mark.parametrize(
    ("times", "out"),
    [
        ([1.0, 2.0], False),
        ([1.0, 2.0, 3.0], True),
        ([1.0, 6.0, 11.0], True),
        ([1.0, 6.0, 11.1], False),  # Not within 10 s,
        ([1.0, 6.0, 11.1, 12.0], True),  # but the last three are.
    ],
)
def test_failures_in_a_row(times: list[float], out: bool) -> None:
    failures: deque[float] = deque()
    assert [is_outlier(failures, now, RULE) for now in times][-1] is out
    assert len(failures) <= RULE.errors


def test_no_failure_counts_where_errors_is_0() -> None:
    failures: deque[float] = deque()
    assert not any(is_outlier(failures, 1.0, Outlier(errors=0)) for _ in range(20))


@pytest.mark.parametrize(
    ("pool", "ejected", "share", "words"),
    [
        ("a b", "", 0.5, ""),
        ("a b c d", "b", 0.5, ""),
        ("a b c d", "b c", 0.5, "outlier.max_ejected: 2 of 4 are out already"),
        ("a b c", "b", 0.5, "outlier.max_ejected: 1 of 3 are out already"),
        ("a b c d e f g h i j", "", 0.01, ""),  # One always may.
        ("a b", "", 0.0, "outlier.max_ejected is 0%"),
        ("a", "", 1.0, "it is the last one that is well"),
        ("a b", "b", 1.0, "it is the last one that is well"),
        ("a b-", "", 1.0, "it is the last one that is well"),  # b's check says no.
        ("a b- c", "", 0.5, ""),
        ("b c", "", 0.5, "it takes no traffic"),
        ("a b c d", "x y z", 0.5, ""),  # Others' ejections are not of this pool any more.
    ],
)
def test_who_may_be_ejected(pool: str, ejected: str, share: float, words: str) -> None:
    well = {name.rstrip("-"): not name.endswith("-") for name in pool.split()}
    assert why_not("a", well, ejected.split(), share) == words


def eject(ejections: Ejections, now: float, *, jitter: random.Random = NO_JITTER) -> Ejection:
    made = ejections.eject(
        "a", "connect", 0, rule=RULE, pool={"a": True, "b": True}, now=now, rng=jitter
    )
    assert isinstance(made, Ejection)
    return made


def test_each_ejection_soon_after_another_lasts_longer() -> None:
    ejections = Ejections()
    lasted = []
    now = 0.0
    for _ in range(40):
        made = eject(ejections, now)
        lasted.append(made.until - made.since)
        now = made.until
    assert lasted[:3] == [10.0, 20.0, 30.0]
    assert lasted[-1] == EJECT_MAX_S


def test_a_late_report_changes_nothing() -> None:
    ejections = Ejections()
    made = eject(ejections, 0.0)
    assert eject(ejections, 9.9) is made


def test_how_often_is_remembered_until_it_is_forgiven() -> None:
    ejections = Ejections()
    eject(ejections, 0.0)
    assert ejections.end("a", 10.0) is not None
    assert eject(ejections, 20.0).times == 2
    ejections.end("a", 40.0)
    assert eject(ejections, 40.0 + FORGIVEN_S).times == 1
    assert ejections.end("b", 50.0) is None


def test_a_failed_trial_is_no_matter_of_the_cap() -> None:
    ejections = Ejections()
    made = eject(ejections, 0.0)
    again = ejections.eject(
        "a", "status", 1, rule=RULE, pool={"a": True}, now=made.until, rng=NO_JITTER
    )
    assert isinstance(again, Ejection)
    assert (again.times, again.cause, again.slot) == (2, "status", 1)


def test_who_found_out_goes_first() -> None:
    made = eject(Ejections(), 0.0)
    assert not made.trial_due(0, 9.9)
    assert made.trial_due(0, 10.0)
    assert not made.trial_due(1, 10.0)
    assert made.trial_due(1, 10.0 + TRIAL_PATIENCE_S)


def test_plain_and_back() -> None:
    ejections = Ejections()
    eject(ejections, 0.0)
    ejections.end("a", 10.0)
    eject(ejections, 11.0)
    again = Ejections.from_plain(ejections.to_plain())
    assert again.standing == ejections.standing
    again.end("a", 31.0)
    assert eject(again, 32.0).times == 3


def test_those_that_are_gone_are_forgotten() -> None:
    ejections = Ejections()
    eject(ejections, 0.0)
    assert not ejections.keep({"a", "b"})
    assert ejections.keep({"b"})
    assert ejections.standing == {}
    assert eject(ejections, 1.0).times == 1


Events = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(["fail", "end"]), st.floats(0.0, 30.0)),
    max_size=60,
)


@settings(deadline=None)
@given(Events, st.floats(0.0, 1.0), st.sets(st.sampled_from("abcdef")), st.integers())
def test_the_cap_holds_and_somebody_stays(
    events: list[tuple[str, str, float]], share: float, ill: set[str], seed: int
) -> None:
    rule = Outlier(max_ejected=share)
    pool = {name: name not in ill for name in "abcdef"}
    ejections, rng, now = Ejections(), random.Random(seed), 0.0
    for address, what, later in events:
        now += later
        if what == "end":
            ejections.end(address, now)
            continue
        made = ejections.eject(address, "connect", 0, rule=rule, pool=pool, now=now, rng=rng)
        if isinstance(made, Ejection) and made.since == now:
            seconds = made.until - now
            longest = min(rule.eject * made.times, EJECT_MAX_S)
            assert longest - 1e-6 <= seconds <= longest * (1 + JITTER) + 1e-6
        out = ejections.standing
        assert len(out) <= max(1, int(share * len(pool) + 1e-9))
        assert not out or any(well and name not in out for name, well in pool.items())
        assert share or not out
