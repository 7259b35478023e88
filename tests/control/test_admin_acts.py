"""What the admin API sets going, and how it explains where a request goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office, office_in

from lb.model import Health

APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"
SECOND = f"{APP}/backends/127.0.0.1:9002"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with office_in(tmp_path) as opened:
        yield opened


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


def test_an_upgrade_is_answered_with_the_new_process_or_the_reason(office: Office) -> None:
    answer = office.ask("POST", "/v1/upgrade", {})
    assert (answer.status, answer.plain) == (202, {"upgrading": True, "pid": 4711})

    assert office.ask("POST", "/v1/upgrade", {"now": True}).code == "bad-request"

    office.desk.upgrade_fails = "what is installed cannot be started: ImportError: no"
    answer = office.ask("POST", "/v1/upgrade", {})
    assert (answer.status, answer.code) == (503, "not-applied")
    assert answer.plain["detail"] == office.desk.upgrade_fails


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
        ({"url": "/images%2Fa.png"}, "refuse", 400, None),
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
