"""Real programs around the daemon: nginx, Python's file server, curl, wrk, and `lb` itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from journeys.kit import PATIENCE, ROOT, Daemon, ask, free_ports, until

ASKED = (
    *("$request_method", "$server_protocol", "$http_upgrade", "$http_http2_settings"),
    *("$http_connection", "$http_x_forwarded_for", "$http_host"),
)
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def program(name: str) -> str:
    """Return where a program is; Debian keeps servers in /usr/sbin."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    assert found is not None, f"{name} is not installed: `make test` does that"
    return found


class Server:
    """A server of somebody else's in the foreground, which may be killed and started again."""

    def __init__(self, command: list[str], port: int, folder: Path) -> None:
        self.command = command
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(lambda: ask(self.port).status, f"{self.command[0]} answers")

    def kill(self) -> None:
        """End it as a crash does: what it was doing is cut."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)


def nginx(folder: Path, name: str) -> Server:
    """
    Make an nginx that serves files and says who it is; one process, so that a kill is a kill.

    `/name` and every unknown path: its name. `/files/`: what lies there, compressed for those
    who ask, taken by PUT. `/sink`: reads a body whole and says how long it was. `/asked`: what
    it was asked for that a proxy should have taken off.
    """
    port, sink = free_ports(2)
    for each in (folder, folder / "files"):
        each.mkdir(parents=True, exist_ok=True)
    paths = "\n  ".join(f"{kind}_temp_path {folder}/{kind};" for kind in TEMPORARY)
    config = folder / "nginx.conf"
    config.write_text(f"""daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 2048; }}
http {{
  {paths}
  access_log off;
  default_type text/plain;
  gzip on;
  gzip_types text/plain;
  gzip_proxied any;
  client_max_body_size 0;
  keepalive_requests 1000000;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{name}"; }}
    location /files/ {{ root {folder}; dav_methods PUT; }}
    location /sink {{ proxy_pass http://127.0.0.1:{sink}; }}
    location /asked {{
      return 200 "{"|".join(ASKED)}";
    }}
  }}
  server {{
    listen 127.0.0.1:{sink};
    location / {{ return 200 "{name} $http_content_length $http_x_forwarded_proto"; }}
  }}
}}
""")
    return Server([program("nginx"), "-c", str(config), "-p", str(folder)], port, folder)


def file_server(folder: Path) -> Server:
    """Make a `python -m http.server` of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    words = ("-m", "http.server", str(port), "--bind", "127.0.0.1")
    return Server([sys.executable, *words], port, folder)


@contextlib.contextmanager
def serving(*servers: Server) -> Iterator[None]:
    """Run servers for the length of the block."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield


@dataclass(frozen=True)
class Reply:
    """The last answer that curl got, and how it got it."""

    status: int
    version: str
    headers: dict[str, str]
    body: bytes
    connects: int
    said: str

    @property
    def text(self) -> str:
        return self.body.decode()


def curl(folder: Path, *words: str, stdin: bytes | None = None) -> Reply:
    """Run curl with these words; the answer's head and body are kept apart."""
    head, body = folder / "curl.head", folder / "curl.body"
    for path in (head, body):
        path.write_bytes(b"")
    fixed = ("-sS", "-m", "20", "-D", str(head), "-o", str(body))
    figures = ("-w", "%{http_code} %{http_version} %{num_connects}\n")
    done = subprocess.run(
        [program("curl"), *fixed, *figures, *words],
        input=b"" if stdin is None else stdin,
        capture_output=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    transfers = [line.split() for line in done.stdout.decode().splitlines()]
    status, version, _ = transfers[-1]
    if "--head" in words:
        head, body = body, head  # There curl takes the head for the output.
        body.write_bytes(b"")
    last = head.read_bytes().decode("latin-1").strip().split("\r\n\r\n")[-1]
    fields = (line.split(": ", 1) for line in last.split("\r\n")[1:])
    return Reply(
        int(status),
        version,
        {name.lower(): value for name, value in fields},
        body.read_bytes(),
        sum(int(each[2]) for each in transfers),
        done.stderr.decode(),
    )


def refuses(port: int) -> bool:
    """Whether nobody listens on a port any more."""
    try:
        ask(port, timeout=2.0)
    except ConnectionRefusedError:
        return True
    return False


class Wrk:
    """wrk, running; `result` waits for its end."""

    def __init__(
        self,
        port: int,
        path: str = "/",
        *,
        seconds: int = 1,
        connections: int = 16,
        script: Path | None = None,
    ):
        how = ["-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s"]
        if script is not None:
            how += ["-s", str(script)]
        self._seconds = seconds
        self._process = subprocess.Popen(
            [program("wrk"), *how, f"http://127.0.0.1:{port}{path}"],
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def result(self) -> tuple[int, list[str]]:
        """Return how many answers it got, and its lines about those that were not good."""
        said, _ = self._process.communicate(timeout=self._seconds + PATIENCE)
        count = re.search(r"(\d+) requests in", said)
        assert self._process.returncode == 0, said
        assert count is not None, said
        bad = ("Non-2xx", "Socket errors")
        return int(count[1]), [line for line in said.splitlines() if line.strip().startswith(bad)]

    def end(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def pressed(
    port: int, *, seconds: int, connections: int = 16, script: Path | None = None
) -> Iterator[Wrk]:
    """Press on a port with wrk for so many seconds, or until the block ends by an error."""
    wrk = Wrk(port, seconds=seconds, connections=connections, script=script)
    try:
        yield wrk
    finally:
        wrk.end()


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def lb(daemon: Daemon, *words: str, config: bool = True) -> Said:
    """Run `lb` with these words for a daemon: found by its config file, or by $LB_ADMIN."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    if config:
        environ["LB_CONFIG"] = str(daemon.path)
    else:
        environ["LB_ADMIN"] = f"127.0.0.1:{daemon.admin_port}"
    done = subprocess.run(
        [sys.executable, "-m", "lb.cli", *words],
        cwd=daemon.folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stdout, done.stderr)
