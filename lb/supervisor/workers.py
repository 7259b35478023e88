"""Workers as the supervisor keeps them: started, supplied, started again, stood in for."""

from __future__ import annotations

import functools
import logging
from typing import Protocol

from lb import link
from lb.children import Child, Standing
from lb.link import Message
from lb.supervisor.endings import say_end, say_no_process
from lb.supervisor.instance import Instance, Phase, Slot

log = logging.getLogger(__name__)

LEND_AFTER = 1.0  # Seconds that a slot's clients wait for their own worker.
STARTABLE = (Phase.SERVING, Phase.STARTING, Phase.GRACE, Phase.TAKING)


class Others(Protocol):
    """Whom workers' coming and going concerns."""

    def tell_workers(self) -> None:
        """Tell the controller who works where."""
        ...

    def heard(self, child: Child, message: Message) -> None:
        """Take a beat."""
        ...

    def refused(self, child: Child, message: Message) -> bool:
        """Whether a child is not to be taken."""
        ...

    def all_serve(self) -> None:
        """All workers serve, for the first time."""
        ...

    def worker_gone(self) -> None:
        """Go on with a stop, if that is what it waited for."""
        ...

    def failed_to_take_over(self, why: str) -> None:
        """Leave all to the program that we were to follow."""
        ...


