"""The same octets through Accord, a real nginx and a real HAProxy, in front of raw backends."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from lb.model import ListenerTimeouts
from wire.kit import DEADLINE_S, LISTENER, Connection, Origin, Proxy, response, until

# As Debian 12 has them: what docs/wire.md says of them was seen with these.
VERSIONS: Final = {"nginx": "1.22", "HAProxy": "2.6"}
WAIT_S: Final = 0.5  # what all three wait for more octets
BACKEND_WAIT_S: Final = 2  # so that it is not the backend that is given up first


def program(name: str) -> str | None:
    """Return where a program is; Debian keeps servers in /usr/sbin."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


def version(name: str) -> str | None:
    """Return the first two numbers of a program's version, None where it is not installed."""
    path = program(name.lower())
    if path is None:
        return None
    asked = subprocess.run([path, "-v"], capture_output=True, text=True, check=True)
    found = re.search(r"(\d+\.\d+)\.", asked.stdout + asked.stderr)
    return found[1] if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """Run a server for the length of the block, from when it accepts."""
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def accepts() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        until(accepts, f"{command[0]} accepting")
        yield
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(DEADLINE_S)


@contextmanager
def nginx(folder: Path, backend: str, locations: str | None = None) -> Iterator[int]:
    """Run an nginx with its defaults but for HTTP/1.1 to the backend; give its port."""
    path = program("nginx")
    assert path is not None, "nginx is not installed"
    port = free_port()
    folder.mkdir(exist_ok=True)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n  ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(f"""{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 128; }}
http {{
  {folders}
  access_log off;
  client_header_timeout {WAIT_S * 1000:.0f}ms;
  client_body_timeout {WAIT_S * 1000:.0f}ms;
  keepalive_timeout {WAIT_S * 1000:.0f}ms;
  lingering_timeout {WAIT_S * 1000:.0f}ms;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $http_host;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://{backend}; }}
    {locations or ""}
  }}
}}
""")
    with running([path, "-c", str(folder / "nginx.conf"), "-p", str(folder)], port, folder):
        yield port


@contextmanager
def haproxy(folder: Path, backend: str) -> Iterator[int]:
    """Run an HAProxy with its defaults; give its port."""
    path = program("haproxy")
    assert path is not None, "haproxy is not installed"
    port = free_port()
    folder.mkdir(exist_ok=True)
    (folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
defaults
  mode http
  timeout connect 3s
  timeout client {WAIT_S * 1000:.0f}ms
  timeout server {BACKEND_WAIT_S}s
  timeout http-request {WAIT_S * 1000:.0f}ms
  timeout http-keep-alive {WAIT_S * 1000:.0f}ms
frontend web
  bind 127.0.0.1:{port}
  default_backend app
backend app
  server one {backend}
""")
    with running([path, "-db", "-f", str(folder / "haproxy.cfg")], port, folder):
        yield port


def read_request(connection: Connection) -> bytes | None:
    """Read a whole request, however odd its head; its body decoded. None if it ends before."""
    head = connection._until(b"\r\n\r\n")
    if head is None:
        return None
    lower = head.lower()
    if b"\r\ntransfer-encoding: chunked\r\n" in lower:
        body = b""
        while line := connection._until(b"\r\n"):
            size = int(line.split(b";")[0], 16)
            if size == 0:
                while (trailer := connection._until(b"\r\n")) != b"\r\n":
                    if trailer is None:
                        return None
                return head + body
            chunk = read_exactly(connection, size + 2)
            if chunk is None:
                return None
            body += chunk[:-2]
        return None
    length = re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", lower)
    body_read = read_exactly(connection, int(length[1])) if length else b""
    return None if body_read is None else head + body_read


def read_exactly(connection: Connection, size: int) -> bytes | None:
    """Read so many octets; None at the end of the connection."""
    while len(connection._buffer) < size:
        more = connection.sock.recv(65536)
        if not more:
            return None
        connection._buffer += more
    taken, connection._buffer = connection._buffer[:size], connection._buffer[size:]
    return taken


class Recorder(Origin):
    """A backend that answers every request, and keeps what came whole: see `take`."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    def _answer(self, connection: Connection, number: int) -> None:
        while (request := read_request(connection)) is not None:
            self.requests.append(request)
            connection.send(response(b"" if request.startswith(b"HEAD ") else b"ok"))


def take(origin: Origin) -> list[bytes]:
    """Return what came whole since the last time."""
    came, origin.requests[:] = list(origin.requests), []
    return came


Talk = Callable[[bytes], tuple[bytes, list[bytes]]]


@contextmanager
def all_three(folder: Path) -> Iterator[dict[str, Talk]]:
    """Run each that is here; give how to talk to it: answers, and what its backend was asked."""
    with ExitStack() as stack:
        talks = {}
        origin = stack.enter_context(Recorder())
        waits = ListenerTimeouts(header=WAIT_S, stall=WAIT_S, idle=WAIT_S)
        listener = type(LISTENER)("web", ("127.0.0.1:0",), upstream="app", timeouts=waits)
        proxy = stack.enter_context(Proxy([origin], listener=listener))
        talks["Accord"] = talking(proxy.port, origin)
        for name, rival in (("nginx", nginx), ("HAProxy", haproxy)):
            if version(name) == VERSIONS[name]:
                origin = stack.enter_context(Recorder())
                port = stack.enter_context(rival(folder / name, origin.address))
                talks[name] = talking(port, origin)
        yield talks


def talking(port: int, origin: Origin) -> Talk:
    """Return a function that sends octets on a new connection and waits for its end."""

    def talk(octets: bytes) -> tuple[bytes, list[bytes]]:
        take(origin)
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
            answer = b""
            with suppress(ConnectionResetError, BrokenPipeError):
                sock.sendall(octets)
            with suppress(ConnectionResetError):
                while piece := sock.recv(65536):
                    answer += piece
        return answer, take(origin)

    return talk
