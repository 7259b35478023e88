"""Messages and frames arrive whole, in order, with their descriptors; ends are noticed."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from lb import link
from lb.errors import OurError
from lb.link import Channel, Frame, Framer, Message, Stream

PATIENCE = 5.0


def on_uvloop(test: Callable[[], Any]) -> None:
    """Run one test's coroutine on the loop that the daemon runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


class Ear:
    """One end of a channel that keeps what it hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[tuple[Message, list[int]]] = []
        self.ended = False
        self.channel = Channel(sock, asyncio.get_running_loop(), self._hear, self._end)
        self._news = asyncio.Event()

    def _hear(self, message: Message, fds: list[int]) -> None:
        self.heard.append((message, fds))
        self._news.set()

    def _end(self) -> None:
        self.ended = True
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                self._news.clear()
                await self._news.wait()


def test_a_message_brings_its_descriptors() -> None:
    async def scene() -> None:
        ours, theirs = link.make_channel()
        here, there = Ear(ours), Ear(theirs)
        fd = link.seal("edition", b"seven")
        here.channel.send("edition", [fd], number=7)
        await there.until(lambda: bool(there.heard))
        [(message, fds)] = there.heard
        assert message == {"kind": "edition", "number": 7}
        assert [link.unseal(got) for got in fds] == [b"seven"]
        assert not os.get_inheritable(fds[0])
        link.close_all([fd, *fds])
        there.channel.close()
        await here.until(lambda: here.ended)

    on_uvloop(scene)


def test_messages_wait_for_a_slow_reader_with_their_descriptors() -> None:
    async def scene() -> None:
        ours, theirs = link.make_channel()
        here = Ear(ours)
        filler = "x" * 60_000
        for number in range(20):  # More than the socket takes; nobody reads yet.
            fd = link.seal("n", str(number).encode())
            here.channel.send("filler", [fd], number=number, filler=filler)
            os.close(fd)
        there = Ear(theirs)
        await there.until(lambda: len(there.heard) == 20)
        assert [message["number"] for message, _ in there.heard] == list(range(20))
        assert [int(link.unseal(fds[0])) for _, fds in there.heard] == list(range(20))
        for _, fds in there.heard:
            link.close_all(fds)
        here.channel.close()
        there.channel.close()

    on_uvloop(scene)


def test_a_peer_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(link, "CHANNEL_QUEUE_MAX", 3)
        ours, theirs = link.make_channel()
        here = Ear(ours)
        for _ in range(30):
            here.channel.send("filler", filler="x" * 60_000)
        assert here.ended
        theirs.close()

    on_uvloop(scene)


def test_what_was_said_before_the_end_is_heard() -> None:
    async def scene() -> None:
        ours, theirs = link.make_channel()
        there = Ear(theirs)
        here = Ear(ours)
        here.channel.send("hello", slot=1)
        here.channel.close()
        await there.until(lambda: there.ended)
        assert [message["slot"] for message, _ in there.heard] == [1]
        there.channel.send("late")  # To nobody: no error.

    on_uvloop(scene)


def test_a_message_past_its_bounds_is_our_fault() -> None:
    async def scene() -> None:
        ours, theirs = link.make_channel()
        here = Ear(ours)
        with pytest.raises(OurError):
            here.channel.send("big", text="x" * link.MESSAGE_BYTES_MAX)
        here.channel.close()
        theirs.close()

    on_uvloop(scene)


def test_a_sealed_memory_cannot_be_written() -> None:
    fd = link.seal("x", b"as it is")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"A", 0)
    assert link.unseal(fd) == link.unseal(fd) == b"as it is"
    os.close(fd)


@given(
    st.lists(st.tuples(st.sampled_from(["part", "commit"]), st.binary(max_size=300)), max_size=8),
    st.integers(1, 64),
)
def test_frames_survive_any_cut(frames: list[tuple[str, bytes]], step: int) -> None:
    sent = [Frame(kind, {"name": f"n{i}"}, body) for i, (kind, body) in enumerate(frames)]
    data = b"".join(frame.pack() for frame in sent)
    framer = Framer()
    got = [frame for i in range(0, len(data), step) for frame in framer.feed(data[i : i + step])]
    assert got == sent


def test_a_frame_past_its_bound_is_refused() -> None:
    with pytest.raises(OurError):
        list(Framer().feed(b"\xff" * 8))


def test_a_stream_carries_frames_and_tells_its_end() -> None:
    async def scene() -> None:
        ours, theirs = link.make_stream()
        got: list[Frame] = []
        arrived, ended = asyncio.Event(), asyncio.Event()

        def hear(_: Stream, frame: Frame) -> None:
            got.append(frame)
            if frame.kind == "commit":
                arrived.set()

        there = await link.open_stream(theirs, hear, lambda _: ended.set())
        here = await link.open_stream(ours, hear)
        here.send("part", b"x" * 1_000_000, name="upstream/api/0")
        here.send("commit", number=3)
        async with asyncio.timeout(PATIENCE):
            await arrived.wait()
            here.close()
            await ended.wait()
        assert got[0] == Frame("part", {"name": "upstream/api/0"}, b"x" * 1_000_000)
        assert got[1] == Frame("commit", {"number": 3})
        there.send("live", number=3)  # To nobody: no error.

    on_uvloop(scene)
