"""Members connected over loopback: who sends on what, calls, silence, and the end of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from peers_kit import (
    GROUP,
    PATIENCE,
    Instance,
    Member,
    Wire,
    claim_of,
    instances,
    message,
    run,
    some,
    until,
    with_secret,
)

from lb.control import peer_connection, peers
from lb.control.peer_handshake import Purpose
from lb.control.peers import (
    CallRefused,
    Claim,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    Plain,
    Security,
)

SECURITIES = pytest.mark.parametrize("security", [Security.none, with_secret])


@SECURITIES
def test_three_members_reach_each_other(security: Callable[[], Security]) -> None:
    async def test() -> None:
        a, b, c = all_of = some(3, security)
        async with instances(*all_of):
            for each in all_of:
                each.meet(*[other for other in all_of if other is not each])
            await until(lambda: all(each.reaches(*set_without(all_of, each)) for each in all_of))
            for number in range(200):
                assert a.peers.send(2, message(1, 2, number))
                assert a.peers.send(3, message(1, 3, number))
                assert b.peers.send(1, message(2, 1, number))
            await until(lambda: len(a.heard) == len(b.heard) == len(c.heard) == 200)

            assert b.heard == [(1, message(1, 2, number)) for number in range(200)]
            assert a.heard == [(2, message(2, 1, number)) for number in range(200)]
            standing = a.peers.connected[2]
            assert (standing.name, standing.version, standing.level) == ("b", "1.0", 1)
            await until(lambda: 0.0 < a.peers.connected[2].rtt < 1.0)
            assert not a.peers.send(9, message(1, 9))

    run(test())


def set_without(all_of: list[Instance], one: Instance) -> list[Instance]:
    return [each for each in all_of if each is not one]


@SECURITIES
def test_large_messages_and_many_in_one_turn(security: Callable[[], Security]) -> None:
    async def test() -> None:
        a, b = some(2, security)
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            sizes = [10, 1 << 20, 0, 4_000_000, 3]
            said = [message(1, 2, size) + b"x" * size for size in sizes]
            assert all(a.peers.send(2, each) for each in said)
            await until(lambda: len(b.heard) == len(said))

            assert [data for _, data in b.heard] == said

    run(test())


def test_what_is_sent_in_one_turn_is_handed_on_in_one() -> None:
    """The first leaves at once, so it may be one turn ahead of all the others."""

    async def test() -> None:
        a, b = some(2, with_secret)
        turns: list[int] = []
        turn = 0

        def next_turn() -> None:
            nonlocal turn
            turn += 1
            asyncio.get_running_loop().call_soon(next_turn)

        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            b.on_heard = lambda frm, data: turns.append(turn)
            asyncio.get_running_loop().call_soon(next_turn)
            for number in range(50):
                a.peers.send(2, message(1, 2, number))
            await until(lambda: len(turns) == 50)

            assert len(set(turns[1:])) == 1

    run(test())


def test_we_answer_on_their_connection_until_ours_stands() -> None:
    """A member that has been away knows no address of a leader who joined meanwhile."""

    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            a.meet(b)
            await until(lambda: b.reaches(a))
            assert b.peers.send(1, message(2, 1, 1))
            await until(lambda: len(a.heard) == 1)
            b.meet(a)
            await until(lambda: b.peers.connected[1].last_heard and links_of(b) == 2)
            assert b.peers.send(1, message(2, 1, 2))
            await until(lambda: len(a.heard) == 2)
            a.meet()
            await until(lambda: links_of(b) == 1)

            assert a.reaches(b)  # On b's.
            assert a.peers.send(2, message(1, 2, 3))
            await until(lambda: len(b.heard) == 1)

    run(test())


def links_of(instance: Instance) -> int:
    """How many connections an instance has; there is no public word for it."""
    return len(instance.peers._all)


def test_a_call_is_answered_by_id_and_by_address() -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            for to in (2, b.address):
                said = await a.peers.call(to, "standing", {"x": [1, "ü"]}, PATIENCE)
                assert said == {"name": "b", "asked_by": "a", "x": [1, "ü"]}
                with pytest.raises(PeerRefused) as refused:
                    await a.peers.call(to, "join", {}, PATIENCE)
                assert (refused.value.code, refused.value.detail) == ("never", "it does not")
                assert refused.value.hint == "ask another"
                with pytest.raises(PeerRefused) as refused:
                    await a.peers.call(to, "dance", {}, PATIENCE)
                assert refused.value.code == "unknown-method"
            with pytest.raises(PeerUnreachable) as gone:
                await a.peers.call(9, "who", {}, PATIENCE)
            assert not gone.value.sent
            for nowhere in ("127.0.0.1:1", "no port", "nowhere.invalid:1"):
                with pytest.raises(PeerUnreachable):
                    await a.peers.call(nowhere, "who", {}, PATIENCE)
            with pytest.raises(PeerRefused) as refused:
                await a.peers.call(a.address, "who", {}, PATIENCE)
            assert refused.value.code == "ourselves"

    run(test())


def test_who_is_no_member_may_ask_two_things_only() -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        fresh = Instance(claim_of("new"), with_secret())
        stray = Instance(claim_of("stray", 7, "beef" * 8), with_secret())
        async with instances(a, fresh, stray):
            for asks in (fresh, stray):
                said = await asks.peers.call(a.address, "who", {}, PATIENCE)
                assert said["asked_by"] == asks.name
                with pytest.raises(PeerRefused) as refused:
                    await asks.peers.call(a.address, "standing", {}, PATIENCE)
                assert refused.value.code == "not-a-member"
            said = await fresh.peers.call(stray.address, "who", {}, PATIENCE)
            assert said["name"] == "stray"

    run(test())


def test_a_call_that_takes_too_long_and_one_whose_peer_dies() -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        started, released = asyncio.Event(), asyncio.Event()

        async def slow(claim: Claim, params: Plain) -> Plain:
            started.set()
            await released.wait()
            return {}

        b.methods = {"slow": slow}
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            with pytest.raises(PeerTimeout, match="b did not answer slow"):
                await a.peers.call(2, "slow", {}, 0.05)
            released.set()  # The answer that comes now is nobody's.
            assert await a.peers.call(2, "who", {}, PATIENCE)
            released.clear()
            started.clear()
            calls = [asyncio.ensure_future(a.peers.call(2, "slow", {}, PATIENCE)) for _ in "123"]
            await started.wait()
            await b.peers.close()
            for call in calls:
                with pytest.raises(PeerUnreachable) as gone:
                    await call
                assert gone.value.sent

    run(test())


def test_calls_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RUNNING_MAX", 3)
    monkeypatch.setattr(peer_connection, "CALLS_MAX", 5)

    async def test() -> None:
        a, b = some(2, with_secret)
        released = asyncio.Event()

        async def slow(claim: Claim, params: Plain) -> Plain:
            await released.wait()
            return {}

        b.methods = {"slow": slow}
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            calls = [asyncio.ensure_future(a.peers.call(2, "slow", {}, PATIENCE)) for _ in "12345"]
            await until(lambda: sum(call.done() for call in calls) == 2)
            released.set()
            done = await asyncio.gather(*calls, return_exceptions=True)
            busy = [each for each in done if isinstance(each, PeerRefused)]
            assert [each.code for each in busy] == ["busy", "busy"]
            calls = [asyncio.ensure_future(a.peers.call(2, "slow", {}, PATIENCE)) for _ in "123456"]
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(each, PeerUnreachable) for each in done) == 1

    run(test())


def test_a_bug_in_a_method_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        a, b = some(2, with_secret)

        async def broken(claim: Claim, params: Plain) -> Plain:
            return {"x": params["missing"]}

        async def foreseen(claim: Claim, params: Plain) -> Plain:
            raise PeerTimeout("another did not answer")

        b.methods = {"broken": broken, "foreseen": foreseen}
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            for method, code in (("broken", "bug"), ("foreseen", "failed")):
                with pytest.raises(PeerRefused) as refused:
                    await a.peers.call(2, method, {}, PATIENCE)
                assert refused.value.code == code
            assert a.reaches(b)

    run(test())
    assert [record.exc_info is not None for record in caplog.records if "bug" in record.msg] == [
        True
    ]


def test_what_is_sent_back_too_large_is_refused() -> None:
    async def test() -> None:
        a, b = some(2, with_secret)

        async def large(claim: Claim, params: Plain) -> Plain:
            return {"x": "y" * params["size"]}

        b.methods = {"large": large}
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            assert (
                len((await a.peers.call(2, "large", {"size": 4 << 20}, PATIENCE))["x"]) == 4 << 20
            )
            with pytest.raises(PeerRefused) as refused:
                await a.peers.call(2, "large", {"size": 5 << 20}, PATIENCE)
            assert refused.value.code == "too-large"

    run(test())


@pytest.mark.parametrize(("there", "back"), [(True, True), (True, False), (False, True)])
def test_a_dead_link_is_noticed_and_dialled_again(there: bool, back: bool) -> None:
    """Nothing comes through, and nobody says so: as with SIGSTOP, or a cable pulled."""

    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b), Wire(b.address) as wire:
            a.meet(b, by={"b": wire.address})
            await until(lambda: a.reaches(b) and b.reaches(a))
            started = time.monotonic()
            wire.hold(there=there, back=back)
            await until(lambda: not a.reaches(b) and not b.reaches(a))
            took = time.monotonic() - started
            assert 1.0 < took <= 2.1
            wire.release()
            await until(lambda: a.reaches(b) and b.reaches(a))
            assert a.peers.send(2, message(1, 2))
            await until(lambda: b.heard)

    run(test())


def test_our_own_absence_is_nobodys_silence() -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            before = links_of(a), next(iter(a.peers._all))
            deadline = time.monotonic() + 2.5
            while time.monotonic() < deadline:
                pass  # The loop stands still, as when the process is stopped.
            seen = a.peers._looked_at
            await until(lambda: a.peers._looked_at > seen + 1.0)

            assert (links_of(a), next(iter(a.peers._all))) == before

    run(test())


def test_a_peer_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it has a bound, and after a while it is let go."""
    monkeypatch.setattr(peers, "STUCK_SECONDS", 0.5)
    monkeypatch.setattr(peer_connection, "QUEUE_BYTES_MAX", 1 << 20)

    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            deaf = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await deaf.shake_hands()
            await until(lambda: 2 in a.peers.connected)
            body = message(1, 2) + b"x" * 100_000
            sent = 0
            while a.peers.send(2, body):
                sent += 1
                assert sent < 1000
            (way,) = a.peers._all
            assert (1 << 20) - len(body) - 100 <= way.waiting <= 1 << 20
            await until(lambda: 2 not in a.peers.connected)
            deaf.sock.close()

    run(test())


