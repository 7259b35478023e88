"""An instance's part in its group, over its data_dir: alone, after damage, after disasters."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from file_store import FileStore

from lb.config.schema import Group as GroupConfig
from lb.control import agreement
from lb.control.admin_guard import as_problem
from lb.control.group import LEAD_SECONDS_MAX, Group
from lb.control.group_desk import GroupDesk
from lb.control.seat import Standing
from lb.control.store import REGISTRY_FILE, DamagedRegistryError, NoQuorum, RefusedError
from lb.errors import AccordError
from lb.registry import ApplyFile, By, Fields, PutBackend, Restore, Said

BY = By(member="a", source="api")


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no one rings for; `run` bounds it."""
    while not condition():  # noqa: ASYNC110  # Whatever it is waits for the loop.
        await asyncio.sleep(0)


@asynccontextmanager
async def alone(folder: Path, failed_disk: str = "") -> AsyncIterator[Group]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  # A test has nobody to hold up.
    group = Group(folder, "a", lambda: None, lambda: 1_000.0)
    await group.open(failed_disk)
    try:
        yield group
    finally:
        await group.close()


def file(*addresses: str) -> ApplyFile:
    said = tuple(Said(address) for address in addresses)
    return ApplyFile(upstream="app", by=BY, at=1.0, remembered=None, said=said)


def put(address: str, weight: int = 2) -> PutBackend:
    return PutBackend(upstream="app", by=BY, at=1.0, key=address, fields=Fields(weight=weight))


def backends(group: Group) -> set[str]:
    return set(group.registry.upstreams["app"].backends)


def test_an_instance_alone_is_a_group_of_one_that_decides_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            standing = GroupDesk(group).standing()
            assert (standing.role, standing.leader, standing.state) == ("leader", "a", "ok")
            assert standing.quorum
            assert [each.name for each in standing.members] == ["a"]
            assert (await group.propose(file("10.0.0.1:80"))).revision == 1
            id_ = group.registry.id
        async with alone(tmp_path / "d") as group:
            assert group.registry.id == id_
            assert backends(group) == {"10.0.0.1:80"}

    run(work)


def test_who_has_to_wait_for_others_holds_no_traffic_up(tmp_path: Path) -> None:
    async def work() -> None:
        members = {"a": "127.0.0.1:9", "b": "127.0.0.2:9"}
        config = GroupConfig(listen="127.0.0.1:9", members=members)
        folder = tmp_path / "d"
        folder.mkdir()
        group = Group(folder, "a", lambda: config, lambda: 1_000.0)
        began = asyncio.get_running_loop().time()
        await group.open()
        assert asyncio.get_running_loop().time() - began < LEAD_SECONDS_MAX / 2
        assert GroupDesk(group).standing().state == "forming"
        await group.close()

    run(work)


def test_what_an_earlier_version_kept_in_one_file_is_taken_over(tmp_path: Path) -> None:
    async def work() -> None:
        folder = tmp_path / "d"
        folder.mkdir()
        store = FileStore.open(folder)
        await store.propose(file("10.0.0.1:80"))
        await store.propose(put("10.0.0.2:80"))
        await store.close()

        async with alone(folder) as group:
            assert backends(group) == {"10.0.0.1:80", "10.0.0.2:80"}
            assert group.registry.id == store.registry.id
            assert group.registry.revision == store.registry.revision
        assert not (folder / REGISTRY_FILE).exists()
        async with alone(folder) as group:
            assert backends(group) == {"10.0.0.1:80", "10.0.0.2:80"}

    run(work)


def test_a_damaged_log_leaves_traffic_alone_and_decides_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            await group.propose(put("10.0.0.2:80"))
        log = tmp_path / "d" / "raft" / "wal-0000000001"
        data = bytearray(log.read_bytes())
        data[600] ^= 1
        log.write_bytes(data)
        os.utime(tmp_path / "d" / "last-good.json", (900, 900))  # It is 1,000 now.

        async with alone(tmp_path / "d") as group:
            standing = GroupDesk(group).standing()
            assert standing.state == standing.role == "damaged"
            assert 100 <= standing.age_s < 200  # Not since the start: since it was written.
            assert "wal-0000000001, byte " in standing.detail
            assert "wipe it" in standing.detail
            assert backends(group) == {"10.0.0.1:80", "10.0.0.2:80"}
            with pytest.raises(NoQuorum, match="takes no part"):
                await group.propose(put("10.0.0.3:80"))

    run(work)


def test_a_disk_that_failed_is_not_read_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
        async with alone(tmp_path / "d", "the disk failed") as group:
            assert GroupDesk(group).standing().state == "damaged"
            assert backends(group) == {"10.0.0.1:80"}

    run(work)


