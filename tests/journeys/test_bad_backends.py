"""Backends that stop, refuse, flap, vanish or are too full: what a client notices of it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, ROOT, Backend, Daemon, free_ports, loaded, until

REFUSING = "127.0.0.1:1"


class Process:
    """A backend in a process of its own, so that it can be stopped and killed."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.address = name, f"127.0.0.1:{port}"
        program = (
            "import sys, threading\n"
            "from journeys.kit import Backend\n"
            "Backend(sys.argv[1], '127.0.0.1', int(sys.argv[2]))\n"
            "print('ready', flush=True)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, name, str(port)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    made = [Process(name, port) for name, port in zip("abc", free_ports(3), strict=True)]
    yield made
    for each in made:
        each.close()


def config_for(processes: list[Process], more: str) -> str:
    addresses = ", ".join(f'"{each.address}"' for each in processes)
    return (
        '[listener.web]\naddress = "127.0.0.1:{port}"\n'
        f"[upstream.app]\nbackends = [{addresses}]\n{more}\n"
    )


def is_out(one: Daemon, address: str) -> bool:
    return bool(one.admin(f"/v1/upstreams/app/backends/{address}").json()["ejected"])


def test_one_that_stops_is_taken_out_and_comes_back(processes: list[Process], daemon: Make) -> None:
    """Faults 1 and 2: by its check, with a bounded number of slow requests."""
    check = (
        'health = { path = "/healthz", interval = "200ms", timeout = "300ms", fall = 2 }\n'
        'timeouts = { response = "500ms" }\nslow_start = "1s"\n'
    )
    one = daemon(config_for(processes, check)).start()
    stopped = processes[0]
    with loaded(one.port) as load:
        stopped.send(signal.SIGSTOP)
        until(lambda: f"app/{stopped.address} is unhealthy" in one.log(), "the verdict")
        failed = len(load.failures)
        load.more(200)
        assert len(load.failures) <= failed + 4, "what was on its way"
        assert all(each.startswith("504") for each in load.failures)
        stopped.send(signal.SIGCONT)
        until(lambda: f"app/{stopped.address} is healthy" in one.log(), "the other verdict")
        before = load.answers["a"]
        until(lambda: load.answers["a"] > before, "it is used again")


def test_one_that_is_killed_costs_nobody_anything(processes: list[Process], daemon: Make) -> None:
    """Faults 3 and 4: connections break and are refused; every GET is answered elsewhere."""
    one = daemon(config_for(processes, 'outlier = { errors = 3, eject = "1h" }')).start()
    with loaded(one.port) as load:
        processes[0].send(signal.SIGKILL)
        until(lambda: is_out(one, processes[0].address), "the ejection")
        load.more(100)
    assert load.failures == []
    assert {one.ask(method="POST").status for _ in range(10)} == {200}


@pytest.mark.parametrize("panic", ["0%", "30%"])
def test_all_refuse(daemon: Make, panic: str) -> None:
    """Fault 10: an answer at once, with Retry-After; and none once one is back."""
    (port,) = free_ports(1)
    config = (
        '[listener.web]\naddress = "127.0.0.1:{port}"\n[upstream.app]\n'
        f'backends = ["127.0.0.1:{port}", "{REFUSING}"]\npanic = "{panic}"\n'
        'health = { path = "/healthz", interval = "200ms", rise = 1, fall = 1 }\n'
    )
    one = daemon(config).start()
    until(lambda: one.log().count("is unhealthy") == 2, "both verdicts")
    expected = 503 if panic == "0%" else 502
    until(lambda: one.ask().status == expected, "workers know")
    took = []
    for _ in range(5):
        began = time.monotonic()
        answer = one.ask()
        took.append(time.monotonic() - began)
        assert answer.status == expected
        assert answer.headers["Retry-After"]
    assert min(took) < 0.1
    upstream = one.admin("/v1/upstreams/app").json()
    assert upstream["panic"] is (panic != "0%")
    back = Backend("back", port=port)
    try:
        until(lambda: one.ask().status == 200, "it is found")
    finally:
        back.close()


def test_one_that_flaps_is_damped(backends: list[Backend], daemon: Make) -> None:
    """Fault 11: each time it is out for longer, however well it looks in between."""
    bad = backends[0]
    one = daemon(config_of(backends, 'outlier = { errors = 2, eject = "200ms" }')).start()
    out: list[str] = []
    for _ in range(4):
        bad.status = "503 Service Unavailable"
        until(lambda: one.ask().status and is_out(one, bad.address), "out")
        bad.status = "200 OK"
        until(lambda: one.ask().status and not is_out(one, bad.address), "back")
        out = [line for line in one.log().splitlines() if "is ejected for" in line]
    assert "the first time" in out[0]
    assert int(out[-1].partition(" times of late")[0].rpartition("(")[2]) >= 4


def test_one_that_is_full_has_a_queue_with_an_end(backends: list[Backend], daemon: Make) -> None:
    """Fault 14: what waits too long is told so, and other upstreams do not notice."""
    full, other = backends
    config = (
        '[listener.web]\naddress = "127.0.0.1:{port}"\nupstream = "full"\n'
        '[route.other]\npath = "/other"\nupstream = "other"\n'
        f'[upstream.full]\nbackends = ["{full.address}"]\n'
        'limits = { per_backend = 1, queue = 2, queue_timeout = "300ms" }\n'
        f'[upstream.other]\nbackends = ["{other.address}"]\n'
    )
    one = daemon(config, workers=1).start()
    with ThreadPoolExecutor(8) as pool:
        holding = pool.submit(one.ask, "/hold")
        assert full.holding.wait(PATIENCE)
        more = [pool.submit(one.ask, "/") for _ in range(5)]
        assert {one.ask("/other").text for _ in range(10)} == {"b"}
        answers = [each.result(PATIENCE) for each in more]
        assert {each.status for each in answers} == {503}
        assert all(each.headers["Retry-After"] for each in answers)
        full.hold.set()
        assert holding.result(PATIENCE).status == 200
    assert not is_out_of(one, "full", full.address), "our own limits are not its fault"


def is_out_of(one: Daemon, upstream: str, address: str) -> bool:
    return bool(one.admin(f"/v1/upstreams/{upstream}/backends/{address}").json()["ejected"])


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_one_that_closes_after_a_few_answers_loses_nothing(daemon: Make, answers: int) -> None:
    """Fault 13."""
    backend = Backend("a")
    served = 0
    answer = backend.answer

    def some(handler: object) -> bool:
        nonlocal served
        served += 1
        return answer(handler) and served % answers != 0  # type: ignore[arg-type]

    backend.answer = some  # type: ignore[method-assign]
    try:
        one = daemon(config_of([backend])).start()
        with loaded(one.port, 16) as load:
            load.more(500)
        assert load.failures == []
    finally:
        backend.close()


def test_an_answer_in_pieces_is_never_whole(daemon: Make) -> None:
    """Fault 8: a reply that is cut ends without its last octets, and counts."""
    backend = Backend("a")

    def cut(handler: object) -> bool:
        handler.rfile.readline()  # type: ignore[attr-defined]
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")  # type: ignore[attr-defined]
        return False

    backend.answer = cut  # type: ignore[method-assign]
    try:
        one = daemon(config_of([backend])).start()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            one.ask()
        plain = one.admin(f"/v1/upstreams/app/backends/{backend.address}").json()
        assert plain["errors"] == 1
    finally:
        backend.close()


def test_one_that_swallows_connections_is_out_after_a_bounded_time(
    backends: list[Backend], daemon: Make
) -> None:
    """Fault 5: a full queue answers no SYN, as a firewall that drops would not."""
    with contextlib.ExitStack() as stack:
        hole = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = f"127.0.0.1:{hole.getsockname()[1]}"
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(hole.getsockname())
        more = 'timeouts = { connect = "300ms" }\noutlier = { errors = 2, eject = "1h" }\n'
        config = config_of(backends, more).replace(backends[0].address, address)
        one = daemon(config, workers=1).start()
        for method in ("GET", "POST", "GET", "POST", "GET", "POST"):
            assert one.ask(method=method).text == "b", "nothing was sent: any method"
        assert is_out(one, address)
        alone = config.replace(f', "{backends[1].address}"', "")
        one.write(alone)
        assert one.admin("/v1/config/reload", "POST").status == 200
        began = time.monotonic()
        assert one.ask().status == 504
        assert time.monotonic() - began < 5, "connect x attempts, and some"
