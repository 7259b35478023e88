"""What clients and watchers saw, held against what may be: the simulator's checkers, black box.

Watchers tell what each revision did and who had asked for it. That gives the effects which
`simulator.revisions` replays, for each upstream by itself, since a read shows its upstream's
revision only; the revisions of writes are compared over all upstreams. Then each key's calls
are put in an order by `simulator.wing_gong`, which is told nothing of revisions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from simulator.histories import Call, Effect, End, History, Kind, Value
from simulator.revisions import check_revisions, initial
from simulator.wing_gong import STEPS_MAX, Verdict, check, step_key

CALLS_OF_A_KEY_MAX = 250  # What the search copes with.


@dataclass(frozen=True, slots=True)
class Told:
    """What a watcher was told of one revision: the call that it names, and the keys it changed."""

    revision: int
    call: str  # As the call's note had it; empty if none of ours.
    keys: tuple[str, ...]


@dataclass(slots=True)
class Watched:
    """What one watcher was told, in the order in which it was."""

    name: str
    start: int  # The first revision that it asked for.
    told: list[Told] = field(default_factory=list)


def judge(
    history: History, watched: Sequence[Watched], newest: int, steps_max: int = STEPS_MAX
) -> list[str]:
    """Return all that is wrong; `newest` is the group's revision when everything had ended."""
    wrong = [text for each in watched for text in _check_watched(each, newest)]
    told: dict[int, Told] = {}
    for each in watched:
        wrong += [
            f"told in two ways: {told[one.revision]} and {one}"
            for one in each.told
            if told.setdefault(one.revision, one) != one
        ]
    calls = {note_of(call): call for call in history.calls}
    effects = [(r, calls[told[r].call]) for r in sorted(told) if told[r].call in calls]
    wrong += _check_keys(told.values(), calls)
    wrong += _check_writes(history)
    for upstream, part in _by_upstream(history).items():
        mine = [(r, call) for r, call in effects if upstream_of(call.key) == upstream]
        wrong += _check_upstream(part, mine)
    for key, some in history.by_key().items():
        verdict = check(some, initial(key), step_unseen, steps_max)
        if verdict is not Verdict.LINEARIZABLE:
            wrong.append(f"{key}: {len(some)} calls: {verdict.value}")
    return wrong


def note_of(call: Call) -> str:
    """Return by what a call is known in the group's events: its `note`."""
    return f"c{call.client}.{call.number}"


def upstream_of(key: str) -> str:
    """Return the upstream of a key, which is its name, a slash and the backend's."""
    return key.partition("/")[0]


def step_unseen(value: Value, call: Call) -> tuple[bool, Value]:
    """As `step_key`, for clients who are not told what a key holds when they are told no."""
    if call.kind is Kind.CAS and call.end is End.OK and not call.done:
        return value != call.expected, value
    return step_key(value, call)


def _check_watched(watched: Watched, newest: int) -> Iterator[str]:
    """Each revision once, in order, without a gap, up to the last."""
    due = watched.start
    for told in watched.told:
        if told.revision != due:
            yield f"{watched.name} was told of {told.revision} where {due} was due"
        due = told.revision + 1
    if due != newest + 1:
        yield f"{watched.name} was told up to {due - 1}; the newest revision is {newest}"


def _check_keys(told: Iterable[Told], calls: Mapping[str, Call]) -> Iterator[str]:
    """Two members must not tell that a call changed what it did not ask for."""
    for one in told:
        call = calls.get(one.call)
        if call is not None and one.keys != (call.key,):
            yield f"revision {one.revision} changed {one.keys}, asked for was {call}"


def _check_writes(history: History) -> Iterator[str]:
    """Over all upstreams: a write's revision is above that of all which ended before it."""
    writes = [
        call
        for call in history.calls
        if call.end is End.OK and call.kind is not Kind.READ and call.done
    ]
    by_return = sorted(writes, key=lambda call: call.returned)
    newest: Call | None = None
    position = 0
    for call in sorted(writes, key=lambda call: call.called):
        while by_return[position].returned < call.called:
            if newest is None or by_return[position].revision > newest.revision:
                newest = by_return[position]
            position += 1
        if newest is not None and call.revision <= newest.revision:
            yield f"went back in time: {call}, after {newest}"


def _by_upstream(history: History) -> dict[str, History]:
    parts: dict[str, History] = {}
    for call in history.calls:
        parts.setdefault(upstream_of(call.key), History()).calls.append(call)
    return parts


def _check_upstream(history: History, told: Sequence[tuple[int, Call]]) -> Iterator[str]:
    """Number an upstream's own revisions 1, 2, 3, and replay them."""
    revisions = [revision for revision, _ in told]
    effects = [Effect(call.client, call.number, call.key, call.put) for _, call in told]
    values: dict[str, list[tuple[int, Value]]] = {}
    for number, effect in enumerate(effects, 1):
        values.setdefault(effect.key, []).append((number, effect.value))
    numbered = History()
    for call in history.calls:
        number = bisect_right(revisions, call.revision)
        wrote = call.end is End.OK and call.kind is not Kind.READ and call.done
        if wrote and (not number or revisions[number - 1] != call.revision):
            yield f"answered, and no watcher was told of it: {call}"
            number = len(effects) + 1
        value = call.value
        if call.kind is Kind.CAS and call.end is End.OK and not call.done:
            # A client who is told no is told the revision at which, and not the value then.
            value = _value_at(values.get(call.key, []), call.key, number)
        numbered.calls.append(replace(call, revision=number, value=value))
    yield from check_revisions(numbered, effects)


def _value_at(changes: Sequence[tuple[int, Value]], key: str, number: int) -> Value:
    place = bisect_right(changes, number, key=lambda change: change[0])
    return changes[place - 1][1] if place else initial(key)
