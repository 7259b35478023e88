"""People at a shop: how Accord behaves under a mixture, not how fast it can go.

Locust reaches a few thousand requests a second on a core, so it can't saturate the proxy; wrk
in compare.py does that. What this is for: mixes, shapes, failures, reloads under traffic.

The environment decides, since a shape leaves no room for options:

    LOAD_SHAPE      steps (the default) | spike | soak
    LOAD_SECONDS    how long in all; 60
    LOAD_USERS      how many at the height; 50
    LOAD_FAIL_MAX   the share of requests that may fail; 0.001
    LOAD_P99_MS_MAX 99 of 100 requests are quicker than this; 500

The run ends with status 1 where either limit was passed, and says which.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task

SHAPE = os.environ.get("LOAD_SHAPE", "steps")
SECONDS = float(os.environ.get("LOAD_SECONDS", "60"))
USERS = int(os.environ.get("LOAD_USERS", "50"))
FAIL_MAX = float(os.environ.get("LOAD_FAIL_MAX", "0.001"))
P99_MS_MAX = float(os.environ.get("LOAD_P99_MS_MAX", "500"))

UPLOAD_BYTES = 256 * 1024
STREAM_BYTES = 1024 * 1024
STREAM_PIECE_BYTES = 64 * 1024
PAGES = ("/", "/catalogue/chairs?page=3", "/catalogue/tables", "/about")
BROWSER = {
    "accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
    "accept-language": "en-GB,en;q=0.7",
    "cookie": "theme=dark; seen=1",
}


class Person(FastHttpUser):
    """What all have in common; nobody waits for an answer forever."""

    abstract = True
    connection_timeout = 5.0
    network_timeout = 15.0


class Browse(Person):
    """Opens pages, unhurried."""

    weight = 6
    wait_time = constant_throughput(5)

    @task
    def page(self) -> None:
        with self.client.get(
            random.choice(PAGES), name="browse", headers=BROWSER, catch_response=True
        ) as response:
            expect(response, response.content != b"", "an empty page")


class Api(Person):
    """Reads and writes small JSON, quickly."""

    weight = 3
    wait_time = constant_throughput(10)

    @task(3)
    def read(self) -> None:
        path = f"/api/items/{random.randrange(1000)}"
        with self.client.get(path, name="api read", catch_response=True) as response:
            expect(response, response.content != b"", "an empty answer")

    @task(1)
    def write(self) -> None:
        body = json.dumps({"name": "chair", "count": random.randrange(10)})
        with self.client.post(
            "/api/items",
            name="api write",
            data=body,
            headers={"content-type": "application/json"},
            catch_response=True,
        ) as response:
            expect(response, True, "")


class Upload(Person):
    """Sends something large."""

    weight = 1
    wait_time = constant_throughput(1)

    @task
    def send(self) -> None:
        with self.client.post(
            "/upload", name="upload", data="x" * UPLOAD_BYTES, catch_response=True
        ) as response:
            expect(response, True, "")


class Stream(Person):
    """Reads a megabyte piece by piece, as a player would; the demo's toys have that path."""

    weight = 1
    wait_time = constant_throughput(1)

    @task
    def listen(self) -> None:
        with self.client.get(
            f"/bytes/{STREAM_BYTES}", name="stream", stream=True, catch_response=True
        ) as response:
            got = sum(map(len, response.iter_content(STREAM_PIECE_BYTES)))
            expect(response, got == STREAM_BYTES, f"{got} bytes of {STREAM_BYTES}")


def expect(response: Any, sound: bool, otherwise: str) -> None:
    """Mark one answer: any 2xx that is sound is a success."""
    if not 200 <= response.status_code < 300:
        response.failure(f"status {response.status_code}")
    elif not sound:
        response.failure(otherwise)
    else:
        response.success()


# One shape is used, and locust takes the only one that it finds: so the class is made of the
# function that was chosen. Each returns the number of users at a share of the whole time.


def steps(share: float) -> int:
    """Five steps up, each held: where does it begin to hurt?"""
    return USERS * (int(share * 5) + 1) // 5


def spike(share: float) -> int:
    """Calm, ten times as many at once in the middle third, calm: does it recover?"""
    return USERS if 1 / 3 <= share < 2 / 3 else max(1, USERS // 10)


def soak(share: float) -> int:
    """A short rise, then the same for as long as is asked: does anything grow?"""
    return max(1, min(USERS, int(USERS * share * 20)))


SHAPES = {"steps": steps, "spike": spike, "soak": soak}
if SHAPE not in SHAPES:
    raise SystemExit(f"LOAD_SHAPE={SHAPE}: one of {', '.join(SHAPES)}")


class Shape(LoadTestShape):
    """The shape that was chosen."""

    def tick(self) -> tuple[int, float] | None:
        """Return users and users a second to get there; None ends the run."""
        passed = self.get_run_time()
        if passed >= SECONDS:
            return None
        return max(1, SHAPES[SHAPE](passed / SECONDS)), max(1.0, USERS / 5)


@events.quitting.add_listener
def judge(environment: Any, **_: Any) -> None:
    """Fail the run over the limits."""
    total = environment.stats.total
    p99 = total.get_response_time_percentile(0.99) or 0
    faults = []
    if not total.num_requests:
        faults.append("no request was answered")
    if environment.runner.exceptions:
        faults.append("a user of ours raised; see the report's exceptions")
    if total.fail_ratio > FAIL_MAX:
        faults.append(f"{total.fail_ratio:.2%} failed, at most {FAIL_MAX:.2%} may")
    if p99 > P99_MS_MAX:
        faults.append(f"p99 is {p99:.0f} ms, at most {P99_MS_MAX:.0f} is allowed")
    for fault in faults:
        print(f"load: {fault}")
    environment.process_exit_code = 1 if faults else 0
