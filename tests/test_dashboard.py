"""The dashboard in a real browser: what it shows, that it follows, and that it stays at home."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from journeys.conftest import config_of
from journeys.kit import Backend, Daemon

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HEALTH = 'health = { path = "/healthz", interval = "100ms", timeout = "1s", rise = 1, fall = 1 }'
PATIENCE_MS = 60_000.0  # For what should take a second: the machine may be busy.
ALONE = (  # Nothing that a browser does by itself: this machine may have no way out.
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


class View:
    """A page, and what it did that it should not."""

    def __init__(self, page: Page, home: str) -> None:
        self.page = page
        self.home = home
        self.errors: list[str] = []
        self.abroad: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._asked)
        page.goto(home)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(self.home):
            self.abroad.append(request.url)

    def row(self, backend: Backend) -> str:
        """Return a selector for a backend's line."""
        return f'#upstreams tbody tr:has-text("{backend.address}")'

    def shows(self, selector: str, text: str) -> None:
        """Wait until it does."""
        expect(self.page.locator(selector)).to_contain_text(text, timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ALONE))
        yield launched
        launched.close()


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    with contextlib.ExitStack() as stack:
        made = [Backend(name) for name in "ab"]
        for each in made:
            stack.callback(each.close)
        yield made


@pytest.fixture
def daemon(tmp_path: Path, backends: list[Backend]) -> Iterator[Daemon]:
    made = Daemon(tmp_path, config_of(backends, HEALTH))
    try:
        yield made.start()
    finally:
        made.end()


@contextlib.contextmanager
def view_of(
    browser: Browser, daemon: Daemon, width: int = 1280, scheme: str = "light"
) -> Iterator[View]:
    assert scheme in ("light", "dark")
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    try:
        yield View(context.new_page(), f"http://127.0.0.1:{daemon.admin_port}/")
    finally:
        context.close()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_backends_and_their_health(
    browser: Browser, daemon: Daemon, backends: list[Backend], width: int, scheme: str
) -> None:
    with view_of(browser, daemon, width, scheme) as view:
        for backend in backends:
            view.shows(view.row(backend), "active")
            view.shows(view.row(backend), "healthy")
        view.shows("#tiles", "2 of 2")
        view.shows("#state", "ready")
        daemon.ask()
        view.shows("#tiles", "ms")  # Latencies are the widest text there.
        too_wide = view.page.evaluate(
            """[document.documentElement, ...document.querySelectorAll("#tiles li, header, dl")]
            .filter((each) => each.scrollWidth > each.clientWidth + 1)
            .map((each) => each.outerHTML.slice(0, 200))"""
        )
        ground = view.page.evaluate("getComputedStyle(document.body).backgroundColor")

        assert too_wide == []
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
        assert view.errors == []
        assert view.abroad == []


def test_it_follows_what_happens(browser: Browser, daemon: Daemon, backends: list[Backend]) -> None:
    first, second = backends
    with view_of(browser, daemon) as view:
        view.shows("#tiles", "2 of 2")

        second.healthy = False
        view.shows(view.row(second), "unhealthy")
        view.shows(view.row(second), "status 503")
        view.shows("#tiles", "1 of 2")
        second.healthy = True
        view.shows("#tiles", "2 of 2")
        path = f"/v1/upstreams/app/backends/{second.address}"
        daemon.admin(path, "PATCH", body={"state": "draining"})
        view.shows(view.row(second), "draining")
        for _ in range(7):
            daemon.ask()
        requests = view.page.locator(view.row(first)).locator("td").nth(6)
        expect(requests).to_have_text("7", timeout=PATIENCE_MS)
        daemon.write("nonsense")
        daemon.admin("/v1/config/reload", "POST")
        view.shows("#config-error", "lb.toml:")

        assert view.errors == []
        assert view.abroad == []


def test_it_says_when_the_instance_is_gone(browser: Browser, daemon: Daemon) -> None:
    with view_of(browser, daemon) as view:
        view.shows("#state", "ready")
        assert view.page.locator("#trouble").is_hidden()

        daemon.end()

        view.shows("#trouble", "does not answer")
        view.shows("#state", "no answer")
        assert view.abroad == []
