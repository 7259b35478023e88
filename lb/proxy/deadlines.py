"""
One coarse timer for every wait of the data path.

A timer object a request would cost more than parsing it. So whatever waits keeps a plain
`deadline` (seconds on the monotonic clock, `NEVER` for none), moving it is an assignment,
and this looks at all of them four times a second: a wait is at most `TICK_S` late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Final, Protocol

TICK_S: Final = 0.25
NEVER: Final = inf


class Watched(Protocol):
    """Something that waits; `on_deadline` must move or remove its deadline."""

    deadline: float

    def on_deadline(self, now: float) -> None:
        """Act on the deadline having passed."""
        ...


class Deadlines:
    """Holds what waits in this worker; bounded by the connections that there may be."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: set[Watched] = set()
        self._chores: list[Callable[[float], None]] = []
        self._next: asyncio.TimerHandle | None = None
        # Called by what waits, in the hot path: bound methods looked up once.
        self.watch = self._watched.add
        self.forget = self._watched.discard

    def every_tick(self, chore: Callable[[float], None]) -> None:
        """Call `chore(now)` at each tick; one that raises is logged, and keeps nobody waiting."""
        self._chores.append(chore)

    def start(self) -> None:
        """Begin to tick."""
        self._next = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """End ticking; deadlines pass unnoticed from here on."""
        if self._next is not None:
            self._next.cancel()

    def _tick(self) -> None:
        self._next = self._loop.call_later(TICK_S, self._tick)
        now = monotonic()
        for chore in self._chores:
            self._loop.call_soon(chore, now)
        for waiting in [each for each in self._watched if each.deadline <= now]:
            if waiting.deadline <= now:  # One before it may have moved it.
                waiting.on_deadline(now)
