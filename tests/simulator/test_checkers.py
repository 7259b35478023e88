"""The checkers of client histories, on histories known to be good and known to be bad.

A line is one call: client, from-until (`*`: never answered), what, what was told. `@r` is the
revision in the answer, `no` a CAS that was not done, `?` an outcome that nobody knows, `!` a
call that for certain was not done.
"""

from __future__ import annotations

import random
import re

import pytest

from simulator.histories import NEVER, Call, Effect, End, History, Kind, Value
from simulator.revisions import check_revisions, initial
from simulator.wing_gong import Verdict, check, step_key

LINE = re.compile(
    r"c(?P<client>\d) (?P<called>\d+)-(?P<returned>\d+|\*) (?P<kind>\w+) (?P<key>\w+)"
    r"(?: (?P<args>[\d ]+))?(?: = (?P<value>[\d,()]+))?(?: @(?P<revision>\d+))?"
    r"(?: (?P<end>no|\?|!))?"
)

GOOD = {
    "one after the other": """
        c1 0-10 put r 1 @1
        c2 20-30 read r = 1 @1
    """,
    "a read beside a write may see either": """
        c1 0-100 put r 1 @1
        c2 10-20 read r = 0 @0
        c3 30-40 read r = 1 @1
    """,
    "a write without an answer is seen late": """
        c1 0-* put r 1 ?
        c2 10-20 read r = 0 @0
        c2 500-510 read r = 1 @1
    """,
    "a write without an answer is never seen": """
        c1 0-* put r 1 ?
        c2 500-510 read r = 0 @0
    """,
    "what was not done is seen by nobody": """
        c1 0-10 put r 1 !
        c2 20-30 read r = 0 @0
    """,
    "of two CAS from one value one is done": """
        c1 0-50 cas r 0 1 @1
        c2 0-50 cas r 0 2 = 1 @1 no
        c3 60-70 read r = 1 @1
    """,
    "appends told in the order in which they were done": """
        c1 0-50 append l 1 = (1,) @1
        c2 0-50 append l 2 = (1,2) @2
        c3 60-70 read l = (1,2) @2
    """,
    "an append without an answer, between two others": """
        c1 0-10 append l 1 = (1,) @1
        c2 5-* append l 2 ?
        c3 20-30 append l 3 = (1,2,3) @3
    """,
}
BAD = {
    "a write that was answered is gone": """
        c1 0-10 put r 1 @1
        c2 20-30 read r = 0 @0
    """,
    "a read goes back behind an earlier read": """
        c1 0-100 put r 1 @1
        c2 10-20 read r = 1 @1
        c3 30-40 read r = 0 @0
    """,
    "seen before it was asked for": """
        c2 0-10 read r = 1 @1
        c1 20-30 put r 1 @1
    """,
    "nobody wrote it": """
        c1 0-10 put r 1 @1
        c2 20-30 read r = 7 @1
    """,
    "two CAS from one value are both done": """
        c1 0-10 cas r 0 1 @1
        c2 20-30 cas r 0 2 @2
    """,
    "told no, although it held what was expected": """
        c1 0-10 cas r 0 1 = 0 @0 no
    """,
    "an append is lost": """
        c1 0-10 append l 1 = (1,) @1
        c2 20-30 append l 2 = (2,) @2
    """,
    "an append is done twice": """
        c1 0-10 append l 1 = (1,) @1
        c2 20-30 read l = (1,1) @2
    """,
    "what was told not to be done is seen": """
        c1 0-10 put r 1 !
        c2 20-30 read r = 1 @1
    """,
    "two readers disagree on the order": """
        c1 0-100 append l 1 = (1,) @1
        c2 0-100 append l 2 = (1,2) @2
        c3 10-20 read l = (2,) @1
        c4 30-40 read l = (1,) @1
    """,
    "a write without an answer acts, is overwritten, and acts again": """
        c1 0-* put r 1 ?
        c2 10-20 read r = 1 @1
        c3 30-40 put r 2 @2
        c2 50-60 read r = 1 @3
    """,
}


def read_value(text: str) -> Value:
    if text.startswith("("):
        return tuple(int(part) for part in text.strip("()").split(",") if part)
    return int(text)


