"""How fast the consensus core is: proposals a second, replicated to three members in memory.

No disk and no network: what is measured is our own Python, which is what will be the limit.
Messages are passed on as values, and a write is over as soon as it is asked for. A batch is what
a busy leader finds waiting when it comes round: with one proposal at a time, each pays for a
whole round of messages.

    python bench/micro/raft.py [--seconds 1] [--bytes 256]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterable

from lb.raft.log import MemoryLog
from lb.raft.messages import ConfState, HardState, Message, Role, SnapMeta, Snapshot
from lb.raft.node import Config, Node

MEMBERS = (1, 2, 3)
BATCHES = (1, 16, 64, 256)
TARGET = 20_000  # Proposals a second, with batches of 64.
TARGET_BATCH = 64
ROUNDS = 3
KEPT_MAX = 20_000  # Entries; beyond, a member forgets them, as in production.


class Trio:
    """Three members that are told of each other's messages at once."""

    def __init__(self) -> None:
        conf = ConfState(frozenset(MEMBERS))
        self.logs = {number: MemoryLog() for number in MEMBERS}
        self.nodes = {
            number: Node(
                Config(id=number),
                self.logs[number],
                HardState(),
                conf,
                0,
                random.Random(number),
            )
            for number in MEMBERS
        }
        self.wires: list[Message] = []
        self.messages = 0
        self.applied = 0  # By the leader.
        self.nodes[1].campaign()
        self.settle()
        assert self.nodes[1].role is Role.LEADER

    def settle(self) -> None:
        """Go round until nobody has anything to do."""
        while self.work():
            wires, self.wires = self.wires, []
            self.messages += len(wires)
            for message in wires:
                self.nodes[message.to].step(message)

    def work(self) -> bool:
        """Let each member's driver do its duties; whether there was any."""
        for number, node in self.nodes.items():
            while node.has_ready():
                ready = node.ready()
                self.wires += ready.send_now
                if ready.persist:
                    self.logs[number].save(ready.persist)
                    node.persisted(ready.persist.seq)
                    self.wires += ready.persist.then_send
                if ready.apply:
                    node.applied(ready.apply[-1].index)
                    self.applied += len(ready.apply) if number == 1 else 0
        return bool(self.wires)

    def forget(self) -> None:
        """Compact logs that have grown long."""
        for number, node in self.nodes.items():
            log, index = self.logs[number], node.applied_index
            if log.last - log.first > KEPT_MAX:
                meta = SnapMeta(index, log.term(index), node.conf_at(index))
                log.put_snapshot(Snapshot(meta, b""))
                log.compact(node.compact(index))


def measure(batch: int, seconds: float, data: bytes) -> tuple[float, float]:
    """Return proposals a second, and messages a proposal."""
    trio = Trio()
    leader = trio.nodes[1]
    start = time.perf_counter()
    proposals = 0
    while time.perf_counter() - start < seconds:
        for _ in range(batch):
            leader.propose(data, b"")
        proposals += batch
        trio.settle()
        trio.forget()
    spent = time.perf_counter() - start
    assert trio.applied == proposals + 1, "all are applied, and the leader's own first entry"
    return proposals / spent, trio.messages / proposals


def report(seconds: float, size: int) -> Iterable[str]:
    """Return a table, row by row, and whether the target is met."""
    yield f"{size} bytes an entry, 3 members, median of {ROUNDS}"
    yield f"{'batch':>6} {'proposals/s':>12} {'us each':>8} {'messages each':>14}"
    reached = 0.0
    for batch in BATCHES:
        runs = [measure(batch, seconds, b"x" * size) for _ in range(ROUNDS)]
        rate = statistics.median(rate for rate, _ in runs)
        yield f"{batch:6} {rate:12,.0f} {1e6 / rate:8.1f} {runs[0][1]:14.2f}"
        if batch == TARGET_BATCH:
            reached = rate
    verdict = "met" if reached >= TARGET else "missed"
    yield f"target: {TARGET:,} proposals/s in batches of {TARGET_BATCH}: {verdict}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each run")
    parser.add_argument("--bytes", type=int, default=256, help="size of an entry's data")
    given = parser.parse_args()
    for line in report(given.seconds, given.bytes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
