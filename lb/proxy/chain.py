"""
The plugins that a request passes, one after the other, and what becomes of one that fails.

A chain is worked out once for a listener and a route; a request only walks through it. Nothing
that a plugin raises gets past here: it becomes an answer ("closed") or is passed over ("open"),
and is counted, logged with the request's id, and at some point enough.
"""

from __future__ import annotations

import traceback
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from time import monotonic
from typing import Any, Final

from lb.http1.replies import Reply
from lb.metrics import BOUNDS, SUM, Meters
from lb.plugin import End, Plugin, Request, RequestHook, Response, ResponseHook
from lb.plugin_code import FAILURES, described, line_in

SLOW_S: Final = 0.005  # Of one call, in which nobody else is served.
SLOW_AGAIN_S: Final = 10.0
SLOW_SAID_EVERY_S: Final = 10.0
ERRORS_MAX: Final = 5  # Within ERRORS_WITHIN_S; then it is off.
ERRORS_WITHIN_S: Final = 10.0
OFF_S: Final = 30.0  # Then it is tried again.

Outcome = Reply | Awaitable[Reply | None] | None


class LivePlugin:
    """One use of a plugin in this worker: the plugin, and how it has done so far."""

    __slots__ = (
        "_errors",
        "_log",
        "_meters",
        "_seconds",
        "_slow_at",
        "_slow_said",
        "file",
        "name",
        "off_until",
        "on_off",
        "open",
        "place",
        "plugin",
    )

    def __init__(
        self,
        plugin: Plugin[Any],
        place: str,
        file: str,
        meters: Meters,
        on_off: Callable[[LivePlugin, str], None],
        *,
        passes_over: bool,
    ) -> None:
        self.plugin = plugin
        self.name = type(plugin).name
        self.place = place
        self.file = file
        self.open = passes_over
        self.off_until = 0.0
        self.on_off = on_off
        self._log = plugin.ctx.log
        self._meters = meters
        self._errors: deque[float] = deque(maxlen=ERRORS_MAX)
        self._slow_at = -SLOW_AGAIN_S
        self._slow_said = -SLOW_SAID_EVERY_S
        self._seconds = {
            hook: meters.histogram("lb_plugin_seconds", plugin=self.name, hook=hook)
            for hook in ("on_request", "on_response", "on_finish")
            if hasattr(plugin, hook)
        }

    def failed(self, hook: str, error: BaseException, request_id: str) -> Reply | None:
        """Count, log and bound a failure; return the answer that it is to the client, if any."""
        now = monotonic()
        view = self._meters.view
        view[self._meters.counter("lb_plugin_errors_total", plugin=self.name, hook=hook)] += 1
        line = line_in(error, self.file)
        place = f"{self.file}:{line}" if line else self.file
        said = described(error)
        self._log.error(
            "plugin %s (%s) failed in %s at %s, request %s: %s",
            *(self.name, self.place, hook, place, request_id, said),
        )
        self._log.debug("%s", "".join(traceback.format_exception(error)))
        self._errors.append(now)
        if len(self._errors) == ERRORS_MAX and now - self._errors[0] <= ERRORS_WITHIN_S:
            self._errors.clear()
            self.off_until = now + OFF_S
            self.on_off(self, said)
        return None if self.open else self.refusal()

    def checked(self, hook: str, outcome: Any, request_id: str) -> Outcome:
        """Return what a hook gave if it can be an answer; else it has failed."""
        if outcome is None or isinstance(outcome, Reply) or isawaitable(outcome):
            return outcome
        what = type(outcome).__name__
        return self.failed(hook, TypeError(f"it returned {what}, not reply(...)"), request_id)

    def refusal(self) -> Reply:
        """The answer where it ought to have been asked, and could not be."""
        return Reply(500, "plugin_error", f"plugin {self.name} failed")

    def took(self, hook: str, seconds: float, req: Request) -> None:
        """Look at how long a call took: it was slow, or is of the sample."""
        if req.sampled and (base := self._seconds.get(hook)) is not None:
            view = self._meters.view
            view[base + bisect_left(BOUNDS, seconds)] += 1
            view[base + SUM] += int(seconds * 1e6)
        if seconds > SLOW_S:
            self._say_slow(hook, seconds, req.request_id)

    def _say_slow(self, hook: str, seconds: float, request_id: str) -> None:
        """Say that it keeps everybody waiting."""
        now = monotonic()
        again, self._slow_at = now - self._slow_at <= SLOW_AGAIN_S, now
        # Once may be the machine's doing, which gave the processor to somebody else.
        if again and now - self._slow_said >= SLOW_SAID_EVERY_S:
            self._slow_said = now
            self._log.warning(
                "plugin %s (%s) took %.1f ms in %s, request %s: nobody else was served meanwhile",
                *(self.name, self.place, seconds * 1000, hook, request_id),
            )


