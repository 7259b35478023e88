"""Delays and refuses a share of requests, to see what clients make of that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Final

from lb.plugin import Duration, HeaderName, Plugin, Reply, Request, Share, reply

DELAY_MAX: Final = 25.0  # Less than a hook may wait at all.


class Fault(Plugin["Fault.Config"]):
    """Does harm, as asked."""

    name = "fault"

    @dataclass
    class Config:
        """What stands beside `use`."""

        abort: Share = field(default=0.0, metadata={"about": "How many are refused."})
        status: int = field(default=503, metadata={"about": "With which status."})
        delay: Share = field(default=0.0, metadata={"about": "How many have to wait first."})
        wait: Duration = field(default=1.0, metadata={"about": "For how long."})
        header: HeaderName | None = field(
            default=None,
            metadata={
                "about": 'Only requests with this field; "abort", "delay" in it ask for one.'
            },
        )

        def __post_init__(self) -> None:
            if not 400 <= self.status <= 599:
                raise ValueError("status is from 400 to 599")
            if self.wait > DELAY_MAX:
                raise ValueError(f"wait is at most {DELAY_MAX:g}s")
            if not self.abort and not self.delay and self.header is None:
                raise ValueError("there is nothing to do: give abort, delay or header")

    def start(self) -> None:
        """Make what is said each time."""
        body = f"{self.config.status}: a fault was asked for\n"
        self._reply = reply(self.config.status, body=body)
        self._chance = self.ctx.rng.random
        self._aborted = self.ctx.count("aborted")
        self._delayed = self.ctx.count("delayed")

    def on_request(self, req: Request) -> Reply | Awaitable[Reply | None] | None:
        """Harm this one, or not; only one that is to wait costs a task."""
        config = self.config
        asked = ""
        if config.header is not None:
            found = req.headers.get(config.header)
            if found is None:
                return None
            asked = found.lower()
        abort = asked == "abort" or (config.abort > 0 and self._chance() < config.abort)
        if asked == "delay" or (config.delay > 0 and self._chance() < config.delay):
            self._delayed()
            return self._later(abort=abort)
        if abort:
            self._aborted()
            return self._reply
        return None

    async def _later(self, *, abort: bool) -> Reply | None:
        await asyncio.sleep(self.config.wait)
        if abort:
            self._aborted()
            return self._reply
        return None
