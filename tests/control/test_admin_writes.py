"""Writes by the admin API: what they change, when they are refused, and how they say so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from office import Office, office_in

from lb.control import admin_writes
from lb.control.admin_writes import if_match_in
from lb.control.problems import KINDS
from lb.control.store import NoQuorum, NotStored, UnknownOutcome
from lb.metrics import Reading
from lb.registry import Code, Command, Registry, Reply

APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"
SECOND = f"{APP}/backends/127.0.0.1:9002"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with office_in(tmp_path) as opened:
        yield opened


def test_put_adds_a_backend(office: Office) -> None:
    answer = office.ask("PUT", f"{APP}/backends/127.0.0.1:9009", {"weight": 3})
    plain = answer.plain

    assert answer.status == 201
    assert (plain["revision"], plain["routed"]) == (3, True)
    assert plain["backend"]["address"] == "127.0.0.1:9009"
    assert plain["backend"]["weight"] == 3
    assert plain["backend"]["source"] == "api"
    assert answer.headers["ETag"] == '"3"'
    assert office.backend("127.0.0.1:9009")["changed"]["by"]["member"] == "a"


def test_a_first_write_waits_for_what_the_file_says(office: Office) -> None:
    """A group that has just been founded learns of the file's upstreams a moment later."""
    store = office.desk.memory_store
    known, registry = store.registry, replace(store.registry, upstreams={})
    store.registry = registry
    threading.Timer(0.2, lambda: setattr(store, "registry", known)).start()

    assert office.ask("PUT", f"{APP}/backends/127.0.0.1:9009", {"weight": 3}).status == 201

    store.registry, office.desk.group.quorum = registry, False
    assert office.ask("PUT", f"{APP}/backends/127.0.0.1:9009", {"weight": 3}).status == 404


def test_put_of_a_name_needs_its_address(office: Office) -> None:
    named = f"{APP}/backends/two"

    answer = office.ask("PUT", named, {"address": "127.0.0.1:9009", "weight": 2})

    assert answer.status == 201
    assert answer.plain["backend"]["name"] == "two"
    assert office.get(named).plain["address"] == "127.0.0.1:9009"
    assert office.ask("PUT", f"{APP}/backends/three", {}).status == 400


def test_put_of_what_is_there_keeps_its_state(office: Office) -> None:
    office.ask("PATCH", FIRST, {"state": "draining"})

    answer = office.ask("PUT", FIRST, {"weight": 2})

    assert answer.status == 200
    assert answer.plain["backend"]["state"] == "draining"
    assert answer.plain["backend"]["source"] == "api"


def test_patch_changes_what_it_names_and_nothing_else(office: Office) -> None:
    answer = office.ask("PATCH", FIRST, {"weight": 9})

    assert answer.status == 200
    backend = answer.plain["backend"]
    assert (backend["weight"], backend["state"], backend["source"]) == (9, "active", "file")


def test_a_write_that_changes_nothing_answers_with_the_present_revision(office: Office) -> None:
    answer = office.ask("PATCH", FIRST, {"weight": 1})

    assert (answer.status, answer.plain["revision"]) == (200, 2)


def test_delete_takes_a_backend_out(office: Office) -> None:
    answer = office.ask("DELETE", FIRST)

    assert (answer.status, answer.plain["revision"]) == (200, 3)
    assert office.get(FIRST).code == "not-found"
    assert office.ask("DELETE", FIRST).code == "not-found"


def test_the_last_active_backend_stays_unless_forced(office: Office) -> None:
    office.ask("DELETE", FIRST)

    refused = office.ask("DELETE", SECOND)

    assert (refused.status, refused.code) == (409, "would-empty")
    assert office.ask("DELETE", f"{SECOND}?force=true").status == 200


def test_one_patch_changes_several_backends_in_one_revision(office: Office) -> None:
    body = {"backends": {"127.0.0.1:9001": {"weight": 5}, "127.0.0.1:9002": None}}

    answer = office.ask("PATCH", APP, body)

    assert (answer.status, answer.plain["revision"]) == (200, 3)
    left = answer.plain["upstream"]["backends"]
    assert [(each["address"], each["weight"]) for each in left] == [("127.0.0.1:9001", 5)]


