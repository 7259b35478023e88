"""A service manager's protocol, spoken with a real datagram socket in systemd's place."""

from __future__ import annotations

import configparser
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
from journeys.kit import PATIENCE, ROOT, Backend, Daemon, ask, free_ports, loaded, until
from journeys.programs import lb, refuses

# Takes the place of systemd's last step before the program: descriptors from 3 on, and our pid.
STARTER = """\
import os, sys
fds = [int(word) for word in sys.argv[1].split(",")]
for fd in fds:
    os.dup2(fd, fd + 100)
for index, fd in enumerate(fds):
    os.dup2(fd + 100, 3 + index)
    os.close(fd + 100)
environ = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
os.execve(sys.executable, [sys.executable, "-m", "lb.cli", *sys.argv[2:]], environ)
"""


class Manager:
    """systemd's end of the socket; keeps every message as its lines."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[dict[str, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        # As systemd does: whoever speaks is never kept waiting.
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while text := self._sock.recv(65536).decode():
            self.said.append(dict(line.split("=", 1) for line in text.split("\n")))

    def hear(self) -> list[dict[str, str]]:
        """Return all that was said so far."""
        return list(self.said)

    def wait_for(self, word: str, after: int = 0) -> dict[str, str]:
        """Wait for a message with this word, past so many messages."""
        return (
            until(
                lambda: next((each for each in self.hear()[after:] if word in each), None),
                lambda: f"{word}; said: {self.said[after:]}",
            )
            or {}
        )

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._sock.getsockname())
        self._thread.join(PATIENCE)
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.fixture(params=["path", "abstract"])
def any_manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    made = Manager(path if request.param == "path" else f"@{path}")
    yield made
    made.close()


def service(daemon: Make, config: str, manager: Manager, **more: str) -> Daemon:
    environ = {"NOTIFY_SOCKET": manager.address, **more}
    return daemon(config, environ=environ, node='drain = "1s"')


def test_start_reload_and_stop_are_told(
    daemon: Make, backends: list[Backend], any_manager: Manager
) -> None:
    manager = any_manager
    one = service(daemon, config_of(backends), manager)
    one.launch()
    ready = manager.wait_for("READY")
    assert one.ask().status == 200  # It is so with that word.
    until(lambda: one.admin("/readyz").status == 200, "and its checks are through")
    assert ready["STATUS"] == f"serving on 127.0.0.1:{one.port} with 2 workers"
    heard = len(manager.hear())
    before = time.monotonic_ns() // 1000
    one.send(signal.SIGHUP)
    reloading = manager.wait_for("RELOADING", heard)
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    manager.wait_for("READY", heard)
    heard = len(manager.hear())
    one.write("this is no TOML")
    assert lb(one, "reload", config=False).status == 3
    assert "the last reload failed" in manager.wait_for("READY", heard)["STATUS"]
    one.send(signal.SIGTERM)
    manager.wait_for("STOPPING")
    assert one.wait() == 0
    assert "WATCHDOG" not in str(manager.hear())


def test_an_upgrade_names_the_new_process(daemon: Make, plain: str, manager: Manager) -> None:
    one = service(daemon, plain, manager, WATCHDOG_USEC="400000", WATCHDOG_PID="1")
    one.start()
    manager.wait_for("WATCHDOG")
    assert lb(one, "upgrade").status == 0
    now = one.upgraded()
    said = manager.hear()
    [moved] = [number for number, each in enumerate(said) if "MAINPID" in each]
    assert said[moved]["MAINPID"] == str(now)
    manager.wait_for("READY", moved)
    assert one.wait() == 0
    manager.wait_for("WATCHDOG", len(manager.hear()))  # From the new one alone.
    assert "STOPPING" not in str(manager.hear())


def test_a_supervisor_that_hangs_is_not_called_alive(
    daemon: Make, plain: str, manager: Manager
) -> None:
    one = service(daemon, plain, manager, WATCHDOG_USEC="200000")
    one.start()
    manager.wait_for("WATCHDOG", len(manager.hear()))
    one.send(signal.SIGSTOP)
    heard = len(manager.hear())
    until(lambda: one.ask().status == 200, "the others go on")
    assert not [each for each in manager.hear()[heard:] if "WATCHDOG" in each][1:]
    one.send(signal.SIGCONT)
    manager.wait_for("WATCHDOG", len(manager.hear()))


def test_a_manager_who_is_not_there_changes_nothing(daemon: Make, plain: str) -> None:
    one = daemon(plain, environ={"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "100000"})
    one.start()
    assert one.ask().status == 200
    assert "Traceback" not in one.log()


# --- Sockets that it bound ------------------------------------------------------------------------


def activate(one: Daemon, socks: list[socket.socket], **environ: str) -> None:
    """Start a daemon with sockets, as systemd does."""
    fds = [sock.fileno() for sock in socks]
    with open(one.out, "ab") as out, open(one.err, "ab") as err:
        one.process = subprocess.Popen(
            [
                *(sys.executable, "-c", STARTER, ",".join(map(str, fds))),
                *("run", "-c", str(one.path)),
            ],
            cwd=one.folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        )
    one.supervisor = one.process.pid


@pytest.mark.long
def test_sockets_that_are_given_are_used_and_refuse_nobody(
    daemon: Make, backends: list[Backend], tmp_path: Path
) -> None:
    one = daemon(config_of(backends), node='drain = "1s"')
    [other] = free_ports(1)
    path = tmp_path / "app.sock"
    more = f'[listener.more]\naddress = "unix:{path}"\nupstream = "app"\n'
    one.write(config_of(backends, listener='upstream = "app"') + more)
    with (
        socket.create_server(("127.0.0.1", one.port), backlog=512) as web,
        socket.create_server(("127.0.0.1", other)) as unused,
        socket.socket(socket.AF_UNIX) as file,
    ):
        file.bind(str(path))
        file.listen()
        activate(one, [web, unused, file], LISTEN_FDNAMES="web:unused:file")
        assert one.ask().status == 200  # It waited in the queue.
        one.ready()
        assert f"given by the service manager: web, ('127.0.0.1', {one.port})" in one.log()
        until(lambda: f"{other}), from the service manager, is no address" in one.log(), "so it is")
        with loaded(one.port, fresh=True) as load:
            assert lb(one, "upgrade").status == 0  # The sockets go along.
            one.upgraded()
            load.more(50)
            one.write(config_of([*backends], listener='upstream = "app"'))
            assert lb(one, "reload").status == 0  # Without the unix socket.
            one.write(config_of(backends, listener='upstream = "app"') + more)
            assert lb(one, "reload").status == 0  # And with it again.
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(str(path))
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert load.failures == []
        now = one.supervisor
        one.send(signal.SIGTERM)
        until(lambda: not Path(f"/proc/{now}").exists(), "it stops")
        assert one.wait() == 0
        assert path.exists()  # Not ours to remove.
        with socket.create_connection(("127.0.0.1", one.port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            activate(one, [web, file])
            client.settimeout(PATIENCE)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")  # Whoever waited is served.


def test_a_listener_removed_and_added_on_a_given_port(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon("")
    [other] = free_ports(1)
    rest = config_of(backends, listener='upstream = "app"')
    more = f'[listener.more]\naddress = "127.0.0.1:{other}"\nupstream = "app"\n'
    one.write(rest + more)
    with socket.create_server(("127.0.0.1", other), backlog=512) as given:
        activate(one, [given])
        one.ready()
        assert ask(other).status == 200
        one.write(rest)
        assert lb(one, "reload").status == 0
        assert not refuses_at_once(other)  # Its queue is the manager's.
        one.write(rest + more)
        assert lb(one, "reload").status == 0
        assert {ask(other).status for _ in range(10)} == {200}
        one.send(signal.SIGTERM)
        one.wait()
    assert refuses(other)


def refuses_at_once(port: int) -> bool:
    """Whether nobody holds a port."""
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


# --- The files that come along --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lb.service", "lb.socket"])
def test_the_units_say_what_we_keep(name: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "conf" / name)
    if name == "lb.socket":
        assert unit["Socket"]["ListenStream"]
        return
    run = unit["Service"]
    assert run["Type"] == "notify"
    assert run["ExecStart"].endswith("lb run -c /etc/lb/lb.toml")
    assert run["ExecReload"].endswith("lb reload -c /etc/lb/lb.toml")
    assert run["KillMode"] == "mixed"  # The supervisor tells the others.
    assert int(run["TimeoutStopSec"].removesuffix("s")) > 5 + 30
