"""One group in good health: what is written anywhere is known, and routed by, everywhere."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from chaos.clients import read_frame
from journeys.conftest import config_of
from journeys.group_kit import Group, Instance
from journeys.kit import PATIENCE, Answer, Backend

UNUSED = "127.0.0.1:9"
MORE = """
[upstream.spare]
backends = ["127.0.0.1:9"]
"""


@pytest.fixture(scope="module")
def farm() -> Iterator[dict[str, Backend]]:
    made = {name: Backend(name) for name in "abpqr"}
    yield made
    for backend in made.values():
        backend.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, farm: dict[str, Backend]) -> Iterator[Group]:
    """One group for all tests here; each has names of its own for what it writes."""
    made = Group(tmp_path_factory.mktemp("three"), config(farm))
    try:
        yield made.start()
        assert "Traceback" not in made.log(10_000)
    finally:
        made.end()


def config(farm: dict[str, Backend], *names: str) -> str:
    chosen = [farm[name] for name in names or "ab"]
    return config_of(chosen, listener='upstream = "app"') + MORE


def everywhere(three: Group, key: str, what: str, value: object) -> None:
    """Wait until every instance shows something of a backend."""
    three.everywhere(
        lambda each: each.backends().get(key, {}).get(what) == value, f"{what} of {key} is {value}"
    )


def test_written_anywhere_routed_everywhere(three: Group, farm: dict[str, Backend]) -> None:
    for writer, name in zip(three, "pqr", strict=True):
        answer = writer.put(farm[name].address, query="?wait=all")
        assert answer.status == 201, answer.text
        said = answer.json()
        assert (said["routed"], said["behind"]) == (True, [])
        for each in three:  # Everybody has it by now, and every worker routes by it.
            shown = each.admin("/v1/upstreams/app")
            assert int(shown.headers["X-Revision"]) >= said["revision"]
            assert name in each.routes(30)
    for writer, name in zip(three, "pqr", strict=True):
        path = f"/v1/upstreams/app/backends/{farm[name].address}"
        assert writer.admin(path, "DELETE").status == 200
    three.everywhere(lambda each: each.routes() == {"a", "b"}, "gone")


def test_an_answer_comes_when_the_asked_instance_routes_by_it(
    three: Group, farm: dict[str, Backend]
) -> None:
    follower = three.followers()[0]
    answer = follower.put(farm["p"].address, weight=100)
    assert answer.json()["routed"]
    assert "p" in follower.routes(5)
    assert follower.admin(f"/v1/upstreams/app/backends/{farm['p'].address}", "DELETE").status == 200
    assert "p" not in follower.routes()


def test_conditions_hold_across_instances(three: Group) -> None:
    a, b, c = three
    made = a.put("10.9.1.1:80", state="disabled")
    revision = made.json()["backend"]["revision"]
    assert b.put("10.9.1.1:80", state="disabled", weight=2, match=f'"{revision}"').status == 200
    late = c.put("10.9.1.1:80", state="disabled", weight=3, match=f'"{revision}"')
    assert late.status == 412
    assert late.json()["code"] == "precondition-failed"
    path = "/v1/upstreams/app/backends/10.9.1.1:80"
    only_new = c.admin(path, "PUT", body={"state": "disabled"}, fields={"If-None-Match": "*"})
    assert only_new.status == 412
    everywhere(three, "10.9.1.1:80", "weight", 2)


def test_a_retried_write_is_done_once_wherever_it_goes(three: Group) -> None:
    def put(instance: Instance, weight: int) -> Answer:
        return instance.admin(
            "/v1/upstreams/app/backends/10.9.1.2:80",
            "PUT",
            body={"state": "disabled", "weight": weight},
            fields={"Idempotency-Key": "k-2"},
        )

    answers = [put(each, 7) for each in three]
    assert [answer.status for answer in answers] == [201, 201, 201]
    assert len({answer.json()["revision"] for answer in answers}) == 1
    assert put(three["b"], 8).status == 422
    everywhere(three, "10.9.1.2:80", "weight", 7)


def test_a_write_that_changes_nothing_takes_no_revision(three: Group) -> None:
    first = three["a"].put("10.9.1.3:80", state="disabled").json()["revision"]
    again = three["b"].put("10.9.1.3:80", state="disabled").json()["revision"]
    assert again == first


def test_several_backends_in_one_revision(three: Group) -> None:
    keys = ["10.9.1.4:80", "10.9.1.5:80"]
    for key in keys:
        three["a"].put(key, state="disabled")
    edits = {key: {"weight": 9} for key in keys}
    answer = three["c"].admin("/v1/upstreams/app", "PATCH", body={"backends": edits})
    assert answer.status == 200
    revision = answer.json()["revision"]
    for key in keys:
        everywhere(three, key, "weight", 9)
        everywhere(three, key, "revision", revision)


def test_nobody_can_empty_an_upstream(three: Group) -> None:
    path = "/v1/upstreams/spare/backends/127.0.0.1:9"
    for each in three:
        refused = each.admin(path, "PATCH", body={"state": "draining"})
        assert (refused.status, refused.json()["code"]) == (409, "would-empty")
    forced = three["b"].admin(f"{path}?force=true", "PATCH", body={"state": "draining"})
    assert forced.status == 200
    assert three["c"].admin(path, "PATCH", body={"state": "active"}).status == 200


def test_who_changed_it_is_known_everywhere(three: Group) -> None:
    three["b"].put("10.9.1.6:80", state="disabled", query="?note=for%20the%20test")
    everywhere(three, "10.9.1.6:80", "weight", 1)
    for each in three:
        by = each.backends()["10.9.1.6:80"]["changed"]["by"]
        assert (by["member"], by["note"]) == ("b", "for the test")


def test_consistent_reads_see_what_was_written_elsewhere(three: Group) -> None:
    for number in range(1, 31):
        writer, reader = list(three)[number % 3], list(three)[(number + 1) % 3]
        assert writer.put("10.9.1.7:80", state="disabled", weight=number).status in (200, 201)
        assert reader.backends(query="?consistent=true")["10.9.1.7:80"]["weight"] == number


def test_the_view_of_the_group(three: Group) -> None:
    shown = three["a"].admin("/v1/upstreams/app?view=group").json()
    text = json.dumps(shown)
    assert all(f'"{name}"' in text for name in "abc"), text


def test_bad_writes_change_nothing(three: Group) -> None:
    before = three.leader().status()["revision"]
    bad: list[tuple[str, object, int]] = [
        ("nowhere/backends/10.9.2.1:80", {"weight": 1}, 404),
        ("app/backends/10.9.2.1:80", {"weight": -1}, 400),
        ("app/backends/no-address", {"weight": 1}, 400),
        ("app/backends/10.9.2.1:80", [1, 2], 400),
    ]
    for each in three:
        for path, body, status in bad:
            answer = each.admin(f"/v1/upstreams/{path}", "PUT", body=body)
            assert answer.status in (status, 422), (path, body, answer.text)
            assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert three.leader().status()["revision"] == before


# --- Events -------------------------------------------------------------------------------------


class Stream:
    """One instance's events, from a revision on."""

    def __init__(self, instance: Instance, path: str, last: int | None = None) -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", instance.admin_port, timeout=PATIENCE
        )
        fields = {} if last is None else {"Last-Event-ID": str(last)}
        self._connection.request("GET", path, headers=fields)
        self.answer = self._connection.getresponse()

    def next_revision(self) -> tuple[int, dict[str, Any]]:
        """Return the next event that tells of a revision."""
        while (frame := read_frame(self.answer.readline)) is not None:
            if "id" in frame and frame.get("event") not in ("bookmark", "created", "closed"):
                return int(frame["id"]), json.loads(frame["data"])
        raise EOFError

    def close(self) -> None:
        self._connection.close()


