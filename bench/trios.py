"""Three instances of one group, and three members of one etcd: started, asked, broken, stopped.

Both with what they do by default, and with a disk that is really waited for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from programs import BenchError, checkout_lb, free_port, program
from raw_client import request

START_SECONDS_MAX = 40.0
STOP_SECONDS_MAX = 20.0
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
KEYS = 200  # Written in turn.

T = TypeVar("T")


class Trio(ABC):
    """Three processes, or families of processes, that agree with each other."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.members = ("a", "b", "c")
        self.ports = {member: free_port() for member in self.members}  # Where writes go.
        folder.mkdir(parents=True)

    @abstractmethod
    def command(self, member: str) -> tuple[list[str], dict[str, str]]:
        """Return how a member is started, and what more its environment needs."""

    @abstractmethod
    def leader(self) -> str | None:
        """Return who leads now, if anybody says so."""

    @abstractmethod
    def write(self, number: int) -> bytes:
        """Return a whole request that writes something new."""

    def formed(self) -> bool:
        """Whether all are there and agree."""
        return self.leader() is not None

    def start(self, member: str) -> None:
        """Start one and do not wait."""
        command, environment = self.command(member)
        with open(self.folder / f"{member}.log", "ab") as log:
            self.processes[member] = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_formed(self) -> str:
        """Wait until all are there and agree; return who leads."""
        self.wait(self.formed, "all three agree")
        leader = self.leader()
        return leader if leader is not None else self.wait_formed()

    def wait(self, what: Callable[[], T], says: str, seconds: float = START_SECONDS_MAX) -> T:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, KeyError, ValueError):
                if found := what():
                    return found
            time.sleep(0.02)
        raise BenchError(f"{self.name}: not in {seconds:g} s: {says}; see {self.folder}")

    def kill(self, member: str) -> None:
        """End a member with all of its children, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[member].pid, signal.SIGKILL)
        self.processes[member].wait()

    def stop(self, member: str) -> None:
        """Ask a member to end; do not wait for it."""
        self.processes[member].send_signal(signal.SIGTERM)

    def ended(self, member: str) -> bool:
        """Whether a member has ended."""
        return self.processes[member].poll() is not None

    def cpu_seconds(self, only: str = "") -> float:
        """Return the CPU time that all their processes have had, or those with a word in them."""
        return sum(
            cpu_of(pid)
            for process in self.processes.values()
            for pid in family(process.pid)
            if only in command_line(pid)
        )

    def ask(self, member: str, path: str, body: object = None, method: str = "") -> Any:
        """Ask one thing, out of any measurement."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[member]}{path}",
            data,
            {"Content-Type": "application/json"},
            method=method or ("GET" if data is None else "POST"),
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)

    def end(self) -> None:
        """Leave nothing behind."""
        for member in self.processes:
            self.kill(member)


@contextlib.contextmanager
def running(trio: Trio) -> Iterator[Trio]:
    """Run all three for the time of the block."""
    try:
        for member in trio.members:
            trio.start(member)
        trio.wait_formed()
        yield trio
    finally:
        trio.end()