def test_who_comes_again_is_dialled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RETRY_FIRST", 60.0)
    monkeypatch.setattr(peers, "RETRY_MAX", 60.0)

    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            place = b.address
            await b.peers.close()
            a.meet(b)
            await until(lambda: a.peers._said)  # It knows that nobody is there.
            await b.start()
            b.meet(a, by={})
            a.peers.meet({2: ("b", b.address)})
            assert place != b.address
            await until(lambda: a.reaches(b) and b.reaches(a))
            b.meet()
            await until(lambda: links_of(a) == 1)

    run(test())


def test_a_dialler_who_waits_is_nudged_by_who_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RETRY_FIRST", 60.0)
    monkeypatch.setattr(peers, "RETRY_MAX", 60.0)

    async def test() -> None:
        a, b = some(2, with_secret)
        b.turned_down = "not yet"
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.peers.refusals)
            b.turned_down = ""
            b.meet(a)
            await until(lambda: a.reaches(b) and not a.peers.refusals)

    run(test())


def test_an_outage_is_told_once_each_time(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            async with Wire(b.address) as wire:
                a.meet(b, by={"b": wire.address})
                await until(lambda: a.reaches(b))
            await until(lambda: not a.reaches(b))
            dials = warned(caplog, "cannot reach b")
            await until(lambda: warned(caplog, "cannot reach b") > dials)
            seen = a.peers._looked_at
            await until(lambda: a.peers._looked_at > seen + 0.7)  # Several tries.

    run(test())
    assert warned(caplog, "cannot reach b") == 1


def test_what_was_told_is_news_again_after_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "STOOD", 0.3)

    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            for outage in (1, 2):
                async with Wire(b.address) as wire:
                    a.meet(b, by={"b": wire.address})
                    await until(lambda: a.reaches(b))
                    await until(lambda: not a.peers._said)
                await until(lambda n=outage: warned(caplog, "cannot reach b") == n)  # type: ignore[misc]

    run(test())


