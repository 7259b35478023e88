"""Proposals and reads of this instance that somebody waits for, while the log decides.

A proposal is done when the entry at its place is of its term; when another is there, it is
certainly not. In between it may be either, and whoever waits must not be told otherwise.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from enum import Enum

from lb.control.state_machine import Applied
from lb.raft.messages import Entry, Failed, Fate, Placed

CTX_BYTES = 8


class End(Enum):
    """What became of one try, where it did not come to a reply."""

    NOT_DONE = "it is certain that nothing was done"
    UNKNOWN = "it may have been done"


Answer = asyncio.Future[Applied | End]


class Waiting:
    """Every try that was handed to the core, by the name that the core knows it by."""

    def __init__(self) -> None:
        self._number = 0
        self._unplaced: dict[bytes, Answer] = {}
        self._placed: dict[int, list[tuple[int, Answer]]] = defaultdict(list)  # By index: term.
        self._places: dict[bytes, int] = {}
        self._reads: dict[bytes, asyncio.Future[End | None]] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._unplaced) + len(self._placed) + len(self._reads)

    def new_ctx(self) -> bytes:
        """Return a name for the next call."""
        self._number += 1
        return self._number.to_bytes(CTX_BYTES, "big")

    def proposed(self, ctx: bytes) -> Answer:
        """Wait for what comes of a proposal that is about to be made."""
        answer: Answer = asyncio.get_running_loop().create_future()
        self._unplaced[ctx] = answer
        return answer

    def asked(self, ctx: bytes) -> asyncio.Future[End | None]:
        """Wait until a read may be answered, which is told by None."""
        answer: asyncio.Future[End | None] = asyncio.get_running_loop().create_future()
        self._reads[ctx] = answer
        return answer

    def forget(self, ctx: bytes) -> None:
        """Nobody waits for this one any more."""
        self._unplaced.pop(ctx, None)
        self._reads.pop(ctx, None)
        place = self._places.pop(ctx, None)
        if place in self._placed:
            self._placed[place] = [each for each in self._placed[place] if not each[1].done()]
            if not self._placed[place]:
                del self._placed[place]

    def place(self, placed: Placed, applied: int) -> None:
        """A proposal has a place. A leader may tell of it when it has long been applied here."""
        answer = self._unplaced.pop(placed.ctx, None)
        if answer is None or answer.done():
            return
        if placed.index <= applied:
            # Its reply is gone by. To say more would be guessing.
            answer.set_result(End.UNKNOWN)
        else:
            self._placed[placed.index].append((placed.term, answer))
            self._places[placed.ctx] = placed.index

    def applied(self, entry: Entry, applied: Applied) -> None:
        """An entry has been applied: those who wait for that place know how it ended."""
        for term, answer in self._placed.pop(entry.index, ()):
            if not answer.done():
                answer.set_result(applied if term == entry.term else End.NOT_DONE)

    def skipped(self, index: int) -> None:
        """A snapshot has taken the place of all up to `index`: nobody hears how those ended."""
        for place in [place for place in self._placed if place <= index]:
            for _, answer in self._placed.pop(place):
                if not answer.done():
                    answer.set_result(End.UNKNOWN)

    def answer_read(self, ctx: bytes) -> None:
        """A read may be answered."""
        answer = self._reads.pop(ctx, None)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def fail(self, failed: Failed) -> None:
        """The core follows a call no further. One with a place is followed here all the same."""
        end = End.NOT_DONE if failed.fate is Fate.NOT_DONE else End.UNKNOWN
        proposal = self._unplaced.pop(failed.ctx, None)
        if proposal is not None and not proposal.done():
            proposal.set_result(end)
        read = self._reads.pop(failed.ctx, None)
        if read is not None and not read.done():
            read.set_result(End.NOT_DONE)

    def end(self) -> None:
        """This member stops: nobody is left waiting."""
        for answer in self._unplaced.values():
            if not answer.done():
                answer.set_result(End.UNKNOWN)
        for placed in self._placed.values():
            for _, answer in placed:
                if not answer.done():
                    answer.set_result(End.UNKNOWN)
        for read in self._reads.values():
            if not read.done():
                read.set_result(End.NOT_DONE)
        self._unplaced.clear()
        self._placed.clear()
        self._reads.clear()
