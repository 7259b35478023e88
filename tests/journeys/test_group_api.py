"""What one instance says of all: whoever is down is named, and nobody is waited for in vain."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from chaos.clients import read_frame
from journeys.conftest import config_of
from journeys.group_kit import Group, Instance
from journeys.kit import PATIENCE, Answer, Backend, until

BACKEND = "10.9.8.1:80"
SPARE = '\n[upstream.spare]\nbackends = ["127.0.0.1:9"]\n'
QUORUM_SECONDS_MAX = 5.0


@pytest.fixture
def three(tmp_path: Any, backends: list[Backend]) -> Iterator[Group]:
    made = Group(tmp_path, config_of(backends, listener='upstream = "app"') + SPARE)
    try:
        made.start().everywhere(has_decided, "what the files say is in the registry")
        yield made
        assert "Traceback" not in made.log(10_000)
    finally:
        made.end()


def has_decided(instance: Instance) -> bool:
    """Whether no file is to be proposed any more, which would be revisions nobody counts on."""
    shown = instance.admin("/v1/upstreams").json()["upstreams"]
    return all(each["revision"] for each in shown)


@contextlib.contextmanager
def events(instance: Instance, query: str = "") -> Iterator[http.client.HTTPResponse]:
    """Open a stream of an instance's events."""
    connection = http.client.HTTPConnection("127.0.0.1", instance.admin_port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", f"/v1/events{query}")
        with contextlib.closing(connection.getresponse()) as response:
            yield response


def next_of(stream: http.client.HTTPResponse, *kinds: str) -> dict[str, Any]:
    """Read on to a frame of one of these kinds, and return its data."""
    while (frame := read_frame(stream.readline)) is not None:
        if frame.get("event", "message") in kinds:
            return dict(json.loads(frame["data"]))
    raise EOFError


@pytest.mark.long
def test_what_one_says_of_all_while_they_go_one_by_one(three: Group) -> None:
    survivor = three.followers()[0]
    lost = [each for each in three if each is not survivor]
    all_are_up(three, survivor)

    follower = next(each for each in lost if each is not three.leader())
    follower.end()
    one_is_down(survivor, follower)

    with events(survivor) as stream:
        begun = next_of(stream, "created")
        next(each for each in lost if each is not follower).end()
        no_quorum(survivor)
        end = next_of(stream, "closed")
    assert (end["reason"], end["resume"]) == ("no-leader", begun["revision"] + 1)
    with events(survivor) as refused:
        assert refused.status == 503


def all_are_up(three: Group, asked: Instance) -> None:
    """Nobody is behind, all have the same config, and any one may stop."""
    written = asked.put(BACKEND, query="?wait=all", state="disabled").json()
    assert (written["routed"], written["behind"], written["unreachable"]) == (True, [], [])

    def known() -> bool:
        shown = asked.standing()["members"]
        return len({each["config_hash"] for each in shown}) == 1 and shown[0]["version"] != ""

    until(known, lambda: f"one config: {asked.standing()}")
    for each in three:
        plain = each.admin("/v1/group/ok-to-stop").json()
        assert plain["ok"], plain
    refused = asked.admin("/v1/upstreams/spare", "DELETE")
    assert refused.json()["code"] == "upstream-in-use"
    for name in three.instances:
        assert name in refused.json()["detail"]


def one_is_down(asked: Instance, gone: Instance) -> None:
    """It is named wherever it is missed, and what needs a quorum only goes on."""

    def missed() -> bool:
        members = {each["name"]: each for each in asked.standing()["members"]}
        return not members[gone.name]["live"]

    until(missed, lambda: f"{gone.name} missed: {asked.standing()}")
    until(lambda: asked.status()["quorum"], "a quorum of two")
    assert not asked.admin("/v1/group/ok-to-stop").json()["ok"]

    written = asked.put(BACKEND, query="?wait=all", state="disabled", weight=2).json()
    assert (written["behind"], written["unreachable"]) == ([], [gone.name])
    view = asked.admin("/v1/upstreams/app?view=group").json()["members"]
    assert "error" in view[gone.name]
    assert sum("error" in each for each in view.values()) == 1
    assert asked.admin("/v1/upstreams/app?consistent=true").status == 200


def no_quorum(asked: Instance) -> None:
    """What needs one is refused in time, and says so; what does not goes on."""
    until(lambda: not asked.status()["quorum"], "no quorum any more")
    tries: tuple[Callable[[], Answer], ...] = (
        lambda: asked.put(BACKEND, state="disabled", weight=3),
        lambda: asked.admin("/v1/upstreams/app?consistent=true", timeout=PATIENCE),
    )
    for attempt in tries:
        began = monotonic()
        answer = attempt()
        assert (answer.status, answer.json()["code"]) == (503, "no-quorum")
        assert answer.headers["Retry-After"]
        assert monotonic() - began < QUORUM_SECONDS_MAX + 1
    backup = asked.admin("/v1/group/backup")
    assert backup.status == 200
    keys = {each["address"] for each in backup.json()["upstreams"]["app"]["backends"]}
    assert BACKEND in keys
    assert asked.ask().status == 200, "traffic goes on"


def test_a_backup_is_put_back_and_events_begin_with_this_controller(three: Group) -> None:
    first, other = three["a"], three["b"]
    kept = first.admin("/v1/group/backup").json()
    first.put(BACKEND, state="disabled")
    before = first.status()["revision"]

    restored = other.admin("/v1/group/restore?wait=all", "POST", body=kept).json()

    assert restored["revision"] == before + 1
    assert BACKEND not in first.backends()
    with events(first, f"?from={before + 1}") as stream:
        event = next_of(stream, "message")
    assert (event["kind"], event["revision"]) == ("restore", before + 1)
    assert {change["what"] for change in event["changes"]} == {"removed"}

    first.stop()
    first.launch()
    first.ready()
    until(
        lambda: first.status()["revision"] == before + 1,
        lambda: f"revision {before + 1}, not {first.status()}\n{three.log()}",
    )
    with events(first, f"?from={before + 1}") as answer:
        problem = json.loads(answer.read())
    assert (answer.status, problem["code"]) == (410, "compacted")
    assert problem["compact_revision"] == problem["current_revision"] == before + 1
    with events(first, f"?from={before + 2}") as stream:
        assert next_of(stream, "created")["from"] == before + 2
