"""Stopping: first not ready, then no more clients, then what runs is finished, then the end."""

from __future__ import annotations

import logging
from typing import Protocol

from lb.supervisor.instance import Instance, Phase
from lb.supervisor.workers import Workers

log = logging.getLogger(__name__)

ASKED_RECENTLY = 30.0  # Nobody asked for readiness since: nobody will see that it fails.
ASKED_PATIENCE = 0.1  # For the others to pass on whether somebody has asked just now.
DRAIN_MARGIN = 2.0  # Workers cut what still runs at the end of `drain`; this is for the rest.
STOP_PATIENCE = 2.0  # Seconds from `stop` to SIGKILL.


class Others(Protocol):
    """Whom a stop concerns."""

    def stop_begins(self) -> None:
        """Give up what goes on beside."""
        ...

    def last_gone(self) -> None:
        """End, now that nobody is left."""
        ...


class Stopping:
    """The last phases of an instance, and who takes it into them."""

    def __init__(self, instance: Instance, workers: Workers, others: Others) -> None:
        self._instance = instance
        self._workers = workers
        self._others = others

    def asked(self) -> None:
        """Stop, as a signal asks for it: a second one stops now."""
        if self._instance.phase in (Phase.SERVING, Phase.STARTING):
            self.stop(None)
        else:
            self.stop_now()

    def stop(self, drain: float | None) -> None:
        """Stop gracefully; `drain` in place of what is configured."""
        instance = self._instance
        if instance.phase is Phase.STARTING:
            self.stop_now()
            return
        if instance.phase is not Phase.SERVING:
            return
        self._others.stop_begins()
        if drain is not None:
            instance.drain = drain
        instance.phase = Phase.GRACE
        for child in instance.children():
            child.channel.send("unready")
        instance.loop.call_later(ASKED_PATIENCE, self._wait_grace)

    def stop_now(self) -> None:
        """End, whatever runs; the second time without asking anybody."""
        instance = self._instance
        if instance.phase is Phase.ENDING:
            for child in instance.children():
                child.kill()
            return
        if instance.phase is Phase.SERVING:
            self._others.stop_begins()
        instance.phase = Phase.ENDING
        instance.sockets.forget(instance.sockets.listeners())
        for child in instance.children():
            child.channel.send("stop")
        if instance.program is not None:
            instance.program.channel.send("stop")
        instance.loop.call_later(STOP_PATIENCE, self._kill_all)
        self.go_on()

    def go_on(self) -> None:
        """Go on with the stop when nobody is left whom it waits for."""
        instance = self._instance
        if instance.program is not None:
            return  # What it began to serve is finished as well.
        if instance.phase is Phase.DRAINING and not instance.workers():
            self.stop_now()
        elif instance.phase is Phase.ENDING and not instance.children():
            self._others.last_gone()

    def leave(self, slots: int) -> None:
        """Let what runs end, and then end: another program serves on, in so many slots."""
        instance = self._instance
        instance.phase = Phase.DRAINING
        instance.sockets.theirs = True
        self._workers.close_queues(range(slots, len(instance.slots)))
        self._drain()

    def _wait_grace(self) -> None:
        """Give those who look at readiness time to see it fail, if there are any."""
        instance = self._instance
        if instance.loop.time() - instance.asked_at < ASKED_RECENTLY and instance.grace > 0:
            log.info("stopping: not ready, still accepting for %g s", instance.grace)
            instance.loop.call_later(instance.grace, self._start_drain)
        else:
            self._start_drain()

    def _start_drain(self) -> None:
        instance = self._instance
        if instance.phase is not Phase.GRACE:
            return
        instance.phase = Phase.DRAINING
        log.info("stopping: accepting no more, what runs has %g s", instance.drain)
        self._drain()

    def _drain(self) -> None:
        instance = self._instance
        self._workers.drain()
        instance.sockets.forget(instance.sockets.listeners())
        instance.loop.call_later(instance.drain + DRAIN_MARGIN, self._end_drain)
        self.go_on()

    def _end_drain(self) -> None:
        if self._instance.phase is Phase.DRAINING:
            self.stop_now()

    def _kill_all(self) -> None:
        for child in self._instance.children():
            log.warning("%s does not stop: killed", child.name)
            child.kill()
        if self._instance.program is not None:
            self._instance.program.kill()
