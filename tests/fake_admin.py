"""An admin API that says what a test wants it to: for answers that a real one gives rarely."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATIENCE = 10.0


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    plain: Any


@dataclass(frozen=True)
class Page:
    """A file of the dashboard."""

    content_type: str
    body: bytes


@dataclass
class FakeAdmin:
    """Answers by method and path; the last of several answers goes on being given."""

    address: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # Sent with every answer.
    asked: list[Asked] = field(default_factory=list)
    answers: dict[tuple[str, str], list[tuple[int, Any]]] = field(default_factory=dict)

    def says(self, words: str, *plain: Any, status: int = 200) -> None:
        """
        Let `words`, like `GET /v1/group`, be answered so.

        Text is sent as an event stream that ends, a `Page` as it is, all else as JSON.
        """
        method, path = words.split()
        self.answers[method, path] = [(status, each) for each in plain]

    def refuses(self, words: str, status: int, code: str, detail: str, **more: Any) -> None:
        """Let a request be refused by a problem."""
        problem = {"code": code, "status": status, "detail": detail, "hint": "", **more}
        self.says(words, problem, status=status)

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """Return what to say, and note what was asked."""
        self.asked.append(asked)
        left = self.answers.get((asked.method, asked.path))
        if not left:
            return 404, {"code": "not-found", "detail": f"there is no {asked.path}"}
        return left.pop(0) if len(left) > 1 else left[0]

    def last(self, method: str) -> Asked:
        """Return the newest request with this method."""
        return [each for each in self.asked if each.method == method][-1]


class _Server(ThreadingHTTPServer):
    """A client that goes while it is spoken to, or before, is none of our business."""

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


class _Handler(BaseHTTPRequestHandler):
    """Passes requests to the script, and its answers back."""

    fake: FakeAdmin

    def log_message(self, *_: object) -> None:
        """Say nothing: a test reads what matters from `asked`."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        asked = Asked(
            self.command,
            parts.path,
            query,
            dict(self.headers),
            json.loads(raw) if raw else None,
        )
        status, plain = self.fake.answer(asked)
        body, content_type = _encoded(plain)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in self.fake.headers.items():
            self.send_header(name, value)
        if not isinstance(plain, str):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815


def _encoded(plain: Any) -> tuple[bytes, str]:
    match plain:
        case Page():
            return plain.body, plain.content_type
        case str():
            return plain.encode(), "text/event-stream"
        case _:
            return json.dumps(plain).encode(), "application/json"


@contextlib.contextmanager
def fake_admin(tls: ssl.SSLContext | None = None) -> Iterator[FakeAdmin]:
    """Serve one for the length of a test."""
    fake = FakeAdmin()
    handler = type("Handler", (_Handler,), {"fake": fake})
    with _Server(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        fake.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join(PATIENCE)
