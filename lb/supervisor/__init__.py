"""The process that `lb run` becomes: holds what must not be lost, and keeps the others running.

It holds all sockets, the newest edition and the counters' memory, starts controller and
workers by command line, starts them again when they end, and turns signals into actions.
It knows nothing of configuration, backends or HTTP: what it does not know cannot end it.

This file joins the parts; `instance` is what they share.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from datetime import UTC, datetime

import uvloop

from lb import daemonlog
from lb.build import BUILD
from lb.child import refuse_optimised, take_descriptors, tell
from lb.children import Child, silent
from lb.errors import OperatorError
from lb.link import Message
from lb.supervisor.control import Control
from lb.supervisor.instance import Instance, Phase
from lb.supervisor.stopping import Stopping
from lb.supervisor.workers import Workers

log = logging.getLogger(__name__)


class Supervisor:
    """All of it; `main` lives as long as the instance."""

    def __init__(self, config_path: str) -> None:
        loop = asyncio.get_running_loop()
        started = datetime.now(UTC).timestamp()
        self._instance = Instance(config_path, started, loop, loop.create_future())
        self._workers = Workers(self._instance, self)
        self._control = Control(self._instance, self._workers, self)
        self._stopping = Stopping(self._instance, self._workers)

    async def main(self) -> int:
        """Run until told to stop, or until the start has failed; return the exit status."""
        self._take_signals()
        self._control.start()
        try:
            return await self._instance.exit
        finally:
            self._instance.sockets.close()

    # Signals

    def _take_signals(self) -> None:
        for number, action in {
            signal.SIGHUP: self._control.reload,
            signal.SIGTERM: self._stopping.asked,
            signal.SIGINT: self._stopping.asked,
            signal.SIGQUIT: self._stopping.stop_now,
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._upgrade,
        }.items():
            self._instance.loop.add_signal_handler(number, action)

    def _reopen(self) -> None:
        daemonlog.reopen()
        for child in self._instance.children():
            child.channel.send("reopen")

    def _upgrade(self) -> None:
        log.warning("USR2: an upgrade in place is not yet supported; restart instead")

    # What the parts ask of each other

    def tell_workers(self) -> None:
        """Tell the controller who works where."""
        self._control.tell_workers()

    def worker_gone(self) -> None:
        """Go on with a stop."""
        self._stopping.go_on()

    def controller_gone(self) -> None:
        """Go on with a stop."""
        self._stopping.go_on()

    def stop_asked(self, drain: float | None) -> None:
        """Stop gracefully, as the admin asks for it."""
        self._stopping.stop(drain)

    def heard(self, child: Child, message: Message) -> None:
        """Take a child's beat, and look whether the others still beat."""
        instance = self._instance
        now = instance.loop.time()
        if instance.phase is Phase.SERVING:
            for other in silent(instance.children(), child, now):
                log.error("%s (pid %d) is silent: replaced", other.name, other.pid)
                other.beat_at = now  # The kernel may take its time to end it.
                other.kill()
        child.beat_at = now
        if message["asked"]:
            instance.asked_at = now

    def refused(self, child: Child, message: Message) -> bool:
        """Whether a child runs another program than we do, and others can do without it."""
        if message["build"] == BUILD:
            return False
        instance = self._instance
        others = [each for each in instance.workers() if each.serving and each is not child]
        if child is not instance.controller and not others:
            log.warning(
                "%s is of build %s, this supervisor of %s: the package was replaced on disk; "
                "taken all the same, since no other worker serves: restart lb soon",
                child.name,
                message["build"],
                BUILD,
            )
            return False
        log.error(
            "%s is of build %s, this supervisor of %s: the package was replaced on disk; "
            "refused: restart lb to run the new one",
            child.name,
            message["build"],
            BUILD,
        )
        child.kill()
        return True


def run(config_path: str) -> int:
    """Be the supervisor of one instance until it ends; return the exit status of `lb run`."""

    async def main() -> int:
        return await Supervisor(config_path).main()

    try:
        refuse_optimised()
        take_descriptors()
        daemonlog.start("supervisor")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except OperatorError as error:
        return tell(error)