def test_a_patch_takes_the_list_that_get_shows(office: Office) -> None:
    body = {"backends": [{"address": "127.0.0.1:9001", "state": "disabled"}]}

    assert office.ask("PATCH", APP, body).status == 200
    assert office.backend("127.0.0.1:9001")["state"] == "disabled"


def test_an_upstream_that_the_config_names_cannot_be_removed(office: Office) -> None:
    assert office.ask("DELETE", "/v1/upstreams/images").code == "upstream-in-use"

    text = office.desk.path.read_text()
    before, _, _ = text.partition("[upstream.images]")
    office.desk.path.write_text(before.replace('upstream = "images"', 'upstream = "app"'))
    office.ask("POST", "/v1/config/reload", {})

    assert office.ask("DELETE", "/v1/upstreams/images").status == 200
    assert office.get("/v1/upstreams/images").status == 404


def test_if_match_holds_off_a_write_that_comes_too_late(office: Office) -> None:
    etag = office.get(FIRST).headers["ETag"]
    office.ask("PATCH", FIRST, {"weight": 2})

    late = office.ask("PATCH", FIRST, {"weight": 3}, If_Match=etag)

    assert (late.status, late.code) == (412, "precondition-failed")
    now = office.get(FIRST).headers["ETag"]
    assert office.ask("PATCH", FIRST, {"weight": 3}, If_Match=now).status == 200


@pytest.mark.parametrize(
    ("header", "revisions"),
    [
        (None, None),
        ("*", "*"),
        ('"17"', (17,)),
        ('W/"17", "18"', (17, 18)),
        ("17", (17,)),
        ('"no revision"', ()),
        ('"-1"', ()),
        ('"' + "9" * 40 + '"', ()),
    ],
)
def test_if_match_is_read(header: str | None, revisions: object) -> None:
    assert if_match_in(header) == revisions


def test_if_none_match_creates_only(office: Office) -> None:
    there = office.ask("PUT", FIRST, {"weight": 3}, If_None_Match="*")

    assert there.code == "precondition-failed"
    new = office.ask("PUT", f"{APP}/backends/127.0.0.1:9009", {}, If_None_Match="*")
    assert new.status == 201


def test_a_repeated_write_acts_once(office: Office) -> None:
    new = f"{APP}/backends/127.0.0.1:9009"
    first = office.ask("PUT", new, {"weight": 2}, Idempotency_Key="k")
    office.ask("DELETE", new)

    again = office.ask("PUT", new, {"weight": 2}, Idempotency_Key="k")
    other = office.ask("PUT", new, {"weight": 3}, Idempotency_Key="k")

    assert again.plain["revision"] == first.plain["revision"]
    assert office.get(new).status == 404
    assert (other.status, other.code) == (422, "key-reused")


def test_a_write_that_not_every_worker_routes_by_says_so(office: Office) -> None:
    office.desk.routes_by_newest = False

    answer = office.ask("PATCH", f"{FIRST}?wait=all", {"weight": 2})

    assert answer.plain["routed"] is False
    assert answer.plain["behind"] == ["a"]
    assert answer.headers["X-Revision"] == "0"


@pytest.mark.parametrize("spelling", ["unix:%2Frun%2Fapp.sock", "unix:/run/app.sock"])
def test_an_address_with_slashes_can_be_named(office: Office, spelling: str) -> None:
    path = f"{APP}/backends/{spelling}"

    assert office.ask("PUT", path, {}).status == 201
    assert office.get(path).plain["address"] == "unix:/run/app.sock"
    assert office.ask("DELETE", path).status == 200


def test_an_address_has_one_spelling(office: Office) -> None:
    office.ask("PUT", f"{APP}/backends/App.Example:80", {})

    assert office.get(f"{APP}/backends/app.example:80").status == 200
    assert office.get(f"{APP}/backends/APP.example:80").status == 200


