"""
One connection to a backend: carries one exchange at a time, idles in its pool between.

Methods are grouped by who calls them: the loop, the pool, the exchange.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from enum import Enum
from time import monotonic
from typing import Final, Protocol

from lb.errors import BackendError
from lb.http1.framing import BodyReader, CloseBody, FramingError, Octets, response_body
from lb.http1.head import (
    END_OF_HEAD,
    HEAD_REMEMBERED_MAX,
    REPLY_HEAD_BYTES_MAX,
    ResponseHead,
    read_response_head,
)
from lb.proxy.deadlines import NEVER
from lb.proxy.plan import WRITE_HIGH, WRITE_LOW
from lb.proxy.tunnel import keep_alive
from lb.retry import Failure

INTERIM_RESPONSES_MAX: Final = 16  # 1xx heads before a final one
COPIED_BYTES_MAX: Final = 8 * 1024  # up to here a slice costs less than a view
LAST_WORDS_BYTES_MAX: Final = 128 * 1024  # of a response, read after the connection was reset


class Phase(Enum):
    """What the next octets from the backend are."""

    IDLE = "idle"  # none are due
    HEAD = "head"
    BODY = "body"
    CLOSED = "closed"


# An Enum's member costs a lookup in its class's class; these are looked up for each octet read.
_IDLE, _HEAD, _BODY, _CLOSED = Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.CLOSED


class Asker(Protocol):
    """The exchange, as its backend connection sees it."""

    method: bytes
    upgrade: bytes  # the protocol asked for, or b""

    def interim(self, head: ResponseHead) -> None:
        """Pass on a 1xx response."""
        ...

    def switched(self, head: ResponseHead, payload: bytes, now: float) -> None:
        """Take a 101 that was asked for, and what came after it."""
        ...

    def response_started(
        self, head: ResponseHead, body: BodyReader | None, payload: Octets, now: float
    ) -> None:
        """Take a final response's head and what came of its body with it; not its end."""
        ...

    def response_continued(self, payload: Octets) -> None:
        """Take more of the body; not its end."""
        ...

    def response_ended(self, now: float, *, reusable: bool) -> None:
        """Take the end of the response; the connection is the caller's to keep or close."""
        ...

    def backend_failed(self, failure: Failure, detail: str) -> None:
        """Learn that this connection is of no more use; it is closed already."""
        ...

    def hold_request(self) -> None:
        """The backend reads slower than the client sends."""
        ...

    def release_request(self) -> None:
        """The backend has caught up."""
        ...


class Home(Protocol):
    """The pool, as its connections see it."""

    response_timeout: float
    stall_timeout: float

    def made(self, connection: BackendConnection) -> None:
        """Count a connection that stands."""
        ...

    def lost(self, connection: BackendConnection) -> None:
        """Forget a connection that has closed."""
        ...


