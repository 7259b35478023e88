"""
The plugins of the present edition, live in one worker: made, kept over editions, let go.

What did not change keeps its plugin, and with it all that it knows. What is gone runs on until
the last request that began with it has ended, and is stopped then.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from time import monotonic
from typing import Any, Final

from lb.metrics import Meters
from lb.model import Listener, Plans, PluginCode, PluginUse, Route
from lb.plugin import Count, Plugin, Table
from lb.plugin_code import (
    FAILURES,
    PREFIX,
    PluginError,
    class_of,
    configure,
    described,
    forget,
    guarded,
    module_of,
    registered_in,
)
from lb.proxy.chain import ERRORS_MAX, ERRORS_WITHIN_S, OFF_S, Chain, LivePlugin
from lb.proxy.plan import Slots

EVENTS_MAX: Final = 100  # That one plugin counts.
TASKS_MAX: Final = 1000  # That one plugin has under way beside its hooks.
PERIOD_MIN: Final = 0.05

log = logging.getLogger(__name__)

Key = tuple[PluginUse, str]  # A use, and the digest of its code.


class LiveContext:
    """What one use of a plugin may use of this worker."""

    def __init__(
        self,
        name: str,
        place: str,
        home: LivePlugins,
        rng: random.Random,
    ) -> None:
        self.log = logging.getLogger(f"lb.plugin.{name}")
        self.place = place
        self.rng = rng
        self._name = name
        self._home = home
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._counts: Slots[str] = Slots(
            lambda event: home.meters.counter("lb_plugin_events_total", plugin=name, event=event)
        )
        self._stopped = False

    @property
    def node(self) -> str:
        """The name of this instance."""
        return self._home.node

    @property
    def instances(self) -> int:
        """How many instances live."""
        return self._home.instances

    def now(self) -> float:
        """Return the monotonic clock, which all processes of a machine share."""
        return monotonic()

    def count(self, event: str) -> Count:
        """Return a counter of a plugin's own."""
        if event not in self._counts and len(self._counts) >= EVENTS_MAX:
            raise ValueError(f"a plugin has at most {EVENTS_MAX} counters")
        slot, view = self._counts[event], self._home.meters.view

        def add(by: int = 1) -> None:
            view[slot] += by

        return add

    def table(self, name: str) -> Table:
        """Return numbers that the workers of this instance share."""
        return self._home.table(f"{self._name}/{name}")

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something again and again."""
        self._schedule(max(seconds, PERIOD_MIN), call)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside."""
        if self._stopped or len(self._tasks) >= TASKS_MAX:
            work.close()
            if not self._stopped:
                raise RuntimeError(f"{TASKS_MAX} tasks of this plugin are under way already")
            return
        task = self._home.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def stop(self) -> None:
        """End all that goes on beside."""
        self._stopped = True
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _schedule(self, period: float, call: Callable[[], None]) -> None:
        timer: asyncio.TimerHandle

        def run() -> None:
            self._timers.discard(timer)
            if not self._stopped:
                self._schedule(period, call)
                self._guard("a timer", call)

        timer = self._home.loop.call_later(period, run)
        self._timers.add(timer)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.log.error("plugin %s failed in a task: %s", self._name, described(error))

    def _guard(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except FAILURES as error:
            self.log.error("plugin %s failed in %s: %s", self._name, what, described(error))


class LivePlugins:
    """Makes chains for plans, and keeps plugins over editions."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        meters: Meters,
        rng: random.Random,
        table: Callable[[str], Table],
    ) -> None:
        self.loop = loop
        self.meters = meters
        self.table = table
        self.node = ""
        self.instances = 1
        self.balancers: dict[str, type[Any]] = {}
        self._rng = rng
        self._lives: dict[Key, LivePlugin] = {}
        self._contexts: dict[LivePlugin, LiveContext] = {}
        self._code: dict[str, PluginCode] = {}
        self._sources: Mapping[str, bytes] = {}
        self._everywhere: tuple[PluginUse, ...] = ()
        self._chains: dict[tuple[str, str], Chain | None] = {}
        self._retired: list[Chain] = []
        self._off: set[LivePlugin] = set()
        self._collects = False  # Code was let go, and waits for the collector.

    def install(self, plans: Plans, sources: Mapping[str, bytes]) -> None:
        """
        Serve by these plans from now on.

        All of it was checked before it came here: a plugin that fails to start nevertheless
        fails at each of its requests, as `on_error` says.
        """
        self.node = plans.node
        self.instances = plans.instances
        self._code = {each.name: each for each in plans.code}
        self._sources = sources
        self._everywhere = plans.plugins
        self._retired += [chain for chain in self._chains.values() if chain is not None]
        self._chains = {}
        wanted: dict[Key, LivePlugin] = {}
        sections = [
            plans.plugins,
            *(listener.plugins for listener in plans.listeners),
            *(route.plugins for route in plans.routes),
        ]
        for use in (use for uses in sections for use in uses):
            key = (use, self._code[use.plugin].digest)
            wanted[key] = self._lives.get(key) or self._make(use)
        self._lives = wanted
        self.balancers = dict(self._registered("balancer"))
        modules = {f"{PREFIX}{each.stem}_{each.digest}" for each in plans.code}
        self.let_go()
        self._collects |= forget(modules)

    def chain(self, listener: Listener, route: Route | None) -> Chain | None:
        """Return what requests of a listener and route pass; None if nothing."""
        key = (listener.name, route.name if route is not None else "")
        if key not in self._chains:
            own = route.plugins if route is not None else ()
            uses = (*self._everywhere, *listener.plugins, *own)
            lives = [self._lives[use, self._code[use.plugin].digest] for use in uses]
            self._chains[key] = Chain(lives) if lives else None
        return self._chains[key]

    def on_tick(self, now: float) -> None:
        """Let go of what ended; try again what was off; measure the next request of each chain."""
        if self._collects:
            # Classes and modules are cycles, and a worker's collector is all but idle.
            self._collects = False
            gc.collect()
        if self._retired:
            self.let_go()
        due = {live for live in self._off if live.off_until <= now}
        for chain in self._chains.values():
            if chain is not None:
                chain.sampling = True
                if due:
                    chain.arrange(now)
        for live in due:
            live.plugin.ctx.log.warning("plugin %s (%s) is tried again", live.name, live.place)
        self._off -= due
        for name in {live.name for live in due}:
            self._show_off(name)

    def let_go(self) -> None:
        """Stop plugins that no edition has and no request uses any more."""
        self._retired = [chain for chain in self._retired if chain.running]
        used = {live for chain in self._retired for live in chain.lives}
        used.update(self._lives.values())
        for live in [live for live in self._contexts if live not in used]:
            self._stop(live)

    def close(self) -> None:
        """Stop them all."""
        for live in list(self._contexts):
            self._stop(live)

    def _stop(self, live: LivePlugin) -> None:
        context = self._contexts.pop(live)
        context.stop()
        self._collects = True
        if live in self._off:
            self._off.discard(live)
            self._show_off(live.name)
        try:
            guarded(live.plugin.stop, f"plugin {live.name}", live.file)
        except PluginError as error:
            log.error("stop() of %s", error.message)

    def _make(self, use: PluginUse) -> LivePlugin:
        code = self._code[use.plugin]
        context = LiveContext(use.plugin, use.place, self, self._rng)
        try:
            cls = class_of(self._carried(code), use.plugin)
            plugin = cls(configure(cls, json.loads(use.settings)), context)
            guarded(plugin.start, f"plugin {use.plugin}", code.file)
        except (PluginError, *FAILURES) as error:
            said = error.message if isinstance(error, PluginError) else described(error)
            log.error("plugin %s (%s) cannot be started: %s", use.plugin, use.place, said)
            plugin = _Broken(use.plugin, said, context)
        live = LivePlugin(
            plugin,
            use.place,
            code.file,
            self.meters,
            self._switch_off,
            passes_over=use.on_error == "open",
        )
        live.name = use.plugin
        self._contexts[live] = context
        return live

    def _switch_off(self, live: LivePlugin, said: str) -> None:
        self._off.add(live)
        self._show_off(live.name)
        now = monotonic()
        for chain in self._chains.values():
            if chain is not None and live in chain.lives:
                chain.arrange(now)
        meanwhile = "passed over" if live.open else "answered with 500"
        live.plugin.ctx.log.error(
            "plugin %s (%s) is off for %g s: it failed %d times within %g s, at last by %s;"
            " its requests are %s meanwhile",
            *(live.name, live.place, OFF_S, ERRORS_MAX, ERRORS_WITHIN_S, said, meanwhile),
        )

    def _show_off(self, name: str) -> None:
        slot = self.meters.gauge("lb_plugin_off", plugin=name)
        self.meters.view[slot] = sum(live.name == name for live in self._off)

    def _carried(self, code: PluginCode) -> dict[str, str]:
        carried = {"file": code.file, "digest": code.digest, "stem": code.stem}
        if code.entry:
            return {**carried, "entry": code.entry}
        return {**carried, "source": self._sources[code.digest].decode()}

    def _registered(self, sort: str) -> list[tuple[str, Any]]:
        found = []
        for name, code in self._code.items():
            kind, _, own = name.partition(":")
            if kind != sort or not own:
                continue
            try:
                found.append((own, registered_in(module_of(self._carried(code)), sort)[own]))
            except (PluginError, KeyError) as error:
                log.error("%s %s cannot be loaded: %s", sort.replace("_", " "), own, error)
        return found


class _Broken(Plugin[None]):
    """Stands for a plugin that could not be started here, though it could where it was checked."""

    name = "broken"

    def __init__(self, name: str, said: str, ctx: LiveContext) -> None:
        super().__init__(None, ctx)
        self._said = said

    def on_request(self, req: object) -> None:
        raise RuntimeError(f"it could not be started: {self._said}")
