"""Instances that talk to each other over loopback, and strangers and wires that do them harm."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import uvloop

from lb.control.peer_frames import FrameReader, FrameWriter, Kind
from lb.control.peer_handshake import Claim, Dialer, Mode, Ourselves, Purpose
from lb.control.peers import PROTOCOL, CallRefused, Method, Peers, Plain, Security
from lb.raft.codec import encode
from lb.raft.messages import Message, MessageType

GROUP = "0af1" * 8
SECRET = b"correct horse battery staple"
PATIENCE = 5.0

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run one test on the loop that the controller has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.002)


def claim_of(name: str, member: int = 0, group: str = GROUP, **other: Any) -> Claim:
    said: dict[str, Any] = {"version": "1.0", "build": "b1", "protocol": PROTOCOL, "level": 1}
    address = other.pop("address", "127.0.0.1:1")
    return Claim(group if member else "", member, name, address, **{**said, **other})


def message(frm: int, to: int, number: int = 0) -> bytes:
    return encode(Message(MessageType.HEARTBEAT, frm, to, term=1, commit=number))


def listening(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    sock.listen(128)
    return sock


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


@dataclass
class Instance:
    """One instance: its transport, and what came through it."""

    claim: Claim
    security: Security
    peers: Peers = field(init=False)
    heard: list[tuple[int, bytes]] = field(default_factory=list)
    turned_down: str = ""  # Why it admits nobody.
    methods: dict[str, Method] = field(default_factory=dict)
    on_heard: Callable[[int, bytes], None] | None = None

    @property
    def id(self) -> int:
        return self.claim.member

    @property
    def name(self) -> str:
        return self.claim.name

    @property
    def address(self) -> str:
        return self.claim.address

    async def start(self) -> None:
        async def who(claim: Claim, params: Plain) -> Plain:
            return {"name": self.name, "asked_by": claim.name, **params}

        async def no(claim: Claim, params: Plain) -> Plain:
            raise CallRefused("never", "it does not", "ask another")

        sock = listening()
        self.claim = claim_of(
            self.name, self.id, self.claim.group, address=address_of(sock),
            protocol=self.claim.protocol,
        )  # fmt: skip
        self.methods = {"who": who, "join": no, "standing": who, **self.methods}
        self.peers = Peers(
            lambda: self.claim,
            self.security,
            self._hear,
            self.methods,
            lambda claim: self.turned_down,
            random.Random(self.id),
        )
        await self.peers.open(sock)

    def _hear(self, frm: int, data: bytes) -> None:
        self.heard.append((frm, data))
        if self.on_heard is not None:
            self.on_heard(frm, data)

    def meet(self, *others: Instance, by: Mapping[str, str] | None = None) -> None:
        """Be connected to others; `by` has other addresses for some of their names."""
        by = by or {}
        self.peers.meet({each.id: (each.name, by.get(each.name, each.address)) for each in others})

    def reaches(self, *others: Instance) -> bool:
        return set(self.peers.connected) >= {each.id for each in others}


@asynccontextmanager
async def instances(*made: Instance) -> AsyncIterator[None]:
    """Start instances, and see that nothing is left of them."""
    before = open_sockets(), asyncio.all_tasks()
    try:
        for each in made:
            await each.start()
        yield
    finally:
        for each in made:
            await each.peers.close()
    await until(lambda: open_sockets() <= before[0])
    await until(lambda: asyncio.all_tasks() <= before[1])


def open_sockets() -> set[str]:
    """Return this process's; other descriptors a loop opens once, when it likes."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # The one that lists them.
            found.add(os.readlink(fd))
    return {name for name in found if name.startswith("socket:")}


def some(count: int, security: Callable[[], Security]) -> list[Instance]:
    """Return instances of one group: a, b, c.., with ids 1, 2, 3.."""
    return [
        Instance(claim_of(name, number), security())
        for number, name in enumerate("abcdefg"[:count], 1)
    ]


def with_secret() -> Security:
    return Security.secret((SECRET,))