class BackendConnection:
    """Stands between a pool's backend and the exchange that runs on it. Nothing in it awaits."""

    __slots__ = (
        "_asker",
        "_body",
        "_buffer",
        "_head",
        "_interim_count",
        "_paused",
        "_phase",
        "_poll",
        "_pool",
        "_stall_s",
        "_transport",
        "_unsent",
        "_whole",
        "carried",
        "clogged",
        "deadline",
        "expires",
        "idle_hint",
        "kept",
        "said",
    )

    def __init__(self, pool: Home, expires: float, said: bytes = b"") -> None:
        self._pool = pool
        self.said = said  # the PROXY header that it begins with: whose it is
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until made
        self._asker: Asker | None = None
        self._phase = _IDLE
        self._buffer = b""
        self._body: BodyReader | None = None
        self._head: ResponseHead | None = None  # of the response before, to compare with
        self._interim_count = 0
        self._poll = select.poll()
        self._stall_s = 0.0  # that the present body may pause
        self._unsent = 0  # octets, when we last looked
        self._paused = False  # in reading: the client is slow
        self._whole = True  # all of the request has been sent
        self.carried = 0  # exchanges so far
        self.kept = False  # it has been in the pool since its last exchange
        self.clogged = False
        self.deadline = NEVER
        self.expires = expires  # too old to be pooled after this
        self.idle_hint = -1

    # Called by the loop.

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        if self.said and transport.get_extra_info("tls") is None:  # There it has been said.
            transport.write(self.said)
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase is _BODY:
            self._take_body(data)
        elif phase is _HEAD:
            self._take_head(self._buffer + data if self._buffer else data)
        else:
            self.close()  # An answer that nobody asked for (RFC 9112 9.2).

    def eof_received(self) -> bool:
        return False  # The transport closes itself, connection_lost follows.

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self._asker is not None:
            self._take_last_words()
        phase, asker = self._phase, self._asker
        self._phase = _CLOSED
        self._asker = None
        self.deadline = NEVER
        self._pool.lost(self)
        if asker is None:
            return
        if phase is _BODY and self._body is not None and self._body.open_ended and not error:
            asker.response_ended(monotonic(), reusable=False)
        elif phase is _HEAD and self.kept and not self._buffer:
            asker.backend_failed(Failure.STALE, "a kept connection was closed by the backend")
        elif error is not None:
            asker.backend_failed(Failure.RESET, "the backend reset the connection")
        else:
            asker.backend_failed(Failure.CLOSED, "the backend closed before its response ended")

    def pause_writing(self) -> None:
        self.clogged = True
        self._unsent = self._transport.get_write_buffer_size()
        self._set_response_clock()
        if self._asker is not None:
            self._asker.hold_request()

    def resume_writing(self) -> None:
        self.clogged = False
        self._set_response_clock()
        if self._asker is not None:
            self._asker.release_request()

    # Called by the pool.

    def is_fresh(self, now: float) -> bool:
        """
        Whether it may still carry an exchange.

        The kernel is asked too (0.3 us): octets or an end that came in this turn of the loop
        would else be taken for the answer to what we are about to send (RFC 9112 9.2).
        """
        return (
            self._phase is _IDLE
            and now < self.deadline
            and (not self._poll.poll(0) or self._got_nothing())
        )

    def _got_nothing(self) -> bool:
        """Whether what came was for TLS alone: a backend sends tickets when it likes."""
        tls = self._transport.get_extra_info("tls")
        if tls is None:
            return False
        tls.look()
        return self._phase is _IDLE and not self.closed and not self._poll.poll(0)

    @property
    def closed(self) -> bool:
        """Whether it can carry nothing any more."""
        return self._phase is _CLOSED or self._transport.is_closing()

    @property
    def session(self) -> ssl.SSLSession | None:
        """What the next connection to there may resume, None without TLS."""
        tls = self._transport.get_extra_info("tls")
        return None if tls is None else tls.session

    def rest(self, until: float) -> None:
        """Idle until then at most."""
        self.kept = True
        self.deadline = until

    def close(self) -> None:
        """Close at once, whatever is under way; an asker is not told."""
        self._asker = None
        self._phase = _CLOSED
        if self._transport is not None:
            self._transport.abort()

    def on_deadline(self, now: float) -> None:
        """Give up waiting: for the head, for more of a body, or for being used again."""
        phase, asker = self._phase, self._asker
        if phase is _HEAD and self.clogged:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:  # It reads, however slowly.
                self._unsent = unsent
                self.deadline = now + self._pool.response_timeout
                return
        self.deadline = NEVER
        self.close()
        if asker is not None:
            what = "response" if phase is _HEAD else "stall"
            asker.backend_failed(Failure.TIMEOUT, f"timeouts.{what} of the upstream passed")

    # Called by the exchange.

    def begin(self, asker: Asker, data: bytes, now: float, *, whole: bool) -> None:
        """
        Send a request's head, and what is there of its body; answers go to `asker`.

        `whole`: nothing more is needed before the backend can answer. Its clock runs from
        there, and whenever it does not read: a slow client is not its fault.
        """
        self._whole = whole
        self._stall_s = self._pool.stall_timeout
        self._asker = asker
        self._phase = _HEAD
        self._interim_count = 0
        self.carried += 1
        self.deadline = now + self._pool.response_timeout if whole else NEVER
        self._transport.write(data)

    def send(self, data: bytes, *, whole: bool) -> None:
        """Send more of the request's body; `whole`: its end."""
        self._whole = whole
        self._transport.write(data)
        self._set_response_clock()

    def end_writing(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def keep_alive(self) -> None:
        """Let TCP notice a backend that vanished without a word."""
        keep_alive(self._transport)

    def pause_reading(self) -> None:
        """Stop reading, and the clock of the backend's stall with it: the client is slow."""
        self.deadline = NEVER
        if not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self.deadline = monotonic() + self._stall_s

    def _set_response_clock(self) -> None:
        """Set the backend's clock, if what is due is a head."""
        if self._phase is _HEAD:
            due = self._whole or self.clogged
            self.deadline = monotonic() + self._pool.response_timeout if due else NEVER

    # Reading.

    def _take_head(self, data: bytes) -> None:
        end = data.find(END_OF_HEAD)
        if end < 0 or end > REPLY_HEAD_BYTES_MAX:
            if len(data) > REPLY_HEAD_BYTES_MAX:
                self._fail(f"the response head is over {REPLY_HEAD_BYTES_MAX} bytes")
            else:
                self._buffer = data
            return
        self._buffer = b""
        asker = self._asker
        assert asker is not None, "a head is due only while somebody asked"
        size = end + 4
        head = self._head
        if head is None or not data.startswith(head.octets):
            try:
                head = read_response_head(data[:size], head)
                self._head = head if size <= HEAD_REMEMBERED_MAX else None
            except BackendError as error:
                self._fail(error.message)
                return
        if head.status < 200:
            self._take_interim(asker, head, data[size:])
        else:
            big = len(data) - size > COPIED_BYTES_MAX
            self._take_final(asker, head, memoryview(data)[size:] if big else data[size:])

    def _take_final(self, asker: Asker, head: ResponseHead, rest: Octets) -> None:
        fields = head.fields
        self.idle_hint = fields.keep_alive
        if fields.close or (not head.minor and (fields.chunked or not fields.persists)):
            self.expires = 0.0
        now = monotonic()
        self._body = body = response_body(asker.method, head.status, fields)
        if body is None:
            asker.response_started(head, None, b"", now)
            self._end(rest, now)
            return
        try:
            payload, rest_after = body.take(rest) if rest else (rest, None)
        except FramingError as error:
            self._fail(str(error))
            return
        self._phase = _BODY
        self.deadline = now + self._stall_s
        asker.response_started(head, body, payload, now)
        if rest_after is not None:
            self._end(rest_after, now)

    def _take_interim(self, asker: Asker, head: ResponseHead, rest: bytes) -> None:
        self._interim_count += 1
        if head.status == 101 and asker.upgrade and head.fields.upgrade == asker.upgrade:
            self.expires = 0.0
            self._body = CloseBody()
            self._phase = _BODY
            self._stall_s = NEVER  # the tunnel has a clock of its own
            self.deadline = NEVER
            asker.switched(head, rest, monotonic())
            return
        if head.status == 101 or self._interim_count > INTERIM_RESPONSES_MAX:
            unasked = "an upgrade that nobody asked for"
            self._fail(unasked if head.status == 101 else "endless 1xx")
            return
        asker.interim(head)
        if rest and self._phase is _HEAD:
            self._take_head(rest)

    def _take_body(self, data: bytes) -> None:
        asker, body = self._asker, self._body
        assert asker is not None, "a body is due only while somebody asked"
        assert body is not None, "a body is due only where there is one"
        try:
            payload, rest = body.take(data)
        except FramingError as error:
            self._fail(str(error))
            return
        now = monotonic()
        if self.deadline is not NEVER:
            self.deadline = now + self._stall_s
        if payload:
            asker.response_continued(payload)
        if rest is not None:
            self._end(rest, now)

    def _end(self, rest: Octets, now: float) -> None:
        """The response is whole: hand the connection back."""
        asker = self._asker
        if asker is None:
            return  # The exchange gave up while it took the last octets.
        self._asker = None
        self._phase = _IDLE
        self.deadline = NEVER
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        # Octets after the end, or a request still being written, leave it in doubt.
        asker.response_ended(now, reusable=not rest and not self.clogged)

    def _take_last_words(self) -> None:
        """
        Read what the kernel still holds of a connection that was reset.

        A backend that refuses an upload answers, closes, and resets what we went on sending;
        our failed write then comes before its answer has been read.
        """
        self.expires = 0.0
        if self._transport.get_extra_info("tls") is not None:
            return  # What was to be read there has been read by TLS.
        with socket.socket(
            fileno=os.dup(self._transport.get_extra_info("socket").fileno())
        ) as sock:
            sock.setblocking(False)
            taken = 0
            while self._asker is not None and taken < LAST_WORDS_BYTES_MAX:
                try:
                    data = sock.recv(LAST_WORDS_BYTES_MAX)
                except OSError:
                    return
                if not data:
                    return
                taken += len(data)
                self.data_received(data)

    def _fail(self, detail: str) -> None:
        asker = self._asker
        self.close()
        if asker is not None:
            asker.backend_failed(Failure.BAD_RESPONSE, detail)
