"""
`lb demo`: three toy backends, an instance in front of them, and a trickle of load.

Three kinds of process. The one that a person started becomes the instance's supervisor, like
`lb run`. Its companion (`python -m lb.demo companion`) starts the toys, starts a killed one
again, sends the trickle and says what to try. A toy (`python -m lb.demo toy`) answers its
letter. Each ends when its standard input does, so nothing is left behind however the others
end; Ctrl-C is for the supervisor alone.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httptools

from lb.errors import StartError

LETTERS = "abc"
REST_SECONDS = 8.0  # A killed toy stays down so long: enough to watch what happens.
BIND_SECONDS_MAX = 5.0
LOOK_SECONDS = 0.05  # Between two looks whether the proxy serves yet.
STOP_SECONDS_MAX = 3.0
REQUESTS_A_SECOND = 4.0
ANSWER_SECONDS_MAX = 5.0
PORTS_TRIED_MAX = 100
SENT_BYTES_MAX = 64 * 1024 * 1024  # For /bytes/N: what a toy sends at most.

CONFIG = """\
[node]
name = "demo"
data_dir = "{folder}/state"
workers = 1  # Each worker takes turns by itself: with two, a b c would come mixed.
grace = "0s"
drain = "1s"

[admin]
address = "127.0.0.1:{admin}"

[log]
level = "warning"

[access_log]
output = "{folder}/access.log"

[listener.web]
address = "127.0.0.1:{proxy}"

[upstream.demo]
backends = [
{backends}
]
health = {{ path = "/healthz", interval = "1s", timeout = "500ms", rise = 2, fall = 2 }}
"""

ADVICE = """
  Accord is running: three toy backends, {letters}, behind one address.

    proxy      {proxy}
    dashboard  {dashboard}
    log        {folder}/access.log

  Try, in another terminal:

    for i in 1 2 3 4 5 6; do curl -s {proxy}; done
    {lb} backend list demo{admin}
    {lb} backend drain demo b{admin}
    {lb} backend enable demo b{admin}
    {lb} explain GET {proxy}{admin}
    kill {victim}   (backend c ends; it is back after {rest:.0f} s)

  Ctrl-C stops everything.
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the demo is: the proxy, the admin API, and one port for each toy."""

    proxy: int
    admin: int
    toys: tuple[int, ...]


def run(proxy: int, admin: int, first_toy: int, serve: Callable[[str], int]) -> int:
    """Run the demo until it is stopped; `serve` is the supervisor's `run`."""
    toys = free_ports(first_toy, len(LETTERS), taken={proxy, admin})
    ports = Ports(proxy, admin, toys)
    folder = tempfile.mkdtemp(prefix="lb-demo-")
    companion = None
    try:
        path = Path(folder, "lb.toml")
        path.write_text(config_text(folder, ports), encoding="utf-8")
        companion = _start("companion", folder, str(proxy), str(admin), *map(str, toys))
        return serve(str(path))
    except KeyboardInterrupt:
        return 0  # Before the supervisor had taken over.
    finally:
        if companion is not None:
            _end(companion)
        shutil.rmtree(folder, ignore_errors=True)


def config_text(folder: str, ports: Ports) -> str:
    """Return the demo's config file."""
    backends = ",\n".join(
        f'  {{ name = "{letter}", address = "127.0.0.1:{port}" }}'
        for letter, port in zip(LETTERS, ports.toys, strict=True)
    )
    return CONFIG.format(
        folder=folder,
        admin=ports.admin,
        proxy=ports.proxy,
        backends=backends,
    )


def free_ports(first: int, count: int, taken: set[int]) -> tuple[int, ...]:
    """Return ports from `first` on that nobody uses. Below those that the kernel gives out."""
    found: list[int] = []
    for port in range(first, min(first + PORTS_TRIED_MAX, 65536)):
        if port not in taken and _is_free(port):
            found.append(port)
        if len(found) == count:
            return tuple(found)
    raise StartError(
        f"there are no {count} free ports from {first} on", "choose others with --backend-port"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# Processes, each ended by the end of its standard input


def _start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lb.demo", *words],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": package_path()},
    )


def package_path() -> str:
    """Return the PYTHONPATH of our processes: `-m` must find this package, and no other."""
    # It may be found by the working folder alone.
    root = str(Path(__file__).parent.parent)
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _until_input_ends() -> None:
    """Return when whoever started us is gone, or wants us gone."""
    reader = asyncio.StreamReader(limit=1024)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while await reader.read(1024):
        pass
    transport.close()


# The companion


