"""A backend that fails leaves by what traffic shows, and comes back the same way."""

from __future__ import annotations

import os
import signal
from typing import Any

from journeys.conftest import Make, config_of
from journeys.kit import Backend, Daemon, alive, loaded, until

REFUSING = "127.0.0.1:1"
BUSY = "503 Service Unavailable"


def rule(eject: str) -> str:
    return f'panic = "0%"\noutlier = {{ errors = 3, within = "10s", eject = "{eject}" }}\n'


def ejected(daemon: Daemon, address: str) -> bool:
    plain: dict[str, Any] = daemon.admin(f"/v1/upstreams/app/backends/{address}").json()
    assert plain["endpoints"][0]["ejected"] is plain["ejected"]
    return bool(plain["ejected"])


def test_a_failing_backend_is_out_for_all_workers_and_returns(
    backends: list[Backend], daemon: Make
) -> None:
    bad, _ = backends
    one = daemon(config_of(backends, rule("2s"))).start()
    with loaded(one.port, fresh=True) as load:
        bad.status = BUSY
        until(lambda: ejected(one, bad.address), "the ejection")
        before = bad.requests
        load.more(100)
        assert bad.requests - before <= 3, "only what was on its way, or a trial"
        bad.status = "200 OK"
        until(lambda: not ejected(one, bad.address), "its return")
        before = bad.requests
        load.more(100)
        assert bad.requests > before
    assert "it answers 502, 503 or 504" in one.log()
    assert "is no longer ejected: it answers" in one.log()
    text = one.admin("/metrics").text
    labels = f'backend="{bad.address}"'
    lines = [line for line in text.splitlines() if "eject" in line and labels in line]
    counts = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert counts["lb_ejections_total"] >= 1
    assert counts["lb_backend_ejected"] == 0


def test_connect_errors_eject_and_cost_no_request(backends: list[Backend], daemon: Make) -> None:
    """Fault 3 and 4: whatever method a request has, nothing was sent."""
    config = config_of(backends, rule("1h"))
    one = daemon(config.replace(backends[0].address, REFUSING)).start()
    for _ in range(20):
        assert one.ask(method="POST").text == "b"
    assert until(lambda: ejected(one, REFUSING), "the ejection")
    assert "it cannot be connected to" in one.log()


def test_the_last_one_stays(backends: list[Backend], daemon: Make) -> None:
    """Fault 9."""
    last = backends[1]
    config = config_of(backends, rule("1h")).replace(backends[0].address, REFUSING)
    one = daemon(config).start()
    until(lambda: one.ask().status and ejected(one, REFUSING), "the dead one is out")
    last.status = BUSY
    for _ in range(30):
        assert one.ask().status == 503, "its own answer, passed on"
    assert not ejected(one, last.address)
    assert until(lambda: "it is the last one that is well" in one.log(), "a word about it")


def test_what_is_the_applications_own_never_counts(backends: list[Backend], daemon: Make) -> None:
    one = daemon(config_of(backends, rule("1h"))).start()
    for status in ("500 Oh", "501 No", "404 Not Found"):
        backends[0].status = status
        for _ in range(20):
            one.ask()
    assert not ejected(one, backends[0].address)


def test_ejections_outlive_reloads_and_processes(backends: list[Backend], daemon: Make) -> None:
    bad, good = backends
    config = config_of(backends, rule("1h"))
    one = daemon(config).start()
    bad.status = BUSY
    until(lambda: one.ask().status and ejected(one, bad.address), "the ejection")
    asked = bad.requests
    one.write(config + 'balance = "random"\n')
    one.send(signal.SIGHUP)
    until(lambda: "reloaded" in one.log(), "the reload")
    for pid in (one.controller(), *one.workers()):
        os.kill(pid, signal.SIGKILL)
        until(lambda gone=pid: not alive(gone), "its end")  # type: ignore[misc]
        one.workers()
        until(lambda: one.admin("/readyz").status == 200, "ready again")
        for _ in range(10):
            assert one.ask().text == good.name
    assert ejected(one, bad.address)
    assert bad.requests == asked


def test_a_check_that_turns_to_healthy_ends_it(backends: list[Backend], daemon: Make) -> None:
    bad = backends[0]
    check = 'health = { path = "/healthz", interval = "200ms", rise = 1, fall = 1 }\n'
    one = daemon(config_of(backends, rule("1h") + check)).start()
    bad.status = BUSY
    until(lambda: one.ask().status and ejected(one, bad.address), "the ejection")
    bad.healthy = False
    until(lambda: f"app/{bad.address} is unhealthy" in one.log(), "the verdict")
    bad.healthy, bad.status = True, "200 OK"
    until(lambda: not ejected(one, bad.address), "its return")
    assert "is no longer ejected: its check turned to healthy" in one.log()
