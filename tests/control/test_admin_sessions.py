"""Guessing at tokens, and the dashboard's cookie."""

from __future__ import annotations

import contextlib
import http.client
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guarded import FIRST, TOKENS, Clock, ask_head, bearer, by_of, guarded, tokens, with_admin
from office import PATIENCE, Answer, Office

from lb.config.admin import Token
from lb.control.admin_session import COOKIE, SESSION_SECONDS, SESSIONS_OF_ONE_MAX, Sessions
from lb.control.admin_tokens import (
    ADDRESSES_MAX,
    TOLD_SECONDS,
    WRONG_SECONDS,
    WRONG_TOKENS_MAX,
    WrongTokens,
)
from lb.control.events import LOOK_SECONDS


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with guarded(tmp_path) as opened:
        yield opened


# --- Guessing ---------------------------------------------------------------------------------


def test_whoever_shows_many_wrong_tokens_gets_no_more_answers(office: Office) -> None:
    for guess in range(WRONG_TOKENS_MAX):
        assert office.get("/v1/status", Authorization=f"Bearer guess-{guess}").status == 401

    refused = office.get("/v1/status", **bearer("admin"))

    assert (refused.status, refused.code) == (429, "too-many-attempts")
    assert refused.headers["Retry-After"] == "60"
    assert office.ask("POST", "/v1/session", {"token": TOKENS["admin"]}).status == 429


def test_one_token_that_is_out_of_date_shuts_nobody_out(office: Office) -> None:
    for _ in range(WRONG_TOKENS_MAX * 2):
        assert office.get("/v1/status", Authorization="Bearer out-of-date").status == 401

    assert office.get("/v1/status", **bearer("admin")).status == 200


def test_guesses_are_forgotten_after_a_while() -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    for guess in range(WRONG_TOKENS_MAX + 5):
        wrong.add("10.0.0.1", f"{guess}")

    assert 0 < wrong.too_many("10.0.0.1") <= WRONG_SECONDS
    assert wrong.too_many("10.0.0.2") == 0
    clock.now += WRONG_SECONDS
    assert wrong.too_many("10.0.0.1") == 0
    wrong.add("10.0.0.1", "x")
    assert wrong.too_many("10.0.0.1") == 0


def test_a_whole_ipv6_network_is_one_caller() -> None:
    wrong = WrongTokens(Clock())
    for guess in range(WRONG_TOKENS_MAX):
        wrong.add(f"2001:db8::{guess:x}", f"{guess}")

    assert wrong.too_many("2001:db8::ffff") > 0
    assert wrong.too_many("2001:db8:0:1::1") == 0
    assert wrong.too_many("fe80::1%eth0") == 0
    assert wrong.too_many("") == 0


def test_addresses_that_are_remembered_are_bounded() -> None:
    wrong = WrongTokens(Clock())
    for each in range(ADDRESSES_MAX + 10):
        wrong.add(f"10.0.{each // 256}.{each % 256}", "x")

    assert len(wrong._by_address) == ADDRESSES_MAX


def test_guesses_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    with caplog.at_level(logging.WARNING, logger="lb.admin"):
        for guess in range(50):
            wrong.add("10.0.0.1", f"secret-{guess}")
        clock.now += TOLD_SECONDS
        wrong.add("10.0.0.2", "secret")

    assert len(caplog.messages) == 2
    assert "50 wrong tokens" in caplog.messages[1]
    assert "10.0.0.2" in caplog.messages[1]
    assert "secret" not in caplog.text


# --- Sessions ---------------------------------------------------------------------------------


def cookie_of(answer: Answer) -> str:
    found = str(answer.headers["Set-Cookie"]).partition(";")[0]
    assert found.startswith(f"{COOKIE}=")
    return found


def sign_in(office: Office, role: str) -> str:
    return cookie_of(office.ask("POST", "/v1/session", {"token": TOKENS[role]}))


def test_a_browser_swaps_its_token_for_a_cookie(office: Office) -> None:
    answer = office.ask("POST", "/v1/session", {"token": TOKENS["write"]})
    cookie = cookie_of(answer)
    attributes = {each.strip() for each in answer.headers["Set-Cookie"].split(";")[1:]}

    assert answer.plain == {"name": "write", "role": "write", "seconds": int(SESSION_SECONDS)}
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= attributes
    assert "Secure" not in attributes  # There is no TLS here.
    assert TOKENS["write"] not in str(answer.headers)
    assert office.get("/v1/status", Cookie=cookie).status == 200
    assert office.ask("PATCH", FIRST, {"weight": 2}, Cookie=cookie).status == 200
    assert by_of(office)["token"] == "write"
    assert office.ask("POST", "/v1/stop", {}, Cookie=cookie).status == 403


