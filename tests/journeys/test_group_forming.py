"""How instances become a group, with one kind of file for every case; and who is not let in."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.proxy import Proxy
from journeys.conftest import MakeGroup, config_of
from journeys.group_kit import Group, Instance
from journeys.kit import PATIENCE, ROOT, Backend, until

Alone = Callable[..., Instance]


def lb(instance: Instance, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours about an instance."""
    return subprocess.run(
        [sys.executable, "-m", "lb.cli", *words, "--admin", f"127.0.0.1:{instance.admin_port}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )


def ids(group: Group) -> set[str]:
    """Return the ids of the groups that instances say they are in."""
    return {each.standing()["id"] for each in group if each.runs}


def member_id(asked: Instance, name: str) -> str:
    """Return a member's id, as another shows it."""
    found = [each["id"] for each in asked.standing()["members"] if each["name"] == name]
    return str(found[0]) if found else ""


def is_voter(asked: Instance, name: str) -> bool:
    return name in asked.voters()


# --- First starts -------------------------------------------------------------------------------


def test_three_started_at_once(group: MakeGroup, plain: str) -> None:
    three = group(plain).start()
    assert len(ids(three)) == 1
    leader = three.leader()
    for each in three:
        said = each.status()
        assert (said["quorum"], said["leader"], said["state"]) == (True, leader.name, "ok")
        assert each.routes() == {"a", "b"}
    assert Counter(each.status()["role"] for each in three) == {"leader": 1, "follower": 2}
    # All three files said the same: that was one change, whoever brought it.
    assert (
        three["a"].admin("/v1/upstreams/app").json()["revision"]
        <= three.leader().status()["revision"]
    )
    assert len(three.agree("source")) == 2


@pytest.mark.long
def test_one_after_another_and_each_serves_at_once(group: MakeGroup, plain: str) -> None:
    three = group(plain)
    for name in "cba":  # The founder comes last.
        three[name].start()
        assert three[name].routes() == {"a", "b"}
        if name != "a":
            said = three[name].standing()
            assert (said["state"], said["members"]) == ("forming", [])
            assert "a" in "".join(said["waiting_for"])
    three.formed()
    assert len(ids(three)) == 1


def test_one_missing_is_named_and_need_not_be_waited_for(group: MakeGroup, plain: str) -> None:
    three = group(plain)
    for name in "ab":
        three[name].start()

    def waiting() -> bool:
        said = three["a"].standing()
        return bool(said["state"] == "forming" and said["waiting_for"]) and all(
            "c" in each for each in said["waiting_for"]
        )

    until(waiting, "c is waited for")
    assert three["a"].put("127.0.0.1:9", state="disabled").status == 503
    assert three["a"].routes() == {"a", "b"}
    done = lb(three["a"], "group", "found", "--yes")
    assert done.returncode == 0, done.stderr
    three.formed("ab")
    three["c"].start()
    three.formed()
    assert len(ids(three)) == 1


@pytest.mark.long
def test_a_group_that_grows_by_join(group: MakeGroup, plain: str) -> None:
    one = group(plain, "a").start()
    four = Group(one["a"].folder.parent, plain, "bcd")
    try:
        for each in four:
            each.configure(plain, {}, more=f'join = ["{one["a"].peer_address}"]')
            each.start()
            one.leader()
        until(lambda: len(one["a"].standing()["members"]) == 4, "four members")
        until(lambda: len(one["a"].voters()) == 3, "three of them vote")
        roles = {each["name"]: each["role"] for each in one["a"].standing()["members"]}
        learner = next(name for name, role in roles.items() if role == "learner")
        assert one["a"].put("127.0.0.1:9", state="disabled").status == 201
        until(lambda: "127.0.0.1:9" in four[learner].backends(), "a learner learns")
        assert four[learner].put("127.0.0.1:9", state="disabled", weight=3).status == 200
    finally:
        four.end()


# --- Boxes that come back -----------------------------------------------------------------------


def test_a_wiped_box_comes_back_under_a_fresh_id(group: MakeGroup, plain: str) -> None:
    three = group(plain).start()
    before = member_id(three["a"], "c")
    # Not before the group has what the files say: till then it knows no upstream.
    until(lambda: three["b"].put("127.0.0.1:9", state="disabled").status == 201, "a write")
    three["c"].end()
    three["c"].wipe()
    three["c"].launch()
    three["c"].ready()
    # Only when the leader has not heard the old one for ten elections' time.
    until(
        lambda: is_voter(three["a"], "c") and member_id(three["a"], "c") != before,
        lambda: f"c votes under another id\n{three.log()}",
        60.0,
    )
    until(lambda: "127.0.0.1:9" in three["c"].backends(), "c knows what it had forgotten")
    assert len(ids(three)) == 1


@pytest.mark.long
def test_a_name_that_is_taken(group: MakeGroup, alone: Alone, plain: str) -> None:
    three = group(plain).start()
    before = member_id(three["a"], "c")
    other = alone("c")
    other.configure(plain, {}, more=f'join = ["{three["a"].peer_address}"]')
    other.launch()
    until(lambda: "taken" in other.log(), lambda: f"it is told\n{other.log()}")
    assert other.routes() == {"a", "b"}  # From its file, as one that waits.
    assert member_id(three["a"], "c") == before
    assert three["c"].put("127.0.0.1:9", state="disabled").status == 201


# --- Those who are not let in -------------------------------------------------------------------


@pytest.mark.long
def test_members_of_two_groups_refuse_each_other(
    group: MakeGroup, alone: Alone, plain: str
) -> None:
    three = group(plain).start()
    other = alone("x")
    other.configure(plain, {"x": other.peer_address})
    other.start()
    until(lambda: other.voters() == {"x"}, "a group of its own")
    other.stop()
    other.configure(plain, {"x": other.peer_address, **three.members})
    other.launch()
    until(lambda: "a is refused" in other.log(), lambda: f"it is refused\n{other.log()}")
    [line] = [each for each in other.log().splitlines() if "a is refused" in each]
    assert "belongs to group" in line
    assert "raft/" in line  # What to remove, to wipe it.
    assert other.routes() == {"a", "b"}
    assert three["a"].voters() == set("abc")
    assert three["b"].put("127.0.0.1:9", state="disabled").status == 201


@pytest.mark.long
def test_a_wrong_secret_is_logged_once(tmp_path: Path, alone: Alone, plain: str) -> None:
    proxy = Proxy()
    three = Group(tmp_path, plain, network=proxy)
    try:
        three.start()
        other = alone("x")
        other.configure(
            plain, {}, secret="not-the-same-secret-0123456789", more=f'join = ["{proxied(three)}"]'
        )
        other.launch()
        until(lambda: proxy.dialled["x", "a"] >= 3, lambda: f"three tries\n{other.log()}")
        lines = [line for line in three["a"].log().splitlines() if "another secret" in line]
        assert len(lines) == 1, three["a"].log()
        assert "secret" in other.log()
        assert other.routes() == {"a", "b"}
        assert three["a"].voters() == set("abc")
    finally:
        three.end()
        proxy.close()


def proxied(three: Group) -> str:
    return three["a"].peer_address


@pytest.mark.parametrize("where", ["0.0.0.0", "[::]"])
def test_neither_secret_nor_tls_is_for_loopback_only(alone: Alone, plain: str, where: str) -> None:
    one = alone("a")
    one.configure(plain, {"a": one.peer_address}, secret="")
    one.path.write_text(
        one.path.read_text().replace(
            f'listen = "127.0.0.1:{one.peer_port}"', f'listen = "{where}:{one.peer_port}"'
        )
    )
    one.launch()
    assert one.wait() == 3
    assert "secret" in one.log()
    assert "tls" in one.log()


@pytest.mark.long
def test_loopback_needs_no_secret(group: MakeGroup, plain: str) -> None:
    three = group(plain, secret="").start()
    assert three["c"].put("127.0.0.1:9", state="disabled").status == 201
    until(lambda: "127.0.0.1:9" in three["a"].backends(), "a knows")


# --- A group of one -----------------------------------------------------------------------------


def test_an_instance_alone_keeps_what_the_api_added(alone: Alone, backends: list[Backend]) -> None:
    one = alone("a")
    one.write(config_of(backends[:1]))
    one.start()
    assert one.put(backends[1].address, weight=2).status == 201
    assert one.status()["role"] == "leader"
    revision = one.status()["revision"]
    one.end()
    one.start()
    assert one.routes() == {"a", "b"}
    assert one.status()["revision"] == revision
    assert one.backends()[backends[1].address]["source"] == "api"


def test_a_group_of_one_becomes_one_of_three(
    group: MakeGroup, backends: list[Backend], tmp_path: Path
) -> None:
    """What a single instance had is what the group has: it is joined, not founded anew."""
    one = Group(tmp_path, config_of(backends[:1]), "a").start()
    assert one["a"].put(backends[1].address).status == 201
    known = one["a"].standing()["id"]
    others = group(config_of(backends[:1]), "bc")
    members = {"a": one["a"].peer_address, **others.members}
    for each in others:
        each.configure(config_of(backends[:1]), members)
        each.launch()
    try:
        until(lambda: one["a"].voters() == set("abc"), lambda: f"three vote\n{others.log()}", 60.0)
        for each in others:
            each.ready()
            assert each.standing()["id"] == known
        others.everywhere(lambda each: each.routes() == {"a", "b"}, "routed")
    finally:
        one.end()
