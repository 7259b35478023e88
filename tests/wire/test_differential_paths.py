"""
Paths go on as they came, while routes match their normal form: can a spelling get around a rule?

One rule, `/admin` is nobody's, stands before the same backends: Accord's route, and nginx's
location. Behind them are aiohttp, Python's file server and, where it is installed, Flask, and
each says whether it took the path for one below /admin. docs/wire.md has the table.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from lb.model import Endpoint, Listener, Respond, Route
from wire.kit import DEADLINE_S, Origin, Proxy, answering, response
from wire.rivals import VERSIONS, nginx, talking, version

PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "wire.md"
ROUTE: Final = Route("admin", path="/admin", respond=Respond(403, body="nobody's"))
LISTENER: Final = Listener("web", ("127.0.0.1:0",), upstream="app")
LOCATIONS: Final = "location = /admin { return 403; } location ^~ /admin/ { return 403; }"

PATHS: Final = (
    "/admin", "/admin/", "/admin/x", "/admin?x", "/administrator", "/ADMIN/x", "/other",
    "//admin/x", "/admin//x", "///admin", "/./admin/x", "/a/../admin/x", "/a/./../admin/x",
    "/a/b/../../admin/x", "/admin/../other", "/admin/./x", "/admin/.", "/admin/..", "/../admin/x",
    "/%61dmin/x", "/%61%64%6d%69%6e/x", "/%2561dmin/x", "/admin%2Fx", "/admin%2fx", "/%2Fadmin/x",
    "/a/%2e%2e/admin/x", "/a/.%2e/admin/x", "/%2e/admin/x", "/a%2F..%2Fadmin/x", "/a/..%2Fadmin/x",
    "/a/..%5Cadmin/x", "/admin\\x", "/\\admin/x", "/a\\..\\admin/x", "/admin%5Cx", "/admin;a=b/x",
    "/admin;/x", "/;/admin/x", "/a/..;/admin/x", "/admin%3Bx", "/admin%00/x", "/admin%20/x",
    "/admin./x", "/admin%09/x", "/admin%3Fx", "/admin%23x", "/admin#x", "/admin%", "/admin/%zz",
    "/admin%C0%AFx", "/a//../admin/x", "/admin~/x", "/admin/x?y=/../z",
)  # fmt: skip

FRAMEWORKS: Final = ("aiohttp", "http.server", "flask")
# Refused, since some backends decode them: see docs/decisions/0013-a-path-of-two-routes.md.
SLASHES: Final = ("/admin%2Fx", "/admin%2fx", "/%2Fadmin/x")
# A reading that some backends have and RFC 3986 has not: they leave dot segments alone.
DOTS: Final = ("/admin/../other", "/admin/..")
LEAVE_DOTS: Final = ("aiohttp", "flask")


@contextmanager
def aiohttp_server() -> Iterator[int]:
    """Run an aiohttp application with a route below /admin, and one for all else."""

    async def admin(request: web.Request) -> web.Response:
        return web.Response(text="admin")

    async def other(request: web.Request) -> web.Response:
        return web.Response(text="other")

    app = web.Application()
    app.router.add_route("*", "/admin", admin)
    app.router.add_route("*", "/admin/{tail:.*}", admin)
    app.router.add_route("*", "/{tail:.*}", other)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield runner.addresses[0][1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.run_until_complete(runner.cleanup())
        loop.close()


class Files(SimpleHTTPRequestHandler):
    """Says which file it would have served, by the standard library's own reading of a path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # The standard library names it.
        inside = Path(self.translate_path(self.path)).relative_to(self.directory).parts
        body = b"admin" if inside[:1] == ("admin",) else b"other"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # As inherited.
        """Say nothing."""


@contextmanager
def threaded(server: Any) -> Iterator[int]:
    """Run a server of the standard library's kind in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join(DEADLINE_S)
        server.server_close()


def flask_server() -> Any:
    """Make a Flask application like the others, on Werkzeug's server."""
    app = import_module("flask").Flask("paths")
    app.add_url_rule("/admin", "a", lambda: "admin")
    app.add_url_rule("/admin/", "b", lambda: "admin")
    app.add_url_rule("/admin/<path:tail>", "c", lambda tail: "admin")
    app.add_url_rule("/", "d", lambda: "other")
    app.add_url_rule("/<path:tail>", "e", lambda tail: "other")
    import_module("logging").getLogger("werkzeug").setLevel("CRITICAL")
    return import_module("werkzeug.serving").make_server("127.0.0.1", 0, app)


