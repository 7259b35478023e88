"""Processes and machines at fault: crashes, stops, bad files, full disks, readers that stopped.

What the operator may do to processes is in test_processes, test_reload and test_upgrade; these
are the faults beside.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, ROOT, Answer, Backend, Daemon, alive, loaded, offspring, until
from journeys.programs import lb, pressed

RELOADS = int(os.environ.get("RELOADS", "16"))
KILOBYTE = 1024

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that to a process")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid: int) -> int:
    """Return how much a process has to itself, in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1])
    raise AssertionError("no Private_Dirty")


def metric(daemon: Daemon, name: str) -> float:
    lines = daemon.admin("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


# --- Processes ------------------------------------------------------------------------------------


def test_a_killed_worker_is_followed_within_a_second(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    with loaded(one.port, fresh=True) as load:
        for _ in range(3):
            victim = one.workers()[0]
            os.kill(victim, signal.SIGKILL)
            at = time.monotonic()
            until(lambda: victim not in one.children("worker"), "it is gone")  # noqa: B023
            until(lambda: len(one.children("worker")) == 2, "another is started")
            assert time.monotonic() - at < 1.0
            one.ready()
            load.more(20)
    refused = [each for each in load.failures if "Refused" in each]
    assert not refused, "its queue is never closed"
    assert len(load.failures) <= 3 * 4  # What four clients had under way, each time.
    assert metric(one, "lb_worker_restarts_total") == 3


def test_a_killed_supervisor_leaves_a_stale_socket_in_nobodys_way(
    daemon: Make, backends: list[Backend], tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    one = daemon(config_of(backends).replace('"127.0.0.1:{port}"', f'"unix:{path}"')).start()
    children = [one.controller(), *one.workers()]
    one.send(signal.SIGKILL)
    one.wait()
    one.start()  # At once: the old children may still be on their way out.
    until(lambda: not any(map(alive, children)), "the old ones end")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_an_idle_instance_stops_at_once(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    at = time.monotonic()
    said = lb(one, "stop", "--no-wait")
    assert said.status == 0
    assert one.wait() == 0
    # Somebody has asked for readiness just now: the grace is theirs.
    assert time.monotonic() - at < 5.0 + 4.0
    two = daemon(plain, name="two", node='grace = "0s"').start()
    at = time.monotonic()
    two.send(signal.SIGTERM)
    assert two.wait() == 0
    assert time.monotonic() - at < 2.0


def test_signals_while_it_starts_end_well(daemon: Make, plain: str) -> None:
    numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGQUIT)
    for index, pair in enumerate(itertools.product(numbers[:3], numbers[3:])):
        one = daemon(plain, name=str(index))
        one.launch()
        until(lambda: one.children("controller"), "a controller")  # noqa: B023
        for number in (*pair, *pair):
            with contextlib.suppress(ProcessLookupError):
                one.send(number)
        assert one.wait() == 0
        assert "Traceback" not in one.log()


@pytest.mark.skipif(
    int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024,
    reason="this machine lets everybody have low ports",
)
@root_only
def test_a_low_port_without_the_right(backends: list[Backend], tmp_path: Path) -> None:
    path = tmp_path / "lb.toml"
    config = config_of(backends).replace("{port}", "81")
    path.write_text(f'[node]\ndata_dir = "{tmp_path}/state"\n{config}')
    done = subprocess.run(
        [
            *("setpriv", "--inh-caps", "-net_bind_service", "--bounding-set", "-net_bind_service"),
            *(sys.executable, "-m", "lb.cli", "run", "-c", str(path)),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 7
    assert "cannot listen on 127.0.0.1:81: not permitted" in done.stderr
    assert "CAP_NET_BIND_SERVICE" in done.stderr
    assert "Traceback" not in done.stderr


# --- Reloads --------------------------------------------------------------------------------------


class Posting:
    """Clients that post until told to stop; a POST is never tried twice."""

    def __init__(self, port: int) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        while not self._over.is_set():
            try:
                connection.request("POST", "/", b"x" * 1000)
                answer = Answer(connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            if answer.status == 200:
                self.done += 1
            else:
                self.failures.append(str(answer.status))
        connection.close()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE)


@contextlib.contextmanager
def posting(port: int) -> Iterator[Posting]:
    made = Posting(port)
    try:
        yield made
    finally:
        made.stop()


PLUGIN = """
from lb.plugin import Plugin

KEPT = b"1" * 4_000_000


class Stamp(Plugin[None]):
    name = "stamp"

    def on_response(self, req, res):
        res.headers.set("X-Stamp", "{number}")
"""


def test_many_reloads_cost_no_request_and_leave_nothing_behind(
    daemon: Make, backends: list[Backend]
) -> None:
    to_app = 'upstream = "app"\nplugins = "stamp"\n[plugins]\nfolders = "plugins"\n'
    one = daemon(config_of(backends, listener=to_app), node='drain = "1s"')
    plugin = one.folder / "plugins" / "stamp.py"
    plugin.parent.mkdir()
    plugin.write_text(PLUGIN.format(number=0))
    one.start()
    route = '[route.new]\npath = "/new"\nrespond = { status = 204 }\n'
    files = itertools.cycle(
        [
            config_of(backends[:1], listener=to_app) + route,
            config_of(backends, 'balance = "least_requests"', to_app),
            "this is no TOML",
            config_of(backends, listener=to_app),
        ]
    )

    numbers = itertools.count(1)

    def reload() -> None:
        one.write(next(files))
        number = str(next(numbers))
        plugin.write_text(PLUGIN.format(number=number))
        answer = one.admin("/v1/config/reload", "POST", body={})
        assert answer.status in (200, 422), answer.text
        if answer.status == 200:
            assert one.ask().headers["X-Stamp"] == number

    for _ in range(8):  # What is made once is made.
        reload()
    processes = [one.supervisor, one.controller(), *one.workers()]
    before = [(descriptors(pid), memory(pid)) for pid in processes]
    with loaded(one.port, fresh=True) as load, posting(one.port) as posts:
        for _ in range(max(4, RELOADS // 4) * 4):
            reload()
        load.more(10)
    assert (load.failures, posts.failures) == ([], [])
    assert posts.done > 0
    assert [one.supervisor, one.controller(), *one.workers()] == processes

    def settled() -> bool:
        return all(
            descriptors(pid) <= was + 8 for pid, (was, _) in zip(processes, before, strict=True)
        )

    until(settled, lambda: str([*before, *map(descriptors, processes)]))
    for pid, (_, was) in zip(processes, before, strict=True):
        assert memory(pid) <= was + 16 * KILOBYTE, f"{pid} had {was} KiB"
    assert "Traceback" not in one.log()


@pytest.mark.long
def test_reloads_at_once_go_one_after_the_other(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends)).start()
    answers: list[Answer] = []

    def reload() -> None:
        answers.append(one.admin("/v1/config/reload", "POST", body={}))

    one.write(config_of(backends, 'balance = "random"'))
    threads = [threading.Thread(target=reload) for _ in range(3)]  # Eight may wait.
    with loaded(one.port) as load:
        for thread in threads:
            thread.start()
            one.send(signal.SIGHUP)
        for thread in threads:
            thread.join(PATIENCE)
        load.more(20)
    assert load.failures == []
    assert {answer.status for answer in answers} == {200}
    changes = [answer.json()["changed"] for answer in answers]
    assert sum(bool(each) for each in changes) <= 1  # HUP may have been the first.
    assert "Traceback" not in one.log()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("[", "lb.toml:"),
        ("[listener.web2]\nadress = ':1'\n", '"adress" is not a key of a listener'),
        ('[listener.tls]\naddress = "127.0.0.1:1"\ntls = [{ cert = "no.pem", key = "no.key" }]\n',
         "no.pem"),
        ('[listener.dir]\naddress = "127.0.0.1:1"\ntls = [{ cert = ".", key = "." }]\n', "tls"),
        ('[listener.taken]\naddress = "{taken}"\nupstream = "app"\n', "cannot listen on {taken}"),
        ('[listener.far]\naddress = "192.0.2.1:80"\nupstream = "app"\n',
         "this machine does not have that address"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_into_force_changes_nothing(
    daemon: Make, backends: list[Backend], more: str, says: str
) -> None:
    one = daemon(config_of(backends, listener='upstream = "app"')).start()
    taken = backends[0].address
    good = one.config
    # A new route and a port that is free come first: neither may be left over.
    one.write(good + '[route.x]\npath = "/x"\nrespond = { status = 204 }\n'
              + more.replace("{taken}", taken))  # fmt: skip
    processes = [one.controller(), *one.workers()]
    before = [descriptors(pid) for pid in processes]
    with loaded(one.port, fresh=True) as load:
        said = lb(one, "reload", config=False)
        assert said.status != 0
        assert says.replace("{taken}", taken) in said.err
        load.more(20)
    assert load.failures == []
    assert [one.controller(), *one.workers()] == processes
    assert one.ask("/x").status == 200
    assert one.admin("/v1/status").json()["config"]["generation"] == 1
    until(
        lambda: all(
            descriptors(pid) <= was + 6 for pid, was in zip(processes, before, strict=True)
        ),
        "what was opened for it is closed",
    )
    one.write(good)
    assert lb(one, "reload").status == 0


# --- Disks and logs -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def dropped(daemon: Daemon) -> float:
    return metric(daemon, "lb_access_log_dropped_total")


def test_a_full_disk_costs_lines_and_no_request(daemon: Make, plain: str, small_disk: Path) -> None:
    access, own = small_disk / "access.log", small_disk / "lb.log"
    logs = f'[access_log]\noutput = "{access}"\n[log]\noutput = "{own}"\n'
    one = daemon(logs + plain).start()
    with loaded(one.port) as load:
        until(lambda: dropped(one) > 0, "lines are dropped, and counted", 3 * PATIENCE)
        one.send(signal.SIGHUP)  # Which has something to say in a log that is full.
        load.more(200)
        count = dropped(one)
        until(lambda: dropped(one) > count, "and more of them")
        access.rename(small_disk / "access.log.1")
        (small_disk / "access.log.1").unlink()
        one.send(signal.SIGUSR1)  # As whoever rotates it does.
        until(lambda: access.exists() and access.stat().st_size > 0, "logging goes on")
    assert load.failures == []
    lines = access.read_bytes().splitlines()
    assert lines[0].startswith(b"{")
    assert "Traceback" not in one.log()


def test_dev_full_for_both_logs(daemon: Make, plain: str) -> None:
    one = daemon(f'[access_log]\noutput = "/dev/full"\n[log]\noutput = "/dev/full"\n{plain}')
    one.start()
    with loaded(one.port) as load:
        load.more(200)
        os.kill(one.workers()[0], signal.SIGKILL)  # Something to write down.
        one.ready()
    assert len(load.failures) <= 4
    until(lambda: dropped(one) > 0, "what was lost is counted, a moment later")


@pytest.mark.parametrize("reader", ["stopped", "gone"])
def test_a_pipe_that_nobody_reads(daemon: Make, plain: str, tmp_path: Path, reader: str) -> None:
    """Both logs go to pipes, as under a supervisor that has hung or died."""
    one = daemon(f'[access_log]\noutput = "stdout"\n{plain}')
    ours, theirs = os.pipe()
    one.process = subprocess.Popen(
        [sys.executable, "-m", "lb.cli", "run", "-c", str(one.path)],
        cwd=one.folder,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    one.supervisor = one.process.pid
    os.close(theirs)
    one.ready()
    if reader == "gone":
        os.close(ours)
    with pressed(one.port, seconds=20) as wrk, loaded(one.port) as load:
        until(lambda: dropped(one) > 0, "lines are dropped, and counted", 20.0)
        load.more(100)
        one.send(signal.SIGHUP)
        one.send(signal.SIGUSR1)
        load.more(100)
        assert wrk.runs
    assert load.failures == []
    one.send(signal.SIGTERM)
    assert one.wait() == 0  # What waits for that reader holds up no stop.
    if reader == "stopped":
        os.close(ours)


@pytest.mark.long
def test_logs_are_rotated_under_load(daemon: Make, plain: str, tmp_path: Path) -> None:
    access, own = tmp_path / "access.log", tmp_path / "lb.log"
    logs = f'[access_log]\noutput = "{access}"\n[log]\noutput = "{own}"\n'
    one = daemon(logs + plain).start()
    kept: list[Path] = []
    with loaded(one.port) as load:
        for number in range(5):
            load.more(50)
            for path in (access, own):
                until(path.exists, f"{path} is there")
                kept.append(path.with_suffix(f".{number}"))
                path.rename(kept[-1])
            one.send(signal.SIGUSR1)
            one.send(signal.SIGHUP)
            until(lambda: access.exists() and access.stat().st_size, "a new access log")
            until(lambda: own.exists() and own.stat().st_size, "a new log")
    assert load.failures == []
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    lines = sum(
        path.read_bytes().count(b'"path":"/"') for path in [*kept, access] if "access" in path.name
    )
    assert lines == load.done  # Each in one of the files, none lost on the way.
    held = [pid for pid in offspring(os.getpid()) if pid == one.supervisor and alive(pid)]
    assert not held
