"""
Who owns which slot of a table, by weighted rendezvous: what `consistent_hash` looks keys up in.

A member claims slots one after the other as its own stream of octets says, the faster the more
weight it has: its n-th claim falls at n / weight. The earliest has the slot. So the table is a
matter of who is in it, not of how it came about: it can be made from the one before, by the
claims of those who join, and by what the others claim of the slots of those who leave.

Making one takes longer than a worker's loop may stand still, so it is made in parts: `arranging`
yields after each. What few slots still want an owner is sought in everybody's stream by a
regular expression, over a text with a character for each claim: many times faster than a look
at each claim.
"""

from __future__ import annotations

import re
import sys
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import shake_128
from itertools import compress, count
from typing import Final
from zlib import crc32

SLOTS: Final = 1 << 15  # two octets of a stream name one, and leave a bit over
NEVER: Final = float("inf")

# In claims for each slot, by all members together:
LOOKED_AT: Final = 3  # one by one; they leave e**-3 of the slots,
SOUGHT: Final = 2  # which are sought in so many more,
SOUGHT_MORE: Final = 4  # then in so many times as many, and so on

CLAIMS_A_PART: Final = 8192  # looked at one by one: a millisecond
SOUGHT_A_PART: Final = 49_152  # claims among which slots are sought: another
LOST_MAX: Final = 2048  # slots that lose their owner; with more of them all is made anew
JOINING_MAX: Final = 1 / 8  # of all weight; the same

_HALVES: Final = bytes(octet >> 1 for octet in range(256))


@dataclass(frozen=True, slots=True)
class Member:
    """Who may own slots; `number` is how the table calls it."""

    number: int
    identity: bytes
    weight: int
    offset: float  # part of a claim by which it is later than its number says: equals would tie


@dataclass(frozen=True, slots=True)
class Table:
    """Each slot's owner, by its number, and when its claim falls."""

    members: Mapping[bytes, Member]
    owners: Sequence[int]
    earliest: Sequence[float]  # none where there is one member, who has all

    def serves(self, weights: Mapping[bytes, int]) -> bool:
        """Whether it is the table of these, and somebody is in it."""
        return bool(weights) and weights == {
            identity: member.weight for identity, member in self.members.items()
        }


EMPTY: Final = Table({}, (), ())
Parts = Generator[None, None, Table]
_Piece = tuple[Member, int, int]  # and which of its claims


def arranging(before: Table, weights: Mapping[bytes, int]) -> Parts:
    """
    Make the table of these members in parts, from another one if they have much in common.

    The first part is nothing: whoever asks whether all is there need not wait for more.
    """
    if len(weights) == 1:
        ((identity, weight),) = weights.items()
        return Table({identity: Member(0, identity, weight, 0.0)}, bytes(SLOTS), ())
    yield
    work = _Work(weights)
    if work.begin_with(before):
        yield from work.join(max(before.earliest))
    else:
        yield from work.begin_anew()
    yield
    yield from work.seek()
    yield
    return work.table()


