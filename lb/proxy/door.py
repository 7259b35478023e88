"""How many clients of one listener there are, in all and from one address, and who is refused."""

from __future__ import annotations

import logging
from ipaddress import IPv6Address
from typing import Final

from lb.metrics import Meters
from lb.proxy.plan import Slots

log = logging.getLogger(__name__)

TELL_AGAIN_S: Final = 60.0  # of connections refused for the same cause
TURNED_AWAY_MAX: Final = 1024  # clients over a limit that are told so; more are just closed


class Door:
    """
    One listener's door, in one worker.

    The table by address has an entry for each that somebody is in from, so `limits.connections`
    is its bound too.
    """

    __slots__ = (
        "_by_kin",
        "_listener",
        "_refused",
        "_silent_until",
        "_untold",
        "_view",
        "accepted",
        "limits",
        "open",
        "shown",
        "turned_away",
    )

    def __init__(self, meters: Meters, listener: str) -> None:
        self.open = 0
        self.turned_away = 0  # over a limit, and not gone yet
        self.shown = meters.gauge("lb_connections", listener=listener)
        self.accepted = meters.counter("lb_connections_total", listener=listener)
        self._view = meters.view
        self._listener = listener
        self._by_kin: dict[str, int] = {}
        self._silent_until: dict[str, float] = {}
        self._untold: dict[str, int] = {}
        name = "lb_connections_refused_total"
        self._refused: Slots[str] = Slots(
            lambda reason: meters.counter(name, listener=listener, reason=reason)
        )
        self.limits: Slots[str] = Slots(
            lambda limit: meters.counter("lb_limits_total", listener=listener, limit=limit)
        )

    def come(self) -> None:
        """Count somebody in."""
        self.open += 1
        self._view[self.accepted] += 1

    def turn_away(self, limit: str) -> None:
        """Count somebody who is refused, and may stay to be told so."""
        self.turned_away += 1
        self._view[self._refused["limit" if limit == "connections" else limit]] += 1
        self.met(limit)

    def met(self, limit: str) -> None:
        """Count that a limit, by its key, was met."""
        self._view[self.limits[limit]] += 1

    def enter(self, kin: str, most: int) -> bool:
        """Count one more from there; False if there are so many already."""
        count = self._by_kin.get(kin, 0)
        if count >= most:
            return False
        self._by_kin[kin] = count + 1
        return True

    def leave(self, kin: str) -> None:
        """Count one less from there."""
        left = self._by_kin[kin] - 1
        if left:
            self._by_kin[kin] = left
        else:
            del self._by_kin[kin]

    @property
    def kins(self) -> int:
        """From how many addresses somebody is in, where that is counted."""
        return len(self._by_kin)

    def refuse(self, reason: str, address: str, detail: str, now: float) -> None:
        """Count a connection that is closed without a word, and log why, once a minute."""
        self._view[self._refused[reason]] += 1
        if now < self._silent_until.get(reason, 0.0):
            self._untold[reason] = self._untold.get(reason, 0) + 1
            return
        self._silent_until[reason] = now + TELL_AGAIN_S
        more = self._untold.pop(reason, 0)
        log.warning(
            "listener %s: refused a connection from %s: %s%s",
            self._listener,
            address,
            detail,
            f" ({more} more like it before)" if more else "",
        )


def kin_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the 64 bits that an IPv6 host gets."""
    if ":" not in address:
        return address
    return str(IPv6Address(int(IPv6Address(address)) >> 64 << 64))