def test_who_is_wiped_founds_anew_from_the_last_good_registry(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            before = group.registry
        for path in (tmp_path / "d" / "raft").iterdir():
            path.unlink()
        (tmp_path / "d" / "raft").rmdir()

        async with alone(tmp_path / "d", "the disk failed") as group:
            assert backends(group) == {"10.0.0.1:80"}
            assert group.registry.id != before.id
            assert group.registry.revision == before.revision + 1_000_000
            await group.propose(put("10.0.0.2:80"))

    run(work)


def test_what_is_left_of_a_group_becomes_a_new_group_of_one(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            before = group.registry
            told = await GroupDesk(group).recover((), BY)

            assert told["revision"] == before.revision + 1_000_000
            assert told["group"] == group.registry.id != before.id
            assert backends(group) == {"10.0.0.1:80"}
            await group.until(lambda: group.has_leader, 5)
            await group.propose(put("10.0.0.2:80"))
        async with alone(tmp_path / "d") as group:
            assert backends(group) == {"10.0.0.1:80", "10.0.0.2:80"}
            assert (tmp_path / "d" / "raft.lost-1").is_dir()

    run(work)


def test_nobody_is_declared_lost_by_mistake(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            with pytest.raises(RefusedError, match="every other voter must be named"):
                await GroupDesk(group).recover(("b",), BY)
            await group.propose(file("10.0.0.1:80"))

    run(work)


def test_a_founding_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d"):
            pass
        seat = tmp_path / "d" / "member.json"
        group = Group(tmp_path / "d", "a", lambda: None, lambda: 1.0)
        kept = group.files.read()
        assert kept is not None
        assert seat.exists()
        group.files.write(replace(kept, standing=Standing.FOUNDING))
        async with alone(tmp_path / "d") as again:
            assert again.has_leader
            assert again.registry.id != kept.group

    run(work)


def test_a_member_file_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    async def work() -> None:
        async with alone(tmp_path / "d"):
            pass
        (tmp_path / "d" / "member.json").write_text("{}")
        with pytest.raises(AccordError) as caught:
            async with alone(tmp_path / "d"):
                pass
        assert "joins under a new id" in caught.value.hint

    run(work)


def test_a_damaged_file_of_an_earlier_version_is_not_passed_over(tmp_path: Path) -> None:
    async def work() -> None:
        folder = tmp_path / "d"
        folder.mkdir()
        (folder / REGISTRY_FILE).write_bytes(b"{}")
        with pytest.raises(DamagedRegistryError, match="not a file that we wrote"):
            async with alone(folder):
                pass

    run(work)


CHILD = """
import asyncio, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from control import test_group as t
async def main():
    async with t.alone(t.Path(sys.argv[1])) as group:
        await group.propose(t.file("10.0.0.1:80"))
        for n in range(100_000):
            reply = await group.propose(t.put("10.0.0.2:80", n % 1_000))
            print(reply.revision, flush=True)
asyncio.run(main())
"""


def test_killed_at_any_moment_what_was_answered_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", CHILD, str(folder), str(tests), str(tests.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        answered = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        answered += [int(line) for line in process.stdout.read().split("\n")[:-1]]

    async def work() -> None:
        async with alone(folder) as group:
            assert answered[-1] <= group.registry.revision <= answered[-1] + 1

    run(work)


def test_who_stopped_for_a_registry_that_differs_stays_stopped_after_a_restart(
    tmp_path: Path,
) -> None:
    why = "its registry differs from the leader's as of revision 1000; remove raft/"

    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            assert group.seat is not None
            group.seat = group.files.stop(group.seat, why)
        async with alone(tmp_path / "d") as group:
            standing = GroupDesk(group).standing()
            assert (standing.state, standing.detail) == ("stopped-apply", why)
            assert backends(group) == {"10.0.0.1:80"}  # Traffic goes on by the last good one.
            with pytest.raises(NoQuorum, match="takes no part"):
                await group.propose(put("10.0.0.3:80"))
        shutil.rmtree(tmp_path / "d" / "raft")  # As it was told to.
        async with alone(tmp_path / "d") as group:
            assert GroupDesk(group).standing().state == "ok"
            await group.propose(put("10.0.0.3:80"))

    run(work)


def test_a_leader_with_another_registry_stops_this_member_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "HASH_EVERY", 5)

    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            await group.propose(file("10.0.0.1:80"))
            for weight in range(2, 7):
                await group.propose(put("10.0.0.1:80", weight))
            await group.propose(put("10.0.0.2:80"))
            await until(lambda: bool(group.agreement.to_plain()))  # It is hashed in a thread.
            group.news = {"a": {"hashes": [[5, "another"]]}}
            await group._compare_states()
            assert group.files.read() == group.seat
            assert group.seat is not None
            assert "differs from the leader's as of revision 5" in group.seat.stopped
            again = group.files.read()
            assert again is not None
            assert again.stopped == group.seat.stopped

    run(work)


def test_what_is_too_much_for_the_log_is_refused_as_such(tmp_path: Path) -> None:
    """The fault is the caller's, and trying again would not help."""
    noise = random.Random(1).randbytes(2 << 20).hex()
    upstreams = {"app": {"noise": noise}}
    restore = Restore(upstream="", by=BY, at=1.0, content={"upstreams": upstreams})

    async def work() -> None:
        async with alone(tmp_path / "d") as group:
            with pytest.raises(RefusedError, match="one entry may have 1048576") as refused:
                await group.propose(restore)
            assert as_problem(refused.value).status == 413

    run(work)
