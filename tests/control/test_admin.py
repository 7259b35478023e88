"""The admin API, asked over real sockets: what it shows, and whom it refuses."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from platform import python_version
from socket import create_connection
from typing import Any

import pytest
from office import PATIENCE, Answer, Office, office_in
from prometheus_client.parser import text_string_to_metric_families

from lb import __version__
from lb.control import admin_door
from lb.control.admin_guard import BODY_BYTES_MAX, host_name
from lb.control.admin_recent import Recent
from lb.control.openapi import document
from lb.control.problems import KINDS, Problem
from lb.model import Health

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
        ("/v1/locks", "not-yet-supported"),
        ("/v1/locks/one", "not-yet-supported"),
    ],
)
def test_what_is_not_there_is_a_problem(office: Office, path: str, code: str) -> None:
    assert office.get(path).code == code


def test_a_wrong_method_names_the_right_ones(office: Office) -> None:
    answer = office.ask("PUT", "/v1/status", {})

    assert answer.code == "method-not-allowed"
    assert "GET" in answer.headers["Allow"]


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


@pytest.mark.parametrize(
    "octets", [b"\0garbage\r\n\r\n", b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * 20_000)]
)
def test_what_is_no_http_is_answered_and_not_logged(
    office: Office, octets: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()  # What earlier tests left says so when it is collected.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # aiohttp speaks up from the second on.
            with closing(create_connection(("127.0.0.1", office.port), PATIENCE)) as client:
                client.sendall(octets)
                response = HTTPResponse(client)
                response.begin()
                answer = Answer(response)
                assert (answer.status, answer.code) == (400, "bad-request")
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert octets[:20] not in answer.body

    assert caplog.text == ""
    assert office.get("/livez").status == 200


@pytest.mark.parametrize(
    "octets", [b"", b"\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"]
)
def test_a_head_that_does_not_come_is_not_waited_for(
    tmp_path: Path, octets: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_door, "HEAD_SECONDS_MAX", 0.1)
    with (
        office_in(tmp_path) as office,
        closing(create_connection(("127.0.0.1", office.port), PATIENCE)) as client,
    ):
        client.sendall(octets)
        assert client.recv(1024).startswith(b"HTTP/1.1 408 ")
        assert client.recv(1024) == b""


PATCH_HEAD = (
    f"PATCH {FIRST} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Content-Length: 12\r\n\r\n"
).encode()


def test_a_head_in_pieces_is_waited_for(office: Office) -> None:
    with closing(create_connection(("127.0.0.1", office.port), PATIENCE)) as client:
        for octet in PATCH_HEAD:
            client.sendall(bytes((octet,)))
        client.sendall(b'{"weight":2}')
        assert client.recv(1024).startswith(b"HTTP/1.1 200 ")


def test_a_body_has_a_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its head was cut: the bound of heads holds no longer once the head is there."""
    monkeypatch.setattr(admin_door, "HEAD_SECONDS_MAX", 1.0)
    with (
        office_in(tmp_path) as office,
        closing(create_connection(("127.0.0.1", office.port), PATIENCE)) as client,
    ):
        client.sendall(PATCH_HEAD[:-1])
        client.sendall(PATCH_HEAD[-1:])
        client.settimeout(1.2)
        with pytest.raises(TimeoutError):
            client.recv(1024)
        client.settimeout(PATIENCE)
        client.sendall(b'{"weight":2}')
        assert client.recv(1024).startswith(b"HTTP/1.1 200 ")


def test_connections_past_the_bound_are_closed(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_door, "CONNECTIONS_MAX", 1)
    connection = HTTPConnection("127.0.0.1", office.port, timeout=PATIENCE)
    with closing(connection):
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        with closing(create_connection(("127.0.0.1", office.port), PATIENCE)) as second:
            assert second.recv(1) == b""
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200


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
            if method == "get" and "{" not in path and path != "/v1/events":
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
