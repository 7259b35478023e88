"""
TLS, between a socket's transport and a connection that knows nothing of it.

`TlsTransport` is a protocol to the one and a transport to the other. It is ours, and not the
loop's, for what the loop's cannot do: send the alert of a handshake that failed, end our side
and read on, say how much is unsent, take what the kernel holds when a connection was reset,
and change what a handshake demands without a new listening socket.

Records are opened and sealed in the turn in which they come: nothing is queued here, so that
pausing, buffers and their bounds are those of the socket's transport.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

from lb.proxy.deadlines import NEVER

RECORD_BYTES: Final = 16 * 1024  # what one record holds at most, and one read returns
LAST_WORDS_BYTES_MAX: Final = 128 * 1024  # read after the connection was reset


class TlsError(OSError):
    """No handshake: the text says why, in words for an operator."""


class App(Protocol):
    """The connection inside, as asyncio has it."""

    def connection_made(self, transport: asyncio.Transport) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool: ...

    def connection_lost(self, error: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Watcher(Protocol):
    """Who cares how a handshake went."""

    def shaken(self, transport: TlsTransport) -> None:
        """Learn that it stands; the connection inside is told next."""
        ...

    def failed(self, transport: TlsTransport, error: Exception | None) -> bytes:
        """Learn that there is none, None if the peer just left; return octets to send yet."""
        ...


class Phase(Enum):
    """Where a connection stands."""

    SHAKING = "shaking"  # hands
    OPEN = "open"
    CLOSED = "closed"  # by us or by them, or never opened


# Looked up once: see `backend_connection`.
_SHAKING, _OPEN, _CLOSED = Phase.SHAKING, Phase.OPEN, Phase.CLOSED


class TlsTransport(asyncio.Transport):
    """One TLS connection. What stands inside is told of it once the handshake is done."""

    __slots__ = (
        "_app",
        "_ended",
        "_error",
        "_incoming",
        "_outgoing",
        "_phase",
        "_preface",
        "_raw",
        "_said_end",
        "_tls",
        "_watcher",
        "deadline",
        "subject",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        app: App,
        watcher: Watcher,
        *,
        server: bool,
        name: str | None = None,
        preface: bytes = b"",
        session: ssl.SSLSession | None = None,
    ) -> None:
        """
        `name`: whom the other side must be, for a client. `preface` goes before the hello.
        `session`: of an earlier connection by the same context and name, to be resumed.
        """
        super().__init__()
        self._app = app
        self._watcher = watcher
        self._raw: asyncio.Transport = None  # type: ignore[assignment]  # until made
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server, name, session)
        self._phase = _SHAKING
        self._preface = preface
        self._said_end = False  # we have sent close_notify
        self._ended = False  # theirs has come, or their FIN
        self._error: Exception | None = None
        self.deadline = NEVER  # of the handshake
        self.subject = b""  # of the certificate that they showed, if they had to

    # Called by the loop.

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._raw = transport
        if self._preface:
            transport.write(self._preface)
        if not self._tls.server_side:
            self._shake()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._phase is _SHAKING:
            self._shake()
        if self._phase is _OPEN:
            self._read()

    def eof_received(self) -> bool:
        if self._phase is not _OPEN:
            return False
        if self._ended:
            return True  # The connection inside has known, and wanted to go on.
        if not self._tls.server_side:
            # Anybody on the way could have cut it there (RFC 9112 9.8).
            self._error = ConnectionResetError("ended without close_notify")
            return False
        self._ended = True
        return self._app.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self._phase is _OPEN:
            self._take_last_words()
        self._settle(error)
        self._phase = _CLOSED
        self._app.connection_lost(error or self._error)

    def pause_writing(self) -> None:
        if self._phase is _OPEN:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        if self._phase is _OPEN:
            self._app.resume_writing()

    def on_deadline(self, now: float) -> None:
        """Give up on the handshake."""
        self.deadline = NEVER
        self._settle(TimeoutError("the handshake took too long"))
        self._raw.abort()

    # Called by the connection inside.

    def write(self, data: Any) -> None:
        if data and self._phase is _OPEN and not self._said_end:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                self._break(error)
            else:
                self._raw.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End our side, and go on reading."""
        self._say_end()
        if not self._raw.is_closing():
            self._raw.write_eof()

    def close(self) -> None:
        self._say_end()
        self._phase = _CLOSED
        self._raw.close()

    def abort(self) -> None:
        if self._phase is _OPEN:
            self._phase = _CLOSED
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`tls`: ourselves; all else is the socket's transport's to answer."""
        return self if name == "tls" else self._raw.get_extra_info(name, default)

    def look(self) -> None:
        """Take in what has come and was not read yet: a ticket is nothing to the one inside."""
        self._take_last_words()

    @property
    def version(self) -> str:
        """As OpenSSL names it, `TLSv1.3`."""
        return self._tls.version() or ""

    @property
    def resumed(self) -> bool:
        """Whether the handshake was a short one."""
        return bool(self._tls.session_reused)

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection may resume; with TLS 1.3 it comes after the handshake."""
        return self._tls.session

    @property
    def certificate(self) -> Mapping[str, Any]:
        """What the other side showed and we checked; empty if nothing."""
        return self._tls.getpeercert() or {}

    # Within.

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # The alert, which says to the other side what we say to ours.
            self._settle(error)
            self._raw.close()
            return
        self._flush()
        self._phase = _OPEN
        self.deadline = NEVER
        self._watcher.shaken(self)
        self._app.connection_made(self)

    def _settle(self, error: Exception | None) -> None:
        """The handshake has failed, if it was under way."""
        if self._phase is _SHAKING:
            self._phase = _CLOSED
            self.deadline = NEVER
            last = self._watcher.failed(self, error)
            if last and not self._raw.is_closing():
                self._raw.write(last)

    def _read(self) -> None:
        """Take in what has come, and pass on what was in it."""
        pieces: list[bytes] = []
        ended, broken = self._open_records(pieces)
        if self._outgoing.pending:
            self._flush()  # An answer to a change of keys, or an alert.
        if pieces:
            self._app.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if broken is not None:
            self._break(broken)
        elif ended and not self._ended:
            self._ended = True
            if self._phase is _OPEN and not self._app.eof_received():
                self.close()

    def _open_records(self, pieces: list[bytes]) -> tuple[bool, ssl.SSLError | None]:
        """Open those that are whole; return whether close_notify was one, and what is wrong."""
        read, incoming = self._tls.read, self._incoming
        try:
            while piece := read(RECORD_BYTES):
                pieces.append(piece)
                if not incoming.pending and not self._tls.pending():
                    return False, None
        except ssl.SSLWantReadError:
            return False, None
        except ssl.SSLZeroReturnError:
            pass  # As a read says it once we have ended our side.
        except ssl.SSLError as error:
            return False, error
        return True, None

    def _take_last_words(self) -> None:
        """Read what the kernel holds, at once."""
        with socket.socket(fileno=os.dup(self._raw.get_extra_info("socket").fileno())) as sock:
            sock.setblocking(False)
            taken = 0
            while self._phase is _OPEN and taken < LAST_WORDS_BYTES_MAX:
                try:
                    data = sock.recv(RECORD_BYTES)
                except OSError:
                    return
                if not data:
                    return
                taken += len(data)
                self.data_received(data)

    def _say_end(self) -> None:
        if self._phase is _OPEN and not self._said_end:
            self._said_end = True
            with suppress(ssl.SSLError):  # Theirs has not come yet, and need not.
                self._tls.unwrap()
            self._flush()

    def _break(self, error: ssl.SSLError) -> None:
        """What came is no TLS any more: nothing after it can be trusted."""
        self._flush()
        self._error = ConnectionResetError(in_words(error))
        self._phase = _CLOSED
        self._raw.close()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and not self._raw.is_closing():
            self._raw.write(data)


