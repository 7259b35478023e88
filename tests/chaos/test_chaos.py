"""A group under fire, and two groups that lie, which must be found out.

`make soak` runs for longer and from other seeds: CHAOS_SECONDS, CHAOS_SEED.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.disks import Power
from chaos.proxy import Proxy
from chaos.running import CONFIG, FAULTS, Crowd, Goal, behind_a_bad_network, run
from journeys.group_kit import Group
from journeys.kit import until

SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))
SEED = int(os.environ.get("CHAOS_SEED", "5"))
SECONDS_MAX = 110.0  # For what should take 60: the machine may be busy.
GOAL = Goal(completed=5_000, leader_changes=3, seconds_max=SECONDS_MAX)
LIARS_CALLS = 400
AGAIN_SECONDS = 60.0  # Until clients that were cut off are served: each has patience of its own.


def test_a_group_under_fire_keeps_its_word(tmp_path: Path) -> None:
    goal = GOAL
    if SECONDS:
        goal = Goal(1 << 40, 3, SECONDS)

    outcome = run(tmp_path, SEED, goal)

    print(outcome.report())
    assert not outcome.wrong, outcome.report()
    assert outcome.completed >= 5_000, outcome.report()
    assert outcome.leader_changes >= 3, outcome.report()
    assert not [fault for fault in FAULTS if not outcome.fired[fault]], outcome.report()


# --- Those who lie ------------------------------------------------------------------------------


class Rack:
    """Three instances whose power fails at once, with disks that can be told to lie."""

    def __init__(self, folder: Path) -> None:
        self.power = {name: Power(folder / f"power-{name}") for name in "abc"}
        self.group = Group(folder, CONFIG)
        for instance in self.group:
            instance.environ = self.power[instance.name].environ()

    def lie(self) -> None:
        for power in self.power.values():
            power.lie()

    def cut(self) -> int:
        """Cut the power of all; return how many bytes were lost."""
        self.group.end()
        return sum(power.cut() for power in self.power.values())


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    made = Rack(tmp_path)
    yield made
    made.group.end()


def use_and_cut(rack: Rack) -> list[str]:
    """Have clients at work when the power fails; start again, go on, and judge it all."""
    crowd = Crowd(rack.group, 1, calls_max=3 * LIARS_CALLS)
    crowd.start()
    try:
        until(lambda: crowd.notes.completed >= LIARS_CALLS, "clients at work")
        rack.cut()
        rack.group.start()
        more = crowd.notes.completed + LIARS_CALLS // 4
        until(
            lambda: crowd.notes.completed >= more,
            lambda: f"clients at work again: {crowd.notes.counts}\n{rack.group.log()}",
            AGAIN_SECONDS,
        )
        return crowd.finish()
    finally:
        crowd.stop()


def test_an_honest_disk_keeps_all_that_was_promised(rack: Rack) -> None:
    rack.group.start()
    assert use_and_cut(rack) == []


def test_a_disk_that_lies_is_found_out(rack: Rack) -> None:
    rack.group.start()
    rack.lie()
    wrong = "\n".join(use_and_cut(rack))
    assert "no watcher was told of it" in wrong or "told in two ways" in wrong, wrong
    assert "not linearizable" in wrong or "went back in time" in wrong, wrong


def test_local_reads_passed_off_as_consistent_are_found_out(tmp_path: Path) -> None:
    with behind_a_bad_network(tmp_path, 3) as (group, proxy):
        crowd = Crowd(group, 3, calls_max=3 * LIARS_CALLS, consistent=False)
        crowd.start()
        with contextlib.ExitStack() as stack:
            stack.callback(crowd.stop)
            until(lambda: crowd.notes.completed >= LIARS_CALLS, "clients at work")
            cut_off(group, proxy)
            more = crowd.notes.completed + LIARS_CALLS
            until(lambda: crowd.notes.completed >= more, "clients at work beside the cut")
            proxy.heal()
            wrong = "\n".join(crowd.finish())
    assert "went back in time" in wrong
    assert "not linearizable" in wrong


def cut_off(group: Group, proxy: Proxy) -> None:
    """Cut off a follower: it knows of nothing new, and does not know that."""
    victim = group.followers()[0]
    proxy.isolate(victim.name, [each.name for each in group if each is not victim])
