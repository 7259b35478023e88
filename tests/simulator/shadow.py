"""A second opinion of what each member's log holds, kept from what the core said to save.

A place is an entry with all that comes before it: places are shared, so that two logs which
agree hold the very same objects, and a comparison costs nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lb.raft.messages import ConfState, Entry, Kind

MASK = (1 << 61) - 1


class ViolationError(AssertionError):
    """An invariant does not hold. `rule` is its name, the same in all runs."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


@dataclass(slots=True, eq=False)
class Place:
    """One entry and, through `mark`, all before it; `conf` is in force from here on."""

    index: int
    term: int
    kind: Kind
    mark: int
    conf: ConfState

    def __repr__(self) -> str:
        return f"{self.term}/{self.index}"


class Atlas:
    """All places that any log ever had, by index and term: there may be one of each only."""

    def __init__(self, start: ConfState, change: Callable[[ConfState, bytes], ConfState]) -> None:
        self.start = Place(0, 0, Kind.NOOP, 0, start)
        self._places: dict[tuple[int, int], Place] = {(0, 0): self.start}
        self._change = change

    def get(self, index: int, term: int) -> Place | None:
        """Return a place that some log had."""
        return self._places.get((index, term))

    def put(self, before: Place, entry: Entry) -> Place:
        """Return the place of an entry that stands after `before`: log matching is checked here."""
        mark = (before.mark * 1_000_003) ^ (entry.term << 2 | entry.kind)
        mark = (mark * 1_000_003 ^ zlib.crc32(entry.data)) & MASK
        known = self._places.get((entry.index, entry.term))
        if known is not None:
            if known.mark != mark:
                raise ViolationError(
                    "log matching",
                    f"two logs hold {entry.term}/{entry.index} and differ there or before",
                )
            return known
        conf = before.conf
        if entry.kind is Kind.CONF:
            conf = self._change(conf, entry.data)
        place = Place(entry.index, entry.term, entry.kind, mark, conf)
        self._places[entry.index, entry.term] = place
        return place


class ShadowLog:
    """One log as places; `places[0]` is its start, a snapshot's or the very first."""

    __slots__ = ("places",)

    def __init__(self, start: Place, places: Sequence[Place] = ()) -> None:
        self.places = [start, *places]

    @property
    def base(self) -> int:
        return self.places[0].index

    @property
    def last(self) -> Place:
        return self.places[-1]

    def at(self, index: int) -> Place | None:
        """Return the place at an index, if the log reaches there and has not let go of it."""
        place = index - self.places[0].index
        return self.places[place] if 0 <= place < len(self.places) else None

    def append(self, places: Iterable[Place]) -> None:
        """Write places: the first cuts off whatever stands there or after."""
        for place in places:
            position = place.index - self.places[0].index
            if not 1 <= position <= len(self.places):
                raise ViolationError("no gaps", f"{place!r} written after {self.last!r}")
            if position < len(self.places):
                del self.places[position:]
            self.places.append(place)

    def install(self, place: Place) -> None:
        """Start again from a snapshot; only right for a log that differs from it."""
        if self.at(place.index) is place and self.last is not place:
            raise ViolationError(
                "snapshots keep what follows", f"{place!r} installed over a log up to {self.last!r}"
            )
        self.places = [place]

    def copy(self) -> ShadowLog:
        """Return a log that changes on its own."""
        return ShadowLog(self.places[0], self.places[1:])

    def release(self, index: int) -> None:
        """Let go of what a snapshot holds."""
        del self.places[: index - self.places[0].index]
