"""
Who is taken out by what real traffic showed, for how long, and who never is.

A worker counts each endpoint's failures in a row (`is_outlier`); whoever keeps the ejections of
an instance (`Ejections`: its controller, or a worker while there is none) decides. An ejection
ends by a trial: one live request that goes well, or by an active check's turn to healthy. Each
one soon after another lasts longer.

What speaks against a backend is a try for which we would answer 502 or 504, or its own 502, 503
and 504. What never does: a client that leaves, 4xx, the application's own 500 and 501, a kept
connection that had died, and limits of our own.

Not here: success rates and latency. They need many requests to mean anything, and where there
are many the balancers that look at latency do the same without an edge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from lb.model import Outlier
from lb.retry import ERROR_KINDS, Failure

if TYPE_CHECKING:
    import random

EJECT_MAX_S: Final = 300.0  # jitter apart
JITTER: Final = 0.25  # so that what was ejected together does not come back together
FORGIVEN_S: Final = 300.0  # in service after an ejection: the next one is a first one again
TRIAL_PATIENCE_S: Final = 2.0  # that other workers leave the trial to the one that found out
UNSAFE_AFTER_S: Final = 5.0  # that a trial waits for a request that may be repeated
STATUS: Final = "status"

_AGAINST: Final = frozenset(
    {
        Failure.REFUSED,
        Failure.CONNECT_TIMEOUT,
        Failure.TLS,
        Failure.RESET,
        Failure.CLOSED,
        Failure.TIMEOUT,
        Failure.BAD_RESPONSE,
    }
)
_STATUSES: Final = frozenset({502, 503, 504})
LOWEST_STATUS: Final = min(_STATUSES)  # below this nobody need ask `cause_of_status`


def cause_of_failure(failure: Failure) -> str:
    """Return in a word what a failed try says against its backend; "" for nothing."""
    return ERROR_KINDS[failure] if failure in _AGAINST else ""


def cause_of_status(status: int) -> str:
    """Return in a word what an answer says against its backend; "" for nothing."""
    return STATUS if status in _STATUSES else ""


def is_outlier(failures: deque[float], now: float, rule: Outlier) -> bool:
    """
    Count one more failure in a row; True if that is enough to be taken out.

    `failures` holds when the last ones were. Whoever answers well clears it.
    """
    failures.append(now)
    while len(failures) > max(rule.errors, 1):
        failures.popleft()
    return 0 < rule.errors <= len(failures) and now - failures[0] <= rule.within


@dataclass(frozen=True, slots=True)
class Ejection:
    """
    One endpoint taken out. Times are seconds on the monotonic clock, which all processes of a
    machine share: `since` then, and from `until` on a trial is due. `times` counts ejections
    soon after each other, this one included; `slot` is the worker that found out.
    """

    since: float
    until: float
    times: int
    cause: str
    slot: int

    def trial_due(self, slot: int, now: float) -> bool:
        """Whether this worker should make the trial: the one that found out goes first."""
        patience = 0.0 if slot == self.slot else TRIAL_PATIENCE_S
        return now >= self.until + patience

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


Ejected = Mapping[str, Mapping[str, Ejection]]  # Upstream, endpoint address.


def why_not(
    address: str, pool: Mapping[str, bool], ejected: Collection[str], max_ejected: float
) -> str:
    """
    Say why an endpoint must not be ejected; "" if it may.

    `pool` has all endpoints that take traffic by state and weight, each with whether it is well
    by its check. One may always be ejected, whatever the share comes to, but never the last
    that is well.
    """
    if address not in pool:
        return "it takes no traffic"
    if max_ejected <= 0:
        return "outlier.max_ejected is 0%"
    if not any(well and other not in ejected for other, well in pool.items() if other != address):
        return "it is the last one that is well"
    count = sum(other in pool for other in ejected if other != address)
    if count and count + 1 > int(max_ejected * len(pool) + 1e-9):
        return f"outlier.max_ejected: {count} of {len(pool)} are out already"
    return ""


class Ejections:
    """The ejections of one upstream, and what is remembered of those that have ended."""

    def __init__(self) -> None:
        self.standing: dict[str, Ejection] = {}
        self._ended: dict[str, tuple[int, float]] = {}  # How many times, and when the last ended.

    def eject(
        self,
        address: str,
        cause: str,
        slot: int,
        *,
        rule: Outlier,
        pool: Mapping[str, bool],
        now: float,
        rng: random.Random,
    ) -> Ejection | str:
        """
        Take an endpoint out, or say why not.

        One that is out stays as it is, until its trial is due: then this is the trial's end.
        """
        standing = self.standing.get(address)
        if standing is not None and now < standing.until:
            return standing
        if standing is not None:
            times = standing.times + 1
        else:
            if refusal := why_not(address, pool, self.standing, rule.max_ejected):
                return refusal
            times, ended = self._ended.pop(address, (0, now))
            times = 1 if now - ended >= FORGIVEN_S else times + 1
        seconds = min(rule.eject * times, max(EJECT_MAX_S, rule.eject))
        until = now + seconds * (1 + rng.uniform(0.0, JITTER))
        made = self.standing[address] = Ejection(now, until, times, cause, slot)
        return made

    def end(self, address: str, now: float) -> Ejection | None:
        """Put an endpoint back; how often it was out is remembered. None if it was not out."""
        ejection = self.standing.pop(address, None)
        if ejection is not None:
            self._ended[address] = (ejection.times, now)
        return ejection

    def keep(self, addresses: Collection[str]) -> bool:
        """Forget all other endpoints; True if one of them was out."""
        for address in self._ended.keys() - addresses:
            del self._ended[address]
        gone = self.standing.keys() - addresses
        for address in gone:
            del self.standing[address]
        return bool(gone)

    def to_plain(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {"standing": ejections_to_plain(self.standing), "ended": dict(self._ended)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Ejections:
        """Read what `to_plain` wrote."""
        made = cls()
        made.standing = ejections_from_plain(plain["standing"])
        made._ended = {address: (times, at) for address, (times, at) in plain["ended"].items()}
        return made


def ejections_to_plain(ejections: Mapping[str, Ejection]) -> dict[str, Any]:
    """Return ejections by address as JSON has them."""
    return {address: each.to_plain() for address, each in ejections.items()}


def ejections_from_plain(plain: Mapping[str, Any]) -> dict[str, Ejection]:
    """Read what `ejections_to_plain` wrote."""
    return {address: Ejection(**each) for address, each in plain.items()}
