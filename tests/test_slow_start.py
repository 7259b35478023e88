"""Slow start: how much of its weight a backend gets, and when nobody is spared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.balance.slow_start import STEPS, steps_of, warm_weights


@pytest.mark.parametrize(
    ("age", "steps"), [(0.0, 2), (2.9, 2), (3.0, 2), (5.0, 3), (15.0, 10), (29.9, 19), (31.0, 20)]
)
def test_it_grows_from_a_tenth(age: float, steps: int) -> None:
    assert steps_of(age, 30.0) == steps


@pytest.mark.parametrize(
    ("weights", "ages", "warm", "warming"),
    [
        ([1, 1, 1], {}, [20, 20, 20], False),
        ([1, 1, 1], {2: 0.0}, [20, 20, 2], True),
        ([1, 1, 1], {1: 0.0, 2: 0.0}, [20, 20, 20], False),  # More than half is new.
        ([1, 1, 2], {0: 0.0, 1: 5.0}, [2, 3, 40], True),
        ([5, 1], {0: 0.0}, [100, 20], False),  # By weight, not by number.
        ([1, 0], {1: 0.0}, [20, 0], True),  # No weight stays none.
        ([1, 1], {1: 40.0}, [20, 20], False),
    ],
)
def test_weights(
    weights: list[int], ages: dict[int, float], warm: list[int], warming: bool
) -> None:
    assert warm_weights(weights, ages, 30.0) == (warm, warming)


Pool = st.lists(st.integers(0, 1000), min_size=1, max_size=20)


@given(Pool, st.dictionaries(st.integers(0, 19), st.floats(0.0, 60.0)), st.floats(0.1, 100.0))
def test_nobody_gets_more_than_its_share(
    weights: list[int], ages: dict[int, float], window: float
) -> None:
    ages = {index: age for index, age in ages.items() if index < len(weights)}
    warm, _ = warm_weights(weights, ages, window)
    for index, (weight, given_now) in enumerate(zip(weights, warm, strict=True)):
        assert given_now <= weight * STEPS
        assert bool(given_now) is bool(weight)
        assert index in ages or given_now == weight * STEPS
    spared = [i for i, weight in enumerate(weights) if warm[i] < weight * STEPS]
    assert 2 * sum(weights[index] for index in spared) <= sum(weights)