class _Dialled:
    """Waits for the handshake of a connection that we make."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    def shaken(self, transport: TlsTransport) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def failed(self, transport: TlsTransport, error: Exception | None) -> bytes:
        if not self._future.done():
            self._future.set_exception(TlsError(in_words(error)))
        return b""


A = TypeVar("A", bound=App)


async def dial(
    connect: Callable[[Callable[[], TlsTransport]], Awaitable[object]],
    make: Callable[[], A],
    context: ssl.SSLContext,
    name: str,
    preface: bytes = b"",
    session: ssl.SSLSession | None = None,
) -> tuple[asyncio.Transport, A]:
    """
    Connect, and shake hands with whom `name` must be. TlsError where that fails.

    `connect` is the loop's way to make a connection, given what makes its protocol; `preface`
    is what to send before the handshake, `session` one to resume.
    """
    shaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    app = make()
    transport = TlsTransport(
        context,
        app,
        _Dialled(shaken),
        server=False,
        name=name,
        preface=preface,
        session=session,
    )
    try:
        await connect(lambda: transport)
        await shaken
    except asyncio.CancelledError:
        transport.abort()
        raise
    finally:
        if shaken.done() and not shaken.cancelled():
            shaken.exception()  # Raised already, or the connection itself has failed.
    return transport, app


def in_words(error: Exception | None) -> str:
    """Say what went wrong, without OpenSSL's file and line."""
    match error:
        case None:
            return "the connection was closed during the handshake"
        case ssl.SSLCertVerificationError():
            return f"the certificate is not accepted: {error.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
        case _:
            return f"during the handshake: {error}"
