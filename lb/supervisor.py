"""The process that `lb run` becomes: holds what must not be lost, and keeps the others running.

It holds all sockets, the newest edition and the counters' memory, starts controller and
workers by command line, starts them again when they end, and turns signals into actions.
It knows nothing of configuration, backends or HTTP: what it does not know cannot end it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import Enum

import uvloop

from lb import daemonlog, link
from lb.build import BUILD
from lb.child import EXIT_DISK_FAILED, refuse_optimised, take_descriptors, tell
from lb.children import STEADY, Backoff, Child, Standing, silent
from lb.errors import OperatorError, StartError
from lb.link import Message
from lb.metrics import create_memory
from lb.sockets import Sockets

log = logging.getLogger(__name__)

LEND_AFTER = 1.0  # Seconds that a slot's clients wait for their own worker.
ASKED_RECENTLY = 30.0  # Nobody asked for readiness since: nobody will see that it fails.
ASKED_PATIENCE = 0.1  # For the others to pass on whether somebody has asked just now.
GRACE = 5.0  # Until the controller says what is configured.
DRAIN = 30.0
DRAIN_MARGIN = 2.0  # Workers cut what still runs at the end of `drain`; this is for the rest.
START_AGAIN = 1.0  # Seconds to the next try where the machine refused us a process.
STOP_PATIENCE = 2.0  # Seconds from `stop` to SIGKILL.
TASKS_MAX = 256  # Requests for sockets under way; the controller makes one at a time.


class Phase(Enum):
    """Where this instance stands in its life."""

    STARTING = "starting"  # No edition yet: the controller's end is ours.
    SERVING = "serving"
    GRACE = "grace"  # Not ready, but still accepting.
    DRAINING = "draining"
    ENDING = "ending"


class Slot:
    """One worker's place: its counters, its queues, and whoever works there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.metrics = create_memory()
        self.worker: Child | None = None
        self.backoff = Backoff()
        self.restarts = 0
        self.borrower: int | None = None  # The slot whose worker accepts here meanwhile.
        self.lend_timer: asyncio.TimerHandle | None = None

    @property
    def serving(self) -> Child | None:
        """Return its worker, if it serves."""
        return self.worker if self.worker is not None and self.worker.serving else None


