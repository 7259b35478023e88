"""Faults of `docs/faults.md` that can be thrown again and again, and what each excuses."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from journeys.kit import Daemon, until
from journeys.test_bad_backends import Process, is_out
from soak.clients import Failure, pass_time

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
IDLE, ABANDONED, SPARE = 500, 200, 100
LOOKS_WITHIN = 1.5
SETTLES_WITHIN = 60.0


@dataclass
class Scene:
    """What there is to be hurt."""

    one: Daemon
    backends: list[Process]
    rng: random.Random

    def settle(self) -> None:
        """Wait until it is as it was: all processes there, all backends in use."""
        until(self.is_well, lambda: f"all is well\n{self.one.log()}", SETTLES_WITHIN)

    def is_well(self) -> bool:
        """Whether nothing is left to be seen of a fault."""
        one = self.one
        return (
            one.admin("/readyz").status == 200
            and len(one.children("worker")) == one.workers_count
            and len(one.children("controller")) == 1
            and all(map(self.in_use, self.backends))
        )

    def in_use(self, backend: Process) -> bool:
        """Whether a backend is healthy and not ejected."""
        address = backend.address
        shown = self.one.admin(f"/v1/upstreams/app/backends/{address}").json()
        return shown["health"] == "healthy" and not is_out(self.one, address)

    def connect(self, number: int) -> socket.socket:
        """Connect from one of several addresses."""
        sock = socket.socket()
        sock.settimeout(10)
        sock.bind((f"127.0.0.{2 + number % 4}", 0))
        sock.connect(("127.0.0.1", self.one.port))
        return sock


@dataclass(frozen=True)
class Fault:
    """One kind: what is done, and which failures of that time are not the instance's."""

    name: str
    strike: Callable[[Scene], None]
    excuses: Callable[[Failure], bool] = lambda failure: False
    most: int = 0  # So many failures a time it excuses; 0: as many as there are.


def kill_backend(scene: Scene) -> None:
    """End one by SIGKILL, and start another in its place."""
    at = scene.rng.randrange(len(scene.backends))
    gone = scene.backends[at]
    gone.close()
    until(lambda: not scene.in_use(gone), "it is out")
    scene.backends[at] = Process(gone.name, int(gone.address.rpartition(":")[2]))


def stop_backend(scene: Scene) -> None:
    """Let one stand still, then go on."""
    still = scene.rng.choice(scene.backends)
    still.send(signal.SIGSTOP)
    try:
        until(lambda: not scene.in_use(still), "it is out")
    finally:
        still.send(signal.SIGCONT)


def kill_worker(scene: Scene) -> None:
    """End a worker by SIGKILL."""
    pid = scene.rng.choice(scene.one.workers())
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in scene.one.workers(), "another worker")


def hang_worker(scene: Scene) -> None:
    """Let a worker stand still until it is replaced."""
    pid = scene.rng.choice(scene.one.workers())
    os.kill(pid, signal.SIGSTOP)
    until(lambda: pid not in scene.one.workers(), "another worker")


def kill_controller(scene: Scene) -> None:
    """End the controller by SIGKILL."""
    pid = scene.one.controller()
    os.kill(pid, signal.SIGKILL)
    until(lambda: scene.one.children("controller") not in ([], [pid]), "another controller")


def reload(scene: Scene) -> None:
    """Reload some times: routes come and go."""
    before = scene.one.config
    for number in range(5):
        route = f'[route.r{number}]\npath = "/r{number}"\nrespond = {{ status = 204 }}\n'
        scene.one.write(before + route)
        assert scene.one.admin("/v1/config/reload", "POST").status == 200
    scene.one.write(before)
    assert scene.one.admin("/v1/config/reload", "POST").status == 200


def reload_badly(scene: Scene) -> None:
    """Ask for a reload of what is no config."""
    before = scene.one.config
    scene.one.write(before + "[route.x]\nwieght = 1\n")
    assert scene.one.admin("/v1/config/reload", "POST").status == 422
    scene.one.write(before)


def drain(scene: Scene) -> None:
    """Take one out by the API, and back."""
    path = f"/v1/upstreams/app/backends/{scene.rng.choice(scene.backends).address}"
    assert scene.one.admin(path, "PATCH", body={"state": "draining"}).status == 200
    pass_time(0.5)
    assert scene.one.admin(path, "PATCH", body={"state": "active"}).status == 200


def upgrade(scene: Scene) -> None:
    """Put another program in its place, which happens to be the same."""
    before = scene.one.supervisor
    scene.one.send(signal.SIGUSR2)
    until(
        lambda: scene.one.admin("/v1/status").json()["pid"] != before,
        lambda: f"another supervisor\n{scene.one.log()}",
        SETTLES_WITHIN,
    )
    scene.one.upgraded()


def idle_crowd(scene: Scene) -> None:
    """Have many clients who say nothing."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(scene.connect(number)) for number in range(IDLE)]
        pass_time(1.0)
        assert len(crowd) == IDLE


def abandon(scene: Scene) -> None:
    """Connect and leave with a reset, within a head, within a wait, within an upload."""
    starts = (b"", b"GET / HT", GET, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nxx")
    for number in range(ABANDONED):
        with scene.connect(number) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.sendall(starts[number % len(starts)])


def no_descriptors(scene: Scene) -> None:
    """Leave a worker few descriptors, and have more clients than those are for."""
    pid = scene.rng.choice(scene.one.workers())
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    few = len(os.listdir(f"/proc/{pid}/fd")) + SPARE
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before[1]))
    pass_time(LOOKS_WITHIN)  # It is no secret from a worker: it looks each second.
    try:
        with ExitStack() as stack:
            for number in range(3 * SPARE):
                stack.enter_context(scene.connect(number))
            pass_time(LOOKS_WITHIN)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def starve(scene: Scene) -> None:
    """Let the whole instance stand still for moments."""
    for _ in range(10):
        scene.one.send_all(signal.SIGSTOP)
        pass_time(0.2)
        scene.one.send_all(signal.SIGCONT)
        pass_time(0.1)


def rotate(scene: Scene) -> None:
    """Have log files opened anew."""
    for _ in range(5):
        scene.one.send(signal.SIGUSR1)


def cut_post(failure: Failure) -> bool:
    """A POST whose octets were sent may not be repeated."""
    return failure.method == "POST" and failure.kind == "502"


def cut(failure: Failure) -> bool:
    """What a killed process was working on."""
    return failure.kind in ("closed", "late")


def full(failure: Failure) -> bool:
    """What found no descriptor, and was told so."""
    return failure.kind == "503"


FAULTS = (
    Fault("a backend killed", kill_backend, cut_post),
    Fault("a backend stopped", stop_backend, lambda each: each.kind in ("504", "502")),
    Fault("a worker killed", kill_worker, cut, most=16),
    Fault("a worker stopped", hang_worker, cut, most=16),
    Fault("the controller killed", kill_controller),
    Fault("reloads", reload),
    Fault("a bad reload", reload_badly),
    Fault("a drain", drain),
    Fault("an upgrade", upgrade),
    Fault("an idle crowd", idle_crowd),
    Fault("clients that reset", abandon),
    Fault("no descriptors", no_descriptors, full),
    Fault("no CPU by turns", starve),
    Fault("logs reopened", rotate),
)
