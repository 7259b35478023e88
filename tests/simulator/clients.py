"""Clients: each has one call at a time, tries again elsewhere, and writes down what it saw.

A write is repeated under its own number, so it is done at most once. A client that gives up
does not know the outcome, unless every try was refused for certain.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import Protocol

from simulator.agenda import Agenda
from simulator.histories import NEVER, Call, End, History, Kind, Value
from simulator.machine import encode
from simulator.plan import Plan
from simulator.tally import Tally

KEYS = ("r1", "r2", "l1")
CALLS_OF_A_KEY_MAX = 200  # What the search of `wing_gong` copes with.


class No(Enum):
    """Why a member gave no answer."""

    NOT_DONE = "refused, and for certain not done"
    NOBODY_KNOWS = "nobody knows"


class Desk(Protocol):
    """What takes one try of one call: a member."""

    def write(self, client: Client, attempt: int, number: int, data: bytes) -> None:
        """Take a command; `client.answered` or `client.refused` is called, or neither ever is."""

    def read(self, client: Client, attempt: int, key: str) -> None:
        """Take a read, answered in the same way."""


class Group(Protocol):
    """Where a client finds members."""

    @property
    def calm(self) -> bool:
        """Whether faults have ended, so that every call must end well."""

    def desks(self) -> list[Desk]:
        """Return the members that run."""


class Client:
    """One client. `busy` while a call is under way."""

    def __init__(self, number: int, plan: Plan, group: Group, agenda: Agenda, notes: Notes) -> None:
        self.number = number
        self.left = 0
        self.call: Call | None = None
        self._plan = plan
        self._group = group
        self._agenda = agenda
        self._notes = notes
        self._rng = notes.rng
        self._attempt = 0
        self._tried: set[int] = set()  # Attempts of this call that may have been done.
        self._desk: Desk | None = None
        self._patience = 0

    def start(self, calls: int) -> None:
        """Make so many calls, one after the other."""
        self.left += calls
        if self.call is None:
            self._agenda.after(self._pause(), self._next)

    def _pause(self) -> int:
        return int(self._plan.pause_between * (0.2 + 1.6 * self._rng.random()))

    def _next(self) -> None:
        if self.call is not None or self.left <= 0:
            return
        self.left -= 1
        notes = self._notes
        kind, key, args = notes.think(self.number)
        self.call = Call(
            self.number, notes.next_number(), kind, key, self._agenda.now, args[0], args[1]
        )
        notes.history.calls.append(self.call)
        self._tried.clear()
        self._patience = self._agenda.now + int(
            self._plan.election * self._rng.choice((2, 6, 6, 20))
        )
        self._try()

    def _try(self) -> None:
        call = self.call
        if call is None:
            return
        if self._agenda.now > self._patience and not self._group.calm:
            self._give_up(call)
            return
        self._attempt += 1
        attempt = self._attempt
        desks = self._group.desks()
        if self._desk not in desks or self._rng.random() < 0.1:
            self._desk = self._rng.choice(desks) if desks else None
        wait = int(self._plan.election * (0.5 + self._rng.random()))
        self._agenda.after(wait, self._waited, attempt)
        if self._desk is None:
            return
        self._tried.add(attempt)
        if call.kind is Kind.READ:
            self._desk.read(self, attempt, call.key)
            return
        data = encode(self.number, call.number, call.kind, call.key, (call.put, call.expected))
        ballast = b" " + b"x" * self._plan.payload if self._plan.payload else b""
        self._desk.write(self, attempt, call.number, data + ballast)

    def _waited(self, attempt: int) -> None:
        if self.call is not None and attempt == self._attempt:
            self._desk = None
            self._try()

    def answered(self, attempt: int, done: bool, value: Value, revision: int) -> None:
        """Take the answer of a try; of a read only the newest, since older ones may be stale."""
        call = self.call
        if call is None or attempt not in self._tried or not self._mine(call, attempt):
            return
        call.returned, call.end = self._agenda.now, End.OK
        call.done, call.value, call.revision = done, value, revision
        self._notes.told(call)
        self._finish()

    def _mine(self, call: Call, attempt: int) -> bool:
        """Whether an answer is to this call: tries are counted over all of a client's calls."""
        return call.kind is not Kind.READ or attempt == self._attempt

    def refused(self, attempt: int, why: No) -> None:
        """Hear that a try came to nothing, or that nobody knows."""
        if self.call is None or attempt != self._attempt:
            return
        if why is No.NOT_DONE:
            self._tried.discard(attempt)
        self._desk = None
        pause = int(self._plan.election * (0.05 + 0.2 * self._rng.random()))
        self._attempt += 1  # So that the wait which runs is over.
        self._agenda.after(pause, self._again, self._attempt)

    def _again(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._try()

    def _give_up(self, call: Call) -> None:
        call.end = End.UNKNOWN if self._tried else End.FAILED
        call.returned = NEVER if self._tried else self._agenda.now
        self._finish()

    def _finish(self) -> None:
        assert self.call is not None
        self._notes.tally.seen[f"calls {self.call.end.value}"] += 1
        self.call = None
        self._attempt += 1
        self._agenda.after(self._pause(), self._next)


class Notes:
    """What all clients share: the history, and what they have seen lately, to guess CAS by."""

    def __init__(self, rng: random.Random, tally: Tally) -> None:
        self.rng = rng
        self.tally = tally
        self.history = History()
        self._numbers = 0
        self._seen: dict[str, Value] = {}
        self._of_key: dict[str, int] = {}

    def next_number(self) -> int:
        """Return a number for a call: no two of a run are the same, and they only grow."""
        self._numbers += 1
        return self._numbers

    def think(self, client: int) -> tuple[Kind, str, tuple[int, int]]:
        """Make up a call."""
        rng = self.rng
        key = rng.choice(KEYS)
        for other in KEYS:
            if self._of_key.get(key, 0) < CALLS_OF_A_KEY_MAX:
                break
            key = other
        self._of_key[key] = self._of_key.get(key, 0) + 1
        put = self._numbers + 1
        if key.startswith("l"):
            return rng.choice((Kind.READ, Kind.APPEND)), key, (put, 0)
        kind = rng.choice((Kind.READ, Kind.PUT, Kind.CAS))
        seen = self._seen.get(key, 0)
        assert isinstance(seen, int)
        return kind, key, (put, seen)

    def told(self, call: Call) -> None:
        """Remember what a key held."""
        self._seen[call.key] = call.value
