"""One run: a group behind a bad network, clients and watchers all the while, and the verdict."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos.clients import UPSTREAMS, Client, Notes, Watcher
from chaos.judging import judge
from chaos.proxy import Proxy
from chaos.strikes import NETWORK, ON_THE_WIRE, PROCESSES, Deck, Scene
from journeys.group_kit import Group, Instance
from journeys.kit import until

CLIENTS = 8
WATCHERS = 3
ROUND_SECONDS = (1.0, 4.0)
REST_SECONDS = (0.3, 1.5)
CALM_SECONDS = 40.0
FAULTS = (*NETWORK, *PROCESSES, *ON_THE_WIRE)

CONFIG = '[listener.web]\naddress = "127.0.0.1:{port}"\nupstream = "u0"\n' + "".join(
    f'[upstream.{name}]\nbackends = ["127.0.0.1:9"]\n' for name in UPSTREAMS
)


@dataclass(slots=True)
class Outcome:
    """What came of a run. `wrong` is empty, or the group is."""

    seed: int
    completed: int
    seconds: float
    wrong: list[str]
    leaders: dict[int, str]  # By term, as status told.
    fired: Counter[str]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def leader_changes(self) -> int:
        """Return how often somebody else, or the same one anew, came to lead."""
        return max(0, len(self.leaders) - 1)

    def report(self) -> str:
        """Return all of it as text."""
        lines = [
            f"seed {self.seed}: {self.completed:,} calls completed in {self.seconds:.0f} s, "
            f"{self.leader_changes} leader changes",
            *(f"  {fault:24} {self.fired[fault]:7,}" for fault in FAULTS),
            *(f"  {what:24} {count:7,}" for what, count in sorted(self.counts.items())),
            *self.wrong[:20],
        ]
        return "\n".join(lines)


class Crowd:
    """Clients and watchers on all instances of a group."""

    def __init__(
        self, group: Group, seed: int, *, calls_max: int = 1 << 40, consistent: bool = True
    ) -> None:
        desks = [(each.name, each.admin_port) for each in group]
        self.notes = Notes(seed, calls_max)
        self._group = group
        group.everywhere(knows_its_upstreams, "what the files say has been decided")
        start = group.leader().status()["revision"] + 1
        self._clients = [
            Client(number, desks, self.notes, consistent=consistent)
            for number in range(1, CLIENTS + 1)
        ]
        self._watchers = [Watcher(number, desks, start) for number in range(1, WATCHERS + 1)]

    def start(self) -> None:
        """Begin."""
        for thread in (*self._watchers, *self._clients):
            thread.start()

    def stop(self) -> None:
        """Have all of them end, whatever came of it: no client waits for an answer any more."""
        self.notes.calm.clear()
        self.notes.stopping.set()
        for watcher in self._watchers:
            watcher.finish()

    def finish(self) -> list[str]:
        """When nothing goes wrong any more: have all calls end, and say what was wrong."""
        self.notes.calm.set()
        self.notes.stopping.set()
        for client in self._clients:
            client.join(CALM_SECONDS)
        waiting = [client.name for client in self._clients if client.is_alive()]
        wrong = [f"{name} has no answer yet" for name in waiting]
        newest = self._group.leader().status()["revision"]
        with contextlib.suppress(AssertionError):  # `judge` says who was not told of what.
            until(lambda: all(each.newest >= newest for each in self._watchers), "all told")
        for watcher in self._watchers:
            watcher.finish()
        for watcher in self._watchers:
            watcher.join(CALM_SECONDS)
        wrong += judge(self.notes.history, [each.watched for each in self._watchers], newest)
        for watcher in self._watchers:
            wrong += watcher.surprises
            self.notes.counts.update({f"watch {how}": n for how, n in watcher.resumed.items()})
        return wrong + self.notes.surprises


class Lookout(threading.Thread):
    """Asks all instances who leads, all the time."""

    def __init__(self, group: Group) -> None:
        super().__init__(name="lookout", daemon=True)
        self.leaders: dict[int, str] = {}
        self.wrong: list[str] = []
        self._group = group
        self._over = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(0.1):
            for instance in self._group:
                with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                    self._note(instance)

    def finish(self) -> None:
        """Look no further."""
        self._over.set()
        self.join(CALM_SECONDS)

    def _note(self, instance: Instance) -> None:
        said = instance.status()
        if said["role"] != "leader":
            return
        first = self.leaders.setdefault(said["term"], instance.name)
        if first != instance.name:
            self.wrong.append(f"two leaders in term {said['term']}: {first}, {instance.name}")


@dataclass(frozen=True, slots=True)
class Goal:
    """When a run may end: all of it reached, each fault fired, or `seconds_max` over."""

    completed: int
    leader_changes: int
    seconds_max: float


def run(folder: Path, seed: int, goal: Goal) -> Outcome:
    """Break a group in every way while it is used, and judge it."""
    rng = random.Random(seed)
    started = time.monotonic()
    with behind_a_bad_network(folder, seed) as (group, proxy):
        scene = Scene(group, proxy, rng, proxy.fired)
        crowd, lookout = Crowd(group, seed), Lookout(group)
        crowd.start()
        lookout.start()
        try:
            _strike(scene, crowd.notes, lookout, goal)
            restart_the_ended(group)
            group.formed()
            group.leader()
            wrong = crowd.finish()
        finally:
            lookout.finish()
            crowd.stop()
        wrong += lookout.wrong
        wrong += [f"{each.name} says: {line}" for each in group for line in alarms(each.log())]
        seconds = time.monotonic() - started
        return Outcome(
            seed,
            crowd.notes.completed,
            seconds,
            wrong,
            lookout.leaders,
            proxy.fired,
            crowd.notes.counts,
        )


@contextlib.contextmanager
def behind_a_bad_network(folder: Path, seed: int) -> Iterator[tuple[Group, Proxy]]:
    """Run a group of three whose members reach each other through a proxy only."""
    with contextlib.ExitStack() as stack:
        proxy = Proxy(seed)
        stack.callback(proxy.close)
        group = Group(folder, CONFIG, network=proxy)
        stack.callback(group.end)
        yield group.start(), proxy


def alarms(log: str) -> list[str]:
    """Return what no log should ever say, whatever happens to processes and networks."""
    return [
        line
        for line in log.splitlines()
        if "Traceback" in line or "AssertionError" in line or "damaged" in line
    ]


def _strike(scene: Scene, notes: Notes, lookout: Lookout, goal: Goal) -> None:
    network, processes = Deck(NETWORK, scene.rng), Deck(PROCESSES, scene.rng)
    deadline = time.monotonic() + goal.seconds_max
    rounds = 0
    pause = threading.Event().wait
    while time.monotonic() < deadline:
        if (
            notes.completed >= goal.completed
            and len(lookout.leaders) > goal.leader_changes
            and all(scene.fired[fault] for fault in FAULTS)
        ):
            return
        rounds += 1
        restart_the_ended(scene.group)
        with contextlib.ExitStack() as stack:
            stack.callback(scene.proxy.heal)
            for deck in (network, processes) if rounds % 3 else (network,):
                name, strike = deck.draw()
                stack.enter_context(strike(scene))
                scene.fired[name] += 1
            pause(scene.rng.uniform(*ROUND_SECONDS))
        pause(scene.rng.uniform(*REST_SECONDS))


def knows_its_upstreams(instance: Instance) -> bool:
    """Whether the registry has all upstreams; until then they are served from the file."""
    shown = instance.admin("/v1/upstreams").json()["upstreams"]
    return len(shown) == len(UPSTREAMS) and all(each["revision"] for each in shown)


def restart_the_ended(group: Group) -> None:
    """Start who was killed at its start, and so ended as a whole: as whoever watches it would."""
    for instance in group:
        if not instance.runs:
            instance.end()
            instance.launch()