class Workers:
    """All slots' workers."""

    def __init__(self, instance: Instance, others: Others) -> None:
        self._instance = instance
        self._others = others
        self._said_serving = False

    # Coming and going

    def start(self, slot: Slot) -> None:
        """Start a slot's worker."""
        instance = self._instance
        if instance.phase not in STARTABLE:
            return
        try:
            slot.worker = Child(
                f"worker {slot.number}",
                ["lb.worker", "--slot", str(slot.number)],
                lambda child, message, fds: self._said(slot, child, message, fds),
                lambda child: self._ended(slot, child),
            )
        except OSError as error:
            say_no_process(instance.loop, functools.partial(self.start, slot), error)
        self._plan_lending(slot, LEND_AFTER)

    def start_missing(self) -> None:
        """Start all that are not there."""
        for slot in self._instance.slots:
            if slot.worker is None:
                self.start(slot)

    def _ended(self, slot: Slot, child: Child) -> None:
        instance = self._instance
        slot.worker = None
        if instance.phase in (Phase.DRAINING, Phase.ENDING):
            self._others.worker_gone()
            return
        if instance.phase is Phase.TAKING:
            self._others.failed_to_take_over(f"its {child.name} {child.end_in_words()}")
            return
        wait = slot.backoff.wait_after(instance.loop.time() - child.started)
        say_end(child, wait, slot.backoff)
        slot.restarts += 1
        for other in instance.slots:
            if other.borrower == slot.number:
                other.borrower = None
                self._plan_lending(other, 0.0)
        self._plan_lending(slot, LEND_AFTER)
        instance.loop.call_later(wait, self.start, slot)
        self._others.tell_workers()

    # What they say

    def _said(self, slot: Slot, child: Child, message: Message, fds: list[int]) -> None:
        assert not fds, "workers hand over nothing"
        match message["kind"]:
            case "hello":
                if not self._others.refused(child, message):
                    child.standing = Standing.GREETED
                    self._others.tell_workers()
                    if self._instance.edition is not None:
                        self._welcome(slot, child)
            case "beat":
                self._others.heard(child, message)
            case "serving":
                child.standing = Standing.SERVING
                self._take_back(slot)
                self._others.tell_workers()
                self.say_serving()
            case kind:
                log.error("%s says %r, which is no word of ours", child.name, kind)

    def say_serving(self) -> None:
        """Say once that all workers serve the instance."""
        if self._said_serving or self._instance.phase is Phase.TAKING:
            return
        if all(slot.serving for slot in self._instance.slots):
            self._said_serving = True
            log.info("%s", self.in_words())
            self._others.all_serve()

    def in_words(self) -> str:
        """Say where we serve, and by how many."""
        count = len(self._instance.slots)
        where = ", ".join(self._instance.sockets.listeners()) or "no address"
        return f"serving on {where} with {count} worker{'' if count == 1 else 's'}"

    # What they are told

    def welcome_all(self) -> None:
        """Supply those who came before there was an edition."""
        for slot in self._instance.slots:
            if slot.worker is not None and slot.worker.standing is Standing.GREETED:
                self._welcome(slot, slot.worker)

    def _welcome(self, slot: Slot, child: Child) -> None:
        instance = self._instance
        assert instance.edition is not None, "without an edition there is nothing to serve"
        child.standing = Standing.WELCOMED
        child.channel.send(
            "welcome",
            [slot.metrics, instance.edition, instance.tables],
            slot=slot.number,
            workers=len(instance.slots),
            drain=instance.drain,
            log=instance.log,
            stopping=instance.phase is Phase.GRACE,
        )
        self._deal(slot, slot.number, instance.sockets.listeners())
        self.connect(slot)

    def connect(self, slot: Slot) -> None:
        """Give the controller and a worker a new way to each other."""
        controller, worker = self._instance.controller, slot.worker
        if controller is None or not controller.welcomed:
            return
        if worker is None or not worker.welcomed:
            return
        ours, theirs = link.make_stream()
        with ours, theirs:
            controller.channel.send("link", [ours.fileno()], slot=slot.number)
            worker.channel.send("link", [theirs.fileno()])

    def settle(self) -> None:
        """Tell what the config says that they act on beside the edition."""
        for worker in self._instance.workers():
            worker.channel.send("settings", drain=self._instance.drain, log=self._instance.log)

    def pass_edition(self) -> None:
        """Have them serve by a newer edition, while no controller sends them any."""
        edition = self._instance.edition
        assert edition is not None, "they serve by one"
        for worker in self._instance.workers():
            if worker.welcomed:
                worker.channel.send("edition", [edition])

    def forget(self, addresses: list[str], given: list[str]) -> None:
        """Have listeners closed that are no more; a service manager goes on holding `given`."""
        for worker in self._instance.workers():
            if worker.welcomed:
                worker.channel.send("forget", addresses=addresses, given=given, slots=None)

    def close_queues(self, slots: range) -> None:
        """Have the queues of these slots closed for good: nobody takes them over."""
        if slots:
            addresses, numbers = self._own_queues(), list(slots)
            for worker in self._instance.workers():
                if worker.welcomed:
                    worker.channel.send("forget", addresses=addresses, given=[], slots=numbers)

    def drain(self) -> None:
        """Have them finish what runs; who does not serve yet just ends."""
        for slot in self._instance.slots:
            if slot.serving is None:
                self._lend(slot)  # Its queue would be refused otherwise.
        for worker in self._instance.workers():
            if worker.serving:
                worker.channel.send("drain", seconds=self._instance.drain)
            else:
                worker.kill()

    def replace(self, slot: Slot) -> None:
        """End a worker that is silent; another follows."""
        if slot.worker is not None:
            log.error("%s (pid %d) is silent: replaced", slot.worker.name, slot.worker.pid)
            slot.worker.kill()

    # Queues

    def deal(self, addresses: list[str]) -> None:
        """Give out new addresses' sockets."""
        for slot in self._instance.slots:
            self._deal(slot, slot.number, addresses)
            if slot.borrower is not None:
                self._deal(slot, slot.borrower, addresses)

    def _deal(self, slot: Slot, to: int, addresses: list[str]) -> None:
        """Give a slot's sockets to the worker of slot `to`, which need not be its own."""
        worker = self._instance.slots[to].worker
        if worker is None or not worker.welcomed:
            return
        held = self._instance.sockets.held
        for start in range(0, len(addresses), link.MESSAGE_FDS_MAX):
            some = addresses[start : start + link.MESSAGE_FDS_MAX]
            worker.channel.send(
                "sockets",
                [held[address].of(slot.number).fileno() for address in some],
                open=[[address, slot.number] for address in some],
            )

    def _plan_lending(self, slot: Slot, wait: float) -> None:
        if slot.lend_timer is None and slot.borrower is None:
            slot.lend_timer = self._instance.loop.call_later(wait, self._lend, slot)

    def _lend(self, slot: Slot) -> None:
        """Let another worker accept a slot's clients, unless its own does by now."""
        if slot.lend_timer is not None:
            slot.lend_timer.cancel()
            slot.lend_timer = None
        if slot.serving is not None or slot.borrower is not None or not self._own_queues():
            return
        slots = self._instance.slots
        able = [each.number for each in slots if each.serving is not None]
        if not able:
            self._plan_lending(slot, LEND_AFTER)
            return
        taken = [each.borrower for each in slots]
        slot.borrower = min(able, key=lambda number: (taken.count(number), number))
        log.warning("worker %d accepts for worker %d meanwhile", slot.borrower, slot.number)
        self._deal(slot, slot.borrower, self._own_queues())
        self._others.tell_workers()

    def _take_back(self, slot: Slot) -> None:
        """End the lending of a slot whose own worker serves."""
        if slot.lend_timer is not None:
            slot.lend_timer.cancel()
            slot.lend_timer = None
        if slot.borrower is not None:
            borrower = self._instance.slots[slot.borrower].worker
            if borrower is not None:
                borrower.channel.send("return", slot=slot.number)
            slot.borrower = None

    def _own_queues(self) -> list[str]:
        """Return the addresses with a queue a slot: others are everybody's already."""
        sockets = self._instance.sockets
        return [address for address in sockets.listeners() if not sockets.held[address].shared]
