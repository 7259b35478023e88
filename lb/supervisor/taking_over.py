"""
Upgrading in place, seen from the program that comes.

It gets all sockets, the counters and the edition, starts its workers beside the old ones, and
waits with its controller until the old one has let go. Until it is told that the instance is
its own, any failure ends it, with what it began to serve finished.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from enum import Enum

from lb import daemonlog
from lb.build import BUILD
from lb.children import Standing
from lb.errors import StartError
from lb.link import Channel, Message
from lb.metrics import Meters
from lb.supervisor.control import Control, forget
from lb.supervisor.handover import PROTOCOL, Incoming
from lb.supervisor.instance import Instance, Phase, Slot
from lb.supervisor.stopping import Stopping
from lb.supervisor.upgrading import Upgrading
from lb.supervisor.workers import Workers

log = logging.getLogger(__name__)

RETREAT_SECONDS = 2.0  # For our controller to let go: the old one waits.
SAME_SIGNAL = 1.0  # Seconds in which a stop of both programs is one: a terminal's goes to all.


class Come(Enum):
    """How far we have come."""

    ASKING = "asking"  # What there is to hold is on its way.
    STARTING = "starting"  # Our workers come up.
    WAITING = "waiting"  # They serve; the old controller has the word.


class TakingOver:
    """The new program's end of an upgrade."""

    def __init__(
        self,
        fd: int,
        instance: Instance,
        workers: Workers,
        control: Control,
        stopping: Stopping,
        upgrading: Upgrading,
    ) -> None:
        self._instance = instance
        self._workers = workers
        self._control = control
        self._stopping = stopping
        self._upgrading = upgrading
        self._incoming = Incoming(instance.sockets)
        self._current: list[int] = []
        self._free: list[int] = []  # Counters that nobody counts in any more.
        self._come = Come.ASKING
        self.stop_passed_on = float("-inf")
        instance.phase = Phase.TAKING
        instance.sockets.theirs = True
        instance.control_elsewhere = True
        self._channel = Channel(socket.socket(fileno=fd), instance.loop, self._told, self._lost)
        self._channel.send("hello", build=BUILD, pid=os.getpid(), protocol=PROTOCOL)

    def _told(self, message: Message, fds: list[int]) -> None:
        {
            "begin": self._begin,
            "sockets": self._take_sockets,
            "metrics": self._take_metrics,
            "go": self._go,
            "edition": self._take_edition,
            "settings": self._settle,
            "forget": self._forget,
            "control": self._take_control,
            "yours": self._own,
            "drained": self._drained,
            "reload": self._reload,
            "stop": self._stop,
            "quit": self._quit,
            "reopen": self._reopen,
            "abort": self._abort,
        }[message["kind"]](message, fds)

    # What is handed over

    def _begin(self, message: Message, fds: list[int]) -> None:
        self._instance.edition = fds[0]
        self._instance.stays = message["stays"]
        self._instance.sockets.slots = message["workers"]
        self._settle(message, [])
        log.info("taking over from process %d, build %s", os.getppid(), message["build"])

    def _settle(self, message: Message, _: list[int]) -> None:
        instance = self._instance
        instance.grace, instance.drain = message["grace"], message["drain"]
        instance.log = message["log"]
        daemonlog.adopt(message["log"])
        self._workers.settle()

    def _take_sockets(self, message: Message, fds: list[int]) -> None:
        try:
            new = self._incoming.take(message, fds)
        except StartError as error:
            self.fail(error.message)
            return
        if self._come is not Come.ASKING:
            self._workers.deal(new)

    def _take_metrics(self, message: Message, fds: list[int]) -> None:
        (self._current if message["state"] == "current" else self._free).extend(fds)

    def _go(self, _: Message, __: list[int]) -> None:
        instance = self._instance
        if instance.phase is not Phase.TAKING:
            return
        free = self._free
        instance.slots = [
            Slot(number, free.pop() if free else None) for number in range(instance.sockets.slots)
        ]
        instance.retired = [*self._current, *free]
        self._come = Come.STARTING
        self._workers.start_missing()
        self._control.start()

    def _take_edition(self, _: Message, fds: list[int]) -> None:
        instance = self._instance
        if instance.edition is not None:
            os.close(instance.edition)
        instance.edition = fds[0]
        self._workers.pass_edition()

    def _forget(self, message: Message, _: list[int]) -> None:
        forget(self._instance, self._workers, message["addresses"])

    # Step by step

    def look(self) -> None:
        """Say that all workers serve and a controller waits, as soon as that is so."""
        instance = self._instance
        controller = instance.controller
        if (
            self._come is Come.STARTING
            and instance.phase is Phase.TAKING
            and all(slot.serving for slot in instance.slots)
            and controller is not None
            and controller.standing is Standing.GREETED
        ):
            self._come = Come.WAITING
            self._channel.send("serving")

    def _take_control(self, message: Message, _: list[int]) -> None:
        if self._instance.phase is Phase.TAKING:
            self._control.begin(disk_failed=message["disk_failed"])

    def controller_up(self) -> None:
        """Say that our controller is ready."""
        if self._instance.phase is Phase.TAKING:
            self._channel.send("up")

    def _own(self, _: Message, __: list[int]) -> None:
        if self._instance.phase is Phase.TAKING:
            self._instance.phase = Phase.SERVING
            self._instance.sockets.theirs = False
            self._upgrading.predecessor_drains = True
            log.info("the instance is ours")
            self._workers.say_serving()
            self._control.own()

    def _drained(self, _: Message, __: list[int]) -> None:
        if self._upgrading.predecessor_drains:
            self._upgrading.predecessor_drains = False
            for memory in self._instance.retired:
                Meters(memory)  # Sets its gauges to zero: nobody counts there any more.

    def _lost(self) -> None:
        """Take the old program's end: in the middle of it all is ours, before that nothing."""
        if self._instance.phase is not Phase.TAKING:
            self._drained({}, [])
        elif self._come is not Come.ASKING:
            log.warning("the program that we were to follow has ended: the instance is ours")
            self._own({}, [])
            self._drained({}, [])
            self._control.begin()
        else:
            self._instance.finish(1)

    # Ends

    def fail(self, why: str) -> None:
        """Leave all to the old program."""
        if self._instance.phase is Phase.TAKING:
            self._channel.send("failed", reason=why)
            self._retreat()

    def _abort(self, _: Message, __: list[int]) -> None:
        if self._instance.phase is Phase.TAKING:
            self._retreat()

    def _retreat(self) -> None:
        log.warning("not taking over: what was begun here is finished, and then we end")
        self._stopping.leave(len(self._instance.slots))
        self._control.hand_over(self._released, RETREAT_SECONDS)

    def _released(self) -> None:
        self._channel.send("released")
        self._stopping.go_on()

    def _reload(self, _: Message, __: list[int]) -> None:
        self._control.reload()

    def _stop(self, _: Message, __: list[int]) -> None:
        """Stop, since the old program was told to; before it is ours that means now."""
        if self._instance.phase in (Phase.TAKING, Phase.DRAINING):
            self._stopping.stop_now()
        else:
            self.stop_passed_on = asyncio.get_running_loop().time()
            self._stopping.stop(None)

    def _quit(self, _: Message, __: list[int]) -> None:
        self._stopping.stop_now()

    def _reopen(self, _: Message, __: list[int]) -> None:
        daemonlog.reopen()
        for child in self._instance.children():
            child.channel.send("reopen")

    def is_same_stop(self) -> bool:
        """Whether a signal to stop is one that the old program has passed on just now."""
        return self._instance.loop.time() - self.stop_passed_on < SAME_SIGNAL
