"""More than there is room for: descriptors, idle clients, connections beyond a limit."""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, Backend, Daemon, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
BYTES_A_CLIENT_MAX = 20 * 1024
LIMIT = 256
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def connect(one: Daemon) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", one.port), PATIENCE)
    sock.settimeout(PATIENCE)
    return sock


def served(sock: socket.socket) -> bool:
    sock.sendall(GET)
    return sock.recv(4096).startswith(b"HTTP/1.1 200 ")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


def memory(pid: int) -> int:
    """Return what a process has in memory, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_descriptors_used_up(backends: list[Backend], daemon: Make) -> None:
    """Fault 41: who is inside is served, new ones wait, nothing spins, and it recovers."""
    one = daemon(config_of(backends), workers=1).start()
    assert one.process is not None
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    (first,) = one.workers()
    os.kill(first, signal.SIGKILL)  # The next one inherits it.
    until(lambda: first not in one.workers() and one.ask().status == 200, "another worker")
    (worker,) = one.workers()
    with ExitStack() as stack:
        inside = [stack.enter_context(connect(one)) for _ in range(10)]
        assert all(served(sock) for sock in inside)
        crowd = [stack.enter_context(connect(one)) for _ in range(2 * LIMIT)]
        until(lambda: "out of descriptors" in one.log(), "a word of it")
        assert "raise LimitNOFILE" in one.log()
        assert all(served(sock) for sock in inside)
        before = cpu_seconds(worker)
        assert all(served(sock) for sock in inside)
        until(lambda: one.admin("/readyz").status == 200, "the controller is well")
        assert cpu_seconds(worker) - before < 0.5
        for sock in crowd[:-1]:
            sock.close()
        assert served(crowd[-1]), "who waited is let in"
    until(lambda: one.ask().status == 200, "as before")
    assert "Traceback" not in one.log()


def test_descriptors_gone_all_at_once(backends: list[Backend], daemon: Make) -> None:
    """
    Fault 41, without a warning: the limit falls below what is open. Who came in the quarter of a
    second until that is seen is closed; then new ones wait, and those inside notice nothing.
    """
    one = daemon(config_of(backends), workers=1).start()
    (worker,) = one.workers()
    with ExitStack() as stack:
        inside = [stack.enter_context(connect(one)) for _ in range(20)]
        assert all(served(sock) for sock in inside)
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        few = len(os.listdir(f"/proc/{worker}/fd")) - 10
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (few, before[1]))
        until(lambda: "out of descriptors" in one.log(), "a word of it")
        waiting = [stack.enter_context(connect(one)) for _ in range(50)]
        for sock in waiting:
            sock.sendall(GET)
            sock.setblocking(False)
        spent = cpu_seconds(worker)
        for _ in range(10):
            assert all(served(sock) for sock in inside)
        assert cpu_seconds(worker) - spent < 1.0
        for sock in waiting:
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        for sock in waiting:
            sock.settimeout(PATIENCE)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 "), "who waited is let in"
    until(lambda: one.ask().status == 200, "as before")
    assert "Traceback" not in one.log()


def test_idle_clients_are_cheap(backends: list[Backend], daemon: Make) -> None:
    """Fault 21, with a tenth of the clients."""
    grown, count = memory_of_idle_clients(daemon(config_of(backends), workers=1).start(), 1000)
    assert grown / count <= BYTES_A_CLIENT_MAX


def memory_of_idle_clients(one: Daemon, count: int) -> tuple[int, int]:
    """Have so many clients idle after one request each; return what that takes of memory."""
    (worker,) = one.workers()
    with ExitStack() as stack:
        assert all(served(stack.enter_context(connect(one))) for _ in range(20))
        before = memory(worker)
        for number in range(count):
            sock = socket.socket()
            stack.enter_context(sock)
            sock.settimeout(PATIENCE)
            sock.bind((f"127.0.0.{2 + number % 4}", 0))
            sock.connect(("127.0.0.1", one.port))
            assert served(sock)
        return memory(worker) - before, count


def test_a_flood_beyond_the_limit(backends: list[Backend], daemon: Make) -> None:
    """Fault 22: new ones wait or get 503, those inside notice nothing."""
    limits = "limits = { connections = 8 }\n"
    one = daemon(config_of(backends, listener=limits), workers=1).start()
    (worker,) = one.workers()
    with ExitStack() as stack:
        inside = [stack.enter_context(connect(one)) for _ in range(8)]
        assert all(served(sock) for sock in inside)
        crowd = [stack.enter_context(connect(one)) for _ in range(100)]
        before = cpu_seconds(worker)
        for sock in crowd:
            sock.sendall(GET)
        answers = {crowd[number].recv(13) for number in range(20)}
        assert answers == {b"HTTP/1.1 503 "}, "told after a while"
        assert all(served(sock) for sock in inside)
        assert cpu_seconds(worker) - before < 1.0
    until(lambda: one.ask().status == 200, "as before")