def test_events_are_the_same_everywhere_and_can_be_resumed(three: Group) -> None:
    first = three["a"].put("10.9.3.0:80", state="disabled").json()["revision"]
    for number in range(1, 10):
        writer = list(three)[number % 3]
        assert writer.put(f"10.9.3.{number}:80", state="disabled").status == 201
    told = []
    for each in three:
        stream = Stream(each, f"/v1/events?from={first}")
        told.append([stream.next_revision() for _ in range(10)])
        stream.close()
        assert [revision for revision, _ in told[-1]] == list(range(first, first + 10))
        resumed = Stream(each, "/v1/events", last=first + 4)
        assert resumed.next_revision()[0] == first + 5
        resumed.close()
    assert told[0] == told[1] == told[2]


# --- Files --------------------------------------------------------------------------------------


def test_an_edit_that_all_files_carry_acts_once(three: Group, farm: dict[str, Backend]) -> None:
    """The last to reload is late: what was done in between through the API stands."""
    members = three.members
    q = farm["q"].address
    for each in three:
        each.configure(config(farm, "a", "b", "q"), members)
    reload = three["a"].admin("/v1/config/reload", "POST", body={})
    assert reload.status == 200, reload.text
    everywhere(three, q, "source", "file")
    three.everywhere(lambda each: "q" in each.routes(), "q is routed to")
    path = f"/v1/upstreams/app/backends/{q}"
    assert three["b"].admin(path, "PATCH", body={"state": "draining"}).status == 200
    revision = three.leader().status()["revision"]
    for name in "bc":
        assert three[name].admin("/v1/config/reload", "POST", body={}).status == 200
    assert three.leader().status()["revision"] == revision
    everywhere(three, q, "state", "draining")
    # And taken out again, in another order.
    for name in "cab":
        three[name].configure(config(farm), members)
        assert three[name].admin("/v1/config/reload", "POST", body={}).status == 200
    assert three.leader().status()["revision"] == revision + 1
    three.everywhere(lambda each: q not in each.backends(), "q is gone")
