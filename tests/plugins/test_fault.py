"""Harm as asked for, and as much of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lb.errors import OperatorError
from lb.testing import Bench, call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "fault.py"


def test_a_share_is_refused() -> None:
    bench = Bench(seed=7)
    made = make(PLUGIN, {"abort": "30%", "status": 502}, bench)
    statuses = [call(made).got.status for _ in range(500)]
    assert set(statuses) == {200, 502}
    assert 100 < statuses.count(502) < 200
    assert bench.counts["aborted"] == statuses.count(502)


def test_who_is_to_wait_waits_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    bench = Bench()
    made = make(PLUGIN, {"delay": "100%", "wait": "3s"}, bench)
    assert call(made).got.status == 200
    assert waited == [3.0]
    assert bench.counts["delayed"] == 1
    calm: Any = make(PLUGIN, {"abort": "100%"})
    assert call(calm).got.status == 503
    assert waited == [3.0]


@pytest.mark.parametrize(("value", "status"), [("abort", 503), ("", 200), ("no", 200)])
def test_by_a_header(value: str, status: int) -> None:
    made = make(PLUGIN, {"header": "x-fault"})
    assert call(made, f"GET /\nX-Fault: {value}").got.status == status
    assert call(made, "GET /").got.status == 200


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "nothing to do"),
        ({"abort": "1%", "status": 200}, "from 400"),
        ({"delay": "1%", "wait": "1m"}, "at most"),
        ({"abort": 1}, "no unit"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
