"""
What is worked out once for many requests: a plan per listener and route, and what all share.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections.abc import Callable, Hashable
from email.utils import formatdate
from itertools import count
from time import CLOCK_REALTIME, clock_gettime, monotonic
from typing import Final, Generic, TypeVar

from lb.http1.replies import Reply, render
from lb.metric_names import method_label
from lb.metrics import BOUNDS, SUM, Meters
from lb.model import UPGRADE, Route
from lb.proxy.accesslog import AccessLog
from lb.proxy.chain import Chain
from lb.proxy.deadlines import Deadlines

# Octets that we hold for a peer that reads slowly, before its source is paused and read on.
WRITE_HIGH: Final = 64 * 1024
WRITE_LOW: Final = 32 * 1024

K = TypeVar("K", bound=Hashable)


class Slots(dict[K, int], Generic[K]):
    """Places of counters that differ by one label, found or made when first needed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[K], int]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> int:
        slot = self[key] = self._make(key)
        return slot


class WorkerState:
    """What every exchange of this worker uses: clocks, counters, log, names."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, meters: Meters, rng: random.Random, worker: int
    ) -> None:
        self.loop = loop
        self.meters = meters
        self.view = meters.view
        self.rng = rng
        self.worker = worker
        self.deadlines = Deadlines(loop)
        self.via = b"lb"
        self.log: AccessLog | None = None
        self.log_wants_head = False
        self.date = b""
        self.wall_offset = 0.0  # what to add to the monotonic clock for seconds since 1970
        self._ids = count(1)
        self._id_stem = b"%08x%02x-" % (rng.getrandbits(32), worker & 0xFF)
        self.on_tick(monotonic())

    def on_tick(self, now: float) -> None:
        """Bring the wall clock up to date: four times a second will do."""
        wall = clock_gettime(CLOCK_REALTIME)
        self.wall_offset = wall - now
        self.date = formatdate(wall, usegmt=True).encode()
        if self.log is not None:
            self.log.tick(now)

    def next_request_id(self) -> bytes:
        """Return an id that no other request of this instance has."""
        return b"%b%08x" % (self._id_stem, next(self._ids))

    def render(self, reply: Reply, *, close: bool, method: bytes) -> bytes:
        """Return an answer of our own as octets."""
        return render(reply, name=self.via, date=self.date, close=close, method=method)

    def observe(self, base: int, seconds: float) -> None:
        """Count one observation of a histogram."""
        self.view[base + bisect_left(BOUNDS, seconds)] += 1
        self.view[base + SUM] += int(seconds * 1e6)


class Plan:
    """
    How requests of one listener that match one route to one upstream are counted and bound.

    `route` and `upstream_name` are "" where there is none.
    """

    __slots__ = (
        "_bytes_in",
        "_bytes_out",
        "_codes",
        "_seconds",
        "_view",
        "body_max",
        "chain",
        "connect_seconds",
        "route",
        "timeout",
        "upgrade",
        "upstream_name",
    )

    def __init__(
        self,
        meters: Meters,
        listener: str,
        route: Route | None,
        upstream: str,
        chain: Chain | None = None,
    ) -> None:
        self.chain = chain  # The plugins that requests pass, if any.
        self.route = route.name if route is not None else ""
        self.upstream_name = upstream
        self.body_max = route.body_max if route is not None else None
        upgrade = route.upgrade if route is not None else UPGRADE
        self.upgrade = frozenset(token.encode() for token in upgrade)
        self.timeout = route.timeout if route is not None else 0.0
        place = {"listener": listener, "route": self.route}
        self._codes: Slots[tuple[bytes, int]] = Slots(
            lambda key: meters.counter(
                "lb_requests_total",
                **place,
                upstream=upstream,
                method=method_label(key[0]),
                code=str(key[1]),
            )
        )
        self._bytes_in = meters.counter("lb_request_bytes_total", **place)
        self._bytes_out = meters.counter("lb_response_bytes_total", **place)
        self._seconds = meters.histogram("lb_request_seconds", route=self.route, upstream=upstream)
        self.connect_seconds = meters.histogram("lb_backend_connect_seconds", upstream=upstream)
        self._view = meters.view

    def count(
        self, method: bytes, status: int, seconds: float, bytes_in: int, bytes_out: int
    ) -> None:
        """Count one exchange that has ended."""
        view = self._view
        view[self._codes[method, status]] += 1
        view[self._seconds + bisect_left(BOUNDS, seconds)] += 1
        view[self._seconds + SUM] += int(seconds * 1e6)
        view[self._bytes_in] += bytes_in
        view[self._bytes_out] += bytes_out
