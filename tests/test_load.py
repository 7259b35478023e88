"""When a worker counts as drowning, and what it does about it."""

from __future__ import annotations

import pytest

from lb.proxy.deadlines import TICK_S
from lb.proxy.load import SHED_MAX, Load


@pytest.mark.parametrize(
    ("lags", "shed"),
    [
        ([0.0] * 10, 0.0),
        ([0.4] * 10, 0.0),
        ([0.6, 0.6], 0.0),
        ([0.6, 0.6, 0.6], 0.1),
        ([0.6] * 5, 0.3),
        ([0.6] * 30, SHED_MAX),
        ([0.6, 0.1] * 10, 0.0),  # Now and then: that is no load.
        ([30.0, 30.0, 30.0], 0.0),  # The machine slept.
        ([0.6] * 5 + [0.3] * 5, 0.3),  # Neither well nor drowning.
        ([0.6] * 5 + [0.1] * 5, 0.0),
    ],
)
def test_shedding(lags: list[float], shed: float) -> None:
    load, now = Load(), 100.0
    load.look(now)
    for lag in lags:
        now += TICK_S + lag
        load.look(now)
    assert load.shed == pytest.approx(shed)
