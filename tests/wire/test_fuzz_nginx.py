"""
What arrives at a backend, read by a real nginx: exactly the requests that our log says went there.

nginx hands each to itself once more, so that it has read the body when it writes its line. Its
own refusals of what we passed on would be two readings of one message: there may be none but
those that are its policy.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from lb.model import Endpoint, Upstream, UpstreamTimeouts
from lb.proxy import deadlines
from wire.inputs import INPUTS
from wire.kit import Proxy, read_all, until
from wire.rivals import free_port, program, running
from wire.test_fuzz import REQUESTS, SEED, cut, mutate, rounds

POLICY: Final = {"405"}  # of nginx: TRACE
UNREAD: Final = "OPTIONS * HTTP/1.1"  # which nginx does not know, so its line has no more than this
ALIVE: Final = b"GET /alive HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """Run an nginx that logs what it read, as JSON; give its port."""
    path = program("nginx")
    if path is None:
        pytest.skip("nginx is not installed: it comes with `make test`")
    port, inner = free_port(), free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n  ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(f"""{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  {folders}
  log_format read escape=json '{{"id":"$http_x_request_id","method":"$request_method",'
    '"target":"$request_uri","host":"$http_host","body":"$request_body","status":"$status",'
    '"line":"$request"}}';
  access_log off;
  client_body_buffer_size 256k;
  large_client_header_buffers 8 64k;
  server {{
    listen 127.0.0.1:{port} backlog=512;
    access_log {folder}/read.log read;
    ignore_invalid_headers off;
    underscores_in_headers on;
    location / {{ proxy_pass http://127.0.0.1:{inner}; }}
  }}
  server {{ listen 127.0.0.1:{inner} backlog=512; return 200 "ok"; }}
}}
""")
    with running([path, "-c", str(folder / "nginx.conf"), "-p", str(folder)], port, folder):
        yield port


class Bench:
    """A proxy in front of nginx, and what each of them says afterwards."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        timeouts = UpstreamTimeouts(response=5.0, stall=5.0)
        self.proxy = Proxy(
            [Endpoint("nginx", f"127.0.0.1:{port}")],
            upstream=Upstream("app", timeouts=timeouts),
            log=str(folder / "access.log"),
        )

    def send(self, pieces: list[bytes]) -> bytes:
        with self.proxy.connect() as sock:
            try:
                for piece in pieces:
                    sock.sendall(piece)
                    self.proxy.call(lambda: None)
                sock.shutdown(1)
            except OSError:
                return b""  # It had enough of us.
            return read_all(sock)

    def ours(self) -> dict[str, dict[str, Any]]:
        lines = map(json.loads, (self.folder / "access.log").read_bytes().splitlines())
        return {line["id"]: line for line in lines if line["tries"]}

    def theirs(self) -> list[dict[str, Any]]:
        text = (self.folder / "read.log").read_text(errors="surrogateescape")
        return [json.loads(line, strict=False) for line in text.splitlines()]


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    with nginx(folder) as port:
        made = Bench(folder, port)
        with made.proxy as proxy:
            yield made
            assert proxy.talk(ALIVE).startswith(b"HTTP/1.1 200 ")
            until(lambda: proxy.clients == proxy.running == 0, "all over")
        compare(made)


def compare(made: Bench) -> None:
    """Each request that nginx read is one of ours, and each of ours that went well was read."""
    ours = made.ours()
    until(
        lambda: sum(line["end"] == "ok" for line in ours.values()) <= len(made.theirs()),
        "nginx's last line",
    )
    read = [line for line in made.theirs() if line["line"] != UNREAD]
    times = Counter(line["id"] for line in read)
    for line in read:
        assert line["id"] in ours, f"nginx could not read what we sent: {line}"
        own = ours[line["id"]]
        path, _, query = line["target"].partition("?")
        assert (line["method"], path, query) == (own["method"], own["path"], own["query"])
        assert times[line["id"]] <= len(own["tries"])
        if own["end"] == "ok" and line["status"] not in POLICY:
            assert line["status"] == "200", line
            assert len(line["body"].encode("utf-8", "surrogateescape")) == own["bytes_in"], line
    for number, own in ours.items():
        assert own["end"] != "ok" or times[number] == 1 or own["path"] == "*", own


@pytest.fixture(autouse=True)
def _quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "TICK_S", 0.02)


def test_mutants_read_by_nginx(tmp_path: Path) -> None:
    rng = random.Random(SEED + 1)
    with bench(tmp_path) as made:
        for _ in rounds():
            sent = b"".join(rng.choices(REQUESTS, k=rng.randint(1, 3)))
            mutant = mutate(sent, REQUESTS, rng)
            made.send(cut(mutant, [rng.randrange(2000) for _ in range(rng.randint(0, 3))]))


def test_the_corpus_read_by_nginx(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        for octets in INPUTS.values():
            made.send([octets])


def test_bodies_arrive_with_the_digest_that_they_left_with(tmp_path: Path) -> None:
    rng = random.Random(SEED + 2)
    digests = []
    with bench(tmp_path) as made:
        for number in range(200):
            text = "".join(rng.choices("abc\r\n GET/:0123456789", k=rng.randrange(3000)))
            body = text.encode()
            digests.append(hashlib.sha256(body).hexdigest())
            head = b"POST /%d HTTP/1.1\r\nHost: a\r\n" % number
            if number % 2:
                octets = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            else:
                parts = [
                    each for each in cut(body, [rng.randrange(3000) for _ in range(3)]) if each
                ]
                chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts)
                octets = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
            pieces = cut(octets, [rng.randrange(4000) for _ in range(rng.randint(0, 4))])
            assert made.send(pieces).startswith(b"HTTP/1.1 200 ")
        arrived = {
            line["target"]: hashlib.sha256(line["body"].encode()).hexdigest()
            for line in until(lambda: len(made.theirs()) >= 200 and made.theirs(), "every line")
        }
    assert [arrived[f"/{number}"] for number in range(200)] == digests
