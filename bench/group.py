"""A group of three beside three of etcd's: what agreeing costs, and how long a loss is felt.

Both run on this machine, with real syncs of a real disk, and are asked by the same client over
kept connections: etcd through its JSON gateway, Accord through its admin API, where an answer
means committed, applied, and routed by every worker of the instance asked. README.md beside this
file says how to read the table.

    python bench/group.py                                  # everything, about five minutes
    python bench/group.py --only writes,idle --no-etcd
    python bench/group.py --kills 30

Everything stays on the loopback, on free ports, and what was started is stopped by its pid.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import uvloop
from programs import BenchError
from raw_client import Connection, field_of, request
from trios import Accord, Etcd, Trio, running

CONNECTIONS = 64
WARM_UP_WRITES = 300
ROUTED_CHANGES = 300
BACKENDS = 10_000
OFFERS_BEFORE = 20
OFFER_EVERY = 0.01  # Seconds between the writes that look for the end of a gap.
GAP_SECONDS_MAX = 20.0
BEHIND_WRITES = 12_000  # More than a log keeps for those who are behind.
PROBE_EVERY = 0.001
REJOIN_SECONDS_MAX = 60.0  # Its old id must be silent for ten elections' time.

NUMBERS = count(1)


@dataclass(frozen=True)
class Row:
    """One line of the table; `aim` is the most, or with `least` the least, that it should be."""

    what: str
    unit: str
    aim: float | None
    values: dict[str, float]
    least: bool = False

    def verdict(self) -> str:
        """Return whether Accord is where it should be."""
        value = self.values.get("accord")
        if self.aim is None or value is None:
            return ""
        return "yes" if (value >= self.aim if self.least else value <= self.aim) else "NO"


class Table:
    """What was measured, of whom."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def note(
        self,
        trio: Trio,
        what: str,
        value: float,
        unit: str,
        *,
        aim: float | None = None,
        least: bool = False,
    ) -> None:
        """Put down one figure, and say it at once."""
        row = self._rows.setdefault(what, Row(what, unit, aim, {}, least))
        row.values[trio.name] = value
        print(f"  {trio.name}: {what}: {value:,.2f} {unit}", file=sys.stderr)

    def text(self) -> str:
        """Return it in Markdown."""
        lines = ["| | aim | Accord | etcd | reached |", "|---|---|---|---|---|"]
        for row in self._rows.values():
            aim = "" if row.aim is None else f"{'≥' if row.least else '≤'} {row.aim:,g} {row.unit}"
            values = [
                f"{row.values[name]:,.2f} {row.unit}" if name in row.values else ""
                for name in ("accord", "etcd")
            ]
            lines.append(f"| {row.what} | {aim} | {' | '.join(values)} | {row.verdict()} |")
        return "\n".join(lines)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share of all do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- Writes -------------------------------------------------------------------------------------


async def write(connection: Connection, trio: Trio) -> float:
    """Write once; return how long it took."""
    began = time.perf_counter()
    status, body = await connection.ask(trio.write(next(NUMBERS)))
    if status not in (200, 201):
        raise BenchError(f"{trio.name} answered {status}: {body[:300]!r}")
    return time.perf_counter() - began


async def writes(trio: Trio, table: Table, options: argparse.Namespace) -> None:
    """One client, on the leader and on another; then many at once, on all three."""
    leader = trio.wait_formed()
    other = next(member for member in trio.members if member != leader)
    for role, member in (("the leader", leader), ("a follower", other)):
        connection = await Connection.open(trio.ports[member])
        for _ in range(WARM_UP_WRITES):
            await write(connection, trio)
        deadline = time.monotonic() + options.seconds
        took = []
        while time.monotonic() < deadline:
            took.append(await write(connection, trio) * 1e3)
        connection.close()
        table.note(trio, f"write through {role}, p50", statistics.median(took), "ms", aim=5)
        table.note(trio, f"write through {role}, p99", percentile(took, 0.99), "ms", aim=25)
    await many_writes(trio, table, options.seconds)


