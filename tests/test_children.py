"""A child that ends is started again: at once, unless it keeps ending."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lb.children import LONGEST_WAIT, SILENT_AFTER, STEADY, Backoff, silent


@dataclass
class Kid:
    beat_at: float
    welcomed: bool = True


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


def test_who_has_not_beaten_for_long_is_silent() -> None:
    speaker, hanging, well = Kid(99.0), Kid(100.0 - SILENT_AFTER - 0.1), Kid(98.0)
    starting = Kid(0.0, welcomed=False)

    assert silent([speaker, hanging, well, starting], speaker, 100.0) == [hanging]


def test_nobody_is_silent_where_the_machine_stood_still() -> None:
    speaker, other = Kid(50.0), Kid(50.0)

    assert silent([speaker, other], speaker, 100.0) == []
