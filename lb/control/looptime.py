"""
A clock that stands still while the event loop does.

A probe that timed out because *we* did not get to read its answer says nothing about the
backend: on a starved machine, or after a long pause of this process, every backend would fail
at once. So a probe's time is counted on this clock. A tick that comes late shows how long the
loop was away, and that time is not counted: whatever arrived meanwhile is read first.

Not here: time that the backend lost to the same starved machine. `fall` is for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TICK = 0.1  # Seconds. A shorter absence cannot be told from work.


class LoopClock:
    """Seconds during which the loop was there to see things happen. `close` stops its ticks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._away = 0.0
        self._ticked_at = loop.time()
        self._timer = loop.call_later(TICK, self._tick)

    def now(self) -> float:
        """The time, less all absences so far; one that has not been followed by a tick too."""
        return self._loop.time() - self._away - self._late()

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError when the block takes longer than `seconds` of this clock."""
        deadline = self.now() + seconds
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            left = deadline - self.now()
            if left > 0:
                timer = self._loop.call_later(left, look)
            else:
                timeout.reschedule(self._loop.time())

        async with asyncio.timeout(None) as timeout:
            timer = self._loop.call_later(seconds, look)
            try:
                yield
            finally:
                timer.cancel()

    def close(self) -> None:
        """Tick no more."""
        self._timer.cancel()

    def _late(self) -> float:
        return max(0.0, self._loop.time() - self._ticked_at - TICK)

    def _tick(self) -> None:
        self._away += self._late()
        self._ticked_at = self._loop.time()
        self._timer = self._loop.call_later(TICK, self._tick)
