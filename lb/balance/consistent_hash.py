"""
`hash`: equal keys go to the same backend, as long as it is there.

A table of slots, each owned by whoever wins it by weighted rendezvous (highest random weight):
a slot's owner is the candidate whose claim on it is the earliest, and a claim depends on its
owner alone. So whoever leaves leaves the others' slots as they were, whoever joins takes
slots from the others and gives none about, and a share is exact but for the table's grain.
A pick is a look-up. All workers and instances have the same table. It takes some 25 ms to
make, for ten candidates as for a thousand, and is kept while they and their weights stay.

Not here: a ring (160 points a weight are off by 8 %, and cost grows with weights), Maglev (it
moves keys between those that stay).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Container, Iterable, Sequence
from hashlib import shake_128
from itertools import compress, count
from typing import TYPE_CHECKING, Final
from zlib import crc32

from lb.balance.balancer import Balancer, C, first_untried

if TYPE_CHECKING:
    import random

SLOTS: Final = 1 << 15  # two octets of a stream name one, and leave a bit over
PROBES_MAX: Final = 8

CLAIMS_AT_FIRST: Final = 3 * SLOTS  # leave e**-3 of the slots, which are then sought alone
CLAIMS_LATER: Final = 8 * SLOTS
NEVER: Final = float("inf")


class ConsistentHash(Balancer[C]):
    """Looks up who owns the slot of a key."""

    __slots__ = ("_bits", "_candidates", "_identities", "_owners", "_weights")

    def _arrange(
        self, candidates: Sequence[C], rng: random.Random, before: Balancer[C] | None
    ) -> None:
        self._candidates = candidates
        self._bits = rng.getrandbits
        self._identities = identities(candidates)
        self._weights = [candidate.weight for candidate in candidates]  # these may change later
        if (
            isinstance(before, ConsistentHash)
            and before._identities == self._identities
            and before._weights == self._weights
        ):
            self._owners: Sequence[int] = before._owners
        else:
            self._owners = owners(self._identities, self._weights)

    def pick(self, tried: Container[C] = (), key: bytes = b"", now: float = 0.0) -> C | None:
        """Return the owner of the key."""
        if not self._candidates:
            return None
        # What has no key is nobody's: were it all one key's, one backend would get all of it.
        mixed = (crc32(key) if key else self._bits(32)) * 0x9E3779B97F4A7C15
        candidate = self._candidates[self._owners[mixed >> 32 & 0x7FFF]]
        if candidate not in tried:
            return candidate
        return self._pick_other(mixed, tried, key, now)

    def _pick_other(self, mixed: int, tried: Container[C], key: bytes, now: float) -> C | None:
        """Try further slots, the same for the same key: a share is spread over all others."""
        index = 0
        for _ in range(PROBES_MAX):
            mixed = (mixed & 0xFFFFFFFFFFFFFFFF) * 0xD6E8FEB86659FD93 + 1
            index = self._owners[mixed >> 40 & 0x7FFF]
            candidate = self._candidates[index]
            if candidate not in tried:
                return candidate
        other = first_untried(self._candidates, index, tried)
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


def owners(identities: Sequence[bytes], weights: Sequence[int]) -> Sequence[int]:
    """
    Return the index of each slot's owner.

    A candidate claims slots one after the other as its own stream of octets says, the faster
    the more weight it has: its n-th claim falls at n / weight. The earliest has the slot.
    """
    if len(identities) < 2:
        return bytes(SLOTS)
    offsets = [crc32(identity) / 2**32 for identity in identities]  # or equals would tie
    earliest = [NEVER] * SLOTS
    owner = [0] * SLOTS
    reached = [0] * len(weights)
    wanted: frozenset[int] | None = None
    until = CLAIMS_AT_FIRST / sum(weights)
    while wanted is None or wanted:
        # All claims of one span of time, so that what is claimed in it is settled.
        for index, weight in enumerate(weights):
            begin, offset = reached[index], offsets[index]
            end = reached[index] = claims_before(until, begin, offset, weight)
            claims = slots_claimed(identities[index], begin, end)
            numbered: Iterable[tuple[int, int]] = zip(count(begin), claims)
            if wanted is not None:
                numbered = compress(numbered, map(wanted.__contains__, claims))
            for number, claim in numbered:
                slot = claim >> 1
                time = (number + offset) / weight
                if time < earliest[slot]:
                    earliest[slot] = time
                    owner[slot] = index
        left = [slot << 1 for slot, time in enumerate(earliest) if time is NEVER]
        wanted = frozenset((*left, *(claim + 1 for claim in left)))
        until += CLAIMS_LATER / sum(weights)
    return array("I", owner)


def claims_before(until: float, begin: int, offset: float, weight: int) -> int:
    """Return the number of the first claim that does not fall before `until`."""
    end = max(begin, int(until * weight - offset))
    while (end + offset) / weight < until:
        end += 1
    while end > begin and (end - 1 + offset) / weight >= until:
        end -= 1
    return end


def slots_claimed(identity: bytes, begin: int, end: int) -> array[int]:
    """Return a part of the endless sequence of slots that a candidate claims."""
    slots = array("H", shake_128(identity).digest(2 * end)[2 * begin :])
    if sys.byteorder == "big":
        slots.byteswap()
    return slots
