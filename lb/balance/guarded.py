"""A policy that a plugin brings: used as long as it does what it promises, else round robin."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from lb.balance.balancer import Balancer, C
from lb.balance.round_robin import RoundRobin

if TYPE_CHECKING:
    import random

log = logging.getLogger(__name__)


def guarded(
    policy: type[Balancer[C]] | None,
    candidates: Sequence[C],
    rng: random.Random,
    before: Balancer[C] | None,
) -> Balancer[C]:
    """Return a plugin's balancer in our keeping; round robin where there is none."""
    made: Balancer[C] = Guarded(candidates, rng, before)
    assert isinstance(made, Guarded), "it was made here"
    made.follow(policy, candidates, rng, before)
    return made


class Guarded(RoundRobin[C]):
    """Round robin, which asks a plugin's policy first, until that fails."""

    __slots__ = ("_own",)

    counts = True
    observes = True

    _own: Balancer[C] | None

    def follow(
        self,
        policy: type[Balancer[C]] | None,
        candidates: Sequence[C],
        rng: random.Random,
        before: Balancer[C] | None,
    ) -> None:
        """Make the plugin's balancer; what it knew goes on if it is of the same class."""
        self._own = None
        last = before._own if isinstance(before, Guarded) else None
        if policy is not None:
            try:
                self._own = policy(candidates, rng, last if type(last) is policy else None)
            except (Exception, SystemExit) as error:  # Its own failure, as in `pick`.
                self._fail(error)

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return who gets the next request."""
        if self._own is not None:
            try:
                found = self._own.pick(tried, key, now)
            except (Exception, SystemExit) as error:  # Whatever it raises, somebody is asked.
                self._fail(error)
            else:
                if found is None or found not in tried:
                    return found
        return RoundRobin.pick(self, tried, key, now)

    def taken(self, candidate: C) -> None:
        """Tell it of a request that begins."""
        self._tell("taken", candidate)

    def returned(self, candidate: C) -> None:
        """Tell it of a request that ended."""
        self._tell("returned", candidate)

    def observe(self, candidate: C, seconds: float, now: float) -> None:
        """Tell it how long one took."""
        self._tell("observe", candidate, seconds, now)

    def _tell(self, what: str, *arguments: Any) -> None:
        if self._own is not None:
            try:
                getattr(self._own, what)(*arguments)
            except (Exception, SystemExit) as error:  # As in `pick`.
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        name = type(self._own).__name__ if self._own is not None else "a plugin's balancer"
        log.error("%s failed, round robin from here on: %s: %s", name, type(error).__name__, error)
        self._own = None
