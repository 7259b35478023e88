"""
What reloads cost those who are served meanwhile.

A steady load, by turns without reloads and with `RELOADS` of them, each of which changes the
routes and a backend's weight. What is wanted: nothing fails, and the p99 with them is at most
`RATIO_MAX` times the one without; the median over the rounds counts, since a neighbour's burst
is in one of the two by chance.

    PYTHONPATH=tests python -m soak.reloads [--rounds 3] [--seconds 20]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from journeys.conftest import config_of
from journeys.kit import Backend, Daemon
from soak.clients import Client, asking, pass_time

RELOADS = 20
RATIO_MAX = 1.5
CLIENTS = 8
PACE = 0.02  # Of each: 400 requests a second in all, far from what fills a worker.


def turn(one: Daemon, seconds: float, reloads: int) -> tuple[float, int]:
    """Return the p99 of a turn, in ms, and how many requests failed in it."""
    clients = [Client(one.port, PACE, times=True) for _ in range(CLIENTS)]
    config = one.config
    began = time.monotonic()
    with asking(clients):
        for number in range(reloads):
            one.write(
                config.replace("weight = 2", f"weight = {1 + number % 2}")
                + f'[route.r{number}]\npath = "/r{number}"\nrespond = {{ status = 204 }}\n'
            )
            assert one.admin("/v1/config/reload", "POST").status == 200
            pass_time(max(0.0, began + (number + 1) * seconds / reloads - time.monotonic()))
        pass_time(max(0.0, began + seconds - time.monotonic()))
    one.write(config)
    took = [each for client in clients for each in client.tally.took]
    failed = sum(len(client.tally.failures) for client in clients)
    return statistics.quantiles(took, n=100)[98] * 1e3, failed


def main() -> int:
    """Measure and print; 1 if what is wanted is missed."""
    parser = argparse.ArgumentParser(description="What reloads cost those who are served.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    given = parser.parse_args()
    backends = [Backend(name) for name in "ab"]
    ratios, failed = [], 0
    with tempfile.TemporaryDirectory(prefix="lb-reloads-") as folder:
        config = config_of(backends, listener='upstream = "app"').replace(
            f'"{backends[0].address}"', f'{{ address = "{backends[0].address}", weight = 2 }}'
        )
        one = Daemon(Path(folder), '[access_log]\noutput = "off"\n' + config, workers=1)
        try:
            one.start()
            turn(one, 1.0, 0)  # Warm.
            for number in range(given.rounds):
                without, lost = turn(one, given.seconds, 0)
                with_reloads, more = turn(one, given.seconds, RELOADS)
                failed += lost + more
                ratios.append(with_reloads / without)
                print(
                    f"round {number + 1}: p99 {without:.2f} ms without, {with_reloads:.2f} ms with"
                    f" {RELOADS} reloads: x {ratios[-1]:.2f}",
                    flush=True,
                )
        finally:
            one.end()
            for each in backends:
                each.close()
    ratio = statistics.median(ratios)
    met = ratio <= RATIO_MAX and not failed
    print(
        f"median x {ratio:.2f} (wanted {RATIO_MAX}), {failed} failed: {'met' if met else 'missed'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