class Supervisor:
    """All of it; `main` lives as long as the instance."""

    def __init__(self, config_path: str) -> None:
        self._config_path = config_path
        self._started = datetime.now(UTC).timestamp()
        self._phase = Phase.STARTING
        self._sockets = Sockets()
        self._slots: list[Slot] = []
        self._controller: Child | None = None
        self._controller_backoff = Backoff()
        self._controller_end, self._disk_failed = "", False  # How the last ended; any so far.
        self._edition: int | None = None
        self._grace, self._drain = GRACE, DRAIN
        self._log: dict[str, str] | None = None  # What `[log]` says, for those to come.
        self._asked_at = float("-inf")
        self._reload_waits = False  # A reload was asked for while there was no controller.
        self._said_serving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._binding = asyncio.Lock()

    async def main(self) -> int:
        """Run until told to stop, or until the start has failed; return the exit status."""
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._take_signals()
        self._start_controller()
        try:
            return await self._exit
        finally:
            self._sockets.close()

    # Signals

    def _take_signals(self) -> None:
        for number, action in {
            signal.SIGHUP: self._reload,
            signal.SIGTERM: self._stop_asked,
            signal.SIGINT: self._stop_asked,
            signal.SIGQUIT: self._stop_now,
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._upgrade,
        }.items():
            self._loop.add_signal_handler(number, action)

    def _reload(self) -> None:
        if self._controller is not None and self._controller.welcomed:
            self._controller.channel.send("reload")
        else:
            self._reload_waits = True
            log.warning("a reload waits until the controller is back")

    def _reopen(self) -> None:
        daemonlog.reopen()
        for child in self._children():
            child.channel.send("reopen")

    def _upgrade(self) -> None:
        log.warning("USR2: an upgrade in place is not yet supported; restart instead")

    def _stop_asked(self) -> None:
        if self._phase in (Phase.SERVING, Phase.STARTING):
            self._stop(None)
        else:
            self._stop_now()

    # Stopping

    def _stop(self, drain: float | None) -> None:
        """Stop gracefully: first not ready, then no more clients, then the end."""
        if self._phase is Phase.STARTING:
            self._stop_now()
            return
        if self._phase is not Phase.SERVING:
            return
        if drain is not None:
            self._drain = drain
        self._phase = Phase.GRACE
        for child in self._children():
            child.channel.send("unready")
        self._loop.call_later(ASKED_PATIENCE, self._wait_grace)

    def _wait_grace(self) -> None:
        """Give those who look at readiness time to see it fail, if there are any."""
        if self._loop.time() - self._asked_at < ASKED_RECENTLY and self._grace > 0:
            log.info("stopping: not ready, still accepting for %g s", self._grace)
            self._loop.call_later(self._grace, self._start_drain)
        else:
            self._start_drain()

    def _start_drain(self) -> None:
        if self._phase is not Phase.GRACE:
            return
        self._phase = Phase.DRAINING
        log.info("stopping: accepting no more, what runs has %g s", self._drain)
        for slot in self._slots:
            if slot.serving is None:
                self._lend(slot)  # Its queue would be refused otherwise.
        for worker in self._workers():
            if worker.serving:
                worker.channel.send("drain", seconds=self._drain)
            else:
                worker.kill()
        self._sockets.forget(self._sockets.listeners())
        self._loop.call_later(self._drain + DRAIN_MARGIN, self._end_drain)
        self._end_if_alone()

    def _end_drain(self) -> None:
        if self._phase is Phase.DRAINING:
            self._stop_now()

    def _stop_now(self) -> None:
        if self._phase is Phase.ENDING:
            for child in self._children():
                child.kill()
            return
        self._phase = Phase.ENDING
        self._sockets.forget(self._sockets.listeners())
        for child in self._children():
            child.channel.send("stop")
        self._loop.call_later(STOP_PATIENCE, self._kill_all)
        self._end_if_alone()

    def _kill_all(self) -> None:
        for child in self._children():
            log.warning("%s does not stop: killed", child.name)
            child.kill()

    def _end_if_alone(self) -> None:
        """Go on with the stop when nobody is left whom it waits for."""
        if self._phase is Phase.DRAINING and not any(self._workers()):
            self._stop_now()
        elif self._phase is Phase.ENDING and not any(self._children()):
            self._finish(0)

    def _finish(self, status: int) -> None:
        if not self._exit.done():
            self._exit.set_result(status)

    # Children

    def _workers(self) -> Iterable[Child]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def _children(self) -> list[Child]:
        children = list(self._workers())
        return children if self._controller is None else [*children, self._controller]

    def _start_controller(self) -> None:
        if self._phase is Phase.ENDING:
            return
        try:
            self._controller = Child(
                "the controller",
                ["lb.controller", "--config", self._config_path],
                self._controller_said,
                self._controller_ended,
            )
        except OSError as error:
            if self._phase is Phase.STARTING:
                raise StartError(f"no process can be started: {error.strerror}") from error
            self._try_again(self._start_controller, error)

    def _controller_ended(self, child: Child) -> None:
        self._controller = None
        self._controller_end = child.end_in_words()
        self._disk_failed |= child.status == EXIT_DISK_FAILED
        if self._phase is Phase.ENDING:
            self._end_if_alone()
        elif self._phase is Phase.STARTING:
            self._fail_start(child)
        else:
            wait = self._controller_backoff.wait_after(self._loop.time() - child.started)
            self._say_end(child, wait, self._controller_backoff)
            self._loop.call_later(wait, self._start_controller)

    def _fail_start(self, child: Child) -> None:
        """End as the controller did: it has said why, unless something killed it."""
        self._phase = Phase.ENDING
        status = child.status or 1
        if status < 0:
            log.error("cannot start: the controller %s", child.end_in_words())
            status = 1
        for worker in self._workers():
            worker.kill()
        self._finish(status)

    def _start_worker(self, slot: Slot) -> None:
        if self._phase not in (Phase.SERVING, Phase.STARTING, Phase.GRACE):
            return
        try:
            slot.worker = Child(
                f"worker {slot.number}",
                ["lb.worker", "--slot", str(slot.number)],
                lambda child, message, fds: self._worker_said(slot, child, message, fds),
                lambda child: self._worker_ended(slot, child),
            )
        except OSError as error:
            self._try_again(functools.partial(self._start_worker, slot), error)
        self._plan_lending(slot, LEND_AFTER)

    def _try_again(self, start: Callable[[], None], error: OSError) -> None:
        """Go on without a child while the machine has no process or descriptor to spare."""
        log.error("no process can be started: %s; tried again in %g s", error, START_AGAIN)
        self._loop.call_later(START_AGAIN, start)

    def _worker_ended(self, slot: Slot, child: Child) -> None:
        slot.worker = None
        if self._phase in (Phase.DRAINING, Phase.ENDING):
            self._end_if_alone()
            return
        wait = slot.backoff.wait_after(self._loop.time() - child.started)
        self._say_end(child, wait, slot.backoff)
        slot.restarts += 1
        for other in self._slots:
            if other.borrower == slot.number:
                other.borrower = None
                self._plan_lending(other, 0.0)
        self._plan_lending(slot, LEND_AFTER)
        self._loop.call_later(wait, self._start_worker, slot)
        self._tell_workers()

    def _say_end(self, child: Child, wait: float, backoff: Backoff) -> None:
        if wait == 0.0:
            log.warning(
                "%s (pid %d) %s; starting another", child.name, child.pid, child.end_in_words()
            )
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

    def _refused(self, child: Child, message: Message) -> bool:
        """Whether a child runs another program than we do, and others can do without it."""
        if message["build"] == BUILD:
            return False
        others = [each for each in self._workers() if each.serving and each is not child]
        if child is not self._controller and not others:
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

    # What the controller says

    def _controller_said(self, child: Child, message: Message, fds: list[int]) -> None:
        {
            "hello": self._hear_controller,
            "beat": self._beat,
            "settings": self._settings,
            "bind": self._bind_soon,
            "forget": self._forget,
            "edition": self._keep_edition,
            "restart": self._restart,
            "stop": self._stop_by_controller,
        }[message["kind"]](child, message, fds)

    def _hear_controller(self, child: Child, message: Message, _: list[int]) -> None:
        if not self._refused(child, message):
            self._welcome_controller(child)

    def _stop_by_controller(self, _: Child, message: Message, __: list[int]) -> None:
        self._stop(message["drain"])

    def _welcome_controller(self, child: Child) -> None:
        child.standing = Standing.WELCOMED
        child.channel.send(
            "welcome",
            [] if self._edition is None else [self._edition],
            first=self._phase is Phase.STARTING,
            stopping=self._phase in (Phase.GRACE, Phase.DRAINING),
            held={address: held.own for address, held in self._sockets.held.items()},
            ended=self._controller_end,
            disk_failed=self._disk_failed,
            pid=os.getpid(),
            started=self._started,
        )
        self._tell_metrics()
        self._tell_workers()
        for slot in self._slots:
            self._connect(slot)
        if self._reload_waits:
            self._reload_waits = False
            child.channel.send("reload")

    def _settings(self, _: Child, message: Message, __: list[int]) -> None:
        self._grace, self._drain = message["grace"], message["drain"]
        self._log = message["log"]
        daemonlog.adopt(message["log"])
        if not self._slots:
            # More or fewer than now would need queues of their own: that takes a restart.
            self._sockets.slots = message["workers"]
            self._slots = [Slot(number) for number in range(message["workers"])]
            self._tell_metrics()
        for worker in self._workers():
            worker.channel.send("settings", drain=self._drain, log=self._log)

    def _bind_soon(self, child: Child, message: Message, _: list[int]) -> None:
        assert len(self._tasks) < TASKS_MAX, "the controller waits for each answer"
        task = self._loop.create_task(self._bind(child, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget(self, _: Child, message: Message, __: list[int]) -> None:
        self._sockets.forget(message["addresses"])
        for worker in self._workers():
            if worker.welcomed:
                worker.channel.send("forget", addresses=message["addresses"])

    async def _bind(self, child: Child, message: Message) -> None:
        """Hold sockets for what the controller asks, deal them out, answer."""
        own = message["own"]
        async with self._binding:
            new: list[str] = []
            try:
                new = await self._sockets.ensure(message["addresses"])
                await self._sockets.ensure(own, own=True)
            except StartError as error:
                self._sockets.forget(new)
                child.channel.send("bound", id=message["id"], error=error.message, hint=error.hint)
                return
        for slot in self._slots:
            self._deal(slot, slot.number, new)
            if slot.borrower is not None:
                self._deal(slot, slot.borrower, new)
        child.channel.send(
            "bound",
            [self._sockets.held[address].of(0).fileno() for address in own],
            id=message["id"],
            error="",
            hint="",
        )
        if self._phase is Phase.STARTING:
            for slot in self._slots:
                if slot.worker is None:
                    self._start_worker(slot)

    def _keep_edition(self, _: Child, __: Message, fds: list[int]) -> None:
        if self._edition is not None:
            os.close(self._edition)
        self._edition = fds[0]
        if self._phase is Phase.STARTING:
            self._phase = Phase.SERVING
            for slot in self._slots:
                if slot.worker is not None and slot.worker.standing is Standing.GREETED:
                    self._welcome_worker(slot, slot.worker)

    def _restart(self, _: Child, message: Message, __: list[int]) -> None:
        worker = self._slots[message["slot"]].worker
        if worker is not None:
            log.error("%s (pid %d) is silent: replaced", worker.name, worker.pid)
            worker.kill()

    def _tell_metrics(self) -> None:
        if self._controller is None or not self._controller.welcomed:
            return
        for start in range(0, len(self._slots), link.MESSAGE_FDS_MAX):
            some = self._slots[start : start + link.MESSAGE_FDS_MAX]
            self._controller.channel.send(
                "metrics", [slot.metrics for slot in some], slots=[slot.number for slot in some]
            )

    def _tell_workers(self) -> None:
        """Tell the controller who works where."""
        if self._controller is None or not self._controller.welcomed:
            return
        self._controller.channel.send(
            "workers",
            workers=[
                {
                    "slot": slot.number,
                    "pid": 0 if slot.worker is None else slot.worker.pid,
                    "up": slot.serving is not None,
                    "restarts": slot.restarts,
                    "borrower": slot.borrower,
                }
                for slot in self._slots
            ],
        )

    def _beat(self, child: Child, message: Message, _: list[int]) -> None:
        now = self._loop.time()
        if self._phase is Phase.SERVING:
            for other in silent(self._children(), child, now):
                log.error("%s (pid %d) is silent: replaced", other.name, other.pid)
                other.beat_at = now  # The kernel may take its time to end it.
                other.kill()
        child.beat_at = now
        if message["asked"]:
            self._asked_at = child.beat_at

    # What a worker says

    def _worker_said(self, slot: Slot, child: Child, message: Message, fds: list[int]) -> None:
        assert not fds, "workers hand over nothing"
        match message["kind"]:
            case "hello":
                if not self._refused(child, message):
                    child.standing = Standing.GREETED
                    self._tell_workers()
                    if self._edition is not None:
                        self._welcome_worker(slot, child)
            case "beat":
                self._beat(child, message, fds)
            case "serving":
                child.standing = Standing.SERVING
                self._take_back(slot)
                self._tell_workers()
                self._say_serving()
            case kind:
                log.error("%s says %r, which is no word of ours", child.name, kind)

    def _say_serving(self) -> None:
        if not self._said_serving and all(slot.serving for slot in self._slots):
            self._said_serving = True
            log.info(
                "serving on %s with %d worker%s",
                ", ".join(self._sockets.listeners()) or "no address",
                len(self._slots),
                "" if len(self._slots) == 1 else "s",
            )

    def _welcome_worker(self, slot: Slot, child: Child) -> None:
        assert self._edition is not None, "without an edition there is nothing to serve"
        child.standing = Standing.WELCOMED
        child.channel.send(
            "welcome",
            [slot.metrics, self._edition],
            slot=slot.number,
            workers=len(self._slots),
            drain=self._drain,
            log=self._log,
            stopping=self._phase is Phase.GRACE,
        )
        self._deal(slot, slot.number, self._sockets.listeners())
        self._connect(slot)

    def _connect(self, slot: Slot) -> None:
        """Give the controller and a worker a new way to each other."""
        controller, worker = self._controller, slot.worker
        if controller is None or not controller.welcomed:
            return
        if worker is None or not worker.welcomed:
            return
        ours, theirs = link.make_stream()
        with ours, theirs:
            controller.channel.send("link", [ours.fileno()], slot=slot.number)
            worker.channel.send("link", [theirs.fileno()])

    # Queues

    def _deal(self, slot: Slot, to: int, addresses: list[str]) -> None:
        """Give a slot's sockets to the worker of slot `to`, which need not be its own."""
        worker = self._slots[to].worker
        if worker is None or not worker.welcomed:
            return
        for start in range(0, len(addresses), link.MESSAGE_FDS_MAX):
            some = addresses[start : start + link.MESSAGE_FDS_MAX]
            worker.channel.send(
                "sockets",
                [self._sockets.held[address].of(slot.number).fileno() for address in some],
                open=[[address, slot.number] for address in some],
            )

    def _plan_lending(self, slot: Slot, wait: float) -> None:
        if slot.lend_timer is None and slot.borrower is None:
            slot.lend_timer = self._loop.call_later(wait, self._lend, slot)

    def _lend(self, slot: Slot) -> None:
        """Let another worker accept a slot's clients, unless its own does by now."""
        if slot.lend_timer is not None:
            slot.lend_timer.cancel()
            slot.lend_timer = None
        if slot.serving is not None or slot.borrower is not None or not self._own_queues():
            return
        able = [each.number for each in self._slots if each.serving is not None]
        if not able:
            self._plan_lending(slot, LEND_AFTER)
            return
        taken = [each.borrower for each in self._slots]
        slot.borrower = min(able, key=lambda number: (taken.count(number), number))
        log.warning("worker %d accepts for worker %d meanwhile", slot.borrower, slot.number)
        self._deal(slot, slot.borrower, self._own_queues())
        self._tell_workers()

    def _take_back(self, slot: Slot) -> None:
        """End the lending of a slot whose own worker serves."""
        if slot.lend_timer is not None:
            slot.lend_timer.cancel()
            slot.lend_timer = None
        if slot.borrower is not None:
            borrower = self._slots[slot.borrower].worker
            if borrower is not None:
                borrower.channel.send("return", slot=slot.number)
            slot.borrower = None

    def _own_queues(self) -> list[str]:
        """Return the addresses with a queue a slot: others are everybody's already."""
        return [address for address in self._sockets.listeners() if not address.startswith("unix:")]


def run(config_path: str) -> int:
    """Be the supervisor of one instance until it ends; return the exit status of `lb run`."""
    try:
        refuse_optimised()
        take_descriptors()
        daemonlog.start("supervisor")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Supervisor(config_path).main())
    except OperatorError as error:
        return tell(error)
