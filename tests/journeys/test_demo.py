"""`lb demo` and `lb run` without a file: they serve, say what to try, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeys.kit import PATIENCE, ROOT, Backend, alive, ask, free_ports, until

GROUP_PATIENCE = 60.0  # Three instances start at once, on a machine that may be busy.


class Started:
    """A command of ours in a session of its own, and what it wrote on stderr."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._err = folder / "err.log"
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        with open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lb.cli", *words],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self._temporary)},
            )

    @property
    def said(self) -> str:
        return self._err.read_text()

    @property
    def left_on_disk(self) -> list[str]:
        return sorted(path.name for path in self._temporary.iterdir())

    def session(self) -> set[int]:
        """Return all processes of the session, whoever started them."""
        found = set()
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):
                if os.getsid(pid) == self.process.pid and alive(pid):
                    found.add(pid)
        return found

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[list[Started]]:
    """Whatever a test puts in here is ended after it."""
    started: list[Started] = []
    yield started
    for each in started:
        each.end()


def demo(started: list[Started], folder: Path) -> tuple[Started, int, int]:
    proxy, admin, toys = free_ports(3)
    words = ("--port", proxy, "--admin-port", admin, "--backend-port", min(toys, 65_000))
    each = Started(folder, "demo", *map(str, words))
    started.append(each)

    def greeted() -> bool:
        assert each.process.poll() is None, each.said
        return "Ctrl-C stops everything" in each.said

    until(greeted, "what to try next")
    return each, proxy, admin


def test_the_demo_serves_and_ends_with_ctrl_c(start: list[Started], tmp_path: Path) -> None:
    each, proxy, admin = demo(start, tmp_path)

    answers = {ask(proxy).text for _ in range(12)}
    page = ask(admin)
    os.killpg(each.process.pid, signal.SIGINT)

    assert answers == {"a\n", "b\n", "c\n"}
    assert page.body.startswith(b"<!doctype html>")
    assert each.process.wait(PATIENCE) == 0
    until(lambda: not each.session(), "the end of every process")
    assert each.left_on_disk == []
    assert "Traceback" not in each.said


def test_what_the_demo_says_to_try_works_where_it_was_started(
    start: list[Started], tmp_path: Path
) -> None:
    each, _, _ = demo(start, tmp_path)
    tried = [
        line.strip()
        for line in each.said.splitlines()
        if line.startswith("    ") and (" demo" in line or "explain" in line)
    ]

    assert len(tried) == 4
    for line in tried:
        done = subprocess.run(
            line,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_demo_leaves_nothing_behind_however_it_ends(
    start: list[Started], tmp_path: Path, number: signal.Signals
) -> None:
    each, _, _ = demo(start, tmp_path)

    each.process.send_signal(number)
    each.process.wait(PATIENCE)

    until(lambda: not each.session(), "the end of every process")


def test_the_demo_says_which_port_is_taken(
    start: list[Started], tmp_path: Path, backends: list[Backend]
) -> None:
    (admin,) = free_ports(1)
    words = ("demo", "--port", str(backends[0].port), "--admin-port", str(admin))
    each = Started(tmp_path, *words)
    start.append(each)

    assert each.process.wait(PATIENCE) == 7
    assert f"127.0.0.1:{backends[0].port}" in each.said
    assert "Traceback" not in each.said
    assert "Accord is running" not in each.said
    assert each.left_on_disk == []


def test_run_without_a_file_serves_and_cleans_up(
    start: list[Started], tmp_path: Path, backends: list[Backend]
) -> None:
    port, admin = free_ports(2)
    addresses = [backend.address for backend in backends]
    where = ("--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}")
    each = Started(tmp_path, "run", *where, "--to", *addresses)
    start.append(each)

    until(lambda: ask(admin, "/livez").status == 200, "the admin API")
    answers = {until(lambda: ask(port).text, "an answer") for _ in range(4)}
    each.process.send_signal(signal.SIGINT)

    assert answers == {"a", "b"}
    assert each.process.wait(PATIENCE) == 0
    assert each.left_on_disk == []


# --- The group's demo -------------------------------------------------------------------------


def group_demo(started: list[Started], folder: Path) -> tuple[Started, list[int], list[int]]:
    """Start it on ports that nobody uses, three in a row each."""
    row = ports_in_a_row(10)
    proxies, admins = row[:3], row[3:6]
    words = ("--port", proxies[0], "--admin-port", admins[0], "--backend-port", row[6])
    each = Started(folder, "demo", "--group", *map(str, words))
    started.append(each)

    def greeted() -> bool:
        assert each.process.poll() is None, each.said
        return "Ctrl-C stops everything" in each.said

    until(greeted, "what to try next", GROUP_PATIENCE)
    return each, proxies, admins


def ports_in_a_row(count: int) -> list[int]:
    """Return so many ports in a row that nobody has just now."""
    for first in range(20_000 + os.getpid() % 500 * 20, 32_000, 37):
        row = list(range(first, first + count))
        if all(map(is_free, row)):
            return row
    raise AssertionError(f"no {count} ports in a row are free")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def advice(each: Started, *words: str) -> str:
    """Return the command that was said to try and that has all these words in it."""
    [line] = [
        line.strip()
        for line in each.said.splitlines()
        if line.startswith("    ") and all(word in line for word in words)
    ]
    return line


def tried(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_group_s_demo_agrees_survives_its_leader_and_ends_with_ctrl_c(
    start: list[Started], tmp_path: Path
) -> None:
    each, proxies, admins = group_demo(start, tmp_path)

    status = tried(advice(each, "group status"), tmp_path)
    assert status.returncode == 0, status.stderr
    assert "3 voters" in status.stdout
    assert "demo: d added" not in each.said
    added = tried(advice(each, "backend add"), tmp_path)
    assert added.returncode == 0, added.stderr
    for port in proxies:
        assert "d\n" in {ask(port).text for _ in range(20)}
    drained = tried(advice(each, "backend drain"), tmp_path)
    assert drained.returncode == 0, drained.stderr

    leader = ask(admins[0], "/v1/status").json()["group"]["leader"]
    os.kill(int(advice(each, "kill -9").split()[2]), signal.SIGKILL)
    until(lambda: "leads now" in each.said, "another leader", GROUP_PATIENCE)
    other = next(port for port, name in zip(admins, "abc", strict=True) if name != leader)
    fixed = tried(f"{sys.executable} -m lb.cli backend enable demo b --admin :{other}", tmp_path)
    assert fixed.returncode == 0, fixed.stderr

    os.killpg(each.process.pid, signal.SIGINT)
    assert each.process.wait(PATIENCE) == 0
    until(lambda: not each.session(), "the end of every process")
    assert each.left_on_disk == []
    assert "Traceback" not in each.said


@pytest.mark.long
def test_the_group_s_demo_leaves_nothing_running_when_it_is_killed(
    start: list[Started], tmp_path: Path
) -> None:
    each, _, _ = group_demo(start, tmp_path)

    each.process.kill()
    each.process.wait(PATIENCE)

    until(lambda: not each.session(), "the end of every process")


@pytest.mark.long
def test_the_group_s_demo_says_which_port_is_taken(
    start: list[Started], tmp_path: Path, backends: list[Backend]
) -> None:
    port, admin = backends[0].port, ports_in_a_row(3)[0]
    each = Started(tmp_path, "demo", "--group", "--port", str(port), "--admin-port", str(admin))
    start.append(each)

    assert each.process.wait(PATIENCE) == 7
    assert f"127.0.0.1:{port}" in each.said
    assert "Traceback" not in each.said
    until(lambda: not each.session(), "the end of every process")
    assert each.left_on_disk == []