@contextmanager
def backend(name: str) -> Iterator[int]:
    if name == "aiohttp":
        with aiohttp_server() as port:
            yield port
    elif name == "http.server":
        with threaded(ThreadingHTTPServer(("127.0.0.1", 0), Files)) as port:
            yield port
    else:
        if find_spec("flask") is None:
            pytest.skip("Flask is not installed: it comes with `make load`")
        with threaded(flask_server()) as port:
            yield port


def asked(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode("latin-1")


def verdict(answer: bytes) -> str:
    """Say what became of a request: who refused it, or what the backend took it for."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:12].decode()
    if status in ("301", "302", "308"):
        where = re.search(rb"(?i)\r\nlocation: ([^\r]*)", head)
        return f"sent to {where[1].decode() if where else ''}"
    return body.decode() if body in (b"admin", b"other") else status


def got_through(name: str) -> tuple[str, ...]:
    """Return the paths that come through the route, and that a framework takes for /admin."""
    with backend(name) as port:
        endpoint = Endpoint("framework", f"127.0.0.1:{port}")
        with Proxy([endpoint], listener=LISTENER, routes=[ROUTE]) as proxy:
            through = {path: verdict(proxy.talk(asked(path))) for path in PATHS}
    assert through["/other"] == "other"
    assert through["/admin/x"] == "403"
    return tuple(path for path, what in through.items() if what == "admin")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_no_spelling_gets_around_a_route(name: str) -> None:
    assert got_through(name) == (DOTS if name in LEAVE_DOTS else ())


def test_a_slash_in_a_name_passes_where_it_decides_nothing() -> None:
    with (
        Origin(answering(response(b"passed on"))) as origin,
        Proxy([origin], listener=LISTENER, routes=[ROUTE]) as proxy,
    ):
        assert [said(proxy.talk(asked(path))) for path in SLASHES] == ["400"] * 3
        for path in ("/files/a%2Fb", "/a%2fadmin", "/other?to=/admin%2Fx"):
            assert said(proxy.talk(asked(path))) == "passed on"
            assert origin.requests[-1].startswith(b"GET " + path.encode() + b" ")


def test_what_passes_passes_unchanged() -> None:
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=LISTENER, routes=[ROUTE]) as proxy,
    ):
        for path in PATHS:
            before = len(origin.requests)
            answer = proxy.talk(asked(path))
            if answer.startswith(b"HTTP/1.1 200 "):
                line = origin.requests[-1].partition(b"\r\n")[0]
                assert line == f"GET {path} HTTP/1.1".encode()
            else:
                assert len(origin.requests) == before


def rows_of_page() -> dict[str, tuple[str, str, str]]:
    """Return path: what Accord does, what nginx does, why."""
    found = {}
    section = PAGE.read_text().partition("## Paths")[2]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `/") and len(cells) == 4:
            found[cells[0].strip("`")] = (cells[1], cells[2], cells[3])
    return found


def test_the_table_of_paths_is_true(tmp_path: Path) -> None:
    """Every path of which Accord's route and nginx's location say different things is there."""
    if version("nginx") != VERSIONS["nginx"]:
        pytest.skip(f"nginx {VERSIONS['nginx']} is not installed, but {version('nginx')}")
    with ExitStack() as stack:
        origin = stack.enter_context(Origin(answering(response(b"passed on"))))
        proxy = stack.enter_context(Proxy([origin], listener=LISTENER, routes=[ROUTE]))
        theirs = talking(stack.enter_context(nginx(tmp_path, origin.address, LOCATIONS)), origin)
        seen = {}
        for path in PATHS:
            pair = (said(proxy.talk(asked(path))), said(theirs(asked(path))[0]))
            if pair[0] != pair[1]:
                seen[path] = pair
    page = {path: (ours, nginxs) for path, (ours, nginxs, _) in rows_of_page().items()}
    assert page == seen
    assert all(why for _, _, why in rows_of_page().values())


def said(answer: bytes) -> str:
    status = answer[9:12].decode()
    return {"200": "passed on", "403": "403 by the rule"}.get(status, status)
