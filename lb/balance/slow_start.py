"""
Slow start: a backend that has just come, or come back, gets little at first and more each second.

Its weight is w x max(0.1, t / window). The whole pool's weights are counted in parts of `STEPS`, so
that a part of a weight is a whole number; the order of turns is laid out anew only when somebody
is a step further. Where what is new makes up more than half of the pool nobody is spared: the
others could not carry the rest.

Not for `hash`: a key's backend would change with each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

STEPS: Final = 20
LEAST: Final = 0.1


def steps_of(age: float, window: float) -> int:
    """Return how many of `STEPS` parts of its weight a backend has, `age` seconds old."""
    return max(int(STEPS * LEAST), min(STEPS, int(STEPS * age / window)))


def warm_weights(
    weights: Sequence[int], ages: Mapping[int, float], window: float
) -> tuple[list[int], bool]:
    """
    Return the weights to balance by, and whether one of them is less than whole.

    `ages` has seconds by index of those that came lately. All are multiplied by `STEPS`,
    always, so that what a balancer knows of before stays in proportion.
    """
    steps = {
        index: count for index, age in ages.items() if (count := steps_of(age, window)) < STEPS
    }
    if 2 * sum(weights[index] for index in steps) > sum(weights):
        steps = {}
    warm = [
        weight and max(1, weight * steps.get(index, STEPS)) for index, weight in enumerate(weights)
    ]
    return warm, bool(steps)
