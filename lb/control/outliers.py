"""
Ejections of this instance: workers report what answers show, this decides for all of them.

The rules are `lb.outlier`'s. What stands goes into each edition, so it outlives this process,
and workers go by it while there is none.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from lb.edition import Sources, backends_of, endpoints_of
from lb.model import Health, State
from lb.outlier import Ejected, Ejection, Ejections
from lb.plans import outlier_of

log = logging.getLogger(__name__)

SAY_AGAIN_S: Final = 60.0  # that the same endpoint is spared
CAUSES: Final = {
    "connect": "it cannot be connected to",
    "reset": "it closes or resets connections",
    "timeout": "it does not answer in time",
    "protocol": "what it answers is no HTTP",
    "tls": "there is no TLS with it",
    "status": "it answers 502, 503 or 504",
}


class Outliers:
    """
    Keeps `ejections` for the upstreams there are.

    `sources` is what editions are made from; `on_change` is called when `ejections` has become
    another mapping; `now` is the monotonic clock, which workers see as well.
    """

    def __init__(
        self,
        sources: Callable[[], Sources],
        on_change: Callable[[], None],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._sources = sources
        self._on_change = on_change
        self._now = now
        self._rng = rng
        self._upstreams: dict[str, Ejections] = {}
        self._seen: dict[tuple[str, str], Health] = {}  # Verdicts on those that are out.
        self._spared: dict[tuple[str, str], float] = {}  # When that was last said.
        self.ejections: Ejected = {}

    def found(self, slot: int, upstream: str, address: str, cause: str) -> None:
        """A worker says that an endpoint failed too often in a row, or in its trial."""
        sources = self._sources()
        configured = sources.config.upstream.get(upstream)
        if configured is None:
            return
        ejections = self._upstreams.setdefault(upstream, Ejections())
        now = self._now()
        before = ejections.standing.get(address)
        made = ejections.eject(
            address,
            cause,
            slot,
            rule=outlier_of(configured),
            pool=pool_of(upstream, sources),
            now=now,
            rng=self._rng,
        )
        where, why = f"{upstream}/{address}", CAUSES.get(cause, cause)
        if isinstance(made, str):
            self._say_spared((upstream, address), f"{where} stays although {why}: {made}", now)
        elif made is not before:
            seconds = made.until - now
            log.warning("%s is ejected for %.0f s (%s): %s", where, seconds, nth(made.times), why)
            self._seen[upstream, address] = verdict_on(upstream, address, sources)
            self._show()

    def returned(self, upstream: str, address: str) -> None:
        """A worker says that an endpoint answered well in its trial."""
        self._end(upstream, address, "it answers")

    def verdicts_changed(self) -> None:
        """An active check's turn to healthy ends an ejection: it asks what the trial would."""
        if not self.ejections:
            return
        sources = self._sources()
        for (upstream, address), before in tuple(self._seen.items()):
            verdict = verdict_on(upstream, address, sources)
            self._seen[upstream, address] = verdict
            if verdict is Health.HEALTHY and before is not Health.HEALTHY:
                self._end(upstream, address, "its check turned to healthy")

    def backends_changed(self) -> None:
        """Forget what is no more."""
        if not self._upstreams:
            return
        sources = self._sources()
        changed = False
        for name in tuple(self._upstreams):
            there = set(pool_of(name, sources)) if name in sources.config.upstream else set()
            changed |= self._upstreams[name].keep(there)
            if not there:
                del self._upstreams[name]
        if changed:
            self._show()

    def to_plain(self) -> dict[str, Any]:
        """What the next controller should know, as JSON can hold it."""
        return {name: each.to_plain() for name, each in self._upstreams.items()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on where a controller before us stopped."""
        self._upstreams = {name: Ejections.from_plain(each) for name, each in plain.items()}
        self.ejections = self._standing()
        for name, ejections in self.ejections.items():
            # What its verdict was is not known; only a turn that we see ends anything.
            self._seen.update(dict.fromkeys(((name, each) for each in ejections), Health.HEALTHY))

    def _end(self, upstream: str, address: str, why: str) -> None:
        ejections = self._upstreams.get(upstream)
        if ejections is not None and ejections.end(address, self._now()) is not None:
            log.info("%s/%s is no longer ejected: %s", upstream, address, why)
            self._show()

    def _show(self) -> None:
        self.ejections = self._standing()
        out = {(name, each) for name, standing in self.ejections.items() for each in standing}
        self._seen = {key: verdict for key, verdict in self._seen.items() if key in out}
        self._on_change()

    def _standing(self) -> dict[str, dict[str, Ejection]]:
        return {
            name: dict(each.standing) for name, each in self._upstreams.items() if each.standing
        }

    def _say_spared(self, key: tuple[str, str], words: str, now: float) -> None:
        """Say that an endpoint stays; it may go on failing for hours."""
        for old in [old for old, at in self._spared.items() if now - at >= SAY_AGAIN_S]:
            del self._spared[old]
        if key not in self._spared:
            self._spared[key] = now
            log.warning("%s", words)


def pool_of(upstream: str, sources: Sources) -> dict[str, bool]:
    """Return an upstream's endpoints that take traffic by intent, each with whether it is well."""
    rows = backends_of(
        upstream, sources.config.upstream[upstream], sources.registry.upstreams.get(upstream)
    )
    return {
        address: verdict_on(upstream, address, sources) is not Health.UNHEALTHY
        for row in rows
        if row.state == State.ACTIVE and row.weight
        for address in endpoints_of(row.address, sources.resolved)
    }


def verdict_on(upstream: str, address: str, sources: Sources) -> Health:
    """Return an endpoint's verdict; unchecked where nobody probes it."""
    return sources.verdicts.get(upstream, {}).get(address, Health.UNCHECKED)


def nth(times: int) -> str:
    """Say how often in a row."""
    return "the first time" if times == 1 else f"{times} times of late"
