"""What reaches a member's port without being one of us, and members who do not keep the rules."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers_kit import (
    GROUP,
    SECRET,
    Instance,
    Member,
    Stranger,
    Wire,
    claim_of,
    instances,
    listening,
    message,
    run,
    some,
    until,
    with_secret,
)

from lb.control import peer_entrance, peers
from lb.control.peer_frames import Kind
from lb.control.peer_handshake import Mode, Purpose
from lb.control.peers import PeerRefused, PeerTimeout, Security
from lb.errors import AccordError, OperatorError
from lb.raft.codec import BadMessageError

Bend = Callable[[bytes], bytes]


BODIES = [
    message(2, 1),
    message(2, 1)[:-1],
    message(1, 2),
    b"\1\0\0\0{}",
    b"\1\0\0\0[",
    b"\1\0\0\0\3who{}",
    b'\1\0\0\0\3who{"x":1e999}',
    b'\1\0\0\0{"code":1}',
    b'{"code":"x","detail":"y"}',
    b"\0\0\0\0\0\0\xf0\xff",  # As a time: minus infinity.
]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,  # TLS.
        b"\xff\xff\xff\xff",  # Four bytes suffice: nothing is made room for.
        b"\0\0\0\0",
        b"\1\0\0\0\x10",  # A message before any handshake.
        b"\x05\0\0\0\1abcd",
        b"\x02\0\0\0\3x",  # A proof of nothing.
    ],
)
def test_who_does_not_speak_as_members_do(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            for _ in range(3):
                stranger = await Stranger.to(a.address)
                await stranger.say(said)
                await stranger.is_left()
            assert a.heard == []

    run(test())
    assert len(warnings_in(caplog)) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=120), max_size=5))
def test_any_garbage(pieces: list[bytes]) -> None:
    """Refused, or waited on: a half frame is not held against anybody until its time is over."""

    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            stranger = await Stranger.to(a.address)
            try:
                for piece in pieces:
                    await stranger.say(piece)
            except OSError:
                pieces.clear()  # It has closed already.
            stranger.sock.close()
            assert a.heard == []

    run(test())


def test_who_says_nothing_or_half_is_timed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peer_entrance, "GREETING_SECONDS", 0.3)

    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            silent, halfway, unproved = [await Stranger.to(a.address) for _ in "123"]
            await halfway.say(b"\x50\0\0\0\1accrdgrp")
            member = Member(unproved.sock).prepare(claim_of("b", 2))
            await member.say(member.writer.frame(Kind.HELLO, member.dialer.hello(Purpose.LINK)))
            for each in (silent, halfway, unproved):
                await each.is_left()

    run(test())
    assert len(warnings_in(caplog)) == 1


def test_one_who_says_it_byte_by_byte_has_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_entrance, "GREETING_SECONDS", 0.3)

    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            member = (await Member.to(a.address)).prepare(claim_of("b", 2))
            hello = member.writer.frame(Kind.HELLO, member.dialer.hello(Purpose.LINK))
            left = asyncio.ensure_future(member.is_left())
            deadline = asyncio.get_running_loop().time() + 5.0
            for byte in hello[:-1]:
                if left.done() or asyncio.get_running_loop().time() > deadline:
                    break
                with_more = bytes([byte])
                try:
                    await member.say(with_more)
                except OSError:
                    break
                seen = a.peers._loop.time()
                await until(lambda seen=seen: a.peers._loop.time() > seen + 0.005)  # type: ignore[misc]
            await left

    run(test())


def test_the_unknown_are_bounded_and_members_come_in_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            sources = ["127.0.0.2"] * 16 + ["127.0.0.3"] * 15
            held = [await Stranger.to(a.address, source) for source in sources]
            await until(lambda: len(a.peers._entrance._unknown) == 31)
            extra = await Stranger.to(a.address, "127.0.0.2")
            await extra.is_left()  # That address has had its share.
            member = (await Member.to(a.address, "127.0.0.4")).prepare(claim_of("b", 2))
            await member.shake_hands()
            await until(lambda: 2 in a.peers.connected)
            last = await Stranger.to(a.address, "127.0.0.5")
            await until(lambda: len(a.peers._entrance._unknown) == 32)
            extra = await Stranger.to(a.address, "127.0.0.6")
            await extra.is_left()
            for each in (*held, last):
                each.sock.close()
            await until(lambda: not a.peers._entrance._unknown)
            again = (await Member.to(a.address, "127.0.0.6")).prepare(claim_of("c", 3))
            await again.shake_hands()
            for each in (member, again):
                each.sock.close()

    run(test())
    assert len(warnings_in(caplog)) == 2


def test_new_connections_have_a_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peer_entrance, "BURST_MAX", 5)
    monkeypatch.setattr(peer_entrance, "RATE", 0.01)

    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            for _ in range(5):
                member = (await Member.to(a.address)).prepare(claim_of("b", 2))
                await member.shake_hands()
                member.sock.close()
            for _ in range(3):
                await (await Stranger.to(a.address)).is_left()
            other = (await Member.to(a.address, "127.0.0.2")).prepare(claim_of("b", 2))
            await other.shake_hands()
            other.sock.close()

    run(test())
    assert ["a second" in text for text in warnings_in(caplog)] == [True]


def test_another_secret(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        b = Instance(claim_of("b", 2), Security.secret((b"another",)))
        async with instances(a, b):
            a.meet(b)
            b.meet(a)
            for asks, other in ((a, b), (b, a)):
                for _ in range(3):
                    with pytest.raises(PeerRefused) as refused:
                        await asks.peers.call(other.address, "who", {}, 5.0)
                    assert refused.value.code == "wrong-secret"
            assert not a.peers.connected
            assert not a.peers.refusals, "what nobody proved is not to be believed"

    run(test())
    # Each side: it refused 127.0.0.1, and the address that it dialled refused it.
    assert len(warnings_in(caplog)) == 4
    assert (
        sum("127.0.0.1, which says it is b is refused" in text for text in warnings_in(caplog)) == 1
    )


@pytest.mark.parametrize("theirs", [Security.none, lambda: Security.secret((b"x",))])
def test_one_side_guarded_otherwise(theirs: Callable[[], Security]) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        b = Instance(claim_of("b", 2), theirs())
        async with instances(a, b):
            for asks, other in ((a, b), (b, a)):
                with pytest.raises(PeerRefused) as refused:
                    await asks.peers.call(other.address, "who", {}, 5.0)
                assert refused.value.code in ("security", "wrong-secret")

    run(test())


def test_a_handshake_that_was_overheard_is_of_no_use() -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            async with Wire(b.address) as wire:
                a.meet(b, by={"b": wire.address})
                await until(lambda: a.reaches(b))
                a.peers.send(2, message(1, 2, 5))
                await until(lambda: b.heard)
                a.meet()
                await until(lambda: not b.reaches(a))
            b.heard.clear()
            replay = await Stranger.to(b.address)
            await replay.say(bytes(wire.dialled[0]))
            await replay.is_left()
            assert b.heard == []
            assert not b.peers.connected

    run(test())


def test_a_dialler_is_not_fooled_by_an_echo() -> None:
    """Whoever answers with our own words, or with an old answer, gets nothing from us."""

    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b):
            async with Wire(b.address) as wire:
                assert await a.peers.call(wire.address, "who", {}, 5.0)
            said = [b"", bytes(wire.answered[0])]
            sock = listening()
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            address = f"127.0.0.1:{sock.getsockname()[1]}"
            for old in said:
                call = asyncio.ensure_future(a.peers.call(address, "who", {"our": "words"}, 5.0))
                near, _ = await loop.sock_accept(sock)
                near.setblocking(False)
                heard = await loop.sock_recv(near, 1 << 16)
                await loop.sock_sendall(near, old or heard[:4] + b"\2" + heard[5:])
                while data := await loop.sock_recv(near, 1 << 16):
                    heard += data
                with pytest.raises(PeerRefused) as refused:
                    await call
                assert refused.value.code == ("wrong-secret" if old else "ourselves")
                assert b"words" not in heard
                near.close()
            sock.close()

    run(test())


def flip(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


@pytest.mark.parametrize(
    "bend",
    [
        flip,
        lambda data: data + data,  # Said again.
        lambda data: data[len(data) // 2 :] + data[: len(data) // 2],  # In another order.
        lambda data: data[len(data) // 2 :],  # One is missing.
        lambda data: b"\xff" * 4 + data[4:],
        lambda data: data[:4] + b"\x13" + data[5:],  # Another kind.
        lambda data: os.urandom(len(data)),
    ],
)
def test_frames_bent_on_the_way(bend: Bend, caplog: pytest.LogCaptureFixture) -> None:
    """The wire is asked twice for the same, so that it shows one line and not one a try."""

    async def test() -> None:
        a, b = some(2, with_secret)
        async with instances(a, b), Wire(b.address) as wire:
            a.peers._loop.time()
            member = (await Member.to(wire.address)).prepare(claim_of("m", 9))
            await member.shake_hands()
            await until(lambda: 9 in b.peers.connected)
            wire.change = lambda there, data: bend(data) if there else data
            two = [member.writer.frame(Kind.RAFT, message(9, 2, number)) for number in (1, 2)]
            assert len(two[0]) == len(two[1])
            await member.say(two[0] + two[1])
            await member.is_left()
            await until(lambda: not b.peers.connected)
            assert b.heard in ([], [(9, message(9, 2, 1))], [(9, message(9, 2, n)) for n in (1, 2)])
            assert len(b.heard) < 2 or bend(b"12") == b"1212"

    run(test())
    assert len(warnings_in(caplog)) == 1


def test_frames_of_one_connection_put_into_another(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            b = (await Member.to(a.address)).prepare(claim_of("b", 2))
            c = (await Member.to(a.address)).prepare(claim_of("c", 3))
            for each in (b, c):
                await each.shake_hands()
            await c.say(b.writer.frame(Kind.RAFT, message(3, 1)))
            await c.is_left()
            assert a.heard == []
            await until(lambda: list(a.peers.connected) == [2])
            b.sock.close()

    run(test())
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize(
    "frames",
    [
        [(Kind.RAFT, message(3, 1))],  # In another's name.
        [(Kind.RAFT, message(2, 3))],  # To another.
        [(Kind.RAFT, b"")],
        [(Kind.RAFT, message(2, 1)[:40])],
        [(Kind.HELLO, b"")],
        [(Kind.CALL, b"")],
        [(Kind.CALL, b"\0\0\0\0\3who{")],
        [(Kind.CALL, b"\0\0\0\0\3who[]")],
        [(Kind.ANSWER, b"\0")],
        [(99, b"")],
    ],
)
def test_a_member_that_does_not_keep_the_rules(
    frames: list[tuple[int, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            for _ in range(2):
                member = (await Member.to(a.address)).prepare(claim_of("b", 2))
                await member.shake_hands(Purpose.CALLS if frames[0][0] == 99 else Purpose.LINK)
                for kind, body in frames:
                    await member.say(member.writer.frame(kind, body))
                await member.is_left()
                assert a.heard == []

    run(test())
    (text,) = warnings_in(caplog)
    assert text.startswith("b is refused: ")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*Kind, 0, 99, 255]),
            st.one_of(st.binary(max_size=60), st.sampled_from(BODIES)),
        ),
        max_size=6,
    )
)
def test_whatever_a_member_says_is_foreseen(frames: list[tuple[int, bytes]]) -> None:
    """It is heard, passed over or ends the connection: nothing of it is a bug of ours."""
    bugs: list[dict[str, object]] = []

    async def test() -> None:
        (a,) = some(1, with_secret)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        async with instances(a):
            member = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await member.shake_hands()
            await until(lambda: 2 in a.peers.connected)
            asked = asyncio.ensure_future(answer_of(a))
            await member.say(b"".join(member.writer.frame(*frame) for frame in frames))
            member.sock.shutdown(socket.SHUT_WR)
            await member.is_left()
            assert isinstance(await asked, dict | AccordError)
            assert all(frm == 2 for frm, _ in a.heard)

    run(test())
    assert not bugs


async def answer_of(instance: Instance) -> object:
    try:
        return await instance.peers.call(2, "who", {}, 5.0)
    except AccordError as error:
        return error


def test_a_connection_for_calls_carries_no_messages(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            member = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await member.shake_hands(Purpose.CALLS)
            await member.send(message(2, 1))
            await member.is_left()
            assert a.heard == []

    run(test())
    assert len(warnings_in(caplog)) == 1


def test_answers_that_nobody_waits_for_are_passed_over() -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        async with instances(a):
            member = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await member.shake_hands()
            for kind in (Kind.ANSWER, Kind.FAILURE):
                await member.say(member.writer.frame(kind, b"\1\0\0\0{}"))
            await member.say(member.writer.frame(Kind.PONG, b"short"))
            await member.send(message(2, 1))
            await until(lambda: a.heard)
            member.sock.close()

    run(test())


def test_a_message_that_the_replica_cannot_read_ends_the_connection() -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)

        def unreadable(frm: int, data: bytes) -> None:
            raise BadMessageError("no message")

        a.on_heard = unreadable
        async with instances(a):
            member = (await Member.to(a.address)).prepare(claim_of("b", 2))
            await member.shake_hands()
            await member.send(message(2, 1))
            await member.send(message(2, 1))
            await member.is_left()
            assert len(a.heard) == 1

    run(test())


def test_another_group_and_ids_that_are_not_who_they_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        b = Instance(claim_of("b", 2, "beef" * 8), with_secret())
        c = Instance(claim_of("c", 4), with_secret())
        async with instances(a, b, c):
            a.peers.meet({2: ("b", b.address), 3: ("c", c.address)})
            await until(lambda: len(warnings_in(caplog)) >= 3)
            assert not a.peers.connected

    run(test())
    said = "\n".join(warnings_in(caplog))
    assert f"b is of group {'beef' * 8}, a of group {GROUP}" in said or (
        f"a is of group {GROUP}, b of group {'beef' * 8}" in said
    )
    assert "is c, id 4, and should be c, id 3" in said


def test_a_removed_member_is_told_so() -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        a.turned_down = "b (id 2) was removed from the group"
        async with instances(a, b):
            b.meet(a)
            await until(lambda: b.peers.refusals)
            assert b.peers.refusals[1].detail == a.turned_down
            with pytest.raises(PeerRefused, match="was removed"):
                await b.peers.call(a.address, "standing", {}, 5.0)

    run(test())


def test_without_tls_or_secret_nobody_goes_beyond_this_machine() -> None:
    async def test() -> None:
        (a,) = some(1, Security.none)
        async with instances(a):
            with pytest.raises(OperatorError, match="neither TLS nor a secret"):
                await a.peers.open(listening("0.0.0.0"))
            for address in ("192.0.2.1:7000", "[2001:db8::1]:7000"):
                with pytest.raises(OperatorError, match="beyond this machine"):
                    await a.peers.call(address, "who", {}, 5.0)
            a.peers.meet({2: ("b", "192.0.2.1:7000")})
            await until(lambda: a.peers._said)
            stranger = (await Member.to(a.address)).prepare(
                claim_of("b", 2), secret=None, mode=Mode.NONE
            )
            assert a.peers._entrance._turned_away("192.0.2.1")
            stranger.sock.close()

    run(test())


def test_callers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CALLERS_MAX", 2)

    async def test() -> None:
        (a,) = some(1, with_secret)
        fresh = Instance(claim_of("new"), with_secret())
        async with instances(a, fresh):
            held = []
            for _ in range(2):
                member = (await Member.to(a.address)).prepare(claim_of("x"), SECRET)
                await member.shake_hands(Purpose.CALLS)
                held.append(member)
            with pytest.raises(PeerRefused) as refused:
                await fresh.peers.call(a.address, "who", {}, 5.0)
            assert refused.value.code == "busy"
            for member in held:
                member.sock.close()
            await until(lambda: not a.peers._all)
            assert await fresh.peers.call(a.address, "who", {}, 5.0)

    run(test())


def test_an_address_where_nobody_answers() -> None:
    async def test() -> None:
        (a,) = some(1, with_secret)
        deaf = listening()
        async with instances(a):
            with pytest.raises(PeerTimeout):
                await a.peers.call(f"127.0.0.1:{deaf.getsockname()[1]}", "who", {}, 0.1)
        deaf.close()

    run(test())
