"""When leases fall due, by the clock of the leader. `now` is monotonic seconds of its process.

Renewals are not written anywhere: only the leader knows of them. So whoever begins to lead
gives every lease its whole TTL again and more, and a TTL is a lower bound: after a change of
leaders a lease may last longer, never shorter. What falls due is only proposed; whether it ends
is decided where `ExpireLeases` is applied.

What the caller owes:

- `promote` when the first entry of its own term is applied, not when it is elected: before that
  an end that the leader before it proposed may still lie in the log.
- To answer a renewal only when it is confirmed, after `renew`, that it still leads.
- To call `due` on time. Where it comes late nobody could renew either, and all begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from lb.registry.commands import Due
from lb.registry.values import Entry, Registry

GATHER_SECONDS = 1.0  # What falls due so soon after the first goes into one command.
LATE_SECONDS = 1.0  # A caller that comes later than this was stalled.
DUE_MAX = 10_000  # Of one command; an upstream's leases stay together, for its guard.
GONE_MAX = 1_000  # Leases kept that are gone, beyond as many as there are.

Name = tuple[str, str]  # Upstream, key.


class LeaseClock:
    """All leases by when they fall due. Idle until `promote`."""

    def __init__(self) -> None:
        self._registry: Registry | None = None  # None: this member does not lead.
        self._leases: dict[Name, _Lease] = {}
        self._leases_max = GONE_MAX
        self._first: float | None = None  # None falls due before; found anew when that is over.

    @property
    def count(self) -> int:
        """How many leases are held, those that are gone included."""
        return len(self._leases)

    def promote(self, registry: Registry, now: float, extra: float) -> None:
        """Begin to lead: every lease has its whole TTL from now, and `extra` on top."""
        self._registry = registry
        self._leases = {
            (name, entry.key): _Lease(entry, now + entry.ttl + extra)
            for name, upstream in registry.upstreams.items()
            for entry in upstream.backends.values()
            if entry.ttl is not None
        }
        self._forget_gone()

    def demote(self) -> None:
        """Lead no more: nothing falls due here."""
        self._registry = None
        self._leases = {}
        self._first = None

    def follow(self, registry: Registry, now: float) -> None:
        """Take in the registry after commands were applied: leases that are new begin now."""
        before = self._registry
        if before is None:
            return
        self._registry = registry
        if registry.granted == before.granted:
            return
        for name, upstream in registry.upstreams.items():
            if upstream is before.upstreams.get(name):
                continue
            for key, entry in upstream.backends.items():
                if entry.ttl is not None and entry.lease > before.granted:
                    due = now + entry.ttl
                    self._leases[name, key] = _Lease(entry, due)
                    self._first = due if self._first is None else min(self._first, due)
        if len(self._leases) > self._leases_max:
            self._forget_gone()

    def renew(self, upstream: str, key: str, now: float) -> bool:
        """
        Give a lease its whole TTL again. False: propose a `RenewLease`, and let that decide.

        That is so where the lease is suspect, or its end has been proposed, or there is none.
        """
        lease = self._leases.get((upstream, key))
        if lease is None or lease.claimed or not self._holds((upstream, key), lease):
            return False
        lease.due = now + lease.ttl
        return True

    def extend(self, now: float) -> None:
        """Give all their whole TTL again: for a while nobody was here whom one could ask."""
        for lease in self._leases.values():
            lease.due = max(lease.due, now + lease.ttl)
        self._find_first()

    def next_due(self) -> float | None:
        """When to call `due`: before then it has nothing. None: there are no leases."""
        return None if self._first is None else self._first + GATHER_SECONDS

    def due(self, now: float) -> tuple[Due, ...]:
        """
        Return what to propose the end of: all that fell due, some time after the first of it.

        Each is returned again when another TTL has passed, if it is still there by then: the
        proposal may have come to nothing, or have made it suspect.
        """
        if self._first is None or now < self._first + GATHER_SECONDS:
            return ()
        self._forget_gone()
        if self._first is None or now < self._first + GATHER_SECONDS:
            return ()
        if now > self._first + GATHER_SECONDS + LATE_SECONDS:
            self.extend(now)
            return ()
        fallen = tuple(self._claim(now))
        self._find_first()
        return fallen

    def _claim(self, now: float) -> Iterator[Due]:
        """All that is due, whole upstreams until there are `DUE_MAX`; the rest comes next."""
        fallen = [(name, lease) for name, lease in self._leases.items() if lease.due <= now]
        fallen.sort(key=lambda each: each[0])
        upstream = ""
        for count, ((name, key), lease) in enumerate(fallen):
            if count >= DUE_MAX and name != upstream:
                return
            upstream = name
            lease.claimed = True
            lease.due = now + lease.ttl
            yield name, key, lease.number

    def _holds(self, name: Name, lease: _Lease) -> bool:
        """Whether the registry still has this lease."""
        assert self._registry is not None
        upstream = self._registry.upstreams.get(name[0])
        entry = None if upstream is None else upstream.backends.get(name[1])
        return entry is not None and entry.lease == lease.number

    def _forget_gone(self) -> None:
        self._leases = {
            name: lease for name, lease in self._leases.items() if self._holds(name, lease)
        }
        self._leases_max = 2 * len(self._leases) + GONE_MAX
        self._find_first()

    def _find_first(self) -> None:
        self._first = min((lease.due for lease in self._leases.values()), default=None)


class _Lease:
    """`claimed`: its end was proposed, or it is suspect; then the registry must be asked."""

    __slots__ = ("claimed", "due", "number", "ttl")

    def __init__(self, entry: Entry, due: float) -> None:
        assert entry.ttl is not None
        self.number = entry.lease
        self.ttl = entry.ttl
        self.due = due
        self.claimed = entry.suspect
