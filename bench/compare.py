"""Accord beside nginx, HAProxy and Caddy: what one request costs each of them.

Every proxy runs on core 0 with one worker (or thread); the backends (one nginx) and the client
(wrk) share core 1. Turns are short and go round: nginx, HAProxy, Caddy, Accord, nginx, ... so
that a busy neighbour spoils one round and not one proxy. What counts is the CPU time of all of
a proxy's processes, from /proc, divided by the requests answered: that is steadier than requests
a second, and it is what a machine's worth of proxy costs. README.md beside this file says how to
read the table.

    python bench/compare.py                                # everything, about six minutes
    python bench/compare.py --only nginx,accord --size 1k --rounds 3 --seconds 5
    python bench/compare.py --vary                         # no two requests alike
    python bench/compare.py --tls                          # handshakes, and 64 KiB, in TLS 1.3

Everything stays on the loopback, on free ports, and what was started is stopped by its pid.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from programs import (
    BenchError,
    Proxy,
    accord,
    backend_config,
    caddy,
    certificate,
    checkout_lb,
    free_port,
    haproxy,
    nginx,
    program,
)

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("nginx", "haproxy", "caddy", "accord")
SIZES = {"1k": 1024, "64k": 65536}
HANDSHAKES = ("full", "resumed")  # with --tls, and beside the sizes in the table
TLS_NAMES = ("nginx", "haproxy", "accord")
BASE = {
    "full": "nginx",
    "resumed": "nginx",
    "1k": "nginx",
    "64k": "haproxy",
}  # whom a ratio of that size is first read against

PROXY_CORE = 0
LOAD_CORE = 1
CONNECTIONS = 64
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0
WARM_UP_SECONDS = 1
WARM_UP_HANDSHAKES = 8  # the first of each of the client's threads
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turn:
    """What wrk and /proc said of one proxy, one size, one round."""

    requests: int
    errors: int
    seconds: float
    p99_ms: float
    cpu_seconds: float

    @property
    def cost_us(self) -> float:
        """CPU microseconds a request, of all the proxy's processes."""
        return self.cpu_seconds * 1e6 / max(1, self.requests)


# --- Processes --------------------------------------------------------------------------------


@contextlib.contextmanager
def running(proxy: Proxy, core: int, folder: Path) -> Iterator[Proxy]:
    """Run a program on one core, ready to serve; stop it by its pid at the end."""
    errors = folder / f"{proxy.name}.stderr"
    # Appending, so that the file can be emptied between turns under its writer.
    with errors.open("ab") as stderr, proxy.log.open("ab") as stdout:
        proxy.process = subprocess.Popen(
            ["taskset", "-c", str(core), *proxy.command],
            cwd=ROOT,
            env={**os.environ, **proxy.environment},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        wait_ready(proxy, errors)
        yield proxy
    finally:
        stop(proxy.process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and end it if it has not heard after a while."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            for pid in family(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def wait_ready(proxy: Proxy, errors: Path) -> None:
    """Wait for the right answer, which also shows that the path to the backends works."""
    assert proxy.process is not None
    deadline = time.monotonic() + START_SECONDS_MAX
    reason = "no try yet"
    while time.monotonic() < deadline:
        if proxy.process.poll() is not None:
            raise BenchError(f"{proxy.name} ended at its start:\n{tail(errors)}")
        try:
            if proxy.ready_port is not None:
                fetch(proxy.ready_port, "/readyz")
            for size, length in SIZES.items():
                body = fetch(proxy.port, f"/{size}", proxy.scheme)
                if len(body) != length:
                    raise BenchError(f"{proxy.name}: {len(body)} bytes where {length} were due")
            return
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
            time.sleep(0.05)
    late = f"{proxy.name} is not ready after {START_SECONDS_MAX:g} s: {reason}"
    raise BenchError(f"{late}\n{tail(errors)}".rstrip())


def fetch(port: int, path: str, scheme: str = "http") -> bytes:
    """GET, and nothing but 200 will do."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"{path} answered {response.status}")
        return body
    finally:
        connection.close()


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(stat_fields(int(entry.name))[1]), []).append(
                    int(entry.name)
                )
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left.extend(children.get(pid, []))
    return found


def stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second, a name, may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(root: int) -> float:
    """User and system time of a program so far: all its processes, and those that have ended."""
    ticks = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, stat_fields(pid)[11:15]))  # utime stime cutime cstime
    return ticks / TICKS_A_SECOND


# --- The load ---------------------------------------------------------------------------------


def lua(port: int, path: str, vary: bool) -> str:
    """
    Return a wrk script: a browser's 12 headers, and a line of JSON at the end.

    With `vary`, the query, the referer, the cookie, the agent and the cache validator differ on
    every request, so that nothing which remembers a head it has seen is of any use.
    """
    headers = [
        f"Host: 127.0.0.1:{port}",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0@",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
        "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
        "Accept-Encoding: gzip, deflate, br",
        "Referer: https://shop.example.com/catalogue/chairs?page=3@",
        "Cookie: session=6f1ed002ab5595859014ebf0951522d9@; theme=dark; seen=1718000000",
        "Upgrade-Insecure-Requests: 1",
        "Sec-Fetch-Dest: document",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-Site: same-origin",
        'If-None-Match: "33a64df551425fcc55e4d42a148795d9@"',
    ]
    text = "\r\n".join([f"GET {path}@ HTTP/1.1", *headers, "", ""])
    pieces = text.split("@") if vary else [text.replace("@", "")]
    if vary:
        pieces[0] += "?n="
    quoted = ", ".join(lua_string(piece) for piece in pieces)
    return f"""
local pieces = {{ {quoted} }}
local count = 1000000
function request()
  count = count + 1
  return table.concat(pieces, tostring(count))
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {{"requests":%d,"errors":%d,"us":%d,"p99_us":%d}}\\n',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout,
    summary.duration, latency:percentile(99)))
