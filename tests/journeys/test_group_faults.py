"""What goes wrong with one group, by hand and one thing at a time: traffic goes on throughout."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from journeys.conftest import MakeGroup, config_of
from journeys.group_kit import Group, Instance, stopped
from journeys.kit import Backend, Load, loaded, until
from lb.control.disk import seal

NO_QUORUM_SECONDS = 6.0  # The design says 5, and a busy machine takes its share.
UNUSED = "127.0.0.1:9"

Alone = Callable[..., Instance]


@pytest.fixture(scope="module")
def farm() -> Iterator[list[Backend]]:
    made = [Backend(name) for name in "ab"]
    yield made
    for backend in made:
        backend.close()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, farm: list[Backend]) -> Iterator[Group]:
    """One group for most tests: to be whole again after each fault is half of what is asked."""
    made = Group(tmp_path_factory.mktemp("three"), config_of(farm))
    try:
        yield made.start()
        assert "Traceback" not in made.log(10_000)
    finally:
        made.end()


@pytest.fixture
def three(lasting: Group) -> Group:
    for each in lasting:
        if not each.runs:
            each.launch()
    lasting.formed()
    lasting.leader()
    return lasting


@contextlib.contextmanager
def loads(*instances: Instance) -> Iterator[list[Load]]:
    """Keep several instances under a light load for the time of the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(loaded(each.port, clients=2)) for each in instances]


def writes(instance: Instance, key: str = UNUSED, **said: Any) -> bool:
    """Whether a write through an instance is taken now."""
    return instance.put(key, state="disabled", timeout=3.0, **said).status in (200, 201)


def remove(instance: Instance, backend: Backend) -> None:
    """Take a backend out that one test has put in."""
    path = f"/v1/upstreams/app/backends/{backend.address}"
    assert instance.admin(path, "DELETE").status == 200


def in_writing(instance: Instance, text: str) -> None:
    """Wait until the registry that an instance would serve after a cold start has this in it."""
    last_good = instance.data_dir / "last-good.json"
    until(lambda: text in last_good.read_text(), f"{instance.name} has {text} in writing")


def is_past(moment: float) -> bool:
    return time.monotonic() >= moment


# --- The leader goes ----------------------------------------------------------------------------


def test_the_leader_is_killed(three: Group) -> None:
    leader = three.leader()
    followers = three.followers()
    assert writes(leader, "10.9.0.1:80")
    with loads(*followers) as under:
        leader.end()
        began = time.monotonic()
        until(lambda: writes(followers[0], "10.9.0.2:80"), lambda: f"writes go on\n{three.log()}")
        gap = time.monotonic() - began
        assert three.leader() in followers
    assert [load.failures for load in under] == [[], []]
    assert gap < 10.0  # How long it really takes is for the bench.
    leader.start()
    three.formed()
    until(lambda: {"10.9.0.1:80", "10.9.0.2:80"} <= set(leader.backends()), "it catches up")


def test_only_the_leaders_controller_is_killed(three: Group) -> None:
    leader = three.leader()
    with loads(*three) as under:
        os.kill(leader.controller(), signal.SIGKILL)
        until(lambda: writes(leader), "writes go on, through it as well")
        three.formed()
    assert [load.failures for load in under] == [[], [], []]


def test_the_leader_is_stopped_in_order(three: Group) -> None:
    leader = three.leader()
    followers = three.followers()
    term = leader.status()["term"]
    slowest = 0.0
    over = threading.Event()

    def write() -> None:
        nonlocal slowest
        number = 0
        while not over.is_set():
            number += 1
            began = time.monotonic()
            until(partial(writes, followers[0], weight=number % 1000), "writes go on")
            slowest = max(slowest, time.monotonic() - began)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with loads(*followers) as under:
            assert leader.stop() == 0
    finally:
        over.set()
        writer.join()
    assert [load.failures for load in under] == [[], []]
    # Handed over, not waited out: an election by time-out takes a second at the least.
    assert slowest < 1.0
    assert three.leader().status()["term"] == term + 1


def test_leadership_is_handed_over_when_asked(three: Group) -> None:
    to = three.followers()[1]
    answer = three.followers()[0].admin("/v1/group/transfer", "POST", body={"to": to.name})
    assert answer.status == 200, answer.text
    assert answer.json()["leader"] == to.name
    assert three.leader() is to
    assert writes(three["a"])


