"""The guard of leases: of those that fell due, which end, and which are kept as suspects.

Backends that vanish one by one have been stopped, or died. Where many vanish at once it is more
likely that they cannot reach us: then all stay, as suspects, subject to health as before.

One may always end, unless it is the last active one. If what ended or was suspect within the
last TTL passes `GUARD_PERCENT` of the upstream's leased backends, the due ones are suspect.
A suspect that is due again, when the share has fallen, ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lb.registry.values import Entry, Expired, UpstreamEntry

GUARD_PERCENT = 30
PAST_EXPIRIES_MAX = 100  # Remembered of an upstream; more are added up.


@dataclass(frozen=True, slots=True)
class Verdict:
    """Keys of backends by what becomes of them, and what the guard remembers afterwards."""

    ended: tuple[str, ...]
    suspect: tuple[str, ...]
    expired: tuple[Expired, ...]


def judge_due(upstream: UpstreamEntry, due: Iterable[tuple[str, int]], at: float) -> Verdict:
    """Decide about leases of one upstream, by key and generation; others have begun anew."""
    fallen = dict(_still_leased(upstream, due))
    past = tuple(gone for gone in upstream.expired if abs(at - gone.at) < gone.ttl)
    leased = [entry for entry in upstream.backends.values() if entry.ttl is not None]
    ended_lately = sum(gone.count for gone in past)
    lost = ended_lately + sum(entry.suspect or entry.key in fallen for entry in leased)
    # Those that ended lately count among the leased, or each that ends would tighten the guard.
    if lost > 1 and lost * 100 > GUARD_PERCENT * (len(leased) + ended_lately):
        return Verdict((), tuple(fallen), upstream.expired)
    kept = tuple(key for key, entry in fallen.items() if entry.takes_traffic)
    if not kept or _others_active(upstream, fallen):
        kept = ()
    ended = tuple(key for key in fallen if key not in kept)
    ttls = Counter(fallen[key].ttl for key in ended)
    news = [Expired(at, ttl, count) for ttl, count in ttls.items() if ttl is not None]
    return Verdict(ended, kept, _bounded((*past, *news)) if news else upstream.expired)


def _still_leased(
    upstream: UpstreamEntry, due: Iterable[tuple[str, int]]
) -> Iterator[tuple[str, Entry]]:
    for key, lease in due:
        entry = upstream.backends.get(key)
        if entry is not None and entry.ttl is not None and entry.lease == lease:
            yield key, entry


def _others_active(upstream: UpstreamEntry, fallen: dict[str, Entry]) -> bool:
    return any(
        entry.takes_traffic and key not in fallen for key, entry in upstream.backends.items()
    )


def _bounded(expired: tuple[Expired, ...]) -> tuple[Expired, ...]:
    """Add up the two oldest until there is room: together they count as long as either would."""
    while len(expired) > PAST_EXPIRIES_MAX:
        one, other, *rest = expired
        both = Expired(max(one.at, other.at), max(one.ttl, other.ttl), one.count + other.count)
        expired = (both, *rest)
    return expired