async def many_writes(trio: Trio, table: Table, seconds: float) -> None:
    """Write over 64 connections, spread over all three."""
    ports = [trio.ports[member] for member in trio.members]
    connections = [await Connection.open(ports[n % 3]) for n in range(CONNECTIONS)]
    took: list[float] = []
    began = time.monotonic()

    async def work(connection: Connection) -> None:
        while time.monotonic() < began + seconds:
            took.append(await write(connection, trio) * 1e3)

    async with asyncio.TaskGroup() as tasks:
        for connection in connections:
            tasks.create_task(work(connection))
    rate = len(took) / (time.monotonic() - began)
    for connection in connections:
        connection.close()
    table.note(trio, f"writes/s, {CONNECTIONS} clients", rate, "/s", aim=1000, least=True)
    table.note(trio, f"write, {CONNECTIONS} clients, p99", percentile(took, 0.99), "ms")


async def routed(trio: Trio, table: Table, options: argparse.Namespace) -> None:
    """From sending a write until every worker of every instance routes by it."""
    if not isinstance(trio, Accord):
        return
    trio.wait_formed()
    writers = [await Connection.open(trio.ports[member]) for member in trio.members]
    watchers = [await Connection.open(trio.ports[member]) for member in trio.members]
    look = request("GET", "/v1/upstreams/big")
    answered, everywhere = [], []

    async def reached(watcher: Connection, revision: int) -> float:
        while True:
            await watcher.ask(look)
            if int(field_of(watcher.head, "x-revision")) >= revision:
                return time.perf_counter()

    for number in range(ROUTED_CHANGES):
        began = time.perf_counter()
        writer = writers[number % 3]
        status, body = await writer.ask(trio.write(next(NUMBERS)))
        if status not in (200, 201):
            raise BenchError(f"accord answered {status}: {body[:300]!r}")
        answered.append((time.perf_counter() - began) * 1e3)
        revision = int(body.split(b'"revision":', 1)[1].split(b",", 1)[0].strip(b" }"))
        ends = await asyncio.gather(*(reached(watcher, revision) for watcher in watchers))
        everywhere.append((max(ends) - began) * 1e3)
    for connection in (*writers, *watchers):
        connection.close()
    table.note(trio, "sent to routed everywhere, p50", statistics.median(everywhere), "ms")
    table.note(trio, "sent to routed everywhere, p99", percentile(everywhere, 0.99), "ms", aim=50)


# --- Gaps ---------------------------------------------------------------------------------------


