"""Connections to one endpoint of one upstream, in one worker: the idle ones, and who waits."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Final, Protocol

from lb.errors import OurError
from lb.model import HTTPS, Upstream
from lb.proxy import tls
from lb.proxy.backend_connection import BackendConnection
from lb.proxy.deadlines import NEVER, Deadlines
from lb.retry import Failure

log = logging.getLogger(__name__)

CONNECTS_MAX: Final = 1024  # connections being made to one endpoint at a time
EXCHANGES_MAX: Final = 1000  # that one connection carries
AGE_S: Final = 600.0
AGE_JITTER: Final = 0.2  # so that a fleet does not reconnect as one
IDLE_HINT_MAX_S: Final = 60.0
TELL_AGAIN_S: Final = 60.0  # of the same trouble
OURS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
)  # what says nothing of the backend


class Waiter(Protocol):
    """Who asked for a new connection."""

    def connected(self, connection: BackendConnection, seconds: float) -> None:
        """Use the connection; making it took `seconds`."""
        ...

    def connect_failed(self, failure: Failure, detail: str) -> None:
        """Learn that there is none to be had."""
        ...


_UNTOLD: Final = Upstream("")  # what a pool has for a policy until it is told one


class Connecting:
    """A connection being made. Its waiter may lose interest: then it is pooled."""

    __slots__ = ("_connection", "_pool", "_said", "_started", "_task", "deadline", "waiter")

    def __init__(self, pool: Pool, waiter: Waiter, timeout: float, said: bytes) -> None:
        self._pool = pool
        self._said = said
        self._started = monotonic()
        self.waiter: Waiter | None = waiter
        self.deadline = self._started + timeout
        self._connection: BackendConnection | None = None
        self._task = pool.dial(self._make, said)
        self._task.add_done_callback(self._done)

    def on_deadline(self, now: float) -> None:
        """Give up connecting."""
        self.deadline = NEVER
        self._task.cancel()

    def _make(self) -> BackendConnection:
        self._connection = self._pool.make(self._said)
        return self._connection

    def _done(self, task: asyncio.Task[tuple[asyncio.Transport, BackendConnection]]) -> None:
        self._pool.dialled(self)
        waiter, self.waiter = self.waiter, None
        if task.cancelled():
            if self._connection is not None:
                self._connection.close()  # It may have stood just before.
                self._pool.lost(self._connection)
            if waiter is not None:
                waiter.connect_failed(
                    Failure.CONNECT_TIMEOUT, "timeouts.connect of the upstream passed"
                )
            return
        error = task.exception()
        if error is None:
            _, connection = task.result()
            if waiter is None:
                self._pool.put(connection, monotonic())
            elif connection.closed:
                waiter.connect_failed(Failure.CLOSED, "the backend closed the connection at once")
            else:
                waiter.connected(connection, monotonic() - self._started)
        else:
            detail, failure = _in_words(error), self._pool.blame(error)
            if waiter is not None:
                waiter.connect_failed(failure, detail)
            if not isinstance(error, OSError):
                raise OurError(f"connecting failed by our own fault: {error!r}") from error


class Pool:
    """Makes, lends and keeps connections; the last one used is lent first, so extras age out."""

    def __init__(
        self,
        address: str,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        rng: random.Random,
    ) -> None:
        self._address = address
        self._loop = loop
        self._deadlines = deadlines
        self._rng = rng
        self._idle: list[BackendConnection] = []
        self._all: set[BackendConnection] = set()
        self._connecting: set[Connecting] = set()
        self._rested: dict[BackendConnection, int] = {}  # how often each had carried, last time
        self._closing = False
        self.send_proxy = ""  # the version of the PROXY header that connections begin with
        self._context: ssl.SSLContext | None = None
        self._name = ""
        self._session: ssl.SSLSession | None = None  # by that context and name
        self._told = ""
        self._tell_again = 0.0
        self.configure(_UNTOLD)

    def configure(self, policy: Upstream) -> None:
        """Take on an upstream's timeouts and bounds; also puts a closed pool back to use."""
        self.connect_timeout = policy.timeouts.connect
        self.response_timeout = policy.timeouts.response
        self.stall_timeout = policy.timeouts.stall
        self._idle_max = policy.keepalive.idle_max
        self._idle_s = policy.keepalive.idle
        self._closing = False
        send_proxy = "" if policy.send_proxy == "off" else policy.send_proxy
        if send_proxy != self.send_proxy:
            self.send_proxy = send_proxy
            self._outdate()

    def secure(self, context: ssl.SSLContext, name: str) -> None:
        """Speak TLS, by this; what was agreed on by other terms carries nothing more."""
        if context is not self._context or name != self._name:
            self._context, self._name = context, name
            self._outdate()

    def _outdate(self) -> None:
        """Use no connection again that was made by other terms, and no session."""
        self._session = None
        while self._idle:
            self._idle.pop().close()
        for connection in self._all:
            connection.expires = 0.0

    @property
    def idle_count(self) -> int:
        """Connections that nobody uses now."""
        return len(self._idle)

    @property
    def busy_count(self) -> int:
        """Connections that carry an exchange now."""
        return len(self._all) - len(self._idle)

    def take(self, now: float) -> BackendConnection | None:
        """Lend an idle connection, None if there is none."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.is_fresh(now):
                return connection
            connection.close()
        return None

    def take_of(self, said: bytes, now: float) -> BackendConnection | None:
        """Lend an idle connection that began with this PROXY header: it is one client's alone."""
        idle = self._idle
        for at in range(len(idle) - 1, -1, -1):
            if idle[at].said == said:
                connection = idle.pop(at)
                if connection.is_fresh(now):
                    return connection
                connection.close()
        return None

    def connect(self, waiter: Waiter, said: bytes = b"") -> Connecting | None:
        """
        Begin to make a connection for `waiter`; None if too many are being made.

        `said`: the PROXY header to begin it with.
        """
        if len(self._connecting) >= CONNECTS_MAX:
            return None
        connecting = Connecting(self, waiter, self.connect_timeout, said)
        self._connecting.add(connecting)
        self._deadlines.watch(connecting)
        return connecting

    def put(self, connection: BackendConnection, now: float) -> None:
        """Keep a connection whose response ended cleanly, if it is worth keeping."""
        if (
            self._closing
            or connection.closed
            or now >= connection.expires
            or connection.carried >= EXCHANGES_MAX
            or (len(self._idle) >= self._idle_max and not self._makes_room(connection))
        ):
            connection.close()
            return
        if self._context is not None and connection.carried == 1:
            self._session = connection.session  # By now its tickets have come.
        hint = connection.idle_hint
        # Just under the backend's own bound, or its close meets our next request half way.
        seconds = self._idle_s if hint < 0 else min(hint - 1.0, IDLE_HINT_MAX_S)
        connection.rest(now + seconds)
        self._idle.append(connection)

    def _makes_room(self, connection: BackendConnection) -> bool:
        """Let the oldest go for one that is a client's own: no other client could use either."""
        if not connection.said or not self._idle:
            return False
        self._idle.pop(0).close()
        return True

    def close_idle(self) -> None:
        """Close what nobody uses, and from now on keep nothing."""
        self._closing = True
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close what nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def drop_unused(self) -> None:
        """Close what nobody has used since this was called before."""
        before, self._rested = self._rested, {}
        idle, self._idle = self._idle, []
        for one in idle:
            if before.get(one) == one.carried:
                one.close()
            else:
                self._rested[one] = one.carried
                self._idle.append(one)

    # Called by connections, and by those being made.

    def dial(
        self, make: Callable[[], BackendConnection], said: bytes
    ) -> asyncio.Task[tuple[asyncio.Transport, BackendConnection]]:
        """Begin to connect; `make` makes the protocol, which says `said` unless TLS comes first."""
        loop, address = self._loop, self._address
        if address.startswith(HTTPS):
            return loop.create_task(self._dial_securely(make, said))
        if address.startswith("unix:"):
            return loop.create_task(loop.create_unix_connection(make, address[5:]))  # type: ignore[type-var]
        host, _, port = address.rpartition(":")
        return loop.create_task(
            loop.create_connection(make, host.strip("[]"), int(port))  # type: ignore[type-var]
        )

    def _dial_securely(
        self, make: Callable[[], BackendConnection], said: bytes
    ) -> Coroutine[None, None, tuple[asyncio.Transport, BackendConnection]]:
        assert self._context is not None, "`secure` comes before the first connection"
        host, _, port = self._address.removeprefix(HTTPS).rpartition(":")

        def connect(protocol: Callable[[], tls.TlsTransport]) -> Awaitable[object]:
            return self._loop.create_connection(  # type: ignore[type-var]
                protocol, host.strip("[]"), int(port)
            )

        return tls.dial(connect, make, self._context, self._name, said, self._session)

    def blame(self, error: BaseException) -> Failure:
        """Say whose fault it is that there is no connection; log what only an operator can mend."""
        if isinstance(error, tls.TlsError):
            self._tell(f"{self._address} (expected: {self._name})", _in_words(error))
            return Failure.TLS
        if isinstance(error, OSError) and error.errno in OURS:
            self._tell(self._address, f"no connection can be made from here: {_in_words(error)}")
            return Failure.LIMITED
        return Failure.REFUSED

    def _tell(self, whom: str, trouble: str) -> None:
        now = monotonic()
        if trouble != self._told or now >= self._tell_again:
            self._told, self._tell_again = trouble, now + TELL_AGAIN_S
            log.warning("%s: %s", whom, trouble)

    def dialled(self, connecting: Connecting) -> None:
        """Forget a connection that is no longer being made."""
        self._connecting.discard(connecting)
        self._deadlines.forget(connecting)

    def made(self, connection: BackendConnection) -> None:
        """Count a connection from when it stands: uvloop makes its protocol before that."""
        self._all.add(connection)
        self._deadlines.watch(connection)

    def lost(self, connection: BackendConnection) -> None:
        """Forget a connection that has closed."""
        self._deadlines.forget(connection)
        self._all.discard(connection)
        self._rested.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)

    def make(self, said: bytes) -> BackendConnection:
        """Make the protocol of a connection to come."""
        age = AGE_S * (1 + AGE_JITTER * (2 * self._rng.random() - 1))
        return BackendConnection(self, monotonic() + age, said)


def _in_words(error: BaseException) -> str:
    if isinstance(error, tls.TlsError):
        return f"no TLS with the backend: {error}"
    if isinstance(error, ConnectionRefusedError):
        return "the backend refused the connection"
    if isinstance(error, socket.gaierror):
        return "the backend's name has no address"
    if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
        return "all local ports to this backend are in use (net.ipv4.ip_local_port_range)"
    return f"cannot connect to the backend: {getattr(error, 'strerror', None) or error}"
