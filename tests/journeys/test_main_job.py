"""The main job: in front of two nginx and Python's file server, with curl and wrk as clients."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from journeys.kit import Daemon, Load, ask, free_ports, loaded, until
from journeys.programs import Reply, Server, curl, file_server, lb, nginx, pressed, refuses, serving

TEXT = b"".join(b"%06d what a file is made of\n" % number for number in range(4000))
MOVIE_BYTES = 20 * 1024 * 1024
CONFIG = """
[listener.web]
address = "127.0.0.1:{{port}}"
upstream = "web"

[route.python]
path = "/python/"
upstream = "python"

[upstream.web]
backends = ["{a}", "{b}"]
health = {{ path = "/healthz", interval = "100ms", timeout = "1s", rise = 1, fall = 2 }}

[upstream.python]
backends = ["{python}"]
"""


class Job:
    """The daemon and what it stands in front of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.a, self.b = (nginx(folder / name, name) for name in "ab")
        self.python = file_server(folder / "python")
        self.movie = random.Random(3).randbytes(MOVIE_BYTES)
        for server in (self.a, self.b):
            (server.folder / "files" / "text.txt").write_bytes(TEXT)
        (self.a.folder / "files" / "movie").write_bytes(self.movie)
        (self.b.folder / "files" / "movie").write_bytes(self.movie)
        within = self.python.folder / "python"
        within.mkdir(exist_ok=True)
        (within / "text.txt").write_bytes(TEXT)
        self.daemon = Daemon(folder / "daemon", self.config())

    def config(self, more: str = "") -> str:
        """Return the file, with more lines at its end."""
        addresses = {"a": self.a.address, "b": self.b.address, "python": self.python.address}
        return CONFIG.format(**addresses) + more

    def curl(self, path: str, *words: str, stdin: bytes | None = None) -> Reply:
        """Have curl ask through the daemon."""
        url = f"http://127.0.0.1:{self.daemon.port}{path}"
        return curl(self.folder, *words, url, stdin=stdin)

    def shown(self, server: Server, upstream: str = "web") -> dict[str, Any]:
        """Return what the admin API shows of a backend."""
        path = f"/v1/upstreams/{upstream}/backends/{server.address}"
        return dict(self.daemon.admin(path).json())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """One daemon for all tests here, as in life."""
    job = Job(tmp_path_factory.mktemp("job"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(job.a, job.b, job.python))
        stack.callback(job.daemon.end)
        job.daemon.start()
        yield job
        assert "Traceback" not in job.daemon.log()


# --- curl ---------------------------------------------------------------------------------------


def test_many_requests_over_one_connection(job: Job) -> None:
    reply = job.curl("/page[1-8]")
    assert (reply.status, reply.connects) == (200, 1)
    assert {job.curl("/").text for _ in range(8)} == {"a", "b"}


def test_an_old_client(job: Job) -> None:
    plain = job.curl("/files/text.txt", "-0")
    assert (plain.status, plain.body) == (200, TEXT)
    # Compressed, its length is not known beforehand; this client knows nothing of chunks.
    squeezed = job.curl("/files/text.txt", "-0", "--compressed")
    assert squeezed.body == TEXT
    assert "transfer-encoding" not in squeezed.headers


@pytest.mark.parametrize("path", ["/files/text.txt", "/python/text.txt"])
def test_head_tells_a_length_and_sends_nothing(job: Job, path: str) -> None:
    reply = job.curl(path, "--head")
    assert (reply.status, reply.headers["content-length"]) == (200, str(len(TEXT)))
    again = job.curl(path.replace(".txt", ".[t-u]xt"), "--head")
    assert (again.status, again.connects) == (404, 1)


def test_an_upload(job: Job) -> None:
    upload = job.folder / "upload"
    upload.write_bytes(job.movie[: 3 * 1024 * 1024])
    reply = job.curl("/sink", "-H", "Expect:", "--data-binary", f"@{upload}")
    assert reply.status == 200
    assert reply.text.split()[1:] == [str(3 * 1024 * 1024), "http"]


def test_an_upload_of_unknown_length_arrives_as_it_was_sent(job: Job) -> None:
    sent = job.movie[: 5 * 1024 * 1024 + 1]
    for number in range(2):  # One for each nginx: they take turns.
        path = f"/files/taken-{number}"
        reply = job.curl(path, "-H", "Expect:", "-T", "-", stdin=sent)
        assert reply.status == 201
    taken = [
        found.read_bytes()
        for server in (job.a, job.b)
        for found in (server.folder / "files").glob("taken-*")
    ]
    assert len(taken) == 2
    assert all(each == sent for each in taken)


def test_an_offer_of_http2_is_not_passed_on(job: Job) -> None:
    reply = job.curl("/asked", "--http2")
    assert (reply.status, reply.version) == (200, "1.1")
    asked = f"GET|HTTP/1.1||||127.0.0.1|127.0.0.1:{job.daemon.port}"
    assert reply.text == asked


def test_a_client_that_waits_for_100_continue(job: Job) -> None:
    upload = job.folder / "upload"
    upload.write_bytes(bytes(2 * 1024 * 1024))
    words = ("-v", "-H", "Expect: 100-continue", "--expect100-timeout", "15")
    reply = job.curl("/sink", *words, "--data-binary", f"@{upload}")
    assert reply.status == 200
    assert reply.text.split()[1] == str(2 * 1024 * 1024)
    assert "HTTP/1.1 100 Continue" in reply.said
    assert "Done waiting for 100-continue" not in reply.said


def test_a_range(job: Job) -> None:
    reply = job.curl("/files/movie", "-r", "1000000-1999999")
    assert reply.status == 206
    assert reply.headers["content-range"] == f"bytes 1000000-1999999/{MOVIE_BYTES}"
    assert reply.body == job.movie[1_000_000:2_000_000]


def test_compressed(job: Job) -> None:
    reply = job.curl("/files/text.txt", "--compressed")
    assert (reply.headers["content-encoding"], reply.body) == ("gzip", TEXT)
    assert reply.headers["transfer-encoding"] == "chunked"


def test_a_large_download(job: Job) -> None:
    reply = job.curl("/files/movie")
    assert reply.headers["content-length"] == str(MOVIE_BYTES)
    assert reply.body == job.movie


def test_pythons_file_server(job: Job) -> None:
    found = job.curl("/python/text.txt")
    assert (found.status, found.body) == (200, TEXT)
    assert found.headers["server"].startswith("SimpleHTTP")
    assert job.curl("/python/nothing").status == 404
    refused = job.curl("/python/text.txt", "-H", "Expect:", "-d", "x=1")
    assert refused.status == 501  # It takes no POST, and closes without reading the body.


# --- wrk ----------------------------------------------------------------------------------------


def test_wrk_and_the_counters_agree(job: Job) -> None:
    def counted() -> int:
        return int(job.shown(job.a)["requests"]) + int(job.shown(job.b)["requests"])

    before = counted()
    with pressed(job.daemon.port, seconds=1, connections=16) as wrk:
        answered, bad = wrk.result()
    assert bad == []
    assert answered > 100
    until(lambda: job.shown(job.a)["in_flight"] == 0, "all is over")
    # wrk leaves while its last requests are under way: one of each connection at most.
    assert answered <= counted() - before <= answered + 16
    errors = [job.shown(server)["errors"] for server in (job.a, job.b)]
    assert errors == [0, 0]


# --- Things that happen under load ----------------------------------------------------------------


def become(job: Job, server: Server, health: str) -> None:
    """Wait until a backend is thought to be so."""
    until(lambda: job.shown(server)["health"] == health, f"{server.address} is {health}")


def only_from(load: Load, names: set[str]) -> bool:
    """Whether the next answers come from these, and from all of them."""
    before = load.answers.copy()
    load.more(40)
    return set(load.answers - before) == names


def test_a_backend_is_killed_and_revived_and_no_request_is_lost(job: Job) -> None:
    daemon = job.daemon
    with loaded(daemon.port) as load, pressed(daemon.port, seconds=4, connections=24) as wrk:
        for server, other in ((job.a, "b"), (job.b, "a")):
            load.more(100)
            server.kill()
            become(job, server, "unhealthy")
            until(lambda other=other: only_from(load, {other}), f"only {other} answers")  # type: ignore[misc]
            server.start()
            become(job, server, "healthy")
            until(lambda: only_from(load, {"a", "b"}), "both answer again")
        load.more(100)
        answered, bad = wrk.result()
    assert load.failures == []
    assert bad == []
    assert answered > 500
    log = job.daemon.log()
    assert f"web/{job.a.address} is unhealthy: connection refused" in log
    assert f"web/{job.a.address} is healthy" in log


def test_a_reload_that_adds_a_backend_a_route_and_a_listener_under_load(job: Job) -> None:
    daemon = job.daemon
    third = nginx(job.folder / "c", "c")
    (port,) = free_ports(1)
    config = job.config(
        f'[route.new]\npath = "/new"\nrespond = {{ status = 204 }}\n'
        f'[listener.second]\naddress = "127.0.0.1:{port}"\nupstream = "python"\n'
    ).replace(f'"{job.b.address}"', f'"{job.b.address}", "{third.address}"')
    assert job.curl("/new").text in "ab"
    with serving(third), loaded(daemon.port) as load, pressed(daemon.port, seconds=4) as wrk:
        daemon.write(config)
        said = lb(daemon, "reload")
        assert (said.status, said.err) == (0, "done\n")
        assert ask(port, "/python/text.txt").body == TEXT  # Live once the answer is there.
        assert job.curl("/new").status == 204
        until(lambda: only_from(load, {"a", "b", "c"}), "the third answers too")
        daemon.write(job.config())
        back = lb(daemon, "reload")
        assert (back.status, back.err) == (0, "done\n")
        until(lambda: only_from(load, {"a", "b"}), "only two answer")
        assert job.curl("/new").text in "ab"
        until(lambda: refuses(port), "the second listener is closed")
        answered, bad = wrk.result()
    assert load.failures == []
    assert bad == []
    assert answered > 500


def test_workers_do_not_grow(job: Job) -> None:
    """After all of the above, under more load, resident memory stays where it is."""

    def resident() -> int:
        pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in job.daemon.workers()]
        return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")

    def press() -> int:
        with pressed(job.daemon.port, seconds=1, connections=16) as wrk:
            wrk.result()
        return resident()

    first = press()
    assert press() - first < 4 * 1024 * 1024