# --- The quorum goes ----------------------------------------------------------------------------


def test_two_are_down(three: Group) -> None:
    leader = three.leader()
    left = three.followers()[0]
    with loads(left) as [load]:
        for each in three:
            if each is not left:
                each.end()
        before = load.done
        began = time.monotonic()
        answer = left.put(UNUSED, state="disabled")
        if answer.status == 504:  # It was sent before the loss was known: once, no more.
            began = time.monotonic()
            answer = left.put(UNUSED, state="disabled")
        took = time.monotonic() - began
        assert (answer.status, answer.json()["code"]) == (503, "no-quorum"), answer.text
        assert took < NO_QUORUM_SECONDS
        assert "Retry-After" in answer.headers
        read = left.admin("/v1/upstreams/app?consistent=true")
        assert (read.status, read.json()["code"]) == (503, "no-quorum")
        assert left.admin("/v1/upstreams/app").status == 200
        said = left.status()
        assert (said["quorum"], said["leader"], said["state"]) == (False, "", "no-quorum")
        assert left.admin("/readyz").status == 200  # Readiness does not hang on the quorum.
        assert load.done > before
    assert load.failures == []
    leader.start()
    until(lambda: writes(left), lambda: f"a quorum is back\n{three.log()}")


def test_a_cold_start_without_the_others(three: Group, farm: list[Backend]) -> None:
    """It serves what it last knew to be so, not what its file says."""
    [extra] = [Backend("extra")]
    try:
        assert three["a"].put(extra.address).status == 201
        path = f"/v1/upstreams/app/backends/{farm[0].address}"
        assert three["a"].admin(path, "PATCH", body={"state": "draining"}).status == 200
        three.everywhere(lambda each: each.routes() == {"b", "extra"}, "routed")
        in_writing(three["c"], '"draining"')
        for each in three:
            each.end()
        three["c"].start()
        assert three["c"].routes() == {"b", "extra"}
        assert three["c"].status()["state"] == "no-quorum"
        assert three["c"].put(UNUSED, state="disabled").status == 503
        three["a"].start()
        until(lambda: writes(three["c"]), lambda: f"two of three are enough\n{three.log()}")
        assert three["c"].admin(path, "PATCH", body={"state": "active"}).status == 200
        remove(three["c"], extra)
    finally:
        extra.close()


def test_all_are_restarted_and_nothing_is_lost(three: Group) -> None:
    keys = [f"10.9.0.{number}:80" for number in range(1, 31)]
    for number, key in enumerate(keys):
        assert writes(list(three)[number % 3], key, weight=number)
    revision = three.leader().status()["revision"]
    known = three["a"].standing()["id"]
    for each in three:
        each.end()
    three.start()
    for each in three:
        shown = each.backends(query="?consistent=true")
        assert [shown[key]["weight"] for key in keys] == list(range(30))
        assert each.standing()["id"] == known
    three.everywhere(lambda each: set(keys) <= set(each.backends()), "all there")
    assert three.leader().status()["revision"] == revision


@pytest.mark.long
def test_all_are_stopped_in_order_and_started_one_by_one(three: Group) -> None:
    assert writes(three["b"], "10.9.0.1:80")
    for each in three:
        each.stop()
    for each in three:
        each.start()
    three.formed()
    three.everywhere(lambda each: "10.9.0.1:80" in each.backends(), "it is there")


# --- The disk -----------------------------------------------------------------------------------


def flip_a_byte(instance: Instance) -> Path:
    """Spoil a byte that was once made sure, in the first frame of the newest part of the log."""
    log = sorted((instance.data_dir / "raft").glob("wal-*"))[-1]
    with open(log, "r+b") as file:
        file.seek(512 + 60)
        [byte] = file.read(1)
        file.seek(512 + 60)
        file.write(bytes([byte ^ 0x40]))
    return log


