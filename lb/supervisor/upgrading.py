"""
Upgrading in place, seen from the program that goes.

What is installed now is started beside us with all sockets and the edition. Once its workers
serve, our controller ends and its own begins; once that is ready, our workers drain and we
end. Whatever fails before that ends the new program, and we go on as if nothing had been.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum

from lb.build import BUILD
from lb.children import Child, environment
from lb.link import MESSAGE_FDS_MAX, Message
from lb.supervisor.control import Control
from lb.supervisor.handover import PROTOCOL, pieces
from lb.supervisor.instance import Instance, Phase
from lb.supervisor.service import ServiceManager
from lb.supervisor.stopping import Stopping

log = logging.getLogger(__name__)

# How many workers the file wants is asked here, for the edition has what they were started with.
TRY = """\
import os, sys
import lb.cli.running, lb.controller_process, lb.controller, lb.worker
import lb.supervisor.taking_over
from lb.build import BUILD
from lb.config.load import load
from lb.errors import AccordError
workers = 0
try:
    workers = load(sys.argv[1], dict(os.environ)).config.node.worker_count()
except AccordError:
    pass
print(BUILD, workers)
"""
TRY_SECONDS = 20.0  # For the new program to be imported,
WORKERS_SECONDS = 30.0  # for its workers to serve: the machine is busy with ours,
READY_SECONDS = 10.0  # and for its controller to be ready, while ours is gone.
ABORT_SECONDS = 5.0  # For a program that failed to let go of the data_dir.
REASON_MAX = 500


class Step(Enum):
    """How far an upgrade has come."""

    NONE = "none"
    TRYING = "trying"  # Whether what is installed can be started at all.
    STARTING = "starting"  # Its workers come up beside ours.
    HANDING = "handing over"  # Our controller ends.
    WAITING = "waiting"  # Its controller begins.
    UNDOING = "undoing"  # It lets go; then our controller comes back.
    DONE = "done"  # The instance is its own, our workers drain.


class Upgrading:
    """One upgrade at a time, and who asked for it."""

    def __init__(
        self, instance: Instance, control: Control, stopping: Stopping, service: ServiceManager
    ) -> None:
        self._instance = instance
        self._control = control
        self._stopping = stopping
        self._service = service
        self._step = Step.NONE
        self._asked: list[int] = []  # Questions of the controller, each to be answered once.
        self._timer: asyncio.TimerHandle | None = None
        self._trial: asyncio.Task[None] | None = None
        self._successor: Child | None = None  # Who follows us, from `yours` on.
        self._workers_wanted = 0
        self.predecessor_drains = False

    @property
    def done(self) -> bool:
        """Return whether the instance is another program's by now."""
        return self._step is Step.DONE

    # Asking

    def asked(self, number: int) -> None:
        """Upgrade, as the admin wants it; the answer goes to the controller."""
        if why := self._unable():
            self._answer(number, why)
            return
        self._asked.append(number)
        self.start("asked for by the admin API")

    def start(self, why: str) -> None:
        """Upgrade, unless one is under way or impossible now."""
        if unable := self._unable():
            log.warning("no upgrade (%s): %s", why, unable)
            return
        log.info("upgrade: trying what is installed (%s)", why)
        self._step = Step.TRYING
        self._trial = self._instance.loop.create_task(self._try())

    def _unable(self) -> str:
        if self._instance.phase is not Phase.SERVING:
            return f"this instance is {self._instance.phase.value}"
        if self._step is not Step.NONE:
            return "an upgrade is under way already"
        if self.predecessor_drains:
            return "what the program before this one served still drains; try again in a moment"
        if self._instance.program is not None:
            return "what the last try began to serve still drains; try again in a moment"
        return ""

    async def _try(self) -> None:
        """Import what is installed: what cannot be imported says why, and costs nothing."""
        words = [sys.executable, "-c", TRY, self._instance.config_path]
        try:
            done = await asyncio.to_thread(_run, words)
        except (OSError, subprocess.TimeoutExpired) as error:
            self._fail(f"what is installed cannot be started: {error}")
            return
        if self._step is not Step.TRYING:
            return
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            self._fail(f"what is installed cannot be started: {last[0][:REASON_MAX]}")
            return
        build, workers = done.stdout.split()[-2:]
        self._workers_wanted = int(workers) or len(self._instance.slots)
        self._start_program(build)

    # The new program

    def _start_program(self, build: str) -> None:
        same = ", the same as ours" if build == BUILD else f", ours is {BUILD}"
        log.info("upgrade: starting build %s%s", build, same)
        self._step = Step.STARTING
        try:
            self._instance.program = Child(
                "the new program",
                ["lb.cli", "run", "--config", self._instance.config_path],
                self._said,
                self._ended,
            )
        except OSError as error:
            self._fail(f"no process can be started: {error.strerror}")
            return
        self._wait(WORKERS_SECONDS, f"its workers did not serve within {WORKERS_SECONDS:g} s")

    def _wait(self, seconds: float, otherwise: str) -> None:
        self._stop_waiting()
        self._timer = self._instance.loop.call_later(seconds, self._fail, otherwise)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _said(self, child: Child, message: Message, fds: list[int]) -> None:
        assert not fds, "a new program hands over nothing"
        match message["kind"], self._step:
            case "hello", Step.STARTING:
                self._hand_state(child, message)
            case "serving", Step.STARTING:
                self._hand_control()
            case "up", Step.WAITING:
                self._leave(child)
            case "failed", _ if self._step is not Step.DONE:
                self._fail(message["reason"])
            case "released", Step.UNDOING:
                self._come_back()
            case kind, step:
                log.warning("the new program says %r while we are %s", kind, step.value)

    def _hand_state(self, child: Child, hello: Message) -> None:
        """Give it all that we hold: sockets, counters, the edition."""
        if hello["protocol"] != PROTOCOL:
            self._fail(f"it hands over by protocol {hello['protocol']}, we by {PROTOCOL}: restart")
            return
        instance = self._instance
        assert instance.edition is not None, "we serve by one"
        child.channel.send(
            "begin",
            [instance.edition],
            protocol=PROTOCOL,
            build=BUILD,
            grace=instance.grace,
            drain=instance.drain,
            log=instance.log,
            workers=self._workers_wanted,
            stays=instance.stays,
        )
        for entries, fds in pieces(instance.sockets, instance.sockets.held, with_given=True):
            child.channel.send("sockets", fds, entries=entries)
        self._hand_metrics(child, "current", [slot.metrics for slot in instance.slots])
        self._hand_metrics(child, "retired", instance.retired)
        child.channel.send("go")

    def _hand_metrics(self, child: Child, state: str, memories: Sequence[int]) -> None:
        for start in range(0, len(memories), MESSAGE_FDS_MAX):
            some = memories[start : start + MESSAGE_FDS_MAX]
            child.channel.send("metrics", some, state=state)

    def changed(self, kind: str, fds: Sequence[int], **fields: object) -> None:
        """Pass on what changes here after the state was handed over."""
        program = self._instance.program
        if program is not None and self._step in (Step.STARTING, Step.HANDING, Step.WAITING):
            program.channel.send(kind, fds, **fields)

    def _hand_control(self) -> None:
        """Its workers serve: answer who asked, and let our controller end."""
        log.info("upgrade: the new workers serve; our controller hands over")
        self._step = Step.HANDING
        self._stop_waiting()
        self._answer_all("")
        self._control.hand_over(self._controller_gone)

    def _controller_gone(self) -> None:
        program = self._instance.program
        if self._step is Step.UNDOING:
            return  # It comes back when the new program has let go.
        if self._step is not Step.HANDING or program is None:
            self._control.begin()
            return
        self._step = Step.WAITING
        program.channel.send("control", disk_failed=self._control.disk_failed)
        self._wait(READY_SECONDS, f"its controller was not ready within {READY_SECONDS:g} s")

    def _leave(self, child: Child) -> None:
        self._stop_waiting()
        self._step = Step.DONE
        instance = self._instance
        instance.program, self._successor = None, child
        self._service.main_process(child.pid)
        child.channel.send("yours")
        if self._control.reload_waits:
            child.channel.send("reload")
        log.info(
            "upgrade: done, the instance is process %d; what runs here has %g s",
            child.pid,
            instance.drain,
        )
        self._control.dismiss()
        self._stopping.leave(self._workers_wanted)

    # Failing

    def _fail(self, reason: str) -> None:
        """Go on as before, and say why."""
        if self._step in (Step.NONE, Step.DONE, Step.UNDOING):
            return
        self._stop_waiting()
        log.error("upgrade: failed, nothing has changed: %s", reason)
        self._service.status(f"the last upgrade failed: {reason}")
        self._instance.upgrade = {"error": reason, "at": datetime.now(UTC).timestamp()}
        self._answer_all(reason)
        controls = self._step in (Step.HANDING, Step.WAITING)
        program = self._instance.program
        self._step = Step.UNDOING if controls else Step.NONE
        if program is None:
            self._come_back()
            return
        program.channel.send("abort")
        self._timer = self._instance.loop.call_later(ABORT_SECONDS, self._insist, program)

    def _insist(self, program: Child) -> None:
        """End a new program that does not let go; its workers drain by themselves then."""
        if self._step is Step.UNDOING and self._instance.program is program:
            log.error("upgrade: the new program does not let go: killed")
            program.kill()

    def _come_back(self) -> None:
        if self._step is Step.UNDOING:
            self._step = Step.NONE
            self._stop_waiting()
            if self._instance.phase is not Phase.ENDING:
                self._control.begin()

    def _ended(self, child: Child) -> None:
        instance = self._instance
        if child is self._successor:
            self._successor = None
            if instance.stays:
                status = child.status or 0
                instance.finish(128 - status if status < 0 else status)
            return
        instance.program = None
        self._fail(f"it {child.end_in_words()}; its log says more")
        self._come_back()
        self._stopping.go_on()

    def cancel(self) -> None:
        """Give it up: the instance is to stop."""
        self._fail("the instance was told to stop")

    # After it

    def ended(self) -> None:
        """End ourselves, now that our last worker has; or stay for whoever watches us."""
        if self._successor is not None:
            self._successor.channel.send("drained")
        if self._successor is None or not self._instance.stays:
            self._instance.finish(0)

    def pass_on(self, kind: str) -> None:
        """Pass a signal on to who follows us: it was meant for the instance."""
        if self._successor is not None:
            self._successor.channel.send(kind)

    # Answers

    def _answer_all(self, error: str) -> None:
        asked, self._asked = self._asked, []
        for number in asked or ([0] if error else []):
            self._answer(number, error)

    def _answer(self, number: int, error: str) -> None:
        controller, program = self._instance.controller, self._instance.program
        if controller is not None and controller.welcomed:
            pid = 0 if program is None else program.pid
            at = datetime.now(UTC).timestamp()
            controller.channel.send("upgraded", id=number, error=error, at=at, pid=pid)


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TRY_SECONDS,
        env=environment(),
        cwd=os.getcwd(),
        check=False,
    )
