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
from collections.abc import Collection, Container, Mapping, Sequence
from time import monotonic
from typing import Final, Protocol

from lb.balance import Balancer, StandIn, begin, make
from lb.balance.slow_start import warm_weights
from lb.health import eligible
from lb.metrics import Meters
from lb.model import Drain, Endpoint, Health, Outlier, State, Upstream, UpstreamTls
from lb.outlier import UNSAFE_AFTER_S, Ejection, cause_of_status, is_outlier
from lb.proxy.deadlines import NEVER, Deadlines
from lb.proxy.outliers import Outliers
from lb.proxy.plan import Slots
from lb.proxy.pool import Pool
from lb.proxy.tls_contexts import client_context
from lb.retry import RetryBudget

QUEUE_MAX: Final = 100_000  # requests that wait, whatever the file says
WARM_EVERY_S: Final = 1.0  # weights of who has just come are looked at so often
SAID_EVERY_S: Final = 0.5  # the same thing of the same endpoint
COUNTED_AT_ONCE: Final = 25  # new endpoints whose series are made in one turn of the loop


class LiveEndpoint:
    """
    An endpoint with its pool, its running exchanges, and its counters' places.

    Those take longer to find than all else of an endpoint, and a thousand may come at once: see
    to it by `begin_to_count` before it works on a request.
    """

    __slots__ = (
        "_gauges",
        "_view",
        "address",
        "authority",
        "backup",
        "classes",
        "cold",
        "ejection",
        "errors",
        "failures",
        "full_weight",
        "health",
        "in_flight",
        "key",
        "latency",
        "leaves_at",
        "pool",
        "quiet_until",
        "retries",
        "seconds",
        "soft_at",
        "state",
        "trying",
        "weight",
    )

    classes: Slots[int]
    errors: Slots[str]
    retries: Slots[str]

    def __init__(self, endpoint: Endpoint, pool: Pool) -> None:
        self.key = endpoint.key
        self.address = endpoint.address
        self.pool = pool
        self.health = Health.UNCHECKED
        self.in_flight = 0
        self.latency = 0.0
        self.leaves_at = NEVER  # when its last exchanges are cut, once it is leaving
        self.soft_at = NEVER  # when they are asked to end
        self.cold = False  # out, or not here yet: it is to start slowly
        self.failures: deque[float] = deque()  # in a row; bounded by `is_outlier`
        self.ejection: Ejection | None = None
        self.trying = False  # a request is on its way that decides whether it comes back
        self.quiet_until = 0.0  # what is to be said of it has been said
        self.seconds = -1  # until it counts
        self.adopt(endpoint)

    def begin_to_count(self, upstream: str, meters: Meters) -> None:
        """Have its series made, if it has none yet."""
        if self.seconds >= 0:
            return
        labels = {"upstream": upstream, "backend": self.key}
        total = "lb_backend_requests_total"
        self.classes = Slots(lambda n: meters.counter(total, **labels, code=f"{n}xx"))
        self.seconds = meters.histogram("lb_backend_seconds", **labels)
        self.errors = Slots(
            lambda kind: meters.counter("lb_backend_errors_total", **labels, kind=kind)
        )
        self.retries = Slots(
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
        self.weight = self.full_weight = endpoint.weight
        self.state = endpoint.state
        self.backup = endpoint.backup
        self.authority = endpoint.address  # as a Host
        if endpoint.host:
            port = endpoint.address.rpartition(":")[2]
            self.authority = endpoint.host if port == "443" else f"{endpoint.host}:{port}"

    def show(self) -> None:
        """Write the gauges: at each tick, not at each request."""
        if self.seconds < 0:
            return
        active, idle, busy = self._gauges
        self._view[active] = self.in_flight
        self._view[idle] = self.pool.idle_count
        self._view[busy] = self.pool.busy_count

    def leave(self, now: float, drain: Drain) -> None:
        """Take no more requests; what runs is asked to end, and cut, when `drain` says so."""
        self.pool.close_idle()
        if self.leaves_at is NEVER:
            self.leaves_at = now + drain.force
            self.soft_at = now + drain.soft

    def stay(self) -> None:
        """Be in use, as before."""
        self.leaves_at = self.soft_at = NEVER


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

    @property
    def barred(self) -> Collection[LiveEndpoint]:
        """Who must not take it."""
        ...

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
        outliers: Outliers | None = None,
    ) -> None:
        self.name = name
        self.balancers: Mapping[str, type[Balancer[LiveEndpoint]]] = {}  # of plugins
        self.ejections: Mapping[str, Ejection] = {}
        self.trials: list[LiveEndpoint] = []  # ejected, and to be tried by the next request
        self._ejected: list[LiveEndpoint] = []
        self._outliers = outliers or Outliers(0, rng)
        self._begun = False
        self._warming: dict[LiveEndpoint, float] = {}  # since when
        self._warm_at = NEVER
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
        self._usable: Sequence[LiveEndpoint] = ()
        self._by_key: dict[str, LiveEndpoint] | None = None  # Made when it is asked for.
        self._uncounted: deque[LiveEndpoint] = deque()  # at most those that there are
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
        ejections: Mapping[str, Ejection] | None = None,
    ) -> None:
        """
        Serve by these from the next pick on; positions, pools and counts are kept.

        `material` has the certificates that `policy.tls` names. `ejections` None: as before.
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
                live.leave(now, policy.drain)
                self._leaving.add(live)
            else:
                live.stay()
                self._leaving.discard(live)
        for gone in before.values():
            gone.leave(now, policy.drain)
            self._leaving.add(gone)
        self._count_some()
        self._take_ejections(self.ejections if ejections is None else ejections)
        self._balance(now)
        self._begun = True

    def eject(self, ejections: Mapping[str, Ejection]) -> None:
        """Have these out from now on, and no others."""
        self._take_ejections(ejections)
        self._balance(monotonic())

    def cut(self, key: str) -> None:
        """Cut what still runs on a backend that is leaving, at the next tick."""
        for live in self._leaving:
            if live.key == key:
                live.leaves_at = 0.0

    def pick(self, tried: Collection[LiveEndpoint], key: bytes, now: float) -> LiveEndpoint | None:
        """Return who gets the next request, None if nobody may."""
        if self._full:
            tried = self._full.union(tried) if tried else self._full
        return self.balancer.pick(tried, key, now)

    def pick_trial(self, now: float, *, safe: bool) -> LiveEndpoint | None:
        """Return an ejected endpoint for a request that decides whether it comes back."""
        live = self.trials[0]
        assert live.ejection is not None, "only who is out is tried"
        if not safe and now < live.ejection.until + UNSAFE_AFTER_S:
            return None
        del self.trials[0]
        live.trying = True
        return live

    def judge(self, live: LiveEndpoint, status: int, now: float) -> None:
        """Take what an answer says of its endpoint: whether it is one, or its gateway's failure."""
        if cause := cause_of_status(status):
            self.failed(live, cause, now)
            return
        ejection = live.ejection
        if ejection is None:
            live.failures.clear()
        elif now >= ejection.until and now >= live.quiet_until:
            live.quiet_until = now + SAID_EVERY_S
            self._outliers.returned(self, live.address)

    def failed(self, live: LiveEndpoint, cause: str, now: float) -> None:
        """Count a failure; too many in a row, or one in a trial, and it is out."""
        enough = is_outlier(live.failures, now, self.policy.outlier)
        ejection = live.ejection
        if ejection is not None:
            enough = now >= ejection.until
        if enough and now >= live.quiet_until:
            live.quiet_until = now + SAID_EVERY_S
            self._outliers.found(self, live.address, cause)

    @property
    def rule(self) -> Outlier:
        """By what endpoints are ejected."""
        return self.policy.outlier

    def pool(self) -> dict[str, bool]:
        """Return the endpoints that take traffic by state and weight, each with its health."""
        return {
            live.address: live.health is not Health.UNHEALTHY
            for live in self._endpoints.values()
            if live.state is State.ACTIVE and live.full_weight
        }

    def usable_keys(self) -> tuple[str, ...]:
        """Return the keys of those that may take a request now."""
        return tuple(dict.fromkeys(live.key for live in self._usable if live not in self._full))

    def usable(self, key: str) -> LiveEndpoint | None:
        """Return an endpoint of a backend that may take a request now, None if none may."""
        if self._by_key is None:
            self._by_key = {live.key: live for live in reversed(self._usable) if live.weight}
        live = self._by_key.get(key)
        return None if live in self._full else live

    def endpoints_of(self, keys: Container[str]) -> list[LiveEndpoint]:
        """Return all endpoints of backends."""
        return [live for live in self._endpoints.values() if live.key in keys]

    def take(self, endpoint: LiveEndpoint) -> None:
        """Count a request that begins on an endpoint."""
        endpoint.in_flight += 1
        if endpoint.seconds < 0:
            endpoint.begin_to_count(self.name, self._meters)
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
                endpoint = self.pick(exchange.barred, b"", now)
                if endpoint is None:
                    return
                self.take(endpoint)
                exchange.admitted(endpoint, now)
            self._deadlines.forget(self._queue.popleft())

    @property
    def keys(self) -> set[str]:
        """Keys of the endpoints it has, those that are leaving included."""
        return {live.key for live in (*self._endpoints.values(), *self._leaving)}

    @property
    def connections(self) -> int:
        """Return how many connections to backends there are."""
        return sum(live.pool.idle_count + live.pool.busy_count for live in self._endpoints.values())

    def drop_idle(self) -> None:
        """
        Close what nobody uses: its descriptors are needed. What was used just now is kept, since
        who needs it next may get no other.
        """
        for live in self._endpoints.values():
            live.pool.drop_unused()

    def leave(self) -> None:
        """Be gone from the config: end when the last exchange does."""
        self.install(self.policy, (), {}, {})

    def on_tick(self, now: float) -> tuple[list[LiveEndpoint], list[LiveEndpoint]]:
        """Show gauges; return endpoints whose last exchanges are to be cut now, or asked to end."""
        while self._queue and self._queue[0].exchange is None:
            self._deadlines.forget(self._queue.popleft())
        self._meters.view[self._queue_length] = len(self._queue)
        self._count_some()
        overdue, asked = [], []
        for live in self._endpoints.values():
            live.show()
        for live in tuple(self._leaving):
            live.show()
            if live.soft_at <= now:
                asked.append(live)
                live.soft_at = NEVER
            if live.leaves_at <= now:
                overdue.append(live)
                live.leaves_at = NEVER
            if not live.in_flight and (live.key, live.address) not in self._endpoints:
                self._leaving.discard(live)
        if self._ejected:
            self._look_for_trials(now)
        if now >= self._warm_at:
            self._balance(now)
        return overdue, asked

    # Within.

    def _count_some(self) -> None:
        """Make some of the series that are due: the rest at later ticks, or at a first request."""
        for _ in range(min(COUNTED_AT_ONCE, len(self._uncounted))):
            self._uncounted.popleft().begin_to_count(self.name, self._meters)

    def _balance(self, now: float) -> None:
        """Give out who is eligible now, by weights as they are now."""
        for live in self._endpoints.values():
            live.weight = live.full_weight
        judged = [(live, live.health) for live in self._endpoints.values()]
        usable, self.panicking = eligible(judged, self.policy.panic, self._ejected)
        self._meters.view[self._panic] = self.panicking
        self._warm_at = NEVER
        if self.policy.slow_start and self.policy.balance != "hash":
            self._warm(usable, now)
        self._usable, self._by_key = usable, None
        self.balancer = begin(self.policy.balance, usable, self._rng, self.balancer, self.balancers)
        if isinstance(self.balancer, StandIn):
            self._loop.call_soon(self._go_on, self.balancer)

    def _go_on(self, stand_in: StandIn[LiveEndpoint]) -> None:
        """Make a part of a balancer at each turn of the loop, then use it."""
        if stand_in is not self.balancer:
            return  # Another edition has come meanwhile.
        if stand_in.go_on():
            self.balancer = stand_in.settled()
        else:
            self._loop.call_soon(self._go_on, stand_in)

    def _warm(self, usable: Sequence[LiveEndpoint], now: float) -> None:
        """Give those that have come or come back a part of their weight."""
        window = self.policy.slow_start
        before, self._warming = self._warming, {}
        ages = {}
        for index, live in enumerate(usable):
            if live.health is Health.UNHEALTHY or live.ejection is not None:
                continue  # For want of better: this is no recovery.
            since = now if live.cold and live.health is not Health.CHECKING else before.get(live)
            if since is not None and now - since < window:
                live.cold = False
                self._warming[live] = since
                ages[index] = now - since
        weights, warming = warm_weights([live.full_weight for live in usable], ages, window)
        for live, weight in zip(usable, weights, strict=True):
            live.weight = weight
        if warming:
            self._warm_at = now + WARM_EVERY_S

    def _take_ejections(self, ejections: Mapping[str, Ejection]) -> None:
        self.ejections = ejections
        self._ejected, self.trials = [], []
        for live in self._endpoints.values():
            ejection = ejections.get(live.address)
            if ejection != live.ejection:
                self._change_ejection(live, ejection)
            if ejection is not None:
                self._ejected.append(live)
            if ejection is not None or live.health is Health.UNHEALTHY or live.leaves_at < NEVER:
                live.cold = True

    def _change_ejection(self, live: LiveEndpoint, ejection: Ejection | None) -> None:
        before, live.ejection = live.ejection, ejection
        live.trying = False
        if ejection is None:
            live.failures.clear()
            return
        if not live.failures:
            live.failures.append(ejection.since)  # So that each of its answers is looked at.
        if before is not None and before.since == ejection.since:
            return
        live.pool.drop_idle()
        if ejection.slot == self._outliers.slot and self._begun:
            counted = self._meters.counter(
                "lb_ejections_total", upstream=self.name, backend=live.key, reason=ejection.cause
            )
            self._meters.view[counted] += 1

    def _look_for_trials(self, now: float) -> None:
        """Have the next request sent to each ejected endpoint whose time has come."""
        self.trials = []
        for live in self._ejected:
            if live.trying and not live.in_flight:
                live.trying = False  # The client left, or the like: that decides nothing.
            ejection = live.ejection
            if (
                ejection is not None
                and not live.trying
                and live.state is State.ACTIVE
                and live.health is not Health.UNHEALTHY
                and ejection.trial_due(self._outliers.slot, now)
            ):
                self.trials.append(live)

    def _context(self, policy: UpstreamTls, material: Mapping[str, bytes]) -> ssl.SSLContext:
        """Return what its backends are spoken to by; another one only for other terms."""
        if self._tls is None or self._tls[0] != policy:
            self._tls = policy, client_context(policy, material)
        return self._tls[1]

    def _adopt(self, live: LiveEndpoint | None, endpoint: Endpoint) -> LiveEndpoint:
        if live is None:
            live = self._returning(endpoint)
            if live is not None:
                live.cold = True
        if live is None:
            pool = Pool(endpoint.address, self._loop, self._deadlines, self._rng)
            live = LiveEndpoint(endpoint, pool)
            live.cold = self._begun
            self._uncounted.append(live)
            return live
        live.adopt(endpoint)
        return live

    def _returning(self, endpoint: Endpoint) -> LiveEndpoint | None:
        """Find an endpoint that was leaving and is wanted again."""
        for live in self._leaving:
            if (live.key, live.address) == (endpoint.key, endpoint.address):
                return live
        return None