class Offers:
    """Writes offered every few milliseconds, each over whatever connection is free."""

    def __init__(self, trio: Trio, members: Sequence[str]) -> None:
        self._trio = trio
        self._members = members
        self._tasks: set[asyncio.Task[None]] = set()
        self._free: dict[str, list[Connection]] = {member: [] for member in members}
        self.done: list[tuple[float, float]] = []  # When it was sent, and when answered.

    async def until(self, over: Callable[[Offers], bool]) -> None:
        """Offer until something is so, or for as long as a gap may last."""
        deadline = time.monotonic() + GAP_SECONDS_MAX
        number = 0
        while not over(self) and time.monotonic() < deadline:
            task = asyncio.ensure_future(self._offer(self._members[number % len(self._members)]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
            await asyncio.sleep(OFFER_EVERY)

    async def more(self, count: int) -> None:
        """Offer until so many more were done."""
        goal = len(self.done) + count
        await self.until(lambda _: len(self.done) >= goal)

    def first_after(self, moment: float) -> float | None:
        """Return when the first was answered of those sent after a moment, if any was."""
        after = [answered for sent, answered in self.done if sent > moment]
        return min(after, default=None)

    async def close(self) -> None:
        """Wait for no answer any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connections in self._free.values():
            for connection in connections:
                connection.close()

    async def _offer(self, member: str) -> None:
        free = self._free[member]
        with contextlib.suppress(OSError, TimeoutError):
            connection = free.pop() if free else await Connection.open(self._trio.ports[member])
            sent = time.monotonic()
            status, _ = await connection.ask(self._trio.write(next(NUMBERS)))
            free.append(connection)
            if status in (200, 201):
                self.done.append((sent, time.monotonic()))


def is_done_after(moment: float, offers: Offers) -> bool:
    """Whether a write that was sent after a moment has been answered."""
    return offers.first_after(moment) is not None


def has_ended(trio: Trio, member: str, offers: Offers) -> bool:
    """Whether a member has ended."""
    return trio.ended(member)


async def killed(trio: Trio, table: Table, options: argparse.Namespace) -> None:
    """Kill the leader, again and again; writes go on at the others after a gap."""
    gaps = []
    for _ in range(options.kills):
        leader = trio.wait_formed()
        offers = Offers(trio, [member for member in trio.members if member != leader])
        await offers.more(OFFERS_BEFORE)
        trio.kill(leader)
        at = time.monotonic()
        await offers.until(partial(is_done_after, at))
        end = offers.first_after(at)
        await offers.close()
        if end is None:
            raise BenchError(f"{trio.name}: no write for {GAP_SECONDS_MAX:g} s")
        gaps.append(end - at)
        trio.start(leader)
    trio.wait_formed()
    table.note(trio, "leader killed, p50", statistics.median(gaps), "s", aim=1.5)
    table.note(trio, f"leader killed, worst of {len(gaps)}", max(gaps), "s", aim=3)


async def stopped(trio: Trio, table: Table, options: argparse.Namespace) -> None:
    """Stop the leader in order; the longest time in which no write was answered."""
    gaps = []
    for _ in range(max(3, options.kills // 2)):
        leader = trio.wait_formed()
        offers = Offers(trio, [member for member in trio.members if member != leader])
        await offers.more(OFFERS_BEFORE)
        at = time.monotonic()
        trio.stop(leader)
        await offers.until(partial(has_ended, trio, leader))
        await offers.more(OFFERS_BEFORE)
        await offers.close()
        ends = sorted([at, *(answered for _, answered in offers.done if answered > at)])
        gaps.append(max(after - before for before, after in pairwise(ends)) * 1e3)
        trio.start(leader)
    trio.wait_formed()
    table.note(trio, "leader stopped in order, p50", statistics.median(gaps), "ms", aim=200)
    table.note(trio, f"leader stopped, worst of {len(gaps)}", max(gaps), "ms", aim=200)


# --- At rest, and large -------------------------------------------------------------------------


async def idle(trio: Trio, table: Table, options: argparse.Namespace) -> None:
    """What it costs to do nothing, of all three together."""
    trio.wait_formed()
    await asyncio.sleep(2.0)
    only = "lb.controller" if isinstance(trio, Accord) else ""
    before, part, at = trio.cpu_seconds(), trio.cpu_seconds(only), time.monotonic()
    await asyncio.sleep(options.seconds)
    seconds = time.monotonic() - at
    share = (trio.cpu_seconds(only) - part) / seconds * 100
    table.note(trio, "idle, what agrees, of one core", share, "%", aim=2)
    everything = (trio.cpu_seconds() - before) / seconds * 100
    table.note(trio, "idle, all processes, of one core", everything, "%")


class Probe:
    """Asks a worker for what it answers by itself, all the time; the slowest answer tells."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.took: list[float] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        connection = await Connection.open(self._port)
        look = request("GET", "/here")
        try:
            while True:
                began = time.perf_counter()
                await connection.ask(look)
                self.took.append((time.perf_counter() - began) * 1e3)
                await asyncio.sleep(PROBE_EVERY)
        finally:
            connection.close()

    async def during(self, work: Awaitable[None]) -> float:
        """Ask while something is done; return the slowest answer."""
        self.took.clear()
        task = asyncio.ensure_future(self.run())
        try:
            await work
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return max(self.took, default=0.0)


async def large(trio: Trio, table: Table, options: argparse.Namespace) -> None:
    """10,000 backends: what adding them costs traffic, and a snapshot to one who was away."""
    if not isinstance(trio, Accord):
        return
    leader = trio.wait_formed()
    away = next(member for member in trio.members if member != leader)
    other = next(member for member in trio.members if member not in (leader, away))
    quiet = await Probe(trio.doors[other]).during(asyncio.sleep(5.0))
    table.note(trio, "slowest answer at rest (noise of the client)", quiet, "ms")
    took = time.monotonic()
    stall = await Probe(trio.doors[other]).during(asyncio.to_thread(add_backends, trio, leader))
    table.note(trio, f"{BACKENDS:,} added by one reload", time.monotonic() - took, "s")
    table.note(trio, "slowest answer elsewhere meanwhile", stall, "ms", aim=5)
    for what, upstream in (("beside", "app"), ("among", "big")):
        work = several(trio, leader, 100, upstream=upstream)
        stall = await Probe(trio.doors[other]).during(work)
        table.note(trio, f"slowest answer at writes {what} {BACKENDS:,}", stall, "ms", aim=5)
    # A box whose log is gone: it serves what it last knew, and is sent all by a snapshot.
    await several(trio, leader, BEHIND_WRITES, CONNECTIONS)
    trio.kill(away)
    shutil.rmtree(trio.folder / away / "raft")
    trio.start(away)
    trio.wait(partial(is_serving, trio, away), f"{away} serves")
    probe, seconds = Probe(trio.doors[away]), [0.0]

    def follow() -> None:
        trio.wait(partial(has_joined, trio, away), f"{away} has joined", REJOIN_SECONDS_MAX)
        began = time.monotonic()
        catch_up(trio, away, trio.revision(leader))
        seconds[0] = time.monotonic() - began

    stall = await probe.during(asyncio.to_thread(follow))
    table.note(trio, "snapshot: from joining to routed", seconds[0], "s", aim=3)
    table.note(trio, "slowest answer there, joining", stall, "ms", aim=5)


def is_serving(trio: Accord, member: str) -> bool:
    """Whether an instance is ready for traffic."""
    return bool(trio.ask(member, "/v1/status")["ready"])


def has_joined(trio: Accord, member: str) -> bool:
    """Whether an instance is in the group, as far as it knows."""
    return bool(trio.ask(member, "/v1/status")["group"]["state"] != "forming")


def catch_up(trio: Accord, member: str, goal: int) -> None:
    """Wait until an instance knows all."""
    trio.wait(partial(routes_by, trio, member, goal), f"{member} routes by all of it")


def add_backends(trio: Accord, leader: str) -> None:
    """Add many backends by the file of one instance: that is one command."""
    path = trio.folder / f"{leader}.toml"
    listed = ", ".join(f'"10.8.{n // 250}.{n % 250 + 1}:80"' for n in range(BACKENDS))
    before, _, _ = path.read_text().partition("[upstream.big]")
    path.write_text(f'{before}[upstream.big]\nbackends = ["127.0.0.1:9", {listed}]\n')
    trio.ask(leader, "/v1/config/reload", {})
    goal = trio.revision(leader)
    for member in trio.members:
        trio.wait(partial(routes_by, trio, member, goal), f"{member} routes by them")


def routes_by(trio: Accord, member: str, revision: int) -> bool:
    """Whether all workers of an instance route by a revision."""
    return trio.routed(member) >= revision


async def several(
    trio: Accord, member: str, writes: int, connections: int = 1, upstream: str = "app"
) -> None:
    """Write so many times."""
    left = iter(range(writes))

    async def work() -> None:
        connection = await Connection.open(trio.ports[member])
        for number in left:
            asked = trio.write(next(NUMBERS))
            if upstream == "big":
                body = b'{"weight":%d}' % (number % 100 + 2)
                asked = request(
                    "PUT", f"/v1/upstreams/big/backends/10.8.0.{number % 250 + 1}:80", body
                )
            status, said = await connection.ask(asked)
            if status not in (200, 201):
                raise BenchError(f"{trio.name} answered {status}: {said[:300]!r}")
        connection.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(work())


MEASURES: dict[str, Callable[[Trio, Table, argparse.Namespace], Awaitable[None]]] = {
    "writes": writes,
    "routed": routed,
    "idle": idle,
    "killed": killed,
    "stopped": stopped,
    "large": large,
}


async def measure(options: argparse.Namespace, folder: Path) -> Table:
    """Measure one trio after the other, so that neither is in the other's way."""
    table = Table()
    trios: list[Trio] = [Accord(folder / "accord", options.lb)]
    if options.etcd:
        trios.insert(0, Etcd(folder / "etcd"))
    for trio in trios:
        with running(trio):
            for name in options.only.split(","):
                print(f"{trio.name}: {name}", file=sys.stderr)
                await MEASURES[name](trio, table, options)
    return table


def main() -> int:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(MEASURES), help="of " + ", ".join(MEASURES))
    parser.add_argument("--no-etcd", dest="etcd", action="store_false")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each figure")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--lb", default="", help="another command to start an instance by")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(MEASURES):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="bench-group-") as folder:
        try:
            text = uvloop.run(measure(options, Path(folder))).text()
        except BenchError as error:
            print(f"group: {error}", file=sys.stderr)
            return 1
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
