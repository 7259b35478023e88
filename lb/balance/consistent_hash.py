"""
`hash`: equal keys go to the same backend, as long as it is there.

A table of slots, each owned by whoever wins it by weighted rendezvous (highest random weight):
a slot's owner is the candidate whose claim on it is the earliest, and a claim depends on its
owner alone. So whoever leaves leaves the others' slots as they were, whoever joins takes
slots from the others and gives none about, and a share is exact but for the table's grain.
A pick is a look-up. All workers and instances have the same table.

The table is kept while candidates and their weights stay, and else made in parts (`slots.py`),
for which there is `begin`: until it is there the balancer before gives out who is still here.

Not here: a ring (160 points a weight are off by 8 %, and cost grows with weights), Maglev (it
moves keys between those that stay).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Final
from zlib import crc32

from lb.balance.balancer import Balancer, C, first_untried
from lb.balance.slots import EMPTY, Parts, Table, arranging

if TYPE_CHECKING:
    import random

PROBES_MAX: Final = 8


class ConsistentHash(Balancer[C]):
    """Looks up who owns the slot of a key. Finish it before the first pick."""

    __slots__ = (
        "_bits",
        "_by_number",
        "_candidates",
        "_identities",
        "_making",
        "_owners",
        "_places",
        "_table",
    )

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._candidates = candidates
        self._bits = rng.getrandbits
        self._identities = identities(candidates)
        self._table: Table = before._table if isinstance(before, ConsistentHash) else EMPTY
        weights = {
            identity: candidate.weight  # which may change later
            for identity, candidate in zip(self._identities, candidates, strict=True)
        }
        self._making: Parts | None = None
        self._owners: Sequence[int] = ()
        if self._table.serves(weights):
            self._use(self._table)
        elif candidates:
            self._making = arranging(self._table, weights)

    def go_on(self) -> bool:
        """Make a part of the table; return whether all is there."""
        if self._making is None:
            return self._backups is None or self._backups.go_on()
        try:
            next(self._making)
        except StopIteration as made:
            self._making = None
            self._use(made.value)
        return False

    def _use(self, table: Table) -> None:
        self._table, self._owners = table, table.owners
        # How the table calls a candidate lasts longer than its place among them.
        self._places = [0] * (1 + max(member.number for member in table.members.values()))
        for place, identity in enumerate(self._identities):
            self._places[table.members[identity].number] = place
        self._by_number = [self._candidates[place] for place in self._places]

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return the owner of the key."""
        if not self._candidates:
            return None
        # What has no key is nobody's: were it all one key's, one backend would get all of it.
        mixed = (crc32(key) if key else self._bits(32)) * 0x9E3779B97F4A7C15
        candidate = self._by_number[self._owners[mixed >> 32 & 0x7FFF]]
        if candidate not in tried:
            return candidate
        return self._pick_other(mixed, tried, key, now)

    def _pick_other(self, mixed: int, tried: Container[C], key: bytes, now: float) -> C | None:
        """Try further slots, the same for the same key: a share is spread over all others."""
        number = 0
        for _ in range(PROBES_MAX):
            mixed = (mixed & 0xFFFFFFFFFFFFFFFF) * 0xD6E8FEB86659FD93 + 1
            number = self._owners[mixed >> 40 & 0x7FFF]
            candidate = self._by_number[number]
            if candidate not in tried:
                return candidate
        other = first_untried(self._candidates, self._places[number], tried)
        if other is None and self._backups is not None:
            return self._backups.pick(tried, key, now)
        return other


def identities(candidates: Sequence[C]) -> list[bytes]:
    """
    Return what each candidate's claims come from: its key, whatever its address.

    Where several endpoints have one key, the first by address stands for it and the others
    add their addresses.
    """
    first: dict[str, str] = {}
    for one in candidates:
        first[one.key] = min(first.get(one.key, one.address), one.address)
    return [
        (one.key if first[one.key] == one.address else f"{one.key} {one.address}").encode()
        for one in candidates
    ]
