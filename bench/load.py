"""`make load`: start the demo, send locust at it, leave a report, stop the demo.

The report is out/load.html, the figures out/load_stats.csv. Shapes and limits: locustfile.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 40.0
SLACK_SECONDS = 60.0


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on: a demo that runs already is left alone."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def wait_ready(demo: subprocess.Popen[bytes], admin: int) -> None:
    """Wait until the demo is ready, or say why it is not."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if demo.poll() is not None:
            raise SystemExit(f"load: the demo ended at its start; see {OUT / 'load-demo.log'}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"load: the demo is not ready after {START_SECONDS_MAX:g} s")


def locust(port: int) -> int:
    """Run locust to its end; return its status, which is 1 over a limit."""
    command = [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "bench" / "locustfile.py")),
        *("--headless", "--only-summary", "--host", f"http://127.0.0.1:{port}"),
        *("--html", str(OUT / "load.html"), "--csv", str(OUT / "load")),
    ]
    seconds = float(os.environ.get("LOAD_SECONDS", "60"))
    return subprocess.run(command, check=False, timeout=seconds + SLACK_SECONDS).returncode


def main() -> int:
    """Demo up, locust through, demo down."""
    OUT.mkdir(exist_ok=True)
    port, admin, toys = map(str, free_ports(3))
    words = ("demo", "--port", port, "--admin-port", admin, "--backend-port", toys)
    with (OUT / "load-demo.log").open("wb") as log:
        demo = subprocess.Popen(
            [sys.executable, "-c", "from lb.cli import main; main()", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_ready(demo, int(admin))
        status = locust(int(port))
    finally:
        demo.send_signal(signal.SIGINT)
        try:
            demo.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            demo.kill()
            demo.wait()
    print(f"load: the report is {OUT / 'load.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
