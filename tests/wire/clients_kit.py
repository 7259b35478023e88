"""A backend with a bit of everything for real clients, and the proxy in front of it."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from lb.model import Endpoint, Listener
from wire.kit import DEADLINE_S, LISTENER, Proxy, until
from wire.tls_kit import MATERIAL

DATA: Final = bytes(range(256)) * 4096
BASIC: Final = "Basic " + base64.b64encode(b"me:secret").decode()
STAMP: Final = "Mon, 01 Jan 2024 00:00:00 GMT"


class Everything(BaseHTTPRequestHandler):
    """Answers in all the ways that HTTP/1.1 has."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Head and body leave apart.

    def do_GET(self) -> None:  # The standard library names it.
        match urlsplit(self.path).path:
            case "/bytes":
                self._range()
            case "/chunks":
                self._chunks()
            case "/to_the_end":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(DATA)
                self.close_connection = True
            case "/etag":
                self._validate()
            case path:
                self._answer(*self._choose(path))

    def _choose(self, path: str) -> tuple[Any, ...]:
        """Return status, body and fields of what depends on a field of the request."""
        asked = self.headers
        if path == "/gzip" and "gzip" in asked.get("Accept-Encoding", ""):
            return 200, gzip.compress(DATA), ("Content-Encoding", "gzip")
        if path == "/redirect":
            return 302, b"", ("Location", "/bytes")
        if path == "/basic" and asked.get("Authorization") != BASIC:
            return 401, b"", ("WWW-Authenticate", 'Basic realm="x"')
        if path == "/cookie":
            return 200, asked.get("Cookie", "").encode(), ("Set-Cookie", "taste=sweet")
        return 200, self._report(b""), ("Content-Type", "application/json")

    def _validate(self) -> None:
        if self.headers.get("If-None-Match") == '"1"' or self.headers.get("If-Modified-Since"):
            self._answer(304, b"", ("ETag", '"1"'))
        else:
            self._answer(200, b"new", ("ETag", '"1"'), ("Last-Modified", STAMP))

    def do_POST(self) -> None:
        body = self._body()
        if urlsplit(self.path).path == "/echo":
            self._answer(200, body)
        else:
            self._answer(200, self._report(body))

    do_HEAD = do_OPTIONS = do_DELETE = do_GET  # noqa: N815  # As inherited.
    do_PUT = do_PATCH = do_POST  # noqa: N815  # As inherited.

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # As inherited.
        """Say nothing."""

    def _answer(self, status: int, body: bytes, *fields: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _report(self, body: bytes) -> bytes:
        said = {"method": self.command, "target": self.path, "fields": dict(self.headers.items())}
        return json.dumps(said | {"size": len(body)}).encode()

    def _range(self) -> None:
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes=") or "," in asked:
            self._answer(200, DATA, ("Accept-Ranges", "bytes"))
            return
        first, _, last = asked[6:].partition("-")
        start = int(first) if first else len(DATA) - int(last)
        end = int(last) + 1 if first and last else len(DATA)
        part = DATA[start:end]
        span = f"bytes {start}-{start + len(part) - 1}/{len(DATA)}"
        self._answer(206, part, ("Content-Range", span))

    def _chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(DATA), 10_000):
            piece = DATA[at : at + 10_000]
            self.wfile.write(b"%x;note=x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\nX-Trailer: 1\r\n\r\n")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


class Server(ThreadingHTTPServer):
    """Takes many at once, and says nothing of those that are cut."""

    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """A proxy may go at any time."""


@contextmanager
def backend() -> Iterator[str]:
    """Run it; give its address."""
    server = Server(("127.0.0.1", 0), Everything)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(DEADLINE_S)
        server.server_close()


@contextmanager
def everything(listener: Listener = LISTENER) -> Iterator[Proxy]:
    """Run it behind a proxy; at the end nothing of ours may be left."""
    with (
        backend() as address,
        Proxy([Endpoint(address, address)], listener=listener, material=MATERIAL) as proxy,
    ):
        yield proxy
        until(lambda: proxy.clients == 0, "every client gone")
        assert (proxy.running, proxy.busy) == (0, 0)
