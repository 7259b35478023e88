"""
Backends that somebody forced up or down on this instance alone.

For when the group cannot agree, or when this instance sees what others do not. It overrides
the registry's state, checks and ejections; it needs no quorum, is told to no other member, and
is gone when the instance starts anew. Status, metrics and the log all show it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from lb.edition import Sources, backends_of, endpoints_of
from lb.model import Health

log = logging.getLogger(__name__)

UP, DOWN, AUTO = "up", "down", "auto"
WORDS: Final = (UP, DOWN, AUTO)

Forced = Mapping[str, Mapping[str, str]]  # Upstream, backend's key.


class Overrides:
    """Keeps `forced`; `on_change` is called when it has become another mapping."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.forced: Forced = {}

    def force(self, upstream: str, key: str, to: str, why: str) -> None:
        """Have a backend up, down, or as everybody else sees it."""
        assert to in WORDS, "the admin reads the word"
        of_upstream = dict(self.forced.get(upstream, {}))
        before = of_upstream.pop(key, AUTO)
        if to == before:
            return
        if to != AUTO:
            of_upstream[key] = to
        forced = {name: each for name, each in self.forced.items() if name != upstream}
        if of_upstream:
            forced[upstream] = of_upstream
        self.forced = forced
        if to == AUTO:
            log.warning("%s/%s is as the group sees it again, no longer forced %s%s", upstream, key,
                        before, why)  # fmt: skip
        else:
            log.warning("%s/%s is forced %s, on this instance alone%s", upstream, key, to, why)
        self._on_change()

    def over(self, sources: Sources) -> Sources:
        """Return what editions are made from, with what is forced laid over it."""
        if not self.forced:
            return sources
        verdicts = dict(sources.verdicts)
        ejections = dict(sources.ejections)
        for name, keys in self.forced.items():
            upstream = sources.config.upstream.get(name)
            if upstream is None:
                continue
            up = {
                address
                for row in backends_of(name, upstream, sources.registry.upstreams.get(name))
                if keys.get(row.key) == UP
                for address in endpoints_of(row.address, sources.resolved)
            }
            if name in verdicts:
                verdicts[name] = {**verdicts[name], **dict.fromkeys(up, Health.HEALTHY)}
            if name in ejections:
                left = {each: said for each, said in ejections[name].items() if each not in up}
                ejections[name] = left
        return replace(sources, verdicts=verdicts, ejections=ejections, forced=self.forced)

    def to_plain(self) -> dict[str, Any]:
        """What the next controller of this instance should know."""
        return {name: dict(each) for name, each in self.forced.items()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on where a controller before us stopped."""
        self.forced = {name: dict(each) for name, each in plain.items()}
