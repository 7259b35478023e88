"""
One client's connection: reads requests, one at a time, and writes their answers in order.

A client may send requests ahead of the answers. Only the oldest is looked at; the rest waits
as octets, read no further than one read may overshoot, until the exchange before has ended.
Methods are grouped by who calls them: the loop, the exchange, the listener.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from copy import copy
from enum import Enum
from fcntl import ioctl
from time import monotonic
from typing import Final, Protocol

from lb.errors import ClientError
from lb.http1.framing import BodyReader, CloseBody, FramingError, Octets, request_body
from lb.http1.head import (
    END_OF_HEAD,
    HEAD_REMEMBERED_MAX,
    RequestHead,
    read_request_head,
)
from lb.http1.peers import UNIX, direct
from lb.http1.proxy_protocol import Ends, write_proxy_header
from lb.http1.replies import Reply
from lb.model import Listener
from lb.proxy.deadlines import NEVER, Watched
from lb.proxy.door import TURNED_AWAY_MAX, Door
from lb.proxy.exchange import Exchange
from lb.proxy.plan import WRITE_HIGH, WRITE_LOW, WorkerState
from lb.proxy.tunnel import keep_alive

REQUESTS_MAX: Final = 1000  # that one connection carries
LINGER_S: Final = 2.0  # of silence, until we read no further after the last answer
LINGER_MAX_S: Final = 30.0  # in all: many a client reads only once it has sent everything
LOOK_S: Final = 0.5  # how often we ask whether a client is there that we don't read from
CLOSE_S: Final = 30.0  # for the last answer to leave
CLOSES_NOW_AFTER_S: Final = 0.5  # of idling, while draining
RATE_GRACE_S: Final = 5.0  # of `limits.body_rate` that a client may be behind with
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")
_RESET: Final = struct.pack("ii", 1, 0)


class Phase(Enum):
    """What the next octets from the client are."""

    IDLE = "idle"  # the first of a request
    HEAD = "head"  # more of a head
    BODY = "body"
    AHEAD = "ahead"  # of requests whose turn has not come
    LINGER = "linger"  # nothing that we look at
    CLOSED = "closed"


# Looked up once: see `backend_connection`.
_IDLE, _HEAD, _BODY, _AHEAD = Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.AHEAD
_LINGER, _CLOSED = Phase.LINGER, Phase.CLOSED


class Desk(Protocol):
    """The switchboard, as a client connection sees it."""

    worker: WorkerState

    def open_exchange(self, client: ClientConnection, head: RequestHead, started: float) -> None:
        """Begin the exchange of a request; the client has been told of it already."""
        ...

    def refuse(self, client: ClientConnection, reply: Reply, octets: bytes) -> bytes:
        """Return the answer to what is no request, counted and logged."""
        ...

    def closed(self, client: ClientConnection) -> None:
        """Forget a connection."""
        ...


class ClientConnection:
    """Stands between one client's socket and its exchanges. Nothing in it awaits."""

    __slots__ = (
        "_body",
        "_buffer",
        "_desk",
        "_due",
        "_half_closed",
        "_head",
        "_head_started",
        "_held",
        "_linger_until",
        "_phase",
        "_scanned",
        "_transport",
        "_unsent",
        "came_to",
        "carried",
        "clogged",
        "deadline",
        "door",
        "draining",
        "ends",
        "exchange",
        "kin",
        "peer",
        "plan",
        "refused",
        "write",
        "write_all",
    )

    door: Door

    def __init__(self, desk: Desk, plan: Listener, came_to: str) -> None:
        self._desk = desk
        self.came_to = came_to  # the address, as in the config
        self.plan = plan  # replaced between exchanges when an edition changes it
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until made
        self._phase = _IDLE
        self._buffer = b""
        self._scanned = 0  # octets of the buffer that hold no end of a head
        self._head_started = 0.0
        self._body: BodyReader | None = None
        self._head: RequestHead | None = None  # of the request before, to compare with
        self._half_closed = False
        self._held = False  # by the exchange: the backend is slow
        self._linger_until = NEVER
        self._due = NEVER  # when a body is too slow for `limits.body_rate`
        self._unsent = 0
        self.peer = direct("")
        self.carried = 0
        self.clogged = False  # an exchange that starts later looks here first
        self.draining = False
        self.refused: Reply | None = None  # over a limit: told so, and closed
        self.ends: Ends | None = None  # as a PROXY header had them
        self.kin = ""  # what it counts under for `limits.per_client`, if it does
        self.exchange: Exchange | None = None
        self.deadline = NEVER

    @property
    def listener(self) -> str:
        """The listener's name."""
        return self.plan.name

    @property
    def keeps(self) -> bool:
        """Whether another request may follow the present one."""
        return not self.draining and not self._half_closed and self.carried < REQUESTS_MAX

    # Called by the loop.

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        if self._phase is _CLOSED:  # `kill` came first.
            transport.abort()
            return
        self.write: Callable[[Octets], None] = transport.write
        self.write_all: Callable[[list[Octets]], None] = transport.writelines
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        address = address_of(transport) if self.ends is None else self.ends.source[0]
        tls = transport.get_extra_info("tls")
        self.peer = direct(address) if tls is None else direct(address, b"https", tls.subject)
        self.deadline = monotonic() + self.plan.timeouts.idle
        self._desk.worker.deadlines.watch(self)
        if self.refused is not None and self.door.turned_away > TURNED_AWAY_MAX:
            transport.abort()
        elif self.refused is not None:
            self._refuse(self.refused)

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _BODY:
            self._take_body(data)
        elif phase is _LINGER:
            self.deadline = min(self._linger_until, monotonic() + LINGER_S)
        elif phase is not _CLOSED:
            self._buffer = self._buffer + data if self._buffer else data
            if phase is _AHEAD or self.clogged:
                self._pause()
            else:
                self._take_head()

    def eof_received(self) -> bool:
        phase = self._phase
        if phase is _AHEAD:
            # Half-closed, as `nc -N` does: the answer is still wanted, or the next write fails.
            self._half_closed = True
            return True
        if phase is _BODY and self.exchange is not None and self.exchange.tunnels:
            self.exchange.client_ended()
            return True
        if phase is _BODY:
            self._lose_exchange()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._phase = _CLOSED
        self.deadline = NEVER
        self._desk.worker.deadlines.forget(self)
        self._desk.closed(self)
        self._lose_exchange()

    def pause_writing(self) -> None:
        self.clogged = True
        self._unsent = self._transport.get_write_buffer_size()
        if self._phase not in (_LINGER, _CLOSED):
            self.deadline = self._stall_deadline()
        if self.exchange is not None:
            self.exchange.pause_response()

    def resume_writing(self) -> None:
        self.clogged = False
        phase = self._phase
        if phase is _IDLE:
            self.deadline = monotonic() + self.plan.timeouts.idle
            if self._buffer:
                self._desk.worker.loop.call_soon(self._go_on)
        elif phase in (_AHEAD, _BODY):
            if phase is _BODY and not self._held:
                self._await_body()
            else:
                self.deadline = monotonic() + LOOK_S
        if self.exchange is not None:
            self.exchange.resume_response()

    def on_deadline(self, now: float) -> None:
        """Give up waiting for the client: what for depends on the phase."""
        phase = self._phase
        self.deadline = NEVER
        if self.clogged or phase in (_LINGER, _CLOSED):
            self._cut_unless_it_reads(now)
        elif phase is _HEAD:
            self._refuse(Reply(408, "client_timeout", self._setting("timeouts.header") + "passed"))
        elif phase is _IDLE:
            self._close()
        elif phase is _AHEAD or self._held:
            self._look(now)
        elif self.exchange is not None and now >= self._due:
            self.met_limit("body_rate")
            detail = f"the body comes slower than {self._setting('limits.body_rate').rstrip()}"
            self.exchange.stalled("client_slow", detail)
        elif self.exchange is not None:
            detail = self._setting("timeouts.stall") + "passed without more of the body"
            self.exchange.stalled("client_timeout", detail)

    # Called by the exchange.

    def hold(self) -> None:
        """Stop reading the request's body."""
        if not self._held and self._phase is _BODY:
            self._held = True
            self._pause()  # now the backend's clock runs

    def release(self) -> None:
        """Read the request's body on."""
        if self._held:
            self._held = False
            self._transport.resume_reading()
            self._await_body()

    def finished(self, now: float, *, keep: bool) -> None:
        """The response is whole: next request, or close."""
        self.exchange = None
        phase = self._phase
        if phase is _CLOSED:
            return
        if self._held:
            self._held = False
            self._transport.resume_reading()
        if not keep or phase is _BODY or not self.keeps:
            self._part(gently=phase is _BODY or bool(self._buffer))
            return
        self._phase = _IDLE
        if self.clogged:
            self.deadline = now + self.plan.timeouts.stall
            return  # What it sent ahead waits until it has read.
        self.deadline = now + self.plan.timeouts.idle
        if self._buffer:
            # Not a plain call: a thousand queued requests would be a thousand frames.
            self._desk.worker.loop.call_soon(self._go_on)

    def invited(self) -> None:
        """An expectation has been answered: the body is due now."""
        if self._phase is _BODY and not self._held and not self.clogged:
            self._await_body()

    def met_limit(self, limit: str) -> None:
        """Count that the client met a limit, by its key."""
        self.door.met(limit)

    def proxy_header(self, version: str, address: str) -> bytes:
        """Return what tells a backend of whom this is; `address` is whom we believe it to be."""
        ends = self.ends
        if ends is None:
            peer = self._transport.get_extra_info("peername")
            here = self._transport.get_extra_info("sockname")
            if isinstance(peer, tuple):
                ends = Ends((_plain(peer[0]), peer[1]), (_plain(here[0]), here[1]))
        if address == UNIX or ends is None:
            return write_proxy_header(version, None)
        if address != ends.source[0]:  # Somebody trusted said so, and not from which port.
            ends = Ends((address, 0), ends.target)
        return write_proxy_header(version, ends)

    def switch(self) -> None:
        """Pass on octets from here, both ways, until one side ends."""
        self._body = CloseBody()
        self._phase = _BODY
        self.deadline = NEVER
        keep_alive(self._transport)
        if self._buffer:
            data, self._buffer = self._buffer, b""
            self._desk.worker.loop.call_soon(self.data_received, data)
        self._transport.resume_reading()

    def cut(self, *, reset: bool) -> None:
        """Close at once; by a RST where an end would make the response look whole."""
        self.exchange = None
        if self._phase is not _CLOSED:
            self._phase = _CLOSED
            self._abort(reset=reset)

    # Called by the listener, and by what stands at the socket before this.

    def approach(self, transport: asyncio.Transport) -> None:
        """Learn of the socket before it is ours, so that `kill` finds it."""
        self._transport = transport

    def watch(self, other: Watched) -> None:
        """Have a deadline looked at that is about this client."""
        self._desk.worker.deadlines.watch(other)

    def unwatch(self, other: Watched) -> None:
        """Look at it no longer."""
        self._desk.worker.deadlines.forget(other)

    def drain(self) -> None:
        """Carry no further request; close once idle."""
        self.draining = True
        if self._phase is _IDLE and not self._buffer and not self.clogged:
            # A moment's patience: the next request may be on its way to us.
            idle_since = self.deadline - self.plan.timeouts.idle
            self.deadline = min(self.deadline, idle_since + CLOSES_NOW_AFTER_S)

    def kill(self, end: str) -> None:
        """Close now, whatever runs."""
        self._phase = _CLOSED
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.say_goodbye()
            exchange.client_lost(end)
        if exchange is not None and exchange.tunnels:
            self._close()
        elif self._transport is not None:
            self._abort(reset=exchange is not None)

    # Reading.

    def _go_on(self) -> None:
        """Turn to what the client sent ahead."""
        if self._phase is _IDLE and not self.clogged:
            self._transport.resume_reading()
            self._take_head()

    def _take_head(self) -> None:
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):  # RFC 9112 2.2 asks for one to be ignored.
            empty = _EMPTY_LINES.match(buffer)
            assert empty is not None, "it starts with one"
            buffer = self._buffer = buffer[empty.end() :]
            self._scanned = 0
        end = buffer.find(END_OF_HEAD, self._scanned)
        limits = self.plan.limits
        if end < 0 or end > limits.header_bytes:
            self._bound_head(buffer)
            return
        size = end + 4
        if size == len(buffer):
            head, self._buffer = buffer, b""
        else:
            head, self._buffer = buffer[:size], buffer[size:]
        self._scanned = 0
        started = self._head_started if self._phase is _HEAD else monotonic()
        try:
            self._begin(head, started)
        except ClientError as error:
            end_word = "too_large" if error.status in (413, 414, 431) else "client_error"
            hint = f" ({error.hint})" if error.hint else ""
            if error.hint.startswith("limits."):
                hint = f" ({self._setting(error.hint).rstrip()})"
                self.met_limit(error.hint.removeprefix("limits."))
            self._refuse(Reply(error.status, end_word, error.message + hint), head)

    def _begin(self, octets: bytes, started: float) -> None:
        head = self._head
        if head is None or head.octets != octets:
            limits = self.plan.limits
            head = read_request_head(octets, head, limits.request_line, limits.headers)
            self._head = head if len(octets) <= HEAD_REMEMBERED_MAX else None
        fields = head.fields
        self.carried += 1
        if fields.close or not head.minor:
            self.carried = max(self.carried, REQUESTS_MAX)
        self._body = body = request_body(fields)
        if body is None:
            self._phase = _AHEAD
            self.deadline = NEVER
        else:
            self._phase = _BODY
            self._await_body()
            if fields.expects_continue:
                self.deadline = NEVER  # It waits for the backend, whose clock runs meanwhile.
        self._desk.open_exchange(self, head, started)
        if self._buffer and self._phase is not _IDLE:  # If it is, `_go_on` has been called.
            data, self._buffer = self._buffer, b""
            self.data_received(data)

    def _bound_head(self, buffer: bytes) -> None:
        """See to it that a head cannot grow or take time without bound."""
        limits = self.plan.limits
        if len(buffer) > limits.request_line and buffer.find(b"\r\n", 0, limits.request_line) < 0:
            setting = self._setting("limits.request_line")
            self.met_limit("request_line")
            self._refuse(Reply(414, "too_large", f"the request line is over {setting}"), buffer)
        elif len(buffer) > limits.header_bytes:
            setting = self._setting("limits.header_bytes")
            self.met_limit("header_bytes")
            self._refuse(Reply(431, "too_large", f"the head is over {setting}"), buffer)
        elif buffer and self._phase is _IDLE:
            self._phase = _HEAD
            self._head_started = monotonic()
            self.deadline = self._head_started + self.plan.timeouts.header
        self._scanned = max(0, len(buffer) - 3)

    def _take_body(self, data: bytes) -> None:
        body, exchange = self._body, self.exchange
        assert body is not None, "a body is due only where there is one"
        assert exchange is not None, "a body belongs to an exchange"
        try:
            payload, rest = body.take(data)
        except FramingError as error:
            exchange.malformed(str(error))
            return
        if not self._held and not self.clogged:
            self.deadline = self._stall_deadline()
            if self._due is not NEVER:
                self._keep_pace(len(payload))
        if rest is not None:
            self._phase = _AHEAD
            self.deadline = NEVER
            self._buffer = bytes(rest)
            if rest:
                self._pause()
        exchange.request_data(bytes(payload), whole=rest is not None)

    def _await_body(self) -> None:
        """Set the clocks of a body that is due from now on."""
        self.deadline = self._stall_deadline()
        if self.plan.limits.body_rate and self.deadline is not NEVER:
            self._due = monotonic() + RATE_GRACE_S
            self.deadline = min(self.deadline, self._due)
        else:
            self._due = NEVER

    def _keep_pace(self, octets: int) -> None:
        """Give time for what came: so much as it should have taken, and no credit beyond."""
        earned = self._due + octets / self.plan.limits.body_rate
        self._due = min(earned, monotonic() + RATE_GRACE_S)
        self.deadline = min(self.deadline, self._due)

    def _pause(self) -> None:
        """Read no further; who goes meanwhile is found by `_look`, not by the loop."""
        self._transport.pause_reading()
        if not self.clogged:
            self.deadline = monotonic() + LOOK_S

    def _look(self, now: float) -> None:
        """Give up a client that has gone while we don't read from it."""
        sock = self._transport.get_extra_info("socket")
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLRDHUP)
        events = poll.poll(0)
        if not events:
            self.deadline = now + LOOK_S
        elif not events[0][1] & ~select.POLLRDHUP and self._phase is _BODY and self._is_sealed():
            # What is sealed tells its end only as it is read; no more can come than is there.
            self._transport.resume_reading()
            self.deadline = now + self.plan.timeouts.stall
        elif events[0][1] & ~select.POLLRDHUP or not self._has_sent_all(sock):
            self._lose_exchange()
            self._transport.abort()

    def _is_sealed(self) -> bool:
        return self._transport.get_extra_info("tls") is not None

    def _has_sent_all(self, sock: socket.socket) -> bool:
        """Whether a client that has ended its side left a whole request for us to read."""
        if self._phase is not _BODY:
            return True
        with socket.socket(fileno=os.dup(sock.fileno())) as twin:
            unread = int.from_bytes(ioctl(twin, termios.FIONREAD, bytes(4)), sys.byteorder)
            data = twin.recv(unread, socket.MSG_PEEK | socket.MSG_DONTWAIT) if unread else b""
        try:
            return copy(self._body).take(data)[1] is not None if self._body is not None else True
        except FramingError:
            return False

    def _refuse(self, reply: Reply, octets: bytes = b"") -> None:
        """Answer what is no request of ours to pass on, and part."""
        self.write(self._desk.refuse(self, reply, octets))
        self._part(gently=True)

    # Closing.

    def _part(self, *, gently: bool) -> None:
        """
        Close after what is written has left.

        `gently`: octets from the client may be unread or on their way; closing on them would
        send a RST, and that can overtake the answer (RFC 9112 9.6). So we only end our side
        and read on for a while.
        """
        self._buffer = b""
        if not gently:
            self._close()
            return
        self._phase = _LINGER
        self._unsent = self._transport.get_write_buffer_size() + 1
        now = monotonic()
        self.deadline = now + LINGER_S
        self._linger_until = now + LINGER_MAX_S
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()

    def _close(self) -> None:
        self._phase = _CLOSED
        self._unsent = self._transport.get_write_buffer_size() + 1
        self.deadline = monotonic() + CLOSE_S
        self._transport.close()

    def _cut_unless_it_reads(self, now: float) -> None:
        """Go on waiting for a client that takes what we wrote, however slowly."""
        unsent = self._transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self.deadline = now + self.plan.timeouts.stall
        else:
            # connection_lost tells the exchange.
            self._abort(reset=self.exchange is not None or unsent > 0)

    def _abort(self, *, reset: bool) -> None:
        """Close at once; `reset`: so that nobody takes what has arrived for all there is."""
        if reset and not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _lose_exchange(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_lost()

    def _stall_deadline(self) -> float:
        if self.exchange is not None and self.exchange.tunnels and not self.clogged:
            return NEVER  # the tunnel has a clock of its own
        return monotonic() + self.plan.timeouts.stall

    def _setting(self, key: str) -> str:
        return f"listener.{self.plan.name}.{key} "


def address_of(transport: asyncio.Transport) -> str:
    """Return the address at the other end of a socket."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return _plain(peer[0])
    # One that has gone already has no name, and must not pass for a neighbour's.
    unix = transport.get_extra_info("socket").family == socket.AF_UNIX
    return UNIX if unix else "unknown"


def _plain(address: str) -> str:
    # A socket for both families names an IPv4 client as ::ffff:192.0.2.1.
    return address.removeprefix("::ffff:")
