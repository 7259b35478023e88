"""A leader's duties, beside a replica that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_replica import run, until

from lb.control.duties import Duties, Wish
from lb.control.replica import Replica
from lb.control.store import NoQuorum
from lb.raft.members import Change
from lb.raft.messages import ConfState
from lb.registry import (
    By,
    Changed,
    Command,
    Entry,
    ExpireLeases,
    Member,
    Outcome,
    Registry,
    Reply,
    UpstreamEntry,
)

STAMP = Changed(By(), 1, 0.0)
OWN = Member(1, "a", "a:1", voter=True, changed=STAMP)


def leased(ttl: float = 5.0) -> Registry:
    entry = Entry("10.0.0.1:80", STAMP, ttl=ttl, lease=1)
    upstreams = {"app": UpstreamEntry(1, {entry.key: entry})}
    return Registry("g", 1, upstreams, members={1: OWN}, granted=1)


class Clock:
    """Time that passes as the loop's does, and leaps when it is told to."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ahead = 0.0

    def time(self) -> float:
        return self._loop.time() + self.ahead


class Stage:
    """Stands in for a replica that leads."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.id = 1
        self.node = SimpleNamespace(term=3, conf=ConfState(frozenset({1})))
        self.up_to_date = self.leads = True
        self.full = False
        self.heard_at: dict[int, float] = {}
        self.led_since = 0.0
        self.proposed: list[Command] = []
        self.looks = 0
        self.on_confirm: Callable[[], None] = lambda: None
        self.changing = asyncio.Event()
        self.decided = asyncio.Event()
        self.peers: dict[int, Any] = {}
        self.transferred: list[int] = []
        self.transferee = 0

    async def confirm(self) -> None:
        self.on_confirm()

    async def propose(self, command: Command, term: int = 0) -> Reply:
        assert term == self.node.term
        self.proposed.append(command)
        return Reply(Outcome.UNCHANGED, self.registry.revision)

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(peers=self.peers, transferee=self.transferee)

    async def change(self, what: Change, member: int, context: bytes) -> None:
        self.changing.set()
        await self.decided.wait()

    def transfer(self, to: int) -> None:
        self.transferred.append(to)


@asynccontextmanager
async def duties(
    stage: Stage, wishes: Callable[[], Mapping[str, Wish]] = dict
) -> AsyncIterator[tuple[Duties, Clock]]:
    made = Duties(cast(Replica, stage), 3, "a", wishes, lambda: 1.0)
    clock = Clock()
    made._loop = cast(asyncio.AbstractEventLoop, clock)
    try:
        yield made, clock
    finally:
        await made.close()


def learner(stage: Stage) -> None:
    stage.registry = Registry(
        "g", 1, stage.registry.upstreams, granted=1,
        members={1: OWN, 2: Member(2, "b", "b:1", voter=False, changed=STAMP)},
    )  # fmt: skip
    stage.peers = {2: SimpleNamespace(caught_up=True, match=9)}


def in_time(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await work()

    run(bounded)


def test_a_renewal_that_the_next_leader_confirmed_is_not_one() -> None:
    async def work() -> None:
        stage = Stage(leased())
        async with duties(stage) as (made, _):
            await until(lambda: bool(made._term))
            assert await made.renew("app", "10.0.0.1:80")

            def depose() -> None:
                stage.node.term = 4
                stage.leads = stage.up_to_date = False

            stage.on_confirm = depose
            with pytest.raises(NoQuorum, match="another leader"):
                await made.renew("app", "10.0.0.1:80")

    in_time(work)


def test_a_change_of_members_that_waits_holds_no_lease_up() -> None:
    async def work() -> None:
        stage = Stage(leased(ttl=0.3))
        learner(stage)
        async with duties(stage, lambda: {"b": Wish(True, 1)}):
            await stage.changing.wait()  # And nobody decides it.
            await until(lambda: bool(stage.proposed))
            assert isinstance(stage.proposed[0], ExpireLeases)

    in_time(work)


def test_no_lease_ends_for_the_time_in_which_we_stood_still() -> None:
    async def work() -> None:
        stage = Stage(leased())
        async with duties(stage) as (made, clock):
            await until(lambda: bool(made._term))
            due = made._leases.next_due()
            assert due is not None

            # Late, but not by so much that `due` itself would notice.
            clock.ahead += due + 0.3 - clock.time()

            def later() -> bool:
                now = made._leases.next_due()
                return bool(stage.proposed) or (now is not None and now > due)

            await until(later)
            assert not stage.proposed

    in_time(work)


def test_a_mistake_in_one_duty_is_seen_and_the_duty_goes_on() -> None:
    async def work() -> None:
        stage = Stage(leased())
        learner(stage)
        seen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        asked = 0

        def wishes() -> Mapping[str, Wish]:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise ZeroDivisionError("a bug")
            return {"b": Wish(True, 1)}

        async with duties(stage, wishes):
            await stage.changing.wait()
        [context] = seen
        assert isinstance(context["exception"], ZeroDivisionError)

    in_time(work)


def test_leadership_goes_to_nobody_whose_disk_is_full_too() -> None:
    async def work() -> None:
        stage = Stage(leased())
        stage.full = True
        stage.node.conf = ConfState(frozenset({1, 2, 3}))
        others = {n: Member(n, name, "", True, STAMP) for n, name in ((2, "b"), (3, "c"))}
        stage.registry = Registry("g", 1, members={1: OWN, **others})
        stage.peers = {2: SimpleNamespace(match=9), 3: SimpleNamespace(match=5)}
        full = {"b": Wish(True, 1, full=True), "c": Wish(True, 1)}
        async with duties(stage, lambda: full) as (made, clock):
            stage.heard_at = {2: clock.time(), 3: clock.time()}
            await until(lambda: bool(stage.transferred))
            assert stage.transferred[0] == 3
            full["c"] = Wish(True, 1, full=True)
            assert made.successor(with_room=True) is None
            assert made.successor() is not None

    in_time(work)
