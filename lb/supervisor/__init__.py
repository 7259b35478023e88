"""The process that `lb run` becomes: holds what must not be lost, and keeps the others running.

It holds all sockets, the newest edition and the counters' memory, starts controller and
workers by command line, starts them again when they end, and turns signals into actions.
It knows nothing of configuration, backends or HTTP: what it does not know cannot end it.

This file joins the parts; `instance` is what they share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import uvloop

from lb import daemonlog
from lb.build import BUILD
from lb.child import FOR_THE_SUPERVISOR, refuse_optimised, take_descriptors, tell
from lb.children import Child, silent
from lb.errors import OperatorError
from lb.link import Message
from lb.supervisor.control import Control
from lb.supervisor.instance import Instance, Phase
from lb.supervisor.service import ServiceManager, given_sockets
from lb.supervisor.stopping import Stopping
from lb.supervisor.taking_over import TakingOver
from lb.supervisor.upgrading import Upgrading
from lb.supervisor.workers import Workers

log = logging.getLogger(__name__)


class Supervisor:
    """All of it; `main` lives as long as the instance."""

    def __init__(self, config_path: str, fd: int | None, *, stays: bool) -> None:
        loop = asyncio.get_running_loop()
        started = datetime.now(UTC).timestamp()
        instance = Instance(config_path, started, loop, loop.create_future(), stays=stays)
        self._instance = instance
        self._workers = Workers(instance, self)
        self._control = Control(instance, self._workers, self)
        self._stopping = Stopping(instance, self._workers, self)
        self._service = ServiceManager(os.environ, loop)
        self._upgrading = Upgrading(instance, self._control, self._stopping, self._service)
        self._before_ready = {"the controller", "all workers"}
        self._taking: TakingOver | None = None
        if fd is not None:
            parts = (self._workers, self._control, self._stopping, self._upgrading)
            self._taking = TakingOver(fd, instance, *parts)

    async def main(self, given: list[tuple[str, socket.socket]]) -> int:
        """Run until told to stop, or until the start has failed; return the exit status."""
        self._take_signals()
        for name, sock in given:
            log.info("given by the service manager: %s, %s", name, sock.getsockname())
            self._instance.sockets.given.append(sock)
        if self._taking is None:
            self._control.start()
        try:
            return await self._instance.exit
        finally:
            # A signal that comes only now is too late to change anything but our exit status.
            signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_SUPERVISOR)
            self._instance.sockets.close()

    # Signals

    def _take_signals(self) -> None:
        for number, action in {
            signal.SIGHUP: self._reload,
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGQUIT: self._stop_now,
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._upgrade,
        }.items():
            self._instance.loop.add_signal_handler(number, self._signalled, action)
        # Who started us for an upgrade held these back until now, or one could have ended us.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_SUPERVISOR)

    def _signalled(self, action: Callable[[], None]) -> None:
        """Act, unless the instance is another program's: before it is ours signals are theirs."""
        if not self._instance.sockets.theirs or self._upgrading.done:
            action()

    def _reload(self) -> None:
        if self._upgrading.done:
            self._upgrading.pass_on("reload")
        else:
            self._control.reload()

    def _stop(self) -> None:
        if self._upgrading.done:
            self._upgrading.pass_on("stop")
        elif self._taking is None or not self._taking.is_same_stop():
            self._stopping.asked()

    def _stop_now(self) -> None:
        if self._upgrading.done:
            self._upgrading.pass_on("quit")
        self._stopping.stop_now()

    def _reopen(self) -> None:
        daemonlog.reopen()
        for child in self._instance.children():
            child.channel.send("reopen")
        if self._upgrading.done:
            self._upgrading.pass_on("reopen")

    def _upgrade(self) -> None:
        self._upgrading.start("asked for by USR2")

    # What the parts ask of each other

    def tell_workers(self) -> None:
        """Tell the controller who works where, and the program before us how far we are."""
        self._control.tell_workers()
        if self._taking is not None:
            self._taking.look()

    def worker_gone(self) -> None:
        """Go on with a stop."""
        self._stopping.go_on()

    def controller_gone(self) -> None:
        """Go on with a stop."""
        self._stopping.go_on()

    def stop_begins(self) -> None:
        """Say so, and give up an upgrade."""
        self._service.stopping()
        self._upgrading.cancel()

    def last_gone(self) -> None:
        """End; after an upgrade as it wants it."""
        if self._upgrading.done:
            self._upgrading.ended()
        else:
            self._instance.finish(0)

    def upgrade_asked(self, number: int) -> None:
        """Upgrade, as the admin asks for it."""
        self._upgrading.asked(number)

    def controller_up(self) -> None:
        """Tell the program before us, or whoever waits for our start."""
        if self._taking is not None:
            self._taking.controller_up()
        self._come("the controller")

    def all_serve(self) -> None:
        """Tell whoever waits for our start."""
        self._come("all workers")

    def _come(self, who: str) -> None:
        if who in self._before_ready:
            self._before_ready.remove(who)
            if not self._before_ready:
                self._service.ready(self._workers.in_words())
                for where in self._instance.sockets.unused():
                    log.warning("%s, from the service manager, is no address of the config", where)

    def reloading(self) -> None:
        """Tell whoever asked for it."""
        self._service.reloading()

    def reloaded(self, error: str) -> None:
        """Tell whoever asked for it; a reload that failed leaves us as ready as before."""
        words = self._workers.in_words()
        self._service.ready(f"{words}; the last reload failed: {error}" if error else words)

    def failed_to_take_over(self, why: str) -> None:
        """Leave all to the program before us."""
        if self._taking is not None:
            self._taking.fail(why)

    def changed(self, kind: str, fds: Sequence[int] = (), **fields: object) -> None:
        """Pass on to the program that is to follow us what changes meanwhile."""
        self._upgrading.changed(kind, fds, **fields)

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
        """
        Refuse a child that runs another program than we do: the two are not made for each other.

        Where that leaves nobody who serves, the whole instance becomes that program.
        """
        if message["build"] == BUILD:
            return False
        log.error(
            "%s is of build %s, this supervisor of %s: the package was replaced on disk; "
            "refused: run the new one with `lb upgrade`, or kill -USR2 %d",
            child.name,
            message["build"],
            BUILD,
            os.getpid(),
        )
        child.kill()
        if not any(worker.serving for worker in self._instance.workers()):
            self._upgrading.start("no worker serves, and those of this build are gone from disk")
        return True


def run(config_path: str, fd: int | None = None, *, stays: bool = False) -> int:
    """
    Be the supervisor of one instance until it ends; return the exit status of `lb run`.

    `fd` is the way to a program that we are to follow. `stays`: after an upgrade this process
    goes on until the one that follows it ends, since its end would be taken for the instance's.
    """
    stays = stays or os.getpid() == 1 or (sys.stdin is not None and sys.stdin.isatty())

    async def main() -> int:
        supervisor = Supervisor(config_path, fd, stays=stays)
        return await supervisor.main(given_sockets(os.environ))

    try:
        refuse_optimised()
        take_descriptors()
        daemonlog.start("supervisor")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except OperatorError as error:
        return tell(error)
