"""What an operator is told: by metrics, by the log, and by `lb` itself."""

from __future__ import annotations

import os
import signal

from prometheus_client.parser import text_string_to_metric_families

from journeys.conftest import Make, config_of
from journeys.kit import Backend, Daemon, until

HEALTH = 'health = { path = "/healthz", interval = "100ms", timeout = "1s", rise = 1, fall = 2 }'


def samples(one: Daemon) -> dict[tuple[str, ...], float]:
    """Scrape: the value of each series by its name and, in the names' order, its labels."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(one.admin("/metrics").text)
        for sample in family.samples
    }


def test_metrics_show_late_loops_open_connections_and_checks(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon(config_of(backends, HEALTH)).start()
    one.ask()
    backends[1].healthy = False

    def failed() -> float:
        return samples(one).get(("lb_health_checks_total", backends[1].address, "failed", "app"), 0)

    until(failed, "a failed check is counted")
    lag = "lb_worker_loop_lag_seconds"
    until(lambda: {(lag, "0"), (lag, "1")} <= samples(one).keys(), "a beat of each worker")
    seen = samples(one)

    assert 0 <= seen[lag, "0"] < 5
    assert seen["lb_connections", "web"] == 0
    assert seen["lb_connections_total", "web"] == 1
    assert seen["lb_health_checks_total", backends[0].address, "ok", "app"] >= 1
    assert seen["lb_health_checks_total", backends[0].address, "failed", "app"] == 0
    assert 0 <= seen["lb_health_check_seconds", backends[0].address, "app"] < 5


def test_the_log_tells_of_each_reload_in_one_line(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends)).start()

    one.write(config_of(backends[:1], "wieght = 1\npanick = 2"))
    answer = one.admin("/v1/config/reload", "POST")
    until(lambda: "the configuration on disk" in one.log(), "the change is seen on disk")
    on_disk = one.admin("/v1/status").json()["config"]["on_disk"]
    one.write(config_of(backends[:1]))
    one.admin("/v1/config/reload", "POST")

    assert answer.json()["count"] == 2
    assert on_disk == f'invalid: {one.path}:13:1: "wieght" is not a key of an upstream' + (
        " (and 1 more: see lb check)"
    )
    bad, good = [line for line in one.log().splitlines() if "reload" in line]
    found = on_disk.removeprefix("invalid: ")
    assert bad.endswith(f": a reload changed nothing (asked by api): {found}")
    assert ": reloaded (asked by api): generation 2, edition " in good
    assert good.endswith(f": upstream.app.backends - {backends[1].address}")


def test_a_worker_that_hangs_is_replaced(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    hanging, well = one.workers()
    os.kill(hanging, signal.SIGSTOP)

    until(lambda: hanging not in one.workers(), "another in its place")

    assert well in one.workers()
    assert {one.ask().status for _ in range(20)} == {200}
    assert f"(pid {hanging}) is silent: replaced" in one.log()
