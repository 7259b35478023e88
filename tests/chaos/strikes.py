"""What goes wrong, and when: strikes, dealt like cards from a seed, so that each has its turn.

A strike is a block: it begins, lasts while the block does, and is made good at its end. One
round has a strike against processes and, mostly, one against the network at the same time.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from chaos.proxy import Link, Proxy
from journeys.group_kit import Group, Instance, stopped

Strike = Callable[["Scene"], AbstractContextManager[None]]


@dataclass(slots=True)
class Scene:
    """What can be struck. `fired` counts the strikes that found what they wanted to hit."""

    group: Group
    proxy: Proxy
    rng: random.Random
    fired: Counter[str]

    def anyone(self) -> Instance:
        """Return an instance that runs."""
        return self.rng.choice([each for each in self.group if each.runs])

    def leader(self) -> Instance:
        """Return who leads, as far as anyone says so now; else anyone."""
        for instance in self.group:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                if instance.runs and instance.status()["role"] == "leader":
                    return instance
        return self.anyone()

    def others(self, instance: Instance) -> list[Instance]:
        """Return everybody else."""
        return [each for each in self.group if each is not instance]

    def pairs(self) -> list[tuple[str, str]]:
        """Return all directed pairs of members."""
        names = list(self.group.members)
        return [(a, b) for a in names for b in names if a != b]


# --- Against the network ------------------------------------------------------------------------


@contextlib.contextmanager
def cut_off_the_leader(scene: Scene) -> Iterator[None]:
    """Cut the leader off, both ways: it must not answer what is not true any more."""
    leader = scene.leader()
    scene.proxy.isolate(leader.name, [each.name for each in scene.others(leader)])
    yield


@contextlib.contextmanager
def cut_off_anyone(scene: Scene) -> Iterator[None]:
    """Cut one member off, both ways."""
    victim = scene.anyone()
    scene.proxy.isolate(victim.name, [each.name for each in scene.others(victim)])
    yield


@contextlib.contextmanager
def cut_a_pair(scene: Scene) -> Iterator[None]:
    """Cut two members off from each other; a third still reaches both."""
    a, b = scene.rng.choice(scene.pairs())
    scene.proxy.cut(a, b)
    scene.proxy.cut(b, a)
    yield


@contextlib.contextmanager
def cut_one_way(scene: Scene) -> Iterator[None]:
    """Let a member hear another that does not hear it."""
    scene.proxy.cut(*scene.rng.choice(scene.pairs()))
    yield


@contextlib.contextmanager
def deafen_the_leader(scene: Scene) -> Iterator[None]:
    """Let the leader be heard, and hear nobody."""
    leader = scene.leader()
    for other in scene.others(leader):
        scene.proxy.cut(other.name, leader.name)
    yield


def weather(change: Callable[[random.Random, Link], None]) -> Strike:
    """Make a strike of something that befalls most links, each in its own measure."""

    @contextlib.contextmanager
    def strike(scene: Scene) -> Iterator[None]:
        pairs = scene.pairs()
        for frm, to in scene.rng.sample(pairs, len(pairs) - 1):
            scene.proxy.set(frm, to, lambda link: change(scene.rng, link))
        yield

    return strike


def delay(rng: random.Random, link: Link) -> None:
    link.delay, link.jitter = 0.05 * rng.random(), 0.2 * rng.random()


def slow(rng: random.Random, link: Link) -> None:
    link.pace = rng.choice((4_000.0, 20_000.0, 100_000.0))


def swap(rng: random.Random, link: Link) -> None:
    link.swaps = rng.randrange(1, 4)


def repeat(rng: random.Random, link: Link) -> None:
    link.repeats = rng.randrange(1, 4)


def spoil(rng: random.Random, link: Link) -> None:
    link.spoils = rng.randrange(1, 4)


@contextlib.contextmanager
def reset(scene: Scene) -> Iterator[None]:
    """Reset connections, some from each side."""
    for frm, to in scene.proxy.connections():
        if scene.rng.random() < 0.7:
            scene.proxy.reset(frm, to)
    yield


# --- Against processes --------------------------------------------------------------------------


@contextlib.contextmanager
def kill_the_leader(scene: Scene) -> Iterator[None]:
    """Kill the leader's whole instance, and start it again."""
    with _killed(scene.leader()):
        yield


@contextlib.contextmanager
def kill_anyone(scene: Scene) -> Iterator[None]:
    """Kill a whole instance, and start it again."""
    with _killed(scene.anyone()):
        yield


@contextlib.contextmanager
def _killed(victim: Instance) -> Iterator[None]:
    victim.end()
    yield
    victim.launch()


@contextlib.contextmanager
def kill_a_controller(scene: Scene) -> Iterator[None]:
    """Kill a controller; its supervisor starts another."""
    for pid in scene.leader().children("controller"):
        os.kill(pid, signal.SIGKILL)
    yield


@contextlib.contextmanager
def hold_the_leader(scene: Scene) -> Iterator[None]:
    """Hold the leader still; it comes back and does not know that time has passed."""
    with contextlib.ExitStack() as stack:
        for pid in scene.leader().children("controller"):
            stack.enter_context(stopped(pid))
        yield


@contextlib.contextmanager
def hold_anyone(scene: Scene) -> Iterator[None]:
    """Hold some controller still."""
    with contextlib.ExitStack() as stack:
        for pid in scene.anyone().children("controller"):
            stack.enter_context(stopped(pid))
        yield


@contextlib.contextmanager
def stop_the_leader(scene: Scene) -> Iterator[None]:
    """Stop the leader in order, and start it again."""
    leader = scene.leader()
    leader.stop()
    yield
    leader.launch()


@contextlib.contextmanager
def hand_over(scene: Scene) -> Iterator[None]:
    """Have leadership handed over."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        scene.leader().admin("/v1/group/transfer", "POST", body={}, timeout=5.0)
    yield


@contextlib.contextmanager
def kill_two(scene: Scene) -> Iterator[None]:
    """Kill two instances: nothing can be written until one is back."""
    two = scene.rng.sample([each for each in scene.group if each.runs], 2)
    with _killed(two[0]), _killed(two[1]):
        yield


NETWORK: dict[str, Strike] = {
    "leader cut off": cut_off_the_leader,
    "member cut off": cut_off_anyone,
    "pair cut": cut_a_pair,
    "one way cut": cut_one_way,
    "leader deaf": deafen_the_leader,
    "frames late": weather(delay),
    "links slow": weather(slow),
    "frames swapped": weather(swap),
    "frames repeated": weather(repeat),
    "frames spoilt": weather(spoil),
    "connections reset": reset,
}
PROCESSES: dict[str, Strike] = {
    "leader killed": kill_the_leader,
    "member killed": kill_anyone,
    "controller killed": kill_a_controller,
    "leader held": hold_the_leader,
    "controller held": hold_anyone,
    "leader stopped": stop_the_leader,
    "leadership handed over": hand_over,
    "two killed": kill_two,
}
# What the proxy must have done to octets, whatever was set.
ON_THE_WIRE = ("cut", "delayed", "slowed", "reordered", "repeated", "spoilt", "reset")


class Deck:
    """Strikes in a shuffled order, and again in another once all had their turn."""

    def __init__(self, strikes: dict[str, Strike], rng: random.Random) -> None:
        self._strikes = strikes
        self._rng = rng
        self._left: list[str] = []

    def draw(self) -> tuple[str, Strike]:
        """Take the next one."""
        if not self._left:
            self._left = list(self._strikes)
            self._rng.shuffle(self._left)
        name = self._left.pop()
        return name, self._strikes[name]
