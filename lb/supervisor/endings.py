"""What is said of a child that has ended, or that could not be started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lb.children import STEADY, Backoff, Child

log = logging.getLogger(__name__)

START_AGAIN = 1.0  # Seconds to the next try where the machine refused us a process.


def say_end(child: Child, wait: float, backoff: Backoff) -> None:
    """Say how a child ended and when another follows."""
    if wait == 0.0:
        log.warning("%s (pid %d) %s; starting another", child.name, child.pid, child.end_in_words())
        return
    log.error(
        "%s (pid %d) %s, number %d in a row that lived less than %g s; another in %g s",
        child.name,
        child.pid,
        child.end_in_words(),
        backoff.crashes,
        STEADY,
        wait,
    )


def say_no_process(
    loop: asyncio.AbstractEventLoop, start: Callable[[], None], error: OSError
) -> None:
    """Go on without a child while the machine has no process or descriptor to spare."""
    log.error("no process can be started: %s; tried again in %g s", error, START_AGAIN)
    loop.call_later(START_AGAIN, start)
