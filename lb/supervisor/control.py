"""The controller as the supervisor keeps it: started again, supplied, and obeyed in few things."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from lb import daemonlog, link
from lb.child import EXIT_DISK_FAILED
from lb.children import Backoff, Child, Standing
from lb.errors import StartError
from lb.link import Message
from lb.supervisor.endings import say_end, say_no_process
from lb.supervisor.handover import pieces
from lb.supervisor.instance import Instance, Phase, Slot
from lb.supervisor.workers import Workers

log = logging.getLogger(__name__)

HAND_OVER_SECONDS = 10.0  # For a controller to let go in good order, its leadership passed on.
TASKS_MAX = 256  # Requests for sockets under way; the controller makes one at a time.


class Others(Protocol):
    """Whom the controller's coming and going concerns."""

    def tell_workers(self) -> None:
        """Tell us who works where, and others how far we are."""
        ...

    def heard(self, child: Child, message: Message) -> None:
        """Take a beat."""
        ...

    def refused(self, child: Child, message: Message) -> bool:
        """Whether a child is not to be taken."""
        ...

    def controller_gone(self) -> None:
        """Go on with a stop, if that is what it waited for."""
        ...

    def stop_asked(self, drain: float | None) -> None:
        """Stop gracefully."""
        ...

    def failed_to_take_over(self, why: str) -> None:
        """Leave all to the program that we were to follow."""
        ...

    def upgrade_asked(self, number: int) -> None:
        """Upgrade in place, and tell the controller what came of it."""
        ...

    def reloading(self) -> None:
        """A reload begins."""
        ...

    def reloaded(self, error: str) -> None:
        """It is over, well unless there is an error."""
        ...

    def controller_up(self) -> None:
        """The controller is through its start."""
        ...

    def changed(self, kind: str, fds: Sequence[int] = (), **fields: object) -> None:
        """Pass on to the program that is to follow us what changes meanwhile."""
        ...


