"""Virtual time: one heap of events, and one stream of chance for each part.

Streams are forked by name, so that one part's additional draw does not shift all others.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

MS = 1_000  # The unit of time is the microsecond.
SECOND = 1_000_000


class Agenda:
    """What happens next. Events due at one time come in the order in which they were set."""

    def __init__(self) -> None:
        self.now = 0
        self.events = 0
        self._set = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay: int, act: Callable[..., None], *args: Any) -> None:
        """Do something `delay` microseconds from now. It can't be called off: `act` looks."""
        self._set += 1
        heapq.heappush(self._heap, (self.now + delay, self._set, act, args))

    def at(self, when: int, act: Callable[..., None], *args: Any) -> None:
        """Do something at a time that is not over yet."""
        self.after(max(when - self.now, 0), act, *args)

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        if not self._heap:
            return False
        self.now, _, act, args = heapq.heappop(self._heap)
        self.events += 1
        act(*args)
        return True


def stream(seed: int, name: str) -> random.Random:
    """Return one part's own chance. Seeding by a string is the same in every process."""
    return random.Random(f"{seed}/{name}")