def test_a_session_ends_when_it_is_closed(office: Office) -> None:
    cookie = sign_in(office, "read")

    closed = office.ask("DELETE", "/v1/session", Cookie=cookie)

    assert closed.status == 200
    assert "Max-Age=0" in closed.headers["Set-Cookie"]
    gone = office.get("/v1/status", Cookie=cookie)
    assert (gone.status, gone.plain["detail"]) == (401, "the session has ended")


def test_a_session_is_as_good_as_its_token(office: Office) -> None:
    cookie = sign_in(office, "admin")
    kept = [each for each in tokens() if each.name != "admin"]
    changed = Token(name="admin", token="a-new-one", role="admin")

    office.desk.config = with_admin(office.desk.config, tokens=kept)
    assert office.get("/v1/status", Cookie=cookie).status == 401
    office.desk.config = with_admin(office.desk.config, tokens=[*kept, changed])
    assert office.get("/v1/status", Cookie=cookie).status == 401


def test_a_page_of_another_site_cannot_use_the_cookie(office: Office) -> None:
    cookie = sign_in(office, "admin")

    answer = office.ask("DELETE", FIRST, Cookie=cookie, Origin="http://127.0.0.1:1")

    assert (answer.status, answer.code) == (403, "origin-not-allowed")


@pytest.mark.parametrize("body", [{}, {"token": ""}, {"token": 7}, {"token": "wrong"}])
def test_no_session_without_a_token(office: Office, body: object) -> None:
    answer = office.ask("POST", "/v1/session", body)

    assert (answer.status, answer.code) == (401, "unauthorized")
    assert "Set-Cookie" not in answer.headers


def test_where_nobody_needs_a_token_there_is_no_cookie(tmp_path: Path) -> None:
    with Office(tmp_path) as open_office:
        answer = open_office.ask("POST", "/v1/session", {})

    assert answer.plain == {"name": "", "role": "admin", "seconds": None}
    assert "Set-Cookie" not in answer.headers


def test_sessions_are_bounded_and_end_by_themselves() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    one, other = tokens()[0], tokens()[3]
    first = sessions.open(other)
    values = [sessions.open(one) for _ in range(SESSIONS_OF_ONE_MAX + 5)]

    assert len(sessions) == SESSIONS_OF_ONE_MAX + 1
    assert sessions.token_of(values[-1], [one, other]) is one
    assert sessions.token_of(values[0], [one, other]) is None
    assert sessions.token_of(first, [one, other]) is other
    assert len(set(values)) == len(values)
    clock.now += SESSION_SECONDS
    assert sessions.token_of(first, [one, other]) is None
    sessions.open(one)
    assert len(sessions) == 1


def test_events_come_by_the_cookie(office: Office) -> None:
    """EventSource can send no header."""
    cookie = sign_in(office, "read")

    status, code = ask_head(office, "GET", "/v1/events", None, {"Cookie": cookie})

    assert (status, code) in [(200, ""), (501, "not-yet-supported")]


@pytest.mark.parametrize("by", ["token", "cookie", "closed session", "lesser role"])
def test_events_end_with_the_token_that_they_were_asked_for_with(office: Office, by: str) -> None:
    headers: dict[str, str] = bearer("read")
    if by in ("cookie", "closed session"):
        headers = {"Cookie": sign_in(office, "read")}
    connection = http.client.HTTPConnection("127.0.0.1", office.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/events", headers=headers)
        with contextlib.closing(connection.getresponse()) as response:
            assert response.status == 200
            if by == "closed session":
                office.ask("DELETE", "/v1/session", Cookie=headers["Cookie"])
            else:
                left = [each for each in tokens() if each.name != "read"]
                if by == "lesser role":
                    register = Token(
                        name="read", token=TOKENS["read"], role="register", upstreams=["app"]
                    )
                    left.append(register)
                office.desk.config = with_admin(office.desk.config, tokens=left)
            rest = response.read().decode()

    assert rest.rstrip().splitlines()[-3] == "event: closed"
    assert '"reason":"unauthorized"' in rest


def test_events_go_on_while_other_tokens_come_and_go(office: Office) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", office.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/events", headers=bearer("read"))
        with contextlib.closing(connection.getresponse()) as response:
            left = [each for each in tokens() if each.name in ("read", "write")]
            office.desk.config = with_admin(office.desk.config, tokens=left)
            began = time.monotonic()
            weight = 1
            while time.monotonic() < began + 2 * LOOK_SECONDS:
                weight += 1
                office.ask("PATCH", FIRST, {"weight": weight}, **bearer("write"))
                while not response.readline().startswith(b"data: "):
                    pass
