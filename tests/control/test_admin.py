"""The admin API, asked over real sockets: what it shows, what it writes, whom it refuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from platform import python_version
from typing import Any

import pytest
from office import PATIENCE, Office, office_in
from prometheus_client.parser import text_string_to_metric_families

from lb import __version__
from lb.control.admin_guard import BODY_BYTES_MAX, host_name
from lb.control.admin_recent import Recent
from lb.control.admin_writes import if_match_in
from lb.control.openapi import document
from lb.control.problems import KINDS, Problem
from lb.control.store import NoQuorum, NotStored, UnknownOutcome
from lb.model import Health
from lb.registry import Code, Command, Registry, Reply

APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"
SECOND = f"{APP}/backends/127.0.0.1:9002"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with office_in(tmp_path) as opened:
        yield opened


# --- What it shows ----------------------------------------------------------------------------


def test_status_has_the_design_s_shape(office: Office) -> None:
    plain = office.get("/v1/status").plain

    assert plain["name"] == "a"
    assert plain["version"] == __version__
    assert plain["uptime_s"] >= 5
    assert plain["ready"] is True
    assert set(plain["config"]) >= {"generation", "error", "on_disk", "source"}
    assert plain["workers"] == [{"slot": 0, "pid": 2, "up": True, "edition": 1, "restarts": 0}]
    group = plain["group"]
    assert (group["role"], group["leader"], group["quorum"]) == ("leader", "a", True)
    assert group["revision"] == 2
    assert {"term", "state"} <= set(group)


def test_an_upstream_has_the_design_s_shape(office: Office) -> None:
    answer = office.get(APP)
    plain = answer.plain

    assert (plain["name"], plain["revision"]) == ("app", 1)
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["X-Revision"] == "2"
    first = plain["backends"][0]
    assert first["address"] == "127.0.0.1:9001"
    assert (first["weight"], first["state"], first["backup"]) == (1, "active", False)
    assert first["source"] == "file"
    assert first["health"] == "checking"
    assert first["ejected"] is False
    assert first["last_check"] is None
    assert (first["in_flight"], first["requests"], first["errors"]) == (0, 0, 0)
    assert first["latency_ms"] == {"p50": None, "p99": None}
    assert first["changed"]["by"]["source"] == "file"
    assert [each["address"] for each in first["endpoints"]] == ["127.0.0.1:9001"]


def test_all_upstreams_are_listed_with_the_config_s_order(office: Office) -> None:
    plain = office.get("/v1/upstreams").plain

    assert [each["name"] for each in plain["upstreams"]] == ["app", "images"]
    assert plain["revision"] == 2


def test_an_upstream_that_the_registry_does_not_know_is_shown_from_the_file(
    office: Office,
) -> None:
    text = office.desk.path.read_text()
    office.desk.path.write_text(text + '\n[upstream.new]\nbackends = ["127.0.0.1:9009"]\n')
    office.ask("POST", "/v1/config/reload", {})

    plain = office.get("/v1/upstreams/new").plain

    assert plain["revision"] == 0
    assert plain["backends"][0]["address"] == "127.0.0.1:9009"
    assert plain["backends"][0]["changed"] is None


def test_health_and_the_last_check_are_shown(office: Office) -> None:
    office.judge("app", "127.0.0.1:9001", Health.HEALTHY)
    office.judge("app", "127.0.0.1:9002", Health.UNHEALTHY, "connection refused")

    first, second = office.get(APP).plain["backends"]

    assert first["health"] == "healthy"
    assert second["health"] == "unhealthy"
    assert second["last_check"] == {
        "at": 1.0,
        "ok": False,
        "reason": "connection refused",
        "ms": 1.5,
    }
    assert second["endpoints"][0]["health"] == "unhealthy"
    assert office.backend("one", "images")["health"] == "unchecked"


def test_counters_of_a_backend_are_shown(office: Office) -> None:
    labels = {"upstream": "app", "backend": "127.0.0.1:9001"}
    view = office.desk.meters.view
    view[office.desk.meters.counter("lb_backend_requests_total", **labels, code="2xx")] += 7
    view[office.desk.meters.counter("lb_backend_requests_total", **labels, code="5xx")] += 2
    view[office.desk.meters.counter("lb_backend_errors_total", **labels, kind="connect")] += 3
    view[office.desk.meters.gauge("lb_backend_active_requests", **labels)] = 4
    base = office.desk.meters.histogram("lb_backend_seconds", **labels)
    for _ in range(10):
        office.desk.meters.observe(base, 0.004)

    first = office.get(FIRST).plain

    assert (first["requests"], first["errors"], first["in_flight"]) == (9, 3, 4)
    assert 2.5 <= first["latency_ms"]["p50"] <= 5
    assert 2.5 <= first["latency_ms"]["p99"] <= 5


def test_latencies_are_those_of_the_last_minute(office: Office) -> None:
    desk = office.desk
    base = desk.meters.histogram("lb_backend_seconds", upstream="app", backend="b")
    recent = Recent(desk.reading)
    desk.meters.observe(base, 2.5)  # Long ago: before the first picture.
    recent.turn()
    desk.meters.observe(base, 0.004)

    def p99() -> Any:
        return recent.of_backend(desk.reading(), "app", "b")["p99"]

    assert p99() <= 5
    recent.turn()
    assert p99() <= 5, "the picture before this one still counts from the first"
    recent.turn()
    assert p99() is None


def test_traffic_is_added_up(office: Office) -> None:
    meters = office.desk.meters
    labels = {"listener": "web", "route": "", "upstream": "app", "method": "GET"}
    meters.view[meters.counter("lb_requests_total", **labels, code="200")] += 5
    meters.view[meters.counter("lb_requests_total", **labels, code="502")] += 1
    meters.view[meters.gauge("lb_connections", listener="web")] = 2

    traffic = office.get("/v1/status").plain["traffic"]

    assert (traffic["requests"], traffic["errors"], traffic["connections"]) == (6, 1, 2)


def test_one_that_left_is_listed_until_its_last_request_is_done(office: Office) -> None:
    meters = office.desk.meters
    slot = meters.gauge("lb_backend_active_requests", upstream="app", backend="127.0.0.1:9001")
    meters.view[slot] = 1
    office.ask("DELETE", FIRST)

    leaving = office.get(APP).plain["leaving"]
    meters.view[slot] = 0

    assert leaving == [{"address": "127.0.0.1:9001", "in_flight": 1}]
    assert office.get(APP).plain["leaving"] == []


def test_the_config_in_force_is_shown_with_units(office: Office) -> None:
    plain = office.get("/v1/config").plain

    assert plain["config"]["upstream"]["app"]["health"]["path"] == "/healthz"
    assert plain["config"]["listener"]["web"]["timeouts"]["idle"] in ("60s", "1m")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/upstreams/nope", "not-found"),
        (f"{APP}/backends/127.0.0.1:1", "not-found"),
        ("/v1/nothing", "not-found"),
        ("/nothing", "not-found"),
        ("/v1/events", "not-yet-supported"),
        ("/v1/group/members/b", "not-yet-supported"),
    ],
)
def test_what_is_not_there_is_a_problem(office: Office, path: str, code: str) -> None:
    assert office.get(path).code == code


def test_a_wrong_method_names_the_right_ones(office: Office) -> None:
    answer = office.ask("PUT", "/v1/status", {})

    assert answer.code == "method-not-allowed"
    assert "GET" in answer.headers["Allow"]


# --- What it writes ---------------------------------------------------------------------------


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
        (FIRST, {"ttl": "15s"}, "not-supported", "not yet supported"),
        (FIRST, {"name": "other"}, "bad-request", "the path"),
        (FIRST, {"address": 3}, "bad-request", "text"),
        (f"{APP}/backends/no%20address", {}, "bad-request", "port"),
        (f"{APP}/backends/10.0.0.1:99999", {}, "bad-request", "99999"),
        (f"{APP}/backends/https:%2F%2Fa:443", {}, "not-supported", "not yet supported"),
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

    answer = office.ask("PATCH", FIRST, {"weight": 2})

    assert (answer.status, answer.code) == (status, code)


def test_every_refusal_of_the_registry_is_a_problem() -> None:
    assert {code.value for code in Code} <= set(KINDS)


# --- What it sets going -----------------------------------------------------------------------


def test_a_good_reload_says_what_changed(office: Office) -> None:
    path = office.desk.path
    path.write_text(path.read_text().replace("weight = 3", "weight = 4"))

    dry = office.ask("POST", "/v1/config/reload?dry_run=1", {})
    wet = office.ask("POST", "/v1/config/reload")

    assert dry.plain["changed"] == wet.plain["changed"] != []
    assert office.ask("POST", "/v1/config/reload").plain["changed"] == []


def test_a_bad_file_is_answered_with_the_errors_of_lb_check(office: Office) -> None:
    office.desk.path.write_text(office.desk.path.read_text().replace("weight", "wieght"))

    answer = office.ask("POST", "/v1/config/reload", {})

    assert (answer.status, answer.code) == (422, "config-invalid")
    error = answer.plain["errors"][0]
    assert error["file"].endswith("lb.toml")
    assert error["line"] > 0
    assert 'did you mean "weight"?' in answer.plain["text"]


@pytest.mark.parametrize(("body", "drain"), [({}, None), ({"drain": "20s"}, 20.0)])
def test_a_stop_is_passed_on(office: Office, body: dict[str, str], drain: float | None) -> None:
    answer = office.ask("POST", "/v1/stop", body)

    assert answer.status == 202
    assert answer.plain["drain_s"] == (30.0 if drain is None else drain)
    assert office.desk.stopped_with == [drain]


@pytest.mark.parametrize("body", [{"drain": 20}, {"drain": "soon"}, {"drian": "2s"}])
def test_a_stop_in_the_wrong_words_stops_nothing(office: Office, body: dict[str, Any]) -> None:
    assert office.ask("POST", "/v1/stop", body).code == "bad-request"
    assert office.desk.stopped_with == []


# --- Why a request goes where it goes ---------------------------------------------------------


def explained(office: Office, **question: Any) -> dict[str, Any]:
    body = {"method": "GET", "url": "http://x.example/", **question}
    answer = office.ask("POST", "/v1/explain", body)
    assert answer.status == 200, answer.body
    return dict(answer.plain)


def test_explain_names_the_route_and_who_may_be_chosen(office: Office) -> None:
    office.ask("PATCH", FIRST, {"state": "draining"})
    office.judge("app", "127.0.0.1:9002", Health.HEALTHY)

    plain = explained(office, url="http://x.example/a/../b")

    assert (plain["answer"], plain["upstream"], plain["route"]) == ("forward", "app", None)
    assert plain["path"] == "/b"
    assert plain["listener"] == "web"
    assert [route["matches"] for route in plain["routes"]] == [False, False, False]
    assert [(each["backend"], each["eligible"]) for each in plain["candidates"]] == [
        ("127.0.0.1:9001", False),
        ("127.0.0.1:9002", True),
    ]
    assert plain["candidates"][0]["why"] == "no: draining"


@pytest.mark.parametrize(
    ("question", "answer", "status", "route"),
    [
        ({"url": "/images/a.png"}, "forward", None, "images"),
        ({"url": "http://old.example:8080/"}, "respond", 308, "old"),
        ({"url": "/", "headers": [["Host", "old.example"]]}, "respond", 308, "old"),
        ({"url": "/posts"}, "refuse", 405, None),
        ({"url": "/posts", "method": "POST"}, "forward", None, "posts"),
        ({"url": "/../x"}, "refuse", 400, None),
    ],
)
def test_explain_tells_each_way_a_request_may_end(
    office: Office, question: dict[str, Any], answer: str, status: int | None, route: str | None
) -> None:
    plain = explained(office, **question)

    assert (plain["answer"], plain.get("status"), plain["route"]) == (answer, status, route)
    assert plain["because"]


def test_explain_says_when_health_is_ignored(office: Office) -> None:
    office.judge("app", "127.0.0.1:9001", Health.UNHEALTHY)
    office.judge("app", "127.0.0.1:9002", Health.UNHEALTHY)

    plain = explained(office)

    assert plain["panic"] is True
    assert all("health is ignored" in each["why"] for each in plain["candidates"])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"method": "GET"},
        {"method": "GET", "url": 3},
        {"method": "GET", "url": "http://[::1"},
        {"method": "GET", "url": "/", "headers": [["x"]]},
        {"method": "GET", "url": "/", "haeders": []},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(office: Office, body: dict[str, Any]) -> None:
    assert office.ask("POST", "/v1/explain", body).code == "bad-request"


def test_explain_finds_the_listener_by_port(office: Office) -> None:
    path = office.desk.path
    path.write_text(
        path.read_text()
        + '\n[listener.b]\naddress = ["[::1]:8081", "unix:/x"]\nupstream = "images"\n'
    )
    office.ask("POST", "/v1/config/reload")

    assert explained(office, url="http://x:8081/")["listener"] == "b"
    assert explained(office, url="/", listener="b")["upstream"] == "images"
    assert office.ask("POST", "/v1/explain", {"method": "GET", "url": "/"}).status == 400
    missing = {"method": "GET", "url": "/", "listener": "c"}
    assert office.ask("POST", "/v1/explain", missing).code == "not-found"


# --- Whom it refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9900", "127.0.0.1:9900", "[::1]:9900"])
def test_a_host_of_ours_is_let_in(office: Office, host: str) -> None:
    assert office.get("/v1/status", Host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", ""])
@pytest.mark.parametrize("path", ["/", "/v1/status", "/metrics", "/nothing"])
def test_a_host_that_a_page_could_make_point_here_is_refused(
    office: Office, host: str, path: str
) -> None:
    assert office.get(path, Host=host).code == "host-not-allowed"


def test_a_host_in_admin_hosts_is_let_in(office: Office) -> None:
    office.desk.path.write_text(office.desk.path.read_text() + '\n[admin]\nhosts = "Lb.Example"\n')
    office.ask("POST", "/v1/config/reload")

    assert office.get("/v1/status", Host="lb.example:9900").status == 200


@pytest.mark.parametrize(
    ("text", "name"),
    [("a.example:80", "a.example"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("A", "a"), ("", "")],
)
def test_the_port_is_no_part_of_a_host_s_name(text: str, name: str) -> None:
    assert host_name(text) == name


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_another_origin_is_refused(office: Office, origin: str, method: str) -> None:
    answer = office.ask(method, FIRST, Origin=origin, Host=f"127.0.0.1:{office.port}")

    assert (answer.status, answer.code) == (403, "origin-not-allowed")


def test_our_own_origin_is_let_in(office: Office) -> None:
    host = f"localhost:{office.port}"

    answer = office.ask("PATCH", FIRST, {"weight": 2}, Host=host, Origin=f"http://{host}")

    assert answer.status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_declared_as_json_is_refused(office: Office, kind: str) -> None:
    headers: dict[str, Any] = {"Content_Type": kind} if kind else {}

    answer = office.ask("PATCH", FIRST, data=b'{"weight": 2}', **headers)

    assert (answer.status, answer.code) == (415, "not-json")
    with_charset = "application/json; charset=utf-8"
    answer = office.ask("PATCH", FIRST, data=b'{"weight": 2}', Content_Type=with_charset)
    assert answer.status == 200


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000, b'"x"', b"NaN"])
def test_a_body_that_is_no_json_object_is_refused(office: Office, data: bytes) -> None:
    answer = office.ask("PATCH", FIRST, data=data, Content_Type="application/json")

    assert answer.code == "bad-request"


def test_a_body_has_a_bound(office: Office) -> None:
    data = b" " * (BODY_BYTES_MAX + 1)

    answer = office.ask("PATCH", FIRST, data=data, Content_Type="application/json")

    assert (answer.status, answer.code) == (413, "too-large")


def test_a_body_has_a_time(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.control.admin_guard.BODY_SECONDS_MAX", 0.05)
    with closing(HTTPConnection("127.0.0.1", office.port, timeout=PATIENCE)) as connection:
        connection.putrequest("PATCH", FIRST)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "20")
        connection.endheaders(b"{")
        with closing(connection.getresponse()) as response:
            assert isinstance(response, HTTPResponse)
            assert response.status == 408
            assert json.loads(response.read())["code"] == "too-slow"


def test_a_bug_is_logged_and_answered_without_its_traceback(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    office.desk.broken = True

    with caplog.at_level(logging.ERROR, "lb.admin"):
        answer = office.get("/v1/status")

    assert (answer.status, answer.code) == (500, "our-error")
    assert b"Traceback" not in answer.body
    assert b"secret" not in answer.body
    assert "a secret of ours" in caplog.text


def test_a_unix_socket_is_out_of_a_browser_s_reach(tmp_path: Path) -> None:
    with office_in(tmp_path, unix=True) as office:
        assert office.get("/v1/status", Host="anything").status == 200
        answer = office.ask("PATCH", FIRST, data=b'{"weight": 2}')
        assert answer.plain["backend"]["weight"] == 2


# --- Probes, metrics, the page ----------------------------------------------------------------


def test_probes_follow_the_instance(office: Office) -> None:
    assert office.get("/livez").status == 200
    assert office.get("/readyz").plain == {"ready": True}

    office.desk.why_unready = "stopping"

    assert office.get("/livez").status == 200
    assert office.get("/readyz").status == 503
    assert office.get("/readyz").plain == {"ready": False, "reason": "stopping"}
    assert office.desk.asked == 3


def test_the_probe_listener_knows_three_paths(office: Office) -> None:
    port = office.probe_port
    for path in ("/livez", "/readyz", "/metrics"):
        assert office.ask("GET", path, port=port, Host="prometheus.example").status == 200
    for path in ("/", "/v1/status", FIRST, "/openapi.json"):
        assert office.ask("GET", path, port=port).code == "not-found"
    assert office.ask("DELETE", FIRST, port=port).status == 404


def test_metrics_tell_of_backends_and_config(office: Office) -> None:
    office.judge("app", "127.0.0.1:9001", Health.UNHEALTHY)
    office.ask("PATCH", f"{APP}/backends/127.0.0.1:9002", {"weight": 7})

    answer = office.get("/metrics")

    assert answer.headers.get_content_type() == "text/plain"
    samples = {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert samples["lb_backend_up", ("127.0.0.1:9001", "app")] == 0
    assert samples["lb_backend_health", ("127.0.0.1:9001", "app", "unhealthy")] == 1
    assert samples["lb_backend_state", ("127.0.0.1:9001", "active", "app")] == 1
    assert samples["lb_backend_weight", ("127.0.0.1:9002", "app")] == 7
    assert samples["lb_config_generation", ()] == 1
    assert samples["lb_worker_up", ("0",)] == 1
    assert samples["lb_build_info", tuple(sorted((python_version(), __version__)))] == 1


def test_openmetrics_is_negotiated(office: Office) -> None:
    answer = office.get("/metrics", Accept="application/openmetrics-text;version=1.0.0")

    assert answer.headers.get_content_type() == "application/openmetrics-text"
    assert answer.body.endswith(b"# EOF\n")


def test_the_page_and_its_files_are_ours_alone(office: Office) -> None:
    page = office.get("/")

    assert page.status == 200
    assert page.body.startswith(b"<!doctype html>")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    text = page.body.decode()
    for banned in ("http://", "https://", "<style", " style=", "onclick"):
        assert banned not in text
    for path in ("/app.js", "/app.css", "/favicon.svg"):
        assert path in text
        answer = office.get(path)
        assert answer.status == 200
        again = office.get(path, If_None_Match=answer.headers["ETag"])
        assert again.status == 304
    packed = office.get("/app.js", Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"


def test_openapi_names_every_path_that_there_is(office: Office) -> None:
    served = office.get("/openapi.json").plain

    assert served == json.loads(json.dumps(document()))
    names = set()
    for path, operations in served["paths"].items():
        for method, operation in operations.items():
            names.add(operation["operationId"])
            if method == "get" and "{" not in path:
                assert office.get(path).status == 200, path
    assert len(names) == sum(map(len, served["paths"].values()))
    for refused in ("/v1/status", APP, FIRST, "/v1/config"):
        assert office.ask("POST", refused, {}).status in (404, 405), refused


def test_a_problem_says_its_own_status() -> None:
    problem = Problem("would-empty", "none left", "add one", upstream="app")

    assert problem.as_plain() == {
        "type": "urn:accord:would-empty",
        "code": "would-empty",
        "title": KINDS["would-empty"].title,
        "status": 409,
        "detail": "none left",
        "hint": "add one",
        "upstream": "app",
    }
