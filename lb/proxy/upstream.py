"""
One upstream live in one worker: who takes traffic now, and what is known of each endpoint.

A `LiveEndpoint` outlives editions: its pool, counts and latency stay as long as some edition
has it, and until its last exchange ends after that.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from time import monotonic
from typing import Final, Protocol

from lb.balance import Balancer, make
from lb.health import eligible
from lb.metrics import Meters
from lb.model import Endpoint, Health, State, Upstream, UpstreamTls
from lb.proxy.deadlines import NEVER, Deadlines
from lb.proxy.plan import Slots
from lb.proxy.pool import Pool
from lb.proxy.tls_contexts import client_context
from lb.retry import RetryBudget

QUEUE_MAX: Final = 100_000  # requests that wait, whatever the file says


class LiveEndpoint:
    """An endpoint with its pool, its running exchanges, and its counters' places."""

    __slots__ = (
        "_gauges",
        "_view",
        "address",
        "authority",
        "backup",
        "classes",
        "errors",
        "health",
        "in_flight",
        "key",
        "latency",
        "leaves_at",
        "pool",
        "retries",
        "seconds",
        "state",
        "weight",
    )

    def __init__(self, upstream: str, endpoint: Endpoint, pool: Pool, meters: Meters) -> None:
        self.key = endpoint.key
        self.address = endpoint.address
        self.pool = pool
        self.health = Health.UNCHECKED
        self.in_flight = 0
        self.latency = 0.0
        self.leaves_at = NEVER  # when its last exchanges are cut, once it is leaving
        self.adopt(endpoint)
        labels = {"upstream": upstream, "backend": endpoint.key}
        total = "lb_backend_requests_total"
        self.classes: Slots[int] = Slots(lambda n: meters.counter(total, **labels, code=f"{n}xx"))
        self.seconds = meters.histogram("lb_backend_seconds", **labels)
        self.errors: Slots[str] = Slots(
            lambda kind: meters.counter("lb_backend_errors_total", **labels, kind=kind)
        )
        self.retries: Slots[str] = Slots(
            lambda reason: meters.counter("lb_retries_total", **labels, reason=reason)
        )
        self._gauges = (
            meters.gauge("lb_backend_active_requests", **labels),
            meters.gauge("lb_backend_connections", **labels, conn="idle"),
            meters.gauge("lb_backend_connections", **labels, conn="busy"),
        )
        self._view = meters.view

    def adopt(self, endpoint: Endpoint) -> None:
        """Take on what an edition says of it."""
        self.weight = endpoint.weight
        self.state = endpoint.state
        self.backup = endpoint.backup
        self.authority = endpoint.address  # as a Host
        if endpoint.host:
            port = endpoint.address.rpartition(":")[2]
            self.authority = endpoint.host if port == "443" else f"{endpoint.host}:{port}"

    def show(self) -> None:
        """Write the gauges: at each tick, not at each request."""
        active, idle, busy = self._gauges
        self._view[active] = self.in_flight
        self._view[idle] = self.pool.idle_count
        self._view[busy] = self.pool.busy_count

    def leave(self, now: float, force_s: float) -> None:
        """Take no more requests; what runs may go on until `force_s` from now."""
        self.pool.close_idle()
        if self.leaves_at is NEVER:
            self.leaves_at = now + force_s


class Waiting:
    """A request's place in the queue of an upstream whose endpoints are all at their limit."""

    __slots__ = ("deadline", "exchange")

    def __init__(self, exchange: Waiter, deadline: float) -> None:
        self.exchange: Waiter | None = exchange  # None: it has gone
        self.deadline = deadline

    def on_deadline(self, now: float) -> None:
        """It has waited long enough."""
        exchange, self.exchange = self.exchange, None
        self.deadline = NEVER
        if exchange is not None:
            exchange.queue_timed_out()


class Waiter(Protocol):
    """An exchange, as the queue sees it."""

    def admitted(self, endpoint: LiveEndpoint, now: float) -> None:
        """Go to this endpoint; it counts as taken already."""
        ...

    def queue_timed_out(self) -> None:
        """Learn that there was no place in time."""
        ...


