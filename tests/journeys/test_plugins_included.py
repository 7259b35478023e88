"""Plugins that come with us, in a whole daemon: together, over all workers, and through reloads."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import hmac
import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message

import bcrypt

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, Backend, Daemon, until

PAGE = b"It is all the same to me. " * 200


@dataclass
class Asked:
    """One request that a server got."""

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass
class Recorder:
    """A server that keeps what it is asked, and answers as it is told."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    asked: list[Asked] = field(default_factory=list)
    address: str = ""


class Keeper(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    recorder: Recorder

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding"):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        asked = Asked(self.command, self.path, self.headers, body)
        recorder = self.recorder
        recorder.asked.append(asked)
        self.send_response(recorder.status)
        for name, value in recorder.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(recorder.body)))
        self.end_headers()
        self.wfile.write(recorder.body)

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *words: object) -> None:
        pass


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    handler = type("Own", (Keeper,), {"recorder": recorder})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    recorder.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


def with_route(to: str, plugins: str) -> str:
    return (
        '[listener.web]\naddress = "127.0.0.1:{port}"\n'
        f'[upstream.app]\nbackends = ["{to}"]\n'
        f'[route.all]\nupstream = "app"\nplugins = [{plugins}]\n'
    )


def clean(daemon: Daemon) -> None:
    """Nothing that plugins left open or failed at may show in the log."""
    for word in ("Traceback", "Unclosed", "never awaited", "failed in"):
        assert word not in daemon.log(), daemon.log()


def test_all_workers_count_together(daemon: Make, backends: list[Backend]) -> None:
    uses = '[plugins]\nuse = [{ use = "rate_limit", rate = "1/m", burst = 10 }]\n'
    made = daemon(config_of(backends) + uses, workers=2).start()

    answers = [made.ask() for _ in range(40)]  # Each over a connection of its own.

    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (10, 30)
    assert 50 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert answers[-1].headers["RateLimit-Policy"] == '"default";q=10;w=600'
    made.admin("/v1/config/reload", "POST", body={})
    assert made.ask().status == 429, "a reload forgets nothing"


def sent_raw(port: int, octets: bytes) -> bytes:
    """Send a whole request at once, over a connection that ends with it."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(octets)
        got = b""
        while piece := sock.recv(65536):
            got += piece
    return got


def test_asked_copied_and_compressed(daemon: Make) -> None:
    """Three that wait, watch and change: the body comes with the head, before anybody answers."""
    body = bytes(range(256)) * 20
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept-Encoding: gzip\r\n"
    by_length = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    in_chunks = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    with (
        recording(Recorder(headers={"X-User": "alice"})) as judge,
        recording(Recorder()) as shadow,
        recording(Recorder(headers={"Content-Type": "text/plain"}, body=PAGE)) as app,
    ):
        plugins = (
            f'{{ use = "forward_auth", url = "http://{judge.address}/verify",'
            ' backend_headers = ["x-user"] },'
            f'{{ use = "mirror", url = "http://{shadow.address}" }},'
            '{ use = "compress", codings = "gzip" }'
        )
        made = daemon(with_route(app.address, plugins), node='grace = "0s"').start()
        for whole in (by_length, in_chunks, by_length, in_chunks):
            answer = sent_raw(made.port, whole)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert b"Content-Encoding: gzip\r\n" in answer
        until(lambda: len(shadow.asked) == 4, lambda: f"four copies: {shadow.asked}")

        assert [each.body for each in app.asked] == [body] * 4
        assert [each.body for each in shadow.asked] == [body] * 4
        assert [each.body for each in judge.asked] == [b""] * 4
        assert {each.headers["X-User"] for each in app.asked} == {"alice"}
        assert {each.headers["X-Mirrored"] for each in shadow.asked} == {"1"}
        lengths = [each.headers["Content-Length"] for each in app.asked]
        assert lengths == [str(len(body)), None] * 2
        got = made.ask(fields={"Accept-Encoding": "gzip"})
        assert gzip.decompress(got.body) == PAGE
        judge.status, judge.body = 403, b"no"
        refused = made.ask("/x", "POST", body={"a": 1})
        assert (refused.status, refused.body) == (403, b"no")

        judge.status = 200
        before = made.config
        made.write(with_route(app.address, ""))
        assert made.admin("/v1/config/reload", "POST", body={}).status == 200
        assert made.ask(fields={"Accept-Encoding": "gzip"}).body == PAGE
        made.write(before)
        assert made.admin("/v1/config/reload", "POST", body={}).status == 200
        assert made.ask("/x", "POST", body={"a": 1}).status == 200
        made.send(signal.SIGTERM)
        assert made.wait() == 0
        clean(made)


def part(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(secret: str, seconds: float) -> str:
    claims = json.dumps({"sub": "alice", "exp": int(time.time() + seconds)}).encode()
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(claims)
    mac = hmac.digest(secret.encode(), signed, hashlib.sha256)
    return (signed + b"." + part(mac)).decode()


def test_who_may_come_in(daemon: Make) -> None:
    """By password on one route and by token on the other; files are looked at again."""
    with recording(Recorder(body=b"in")) as app:
        made = daemon("", workers=1)
        users = made.folder / "users"
        users.write_bytes(b"alice:" + bcrypt.hashpw(b"one", bcrypt.gensalt(4)) + b"\n")
        secret = "s" * 32
        made.write(
            '[listener.web]\naddress = "127.0.0.1:{port}"\n'
            f'[upstream.app]\nbackends = ["{app.address}"]\n'
            '[route.password]\npath = "/password"\nupstream = "app"\n'
            f'plugins = [{{ use = "basic_auth", file = "{users}", user_header = "x-user" }}]\n'
            '[route.token]\npath = "/token"\nupstream = "app"\n'
            f'plugins = [{{ use = "jwt", algorithms = "HS256", secret = "{secret}",'
            ' claims = { sub = "x-user" } }]\n'
        )
        made.start()

        def password(word: str) -> int:
            given = base64.b64encode(f"alice:{word}".encode()).decode()
            return made.ask("/password", fields={"Authorization": f"Basic {given}"}).status

        assert [password("one"), password("one"), password("two")] == [200, 200, 401]
        users.write_bytes(b"alice:" + bcrypt.hashpw(b"two", bcrypt.gensalt(4)) + b"\n")
        until(lambda: password("two") == 200, "the file to be read again")
        assert password("one") == 401

        def bearer(text: str) -> int:
            return made.ask("/token", fields={"Authorization": f"Bearer {text}"}).status

        good = token(secret, 60)
        assert [bearer(good), bearer(good), bearer(good[:-2] + "xx")] == [200, 200, 401]
        assert bearer(token(secret, -60)) == 401
        assert {each.headers["X-User"] for each in app.asked} == {"alice"}
        asked = made.ask("/token")
        assert asked.status == 401
        assert asked.headers["WWW-Authenticate"].startswith("Bearer")
        assert secret not in made.admin("/v1/config").text
        clean(made)