@pytest.mark.parametrize(
    ("path", "body", "code", "says"),
    [
        (FIRST, {"wieght": 3}, "bad-request", 'did you mean "weight"?'),
        (FIRST, {"weight": "3"}, "bad-request", "whole number"),
        (FIRST, {"weight": True}, "bad-request", "whole number"),
        (FIRST, {"weight": 1001}, "invalid", "0 to 1000"),
        (FIRST, {"weight": -1}, "invalid", "0 to 1000"),
        (FIRST, {"state": "gone"}, "bad-request", "active"),
        (FIRST, {"backup": 1}, "bad-request", "true or false"),
        (FIRST, {"labels": ["x"]}, "bad-request", "labels"),
        (FIRST, {"labels": {"x": 1}}, "bad-request", "labels"),
        (FIRST, {"ttl": 15}, "bad-request", "no unit"),
        (FIRST, {"ttl": "soon"}, "bad-request", "not a duration"),
        (FIRST, {"ttl": "1s"}, "invalid", "5 to"),
        (FIRST, {"name": "other"}, "bad-request", "the path"),
        (FIRST, {"address": 3}, "bad-request", "text"),
        (f"{APP}/backends/no%20address", {}, "bad-request", "port"),
        (f"{APP}/backends/%2E%2E", {"address": "127.0.0.1:1"}, "invalid", "not an address"),
        (f"{APP}/backends/10.0.0.1:99999", {}, "bad-request", "99999"),
        (f"{APP}/backends/srv:%2F%2Fa", {}, "bad-request", "not a service"),
        ("/v1/upstreams/nope/backends/127.0.0.1:1", {}, "not-found", "nope"),
    ],
)
def test_a_bad_write_is_refused_in_words(
    office: Office, path: str, body: dict[str, Any], code: str, says: str
) -> None:
    answer = office.ask("PUT", path, body)

    assert answer.code == code
    assert says in answer.plain["detail"] + answer.plain["hint"]
    assert office.desk.store.registry.revision == 2


@pytest.mark.parametrize("body", [[], {"backends": 3}, {"backends": [3]}, {"x": 1}, {}])
def test_a_bad_patch_of_an_upstream_is_refused(office: Office, body: object) -> None:
    assert office.ask("PATCH", APP, body).code == "bad-request"


class FailingStore:
    """A store that cannot commit, as the group's may be."""

    def __init__(self, registry: Registry, error: Exception) -> None:
        self.registry = registry
        self._error = error

    async def propose(self, command: Command) -> Reply:
        raise self._error

    def subscribe(self, on_change: object) -> None:
        raise AssertionError("nobody asks for this here")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoQuorum("the group has no quorum"), 503, "no-quorum"),
        (UnknownOutcome("sent, not confirmed"), 504, "unknown-outcome"),
        (NotStored("the disk is full", "make room"), 503, "not-applied"),
    ],
)
def test_what_could_not_be_committed_says_so(
    office: Office, error: Exception, status: int, code: str
) -> None:
    office.desk.store = FailingStore(office.desk.store.registry, error)

    answer = office.ask("PATCH", FIRST, {"weight": 2}, Idempotency_Key="k")

    assert (answer.status, answer.code) == (status, code)
    assert answer.plain.get("idempotency_key") == ("k" if status == 504 else None)


def test_every_refusal_of_the_registry_is_a_problem() -> None:
    assert {code.value for code in Code} <= set(KINDS)


def test_who_writes_a_lot_gets_older_counters_where_they_are_many(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding up those of thousands of backends holds the whole controller up."""
    asked: list[float] = []
    now = [0.0]
    quick = office.desk.reading

    def reading(max_age: float = 0.0) -> Reading:
        asked.append(max_age)
        now[0] += 0.2
        return quick(max_age)

    monkeypatch.setattr(office.desk, "reading", reading)
    monkeypatch.setattr(admin_writes, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for weight in (2, 3):
        assert office.ask("PATCH", FIRST, {"weight": weight}).status == 200

    assert asked == pytest.approx([admin_writes.READING_AGE, 20.0])
