"""How many instances of the group live: limits that are shared among them need to know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

LOOK_SECONDS: Final = 1.0
CALM_LOOKS: Final = 2  # A count that holds for so many is believed: a link may blink.


async def follow_count(count: Callable[[], int], on_change: Callable[[], None]) -> None:
    """Call `on_change` whenever the count has become another one, and stayed."""
    told, seen, calm = count(), 0, 0
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = count()
        calm = calm + 1 if now == seen else 1
        seen = now
        if now != told and calm >= CALM_LOOKS:
            told = now
            on_change()
