"""What a command would make of one upstream, before it is judged as a whole.

Only what is touched is held, beside what was there: an upstream of ten thousand backends costs
one copy when something changed, and nothing when nothing did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lb.registry.commands import Change, Code, Refusal
from lb.registry.values import Changed, Entry, Expired, UpstreamEntry, View

WRITTEN_FIELDS = (
    "address", "weight", "state", "backup", "source", "labels", "ttl", "suspect",
)  # fmt: skip


class RefusedError(Exception):
    """Ends the judging of one command; never leaves this package."""

    def __init__(self, code: Code, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.refusal = Refusal(code, detail, hint)


class Draft:
    """
    One upstream on its way from `before` to what comes after.

    `granted` numbers leases, over all drafts of one command. `about` is the key of the backend
    that the reply shows.
    """

    __slots__ = (
        "_touched",
        "about",
        "before",
        "differs",
        "expired",
        "granted",
        "name",
        "new",
        "stale",
        "view",
    )

    def __init__(self, name: str, upstream: UpstreamEntry | None, granted: int) -> None:
        self.name = name
        self.new = upstream is None
        self.before = upstream or UpstreamEntry(0)
        self.view: View | None = self.before.view
        self.expired: tuple[Expired, ...] = self.before.expired
        self.granted = granted
        self.about: str | None = None
        self.stale: tuple[str, ...] = ()
        self.differs: tuple[str, ...] = ()
        self._touched: dict[str, Entry | None] = {}

    def get(self, key: str) -> Entry | None:
        """Return a backend as it would be."""
        return self._touched[key] if key in self._touched else self.before.backends.get(key)

    def put(self, key: str, entry: Entry | None) -> None:
        """Write a backend; None takes it out."""
        if self.get(key) is not entry:
            self._touched[key] = entry

    def grant(self) -> int:
        """Number a new lease."""
        self.granted += 1
        return self.granted

    @property
    def size(self) -> int:
        """How many backends there would be."""
        before = self.before.backends
        grown = sum((entry is not None) - (key in before) for key, entry in self._touched.items())
        return len(before) + grown

    def loses_any(self) -> bool:
        """Whether fewer would take traffic than before."""
        change = 0
        for key, entry in self._touched.items():
            old = self.before.backends.get(key)
            change += entry is not None and entry.takes_traffic
            change -= old is not None and old.takes_traffic
        return change < 0

    def active(self) -> Iterator[Entry]:
        """Those that would take traffic, found as they are asked for."""
        for key, entry in self.before.backends.items():
            if key not in self._touched and entry.takes_traffic:
                yield entry
        for touched in self._touched.values():
            if touched is not None and touched.takes_traffic:
                yield touched

    def changes(self) -> tuple[Change, ...]:
        """What one would see of it, removals first. A lease that begins anew is not seen."""
        seen = [self._change(key, entry) for key, entry in self._touched.items()]
        removed = [change for change in seen if change and change.what == "removed"]
        return (*removed, *(change for change in seen if change and change.what != "removed"))

    def _change(self, key: str, entry: Entry | None) -> Change | None:
        old = self.before.backends.get(key)
        if entry is None:
            return None if old is None else Change(key, "removed")
        if old is None:
            return Change(key, "added")
        of = tuple(name for name in WRITTEN_FIELDS if getattr(old, name) != getattr(entry, name))
        return Change(key, "changed", of) if of else None

    def finish(self, changes: tuple[Change, ...], stamp: Changed) -> UpstreamEntry:
        """Return the upstream with `stamp` on what changed; itself if nothing did at all."""
        before, view = self.before, self.view
        touched = {
            key: entry for key, entry in self._touched.items() if entry != before.backends.get(key)
        }
        for change in changes:
            entry = touched[change.key]
            if entry is not None:
                touched[change.key] = replace(entry, changed=stamp)
        if view is not None and view.changed.revision > stamp.revision:
            # Moved, but nobody routes otherwise: the revision foreseen for it is not taken.
            view = replace(view, changed=stamp)
        if not (self.new or touched or view != before.view):
            return before
        revision = stamp.revision if self.new or changes else before.revision
        return UpstreamEntry(revision, self._merge(touched), view, self.expired)

    def _merge(self, touched: dict[str, Entry | None]) -> dict[str, Entry]:
        merged = dict(self.before.backends)
        for key, entry in touched.items():
            if entry is None:
                del merged[key]
            else:
                merged[key] = entry
        return merged