@pytest.mark.long
def test_a_damaged_log(three: Group) -> None:
    extra = Backend("extra")
    try:
        assert three["a"].put(extra.address).status == 201
        three.everywhere(lambda each: "extra" in each.routes(30), "routed")
        victim = three.followers()[0]
        others = [each for each in three if each is not victim]
        in_writing(victim, extra.address)
        victim.end()
        spoilt = flip_a_byte(victim)
        victim.start()
        assert victim.routes(30) == {"a", "b", "extra"}  # Its last good one.
        said = victim.standing()
        assert said["state"] == "damaged"
        text = str(said) + victim.log()
        assert spoilt.name in text
        assert "512" in text
        answer = victim.put(UNUSED, state="disabled")
        assert answer.status == 503, answer.text
        # Others are enough for each other; it does not vote, whatever is asked of it.
        assert writes(others[0])
        others[1].end()
        assert others[0].put(UNUSED, state="disabled", weight=2).status in (503, 504)
        others[1].start()
        until(lambda: writes(others[0]), "a quorum is back")
        # And the way out.
        victim.end()
        victim.wipe()
        victim.launch()
        until(lambda: victim.voters() == set("abc"), lambda: f"it is back\n{three.log()}", 60.0)
        until(lambda: UNUSED in victim.backends(), "it knows what it had missed")
        remove(victim, extra)
    finally:
        extra.close()


# --- Time stands still --------------------------------------------------------------------------


def test_a_leader_held_still_for_five_seconds(three: Group) -> None:
    """Its clients wait or go elsewhere; when it wakes up it answers nothing that is old."""
    old = three.leader()
    others = three.followers()
    assert writes(old, weight=1)
    with loads(*three) as under:
        with stopped(old.controller()):
            began = time.monotonic()
            until(lambda: writes(others[0], weight=2), "writes go on")
            until(partial(is_past, began + 5.0), "five seconds")
        # Its clock has stood still as well, and a read that it answers by that would be old.
        shown = old.backends(query="?consistent=true")
        assert shown[UNUSED]["weight"] == 2
        three.formed()
    assert [load.failures for load in under] == [[], [], []]
    assert writes(old, weight=3)


def test_short_stalls_under_load_cost_no_election(three: Group) -> None:
    leader = three.leader()
    term = leader.status()["term"]
    with loads(*three) as under:
        for pid in [each.controller() for each in three] * 2:
            with stopped(pid):
                began = time.monotonic()
                until(partial(is_past, began + 0.3), "0.3 s")
            until(lambda: writes(leader), "writes go on")
    assert [load.failures for load in under] == [[], [], []]
    assert three.leader().status()["term"] == term


# --- Older data ---------------------------------------------------------------------------------

BY = {"token": "", "member": "a", "source": "api", "note": ""}


def registry_of_an_older_version(file: Backend, api: Backend) -> dict[str, object]:
    """Return what a single instance kept before there were groups."""
    common = {"name": None, "backup": False}
    said = {"address": file.address, "weight": 1, **common}
    return {
        "id": "46f730430baf4fe5af6966e8ea657595",
        "revision": 3,
        "upstreams": {
            "app": {
                "revision": 3,
                "backends": [
                    said
                    | {"state": "draining", "source": "file", "labels": {}}
                    | {"changed": {"by": BY, "revision": 3, "at": 1795545689.05}},
                    {"address": api.address, "weight": 3, **common}
                    | {"state": "active", "source": "api", "labels": {"rack": "r1"}}
                    | {"changed": {"by": BY, "revision": 2, "at": 1795545689.04}},
                ],
                "view": {
                    "said": [said],
                    "changed": {"by": BY | {"source": "file"}, "revision": 1, "at": 1795545688.89},
                    "version": 0,
                    "past": [],
                    "merged": [],
                },
            }
        },
        "answers": {},
    }


def write_older_data(instance: Instance, backends: list[Backend]) -> None:
    instance.data_dir.mkdir(mode=0o700)
    body = registry_of_an_older_version(*backends)
    (instance.data_dir / "registry.json").write_bytes(seal(1, body))


def test_what_an_older_version_kept_is_taken_over(alone: Alone, backends: list[Backend]) -> None:
    one = alone("a")
    one.write(config_of(backends[:1]))
    write_older_data(one, backends)
    for _ in range(2):
        one.start()
        assert one.routes() == {"b"}
        shown = one.backends()
        assert shown[backends[0].address]["state"] == "draining"
        assert shown[backends[1].address]["labels"] == {"rack": "r1"}
        assert one.status()["revision"] >= 3
        one.end()


@pytest.mark.long
def test_a_group_takes_over_what_its_founder_had(group: MakeGroup, backends: list[Backend]) -> None:
    three = group(config_of(backends[:1]))
    write_older_data(three["a"], backends)
    three.start()
    three.everywhere(lambda each: each.routes() == {"b"}, "routed")
    assert three["c"].backends()[backends[1].address]["weight"] == 3
