"""The small parts of the core, each by itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.raft.calls import Calls
from lb.raft.log import Compacted, Log, MemoryLog, Unavailable
from lb.raft.members import BadChangeError, Change, ConfChange, Members, conf_after, decode_change
from lb.raft.messages import (
    ConfState,
    Dropped,
    Entry,
    Fate,
    Kind,
    ProgressState,
    SnapMeta,
    Snapshot,
)
from lb.raft.progress import Inflights, Progress
from lb.raft.quorum import Verdict, reached, tally
from lb.raft.reads import Read, Reads


def entries(terms: str, start: int = 1) -> tuple[Entry, ...]:
    return tuple(
        Entry(index, int(term), Kind.NORMAL, b"x") for index, term in enumerate(terms, start)
    )


def conf(voters: str, learners: str = "") -> ConfState:
    return ConfState(frozenset(map(int, voters)), frozenset(map(int, learners)))


# --- Quorums ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "voters", "index"),
    [
        ("9", "1", 9),
        ("95", "12", 5),
        ("957", "123", 7),
        ("9571", "1234", 5),
        ("99", "123", 9),  # Of the third nothing is known.
        ("1119", "123", 1),  # 4 is no voter.
        ("9", "", 0),
    ],
)
def test_what_a_quorum_has_reached(numbers: str, voters: str, index: int) -> None:
    known = {member: int(number) for member, number in enumerate(numbers, 1)}

    assert reached(known, frozenset(map(int, voters))) == index


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ("y", Verdict.PENDING),
        ("yy", Verdict.WON),
        ("nn", Verdict.LOST),
        ("yn", Verdict.PENDING),
        ("n--y", Verdict.PENDING),  # 4 has no vote.
        ("yn-y", Verdict.PENDING),
    ],
)
def test_votes_of_three(votes: str, verdict: Verdict) -> None:
    given_votes = {voter: vote == "y" for voter, vote in enumerate(votes, 1) if vote != "-"}

    assert tally(given_votes, frozenset({1, 2, 3})) is verdict


@given(st.lists(st.integers(0, 20), min_size=1, max_size=7))
def test_a_quorum_has_it_and_none_has_more(numbers: list[int]) -> None:
    known = dict(enumerate(numbers, 1))
    index = reached(known, known)

    assert sum(number >= index for number in numbers) * 2 > len(numbers)
    assert sum(number > index for number in numbers) * 2 <= len(numbers)


# --- The log ----------------------------------------------------------------------------------


def test_the_tail_goes_before_what_the_disk_still_has() -> None:
    log = Log(MemoryLog(entries("1112")))
    log.cut(3)
    log.append(entries("33", start=3))

    assert [log.term(index) for index in range(5)] == [0, 1, 1, 3, 3]
    assert (log.last, log.last_term, log.stable) == (4, 3, 2)
    assert [entry.term for entry in log.entries(1, 5, 1000)] == [1, 1, 3, 3]
    assert log.hand_out() == entries("33", start=3)
    assert not log.hand_out()
    with pytest.raises(Unavailable):
        log.term(5)


def test_pages_have_at_least_one_entry_and_cross_from_disk_to_tail() -> None:
    log = Log(MemoryLog(entries("11")))
    log.append(entries("11", start=3))
    size = entries("1")[0].size

    assert [len(log.entries(1, 5, limit)) for limit in (0, size, 2 * size, 3 * size)] == [
        1,
        1,
        2,
        3,
    ]
    assert not log.entries(5, 5, 1000)


def test_what_is_in_a_snapshot_is_gone_but_for_its_end() -> None:
    view = MemoryLog(entries("1123"))
    view.put_snapshot(Snapshot(SnapMeta(3, 2, conf("1")), b""))
    view.compact(2)
    log = Log(view)

    assert (log.first, log.last, log.term(2), log.term(3)) == (3, 4, 1, 2)
    with pytest.raises(Compacted):
        log.term(1)
    with pytest.raises(Compacted):
        log.entries(2, 4, 1000)
    with pytest.raises(AssertionError, match="nothing is forgotten"):
        view.compact(4)


@pytest.mark.parametrize(
    ("terms", "index", "term", "place"),
    [
        ("1144", 4, 4, (4, 4)),
        ("1144", 9, 4, (4, 4)),  # Past the end.
        ("1144", 4, 3, (2, 1)),  # A whole term is passed over at once.
        ("1144", 4, 0, (0, 0)),
        ("", 3, 2, (0, 0)),
    ],
)
def test_where_logs_may_agree(terms: str, index: int, term: int, place: tuple[int, int]) -> None:
    assert Log(MemoryLog(entries(terms))).last_at_most(index, term) == place


def test_a_candidate_needs_the_later_term_or_then_the_longer_log() -> None:
    log = Log(MemoryLog(entries("122")))

    assert [
        log.as_complete_as(index, term) for index, term in ((3, 2), (4, 2), (1, 3), (2, 2), (9, 1))
    ] == [True, True, True, False, False]


# --- Progress ---------------------------------------------------------------------------------


def progress(last: int = 10) -> Progress:
    return Progress(last, Inflights(count_max=2, bytes_max=1000), now=0)


def test_a_refusal_counts_only_for_the_question_that_is_open() -> None:
    peer = progress()

    assert not peer.refuse(rejected=7, hint=3)  # Asked was 10.
    assert peer.refuse(rejected=10, hint=3)
    assert peer.next == 4
    assert not peer.refuse(rejected=10, hint=1)  # The same again.
    assert peer.next == 4


def test_what_was_acknowledged_is_never_asked_again() -> None:
    peer = progress()
    assert peer.acknowledge(5)
    peer.become_replicate()
    peer.sent(entries("11", start=6))

    assert not peer.acknowledge(4)
    assert not peer.refuse(rejected=5, hint=0)
    assert peer.refuse(rejected=7, hint=0)
    assert (peer.state, peer.match, peer.next) == (ProgressState.PROBE, 5, 6)


def test_a_full_window_pauses_and_an_answer_frees() -> None:
    peer = progress(last=0)
    peer.acknowledge(0)
    peer.become_replicate()

    paused = []
    for index in (1, 2):
        peer.sent(entries("1", start=index))
        paused.append(peer.paused)
    assert peer.acknowledge(1)
    paused.append(peer.paused)

    assert paused == [False, True, False]
    assert len(peer.inflights) == 1


def test_a_learner_keeps_up_when_a_round_is_short() -> None:
    peer = progress(last=10)
    assert not peer.keeps_up(patience=10)
    peer.acknowledge(10)
    peer.count_round(last=50, now=30)
    assert not peer.keeps_up(patience=10)  # The first took 30.
    peer.acknowledge(50)
    peer.count_round(last=55, now=35)
    assert peer.keeps_up(patience=10)


# --- Members ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "what", "member", "after"),
    [
        (conf("123"), Change.ADD_LEARNER, 4, conf("123", "4")),
        (conf("123", "4"), Change.PROMOTE, 4, conf("1234")),
        (conf("1234"), Change.REMOVE, 1, conf("234")),
        (conf("12", "3"), Change.REMOVE, 3, conf("12")),
        (conf("123"), Change.ADD_LEARNER, 3, None),
        (conf("123"), Change.PROMOTE, 4, None),  # Never from nothing to voter.
        (conf("123"), Change.REMOVE, 4, None),
        (conf("1"), Change.REMOVE, 1, None),
        (conf("1234567", "8"), Change.PROMOTE, 8, None),
    ],
)
def test_changes(before: ConfState, what: Change, member: int, after: ConfState | None) -> None:
    data = ConfChange(what, member, b"name").encode()
    assert decode_change(data) == ConfChange(what, member, b"name")

    if after is None:
        with pytest.raises(BadChangeError):
            conf_after(before, data)
    else:
        assert conf_after(before, data) == after


def test_members_are_what_the_log_says_also_when_it_is_cut() -> None:
    add = ConfChange(Change.ADD_LEARNER, 4).encode()
    promote = ConfChange(Change.PROMOTE, 4).encode()
    members = Members(0, conf("123"))
    members.append((Entry(3, 1, Kind.CONF, add), Entry(5, 1, Kind.CONF, promote)))

    assert (members.in_force, members.changed_at) == (conf("1234"), 5)
    assert [members.at(index) for index in (2, 3, 9)] == [
        conf("123"),
        conf("123", "4"),
        conf("1234"),
    ]
    members.cut(5)
    assert members.in_force == conf("123", "4")
    members.cut(1)
    assert members.in_force == conf("123")


def test_who_is_leaving_may_campaign_until_that_is_committed() -> None:
    members = Members(0, conf("12"))
    members.append((Entry(3, 1, Kind.CONF, ConfChange(Change.REMOVE, 2).encode()),))

    assert members.may_campaign(2, commit=2)
    assert not members.may_campaign(2, commit=3)
    assert not members.may_campaign(9, commit=2)


# --- Calls and reads --------------------------------------------------------------------------


def test_every_call_ends() -> None:
    calls = Calls(calls_max=4, rng=random.Random(1))
    proposal = calls.forward(b"p", is_read=False, until=10)
    calls.forward(b"q", is_read=False, until=10)
    read = calls.forward(b"r", is_read=True, until=10)
    calls.forward(b"s", is_read=True, until=20)
    with pytest.raises(Dropped):
        calls.check_room()

    assert calls.answered(proposal, is_read=True) is None
    assert calls.answered(proposal, is_read=False) == b"p"
    assert calls.answered(proposal, is_read=False) is None
    calls.place(b"p", 7, 2)
    calls.expire(10)
    calls.fail_all(commit=6, why="the term is over")
    assert calls.answered(read, is_read=True) is None

    _, _, failed = calls.take(applied=6)
    assert [(one.ctx, one.fate) for one in failed] == [
        (b"q", Fate.UNKNOWN),
        (b"r", Fate.NOT_DONE),
        (b"s", Fate.NOT_DONE),
        (b"p", Fate.UNKNOWN),
    ]


def test_what_is_committed_is_not_unknown_any_more() -> None:
    calls = Calls(calls_max=4, rng=random.Random(1))
    calls.place(b"p", 7, 2)
    calls.place(b"q", 8, 2)
    calls.fail_all(commit=7, why="the term is over")

    placed, _, failed = calls.take(applied=0)
    assert [one.ctx for one in placed] == [b"p", b"q"]
    assert [one.ctx for one in failed] == [b"q"]


def test_a_read_waits_until_its_index_is_applied() -> None:
    calls = Calls(calls_max=4, rng=random.Random(1))
    calls.confirm(b"r", 5)

    assert not calls.has_news(4)
    assert calls.take(4)[1] == ()
    assert calls.has_news(5)
    assert [read.ctx for read in calls.take(5)[1]] == [b"r"]


def test_an_answer_to_an_older_round_confirms_no_newer_read() -> None:
    reads = Reads(calls_max=3)
    voters = {1, 2, 3}
    assert reads.ask(Read(1, b"a"))
    reads.begin_round(commit=5)
    assert reads.ask(Read(1, b"b"))
    reads.begin_round(commit=6)
    assert reads.ask(Read(1, b"c"))
    assert not reads.ask(Read(1, b"d"))  # Too many.

    assert reads.acknowledge(2, 1)
    assert not reads.acknowledge(2, 1)
    assert not reads.acknowledge(2, 3)  # Nobody has sent that one yet.
    assert reads.confirmed(1, voters) == [(Read(1, b"a"), 5)]
    assert reads.acknowledge(3, 2)
    assert reads.confirmed(1, voters) == [(Read(1, b"b"), 6)]
    assert reads.give_up() == [Read(1, b"c")]
