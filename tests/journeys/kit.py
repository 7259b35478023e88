"""What journeys are made of: a daemon, toy backends, clients that count, and waiting."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # Seconds for what should take one: the machine may be slow, and busy.
STEP = 0.02
BREATH = 0.005  # Seconds between two requests of a client that asks all the time.

T = TypeVar("T")


def until(what: Callable[[], T], says: str | Callable[[], str], patience: float = PATIENCE) -> T:
    """Wait until `what` returns something true, and return that; `says` what was waited for."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if found := what():
                return found
        late = time.monotonic() > deadline
        assert not late, f"waited {patience:g} s for {says if isinstance(says, str) else says()}"
        time.sleep(STEP)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


class Answer:
    """What came back for one request."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    path: str = "/",
    method: str = "GET",
    *,
    body: object = None,
    fields: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    timeout: float = PATIENCE,
) -> Answer:
    """Make one request over a connection of its own; `fields` are more of its header."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    headers = {"Connection": "close", **(fields or {})}
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body)
    try:
        connection.request(method, path, data, headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Daemon:
    """One instance, run as its own session, as a shell would."""

    def __init__(
        self,
        folder: Path,
        config: str,
        *,
        name: str = "a",
        workers: int = 2,
        node: str = "",
        environ: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.admin_port = free_ports(2)
        self.workers_count = workers
        self.node = node
        self.environ = environ or {}
        self.path = folder / "lb.toml"
        self.data_dir = folder / "state"
        self.out, self.err = folder / "out.log", folder / "err.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.supervisor = 0  # Its process: another one after an upgrade.
        self.write(config)

    def write(self, config: str) -> None:
        """Write the file; `{port}` in it is this daemon's listener's."""
        self.config = config
        self.path.write_text(
            f'[node]\nname = "{self.name}"\ndata_dir = "{self.data_dir}"\n'
            f"workers = {self.workers_count}\n{self.node}\n"
            f'[admin]\naddress = "127.0.0.1:{self.admin_port}"\n'
            + config.replace("{port}", str(self.port))
        )

    def start(self) -> Daemon:
        """Start it and wait until it is ready."""
        self.launch()
        self.ready()
        return self

    def launch(self, *options: str) -> None:
        """Start it and do not wait. `options` are Python's."""
        with open(self.out, "ab") as out, open(self.err, "ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, *options, "-m", "lb.cli", "run", "-c", str(self.path)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.environ},
            )
        self.supervisor = self.process.pid

    def ready(self) -> None:
        """Wait until it says that it is ready."""
        process = self._running()

        def is_ready() -> bool:
            ended = process.poll() is not None and self.supervisor == process.pid
            assert not ended, f"ended with {process.returncode}:\n{self.log()}"
            return ask(self.admin_port, "/readyz").status == 200

        until(is_ready, lambda: f"/readyz\n{self.log()}")

    def upgraded(self) -> int:
        """Wait until another supervisor has taken over; from then on that one is meant."""
        before = self.supervisor

        def another() -> bool:
            self.supervisor = int(self.admin("/v1/status").json()["pid"])
            return self.supervisor != before

        until(another, lambda: f"another supervisor\n{self.log()}")
        return self.supervisor

    def log(self) -> str:
        """Return what it wrote on stderr so far."""
        return self.err.read_text() if self.err.exists() else ""

    def ask(self, path: str = "/", method: str = "GET", **more: Any) -> Answer:
        """Ask through the listener."""
        return ask(self.port, path, method, **more)

    def admin(self, path: str, method: str = "GET", **more: Any) -> Answer:
        """Ask the admin API."""
        return ask(self.admin_port, path, method, **more)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        os.kill(self.supervisor, number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, as a terminal does."""
        os.killpg(self._running().pid, number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for its end; return its exit status."""
        return self._running().wait(patience)

    def children(self, role: str) -> list[int]:
        """Return the process ids of its workers or its controller, oldest first."""
        return sorted(
            pid for pid in offspring(self.supervisor) if f"lb.{role}" in command_line(pid)
        )

    def controller(self) -> int:
        """Return the controller's process id."""
        return until(lambda: self.children("controller"), "a controller")[0]

    def workers(self) -> list[int]:
        """Return the workers' process ids, once all are there."""
        return (
            until(
                lambda: len(found := self.children("worker")) == self.workers_count and found,
                "all workers",
            )
            or []
        )

    def end(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self.process is None:
            return
        # A child may have lost its parent: the session is all of ours and nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "launch it first"
        return self.process


def copy_of_package(folder: Path) -> Path:
    """Return where a copy of the package is that a test may change."""
    for name in ("lb", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def offspring(parent: int) -> list[int]:
    """Return the children of a process."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == parent and stat[0] != "Z":
                found.append(pid)
    return found


def command_line(pid: int) -> str:
    """Return a process's words, or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Return whether a process runs, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Backend:
    """
    A toy server that answers with its name, over kept connections.

    `hold` makes answers to `/hold` wait until it is set; `healthy` decides `/healthz`; `/503`
    is answered so, as is every status. `where` is an address without port, or `unix:/path`.
    """

    def __init__(self, name: str, where: str = "127.0.0.1", port: int = 0) -> None:
        self.name = name
        self.healthy = True
        self.status = "200 OK"  # Of every answer for which the path asks for no other.
        self.requests = 0
        self.checks = 0
        self.connections = 0
        self.asked: dict[str, str] = {}  # The fields of the last request but checks.
        self.hold = threading.Event()
        self.holding = threading.Event()
        backend = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                backend.connections += 1
                with contextlib.suppress(OSError):
                    while backend.answer(self):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 512

        place: Any = (where.strip("[]"), port)
        if where.startswith("unix:"):
            Server.address_family, place = socket.AF_UNIX, where.removeprefix("unix:")
        elif ":" in where:
            Server.address_family = socket.AF_INET6
        self._server = Server(place, Handler)
        self.port = 0 if where.startswith("unix:") else int(self._server.server_address[1])
        self.address = f"{where}:{self.port}" if self.port else where
        self._thread = threading.Thread(target=self._server.serve_forever, args=(STEP,))
        self._thread.start()

    def answer(self, handler: socketserver.StreamRequestHandler) -> bool:
        """Answer one request; return whether to go on."""
        line = handler.rfile.readline()
        fields = {}
        while (header := handler.rfile.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            fields[name.lower()] = value.strip()
        if not line:
            return False
        handler.rfile.read(int(fields.get("content-length", 0)))
        path = line.split()[1]
        status = self.status
        if path == b"/healthz":
            self.checks += 1
            status = "200 OK" if self.healthy else "503 Service Unavailable"
        else:
            self.requests += 1
            self.asked = fields
        if path[1:].isdigit():
            status = f"{path[1:].decode()} As asked"
        if path == b"/hold":
            self.holding.set()
            self.hold.wait(PATIENCE)
        body = self.name.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        handler.wfile.write(head.encode() + body)
        return True

    def close(self) -> None:
        """Stop, connections that wait included."""
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)


class Load:
    """
    Clients that ask until told to stop; every failure is kept. Over kept connections, or over
    a `fresh` one each time. They take breath, or daemon and test would have no CPU to live on.
    """

    def __init__(self, port: int, clients: int = 4, *, fresh: bool = False) -> None:
        self.port = port
        self.fresh = fresh
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    @property
    def done(self) -> int:
        """Return how many good answers there were."""
        return sum(self.answers.values())

    def more(self, count: int) -> None:
        """Wait until there are so many good answers more than now."""
        goal = self.done + count
        until(lambda: self.done >= goal, f"{count} more answers; failures: {self.failures[-3:]}")

    def stop(self) -> None:
        """Stop, and wait for the last answers."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        while not self._stopping.wait(BREATH):
            try:
                connection.request("GET", "/")
                answer = Answer(connection.getresponse())
                if self.fresh:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            if answer.status == 200:
                self.answers[answer.text] += 1
            else:
                self.failures.append(f"{answer.status} {answer.text}")
        connection.close()


@contextlib.contextmanager
def loaded(port: int, clients: int = 4, *, fresh: bool = False) -> Iterator[Load]:
    """Keep a port under load for the time of the block."""
    load = Load(port, clients, fresh=fresh)
    try:
        load.more(clients * 5)
        yield load
    finally:
        load.stop()