class Stranger:
    """A plain socket that says what it likes to an instance."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got = b""
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def to(cls, address: str, source: str = "127.0.0.1") -> Self:
        host, port = address.split(":")
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        return cls(sock)

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def hear(self, seconds: float = PATIENCE) -> bytes:
        """Return the next bytes; none when the other side has closed."""
        async with asyncio.timeout(seconds):
            try:
                data = await self._loop.sock_recv(self.sock, 1 << 16)
            except ConnectionResetError:
                data = b""
        self.got += data
        return data

    async def is_left(self, seconds: float = PATIENCE) -> None:
        """Wait until the other side closes."""
        while await self.hear(seconds):
            pass
        self.sock.close()


class Member(Stranger):
    """A stranger who knows the handshake; what it does afterwards is for the test."""

    reader: FrameReader
    writer: FrameWriter
    dialer: Dialer

    def prepare(
        self, claim: Claim, secret: bytes | None = SECRET, mode: Mode = Mode.SECRET
    ) -> Member:
        secrets = () if secret is None else (secret,)
        nonce, boot = os.urandom(32), os.urandom(8)
        self.dialer = Dialer(Ourselves(claim, mode, secrets, boot, nonce))
        self.reader, self.writer = FrameReader(), FrameWriter()
        return self

    async def frames(self) -> list[tuple[int, bytes]]:
        data = await self.hear()
        assert data, "it closed"
        return list(self.reader.feed(data))

    async def shake_hands(self, purpose: Purpose = Purpose.LINK) -> None:
        """Go through all of it; then both sides are ready."""
        await self.say(self.writer.frame(Kind.HELLO, self.dialer.hello(purpose)))
        ((kind, body),) = await self.frames()
        assert kind == Kind.WELCOME, body
        await self.say(self.writer.frame(Kind.PROOF, self.dialer.welcomed(body)))
        arrived = b""
        while len(arrived) < 5 + 32 + 5:
            arrived += await self.hear()
        for kind, body in self.reader.feed(arrived):
            if kind == Kind.PROOF:
                self.dialer.proved(body)
                keys = self.dialer.keys
                self.reader.open_up(keys.receive if keys else None)
                if keys is not None:
                    self.writer.seal_with(keys.send)
                await self.say(self.writer.frame(Kind.READY, b""))
        assert kind == Kind.READY, body

    async def send(self, data: bytes) -> None:
        await self.say(self.writer.frame(Kind.RAFT, data))


class Wire:
    """What lies between a dialer and an instance: it hands on, changes, holds, and remembers."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.sock = listening()
        self.address = address_of(self.sock)
        self.dialled: list[bytearray] = []  # What each dialer has said.
        self.answered: list[bytearray] = []
        self.change: Callable[[bool, bytes], bytes] = lambda there, data: data
        self._flowing = {True: asyncio.Event(), False: asyncio.Event()}
        self.release()
        self._tasks: set[asyncio.Task[None]] = set()

    def hold(self, *, there: bool = True, back: bool = True) -> None:
        """Hand nothing on, of what dialers say or of what is answered, and tell nobody."""
        for held, way in ((there, True), (back, False)):
            if held:
                self._flowing[way].clear()

    def release(self) -> None:
        """Hand on again."""
        for way in self._flowing.values():
            way.set()

    async def __aenter__(self) -> Wire:
        self.sock.setblocking(False)
        self._start(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.sock.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self.sock)
            near.setblocking(False)
            self._start(self._carry(near))

    async def _carry(self, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        host, port = self.target.split(":")
        with near, socket.socket() as far:
            far.setblocking(False)
            await loop.sock_connect(far, (host, int(port)))
            for log in (self.dialled, self.answered):
                log.append(bytearray())
            there = loop.create_task(self._pump(near, far, True, self.dialled[-1]))
            back = loop.create_task(self._pump(far, near, False, self.answered[-1]))
            try:
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            finally:
                there.cancel()
                back.cancel()
                await asyncio.gather(there, back, return_exceptions=True)

    async def _pump(
        self, source: socket.socket, sink: socket.socket, there: bool, log: bytearray
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 1 << 16):
            await self._flowing[there].wait()
            log += data
            await loop.sock_sendall(sink, self.change(there, data))
