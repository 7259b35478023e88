"""Work that goes on as long as its owner does, beside everything else.

A mistake in it is the loop's to report, and then it begins again after a while: a member whose
leases are timed no more, or who asks nobody any more how they are, would look well and not be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

AGAIN_SECONDS = 1.0  # From a mistake to the next beginning.

Chore = Callable[[], Coroutine[Any, Any, None]]


class Chores:
    """A few tasks, each of them begun again when it fails. Make it in a running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[asyncio.Task[None], Chore] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    def begin(self, chore: Chore) -> None:
        """Do this from now on; it may end by itself."""
        task = self._loop.create_task(chore())
        self._tasks[task] = chore
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Stop all of it."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        chore = self._tasks.pop(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._loop.call_exception_handler(
            {"message": f"{chore.__qualname__} failed; this is a bug", "exception": error}
        )
        if not self._closed:
            self._timers = {timer for timer in self._timers if timer.when() > self._loop.time()}
            self._timers.add(self._loop.call_later(AGAIN_SECONDS, self.begin, chore))
