"""
What gets a request to a backend: picking, connecting, sending, and trying once more.

What carries the two messages once a backend has the one and gives the other is `exchange`, where
the steps of both are drawn. Methods are grouped by who calls them: the exchange, the pool, the
upstream's queue, the backend connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum
from time import monotonic
from typing import Final

from lb.http1 import forwarding
from lb.http1.forwarding import IDEMPOTENT
from lb.http1.head import RequestHead, ResponseHead
from lb.http1.peers import Peer
from lb.http1.replies import Reply, no_backend
from lb.metrics import BOUNDS, SUM
from lb.outlier import cause_of_failure
from lb.proxy.backend_connection import BackendConnection
from lb.proxy.client import Client
from lb.proxy.hooks import Hooks
from lb.proxy.plan import Plan, WorkerState
from lb.proxy.pool import Connecting
from lb.proxy.upstream import LiveEndpoint, LiveUpstream, Waiting
from lb.retry import (
    ERROR_KINDS,
    GATEWAY_TIMEOUTS,
    REPLAY_BYTES_MAX,
    SAME_BACKEND_DELAY_S,
    Answer,
    Failure,
    judge,
)

ERROR_SECONDS: Final = 10.0  # what a failed try counts as, where latency decides


class Step(Enum):
    """Where an exchange stands; see `exchange`."""

    CONNECTING = 1
    SENT = 2
    RESPONDING = 3
    DONE = 4


# Looked up once: see `backend_connection`.
_CONNECTING, _SENT, _RESPONDING = Step.CONNECTING, Step.SENT, Step.RESPONDING


class Trying(ABC):
    """
    The tries of one exchange, which is made of this and of what carries its messages.

    One object, since a second would cost every request; the exchange is also whom a backend
    connection answers to.
    """

    __slots__ = (
        "_backend", "_backend_key", "_body_sent", "_bytes_out", "_client", "_connect_s",
        "_connecting", "_endpoint", "_first_byte_s", "_head", "_held", "_key", "_peer", "_plan",
        "_replayable", "_request_id", "_retrying", "_reused", "_status", "_step", "_tried",
        "_tries", "_try_started", "_upstream", "_waiting", "_whole", "_worker", "_written",
        "hooks", "method", "upgrade",
    )  # fmt: skip

    def __init__(
        self,
        worker: WorkerState,
        plan: Plan,
        upstream: LiveUpstream | None,
        client: Client,
        peer: Peer,
        head: RequestHead,
        started: float,
    ) -> None:
        fields = head.fields
        self.method = head.method
        self._head = head
        self._worker = worker
        self._plan = plan
        self._upstream = upstream
        self._client = client
        self._peer = peer
        self._request_id = peer.request_id or worker.next_request_id()
        self._step = _CONNECTING
        # Whether the request's end has come from the client.
        self._whole = fields.length <= 0 and not fields.chunked
        asks = fields.upgrade and fields.upgrade in plan.upgrade and head.minor and self._whole
        self.upgrade = fields.upgrade if asks else b""
        self._held: list[bytes] = []  # of the body, as it goes to a backend: sent or to be sent
        self._body_sent = 0  # octets of the body given to the present backend
        self._replayable = True
        self._waiting: Waiting | None = None
        self._written = False
        self._tried: list[LiveEndpoint] = []
        self._tries: list[tuple[str, float, str]] = []
        self._backend_key = ""
        self._endpoint: LiveEndpoint | None = None
        self._backend: BackendConnection | None = None
        self._connecting: Connecting | None = None
        self._retrying = False
        self._reused = False
        self._status = 0
        self._bytes_out = 0
        self._connect_s: float | None = None
        self._first_byte_s: float | None = None
        self._try_started = started
        self._key = b""
        self.hooks: Hooks | None = None

    # What plugins read a request from.

    @property
    def head(self) -> RequestHead:
        """The request as it came."""
        return self._head if self.hooks is None else self.hooks.came

    @property
    def peer(self) -> Peer:
        """Whom it comes from."""
        return self._peer

    @property
    def place(self) -> tuple[str, str, str]:
        """Listener, route and upstream."""
        return self._client.listener, self._plan.route, self._plan.upstream_name

    @property
    def request_id(self) -> bytes:
        """What it is called."""
        return self._request_id

    def backend_keys(self) -> tuple[str, ...]:
        """The backends that may take it."""
        return () if self._upstream is None else self._upstream.usable_keys()

    @property
    def barred(self) -> Sequence[LiveEndpoint]:
        """The endpoints that plugins forbid."""
        return () if self.hooks is None else self.hooks.barred

    # The exchange's own, which tries may end in.

    @abstractmethod
    def answer(self, reply: Reply) -> None:
        """Answer by ourselves; ends the exchange."""

    @abstractmethod
    def _finish(self, end: str, now: float, *, keep: bool, cut: bool = False) -> None:
        """Count it, log it, and let the client go on or go."""

    # Called by the exchange.

    def _leave_endpoint(self, endpoint: LiveEndpoint, end: str, now: float) -> None:
        """This try is over; `end` says how, in the access log's words."""
        self._tries.append((endpoint.key, now - self._try_started, end))
        self._endpoint = None
        assert self._upstream is not None, "see start"
        # An error must count as slow, or a backend that fails fast attracts everything.
        seconds = self._first_byte_s if self._step is _RESPONDING else None
        self._upstream.give_back(endpoint, ERROR_SECONDS if seconds is None else seconds, now)

    def _drop_backend(self, end: str, now: float, *, reusable: bool) -> None:
        """Give the connection back to its pool, or close it."""
        endpoint = self._endpoint
        if endpoint is None:
            return
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.waiter = None
        backend, self._backend = self._backend, None
        if backend is not None:
            if reusable:
                endpoint.pool.put(backend, now)
            else:
                backend.close()
        if self._step is _RESPONDING:
            view = self._worker.view
            first = self._first_byte_s or 0.0
            view[endpoint.classes[self._status // 100]] += 1
            view[endpoint.seconds + bisect_left(BOUNDS, first)] += 1
            view[endpoint.seconds + SUM] += int(first * 1e6)
        self._leave_endpoint(endpoint, end, now)

    # Called by the pool.

    def connected(self, connection: BackendConnection, seconds: float) -> None:
        """Send the request on a connection just made."""
        self._connecting = None
        self._connect_s = seconds
        self._worker.observe(self._plan.connect_seconds, seconds)
        self._send(connection, monotonic())

    def connect_failed(self, failure: Failure, detail: str) -> None:
        """Learn that the endpoint cannot be connected to."""
        self._connecting = None
        self.backend_failed(failure, detail)

    # Called by the upstream's queue.

    def admitted(self, endpoint: LiveEndpoint, now: float) -> None:
        """Leave the queue for an endpoint."""
        self._waiting = None
        self._use(endpoint, now)

    def queue_timed_out(self) -> None:
        """Learn that no endpoint had room in time."""
        self._waiting = None
        detail = f"limits.queue_timeout of upstream {self._plan.upstream_name} passed"
        self.answer(Reply(503, "queue_timeout", detail))

    # Called by the backend connection.

    def backend_failed(self, failure: Failure, detail: str) -> None:
        """Take the failure of a try: try elsewhere, answer, or cut the response short."""
        if self.hooks is not None and self.hooks.backend_failed(failure, detail):
            return
        endpoint = self._endpoint
        assert endpoint is not None, "a try has an endpoint"
        self._worker.view[endpoint.errors[ERROR_KINDS[failure]]] += 1
        now = monotonic()
        self._backend = None
        if cause := cause_of_failure(failure):
            assert self._upstream is not None, "see start"
            self._upstream.failed(endpoint, cause, now)
        self._leave_endpoint(endpoint, failure.value, now)
        if self._step is _RESPONDING:
            self._finish(failure.value, now, keep=False, cut=True)
        elif not self._retry(failure, endpoint, now):
            status = 504 if failure in GATEWAY_TIMEOUTS else 502
            if failure is Failure.LIMITED:
                status = 503
            end = "backend_reset" if failure is Failure.STALE else failure.value
            self.answer(Reply(status, end, f"{detail} (upstream {self._plan.upstream_name})"))

    # Within.

    def _go(self, upstream: LiveUpstream, endpoint: LiveEndpoint | None, now: float) -> None:
        """Use an endpoint, or wait for one if they are all at their limit."""
        if endpoint is not None:
            upstream.take(endpoint)
            self._use(endpoint, now)
            return
        self._waiting = upstream.wait(self, now)
        if self._waiting is None:
            self.answer(no_backend(upstream.name))

    def _use(self, endpoint: LiveEndpoint, now: float, *, fresh: bool = False) -> None:
        """Get a connection to the endpoint, a new one if it is to be `fresh`."""
        self._step = _CONNECTING
        self._endpoint = endpoint
        self._backend_key = endpoint.key
        self._try_started = now
        pool, said = endpoint.pool, b""
        if pool.send_proxy:
            said = self._client.proxy_header(pool.send_proxy, self._peer.address)
        if not fresh:
            connection = pool.take_of(said, now) if said else pool.take(now)
            if connection is not None:
                self._reused = True
                self._send(connection, now)
                return
        self._reused = False
        self._connecting = pool.connect(self, said)
        if self._connecting is None:
            self._leave_endpoint(endpoint, "limited", now)
            self.answer(Reply(503, "limited", "too many connections to one backend are being made"))

    def _send(self, connection: BackendConnection, now: float) -> None:
        upstream, endpoint = self._upstream, self._endpoint
        assert upstream is not None, "see start"
        assert endpoint is not None, "a connection leads to one"
        self._backend = connection
        self._step = _SENT
        self._written = True
        head, worker = self._head, self._worker
        block = forwarding.request_block(
            head,
            host=forwarding.host_for(upstream.policy.host, head.fields.host, endpoint.authority),
            peer=self._peer,
            via=worker.via,
            upgrade=self.upgrade,
        )
        data = b"%b %b HTTP/1.1\r\nX-Request-ID: %b%b" % (
            self.method,
            head.target,
            self._request_id,
            block,
        )
        if self._held:
            body = b"".join(self._held)
            self._body_sent = len(body)
            data += body
            if self._body_sent > REPLAY_BYTES_MAX:
                self._replayable = False
                self._held.clear()
        # Whoever expects 100-continue waits for the backend's word before its body.
        can_answer = self._whole or self._head.fields.expects_continue
        # What has this as its base is an `Asker`.
        connection.begin(self, data, now, whole=can_answer)  # type: ignore[arg-type]
        if not self._whole and not connection.clogged:
            self._client.release()

    def _retry(self, failure: Failure, endpoint: LiveEndpoint, now: float) -> bool:
        """Try once more, if that is allowed; False if it is not."""
        upstream = self._upstream
        assert upstream is not None, "see start"
        answer = self._judge(failure, [end for _, _, end in self._tries])
        if answer is Answer.NO:
            return False
        if answer is Answer.YES and self._written and not self._retrying:
            self._retrying = True
            upstream.budget.retrying += 1
        tried = [*self._tried, endpoint]
        other = upstream.pick(tried, self._key, now)
        if other is None and answer is Answer.ELSEWHERE:
            return False
        if failure is not Failure.STALE:
            self._tried = tried  # A stale connection says nothing of its backend.
        self._worker.view[endpoint.retries[ERROR_KINDS[failure]]] += 1
        self._written = False
        if other is not None or failure is Failure.STALE:
            upstream.take(other or endpoint)
            self._use(other or endpoint, now, fresh=failure is Failure.STALE)
        else:
            self._step = _CONNECTING
            delay = self._worker.rng.uniform(*SAME_BACKEND_DELAY_S)
            self._worker.loop.call_later(delay, self._try_again)
        return True

    def _judge(self, failure: Failure, ends: list[str]) -> Answer:
        upstream = self._upstream
        assert upstream is not None, "see start"
        retries = upstream.policy.retries
        answer = judge(
            failure,
            ends,
            retries.attempts,
            wrote=self._written,
            idempotent=retries.non_idempotent or self.method in IDEMPOTENT,
            replayable=self._replayable,
            begun=self._bytes_out > 0,
        )
        # The budget is for repeated work: what was never sent is none.
        if answer is Answer.YES and self._written and not self._retrying:
            return Answer.YES if upstream.budget.allows(upstream.active) else Answer.NO
        return answer

    def _passes_over(self, head: ResponseHead, now: float) -> bool:
        """Take a request elsewhere whose answer has a status that is to be tried again."""
        upstream, endpoint, backend = self._upstream, self._endpoint, self._backend
        assert upstream is not None, "see start"
        assert endpoint is not None, "somebody answered"
        assert backend is not None, "somebody answered"
        ends = [*(end for _, _, end in self._tries), Failure.STATUS.value]
        if (
            (self.hooks is not None and self.hooks.judged)
            or not self._whole
            or self._judge(Failure.STATUS, ends) is Answer.NO
            or upstream.pick([*self._tried, endpoint], self._key, now) is None
        ):
            return False
        backend.close()
        upstream.judge(endpoint, head.status, now)
        self._worker.view[endpoint.classes[head.status // 100]] += 1
        self.backend_failed(Failure.STATUS, "an answer to be tried again")
        return True

    def _try_again(self) -> None:
        """Go back to an endpoint that was tried, after a pause; it may be another by now."""
        upstream = self._upstream
        if self._step is not _CONNECTING or self._endpoint is not None or upstream is None:
            return
        now = monotonic()
        self._go(upstream, upstream.pick(self.barred, self._key, now), now)
