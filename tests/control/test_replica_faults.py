"""A member that meets what should not be: it stops as a whole, says so, and guesses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from control.test_replica import Box, Wires, file, put, run, until

from lb.control.state_machine import CannotApplyError, StateMachine
from lb.control.store import NoQuorum, UnknownOutcome
from lb.raft.members import Change, ConfChange
from lb.raft.messages import Dropped, Entry, Failed, Fate, Kind
from lb.registry import Registry


def test_a_change_of_members_that_is_not_known_ends_the_applying() -> None:
    machine = StateMachine(Registry(id="g"))
    data = ConfChange(Change.ADD_LEARNER, 5, b"of a version to come").encode()

    with pytest.raises(CannotApplyError, match="entry 9 holds what this version does not know"):
        machine.apply(Entry(9, 2, Kind.CONF, data))

    assert machine.registry == Registry(id="g")


def test_a_member_with_a_change_of_members_that_it_does_not_know_stops(tmp_path: Path) -> None:
    async def work() -> None:
        wires = Wires()
        box = Box(tmp_path / "a", wires, 7)
        box.found()
        replica = box.start()
        await until(lambda: replica.up_to_date)

        with pytest.raises(UnknownOutcome):
            await replica.change(Change.ADD_LEARNER, 8, b"of a version to come")

        assert not replica.running
        [why] = wires.halted
        assert "does not know" in why
        await box.stop()

    run(work)


def test_a_bug_in_applying_is_seen_and_ends_the_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        wires = Wires()
        box = Box(tmp_path / "a", wires, 7)
        box.found()
        replica = box.start()
        await until(lambda: replica.up_to_date)

        def broken(_: StateMachine, __: Entry) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(StateMachine, "apply", broken)
        with pytest.raises(UnknownOutcome):
            await replica.propose(file("10.0.0.1:80"))

        assert not replica.running
        assert wires.halted
        assert "ZeroDivisionError: a bug" in caplog.text
        with pytest.raises(NoQuorum, match="has stopped"):
            await replica.propose(file("10.0.0.1:80"))
        await box.stop()

    run(work)


def test_what_may_have_been_done_is_never_said_not_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try is lost on its way, and there is no room for the second."""

    async def work() -> None:
        box = Box(tmp_path / "a", Wires(), 7)
        box.found()
        replica = box.start()
        await until(lambda: replica.up_to_date)
        tries: list[bytes] = []

        def propose(_: bytes, ctx: bytes) -> None:
            tries.append(ctx)
            if len(tries) > 1:
                raise Dropped("too many calls wait for an answer")
            replica.fail(Failed(ctx, Fate.UNKNOWN, "the leader is none any more"))

        monkeypatch.setattr(replica.node, "propose", propose)
        with pytest.raises(UnknownOutcome):
            await replica.propose(put("10.0.0.1:80"))
        assert len(tries) == 2
        await box.stop()

    run(work)
