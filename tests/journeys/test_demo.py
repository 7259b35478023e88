"""`lb demo` and `lb run` without a file: they serve, say what to try, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeys.kit import PATIENCE, ROOT, Backend, alive, ask, free_ports, until


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