def warned(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(
        text in record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING
    )


def test_members_who_are_dropped_or_refused_later() -> None:
    async def test() -> None:
        a, b, c = some(3, with_secret)
        async with instances(a, b, c):
            a.meet(b, c)
            b.meet(a)
            await until(lambda: a.reaches(b, c) and b.reaches(a))
            a.meet(b)
            await until(lambda: not a.reaches(c) and not c.reaches(a))
            a.turned_down = "b was removed from the group"
            a.meet()
            await until(lambda: b.peers.refusals)
            assert b.peers.refusals[1].detail == "b was removed from the group"
            assert (b.peers.refusals[1].code, not b.reaches(a)) == ("not-admitted", True)

    run(test())


def test_who_joins_is_connected_anew_under_its_new_name() -> None:
    """What a connection was made under holds for its whole life; so a new id needs a new one."""

    async def test() -> None:
        (a,) = some(1, with_secret)
        new = Instance(claim_of("new"), with_secret())
        async with instances(a, new):
            a.peers.meet({5: ("new", new.address)})
            await until(lambda: a.peers._links[5].task)
            new.claim = replace(new.claim, group=GROUP, member=5)
            await until(lambda: 5 in a.peers.connected)
            assert a.peers.send(5, message(1, 5))
            await until(lambda: new.heard)
            new.claim = replace(new.claim, member=6)
            await until(lambda: 5 not in a.peers.connected)
            a.peers.meet({6: ("new", new.address)})
            await until(lambda: 6 in a.peers.connected)

    run(test())


def test_the_newer_connection_of_a_member_counts() -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            first = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await first.shake_hands()
            await first.send(message(2, 1, 1))
            await until(lambda: len(a.heard) == 1)
            second = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await second.shake_hands()
            await second.send(message(2, 1, 2))
            await until(lambda: len(a.heard) == 2 and links_of(a) == 1, 1.0)  # Not by its silence.
            await first.is_left()
            assert list(a.peers.connected) == [2]
            third = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await third.shake_hands(Purpose.CALLS)  # Only to ask something.
            await second.send(message(2, 1, 3))
            await until(lambda: len(a.heard) == 3)
            for each in (second, third):
                each.sock.close()

    run(test())


def test_closing_in_the_middle_of_everything() -> None:
    """The fixture counts descriptors and tasks afterwards; here they are at work."""

    async def test() -> None:
        a, b, c = some(3, with_secret)

        async def slow(claim: Claim, params: Plain) -> Plain:
            await asyncio.Event().wait()
            return {}

        b.methods = {"slow": slow}
        async with instances(a, b, c), Wire(c.address) as wire:
            wire.hold()
            a.meet(b, c, by={"c": wire.address})
            await until(lambda: a.reaches(b) and wire.dialled)
            calls: list[Any] = [
                asyncio.ensure_future(a.peers.call(to, "slow", {}, 60.0))
                for to in (2, b.address, wire.address)
            ]
            await until(lambda: b.peers._running == 2)
            for each in range(100):
                a.peers.send(2, message(1, 2, each) + b"x" * 50_000)
            await a.peers.close()
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(each, PeerUnreachable) for each in done)
            assert not a.peers.connected
        gc.collect()

    run(test())


def test_call_refused_is_for_methods_and_peer_refused_for_callers() -> None:
    assert issubclass(PeerRefused, CallRefused)
