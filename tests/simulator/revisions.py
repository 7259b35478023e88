"""Linearizability in linear time, by the revisions that answers carry.

Every write that took place has a revision of its own, and a read says at which it was done.
So nothing has to be searched: it is enough that revisions respect real time, and that each
answer is what a replay of the writes gives at its revision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simulator.histories import Call, Effect, End, History, Kind, Value


def check_revisions(history: History, effects: Sequence[Effect]) -> Iterator[str]:
    """
    Yield what is wrong with a history.

    `effects[r - 1]` is what revision r did. A write whose answer never came may be among them
    once, or not at all.
    """
    calls = {call.name: call for call in history.calls}
    yield from _check_effects(calls, effects)
    yield from _check_real_time(history)
    values = _Values(effects)
    for call in history.calls:
        if call.end is End.OK:
            yield from _check_answer(call, effects, values)


def _check_effects(calls: dict[tuple[int, int], Call], effects: Sequence[Effect]) -> Iterator[str]:
    seen: dict[tuple[int, int], int] = {}
    for revision, effect in enumerate(effects, 1):
        name = (effect.client, effect.number)
        if name in seen:
            yield f"done twice, at revisions {seen[name]} and {revision}: c{name[0]}.{name[1]}"
        seen[name] = revision
        call = calls.get(name)
        if call is None:
            yield f"revision {revision} was asked for by nobody: c{name[0]}.{name[1]}"
        elif call.end is End.FAILED or not call.done or call.kind is Kind.READ:
            yield f"revision {revision} was told to be nothing: {call}"


def _check_real_time(history: History) -> Iterator[str]:
    """A call's revision is not below that of any call which had returned before it was made."""
    answered = [call for call in history.calls if call.end is End.OK]
    by_return = sorted(answered, key=lambda call: call.returned)
    newest: Call | None = None
    position = 0
    for call in sorted(answered, key=lambda call: call.called):
        while by_return[position].returned < call.called:
            before = by_return[position]
            if newest is None or before.revision > newest.revision:
                newest = before
            position += 1
        if newest is None:
            continue
        wrote = call.kind is not Kind.READ and call.done
        if call.revision < newest.revision + wrote:
            yield f"went back in time: {call}, after {newest}"


def _check_answer(call: Call, effects: Sequence[Effect], values: _Values) -> Iterator[str]:
    if not 0 <= call.revision <= len(effects):
        yield f"a revision that never was: {call}"
        return
    wrote = call.kind is not Kind.READ and call.done
    if wrote:
        effect = effects[call.revision - 1] if call.revision else None
        if effect is None or (effect.client, effect.number) != call.name:
            yield f"not what revision {call.revision} did: {call}; that was {effect}"
        elif call.kind is Kind.APPEND and call.value != effect.value:
            yield f"told of another list than it made: {call}; that was {effect}"
        elif call.kind is Kind.CAS and values.at(call.key, call.revision - 1) != call.expected:
            yield f"done although it held something else: {call}"
        return
    held = values.at(call.key, call.revision)
    if call.value != held:
        yield f"saw what was not there: {call}; there was {held}"
    if call.kind is Kind.CAS and held == call.expected:
        yield f"told no although it held what was expected: {call}"


class _Values:
    """What each key held at each revision."""

    def __init__(self, effects: Sequence[Effect]) -> None:
        self._changes: dict[str, list[tuple[int, Value]]] = {}
        for revision, effect in enumerate(effects, 1):
            self._changes.setdefault(effect.key, []).append((revision, effect.value))

    def at(self, key: str, revision: int) -> Value:
        changes = self._changes.get(key, [])
        low, high = 0, len(changes)
        while low < high:
            middle = (low + high) // 2
            if changes[middle][0] <= revision:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return initial(key)
        return changes[low - 1][1]


def initial(key: str) -> Value:
    """Return what a key holds before it is written: lists are named l..., registers are not."""
    return () if key.startswith("l") else 0
