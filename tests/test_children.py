"""A child that ends is started again: at once, unless it keeps ending."""

from __future__ import annotations

import pytest

from lb.children import LONGEST_WAIT, STEADY, Backoff


@pytest.mark.parametrize(
    ("lives", "waits"),
    [
        ([60.0], [0.0]),  # The first restart is at once,
        ([0.1], [0.0]),  # however short it lived;
        ([0.1, 0.1, 0.1, 0.1], [0.0, 0.1, 0.2, 0.4]),  # a crash loop waits ever longer,
        ([0.1, 0.1, STEADY, 0.1], [0.0, 0.1, 0.0, 0.1]),  # until one was steady.
    ],
)
def test_waits(lives: list[float], waits: list[float]) -> None:
    backoff = Backoff()
    assert [backoff.wait_after(lived) for lived in lives] == pytest.approx(waits)


def test_the_wait_has_a_bound() -> None:
    backoff = Backoff()
    assert max(backoff.wait_after(0.0) for _ in range(1000)) == LONGEST_WAIT
