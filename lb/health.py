"""
What probes have shown of an endpoint, and who may take traffic by that.

Counting is all there is here: `lb.control.prober` asks, workers pick among the eligible.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from lb.model import Health, State

if TYPE_CHECKING:
    import random

UNDECIDED_INTERVAL_S: Final = 1.0  # at most this between checks while a verdict is being counted
JITTER: Final = 0.2


class Checkup:
    """
    The verdict on one endpoint, and the checks in a row that speak against it.

    The first check decides alone, so that an endpoint is not idle for longer than it must be;
    after that it takes `fall` bad ones in a row to lose the verdict, `rise` good ones to win it.
    """

    __slots__ = (
        "changed_at",
        "checked_at",
        "fall",
        "last_ok",
        "reason",
        "rise",
        "state",
        "streak",
    )

    def __init__(self, rise: int, fall: int, state: Health = Health.CHECKING) -> None:
        self.rise = rise
        self.fall = fall
        self.state = state
        self.streak = 0  # checks in a row that contradict the verdict
        self.last_ok: bool | None = None
        self.reason = ""  # of the last check
        self.checked_at: float | None = None
        self.changed_at: float | None = None

    def record(self, ok: bool, reason: str, now: float) -> bool:
        """Take in a check's outcome; True if the verdict is another one now."""
        self.last_ok, self.reason, self.checked_at = ok, reason, now
        if ok is (self.state is Health.HEALTHY) and self.decided:
            self.streak = 0
            return False
        self.streak += 1
        if self.decided and self.streak < (self.rise if ok else self.fall):
            return False
        self.state = Health.HEALTHY if ok else Health.UNHEALTHY
        self.streak = 0
        self.changed_at = now
        return True

    @property
    def decided(self) -> bool:
        """Whether any check has been made."""
        return self.state in (Health.HEALTHY, Health.UNHEALTHY)

    def next_delay(self, interval: float, rng: random.Random) -> float:
        """Return the seconds until the next check: fewer while a verdict is being counted."""
        if self.streak or not self.decided:
            interval = min(interval, UNDECIDED_INTERVAL_S)
        return interval * rng.uniform(1 - JITTER, 1 + JITTER)

    def to_plain(self) -> dict[str, Any]:
        """Return all of it but `rise` and `fall`, which are the config's, as JSON has it."""
        return {
            "state": str(self.state),
            "streak": self.streak,
            "last_ok": self.last_ok,
            "reason": self.reason,
            "checked_at": self.checked_at,
            "changed_at": self.changed_at,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], rise: int, fall: int) -> Checkup:
        """Go on where `to_plain` stopped, by the present config."""
        checkup = cls(rise, fall, Health(plain["state"]))
        checkup.streak = plain["streak"]
        checkup.last_ok = plain["last_ok"]
        checkup.reason = plain["reason"]
        checkup.checked_at = plain["checked_at"]
        checkup.changed_at = plain["changed_at"]
        return checkup


class Judged(Protocol):
    """What `eligible` must know of an endpoint besides its health."""

    @property
    def weight(self) -> int:
        """Its share; 0 takes nothing new."""

    @property
    def state(self) -> State:
        """What people want of it."""

    @property
    def backup(self) -> bool:
        """Whether it waits for the others to be gone."""


E = TypeVar("E", bound=Judged)

_UP: Final = frozenset({Health.HEALTHY, Health.UNCHECKED})


def eligible(
    endpoints: Sequence[tuple[E, Health]], panic: float, ejected: Collection[E] = ()
) -> tuple[list[E], bool]:
    """
    Return those that take new traffic, and whether that is for want of better: panic.

    Only what is active and has weight ever takes any. Of these the healthy and the unchecked
    do; `checking` ones only while there is none of them, and ejected ones where nobody else is
    left: what they did is no worse than no answer at all. Those that would serve, primaries
    or else backups, are judged apart: dead primaries are no reason to send traffic to them
    while a backup is well. Where less than `panic` of their weight is not known to be bad,
    health is ignored for them, since what is left could not carry the load.
    """
    active = [(endpoint, health) for endpoint, health in endpoints if _takes(endpoint)]
    well = [endpoint for endpoint, health in active if health in _UP]
    chosen = [endpoint for endpoint in well if endpoint not in ejected] if ejected else well
    if not chosen:
        chosen = [
            endpoint
            for endpoint, health in active
            if health is Health.CHECKING and endpoint not in ejected
        ]
    chosen = chosen or well
    only_backups = all(endpoint.backup for endpoint in chosen or [one for one, _ in active])
    total = usable = 0
    for endpoint, health in active:
        if endpoint.backup is only_backups:
            total += endpoint.weight
            if health is not Health.UNHEALTHY and endpoint not in ejected:
                usable += endpoint.weight
    if usable < panic * total:
        if only_backups:
            return [endpoint for endpoint, _ in active if endpoint.backup], True
        return [endpoint for endpoint, _ in active], True
    return chosen, False


def _takes(endpoint: Judged) -> bool:
    return endpoint.state is State.ACTIVE and endpoint.weight > 0
