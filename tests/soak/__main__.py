"""
Throw faults at an instance for so many seconds; end with a table. Status 1 if any failure has no
excuse, or anything has grown.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from journeys.conftest import config_of
from journeys.kit import PATIENCE, Daemon, free_ports, offspring
from journeys.test_bad_backends import Process
from journeys.test_overload import memory
from soak.clients import Client, Failure, asking, pass_time
from soak.faults import FAULTS, Fault, Scene

GROWN_MIB_MAX = 24.0  # Of all processes together; most of them have been replaced meanwhile.
GROWN_DESCRIPTORS_MAX = 16
WARM_UP = 5.0
BETWEEN = 1.0
UPSTREAM = """
slow_start = "1s"
timeouts = { connect = "1s", response = "2s", stall = "5s" }
health = { path = "/healthz", interval = "300ms", timeout = "500ms", fall = 2, rise = 1 }
outlier = { eject = "1s" }
"""


@dataclass
class Strike:
    """One fault at one time; what fails from its beginning until all is well again is its doing."""

    fault: Fault
    began: float
    ended: float
    trouble: str = ""  # Why it was not over in time.

    def overlaps(self, failure: Failure) -> bool:
        """Whether a request ran while this was going on."""
        return failure.began <= self.ended and failure.ended >= self.began


@dataclass(frozen=True)
class Size:
    """What an instance's processes have, all together."""

    mib: float
    descriptors: int


def size_of(one: Daemon) -> Size:
    pids = [one.supervisor, *offspring(one.supervisor)]
    descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    return Size(sum(memory(pid) for pid in pids) / 2**20, descriptors)


def last_size(one: Daemon, start: Size) -> Size:
    """Return its size, once it has no more descriptors than at the start, or will not have."""
    end = size_of(one)
    patience = time.monotonic() + 2 * PATIENCE
    while end.descriptors > start.descriptors + GROWN_DESCRIPTORS_MAX:
        if time.monotonic() > patience:
            break
        pass_time(BETWEEN)
        end = size_of(one)
    return end


def clients_of(port: int) -> list[Client]:
    """Some of each kind: 200 requests a second in all."""
    kinds = (("GET", False), ("GET", False), ("GET", True), ("POST", False))
    return [Client(port, 0.04, method=method, fresh=fresh) for method, fresh in kinds * 2]


@contextmanager
def scene_in(folder: Path, rng: random.Random) -> Iterator[Scene]:
    """Three backends in processes of their own, and an instance before them."""
    with ExitStack() as stack:
        backends = [Process(name, port) for name, port in zip("abc", free_ports(3), strict=True)]

        def close() -> None:
            for each in backends:  # Those that are there by then.
                each.close()

        stack.callback(close)
        config = config_of(backends, UPSTREAM, 'upstream = "app"')  # type: ignore[arg-type]  # They have addresses.
        log = f'[access_log]\noutput = "{folder}/access.log"\n'
        one = Daemon(folder, log + config, node='grace = "0s"\ndrain = "5s"')
        stack.callback(one.end)
        one.start()
        scene = Scene(one, backends, rng)
        scene.settle()
        yield scene


def strike(scene: Scene, seconds: float) -> list[Strike]:
    """Throw one fault after the other until the time is over: each once, then by chance."""
    end = time.monotonic() + seconds
    strikes: list[Strike] = []
    waiting: list[Fault] = []
    while time.monotonic() < end:
        if not waiting:
            waiting = scene.rng.sample(FAULTS, len(FAULTS))
        fault = waiting.pop()
        print(f"{time.strftime('%H:%M:%S')} {fault.name}", file=sys.stderr, flush=True)
        strikes.append(Strike(fault, time.monotonic(), float("inf")))
        try:
            fault.strike(scene)
            scene.settle()
        except AssertionError as error:
            strikes[-1].trouble = str(error)
            break  # What comes after it would be blamed on others.
        strikes[-1].ended = time.monotonic()
        pass_time(BETWEEN)
    return strikes


def judge(
    strikes: Sequence[Strike], failures: Sequence[Failure]
) -> tuple[Counter[str], list[Failure]]:
    """Return how many failures each fault excuses, and those without an excuse."""
    excused: Counter[str] = Counter()
    by_strike: Counter[int] = Counter()
    left = []
    for failure in failures:
        for number, each in enumerate(strikes):
            room = not each.fault.most or by_strike[number] < each.fault.most
            if room and each.overlaps(failure) and each.fault.excuses(failure):
                by_strike[number] += 1
                excused[each.fault.name] += 1
                break
        else:
            left.append(failure)
    return excused, left


def table(strikes: Sequence[Strike], excused: Counter[str]) -> Iterator[str]:
    """Yield a row for each fault."""
    times = Counter(each.fault.name for each in strikes)
    yield f"{'fault':24} {'times':>6} {'failed, by its doing':>21}"
    for fault in FAULTS:
        yield f"{fault.name:24} {times[fault.name]:6} {excused[fault.name]:21}"


def main() -> int:
    """Run and print; 1 if it was not survived as it should be."""
    parser = argparse.ArgumentParser(prog="python -m soak", description="An instance under fire.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lb-soak-") as folder,
        scene_in(Path(folder), random.Random(given.seed)) as scene,
    ):
        one = scene.one
        with asking(clients_of(one.port)) as clients:
            pass_time(WARM_UP)
            start = size_of(one)
            strikes = strike(scene, given.seconds)
            end = last_size(one, start)
        bugs = one.log().count("Traceback")
    failures = [each for client in clients for each in client.tally.failures]
    excused, left = judge(strikes, failures)
    for line in table(strikes, excused):
        print(line)
    print(f"requests: {sum(client.tally.done for client in clients)}")
    print(f"failed: {len(failures)}, without an excuse: {len(left)}; tracebacks: {bugs}")
    print(f"memory: {start.mib:.0f} MiB at the start, {end.mib:.0f} at the end")
    print(f"descriptors: {start.descriptors} at the start, {end.descriptors} at the end")
    for failure in left[:20]:
        near = [each.fault.name for each in strikes if each.overlaps(failure)]
        took = failure.ended - failure.began
        print(f"  {failure.method} {failure.kind} after {took:.2f} s, during {near or 'nothing'}")
    troubles = [each for each in strikes if each.trouble]
    for each in troubles:
        print(f"  {each.fault.name} was not over in time: {each.trouble}")
    grown = (
        end.mib - start.mib > GROWN_MIB_MAX
        or end.descriptors - start.descriptors > GROWN_DESCRIPTORS_MAX
    )
    lost = bool(left or bugs or grown or troubles)
    print(f"seed {given.seed}: {'lost' if lost else 'survived'}")
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