class Companion:
    """Keeps the toys alive, says what to try once they are served, and sends the trickle."""

    def __init__(self, folder: str, ports: Ports) -> None:
        self._folder = folder
        self._ports = ports
        self._toys: dict[str, Process] = {}

    async def main(self) -> None:
        """Run until our input ends, then end the toys."""
        ports = dict(zip(LETTERS, self._ports.toys, strict=True))
        try:
            for letter, port in ports.items():
                self._toys[letter] = await start_toy(letter, port)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep(*toy)) for toy in ports.items()]
                tasks.append(group.create_task(self._trickle()))
                await _until_input_ends()
                for task in tasks:
                    task.cancel()
        finally:
            await asyncio.gather(*map(end_toy, self._toys.values()))

    async def _trickle(self) -> None:
        greeted = False
        while True:
            answer = await answer_of(self._ports.proxy)
            # Somebody else's answer means that the port is taken: that is the supervisor's to say.
            if not greeted and answer is not None and answer.decode().strip() in LETTERS:
                print(self._advice(), file=sys.stderr, flush=True)
                greeted = True
            await asyncio.sleep(1 / REQUESTS_A_SECOND if greeted else LOOK_SECONDS)

    async def _keep(self, letter: str, port: int) -> None:
        while True:
            await self._toys[letter].wait()
            say(f"backend {letter} is gone; it comes back in {REST_SECONDS:.0f} s")
            await asyncio.sleep(REST_SECONDS)
            toy = self._toys[letter] = await start_toy(letter, port)
            say(f"backend {letter} is back; kill {toy.pid} ends it again")

    def _advice(self) -> str:
        ports = self._ports
        return ADVICE.format(
            lb=lb_command(),
            letters=", ".join(LETTERS),
            proxy=f"http://127.0.0.1:{ports.proxy}/",
            dashboard=f"http://127.0.0.1:{ports.admin}/",
            admin="" if ports.admin == 9900 else f" --admin 127.0.0.1:{ports.admin}",
            folder=self._folder,
            victim=self._toys[LETTERS[-1]].pid,
            rest=REST_SECONDS,
        )


def lb_command() -> str:
    """Return the word that runs this very `lb` from the folder that the demo was started in."""
    script = Path(sys.executable).with_name("lb")
    found = shutil.which("lb")
    if found is not None and script.exists() and os.path.samefile(found, script):
        return "lb"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m lb.cli"
    near = os.path.relpath(script)
    return shlex.quote(str(script) if near.startswith("..") else near)


async def start_toy(letter: str, port: int) -> Process:
    """Start one toy; it ends when we do."""
    words = (sys.executable, "-m", "lb.demo", "toy", letter, str(port))
    env = {**os.environ, "PYTHONPATH": package_path()}
    return await asyncio.create_subprocess_exec(*words, stdin=subprocess.PIPE, env=env)


async def end_toy(toy: Process) -> None:
    """End one toy."""
    assert toy.stdin is not None
    toy.stdin.close()
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX / 2):
            await toy.wait()
    except TimeoutError:
        toy.kill()
        await toy.wait()


def say(line: str) -> None:
    """Tell the person what happens."""
    print(f"demo: {line}", file=sys.stderr, flush=True)


async def answer_of(port: int, path: str = "/") -> bytes | None:
    """Return the body of a good answer to one GET, or None where there is none."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET %b HTTP/1.1\r\n" % path.encode())
                writer.write(b"Host: localhost\r\nConnection: close\r\n\r\n")
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return body if b" 200 " in head.partition(b"\r\n")[0] else None


# A toy


class Toy(asyncio.Protocol):
    """One client's connection to a toy: its letter for every path, /healthz and /bytes/N beside."""

    def __init__(self, letter: str) -> None:
        self._letter = letter.encode()
        self._parser = httptools.HttpRequestParser(self)
        self._target = b"/"
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Take the target; called by the parser, as is `on_message_complete`."""
        self._target = url

    def on_message_complete(self) -> None:
        assert self._transport is not None
        keep = self._parser.should_keep_alive()
        body = body_for(self._target, self._letter)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Backend: %b\r\n"
            b"Content-Length: %d\r\n%b\r\n"
            % (self._letter, len(body), b"" if keep else b"Connection: close\r\n")
        )
        if self._parser.get_method() != b"HEAD":
            self._transport.write(body)
        if not keep:
            self._transport.close()


def body_for(target: bytes, letter: bytes) -> bytes:
    """Return what a toy answers."""
    path = target.partition(b"?")[0]
    if path == b"/healthz":
        return b"ok\n"
    count = path.removeprefix(b"/bytes/")
    if count != path and count.isdigit():
        return letter * min(int(count[:9]), SENT_BYTES_MAX)
    return letter + b"\n"


async def serve_toy(letter: str, port: int) -> None:
    """Serve one toy until our input ends."""
    server = await _bind_toy(letter, port)
    try:
        await _until_input_ends()
    finally:
        server.close()


async def _bind_toy(letter: str, port: int) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BIND_SECONDS_MAX
    while True:
        try:
            return await loop.create_server(lambda: Toy(letter), "127.0.0.1", port)
        except OSError as error:
            if loop.time() > deadline:
                raise StartError(f"backend {letter} cannot have port {port}: {error}") from None
        await asyncio.sleep(0.1)  # A moment ago somebody's connection from this port ended.


def _main(words: Sequence[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group.
    match words:
        case ["toy", letter, port]:
            asyncio.run(serve_toy(letter, int(port)))
        case ["companion", folder, proxy, admin, *toys]:
            ports = Ports(int(proxy), int(admin), tuple(map(int, toys)))
            asyncio.run(Companion(folder, ports).main())
        case _:
            print("python -m lb.demo is started by lb demo", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
