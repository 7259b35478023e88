"""A member that meets what should not be: it stops as a whole, says so, and guesses nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from test_replica import Box, Wires, backends, file, group_of, put, run, until

from lb.control.state_machine import CannotApplyError, StateMachine
from lb.control.storage import DiskFullError, Storage
from lb.control.store import NoQuorum, NotStored, UnknownOutcome
from lb.control.waiting import Waiting
from lb.raft.members import Change, ConfChange
from lb.raft.messages import Dropped, Entry, Failed, Fate, Kind, Placed
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


def test_a_snapshot_that_fails_or_finds_no_room_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        box = Box(tmp_path / "a", Wires(), 7)
        box.found()
        replica = box.start()
        await until(lambda: replica.up_to_date)
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: seen.append(context["exception"])
        )
        monkeypatch.setattr("lb.control.replica.SNAPSHOT_ENTRIES", 1)
        monkeypatch.setattr("lb.control.replica.SNAPSHOT_AGAIN", 0.0)
        with monkeypatch.context() as patch:

            def broken(_: Registry) -> bytes:
                raise ZeroDivisionError("a bug")

            patch.setattr("lb.control.replica.encode_state", broken)
            await replica.propose(file("10.0.0.1:80"))
            await until(lambda: bool(seen))
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise DiskFullError("no room")

            patch.setattr(Storage, "put_snapshot", full)
            await replica.propose(put("10.0.0.2:80"))
            await until(lambda: "no room for a snapshot" in caplog.text)

        await until(lambda: replica._snapshotting is None)
        await replica.propose(put("10.0.0.3:80"))
        await until(lambda: replica._log.snapshot_meta().index >= 4)
        await box.stop()

    run(work)


def test_a_leader_without_room_takes_no_writes_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 2) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            leader, other = boxes[0].replica, boxes[1].replica
            monkeypatch.setattr(leader._disk._storage, "full", True)
            monkeypatch.setattr("lb.control.replica.ANSWER_SECONDS_MAX", 0.5)
            with pytest.raises(NotStored):
                await leader.propose(put("10.0.0.2:80"))
            with pytest.raises(UnknownOutcome):
                await other.propose(put("10.0.0.3:80"))
            assert leader.leads
            await other.confirm()
            assert backends(leader) == backends(other) == {"10.0.0.1:80"}
            monkeypatch.setattr(leader._disk._storage, "full", False)
            await leader.propose(put("10.0.0.2:80"))

    run(work)


def test_what_nobody_waits_for_takes_no_room() -> None:
    async def work() -> None:
        waiting = Waiting()
        for number in range(10):
            ctx = waiting.new_ctx()
            answer = waiting.proposed(ctx)
            waiting.place(Placed(ctx, 100 + number // 2, 3), 0)
            assert len(waiting)
            answer.cancel()  # Its time is up, and the log never came so far.
            waiting.forget(ctx)
        assert len(waiting) == 0

    run(work)