end
"""


def lua_string(text: str) -> str:
    """Quote text for Lua; JSON's escapes for what is in a head are Lua's too."""
    return json.dumps(text)


def load(proxy: Proxy, size: str, seconds: int, vary: bool, folder: Path) -> Turn:
    """One turn: wrk against one proxy, and what that cost the proxy."""
    assert proxy.process is not None
    if size in HANDSHAKES:
        return shake(proxy, size, seconds)
    script = folder / f"{proxy.name}.{size}.lua"
    script.write_text(lua(proxy.port, f"/{size}", vary))
    url = f"{proxy.scheme}://127.0.0.1:{proxy.port}/{size}"
    wrk = [program("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    before = cpu_seconds(proxy.process.pid)
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *wrk],
        capture_output=True,
        check=True,
        timeout=seconds + 30,
    )
    spent = cpu_seconds(proxy.process.pid) - before
    if proxy.process.poll() is not None:
        raise BenchError(f"{proxy.name} ended under load")
    line = next(line for line in done.stdout.splitlines() if line.startswith(b"RESULT "))
    said = json.loads(line.removeprefix(b"RESULT "))
    os.truncate(proxy.log, 0)
    return Turn(said["requests"], said["errors"], said["us"] / 1e6, said["p99_us"] / 1e3, spent)


def shake(proxy: Proxy, kind: str, seconds: int) -> Turn:
    """One turn: TLS connections one after the other, each with one request."""
    assert proxy.process is not None
    script = Path(__file__).with_name("handshakes.py")
    command = [sys.executable, str(script), str(proxy.port), kind, str(seconds)]
    before = cpu_seconds(proxy.process.pid)
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *command],
        capture_output=True,
        check=True,
        timeout=seconds + 30,
    )
    spent = cpu_seconds(proxy.process.pid) - before
    said = json.loads(done.stdout)
    wrong = said["resumed"] if kind == "full" else said["requests"] - said["resumed"]
    if wrong > WARM_UP_HANDSHAKES:
        raise BenchError(f"{proxy.name}: {wrong} of {said['requests']} handshakes were not {kind}")
    os.truncate(proxy.log, 0)
    return Turn(said["requests"], said["errors"], said["us"] / 1e6, 0.0, spent)


# --- The report -------------------------------------------------------------------------------

Results = dict[tuple[str, str], list[Turn]]


def report(results: Results, arguments: argparse.Namespace) -> str:
    """Return the table, in Markdown, with how it was made above it."""
    kind = "no two requests alike" if arguments.vary else "12 browser headers"
    if arguments.tls:
        kind += "; TLS 1.3, P-256"
    lines = [
        f"{platform.machine()}, {cpu_model()}, Linux {platform.release()}; {versions(arguments)}.",
        f"Median of {arguments.rounds} rounds in turn, {arguments.seconds} s each; "
        f"wrk, {CONNECTIONS} connections, {kind}; access logs and keep-alive on for all.",
        "",
        "| body | proxy | CPU µs a request | x nginx | x HAProxy | requests/s | p99 ms "
        "| core 0 busy |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (size, name), turns in results.items():
        shakes = size in HANDSHAKES
        cells = [
            size,
            name,
            f"{statistics.median(turn.cost_us for turn in turns):.1f}",
            ratio(results, size, name, "nginx"),
            ratio(results, size, name, "haproxy"),
            f"{statistics.median(turn.requests / turn.seconds for turn in turns):,.0f}",
            "-" if shakes else f"{statistics.median(turn.p99_ms for turn in turns):.1f}",
            f"{statistics.median(turn.cpu_seconds / turn.seconds for turn in turns):.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(results: Results, size: str, name: str, base: str) -> str:
    """Median over the rounds of what one cost beside the other in the same round."""
    if (size, base) not in results:
        return "-"
    pairs = zip(results[size, name], results[size, base], strict=True)
    ratios = sorted(mine.cost_us / theirs.cost_us for mine, theirs in pairs)
    middle = f"{statistics.median(ratios):.2f}"
    if name == base:
        return middle
    if BASE[size] == base:
        middle = f"**{middle}**"
    return f"{middle} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def cpu_model() -> str:
    """Return what the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown processor"