class LiveUpstream:
    """Gives out endpoints by policy, health and state; swapped into by each edition."""

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        meters: Meters,
        rng: random.Random,
        workers: int = 1,
    ) -> None:
        self.name = name
        self._workers = workers
        self._limit = 0  # requests an endpoint works on for this worker; 0: none
        self._full: set[LiveEndpoint] = set()
        self._queue: deque[Waiting] = deque()  # at most limits.queue, and QUEUE_MAX
        self.policy = Upstream(name)
        self.budget = RetryBudget(self.policy.retries.budget)
        self.active = 0
        self.panicking = False
        self._loop = loop
        self._deadlines = deadlines
        self._meters = meters
        self._rng = rng
        self._endpoints: dict[tuple[str, str], LiveEndpoint] = {}
        self._leaving: set[LiveEndpoint] = set()
        self._queue_length = meters.gauge("lb_queue_length", upstream=name)
        self._panic = meters.gauge("lb_upstream_panic", upstream=name)
        self.balancer: Balancer[LiveEndpoint] = make("round_robin", (), rng)
        self._tls: tuple[UpstreamTls, ssl.SSLContext] | None = None

    def install(
        self,
        policy: Upstream,
        endpoints: Sequence[Endpoint],
        verdicts: Mapping[str, Health],
        material: Mapping[str, bytes],
    ) -> None:
        """
        Serve by these from the next pick on; positions, pools and counts are kept.

        `material` has the certificates that `policy.tls` names.
        """
        self.policy = policy
        self.budget.share = policy.retries.budget
        self._limit = -(-policy.limits.per_backend // self._workers)
        self._full = {live for live in self._full if 0 < self._limit <= live.in_flight}
        now = monotonic()
        before, self._endpoints = self._endpoints, {}
        unknown = Health.CHECKING if policy.checked else Health.UNCHECKED
        for endpoint in endpoints:
            live = self._adopt(before.pop((endpoint.key, endpoint.address), None), endpoint)
            live.pool.configure(policy)
            if endpoint.host:
                context = self._context(policy.tls, material)
                live.pool.secure(context, policy.tls.name or endpoint.host)
            live.health = verdicts.get(endpoint.address, unknown) if policy.checked else unknown
            self._endpoints[endpoint.key, endpoint.address] = live
            if endpoint.state is not State.ACTIVE:
                live.leave(now, policy.drain.force)
                self._leaving.add(live)
            else:
                live.leaves_at = NEVER
                self._leaving.discard(live)
        for gone in before.values():
            gone.leave(now, policy.drain.force)
            self._leaving.add(gone)
        judged = [(live, live.health) for live in self._endpoints.values()]
        usable, self.panicking = eligible(judged, policy.panic)
        self._meters.view[self._panic] = self.panicking
        self.balancer = make(policy.balance, usable, self._rng, self.balancer)

    def pick(self, tried: Collection[LiveEndpoint], key: bytes, now: float) -> LiveEndpoint | None:
        """Return who gets the next request, None if nobody may."""
        if self._full:
            tried = self._full.union(tried) if tried else self._full
        return self.balancer.pick(tried, key, now)

    def take(self, endpoint: LiveEndpoint) -> None:
        """Count a request that begins on an endpoint."""
        endpoint.in_flight += 1
        if self._limit and endpoint.in_flight >= self._limit:
            self._full.add(endpoint)
        if self.balancer.counts:
            self.balancer.taken(endpoint)

    def give_back(self, endpoint: LiveEndpoint, seconds: float, now: float) -> None:
        """Count a request that has ended; `seconds` to its first byte, for who balances by it."""
        endpoint.in_flight -= 1
        balancer = self.balancer
        if balancer.counts:
            balancer.returned(endpoint)
        if balancer.observes:
            balancer.observe(endpoint, seconds, now)
        if self._full:
            self._full.discard(endpoint)
            if self._queue:
                self._loop.call_soon(self._admit)

    def wait(self, exchange: Waiter, now: float) -> Waiting | None:
        """Queue for an endpoint; None if none is to be had, or the queue is full."""
        limits = self.policy.limits
        most = min(-(-limits.queue // self._workers), QUEUE_MAX)
        if not self._full or len(self._queue) >= most:
            return None
        place = Waiting(exchange, now + limits.queue_timeout)
        self._queue.append(place)
        self._deadlines.watch(place)
        return place

    def _admit(self) -> None:
        """Give endpoints that have room to those who wait, the first first."""
        now = monotonic()
        while self._queue:
            exchange = self._queue[0].exchange
            if exchange is not None:
                endpoint = self.pick((), b"", now)
                if endpoint is None:
                    return
                self.take(endpoint)
                exchange.admitted(endpoint, now)
            self._deadlines.forget(self._queue.popleft())

    @property
    def keys(self) -> set[str]:
        """Keys of the endpoints it has, those that are leaving included."""
        return {live.key for live in (*self._endpoints.values(), *self._leaving)}

    def leave(self) -> None:
        """Be gone from the config: end when the last exchange does."""
        self.install(self.policy, (), {}, {})

    def on_tick(self, now: float) -> list[LiveEndpoint]:
        """Show gauges; return endpoints whose last exchanges must be cut now."""
        while self._queue and self._queue[0].exchange is None:
            self._deadlines.forget(self._queue.popleft())
        self._meters.view[self._queue_length] = len(self._queue)
        overdue = []
        for live in self._endpoints.values():
            live.show()
        for live in tuple(self._leaving):
            live.show()
            if live.leaves_at <= now:
                overdue.append(live)
                live.leaves_at = NEVER
            if not live.in_flight and (live.key, live.address) not in self._endpoints:
                self._leaving.discard(live)
        return overdue

    def _context(self, policy: UpstreamTls, material: Mapping[str, bytes]) -> ssl.SSLContext:
        """Return what its backends are spoken to by; another one only for other terms."""
        if self._tls is None or self._tls[0] != policy:
            self._tls = policy, client_context(policy, material)
        return self._tls[1]

    def _adopt(self, live: LiveEndpoint | None, endpoint: Endpoint) -> LiveEndpoint:
        if live is None:
            live = self._returning(endpoint)
        if live is None:
            pool = Pool(endpoint.address, self._loop, self._deadlines, self._rng)
            return LiveEndpoint(self.name, endpoint, pool, self._meters)
        live.adopt(endpoint)
        return live

    def _returning(self, endpoint: Endpoint) -> LiveEndpoint | None:
        """Find an endpoint that was leaving and is wanted again."""
        for live in self._leaving:
            if (live.key, live.address) == (endpoint.key, endpoint.address):
                return live
        return None
