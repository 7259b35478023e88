"""Backends that register themselves: renewed through any instance, gone when nobody renews."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator

import pytest

from journeys.conftest import config_of
from journeys.group_kit import Group, Instance
from journeys.kit import Answer, Backend, until

TTL_SECONDS = 5


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    backend = Backend("a")
    made = Group(tmp_path_factory.mktemp("three"), config_of([backend]))
    try:
        yield made.start()
        assert "Traceback" not in made.log(10_000)
    finally:
        made.end()
        backend.close()


def renew(instance: Instance, key: str) -> Answer:
    return instance.admin(f"/v1/upstreams/app/backends/{key}/renew", "POST", body={})


class Service(threading.Thread):
    """Renews its lease, each time through another instance."""

    def __init__(self, three: Group, key: str) -> None:
        super().__init__(name=key)
        self.statuses: list[int] = []
        self._three = three
        self._key = key
        self._over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._over.wait(TTL_SECONDS / 3):
            instances = [each for each in self._three if each.runs]
            number += 1
            with contextlib.suppress(OSError, http.client.HTTPException):  # It tries elsewhere.
                asked = instances[number % len(instances)]
                self.statuses.append(renew(asked, self._key).status)

    def finish(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.long
def test_renewed_through_different_instances_and_then_not(three: Group) -> None:
    key = "10.9.5.1:80"
    made = three.followers()[0].put(key, ttl=f"{TTL_SECONDS}s")
    assert made.status == 201, made.text
    revision = three.leader().status()["revision"]
    service = Service(three, key)
    service.start()
    try:
        until(lambda: len(service.statuses) >= 7, "more than twice its time", 30.0)
    finally:
        service.finish()
    assert set(service.statuses) == {200}
    assert three.leader().status()["revision"] == revision  # To renew takes no revision.
    three.everywhere(lambda each: key in each.backends(), "still there")
    three.everywhere(lambda each: key not in each.backends(), "gone")
    assert three.leader().status()["revision"] == revision + 1
    gone = [renew(each, key) for each in three]
    assert [answer.status for answer in gone] == [404, 404, 404]


def test_registering_again_does_not_undo_a_drain(three: Group) -> None:
    key = "10.9.5.2:80"
    assert three["a"].put(key, ttl=f"{TTL_SECONDS}s").status == 201
    path = f"/v1/upstreams/app/backends/{key}"
    assert three["b"].admin(path, "PATCH", body={"state": "draining"}).status == 200
    assert three["c"].put(key, ttl=f"{TTL_SECONDS}s").status == 200
    assert three["c"].backends()[key]["state"] == "draining"
    assert three["a"].admin(path, "DELETE").status == 200


@pytest.mark.long
def test_a_new_leader_lets_nobody_expire_early(three: Group) -> None:
    key = "10.9.5.3:80"
    assert three["a"].put(key, ttl=f"{TTL_SECONDS}s").status == 201
    service = Service(three, key)
    service.start()
    try:
        until(lambda: service.statuses, "renewed once")
        leader = three.leader()
        leader.end()
        until(lambda: len(service.statuses) >= 6, "others take it", 40.0)
        leader.start()
        three.formed()
    finally:
        service.finish()
    # While there was no leader nobody could renew, and nobody could expire.
    assert 404 not in service.statuses
    assert three["b"].admin(f"/v1/upstreams/app/backends/{key}", "DELETE").status == 200


def test_what_all_fall_silent_at_once_is_not_believed(three: Group) -> None:
    keys = [f"10.9.5.{number}:80" for number in range(10, 16)]
    for key in keys:
        assert three["a"].put(key, ttl=f"{TTL_SECONDS}s").status == 201

    def suspect() -> set[str]:
        shown = three["b"].backends()
        return {key for key in keys if key in shown and shown[key].get("suspect")}

    found = until(suspect, "some are suspect", 30.0)
    assert found
    left = set(three["c"].backends()) & set(keys)
    assert len(left) >= 4, left  # 30 % of six may go, and no more.
    key = sorted(found)[0]
    assert renew(three["c"], key).status == 200
    three.everywhere(lambda each: not each.backends()[key].get("suspect"), "no longer suspect")
    for key in left:
        three["a"].admin(f"/v1/upstreams/app/backends/{key}?force=true", "DELETE")
