"""Ticks that are slept through: as many pass as did, and none is late that anybody waits for."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from test_replica import group_of, run, until

from lb.control.pace import Pace
from lb.control.replica import ELECTION_TICKS, HEARTBEAT_TICKS, TICK, Replica
from lb.raft.messages import MessageType, Role
from lb.raft.node import Node


async def passed(seconds: float) -> None:
    until_when = asyncio.get_running_loop().time() + seconds
    await until(lambda: asyncio.get_running_loop().time() >= until_when)


def test_ticks_that_were_slept_through_pass_before_the_last() -> None:
    pace = Pace(0.02, 100.0)
    pace.rest(5)

    assert pace.due == pytest.approx(100.1)
    assert pace.passed(100.01) == 0
    assert pace.passed(100.05) == 2
    assert pace.passed(100.05) == 0
    assert pace.passed(100.11) == 2  # The last is for who wakes.
    pace.woke(100.11)
    assert pace.due == pytest.approx(100.12)


def test_a_sleep_that_is_cut_short_goes_on_from_the_last_tick() -> None:
    pace = Pace(0.02, 100.0)
    pace.rest(5)

    assert pace.passed(100.07) == 3
    pace.rest(1)

    assert pace.due == pytest.approx(100.08)
    assert pace.passed(100.09) == 0


def test_time_in_which_we_stood_still_is_not_made_up_for() -> None:
    pace = Pace(0.02, 100.0)
    pace.rest(5)

    assert pace.passed(160.0) == 4
    pace.woke(160.0)

    assert pace.due == pytest.approx(160.0)
    pace.woke(160.0)
    assert pace.due == pytest.approx(160.02)


def test_at_rest_a_member_wakes_seldom_and_counts_every_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's heartbeats come as if it had looked at each tick."""
    wakes: dict[int, int] = {}
    beats: list[float] = []
    ticked = Replica._tick
    sent = Replica.send

    def count(replica: Replica) -> None:
        wakes[replica.id] = wakes.get(replica.id, 0) + 1
        ticked(replica)

    def note(replica: Replica, messages: object) -> None:
        news = list(messages)  # type: ignore[call-overload]
        if any(each.type is MessageType.HEARTBEAT and each.to == 2 for each in news):
            beats.append(asyncio.get_running_loop().time())
        sent(replica, news)

    monkeypatch.setattr(Replica, "_tick", count)
    monkeypatch.setattr(Replica, "send", note)

    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            loop = asyncio.get_running_loop()
            nodes: list[Node] = [box.replica.node for box in boxes]
            await passed(0.3)  # Until all of them have heard of each other.
            before = [node.ledger.ticks for node in nodes]
            began = loop.time()
            wakes.clear()
            beats.clear()
            await passed(2.0)
            ticks = (loop.time() - began) / TICK
            assert max(wakes.values()) <= ticks / HEARTBEAT_TICKS + 2
            for node, was in zip(nodes, before, strict=True):
                # A sleep before, and one after, whose ticks are not counted yet.
                assert ticks * 0.8 - 2 * HEARTBEAT_TICKS <= node.ledger.ticks - was
                assert node.ledger.ticks - was <= ticks + 2 * HEARTBEAT_TICKS + 2
            assert len(beats) >= 10
            gaps = [after - before for before, after in pairwise(beats)]
            assert sorted(gaps)[len(gaps) // 2] <= (HEARTBEAT_TICKS + 1) * TICK
            assert [node.role for node in nodes].count(Role.LEADER) == 1

    run(work)


def test_who_hears_no_leader_counts_each_tick_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            loop = asyncio.get_running_loop()
            await passed(0.3)
            leader = next(box for box in boxes if box.replica.leads)
            others = [box.replica for box in boxes if box is not leader]
            await leader.stop()
            began = loop.time()
            await until(lambda: any(each.leads for each in others))
            assert loop.time() - began <= 3 * ELECTION_TICKS * TICK

    run(work)