class Chain:
    """What the requests of one listener and route pass, in order."""

    __slots__ = (
        "_asking",
        "_finishing",
        "_responding",
        "finishes",
        "lives",
        "responds",
        "running",
        "sampling",
        "tells",
    )

    def __init__(self, lives: Sequence[LivePlugin]) -> None:
        self.lives = tuple(lives)
        self.running = 0  # Exchanges that are under way.
        self.sampling = False  # The next one is measured, for the metrics.
        self._asking: tuple[tuple[RequestHook, LivePlugin, int], ...] = ()
        self._responding: tuple[tuple[ResponseHook, LivePlugin, int], ...] = ()
        self._finishing: tuple[tuple[Callable[[Request, End], None], LivePlugin, int], ...] = ()
        self.arrange(monotonic())

    def arrange(self, now: float) -> None:
        """Work out whom to ask: who is off is not asked, and if it must be, answers for it."""
        asking, responding, finishing = [], [], []
        for at, live in enumerate(self.lives):
            plugin: Any = live.plugin
            if live.off_until > now:
                if not live.open:
                    asking.append((_refuse(live), live, at))
                continue
            if hasattr(plugin, "on_request"):
                asking.append((plugin.on_request, live, at))
            if hasattr(plugin, "on_response"):
                responding.append((plugin.on_response, live, at))
            if hasattr(plugin, "on_finish"):
                finishing.append((plugin.on_finish, live, at))
        self._asking = tuple(asking)
        self._responding = tuple(reversed(responding))
        self._finishing = tuple(reversed(finishing))
        self.responds = bool(responding)  # Whether anybody looks at responses,
        self.finishes = bool(finishing)  # or wants to know of the end,
        self.tells = self.responds or self.finishes  # or one of the two.

    def ask(self, req: Request, after: int = -1) -> Outcome:
        """
        Ask those that come after a place; None once all have been.

        An awaitable is whoever stands at `req.asked` waiting: go on after that place.
        """
        asking = self._asking
        if after >= 0:
            asking = tuple(each for each in asking if each[2] > after)
        if self.sampling:
            self.sampling = False
            req.sampled = True
        sampled = req.sampled
        before = monotonic()
        for hook, live, at in asking:
            try:
                outcome = hook(req)
            except FAILURES as error:
                outcome = live.failed("on_request", error, req.request_id)
            now = monotonic()
            if now - before > SLOW_S or sampled:
                live.took("on_request", now - before, req)
            if outcome is not None:
                req.asked = at
                if outcome.__class__ is not Reply:
                    outcome = live.checked("on_request", outcome, req.request_id)
                if outcome is not None:
                    return outcome
            before = now
        req.asked = len(self.lives)
        return None

    def respond(self, req: Request, res: Response, after: int | None = None) -> Outcome:
        """Show a response to those that were asked of its request, the last one first."""
        before = monotonic()
        last = req.asked if after is None else after - 1
        for hook, live, at in self._responding:
            if at > last:
                continue
            req.answering = at
            try:
                outcome = hook(req, res)
            except FAILURES as error:
                outcome = live.failed("on_response", error, req.request_id)
            now = monotonic()
            if now - before > SLOW_S or req.sampled:
                live.took("on_response", now - before, req)
            if outcome is not None and outcome.__class__ is not Reply:
                outcome = live.checked("on_response", outcome, req.request_id)
            if outcome is not None:
                return outcome
            before = now
        return None

    def finish(self, req: Request, end: End) -> None:
        """Tell those that were asked how it went."""
        before = monotonic()
        for hook, live, at in self._finishing:
            if at > req.asked:
                continue
            try:
                hook(req, end)
            except FAILURES as error:
                live.failed("on_finish", error, req.request_id)
            now = monotonic()
            if now - before > SLOW_S or req.sampled:
                live.took("on_finish", now - before, req)
            before = now


def _refuse(live: LivePlugin) -> RequestHook:
    def refuse(_: Request) -> Reply:
        return live.refusal()

    return refuse
