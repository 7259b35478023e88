"""A member at work: real cores, real disks, real threads; only the wires between are short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from lb.control.replica import Outside, Replica
from lb.control.seat import Seat, SeatFiles, Standing
from lb.control.state_machine import Applied
from lb.control.store import NoQuorum
from lb.raft.members import Change
from lb.raft.messages import SoftState
from lb.registry import (
    ApplyFile,
    By,
    Changed,
    Command,
    Fields,
    Member,
    PutBackend,
    Registry,
    Said,
    encode_member,
    state_hash,
)

GROUP = "0123456789abcdef" * 2
SECONDS_MAX = 10.0


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not condition():  # noqa: ASYNC110  # Whatever it is waits for the loop.
            await asyncio.sleep(0)


class Wires:
    """Carries messages between replicas of one loop; a member that is cut off hears nothing."""

    def __init__(self) -> None:
        self.replicas: dict[int, Replica] = {}
        self.cut: set[int] = set()
        self.halted: list[str] = []

    def reaches(self, frm: int, to: int) -> bool:
        return to in self.replicas and not {frm, to} & self.cut

    def send(self, frm: int, to: int, data: bytes) -> bool:
        if not self.reaches(frm, to):
            return False
        asyncio.get_running_loop().call_soon(self.replicas[to].hear, frm, data)
        return True


class Box:
    """One member's directory, and its replica while it runs."""

    def __init__(self, folder: Path, wires: Wires, member: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = SeatFiles(folder)
        self.member = member
        self.applied: list[Applied] = []
        self.restored: list[Registry] = []
        self.leaders: list[SoftState] = []
        self._wires = wires
        self.replica: Replica

    def found(self) -> None:
        changed = Changed(By(), 0, 0.0)
        own = Member(self.member, str(self.member), "", voter=True, changed=changed)
        registry = Registry(id=GROUP, members={self.member: own})
        self.files.found(GROUP, registry, self.member)

    def join(self) -> None:
        self.files.join(Seat(GROUP, self.member, Standing.JOINING))

    def start(self) -> Replica:
        def take(news: Sequence[Applied]) -> None:
            self.applied += news

        outside = Outside(
            send=lambda to, data: self._wires.send(self.member, to, data),
            reaches=lambda to: self._wires.reaches(self.member, to),
            applied=take,
            restored=self.restored.append,
            looked=self.leaders.append,
            halted=lambda why, hint: self._wires.halted.append(why),
        )
        seat = Seat(GROUP, self.member, Standing.MEMBER)
        self.replica = Replica(*self.files.open(seat), outside)
        self._wires.replicas[self.member] = self.replica
        self.replica.start()
        return self.replica

    async def stop(self) -> None:
        self._wires.replicas.pop(self.member, None)
        await self.replica.close()


def caught_up(leader: Replica, member: int) -> bool:
    return leader.status().peers[member].caught_up


def put(key: str, weight: int = 1) -> Command:
    return PutBackend(
        upstream="app", by=By(), at=1.0, key=key, fields=Fields(weight=weight),
        idempotency_key=f"{key} {weight}",
    )  # fmt: skip


def file(*addresses: str) -> Command:
    said = tuple(Said(address) for address in addresses)
    return ApplyFile(upstream="app", by=By(), at=1.0, remembered=None, said=said)


def backends(replica: Replica) -> set[str]:
    entry = replica.registry.upstreams.get("app")
    return set(entry.backends) if entry else set()


@asynccontextmanager
async def group_of(tmp_path: Path, count: int) -> AsyncIterator[list[Box]]:
    """A group of voters, founded by the first and joined by the others."""
    wires = Wires()
    boxes = [Box(tmp_path / str(n), wires, n) for n in range(1, count + 1)]
    boxes[0].found()
    first = boxes[0].start()
    await until(lambda: first.up_to_date)
    try:
        for box in boxes[1:]:
            context = encode_member(str(box.member), "", By(), 1.0)
            box.join()
            box.start()
            await first.change(Change.ADD_LEARNER, box.member, context)
            await until(partial(caught_up, first, box.member))
            await first.change(Change.PROMOTE, box.member, context)
        yield boxes
    finally:
        for box in boxes:
            if box.member in wires.replicas:
                await box.stop()


def test_a_member_alone_leads_at_once_and_keeps_what_it_answered(tmp_path: Path) -> None:
    async def work() -> None:
        box = Box(tmp_path / "a", Wires(), 7)
        box.found()
        replica = box.start()
        reply = await replica.propose(file("10.0.0.1:80"))
        assert reply.revision == 1
        await replica.propose(put("10.0.0.2:80"))
        before = state_hash(replica.registry)
        await box.stop()

        again = box.start()
        await until(lambda: again.up_to_date)

        assert backends(again) == {"10.0.0.1:80", "10.0.0.2:80"}
        assert state_hash(again.registry) == before
        changed = [each.replayed for each in box.applied if each.changed]
        assert changed[:2] == [False, False]  # As they were written,
        assert changed[2]  # and when the log was read again.
        await box.stop()

    run(work)


def test_a_write_on_any_member_is_applied_on_all(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            for number, box in enumerate(boxes):
                reply = await box.replica.propose(put(f"10.0.1.{number}:80"))
                assert reply.revision == box.replica.registry.revision
            await until(lambda: all(len(backends(box.replica)) == 4 for box in boxes))
            assert len({state_hash(box.replica.registry) for box in boxes}) == 1
            names = [member.name for member in boxes[2].replica.registry.members.values()]
            assert names == ["1", "2", "3"]

    run(work)


def test_writes_go_on_when_the_leader_is_gone(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            await boxes[0].stop()

            await boxes[1].replica.propose(put("10.0.0.2:80"))

            await until(lambda: backends(boxes[2].replica) == {"10.0.0.1:80", "10.0.0.2:80"})

    run(work)


def test_a_write_without_a_quorum_is_refused_and_done_by_nobody(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            await boxes[0].stop()
            await boxes[1].stop()
            started = asyncio.get_running_loop().time()

            write, read = await asyncio.gather(
                boxes[2].replica.propose(put("10.0.0.2:80")),
                boxes[2].replica.confirm(),
                return_exceptions=True,
            )

            assert isinstance(write, NoQuorum)
            assert isinstance(read, NoQuorum)
            assert asyncio.get_running_loop().time() - started < 5.0
            assert backends(boxes[2].replica) == {"10.0.0.1:80"}

    run(work)


def test_a_read_that_was_confirmed_sees_every_write_before_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            for number in range(20):
                await boxes[number % 3].replica.propose(put(f"10.0.1.{number}:80"))
                reader = boxes[(number + 1) % 3].replica
                await reader.confirm()
                assert f"10.0.1.{number}:80" in backends(reader)

    run(work)


def test_a_key_that_is_repeated_acts_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            first = await boxes[1].replica.propose(put("10.0.0.2:80"))

            again = await boxes[2].replica.propose(replace(put("10.0.0.2:80"), at=9.0))

            assert again.repeated
            assert again.revision == first.revision

    run(work)


def test_leadership_is_handed_over_in_order(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            boxes[0].replica.transfer(2)
            await until(lambda: boxes[1].replica.up_to_date)
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            assert not boxes[0].replica.leads

    run(work)


def test_who_joins_late_is_sent_a_snapshot_with_all_members(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 2) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            late = Box(tmp_path / "9", boxes[0]._wires, 9)
            late.join()
            late.start()
            await boxes[0].replica.change(Change.ADD_LEARNER, 9, encode_member("9", "", By(), 1.0))
            await until(lambda: backends(late.replica) == {"10.0.0.1:80"})
            assert late.restored
            assert set(late.replica.registry.members) == {1, 2, 9}
            await late.stop()

    run(work)


def test_many_writes_at_once_share_the_disks_work(tmp_path: Path) -> None:
    async def work() -> None:
        async with group_of(tmp_path, 3) as boxes:
            await boxes[0].replica.propose(file("10.0.0.1:80"))
            replies = await asyncio.gather(
                *(boxes[n % 3].replica.propose(put(f"10.1.{n // 250}.{n % 250}:80"))
                  for n in range(300))
            )  # fmt: skip
            revisions = sorted(reply.revision for reply in replies)
            assert revisions == list(range(revisions[0], revisions[0] + 300))

    run(work)
