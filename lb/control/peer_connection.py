"""
One connection between two members: its handshake, then messages, calls and proof of life.

Both ends are alike once they are open. Each sends a ping twice a second, whatever else it sends,
and answers those it gets; so each hears something all the time, and silence means that the link
or the other process is dead. What is sent leaves in the same turn of the loop, and all frames of
one read are handed on in that read, in order.

`Peers` decides everything: whom to admit, what a method is, when silence has been too long.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol, cast

import orjson

from lb.control.peer_frames import (
    BODY_BYTES_MAX,
    BadFrameError,
    FrameReader,
    FrameWriter,
    Kind,
)
from lb.control.peer_handshake import (
    Answerer,
    Claim,
    Dialer,
    Mode,
    Purpose,
    Refusal,
    read_refusal,
)
from lb.control.peer_security import names_of
from lb.errors import AccordError, OurError

Plain = dict[str, Any]

QUEUE_BYTES_MAX: Final = 8 << 20  # That wait for a peer who reads slowly.
CALLS_MAX: Final = 256  # Of ours on one connection, unanswered.
METHOD_CHARS_MAX: Final = 64

_CALL: Final = struct.Struct("<IB")  # number, length of the method's name
_NUMBER: Final = struct.Struct("<I")
_NUMBERS: Final = 1 << 32
_TIME: Final = struct.Struct("<d")


class CallRefused(AccordError):  # noqa: N818  # A method's answer, not a fault.
    """A method will not do what it was asked. `code` is one word for programs."""

    def __init__(self, code: str, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint)
        self.code = code
        self.detail = detail


class PeerRefused(CallRefused):
    """A peer, or the way to it, said no: at the handshake, or to a call."""


class PeerUnreachable(AccordError):  # noqa: N818  # What it says is a state.
    """No way to a peer. `sent`: the call had left, so that it may have been carried out."""

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class PeerTimeout(AccordError):  # noqa: N818  # The same.
    """No answer in time: it may have been carried out."""


class State(Enum):
    """How far a connection is."""

    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


class House(Protocol):
    """What a connection asks of whoever keeps it, and tells it."""

    def made(self, connection: PeerConnection) -> None:
        """Keep it until `over` is done."""

    def admit(self, connection: PeerConnection) -> None:
        """Judge a peer whose proof fitted. Refusal: it is not to be."""

    def opened(self, connection: PeerConnection) -> None:
        """Hear that both sides are ready."""

    def heard(self, connection: PeerConnection, data: bytes) -> None:
        """Take a message of Raft's. AccordError: it was none, which ends the connection."""

    def called(self, connection: PeerConnection, number: int, method: str, params: Plain) -> None:
        """Start a call, which ends in `answer` or `fail_call`."""

    def ended(self, connection: PeerConnection, reason: Refusal | None) -> None:
        """Hear, once, that it is over, and why if somebody is at fault."""


