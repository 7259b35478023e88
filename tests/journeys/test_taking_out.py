"""Taking a backend out by hand: drained and watched, cut, or forced on one instance."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, ROOT, Answer, Backend, Daemon, until

LB = (sys.executable, "-m", "lb.cli")


class Command:
    """One `lb` command under way, and what it has said so far."""

    def __init__(self, one: Daemon, *words: str) -> None:
        self._path = one.folder / f"{'-'.join(words[:3])}.out"
        with open(self._path, "wb") as out:
            self._process = subprocess.Popen(
                [*LB, *words, "--admin", f"http://127.0.0.1:{one.admin_port}"],
                cwd=one.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    @property
    def said(self) -> str:
        return self._path.read_text()

    def end(self) -> str:
        """Wait until it has done its work; return what it said."""
        assert self._process.wait(PATIENCE) == 0, self.said
        return self.said


def active(one: Daemon) -> int:
    """Return how many requests run on all backends."""
    plain = one.admin("/v1/upstreams/app").json()
    return sum(int(each["in_flight"]) for each in plain["backends"])


def hold(one: Daemon, backend: Backend, pool: ThreadPoolExecutor) -> list[Future[Answer]]:
    """Have a request run on a backend; others may have got one on the way."""
    running = []
    while not backend.holding.is_set():
        running.append(pool.submit(one.ask, "/hold"))
        count = len(running)
        until(
            lambda: active(one) >= count,  # noqa: B023
            "its arrival",
        )
    return running


def test_a_drain_shows_what_is_left_until_it_is_done(backends: list[Backend], daemon: Make) -> None:
    one = daemon(config_of(backends)).start()
    with ThreadPoolExecutor() as pool:
        hold(one, backends[0], pool)
        draining = Command(one, "backend", "drain", "app", backends[0].address, "--wait", "30s")
        until(lambda: "left on a" in draining.said, "what is left, and where")
        for _ in range(10):
            assert one.ask().text == "b", "nothing new"
        for backend in backends:
            backend.hold.set()
        assert "has no requests left" in draining.end()


def test_a_removed_backend_is_listed_as_leaving_and_can_be_cut(
    backends: list[Backend], daemon: Make
) -> None:
    one = daemon(config_of(backends)).start()
    path = "/v1/upstreams/app"
    with ThreadPoolExecutor() as pool:
        hold(one, backends[0], pool)
        assert one.admin(f"{path}/backends/{backends[0].address}", "DELETE").status == 200
        leaving = until(lambda: one.admin(path).json()["leaving"], "it is listed")
        assert leaving[0]["address"] == backends[0].address
        backends[1].hold.set()
        backends[0].hold.set()
        until(lambda: not one.admin(path).json()["leaving"], "it is gone")


def test_now_cuts_what_runs(backends: list[Backend], daemon: Make) -> None:
    one = daemon(config_of(backends)).start()
    with ThreadPoolExecutor() as pool:
        running = hold(one, backends[0], pool)
        Command(one, "backend", "remove", "app", backends[0].address, "--now").end()
        backends[1].hold.set()
        statuses = {each.result(PATIENCE).status for each in running}
        assert 503 in statuses, "told, not left hanging"


def test_force_acts_here_whatever_state_and_check_say(
    backends: list[Backend], daemon: Make
) -> None:
    check = 'health = { path = "/healthz", interval = "100ms", rise = 1, fall = 1 }\npanic = "0%"'
    one = daemon(config_of(backends, check)).start()
    first, second = backends
    first.healthy = False
    until(lambda: f"app/{first.address} is unhealthy" in one.log(), "the verdict")
    assert {one.ask().text for _ in range(10)} == {"b"}
    Command(one, "backend", "force", "up", "app", first.address).end()
    Command(one, "backend", "force", "down", "app", second.address).end()
    until(lambda: {one.ask().text for _ in range(10)} == {"a"}, "as forced")
    told = Command(one, "status").end()
    assert f"app/{second.address} is forced down on this instance alone" in told
    assert one.admin(f"/v1/upstreams/app/backends/{second.address}").json()["state"] == "active"
    for backend in backends:
        Command(one, "backend", "force", "auto", "app", backend.address).end()
    until(lambda: {one.ask().text for _ in range(10)} == {"b"}, "as before")
