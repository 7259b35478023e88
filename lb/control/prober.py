"""
Asks backends how they are: one prober an instance, whatever the number of workers.

Each endpoint of a checked upstream has a task of its own, which probes, counts, and waits; at
most one probe is under way per address, and at most `PROBES_MAX` in all. Only verdicts go on
to workers; the last check and its reason are for people. Both outlive a reload, as long as
what is checked stays the same, and, through the edition, a controller.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

from lb.config.schema import Config
from lb.control.desk import Check
from lb.control.looptime import LoopClock
from lb.control.probe import Answer, Subject
from lb.edition import SRV, Resolved, Verdicts, backends_of, endpoints_of, host_in
from lb.errors import OurError
from lb.health import Checkup
from lb.http1.proxy_protocol import write_proxy_header
from lb.model import HTTPS, Health
from lb.registry import Registry

log = logging.getLogger(__name__)

PROBES_MAX = 256  # Under way at once, over all upstreams.
RESTORED_WITHIN = 1.0  # Seconds in which verdicts of before are looked at again.
AFTER_A_BUG = 5.0  # Seconds until an endpoint is probed again whose task failed.
FIRST_VERDICTS_WITHIN = 10.0  # Seconds; readiness does not wait for them longer.

Key = tuple[str, str]  # Upstream, endpoint address.


class Asking(Protocol):
    """What makes the probes: `probe.Asker`."""

    async def ask(self, subject: Subject) -> Answer:
        """Probe once."""
        ...


@dataclass(slots=True)
class _Watch:
    """One endpoint under watch."""

    subject: Subject
    checkup: Checkup
    turn: asyncio.Lock  # Shared by all that probe this address.
    last: dict[str, Any] | None = None
    passed: int = 0
    failed: int = 0
    task: asyncio.Task[None] | None = field(default=None, repr=False)


def subjects_of(
    config: Config,
    registry: Registry,
    resolved: Resolved,
    context: Callable[[Config, str], ssl.SSLContext] | None = None,
) -> list[Subject]:
    """
    Say what is to be probed: every endpoint of every upstream that has an active check.

    `context` gives what an upstream's https:// backends are spoken to by.
    """
    found: dict[Key, Subject] = {}
    for name, upstream in config.upstream.items():
        check = upstream.health
        if check is None or not check.active:
            continue
        code = config.plugins.code.get(f"health_check:{check.type}")
        way = upstream.send_proxy
        greeting = b"" if way == "off" else write_proxy_header(way, None)
        for row in backends_of(name, upstream, registry.upstreams.get(name)):
            # Draining and disabled ones too: who is enabled again has a verdict at once.
            host = row.address.removeprefix(HTTPS)
            if row.address.startswith("unix:"):
                host = "localhost"
            elif row.address.startswith(SRV):
                host = row.address.removeprefix(SRV)
            tls, expected = None, ""
            if context is not None and row.address.startswith(HTTPS):
                tls = context(config, name)
                expected = upstream.tls.name or host_in(row.address)[0]
            for address in endpoints_of(row.address, resolved):
                subject = Subject(name, address, host, check, tls, expected, greeting, code)
                found.setdefault((name, address), subject)
    return list(found.values())


class Prober:
    """
    Keeps a verdict for every subject that `update` names.

    `on_verdict` is called, without arguments, when `verdicts` has become another mapping.
    `wall` gives the seconds since 1970 that people read.
    """

    def __init__(
        self,
        asker: Asking,
        on_verdict: Callable[[], None],
        wall: Callable[[], float],
        rng: random.Random,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._asker = asker
        self._on_verdict = on_verdict
        self._wall = wall
        self._rng = rng
        self._loop = loop or asyncio.get_running_loop()
        self._clock = LoopClock(self._loop)
        self._slots = asyncio.Semaphore(PROBES_MAX)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._watches: dict[Key, _Watch] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._restored: dict[Key, dict[str, Any]] = {}
        self._verdicts: dict[str, dict[str, Health]] = {}
        self._ready_by = self._loop.time() + FIRST_VERDICTS_WITHIN

    # What others ask

    @property
    def verdicts(self) -> Verdicts:
        """Of every endpoint under watch. Another object whenever one of them changed."""
        return self._verdicts

    def checks(self, upstream: str) -> dict[str, Check]:
        """What is known of an upstream's endpoints, by address."""
        return {
            address: Check(watch.checkup.state, watch.last, watch.passed, watch.failed)
            for (name, address), watch in self._watches.items()
            if name == upstream
        }

    def undecided(self) -> int:
        """How many endpoints wait for their first verdict; 0 once that has taken too long."""
        if self._loop.time() >= self._ready_by:
            return 0
        return sum(not watch.checkup.decided for watch in self._watches.values())

    def to_plain(self) -> dict[str, Any]:
        """What the next controller should know, as JSON can hold it."""
        plain: dict[str, dict[str, Any]] = {}
        for (upstream, address), watch in self._watches.items():
            plain.setdefault(upstream, {})[address] = {
                "checkup": watch.checkup.to_plain(),
                "last": watch.last,
                "target": watch.subject.target,
            }
        return plain

    # What changes

    def restore(self, plain: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what a prober before us knew, for endpoints that turn up soon."""
        self._restored = {
            (upstream, address): dict(each)
            for upstream, endpoints in plain.items()
            for address, each in endpoints.items()
        }

    def update(self, subjects: Iterable[Subject]) -> None:
        """Watch these and no others; an endpoint whose check stays the same keeps its verdict."""
        wanted = {(each.upstream, each.address): each for each in subjects}
        for key in self._watches.keys() - wanted.keys():
            self._stop(self._watches.pop(key))
        for key, subject in wanted.items():
            watch = self._watches.get(key)
            if watch is None:
                self._start(key, subject)
            elif watch.subject != subject:
                self._change(key, watch, subject)
        if self._loop.time() >= self._ready_by:
            self._restored = {}  # Whoever is not back by now begins anew.
        self._show()

    async def close(self) -> None:
        """Stop all probes, and wait until they have stopped."""
        for watch in self._watches.values():
            self._stop(watch)
        self._watches = {}
        self._clock.close()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    # Within

    def _start(self, key: Key, subject: Subject) -> None:
        check = subject.check
        before = self._restored.pop(key, None)
        if before is not None and before["target"] == subject.target:
            checkup = Checkup.from_plain(before["checkup"], check.rise, check.fall)
            watch = _Watch(subject, checkup, self._turn(subject), before["last"])
        else:
            watch = _Watch(subject, Checkup(check.rise, check.fall), self._turn(subject))
        self._watches[key] = watch
        self._run(watch, self._rng.uniform(0.0, RESTORED_WITHIN) if watch.checkup.decided else 0.0)

    def _change(self, key: Key, watch: _Watch, subject: Subject) -> None:
        """Go on with another check; what was found holds if it is still about the same."""
        self._stop(watch)
        check = subject.check
        if watch.subject.target == subject.target:
            checkup = Checkup.from_plain(watch.checkup.to_plain(), check.rise, check.fall)
            after = _Watch(subject, checkup, watch.turn, watch.last)
        else:
            after = _Watch(subject, Checkup(check.rise, check.fall), watch.turn)
        after.passed, after.failed = watch.passed, watch.failed
        self._watches[key] = after
        self._run(after, self._rng.uniform(0.0, RESTORED_WITHIN) if after.checkup.decided else 0.0)

    def _turn(self, subject: Subject) -> asyncio.Lock:
        turn = self._turns.get(subject.address)
        if turn is None:
            turn = self._turns[subject.address] = asyncio.Lock()
        return turn

    def _run(self, watch: _Watch, delay: float) -> None:
        watch.task = self._loop.create_task(self._probe_for_ever(watch, delay))
        watch.task.add_done_callback(lambda task: self._ended(watch, task))

    def _stop(self, watch: _Watch) -> None:
        task = watch.task
        assert task is not None
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        task.cancel()

    def _ended(self, watch: _Watch, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        bug = task.exception()
        assert bug is not None, "a watch goes on until it is cancelled"
        subject = watch.subject
        error = OurError(f"the probes of {subject.upstream}/{subject.address} failed")
        error.__cause__ = bug
        self._loop.call_exception_handler({"message": error.message, "exception": error})
        if self._watches.get((subject.upstream, subject.address)) is watch:
            self._run(watch, AFTER_A_BUG)

    async def _probe_for_ever(self, watch: _Watch, delay: float) -> None:
        check = watch.subject.check
        while True:
            await asyncio.sleep(delay)
            async with watch.turn, self._slots:
                started = self._clock.now()
                try:
                    async with self._clock.limit(check.timeout):
                        answer = await self._asker.ask(watch.subject)
                except TimeoutError:
                    answer = Answer(False, f"no answer within {check.timeout:g}s")
                took = self._clock.now() - started
            self._record(watch, answer, took)
            delay = watch.checkup.next_delay(check.interval, self._rng)

    def _record(self, watch: _Watch, answer: Answer, took: float) -> None:
        subject = watch.subject
        watch.last = {
            "at": self._wall(),
            "ok": answer.ok,
            "reason": answer.reason,
            "ms": round(took * 1000, 1),
        }
        if answer.ok:
            watch.passed += 1
        else:
            watch.failed += 1
        if watch.checkup.record(answer.ok, answer.reason, watch.last["at"]):
            state = watch.checkup.state
            level = logging.INFO if state is Health.HEALTHY else logging.WARNING
            where = f"{subject.upstream}/{subject.address}"
            log.log(level, "%s is %s: %s", where, state.value, answer.reason)
            self._show_one(subject, state)

    def _show_one(self, subject: Subject, state: Health) -> None:
        of_upstream = self._verdicts.get(subject.upstream, {})
        self._verdicts = {
            **self._verdicts,
            subject.upstream: {**of_upstream, subject.address: state},
        }
        self._on_verdict()

    def _show(self) -> None:
        verdicts: dict[str, dict[str, Health]] = {}
        for (upstream, address), watch in self._watches.items():
            verdicts.setdefault(upstream, {})[address] = watch.checkup.state
        if verdicts != self._verdicts:
            self._verdicts = verdicts
            self._on_verdict()
