"""Backends for the tests of balancing, and traffic for them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import heappop, heappush

from lb.balance import Balancer


class Backend:
    """A candidate that counts how often it is looked at."""

    looks = 0

    def __init__(self, key: str, weight: int = 1, backup: bool = False, address: str = "") -> None:
        self.key = key
        self.address = address or f"{key}:80"
        self.weight = weight
        self.backup = backup
        self.latency = 0.0
        self._in_flight = 0

    def __repr__(self) -> str:
        return f"{self.key}={self.weight}{'b' if self.backup else ''}"

    @property
    def in_flight(self) -> int:
        Backend.looks += 1
        return self._in_flight

    @in_flight.setter
    def in_flight(self, value: int) -> None:
        self._in_flight = value


class Tried(Collection[Backend]):
    """What was tried, counting how often it is asked."""

    def __init__(self, backends: Collection[Backend] = ()) -> None:
        self._backends = set(backends)
        self.asked = 0

    def __contains__(self, backend: object) -> bool:
        self.asked += 1
        return backend in self._backends

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends)

    def __len__(self) -> int:
        return len(self._backends)


def backends_of(text: str) -> list[Backend]:
    """Return backends as `a=5 b c*` has them: weight 1 unless said, a star for backups."""
    made = []
    for word in text.split():
        name, _, weight = word.rstrip("*").partition("=")
        made.append(Backend(name, int(weight or 1), word.endswith("*")))
    return made


def many(count: int, weights: Sequence[int] = (1,)) -> list[Backend]:
    return [Backend(f"10.0.{n >> 8}.{n & 255}", weights[n % len(weights)]) for n in range(count)]


def begin(balancer: Balancer[Backend], backend: Backend) -> None:
    backend.in_flight += 1
    if balancer.counts:
        balancer.taken(backend)


def end(balancer: Balancer[Backend], backend: Backend, seconds: float = 0.05) -> None:
    backend.in_flight -= 1
    if balancer.counts:
        balancer.returned(backend)
    if balancer.observes:
        balancer.observe(backend, seconds, 1.0)


def serve(
    balancer: Balancer[Backend], count: int, tried: Collection[Backend] = ()
) -> list[Backend]:
    """Send requests one after the other, each with a key of its own."""
    served = []
    for number in range(count):
        backend = balancer.pick(tried, b"client-%d" % number)
        assert backend is not None
        begin(balancer, backend)
        end(balancer, backend)
        served.append(backend)
    return served


def serve_at_once(
    balancer: Balancer[Backend],
    at_once: int,
    count: int,
    speed: Callable[[Backend], float] = lambda _: 1.0,
) -> Counter[str]:
    """Keep `at_once` requests running, which take about as long on every backend."""
    rng = random.Random(5)
    running: list[tuple[float, int, Backend]] = []
    served: Counter[str] = Counter()
    now = 0.0
    for number in range(count):
        if len(running) == at_once:
            now, _, done = heappop(running)
            end(balancer, done)
        backend = balancer.pick((), b"client-%d" % number)
        assert backend is not None
        begin(balancer, backend)
        heappush(running, (now + rng.expovariate(1) / speed(backend), number, backend))
        served[backend.key] += 1
    return served


def names(backends: Sequence[Backend | None]) -> str:
    return " ".join("-" if backend is None else backend.key for backend in backends)


def furthest_off(served: Counter[str], backends: Sequence[Backend]) -> float:
    """Return the worst difference of a share from its weight, as a share of what is due."""
    total = sum(backend.weight for backend in backends)
    requests = served.total()
    return max(
        abs(served[backend.key] / requests * total / backend.weight - 1)
        for backend in backends
        if backend.weight
    )
