"""The judge itself: what a good group tells passes, and each kind of lie is called one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.clients import read_frame
from chaos.judging import Told, Watched, judge, note_of
from simulator.histories import NEVER, Call, End, History, Kind

FIRST = 11  # The group had seen other revisions before.


class Group:
    """An imagined group that does everything right, one call at a time."""

    def __init__(self) -> None:
        self.now = 0
        self.revision = FIRST - 1
        self.history = History()
        self.told: list[Told] = []
        self.values: dict[str, int] = {}
        self.of_upstream: dict[str, int] = {}

    def call(self, kind: Kind, key: str, expected: int = 0, end: End = End.OK) -> Call:
        number = len(self.history.calls) + 1
        call = Call(1 + number % 3, number, kind, key, self.now + 1, number, expected)
        self.now += 10
        call.returned, call.end = self.now, end
        upstream = key.partition("/")[0]
        value = self.values.get(key, 0)
        if kind is Kind.READ:
            call.value, call.revision = value, self.of_upstream.get(upstream, 0)
        elif kind is Kind.CAS and value != expected:
            call.done, call.revision = False, self.revision
        else:
            self.revision += 1
            self.values[key], call.revision = call.put, self.revision
            self.of_upstream[upstream] = self.revision
            self.told.append(Told(self.revision, note_of(call), (key,)))
        if end is not End.OK:
            call.returned = NEVER
        self.history.calls.append(call)
        return call

    def member_joins(self) -> None:
        self.revision += 1
        self.told.append(Told(self.revision, "", ()))

    def watched(self, count: int = 2) -> list[Watched]:
        return [Watched(f"w{number}", FIRST, list(self.told)) for number in range(count)]

    def judged(self) -> list[str]:
        return judge(self.history, self.watched(), self.revision)


@pytest.fixture
def group() -> Group:
    made = Group()
    for number in range(30):
        key = f"u{number % 2}/10.9.0.{number % 5}:80"
        made.call(Kind.PUT, key)
        made.call(Kind.READ, key)
        made.call(Kind.CAS, key, made.values[key] if number % 3 else 10_000)
        if number % 7 == 0:
            made.member_joins()
    return made


def test_what_is_right_passes(group: Group) -> None:
    assert group.judged() == []


def test_an_unknown_write_may_have_been_done_or_not(group: Group) -> None:
    group.call(Kind.PUT, "u0/10.9.0.0:80", end=End.UNKNOWN)
    group.call(Kind.READ, "u0/10.9.0.0:80")
    never = Call(9, 999, Kind.PUT, "u0/10.9.0.0:80", group.now + 1, 999)
    group.history.calls.append(never)
    group.call(Kind.READ, "u0/10.9.0.0:80")
    assert group.judged() == []


def test_a_read_that_is_old(group: Group) -> None:
    key = "u0/10.9.0.0:80"
    before = group.call(Kind.READ, key)
    group.call(Kind.PUT, key)
    after = group.call(Kind.READ, key)
    after.value, after.revision = before.value, before.revision
    wrong = "\n".join(group.judged())
    assert "went back in time" in wrong
    assert f"{key}: " in wrong  # The search, which knows of no revisions, found it as well.


def test_a_write_that_was_lost(group: Group) -> None:
    key = "u1/10.9.0.1:80"
    kept = group.values[key]
    group.call(Kind.PUT, key)
    group.revision -= 1
    group.told.pop()
    group.values[key] = kept
    group.call(Kind.READ, key)
    wrong = "\n".join(group.judged())
    assert "no watcher was told of it" in wrong
    assert "not linearizable" in wrong


def _twice(group: Group) -> None:
    group.revision += 1
    group.told.append(Told(group.revision, group.told[-1].call, group.told[-1].keys))


def _failed_and_yet_done(group: Group) -> None:
    group.history.calls[0].end = End.FAILED


def _told_no_and_yet_done(group: Group) -> None:
    cas = next(call for call in group.history.calls if call.kind is Kind.CAS and call.done)
    cas.done = False


def _another_key(group: Group) -> None:
    first = group.told[0]
    group.told[0] = Told(first.revision, first.call, ("u0/10.0.0.1:80",))


def _revisions_go_back(group: Group) -> None:
    writes = [call for call in group.history.calls if call.kind is Kind.PUT]
    writes[-1].revision, writes[0].revision = writes[0].revision, writes[-1].revision


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_twice, "done twice"),
        (_failed_and_yet_done, "was told to be nothing"),
        (_told_no_and_yet_done, "was told to be nothing"),
        (_another_key, "asked for was"),
        (_revisions_go_back, "went back in time"),
    ],
)
def test_lies(group: Group, spoil: Callable[[Group], None], says: str) -> None:
    spoil(group)
    assert says in "\n".join(group.judged())


def test_watchers_that_miss_repeat_or_contradict(group: Group) -> None:
    good, bad = group.watched()
    told = bad.told
    bad.told = told[:5] + told[6:]
    assert f"was told of {FIRST + 6} where {FIRST + 5} was due" in "\n".join(
        judge(group.history, [good, bad], group.revision)
    )
    bad.told = told[:5] + told[4:]
    assert "was told of" in "\n".join(judge(group.history, [good, bad], group.revision))
    bad.told = told[:-1]
    assert "was told up to" in "\n".join(judge(group.history, [good, bad], group.revision))
    bad.told = [*told[:-1], Told(told[-1].revision, "c9.9", ("u0/x",))]
    assert "told in two ways" in "\n".join(judge(group.history, [good, bad], group.revision))


def test_a_search_that_takes_too_long_is_no_pass(group: Group) -> None:
    wrong = judge(group.history, group.watched(), group.revision, steps_max=3)
    assert "too many steps" in "\n".join(wrong)


def test_server_sent_events_are_read_as_browsers_read_them() -> None:
    lines = iter([b": hello\n", b"\n", b"id: 7\r\n", b"data: one\n", b"data:two\n", b"\n", b""])
    frame = read_frame(lambda: next(lines))
    assert frame == {"id": "7", "data": "one\ntwo"}
    assert read_frame(lambda: next(lines)) is None