class Accord(Trio):
    """Three instances, each with one worker."""

    name = "accord"

    def __init__(self, folder: Path, lb: str = "") -> None:
        super().__init__(folder)
        self._lb = shlex.split(lb or checkout_lb())
        self.peers = {member: free_port() for member in self.members}
        self.doors = {member: free_port() for member in self.members}
        listed = ", ".join(f'{name} = "127.0.0.1:{port}"' for name, port in self.peers.items())
        for member in self.members:
            (folder / f"{member}.toml").write_text(f"""
[node]
name = "{member}"
data_dir = "{folder}/{member}"
workers = 1
grace = "0s"
drain = "1s"

[admin]
address = "127.0.0.1:{self.ports[member]}"

[access_log]
output = "off"

[group]
listen = "127.0.0.1:{self.peers[member]}"
members = {{ {listed} }}
secret = "the-secret-of-a-bench-0123456789"

[listener.web]
address = "127.0.0.1:{self.doors[member]}"

[route.here]
path = "/here"
respond = {{ status = 204 }}

[upstream.app]
backends = ["127.0.0.1:9"]

[upstream.big]
backends = ["127.0.0.1:9"]
""")

    def command(self, member: str) -> tuple[list[str], dict[str, str]]:
        """Start it from this checkout."""
        root = str(Path(__file__).resolve().parent.parent)
        command = [*self._lb, "run", "-c", str(self.folder / f"{member}.toml")]
        return command, {"PYTHONPATH": root}

    def leader(self) -> str | None:
        """Return whom anybody who runs names as the leader."""
        for member in self.members:
            if member in self.processes and not self.ended(member):
                with contextlib.suppress(OSError, ValueError):
                    said = self.ask(member, "/v1/status")["group"]
                    if said["role"] == "leader":
                        return member
        return None

    def formed(self) -> bool:
        """Whether each of them knows of three voters and of the same leader."""
        said = [self.ask(member, "/v1/group") for member in self.members]
        voters = [sum(each["role"] == "voter" for each in group["members"]) for group in said]
        return voters == [3, 3, 3] and len({group["leader"] or None for group in said}) == 1

    def write(self, number: int) -> bytes:
        """Set the weight of a backend that takes no traffic."""
        key = f"10.9.{number % KEYS // 250}.{number % KEYS % 250 + 1}:80"
        body = b'{"state":"disabled","weight":%d}' % (number // KEYS % 1000)
        return request("PUT", f"/v1/upstreams/app/backends/{key}", body)

    def revision(self, member: str) -> int:
        """Return the newest revision that an instance knows of."""
        return int(self.ask(member, "/v1/status")["group"]["revision"])

    def routed(self, member: str) -> int:
        """Return the newest revision that all workers of an instance route by."""
        url = f"http://127.0.0.1:{self.ports[member]}/v1/upstreams/app"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.headers["X-Revision"])


class Etcd(Trio):
    """Three of etcd's, asked through the JSON gateway."""

    name = "etcd"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._peers = {member: free_port() for member in self.members}
        self._ids: dict[str, str] = {}

    def command(self, member: str) -> tuple[list[str], dict[str, str]]:
        """Start it with its defaults, but for names and addresses."""
        listed = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in self._peers.items())
        here, peer = (f"http://127.0.0.1:{ports[member]}" for ports in (self.ports, self._peers))
        command = [
            program("etcd"),
            *("--name", member),
            *("--data-dir", str(self.folder / member)),
            *("--listen-client-urls", here, "--advertise-client-urls", here),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", listed),
            *("--log-level", "error"),
        ]
        return command, {}

    def leader(self) -> str | None:
        """Return who says that it is the leader."""
        for member in self.members:
            if member in self.processes and not self.ended(member):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    said = self.ask(member, "/v3/maintenance/status", {})
                    if said["leader"] == said["header"]["member_id"]:
                        return member
        return None

    def formed(self) -> bool:
        """Whether each of them knows of the same leader."""
        said = [self.ask(member, "/v3/maintenance/status", {}) for member in self.members]
        return len({each["leader"] for each in said}) == 1 and said[0]["leader"] != "0"

    def write(self, number: int) -> bytes:
        """Put a value of about the size that Accord's writes have."""
        key = base64.b64encode(b"app/10.9.0.%d:80" % (number % KEYS)).decode()
        value = base64.b64encode(b'{"state":"disabled","weight":%d}' % number).decode()
        return request("POST", "/v3/kv/put", json.dumps({"key": key, "value": value}).encode())


# --- /proc --------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(stat_of(int(name))[1])
                children.setdefault(parent, []).append(int(name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def stat_of(pid: int) -> list[str]:
    """Return /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has had; none if it is gone."""
    try:
        stat = stat_of(pid)
    except OSError:
        return 0.0
    return (int(stat[11]) + int(stat[12])) / TICKS_A_SECOND


def command_line(pid: int) -> str:
    """Return a process's words, or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
