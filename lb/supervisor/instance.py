"""What all parts of a supervisor share: the phase, the sockets, the edition, and who is there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from lb.children import Backoff, Child
from lb.metrics import create_memory
from lb.proxy.shared_table import create as create_tables
from lb.sockets import Sockets

GRACE = 5.0  # Until the controller says what is configured.
DRAIN = 30.0


class Phase(Enum):
    """Where this instance stands in its life."""

    STARTING = "starting"  # No edition yet: the controller's end is ours.
    TAKING = "taking over"  # Beside the program that we follow; any end of a child is ours.
    SERVING = "serving"
    GRACE = "grace"  # Not ready, but still accepting.
    DRAINING = "draining"
    ENDING = "ending"


class Slot:
    """One worker's place: its counters, its queues, and whoever works there."""

    def __init__(self, number: int, metrics: int | None = None) -> None:
        self.number = number
        self.metrics = create_memory() if metrics is None else metrics
        self.worker: Child | None = None
        self.backoff = Backoff()
        self.restarts = 0
        self.borrower: int | None = None  # The slot whose worker accepts here meanwhile.
        self.lend_timer: asyncio.TimerHandle | None = None

    @property
    def serving(self) -> Child | None:
        """Return its worker, if it serves."""
        return self.worker if self.worker is not None and self.worker.serving else None


@dataclass
class Instance:
    """The state of one instance; each part of the supervisor says what it changes here."""

    config_path: str
    started: float  # Wall time.
    loop: asyncio.AbstractEventLoop
    exit: asyncio.Future[int]
    phase: Phase = Phase.STARTING
    sockets: Sockets = field(default_factory=Sockets)
    slots: list[Slot] = field(default_factory=list)
    controller: Child | None = None
    edition: int | None = None  # The newest, as a descriptor.
    tables: int = field(default_factory=create_tables)  # What plugins of all workers share.
    grace: float = GRACE
    drain: float = DRAIN
    log: dict[str, str] | None = None  # What `[log]` says, for those to come.
    asked_at: float = float("-inf")  # When somebody last asked for readiness.
    retired: list[int] = field(default_factory=list)  # Counters of the program before us.
    program: Child | None = None  # The one that is to follow us, until it does or has failed.
    upgrade: dict[str, object] | None = None  # How the last one failed, and when.
    stays: bool = False  # Its process stands for the instance until the last follower has ended.
    control_elsewhere: bool = False  # A controller of ours may not begin: another program's works.

    def workers(self) -> list[Child]:
        """Return the workers that run."""
        return [slot.worker for slot in self.slots if slot.worker is not None]

    def children(self) -> list[Child]:
        """Return all of our processes that run."""
        workers = self.workers()
        return workers if self.controller is None else [*workers, self.controller]

    def finish(self, status: int) -> None:
        """End, with this exit status."""
        if not self.exit.done():
            self.exit.set_result(status)
