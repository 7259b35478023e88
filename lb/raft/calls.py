"""
Proposals and reads that somebody waits for, on the member that was asked.

Every call ends: by its place in the log, by an answer, or by a `Failed` when this member can't
follow it any further. None is forgotten, whatever becomes of leaders and terms.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lb.raft.messages import Dropped, Failed, Fate, Placed, ReadState

if TYPE_CHECKING:
    import random

NUMBER_BYTES: Final = 8
FIRST_NUMBER_MAX: Final = 1 << 62


def encode_number(number: int) -> bytes:
    """Make the ctx by which a call, or a round of reads, is named between members."""
    return number.to_bytes(NUMBER_BYTES, "big")


def decode_number(ctx: bytes) -> int:
    """Read it back; 0 if it is none."""
    return int.from_bytes(ctx, "big") if len(ctx) == NUMBER_BYTES else 0


@dataclass(frozen=True, slots=True)
class _Forwarded:
    ctx: bytes
    is_read: bool
    until: int  # the tick at which nobody waits any longer

    def failed(self, why: str) -> Failed:
        """A read can't have done anything; a proposal may be in the leader's log."""
        return Failed(self.ctx, Fate.NOT_DONE if self.is_read else Fate.UNKNOWN, why)


class Calls:
    """All calls of one member; `take` hands out what has become of them."""

    __slots__ = (
        "_calls_max",
        "_failed",
        "_forwarded",
        "_number",
        "_pending",
        "_placed",
        "_reads",
    )

    def __init__(self, calls_max: int, rng: random.Random) -> None:
        self._calls_max = calls_max
        # An answer to a call of this member's former life must not pass for one to a new call.
        self._number = rng.randrange(1, FIRST_NUMBER_MAX)
        self._forwarded: dict[int, _Forwarded] = {}
        self._pending: deque[Placed] = deque()  # In the log, and not known to be committed.
        self._reads: deque[ReadState] = deque()  # Confirmed; to be answered when applied.
        self._placed: list[Placed] = []
        self._failed: list[Failed] = []

    # --- Calls that were passed on ------------------------------------------------------------

    def forward(self, ctx: bytes, is_read: bool, until: int) -> bytes:
        """Note a call that goes to the leader; return its name there."""
        self.check_room()
        self._number += 1
        self._forwarded[self._number] = _Forwarded(ctx, is_read, until)
        return encode_number(self._number)

    def check_room(self) -> None:
        """Dropped: too many calls wait already."""
        if len(self._forwarded) + len(self._pending) + len(self._reads) >= self._calls_max:
            raise Dropped("too many calls wait for an answer", "try again in a moment")

    def answered(self, name: bytes, is_read: bool) -> bytes | None:
        """Return the ctx of a call that the leader has answered; None if nobody waits for it."""
        number = decode_number(name)
        call = self._forwarded.get(number)
        if call is None or call.is_read is not is_read:
            return None
        del self._forwarded[number]
        return call.ctx

    def expire(self, now: int) -> None:
        """Give up what the leader has not answered in time. The oldest come first."""
        while self._forwarded:
            number, call = next(iter(self._forwarded.items()))
            if call.until > now:
                return
            del self._forwarded[number]
            self._failed.append(call.failed("the leader did not answer"))

    # --- What becomes of calls ----------------------------------------------------------------

    def place(self, ctx: bytes, index: int, term: int) -> None:
        """A proposal has its place in the log."""
        placed = Placed(ctx, index, term)
        self._placed.append(placed)
        self._pending.append(placed)

    def committed(self, commit: int) -> None:
        """All up to `commit` stays: whether a proposal is among it will show when it is applied."""
        while self._pending and self._pending[0].index <= commit:
            self._pending.popleft()

    def confirm(self, ctx: bytes, index: int) -> None:
        """A read may be answered as soon as `index` is applied."""
        self._reads.append(ReadState(ctx, index))

    def fail(self, ctx: bytes, fate: Fate, why: str) -> None:
        """A call comes to nothing here."""
        self._failed.append(Failed(ctx, fate, why))

    def fail_all(self, commit: int, why: str) -> None:
        """
        Fail all that hung on the leader or term that is over.

        What has a place, but is not known to be committed, may be yet.
        """
        self._failed += [call.failed(why) for call in self._forwarded.values()]
        self._forwarded.clear()
        for placed in self._pending:
            if placed.index > commit:
                self.fail(placed.ctx, Fate.UNKNOWN, why)
        self._pending.clear()

    # --- Handing out --------------------------------------------------------------------------

    def has_news(self, applied: int) -> bool:
        """Whether `take` has something."""
        return bool(self._placed or self._failed) or (
            bool(self._reads) and self._reads[0].index <= applied
        )

    def take(
        self, applied: int
    ) -> tuple[tuple[Placed, ...], tuple[ReadState, ...], tuple[Failed, ...]]:
        """Return what has become of calls since the last time."""
        reads = []
        while self._reads and self._reads[0].index <= applied:
            reads.append(self._reads.popleft())
        placed, failed = tuple(self._placed), tuple(self._failed)
        self._placed.clear()
        self._failed.clear()
        return placed, tuple(reads), failed