class PeerConnection(asyncio.Protocol):
    """
    One end. `opening` is done when it is open or ended, `finished` when it has ended, `over` when
    its socket is closed too; none of them with an error.

    Groups of methods: what the loop calls, what `Peers` and methods call, what frames do.
    """

    def __init__(self, house: House, side: Dialer | Answerer, purpose: Purpose, where: str) -> None:
        self._house = house
        self._side = side
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._writer = FrameWriter()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, asyncio.Future[Plain]] = {}
        self._call_number = 0
        self._held: list[bytes] | None = None  # Frames after the first of this turn.
        self._held_bytes = 0
        self._written = 0  # Bytes given to the transport,
        self._left = 0  # and how many of them had left at the last look,
        self._moved_at = self._loop.time()  # when that had last changed.
        self._pinged_at = 0.0
        self._purpose = purpose
        self._acts = self._greeting_acts()
        self.state = State.GREETING
        self.reason: Refusal | None = None
        self.proved = False  # Whether the other side has, so that its words may be believed.
        self.where = where
        self.names: tuple[str, ...] = ()  # Of its certificate, where there is TLS.
        self.opening: asyncio.Future[None] = self._loop.create_future()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self.born = self._loop.time()
        self.last_byte = self.born
        self.last_heard = self.born
        self.rtt = 0.0
        self.ended_at = 0.0

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        # uvloop's transports have the methods of asyncio's and none of their base classes.
        self._transport = cast(asyncio.Transport, transport)
        if self.is_closed():
            self._transport.abort()  # Whoever wanted it has given up meanwhile.
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.names = names_of(tls.getpeercert() or {})
        self._house.made(self)
        if isinstance(self._side, Dialer):
            self._write(Kind.HELLO, self._side.hello(self._purpose))

    def data_received(self, data: bytes) -> None:
        """Hand on every frame that is whole now."""
        if self.is_closed():
            return
        self.last_byte = self._loop.time()
        try:
            for kind, body in self._reader.feed(data):
                act = self._acts.get(kind)
                if act is None:
                    raise Refusal("garbage", f"a frame of kind {kind} where none belongs")
                self.last_heard = self.last_byte
                act(body)
                if self.is_closed():
                    return
        except Refusal as refusal:
            self.refuse(refusal)
        except BadFrameError as error:
            self.end(Refusal("bad-frame", error.message))
        except AccordError as error:
            self.end(Refusal("bad-message", error.message))

    def eof_received(self) -> bool:
        """Close: half of a connection is of no use."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits."""
        if isinstance(error, ssl.SSLError) and self.state is State.GREETING:
            # The other side of TLS likes our certificate less than we like its.
            self.end(Refusal("lost", f"the connection broke: {error}"))
        self.end(self.reason)
        self._transport = None
        if not self.over.done():
            self.over.set_result(None)

    # What Peers and methods call

    @property
    def ours(self) -> Claim:
        """What we claimed."""
        return self._side.ours.claim

    @property
    def peer(self) -> Claim:
        """What the other side claims; verified once it is open."""
        assert self._side.peer is not None, "asked before the greetings were exchanged"
        return self._side.peer

    @property
    def boot(self) -> bytes:
        """Which life of the peer this is: no two processes have the same."""
        return self._side.boot

    @property
    def greeted(self) -> bool:
        """Whether `peer` is known."""
        return self._side.peer is not None

    def is_closed(self) -> bool:
        """Whether it is over for us, though what was sent last may be on its way."""
        return self.state is State.CLOSED

    @property
    def dialled(self) -> bool:
        """Whether it was us who connected."""
        return isinstance(self._side, Dialer)

    @property
    def purpose(self) -> Purpose:
        """What its dialer wants it for."""
        return self._side.purpose

    @property
    def secret(self) -> bytes | None:
        """The secret that it was opened with."""
        return self._side.secret

    @property
    def of_one_group(self) -> bool:
        """Whether both ends are members of the same group."""
        return self.ours.is_member and self.peer.is_member and self.ours.group == self.peer.group

    @property
    def waiting(self) -> int:
        """Bytes that have not left."""
        if self._transport is None:
            return 0
        return self._held_bytes + self._transport.get_write_buffer_size()

    def send(self, data: bytes) -> bool:
        """Send a message of Raft's. False: it is closed, or too much waits already."""
        assert len(data) <= BODY_BYTES_MAX, "messages keep to a bound of their own"
        if self.state is not State.OPEN or self.waiting + len(data) > QUEUE_BYTES_MAX:
            return False
        self._write(Kind.RAFT, data)
        return True

    def ping(self) -> None:
        """Ask whether anybody is there."""
        if self.state is State.OPEN and self.waiting < QUEUE_BYTES_MAX:
            self._pinged_at = time.monotonic()
            self._write(Kind.PING, _TIME.pack(self._pinged_at))

    def stuck_for(self, now: float) -> float:
        """How long the peer has taken nothing of what waits for it."""
        left = self._written - self.waiting
        if left != self._left or left == self._written:
            self._left, self._moved_at = left, now
        return now - self._moved_at

    async def call(self, method: str, params: Plain) -> Plain:
        """Have the other side carry out a method. It has no time limit of its own."""
        body = orjson.dumps(params)
        name = method.encode()
        assert len(name) <= METHOD_CHARS_MAX, "methods are named in the program"
        if len(body) > BODY_BYTES_MAX - _CALL.size - METHOD_CHARS_MAX:
            raise OurError(f"a call of {method} with {len(body)} bytes")
        if self.state is not State.OPEN:
            raise PeerUnreachable(f"the connection to {self.where} is closed")
        if len(self._calls) >= CALLS_MAX or self.waiting + len(body) > QUEUE_BYTES_MAX:
            raise PeerUnreachable(f"{self.where} has too much to answer already")
        self._call_number = number = (self._call_number + 1) % _NUMBERS
        answer: asyncio.Future[Plain] = self._loop.create_future()
        self._calls[number] = answer
        self._write(Kind.CALL, _CALL.pack(number, len(name)) + name + body)
        try:
            return await answer
        finally:
            self._calls.pop(number, None)

    def answer(self, number: int, result: Plain) -> None:
        """Answer a call."""
        body = orjson.dumps(result)
        if len(body) + _NUMBER.size > BODY_BYTES_MAX:
            self.fail_call(number, CallRefused("too-large", f"an answer of {len(body)} bytes"))
        elif self.waiting + len(body) > QUEUE_BYTES_MAX:
            self.end(Refusal("slow", "it does not read the answers to its calls"))
        elif self.state is State.OPEN:
            self._write(Kind.ANSWER, _NUMBER.pack(number) + body)

    def fail_call(self, number: int, why: CallRefused) -> None:
        """Answer a call with a refusal."""
        if self.state is State.OPEN and self.waiting < QUEUE_BYTES_MAX:
            text = Refusal(why.code, why.message, why.hint).to_bytes()
            self._write(Kind.FAILURE, _NUMBER.pack(number) + text)

    def refuse(self, refusal: Refusal) -> None:
        """End it and tell the other side why, as far as it still listens."""
        if self.state is not State.CLOSED and not refusal.heard:
            self._write(Kind.REFUSED, refusal.to_bytes())
        self.end(refusal)

    def end(self, reason: Refusal | None = None) -> None:
        """Close after what was sent has left. Nothing that arrives from now on is looked at."""
        if self.state is State.CLOSED:
            return
        self.state, self.reason, self.ended_at = State.CLOSED, reason, self._loop.time()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(PeerUnreachable(f"{self.where} is gone", sent=True))
        self._calls.clear()
        if self._transport is not None:
            self._let_go()
            self._transport.close()
        self._house.ended(self, reason)
        self.finished.set_result(None)
        if not self.opening.done():
            self.opening.set_result(None)

    def abort(self) -> None:
        """Let go at once."""
        self.end(self.reason)
        if self._transport is not None:
            self._transport.abort()

    def give_up(self) -> None:
        """Let go of one that was still being made: the loop says no more of it."""
        self.abort()
        if not self.over.done():
            self.over.set_result(None)

    # What frames do

    def _greeting_acts(self) -> dict[int, Callable[[bytes], None]]:
        """What may come while we make sure of each other."""
        if isinstance(self._side, Dialer):
            return {Kind.WELCOME: self._welcomed, Kind.REFUSED: self._refused}
        return {Kind.HELLO: self._hello, Kind.REFUSED: self._refused}

    def _hello(self, body: bytes) -> None:
        assert isinstance(self._side, Answerer)
        welcome = self._side.greeted(body)
        self._check_name()
        self._write(Kind.WELCOME, welcome)
        self._acts = {Kind.PROOF: self._dialer_proved, Kind.REFUSED: self._refused}

    def _welcomed(self, body: bytes) -> None:
        assert isinstance(self._side, Dialer)
        proof = self._side.welcomed(body)
        self._check_name()
        self._write(Kind.PROOF, proof)
        self._acts = {Kind.PROOF: self._answerer_proved, Kind.REFUSED: self._refused}

    def _dialer_proved(self, body: bytes) -> None:
        assert isinstance(self._side, Answerer)
        self._write(Kind.PROOF, self._side.proved(body))
        self._get_ready()

    def _answerer_proved(self, body: bytes) -> None:
        assert isinstance(self._side, Dialer)
        self._side.proved(body)
        self._get_ready()

    def _check_name(self) -> None:
        """With TLS, hold the claim against the certificate, before anything else of it is used."""
        if self._side.ours.mode is Mode.TLS and self.peer.name not in self.names:
            raise Refusal(
                "wrong-name",
                f"the certificate is for {', '.join(self.names) or 'nobody'}, not {self.peer.name}",
                "`lb group cert` makes one for each member's name",
            )

    def _get_ready(self) -> None:
        """Both have proved themselves: seal, and judge whether we want to know each other."""
        self.proved = True
        keys = self._side.keys
        self._reader.open_up(None if keys is None else keys.receive)
        if keys is not None:
            self._writer.seal_with(keys.send)
        self._acts = {Kind.READY: self._ready, Kind.REFUSED: self._refused}
        self._house.admit(self)
        self._write(Kind.READY, b"")

    def _ready(self, body: bytes) -> None:
        self._acts = {
            Kind.RAFT: self._raft,
            Kind.PING: self._ping,
            Kind.PONG: self._pong,
            Kind.CALL: self._call,
            Kind.ANSWER: self._answered,
            Kind.FAILURE: self._failed,
            Kind.REFUSED: self._refused,
        }
        self.state = State.OPEN
        self._house.opened(self)
        if not self.opening.done():
            self.opening.set_result(None)

    def _refused(self, body: bytes) -> None:
        raise read_refusal(body)

    def _raft(self, body: bytes) -> None:
        self._house.heard(self, body)

    def _ping(self, body: bytes) -> None:
        if self.waiting < QUEUE_BYTES_MAX:
            self._write(Kind.PONG, body)

    def _pong(self, body: bytes) -> None:
        if body == _TIME.pack(self._pinged_at):  # Else it answers an older one.
            self.rtt = time.monotonic() - self._pinged_at

    def _call(self, body: bytes) -> None:
        if len(body) < _CALL.size:
            raise BadFrameError("a call cut short")
        number, size = _CALL.unpack_from(body)
        name = body[_CALL.size : _CALL.size + size]
        params = _mapping(body[_CALL.size + size :])
        self._house.called(self, number, name.decode("ascii", "replace"), params)

    def _answered(self, body: bytes) -> None:
        result = _mapping(body[_NUMBER.size :])
        answer = self._waiting_for(body)
        if answer is not None:
            answer.set_result(result)

    def _failed(self, body: bytes) -> None:
        answer = self._waiting_for(body)
        if answer is not None:
            why = read_refusal(body[_NUMBER.size :])
            answer.set_exception(PeerRefused(why.code, why.message, why.hint))

    def _waiting_for(self, body: bytes) -> asyncio.Future[Plain] | None:
        """Find who waits for an answer; nobody does when it comes too late."""
        if len(body) < _NUMBER.size:
            raise BadFrameError("an answer cut short")
        answer = self._calls.pop(_NUMBER.unpack_from(body)[0], None)
        return None if answer is None or answer.done() else answer

    def _write(self, kind: int, body: bytes) -> None:
        """Send the first frame of a turn at once, and all that follow it in that turn together:
        the loop would make a call to the kernel for each."""
        if self._transport is None:
            return
        frame = self._writer.frame(kind, body)
        self._written += len(frame)
        if self._held is not None:
            self._held.append(frame)
            self._held_bytes += len(frame)
        else:
            self._transport.write(frame)
            self._held = []
            self._loop.call_soon(self._let_go)

    def _let_go(self) -> None:
        held, self._held, self._held_bytes = self._held, None, 0
        if held and self._transport is not None:
            self._transport.write(b"".join(held))


def _mapping(text: bytes) -> Plain:
    try:
        plain = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadFrameError("a call or an answer that is not JSON") from None
    if not isinstance(plain, dict):
        raise BadFrameError("a call or an answer that is not an object")
    return plain