def read_history(text: str) -> History:
    calls: list[Call] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = LINE.fullmatch(line)
        assert parts, line
        args = [int(arg) for arg in (parts["args"] or "").split()]
        never = parts["returned"] == "*"
        ends = {"?": End.UNKNOWN, "!": End.FAILED}
        calls.append(
            Call(
                client=int(parts["client"]),
                number=len(calls) + 1,
                kind=Kind(parts["kind"]),
                key=parts["key"],
                called=int(parts["called"]),
                put=args[-1] if args else 0,
                expected=args[0] if args else 0,
                returned=NEVER if never else int(parts["returned"]),
                end=ends.get(parts["end"] or "", End.OK),
                done=parts["end"] != "no",
                value=read_value(parts["value"] or "0"),
                revision=int(parts["revision"] or 0),
            )
        )
    return History(calls)


def effects_of(history: History) -> list[Effect]:
    """What the log of an honest machine would hold, if answered writes are all it has."""
    values: dict[str, Value] = {}
    effects = []
    wrote = [call for call in history.calls if call.kind is not Kind.READ and call.done]
    for call in sorted(wrote, key=lambda call: call.revision or 99):
        if call.end is not End.OK:
            continue
        held = values.get(call.key, initial(call.key))
        values[call.key] = (*held, call.put) if isinstance(held, tuple) else call.put
        effects.append(Effect(call.client, call.number, call.key, values[call.key]))
    return effects


def verdicts(history: History) -> set[Verdict]:
    return {check(calls, initial(key)) for key, calls in history.by_key().items()}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_good_histories_are_explained(text: str) -> None:
    assert verdicts(read_history(text)) == {Verdict.LINEARIZABLE}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_bad_histories_are_not(text: str) -> None:
    assert verdicts(read_history(text)) == {Verdict.NOT}


def without_unknown(histories: dict[str, str]) -> dict[str, str]:
    """Leave out those whose log can't be told from the answers alone."""
    return {name: text for name, text in histories.items() if "?" not in text}


@pytest.mark.parametrize("text", without_unknown(GOOD).values(), ids=without_unknown(GOOD))
def test_good_histories_fit_their_revisions(text: str) -> None:
    history = read_history(text)

    assert list(check_revisions(history, effects_of(history))) == []


@pytest.mark.parametrize("text", without_unknown(BAD).values(), ids=without_unknown(BAD))
def test_bad_histories_do_not_fit_theirs(text: str) -> None:
    history = read_history(text)

    assert list(check_revisions(history, effects_of(history)))


@pytest.mark.parametrize(
    ("effects", "complaint"),
    [
        ([], "a revision that never was"),
        ([Effect(1, 1, "r", 1), Effect(1, 1, "r", 1)], "done twice"),
        ([Effect(1, 1, "r", 1), Effect(9, 9, "r", 2)], "asked for by nobody"),
        ([Effect(1, 1, "r", 1), Effect(2, 2, "r", 2)], "told to be nothing"),
        ([Effect(1, 1, "l", (1,))], ""),
    ],
)
def test_what_the_log_did_is_what_was_asked_for(effects: list[Effect], complaint: str) -> None:
    history = read_history("c1 0-10 put r 1 @1\nc2 20-30 put r 2 !")

    assert complaint in "\n".join(check_revisions(history, effects))


def run_register(rng: random.Random, calls: int, clients: int) -> History:
    """Make the history of a register that works, with some answers lost."""
    made: list[Call] = []
    free = [0] * clients
    value = 0
    now = 0
    for number in range(calls):
        client = min(range(clients), key=free.__getitem__)
        called = max(now - rng.randrange(20), free[client]) + 1
        now = max(now, called) + rng.randrange(1, 5)
        kind = rng.choice((Kind.READ, Kind.PUT, Kind.CAS))
        call = Call(client, number, kind, "r", called, put=number, expected=value)
        if kind is Kind.CAS and rng.random() < 0.5:
            call.expected = -1
        if rng.random() < 0.95:
            call.end, call.returned = End.OK, now + rng.randrange(1, 20)
        call.value, call.done = value, kind is not Kind.CAS or call.expected == value
        value = step_key(value, call)[1]  # type: ignore[assignment]  # A register: an int.
        free[client] = min(call.returned, now + 40)
        made.append(call)
    return History(made)


@pytest.mark.parametrize("seed", range(20))
def test_long_histories_are_judged_and_one_false_answer_is_found(seed: int) -> None:
    rng = random.Random(seed)
    history = run_register(rng, calls=120, clients=4)
    assert verdicts(history) == {Verdict.LINEARIZABLE}

    reads = [c for c in history.calls if c.kind is Kind.READ and c.end is End.OK]
    rng.choice(reads).value = 10_000  # Nobody ever wrote that.

    assert verdicts(history) == {Verdict.NOT}


def test_giving_up_is_not_passing() -> None:
    history = run_register(random.Random(1), calls=100, clients=6)

    assert check(history.calls, 0, steps_max=50) is Verdict.UNKNOWN
