"""What an edition of 1,000 backends costs the worker that takes it in.

A worker decodes one part per turn of its loop and swaps at the commit, as `lb/worker.py` does;
here each of those turns is timed by itself, in CPU time, so that a busy neighbour does not count.
A turn is what the loop is stalled by, their sum is when the edition is live, the turns in which a
balancer is made in parts included.

    python bench/micro/editions.py [--backends 1000] [--rounds 20]

What is wanted: live within `LIVE_MS`, no turn longer than `STALL_MS`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import uvloop

from lb.balance import StandIn
from lb.config.schema import Config
from lb.edition import Assembly, Composer, Edition, Sources
from lb.metrics import Meters, create_memory
from lb.model import Health
from lb.proxy.shared_table import SharedTables
from lb.proxy.shared_table import create as create_tables
from lb.proxy.switchboard import Switchboard
from lb.registry import By, Changed, Entry, Registry, UpstreamEntry
from lb.worker import GC_AFTER_OBJECTS

LIVE_MS: Final = 20.0
STALL_MS: Final = 5.0
BY: Final = Changed(By("bench", "bench"), 1, 0.0)
BALANCERS: Final = ("round_robin", "least_requests", "two_choices", "random", "peak_ewma", "hash")


def config_of(balance: str) -> Config:
    """One upstream that the registry fills, with a check."""
    return Config.model_validate(
        {
            "listener": {"web": {"address": "127.0.0.1:1", "upstream": "app"}},
            "upstream": {
                "app": {"backends": [], "balance": balance, "health": {"path": "/healthz"}}
            },
        }
    )


def sources_of(balance: str, count: int) -> Sources:
    """So many backends, all healthy."""
    addresses = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:8080" for n in range(count)]
    backends = {each: Entry(each, BY) for each in addresses}
    registry = Registry(id="bench", revision=1, upstreams={"app": UpstreamEntry(1, backends)})
    verdicts = {"app": dict.fromkeys(addresses, Health.HEALTHY)}
    return Sources(config_of(balance), 1, registry, verdicts)


def with_entries(sources: Sources, change: Callable[[dict[str, Entry]], None]) -> Sources:
    """The same with other backends."""
    entry = sources.registry.upstreams["app"]
    backends = dict(entry.backends)
    change(backends)
    upstreams = {"app": replace(entry, backends=backends)}
    registry = replace(
        sources.registry, revision=sources.registry.revision + 1, upstreams=upstreams
    )
    return replace(sources, registry=registry)


def add_one(entries: dict[str, Entry]) -> None:
    """A new backend."""
    entries["10.9.9.9:1"] = Entry("10.9.9.9:1", BY)


def weigh_one(entries: dict[str, Entry]) -> None:
    """One backend has another weight."""
    first = next(iter(entries))
    entries[first] = replace(entries[first], weight=3)


def weigh_all(entries: dict[str, Entry]) -> None:
    """All have other weights, many different ones."""
    for number, key in enumerate(entries):
        entries[key] = replace(entries[key], weight=1 + number % 50)


def replace_all(entries: dict[str, Entry]) -> None:
    """Others in the place of all."""
    for key in list(entries):
        del entries[key]
        other = key.replace("10.", "172.", 1)
        entries[other] = Entry(other, BY)


def one_unhealthy(sources: Sources) -> Sources:
    """A verdict of one."""
    verdicts = dict(sources.verdicts["app"])
    verdicts[next(iter(verdicts))] = Health.UNHEALTHY
    return replace(sources, verdicts={"app": verdicts})


CHANGES: Final[dict[str, Callable[[Sources], Sources]]] = {
    "the first one": lambda sources: sources,
    "one verdict": one_unhealthy,
    "one more": lambda sources: with_entries(sources, add_one),
    "one weight": lambda sources: with_entries(sources, weigh_one),
    "all weights": lambda sources: with_entries(sources, weigh_all),
    "all replaced": lambda sources: with_entries(sources, replace_all),
    "a reload": lambda sources: replace(
        sources, config=sources.config.model_copy(), generation=sources.generation + 1
    ),
}


@dataclass
class Worker:
    """The part of a worker that takes editions in."""

    assembly: Assembly
    switchboard: Switchboard

    async def turns(self, edition: Edition, held: Edition | None) -> list[float]:
        """Take an edition in as its frames come; return what each turn took, in ms."""
        before = held.parts if held is not None else {}
        steps: list[Callable[[], None]] = [
            lambda name=name, body=body: self.assembly.put(name, body)  # type: ignore[misc]
            for name, body in edition.parts.items()
            if before.get(name) != body
        ]
        steps += [
            lambda name=name: self.assembly.drop(name)  # type: ignore[misc]
            for name in before.keys() - edition.parts.keys()
        ]
        steps.append(lambda: self.commit(edition.number))
        took = []
        for step in steps:
            start = time.thread_time()
            step()
            took.append((time.thread_time() - start) * 1e3)
        while isinstance(self.switchboard._upstreams["app"].balancer, StandIn):
            start = time.thread_time()
            await asyncio.sleep(0)  # A part of a balancer that takes long is made in each turn.
            took.append((time.thread_time() - start) * 1e3)
        return took

    def commit(self, number: int) -> None:
        """Swap."""
        change = self.assembly.commit(number)
        self.switchboard.install(
            change.plans, change.upstreams, change.verdicts, change.material, change.ejections
        )


async def measure(balance: str, what: str, count: int) -> list[float]:
    """Return the turns of one change, in a worker of its own."""
    loop = asyncio.get_running_loop()
    memory = create_memory()
    tables = create_tables(64)
    switchboard = Switchboard(
        loop, 0, 1, Meters(memory), random.Random(7), SharedTables(tables).table
    )
    os.close(tables)
    worker = Worker(Assembly(), switchboard)
    os.close(memory)
    composer = Composer("bench", "lb-00000000")
    sources = sources_of(balance, count)
    first = composer.compose(sources, 1)
    turns = await worker.turns(first, None)
    if what != "the first one":
        turns = await worker.turns(composer.compose(CHANGES[what](sources), 2), first)
    worker.switchboard.close()
    return turns


def report(balance: str, count: int, rounds: int) -> Iterable[tuple[str, float, float]]:
    """Yield each change's line: the time until it is live, and its longest turn."""
    for what in CHANGES:
        runs = [uvloop.run(measure(balance, what, count)) for _ in range(rounds)]
        live = statistics.median(sum(turns) for turns in runs)
        stall = statistics.median(max(turns) for turns in runs)
        yield what, live, stall


def main() -> int:
    """Measure and print; 1 if what is wanted is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--balance", choices=BALANCERS, help="only this")
    given = parser.parse_args()
    gc.freeze()
    gc.set_threshold(GC_AFTER_OBJECTS)  # As a worker has it.
    missed = 0
    print(f"{given.backends} backends, median of {given.rounds}, ms")
    print(f"{'balance':16} {'what changes':16} {'live':>7} {'longest turn':>13}")
    for balance in (given.balance,) if given.balance else BALANCERS:
        for what, live, stall in report(balance, given.backends, given.rounds):
            bad = live > LIVE_MS or stall > STALL_MS
            missed += bad
            print(
                f"{balance:16} {what:16} {live:7.2f} {stall:13.2f}{'  missed' if bad else ''}",
                flush=True,
            )
    print(f"wanted: live in {LIVE_MS:g}, no turn over {STALL_MS:g}: {missed or 'none'} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
