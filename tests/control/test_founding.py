"""Founding, joining and disasters where things are not as they should be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from test_group import BY, alone, backends, file, put, run

from lb.config.group import Group as GroupConfig
from lb.control.forming import Answer
from lb.control.founding import Founding
from lb.control.group import Group, Trouble
from lb.control.group_desk import GroupDesk
from lb.control.store import RefusedError
from lb.errors import StartError

CONFIG = GroupConfig.model_validate(
    {"listen": "127.0.0.1:1", "members": {"a": "127.0.0.1:1", "b": "127.0.0.1:2"}}
)


@asynccontextmanager
async def forming(
    folder: Path, answers: dict[str, Answer]
) -> AsyncIterator[tuple[Group, Founding]]:
    """An instance that has found no place yet, and what others answer to it."""
    folder.mkdir()  # noqa: ASYNC240  # A test has nobody to hold up.
    group = Group(folder, "a", lambda: CONFIG, lambda: 1_000.0)
    await group.open()

    async def ask(address: str) -> Answer | None:
        return answers.get(address)

    cast(Any, group.founding).ask = ask
    try:
        yield group, group.founding
    finally:
        await group.close()


def test_no_group_is_forced_beside_one_that_has_no_leader_just_now(tmp_path: Path) -> None:
    async def work() -> None:
        answers = {"127.0.0.1:2": Answer("b", "0" * 32, "")}
        async with forming(tmp_path / "d", answers) as (group, founding):
            founding.now = True
            await founding._look_around()
            assert group.replica is None
            assert founding.waiting.for_ == ("the group's leader",)

    run(work)


def test_an_order_to_found_that_was_refused_is_not_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        answers = {"127.0.0.1:2": Answer("b", "0" * 32, "")}
        async with forming(tmp_path / "d", answers) as (group, founding):
            monkeypatch.setattr("lb.control.group_desk.FOUND_SECONDS_MAX", 0.05)
            with pytest.raises(RefusedError, match="could not be founded"):
                await GroupDesk(group).found(BY)
            answers.clear()
            await founding._look_around()
            assert group.replica is None
            assert founding.waiting.for_ == ("b",)

    run(work)


def test_who_is_in_the_middle_of_a_recovery_still_says_that_it_holds_a_group(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            desk = GroupDesk(group)
            await group.end_replica()
            said = await desk.methods()["who"](group._claim(), {})
            assert said["group"] == group.registry.id

    run(work)


def test_a_recovery_that_fails_leaves_the_member_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            before = group.registry.id

            def full(*_: object) -> None:
                raise StartError("no room", "make some")

            with monkeypatch.context() as patch:
                patch.setattr(group.files, "found", full)
                with pytest.raises(StartError, match="no room"):
                    await GroupDesk(group).recover((), BY)
            await group.until(lambda: group.has_leader, 5)
            assert group.registry.id == before
            await group.propose(put("10.0.0.2:80"))
            told = await GroupDesk(group).recover((), BY)
            assert told["group"] != before

    run(work)


def test_nobody_recovers_from_a_member_that_has_stopped(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            group.trouble = Trouble("stopped-apply", "an entry is not known")
            with pytest.raises(RefusedError, match="takes no part"):
                await GroupDesk(group).recover((), BY)

    run(work)


def test_a_new_group_is_shown_at_once_after_a_recovery(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            shown: list[int] = []
            group.subscribe(lambda registry: shown.append(registry.revision))
            told = await GroupDesk(group).recover((), BY)
            await asyncio.sleep(0)
            assert shown[-1] == told["revision"]

    run(work)


def test_a_log_that_is_not_the_seats_own_is_not_used(tmp_path: Path) -> None:
    """Somebody has brought a raft/ from another box."""

    async def work() -> None:
        for name in ("d", "e"):
            async with alone(tmp_path / name) as group:
                await group.propose(file("10.0.0.1:80"))
        (tmp_path / "d" / "raft").rename(tmp_path / "old")
        (tmp_path / "e" / "raft").rename(tmp_path / "d" / "raft")
        async with alone(tmp_path / "d") as group:
            standing = GroupDesk(group).standing()
            assert standing.state == "damaged"
            assert "member.json" in standing.detail
            assert backends(group) == {"10.0.0.1:80"}

    run(work)


def test_a_log_without_its_seat_is_gone_on_with(tmp_path: Path) -> None:
    """Its id is in the log: to take another would be to lose what this member promised."""

    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            id_, member = group.registry.id, group.seat and group.seat.member
        (tmp_path / "d" / "member.json").unlink()
        async with alone(tmp_path / "d") as group:
            assert group.registry.id == id_
            assert group.seat is not None
            assert group.seat.member == member
            await group.propose(put("10.0.0.2:80"))

    run(work)


def test_what_is_left_of_a_log_without_any_segment_is_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            before = group.registry
        for path in (tmp_path / "d" / "raft").iterdir():
            if path.name not in ("reserve", "lock"):
                path.unlink()
        with caplog.at_level(logging.WARNING):
            async with alone(tmp_path / "d") as group:
                assert backends(group) == {"10.0.0.1:80"}
                assert group.registry.id != before.id

    run(work)
