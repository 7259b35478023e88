"""The dashboard's panels of the group, in a real browser, beside an admin that a test scripts."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fake_admin import FakeAdmin, Page, fake_admin
from playwright.sync_api import Browser, ConsoleMessage, Request, expect, sync_playwright
from playwright.sync_api import Page as Tab

from lb.control.admin_guard import HEADERS
from lb.control.admin_static import load_pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_MS = 60_000.0
ALONE = (  # Nothing that a browser does by itself: this machine may have no way out.
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")

STATUS: dict[str, Any] = {
    "name": "a",
    "version": "0.1.0",
    "pid": 1,
    "uptime_s": 61.0,
    "ready": True,
    "unready": None,
    "stopping": False,
    "config": {
        "generation": 1,
        "error": None,
        "on_disk": "same",
        "source": "lb.toml",
        "reloaded": 1.0,
    },
    "workers": [],
    "group": {"role": "follower", "leader": "b", "revision": 7},
    "traffic": {
        "requests": 0,
        "errors": 0,
        "connections": 0,
        "latency_ms": {"p50": None, "p99": None},
    },
}


def member(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "address": f"10.0.0.{ord(name) - 96}:9901",
        "role": "voter",
        "match": 40,
        "lag": 0,
        "last_contact_ms": 12,
        "version": "0.1.0",
        "config_hash": "4f1c0a9be2",
        "live": True,
        **more,
    }


def group(**more: Any) -> dict[str, Any]:
    return {
        "id": "7f00aa11",
        "role": "follower",
        "leader": "b",
        "term": 3,
        "revision": 7,
        "commit": 41,
        "applied": 40,
        "quorum": True,
        "state": "ok",
        "waiting_for": [],
        "members": [member("a"), member("b"), member("d", role="learner")],
        "detail": "",
        "age_s": 0.0,
        **more,
    }


def event(number: int, *changes: dict[str, Any], **more: Any) -> str:
    plain = {"revision": number, "at": 1.0, "kind": "put-backend", "changes": changes, **more}
    return f"id: {number}\ndata: {json.dumps(plain)}\n\n"


def created(first: int) -> str:
    return f'retry: 100\nevent: created\ndata: {{"revision": 7, "from": {first}}}\n\n'


class Stage:
    """A page of the dashboard over a scripted admin, and what went wrong in it."""

    def __init__(self, tab: Tab, fake: FakeAdmin) -> None:
        self.tab = tab
        self.fake = fake
        self.errors: list[str] = []
        self.abroad: list[str] = []
        self._home = f"http://{fake.address}/"
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("console", self._said)
        tab.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(self._home):
            self.abroad.append(request.url)

    def open(self) -> None:
        self.tab.goto(self._home)

    def shows(self, selector: str, text: str | re.Pattern[str]) -> None:
        """Wait until it does."""
        expect(self.tab.locator(selector)).to_contain_text(text, timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ALONE))
        yield launched
        launched.close()


@pytest.fixture
def stage(browser: Browser) -> Iterator[Stage]:
    with fake_admin() as fake, contextlib.closing(browser.new_context()) as context:
        fake.headers = {"Content-Security-Policy": HEADERS["Content-Security-Policy"]}
        for name, page in load_pages().items():
            path = "/" if name == "index.html" else f"/{name}"
            fake.says(f"GET {path}", Page(page.content_type, page.plain))
        fake.says("GET /v1/status", STATUS)
        fake.says("GET /v1/upstreams", {"upstreams": []})
        fake.says("GET /v1/group", group())
        fake.says("GET /v1/events", created(8))
        yield Stage(context.new_page(), fake)


def test_members_are_shown_and_followed(stage: Stage) -> None:
    stage.open()

    stage.shows("#group-state", "two voters: neither may be lost")
    stage.shows("#group-facts", "leader b, term 3, revision 7, committed 41, applied 40")
    stage.shows("#group tr:has-text('10.0.0.2:9901')", "leader")
    stage.shows("#group tr:has-text('10.0.0.4:9901')", "learner")
    stage.shows("#facts", "follower, leader b")
    now = [member("a", last_contact_ms=61_000, live=False), member("b", lag=7), member("e")]
    stage.fake.says("GET /v1/group", group(members=now))
    stage.shows("#group tr:has-text('10.0.0.1:9901')", "1m 1s ago")
    stage.shows("#group tr:has-text('10.0.0.5:9901')", "voter")
    expect(stage.tab.locator("#group tr:has-text('10.0.0.4:9901')")).to_have_count(0)
    assert stage.errors == stage.abroad == []


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        (
            group(state="no-quorum", quorum=False, leader="", age_s=75.0),
            "No quorum: traffic goes on by the last good registry, known to be current 1m 15s ago",
        ),
        (
            group(state="forming", id="", leader="", members=[], waiting_for=["b", "c"]),
            "No group yet: waiting for b, c",
        ),
        (
            group(state="damaged", detail="raft/wal-7.log at 4096"),
            "is damaged (raft/wal-7.log at 4096)",
        ),
    ],
)
def test_a_group_that_is_not_well_is_said_loudly(
    stage: Stage, plain: dict[str, Any], says: str
) -> None:
    stage.fake.says("GET /v1/group", plain)

    stage.open()

    stage.shows("#trouble", says)
    stage.shows("#group-state", says)
    expect(stage.tab.locator("#group button:visible")).to_have_count(0)
    stage.fake.says("GET /v1/group", group())
    expect(stage.tab.locator("#trouble")).to_be_hidden(timeout=PATIENCE_MS)
    assert stage.errors == []


def test_the_leader_is_moved_once_that_is_confirmed(stage: Stage) -> None:
    stage.fake.refuses("POST /v1/group/transfer", 503, "no-quorum", "a did not take over in time")
    stage.open()
    button = stage.tab.get_by_role("button", name="Make a the leader")
    expect(stage.tab.locator("#group button:visible")).to_have_count(1)  # No leader, no learner.

    button.click()
    stage.shows("#transfer", "Hand leadership to a?")
    stage.tab.get_by_role("button", name="Cancel").click()
    expect(stage.tab.locator("#transfer")).to_be_hidden()
    assert not [each for each in stage.fake.asked if each.method == "POST"]

    button.click()
    stage.tab.get_by_role("button", name="Make leader", exact=True).click()
    stage.shows("#transfer-trouble", "a did not take over in time")
    stage.fake.says("POST /v1/group/transfer", {"leader": "a"})
    stage.fake.says("GET /v1/group", group(leader="a"))
    stage.tab.get_by_role("button", name="Make leader", exact=True).click()
    expect(stage.tab.locator("#transfer")).to_be_hidden()
    assert stage.fake.last("POST").plain == {"to": "a"}
    stage.shows("#group tr:has-text('10.0.0.1:9901')", "leader")
    assert [text for text in stage.errors if "503" not in text] == []


def test_events_come_newest_first_and_go_on_where_they_were(stage: Stage) -> None:
    added = {"upstream": "app", "key": "x:1", "what": "added", "backend": {"weight": 1}}
    changed = {
        "upstream": "app",
        "key": "<b>x:1</b>",
        "what": "changed",
        "fields": ["weight"],
        "backend": {"weight": 3},
    }
    by = {"token": "ops", "member": "b", "source": "api", "note": "more"}
    stage.fake.answers["GET", "/v1/events"] = [
        (200, created(8) + event(8, added, by=by)),
        (200, created(9) + event(9, changed) + event(10, kind="member-add", member="e")),
        (200, created(11) + event(11, kind="raise-level")),
        (200, created(12)),
    ]

    stage.open()

    stage.shows("#events li >> nth=0", "raise-level")
    stage.shows("#events li >> nth=1", "member-add e")
    stage.shows("#events li >> nth=2", "app: <b>x:1</b> changed: weight 3")
    stage.shows("#events li >> nth=3", "app: x:1 added (ops through b: more)")
    expect(stage.tab.locator("#events-none")).to_be_hidden()
    asked = [each for each in stage.fake.asked if each.path == "/v1/events"]
    assert [each.headers.get("Last-Event-ID") for each in asked[:3]] == [None, "8", "10"]
    assert stage.errors == stage.abroad == []


def test_events_that_were_missed_are_said_to_be(stage: Stage) -> None:
    stage.fake.answers["GET", "/v1/events"] = [
        (200, created(8) + event(8)),
        (410, {"code": "compacted", "detail": "it is gone"}),
        (410, {"code": "compacted", "detail": "it is gone"}),
        (200, created(99) + event(99, kind="of-later")),
        (200, created(100)),
    ]

    stage.open()

    stage.shows("#events li >> nth=1", "events from revision 9 on were missed")
    stage.shows("#events li >> nth=0", "of-later")


def test_a_token_is_asked_for_and_swapped(stage: Stage) -> None:
    said = {"code": "unauthorized", "detail": "a token is needed", "status": 401}
    for path in ("status", "upstreams", "group"):
        stage.fake.says(f"GET /v1/{path}", said, status=401)
    stage.fake.refuses("POST /v1/session", 401, "unauthorized", "that is not a token of ours")
    stage.open()

    stage.shows("#session", "wants a token")
    stage.shows("#state", "signed out")
    expect(stage.tab.locator("#panels")).to_be_hidden()
    stage.tab.get_by_label("Token").fill("wrong")
    stage.tab.get_by_role("button", name="Sign in").click()
    stage.shows("#session-trouble", "that is not a token of ours")
    assert stage.fake.last("POST").plain == {"token": "wrong"}
    assert not [each for each in stage.fake.asked if each.path == "/v1/events"]

    stage.fake.says("POST /v1/session", None, status=204)
    stage.fake.says("DELETE /v1/session", None, status=204)
    for path, plain in (("status", STATUS), ("upstreams", {"upstreams": []}), ("group", group())):
        stage.fake.says(f"GET /v1/{path}", plain)
    stage.tab.get_by_label("Token").fill("right")
    stage.tab.get_by_role("button", name="Sign in").click()
    stage.shows("#state", "ready")
    expect(stage.tab.locator("#session")).to_be_hidden()
    stage.shows("#group", "10.0.0.2:9901")

    for path in ("status", "upstreams", "group"):
        stage.fake.says(f"GET /v1/{path}", said, status=401)
    stage.shows("#session-trouble", "a token is needed")
    assert [text for text in stage.errors if "401" not in text] == []


def test_signing_out_ends_the_session(stage: Stage) -> None:
    stage.fake.says("DELETE /v1/session", None, status=204)
    stage.open()
    stage.shows("#state", "ready")
    expect(stage.tab.locator("#sign-out")).to_be_hidden()  # Nobody signed in.
    stage.tab.evaluate("sessionStorage.setItem('lb-signed-in', 'yes')")
    stage.tab.reload()

    stage.tab.get_by_role("button", name="Sign out").click()

    stage.shows("#state", "ready")
    expect(stage.tab.locator("#sign-out")).to_be_hidden()
    assert stage.fake.last("DELETE").path == "/v1/session"