class _Work:
    """A table that is being made."""

    def __init__(self, weights: Mapping[bytes, int]) -> None:
        self._weights = weights
        self._members: dict[bytes, Member] = {}
        self._joining: list[Member] = []
        self._owners: list[int] = []
        self._earliest: list[float] = []
        self._pool: Iterable[int] = range(SLOTS)  # where an earlier claim may be found
        self._reached = 0.0  # until when all claims of the pool have been seen
        self._span = SLOTS / sum(weights.values())  # in which there is a claim for each slot

    def begin_with(self, before: Table) -> bool:
        """Take over from a table what stays; False if that is too little to be worth it."""
        staying = {
            identity: member
            for identity, member in before.members.items()
            if self._weights.get(identity) == member.weight
        }
        joining = {key: one for key, one in self._weights.items() if key not in staying}
        if not before.earliest or sum(joining.values()) > JOINING_MAX * sum(self._weights.values()):
            return False
        stay = {member.number for member in staying.values()}
        leave = {member.number for member in before.members.values()} - stay
        lost = list(compress(count(), map(leave.__contains__, before.owners))) if leave else []
        if len(lost) > LOST_MAX:
            return False
        self._members = staying
        self._owners, self._earliest = list(before.owners), list(before.earliest)
        for slot in lost:
            self._earliest[slot] = NEVER
        self._pool = lost
        self._enter(joining, stay)
        return True

    def _enter(self, joining: Mapping[bytes, int], taken: set[int]) -> None:
        numbers = (number for number in range(len(self._weights)) if number not in taken)
        self._joining = [
            Member(number, identity, weight, crc32(identity) / 2**32)
            for number, (identity, weight) in zip(numbers, joining.items(), strict=False)
        ]
        self._members |= {member.identity: member for member in self._joining}

    def begin_anew(self) -> Generator[None, None, None]:
        """Have everybody claim slots until few have no owner."""
        self._owners, self._earliest = [0] * SLOTS, [NEVER] * SLOTS
        self._enter(self._weights, set())
        yield
        self._reached = LOOKED_AT * self._span
        yield from self.join(self._reached)

    def join(self, until: float) -> Generator[None, None, None]:
        """Have those who join claim slots, as long as a claim may be of use."""
        owners, earliest, seen = self._owners, self._earliest, 0
        for member in self._joining:
            number, weight, offset = member.number, member.weight, member.offset
            end = _claims_before(until, weight)
            for begin in range(0, end, CLAIMS_A_PART):
                claims = array("H", _stream(member, begin, min(begin + CLAIMS_A_PART, end)))
                if sys.byteorder == "big":
                    claims.byteswap()
                for nth, claim in enumerate(claims, begin):
                    time = (nth + offset) / weight
                    slot = claim >> 1
                    if time < earliest[slot]:
                        earliest[slot] = time
                        owners[slot] = number
                seen += len(claims)
                if seen >= CLAIMS_A_PART:
                    seen = 0
                    yield

    def seek(self) -> Generator[None, None, None]:
        """Find who claims first what has no owner yet, or may have a better one."""
        reached, span, wanted = self._reached, SOUGHT * self._span, self._pool
        while wanted := [slot for slot in wanted if self._earliest[slot] >= reached]:
            pattern = _pattern(wanted)
            yield
            some: list[_Piece] = []
            seen = 0
            for member in self._members.values():
                weight = member.weight
                end = _claims_before(reached + span, weight)
                for begin in range(_claims_before(reached, weight), end, SOUGHT_A_PART):
                    some.append((member, begin, min(begin + SOUGHT_A_PART, end)))
                    seen += end - begin
                    if seen >= SOUGHT_A_PART:
                        self._find(pattern, some)
                        some, seen = [], 0
                        yield
            self._find(pattern, some)
            yield
            reached += span
            span *= SOUGHT_MORE

    def _find(self, pattern: re.Pattern[str], pieces: Sequence[_Piece]) -> None:
        owners, earliest = self._owners, self._earliest
        starts, octets = [], bytearray()
        for member, begin, end in pieces:
            starts.append(len(octets) >> 1)
            octets += _stream(member, begin, end)
        for match in pattern.finditer(_text(octets)):
            at = match.start()
            index = bisect_right(starts, at) - 1
            member, begin, _ = pieces[index]
            time = (begin + at - starts[index] + member.offset) / member.weight
            slot = _slot(match[0])
            if time < earliest[slot]:
                earliest[slot] = time
                owners[slot] = member.number

    def table(self) -> Table:
        """Return it, once it is made."""
        return Table(self._members, array("I", self._owners), array("d", self._earliest))


def _claims_before(until: float, weight: int) -> int:
    """Return of how many claims all fall later; one more makes no difference."""
    return int(until * weight) + 1 if until else 0


def _stream(member: Member, begin: int, end: int) -> bytes:
    """Return a part of the endless sequence of claims, two octets each, the lower one first."""
    return shake_128(member.identity).digest(2 * end)[2 * begin :]


# A claim as a character: all but its lowest bit, the octets changed about, so that none of the
# characters is a surrogate, which would stand for half of one.


def _text(octets: bytearray) -> str:
    octets[::2] = octets[::2].translate(_HALVES)
    return octets.decode("utf-16-be")


def _slot(character: str) -> int:
    code = ord(character)
    return (code & 0xFF) << 7 | code >> 8


def _pattern(slots: Iterable[int]) -> re.Pattern[str]:
    characters = "".join([chr((slot & 0x7F) << 8 | slot >> 7) for slot in slots])
    return re.compile(f"[{re.escape(characters)}]")
