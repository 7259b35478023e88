"""Linearizability of histories without revisions: Wing and Gong's search, with Lowe's memory.

Some order of the calls must explain all answers, in which no call comes before one that had
returned when it was made. The search takes calls one by one in such an order; when it is stuck
it puts the last one back. What was reached once, as a set of calls and a state, is not tried
again. Calls that were never answered may be taken at any time, or never.

The time needed may grow with the power of how many calls run at once: there is a bound on the
steps, and going past it is an answer of its own, never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from simulator.histories import NEVER, Call, End, Kind, Value

STEPS_MAX = 200_000

Step = Callable[[Value, Call], tuple[bool, Value]]


class Verdict(Enum):
    """What is known of a history."""

    LINEARIZABLE = "linearizable"
    NOT = "not linearizable"
    UNKNOWN = "too many steps"


def step_key(value: Value, call: Call) -> tuple[bool, Value]:
    """Take one call: whether its answer fits a key that holds `value`, and what it holds then."""
    known = call.end is End.OK
    match call.kind:
        case Kind.READ:
            return not known or call.value == value, value
        case Kind.PUT:
            return True, call.put
        case Kind.APPEND:
            assert isinstance(value, tuple), "appended to a register"
            after = (*value, call.put)
            return not known or call.value == after, after
        case Kind.CAS:
            fits = value == call.expected
            if known and call.done != fits:
                return False, value
            if known and not fits and call.value != value:
                return False, value
            return True, call.put if fits else value


@dataclass(slots=True, eq=False)
class _Event:
    """A call being made, or its return; linked in the order of time."""

    call: Call | None
    bit: int
    before: _Event | None = None
    after: _Event | None = None
    returns: _Event | None = None  # Of a call that was answered.

    def unlink(self) -> None:
        assert self.before is not None
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def relink(self) -> None:
        assert self.before is not None
        self.before.after = self
        if self.after is not None:
            self.after.before = self


def check(
    calls: Sequence[Call], start: Value, step: Step = step_key, steps_max: int = STEPS_MAX
) -> Verdict:
    """Say whether calls on one key, which held `start`, can be put in an order."""
    head, answered = _link(calls)
    taken, state = 0, start
    reached = {(taken, state)}
    stack: list[tuple[_Event, Value]] = []
    event = head.after
    for _ in range(steps_max):
        if not answered:
            return Verdict.LINEARIZABLE
        if event is not None and event.call is not None:
            fits, after = step(state, event.call)
            if fits and (taken | event.bit, after) not in reached:
                stack.append((event, state))
                taken, state = taken | event.bit, after
                reached.add((taken, state))
                event.unlink()
                if event.returns is not None:
                    event.returns.unlink()
                    answered -= 1
                event = head.after
            else:
                event = event.after
            continue
        # A return whose call is not taken yet, so it must be taken earlier than some that were.
        if not stack:
            return Verdict.NOT
        event, state = stack.pop()
        taken &= ~event.bit
        if event.returns is not None:
            event.returns.relink()
            answered += 1
        event.relink()
        event = event.after
    return Verdict.UNKNOWN


def _link(calls: Sequence[Call]) -> tuple[_Event, int]:
    """Return the head of the list of events, and how many calls have an answer to explain."""
    events: list[tuple[int, int, _Event]] = []
    answered = 0
    for number, call in enumerate(calls):
        if call.end is End.FAILED or (call.kind is Kind.READ and call.end is not End.OK):
            continue  # It did nothing, and saw nothing.
        made = _Event(call, 1 << number)
        events.append((call.called, 0, made))
        if call.end is End.OK:
            assert call.returned < NEVER
            made.returns = _Event(None, 0)
            # At one and the same time, being made comes first: the two calls are concurrent.
            events.append((call.returned, 1, made.returns))
            answered += 1
    events.sort(key=lambda event: event[:2])
    head = last = _Event(None, 0)
    for _, _, event in events:
        last.after, event.before = event, last
        last = event
    return head, answered