def versions(arguments: argparse.Namespace) -> str:
    """Return the programs' versions, as they give them."""
    commands = {
        "nginx": (["-v"], "nginx "),
        "haproxy": (["-v"], "HAProxy "),
        "caddy": (["version"], "Caddy "),
    }
    said = []
    for name in arguments.only:
        if name == "accord":
            said.append(f"Accord on Python {platform.python_version()}")
            continue
        flags, label = commands[name]
        done = subprocess.run([program(name), *flags], capture_output=True, text=True, check=False)
        words = (done.stdout + done.stderr).replace("/", " ").split()
        number = next((word for word in words if word[0].isdigit() or word[:2] == "v2"), "?")
        said.append(label + number)
    return ", ".join(said)


# --- Running it -------------------------------------------------------------------------------


def comma_list(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Return an argparse type: words out of a few, separated by commas, in our order."""

    def parse(text: str) -> list[str]:
        words = set(text.split(","))
        unknown = words - set(allowed)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not in {allowed}")
        return [name for name in allowed if name in words]

    return parse


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=comma_list(NAMES), default=list(NAMES), metavar="A,B")
    parser.add_argument("--size", type=comma_list(tuple(SIZES)), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5, help="of one turn")
    parser.add_argument("--vary", action="store_true", help="other header values each request")
    parser.add_argument("--tls", action="store_true", help="handshakes, and 64 KiB, over TLS")
    parser.add_argument("--lb", default=checkout_lb(), help="the command that is `lb`")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--keep", type=Path, help="use this folder and leave it: configs, logs")
    arguments = parser.parse_args()
    if arguments.tls:
        arguments.only = [name for name in arguments.only if name in TLS_NAMES]
        arguments.size = [*HANDSHAKES, "64k"]
    return arguments


def main() -> int:
    """Start the programs, go round, print the table."""
    arguments = parse_arguments()
    if not os.sched_getaffinity(0) >= {PROXY_CORE, LOAD_CORE}:
        print("compare: cores 0 and 1 are needed, one to measure on and one for the load")
        return 2
    try:
        with contextlib.ExitStack() as stack:
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                folder = arguments.keep.resolve()
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
            results = run(arguments, folder, stack)
    except BenchError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    table = report(results, arguments)
    print(f"\n{table}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table + "\n")
    return 0


def run(arguments: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> Results:
    """Start everything, warm it up, and go round."""
    backends = [free_port(), free_port()]
    config = folder / "backend.conf"
    config.write_text(backend_config(folder, backends))
    command = [program("nginx"), "-c", str(config), "-p", str(folder)]
    backend = Proxy("backend", command, backends[0], folder / "backend.log")
    stack.enter_context(running(backend, LOAD_CORE, folder))

    pem = certificate(folder) if arguments.tls else None
    makers: dict[str, Callable[[], Proxy]] = {
        "nginx": lambda: nginx(folder, backends, pem),
        "haproxy": lambda: haproxy(folder, backends, pem),
        "caddy": lambda: caddy(folder, backends),
        "accord": lambda: accord(folder, backends, arguments.lb, pem),
    }
    made = [makers[name]() for name in arguments.only]
    for proxy in made:
        proxy.scheme = "https" if arguments.tls else "http"
    proxies = [stack.enter_context(running(proxy, PROXY_CORE, folder)) for proxy in made]
    for proxy in proxies:
        for size in arguments.size:
            load(proxy, size, WARM_UP_SECONDS, arguments.vary, folder)

    results: Results = {(size, proxy.name): [] for size in arguments.size for proxy in proxies}
    for number in range(arguments.rounds):
        for size in arguments.size:
            for proxy in proxies:
                turn = load(proxy, size, arguments.seconds, arguments.vary, folder)
                if turn.errors:
                    raise BenchError(f"{proxy.name} {size}: {turn.errors} requests failed")
                results[size, proxy.name].append(turn)
                print(
                    f"round {number + 1} {size:>3} {proxy.name:8} {turn.cost_us:7.1f} us "
                    f"{turn.requests / turn.seconds:9,.0f}/s p99 {turn.p99_ms:6.1f} ms",
                    flush=True,
                )
    return results


if __name__ == "__main__":
    sys.exit(main())