class Control:
    """The controller, and what it may ask for."""

    def __init__(self, instance: Instance, workers: Workers, others: Others) -> None:
        self._instance = instance
        self._workers = workers
        self._others = others
        self._backoff = Backoff()
        self._end, self._disk_failed = "", False  # How the last ended; any so far.
        self._reload_waits = False  # A reload was asked for while there was no controller.
        self._on_gone: Callable[[], None] | None = None  # Who waits for the end of the present one.
        self._tasks: set[asyncio.Task[None]] = set()
        self._binding = asyncio.Lock()

    # Coming and going

    def start(self) -> None:
        """Start a controller."""
        instance = self._instance
        if instance.phase is Phase.ENDING or instance.controller is not None:
            return
        if instance.control_elsewhere and instance.phase is not Phase.TAKING:
            return
        try:
            instance.controller = Child(
                "the controller",
                ["lb.controller_process", "--config", instance.config_path],
                self._said,
                self._ended,
            )
        except OSError as error:
            if instance.phase is Phase.STARTING:
                raise StartError(f"no process can be started: {error.strerror}") from error
            say_no_process(instance.loop, self.start, error)

    def _ended(self, child: Child) -> None:
        instance = self._instance
        instance.controller = None
        self._end = child.end_in_words()
        self._disk_failed |= child.status == EXIT_DISK_FAILED
        if self._on_gone is not None:
            self._let_go()
            if instance.phase is Phase.ENDING:
                self._others.controller_gone()
        elif instance.phase is Phase.ENDING:
            self._others.controller_gone()
        elif instance.phase is Phase.TAKING:
            self._others.failed_to_take_over(f"its controller {self._end}")
        elif instance.phase is Phase.STARTING:
            self._fail_start(child)
        elif not instance.control_elsewhere:
            wait = self._backoff.wait_after(instance.loop.time() - child.started)
            say_end(child, wait, self._backoff)
            instance.loop.call_later(wait, self.start)

    def _fail_start(self, child: Child) -> None:
        """End as the controller did: it has said why, unless something killed it."""
        self._instance.phase = Phase.ENDING
        status = child.status or 1
        if status < 0:
            log.error("cannot start: the controller %s", child.end_in_words())
            status = 1
        for worker in self._instance.workers():
            worker.kill()
        self._instance.finish(status)

    # Handing over

    @property
    def disk_failed(self) -> bool:
        """Whether any of our controllers could not make its log sure."""
        return self._disk_failed

    @property
    def reload_waits(self) -> bool:
        """Whether a reload was asked for, and nobody there to do it."""
        return self._reload_waits

    def hand_over(self, gone: Callable[[], None], seconds: float = HAND_OVER_SECONDS) -> None:
        """
        Have the controller let go of everything, and start none; `gone` hears when it has.

        It stays at rest: what it was started from may be gone from disk when it is wanted again.
        """
        instance = self._instance
        instance.control_elsewhere = True
        controller = instance.controller
        if controller is None:
            gone()
            return
        self._on_gone = gone
        if controller.welcomed:
            controller.channel.send("rest")
            controller.standing = Standing.STARTED  # What comes now is for the one that follows.
            instance.loop.call_later(seconds, self._insist, controller)
        else:
            controller.kill()

    def _insist(self, controller: Child) -> None:
        if self._on_gone is not None and self._instance.controller is controller:
            log.error("%s does not let go: killed", controller.name)
            controller.kill()

    def dismiss(self) -> None:
        """End a controller that is not wanted again."""
        if self._instance.controller is not None:
            self._instance.controller.channel.send("stop")

    def _let_go(self) -> None:
        if self._on_gone is not None:
            gone, self._on_gone = self._on_gone, None
            gone()

    def begin(self, *, disk_failed: bool | None = None, reload: bool = False) -> None:
        """Work from now on: nobody else's controller does."""
        instance = self._instance
        instance.control_elsewhere = False
        self._disk_failed |= bool(disk_failed)
        self._reload_waits |= reload
        controller = instance.controller
        if controller is None:
            self.start()
        elif controller.standing is Standing.GREETED:
            self._welcome(controller)

    def own(self) -> None:
        """Tell the controller that the instance is ours."""
        if self._instance.controller is not None:
            self._instance.controller.channel.send("yours")

    # What it is told

    def reload(self) -> None:
        """Have the file read again, now or once there is somebody to do it."""
        controller = self._instance.controller
        if controller is not None and controller.welcomed:
            controller.channel.send("reload")
        else:
            self._reload_waits = True
            log.warning("a reload waits until the controller is back")

    def tell_workers(self) -> None:
        """Tell it who works where."""
        controller = self._instance.controller
        if controller is None or not controller.welcomed:
            return
        controller.channel.send(
            "workers",
            workers=[
                {
                    "slot": slot.number,
                    "pid": 0 if slot.worker is None else slot.worker.pid,
                    "up": slot.serving is not None,
                    "restarts": slot.restarts,
                    "borrower": slot.borrower,
                }
                for slot in self._instance.slots
            ],
        )

    def _welcome(self, child: Child) -> None:
        instance = self._instance
        child.standing = Standing.WELCOMED
        child.channel.send(
            "welcome",
            [] if instance.edition is None else [instance.edition],
            first=instance.phase is Phase.STARTING,
            stopping=instance.phase in (Phase.GRACE, Phase.DRAINING),
            held={address: held.own for address, held in instance.sockets.held.items()},
            ended=self._end,
            upgrade=instance.upgrade,
            taking=instance.phase is Phase.TAKING,
            slots=len(instance.slots),
            disk_failed=self._disk_failed,
            pid=os.getpid(),
            started=instance.started,
        )
        self._tell_metrics()
        self.tell_workers()
        for slot in instance.slots:
            self._workers.connect(slot)
        if self._reload_waits:
            self._reload_waits = False
            child.channel.send("reload")

    def _tell_metrics(self) -> None:
        controller, slots = self._instance.controller, self._instance.slots
        if controller is None or not controller.welcomed:
            return
        memories = [(slot.number, slot.metrics) for slot in slots]
        # Those of the program before us belong to no slot; they count on for those who add up.
        memories += [(-1 - number, fd) for number, fd in enumerate(self._instance.retired)]
        for start in range(0, len(memories), link.MESSAGE_FDS_MAX):
            some = memories[start : start + link.MESSAGE_FDS_MAX]
            controller.channel.send(
                "metrics", [fd for _, fd in some], slots=[number for number, _ in some]
            )

    # What it says

    def _said(self, child: Child, message: Message, fds: list[int]) -> None:
        {
            "hello": self._hear_hello,
            "beat": self._hear_beat,
            "settings": self._settings,
            "bind": self._bind_soon,
            "forget": self._forget,
            "edition": self._keep_edition,
            "restart": self._restart,
            "stop": self._stop,
            "upgrade": self._upgrade,
            "up": self._up,
            "reloading": self._reloading,
            "reloaded": self._reloaded,
        }[message["kind"]](child, message, fds)

    def _hear_hello(self, child: Child, message: Message, _: list[int]) -> None:
        if self._others.refused(child, message):
            return
        child.standing = Standing.GREETED
        self._let_go()  # It says so once more when it is at rest.
        if not self._instance.control_elsewhere and child.standing is Standing.GREETED:
            self._welcome(child)
        self._others.tell_workers()

    def _hear_beat(self, child: Child, message: Message, _: list[int]) -> None:
        self._others.heard(child, message)

    def _stop(self, _: Child, message: Message, __: list[int]) -> None:
        self._others.stop_asked(message["drain"])

    def _upgrade(self, _: Child, message: Message, __: list[int]) -> None:
        self._others.upgrade_asked(message["id"])

    def _up(self, _: Child, __: Message, ___: list[int]) -> None:
        self._others.controller_up()

    def _settings(self, _: Child, message: Message, __: list[int]) -> None:
        instance = self._instance
        instance.grace, instance.drain = message["grace"], message["drain"]
        instance.log = message["log"]
        daemonlog.adopt(message["log"])
        self._others.changed(
            "settings",
            grace=instance.grace,
            drain=instance.drain,
            log=instance.log,
        )
        if not instance.slots:
            # More or fewer than now would need queues of their own: that takes an upgrade.
            instance.sockets.slots = message["workers"]
            instance.slots = [Slot(number) for number in range(message["workers"])]
            self._tell_metrics()
        self._workers.settle()

    def _bind_soon(self, child: Child, message: Message, _: list[int]) -> None:
        assert len(self._tasks) < TASKS_MAX, "the controller waits for each answer"
        task = self._instance.loop.create_task(self._bind(child, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bind(self, child: Child, message: Message) -> None:
        """Hold sockets for what the controller asks, deal them out, answer."""
        own, sockets = message["own"], self._instance.sockets
        async with self._binding:
            new: list[str] = []
            try:
                new = await sockets.ensure(message["addresses"])
                await sockets.ensure(own, own=True)
            except StartError as error:
                sockets.forget(new)
                child.channel.send("bound", id=message["id"], error=error.message, hint=error.hint)
                return
        self._workers.deal(new)
        for entries, fds in pieces(sockets, new):
            self._others.changed("sockets", fds, entries=entries)
        child.channel.send(
            "bound",
            [sockets.held[address].of(0).fileno() for address in own],
            id=message["id"],
            error="",
            hint="",
        )
        if self._instance.phase is Phase.STARTING:
            self._workers.start_missing()

    def _forget(self, _: Child, message: Message, __: list[int]) -> None:
        forget(self._instance, self._workers, message["addresses"])
        self._others.changed("forget", addresses=message["addresses"])

    def _reloading(self, _: Child, __: Message, ___: list[int]) -> None:
        self._others.reloading()

    def _reloaded(self, _: Child, message: Message, __: list[int]) -> None:
        self._others.reloaded(message["error"])

    def _keep_edition(self, _: Child, __: Message, fds: list[int]) -> None:
        instance = self._instance
        if instance.edition is not None:
            os.close(instance.edition)
        instance.edition = fds[0]
        self._others.changed("edition", fds)
        if instance.phase is Phase.STARTING:
            instance.phase = Phase.SERVING
            self._workers.welcome_all()

    def _restart(self, _: Child, message: Message, __: list[int]) -> None:
        self._workers.replace(self._instance.slots[message["slot"]])


def forget(instance: Instance, workers: Workers, addresses: list[str]) -> None:
    """Let go of listeners' addresses, here and in the workers."""
    held = instance.sockets.held
    given = [address for address in addresses if address in held and held[address].given]
    instance.sockets.forget(addresses)
    workers.forget(addresses, given)
