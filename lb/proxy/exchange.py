"""
One request and its response, through us.

The life of an exchange, in the order of its steps:

    CONNECTING  an endpoint is picked; no connection yet, its body (if any) is held
    SENT        the head is on its way, and what of the body came; waiting for the response
    RESPONDING  the response's head went to the client; its body follows
    DONE        counted and logged; connections went back, or were closed

A failed try leads from CONNECTING or SENT back to CONNECTING as long as `retry` allows it,
else to an answer of our own. Methods are grouped by who calls them: the client connection,
the pool, the backend connection.
"""

from __future__ import annotations

from collections.abc import Container
from time import monotonic
from typing import Final

from lb.errors import OurError
from lb.http1 import forwarding
from lb.http1.forwarding import CHUNKED, IDEMPOTENT
from lb.http1.framing import LAST_CHUNK, BodyReader, Octets, chunk
from lb.http1.head import RequestHead, ResponseHead
from lb.http1.peers import Peer
from lb.http1.replies import Reply
from lb.outlier import LOWEST_STATUS
from lb.proxy.accesslog import FLUSH_LINES
from lb.proxy.client import Client
from lb.proxy.deadlines import NEVER
from lb.proxy.plan import Plan, WorkerState
from lb.proxy.trying import Step, Trying
from lb.proxy.tunnel import Tunnel
from lb.proxy.upstream import LiveEndpoint, LiveUpstream
from lb.retry import REPLAY_BYTES_MAX

JOIN_BYTES_MAX: Final = 8 * 1024  # up to here a copy beats a list of pieces

# Looked up once: see `backend_connection`.
_RESPONDING, _DONE = Step.RESPONDING, Step.DONE


class Exchange(Trying):
    """Carries one request to a backend, its response back, and says how it went."""

    __slots__ = (
        "_bytes_in", "_chunking", "_counted", "_ends_by_close", "_held_bytes", "_keep", "_started",
        "_tunnel", "deadline",
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
        Trying.__init__(self, worker, plan, upstream, client, peer, head, started)
        self._started = started
        self._tunnel: Tunnel | None = None
        self._keep = True  # as far as the two messages are concerned
        self._ends_by_close = False  # the response has neither length nor chunks
        self._held_bytes = 0
        self._chunking = False
        self._bytes_in = 0
        self._counted = False  # among its upstream's active ones
        self.deadline = NEVER

    # Called by the client connection.

    def start(self, key: bytes, first: LiveEndpoint | None = None) -> None:
        """Go to a backend, `first` if given; `key` is what the hash policy balances by."""
        upstream = self._upstream
        assert upstream is not None, "without an upstream there is only `answer`"
        upstream.active += 1
        self._key = key
        self._counted = True
        if self._plan.timeout:
            self.deadline = self._started + self._plan.timeout
            self._worker.deadlines.watch(self)
        limit = self._plan.body_max
        if limit is not None and self._head.fields.length > limit:
            self._refuse_body(limit)
            return
        endpoint = first
        barred = () if self.hooks is None else self.hooks.barred
        if upstream.trials and endpoint is None and not barred:
            safe = self._whole and self.method in IDEMPOTENT
            endpoint = upstream.pick_trial(self._started, safe=safe)
        if endpoint is None:
            endpoint = upstream.pick(barred, key, self._started)
        self._go(upstream, endpoint, self._started)

    def answer(self, reply: Reply) -> None:
        """Answer by ourselves; ends the exchange."""
        if self.hooks is not None and self.hooks.answered(reply):
            return
        keep = self._keep and self._whole and self._client.keeps
        data = self._worker.render(reply, close=not keep, method=self.method)
        self._status = reply.status
        self._bytes_out += len(data)
        self._client.write(data)
        self._finish(reply.end, monotonic(), keep=keep)

    def request_data(self, payload: bytes, *, whole: bool) -> None:
        """Take octets of the request's body, decoded; `whole`: they are the last."""
        if self._tunnel is not None:
            self._pass_to_backend(self._tunnel, payload)
            return
        if self.hooks is not None:
            data = self.hooks.request_data(payload, whole=whole)
            if data is None:
                return
            payload = data
        self._bytes_in += len(payload)
        limit = self._plan.body_max
        if limit is not None and self._bytes_in > limit:
            self._refuse_body(limit)
            return
        self._whole = whole
        data = payload
        if self._head.fields.chunked:
            data = (chunk(payload) if payload else b"") + (LAST_CHUNK if whole else b"")
        if self._replayable:
            self._held.append(data)
            self._held_bytes += len(data)
        if self._backend is not None:
            self._body_sent += len(data)
            if self._body_sent > REPLAY_BYTES_MAX:
                self._replayable = False
                self._held.clear()
            self._backend.send(data, whole=whole)
        elif self._held_bytes > REPLAY_BYTES_MAX:
            self._client.hold()  # Until there is a backend that takes it.

    def client_ended(self) -> None:
        """The client says no more into a tunnel; it may still listen."""
        if self._tunnel is not None and self._backend is not None:
            self._tunnel.client_ended()
            self._backend.end_writing()

    def say_goodbye(self) -> None:
        """Tell both ends of a WebSocket that it is over (RFC 6455 7.4.1)."""
        if self._tunnel is not None and self._backend is not None:
            to_client, to_backend = self._tunnel.goodbyes()
            if to_client:
                self._client.write(to_client)
            if to_backend:
                self._backend.send(to_backend, whole=False)

    @property
    def tunnels(self) -> bool:
        """Whether it has become a tunnel."""
        return self._tunnel is not None

    def client_lost(self, end: str = "client_closed") -> None:
        """Learn that nobody wants the response any more."""
        if self._step is _DONE:
            return
        if not self._status:
            self._status = 499
        now = monotonic()
        self._drop_backend(end, now, reusable=False)
        self._finish(end, now, keep=False)

    def stalled(self, end: str, detail: str) -> None:
        """The client has not sent more of its body in time, or not enough of it."""
        self._end_early(Reply(408, end, detail))

    def malformed(self, detail: str) -> None:
        """The client's body is none (RFC 9112 7.1)."""
        self._end_early(Reply(400, "client_error", detail))

    def uses(self, endpoints: Container[LiveEndpoint]) -> bool:
        """Whether it runs on one of these."""
        return self._endpoint in endpoints

    def pause_response(self) -> None:
        """The client reads slower than the backend sends."""
        if self._backend is not None and self._step is _RESPONDING:
            self._backend.pause_reading()

    def resume_response(self) -> None:
        """The client has caught up."""
        if self._backend is not None and self._step is _RESPONDING:
            self._backend.resume_reading()

    def on_deadline(self, now: float) -> None:
        """The route's `timeout` for the whole exchange has passed, or a tunnel's silence."""
        self.deadline = NEVER
        if self._tunnel is not None:
            self._end_early(Reply(504, "tunnel_idle"))
            return
        detail = f"route.{self._plan.route}.timeout passed"
        self._end_early(Reply(504, "backend_timeout", detail))

    def ask_to_end(self) -> None:
        """The backend has left, and `drain.soft` has passed: be the last on this connection."""
        self._keep = False

    def overdue(self) -> None:
        """The backend has left, and `drain.force` has passed."""
        self._end_early(Reply(503, "shutdown", "drain.force of the upstream passed"))

    # Called by the backend connection.

    def interim(self, head: ResponseHead) -> None:
        """Pass on a 1xx response (RFC 9110 15.2), not to an HTTP/1.0 client."""
        if self._head.minor:
            data = forwarding.interim_head(head.text, head.fields)
            self._bytes_out += len(data)
            self._client.write(data)
        self._client.invited()

    def switched(self, head: ResponseHead, payload: bytes, now: float) -> None:
        """Take a 101 that was asked for: from here on, octets pass both ways."""
        assert self._backend is not None, "somebody answered"
        assert self._upstream is not None, "see start"
        self._step = _RESPONDING
        self._status = head.status
        self._first_byte_s = now - self._try_started
        self._keep = False
        self._replayable = False
        self._tunnel = Tunnel(self.upgrade, self._upstream.policy.timeouts.tunnel)
        self._backend.keep_alive()
        self.deadline = now + self._tunnel.idle_s
        self._worker.deadlines.watch(self)
        self._client.switch()
        data = forwarding.switching_head(head.text, head.fields)
        self._bytes_out += len(data)
        self._client.write(data)
        if payload:
            self.response_continued(payload)

    def response_started(  # noqa: C901 - the one place that all responses pass
        self, head: ResponseHead, body: BodyReader | None, payload: Octets, now: float
    ) -> None:
        """Take a response's head, and what came of its body with it."""
        if self.hooks is not None and self.hooks.response_started(head, body, payload, now):
            return
        assert self._upstream is not None, "see start"
        statuses = self._upstream.policy.retries.statuses
        if statuses and head.status in statuses and self._passes_over(head, now):
            return
        self._step = _RESPONDING
        self._status = status = head.status
        self._first_byte_s = now - self._try_started
        framing = forwarding.response_framing(
            status,
            head.fields,
            minor=self._head.minor,
            open_ended=body is not None and body.open_ended,
        )
        if body is not None:
            self._chunking = framing is CHUNKED
            if not framing:
                self._ends_by_close = True
                self._keep = False
        if not self._whole or not self._client.keeps:
            self._keep = False
        data = forwarding.response_head(
            head.text, head.fields, framing, self._worker.date, close=not self._keep
        )
        if payload:
            if self._chunking:
                payload = chunk(payload)
            if len(payload) > JOIN_BYTES_MAX:
                self._bytes_out += len(data) + len(payload)
                self._client.write_all([data, payload])
                data = b""
            else:
                data += payload
        if data:
            self._bytes_out += len(data)
            self._client.write(data)
        if self._client.clogged:
            self.pause_response()

    def response_continued(self, payload: Octets) -> None:
        """Take more of the response's body."""
        if self.hooks is not None:
            payload = self.hooks.response_continued(payload)
            if not payload:
                return
        if self._tunnel is not None:
            self._tunnel.from_backend(bytes(payload))
            self.deadline = monotonic() + self._tunnel.idle_s
        if self._chunking:
            payload = chunk(payload)
        self._bytes_out += len(payload)
        self._client.write(payload)

    def response_ended(self, now: float, *, reusable: bool) -> None:
        """Take the end of the response."""
        if self.hooks is not None and self.hooks.response_ended(now, reusable=reusable):
            return
        if self._chunking:
            self._bytes_out += len(LAST_CHUNK)
            self._client.write(LAST_CHUNK)
        endpoint = self._endpoint
        assert endpoint is not None, "somebody answered"
        if endpoint.failures or self._status >= LOWEST_STATUS:
            assert self._upstream is not None, "see start"
            self._upstream.judge(endpoint, self._status, now)
        self._drop_backend("ok", now, reusable=reusable and self._whole)
        self._finish("ok", now, keep=self._keep and self._whole)

    def hold_request(self) -> None:
        """The backend reads slower than the client sends."""
        if not self._whole:
            self._client.hold()

    def release_request(self) -> None:
        """The backend has caught up."""
        self._client.release()

    # Ending.

    def _refuse_body(self, limit: int) -> None:
        self._client.met_limit("body_max")
        detail = f"the body is over route.{self._plan.route}.body_max ({limit} bytes)"
        self._end_early(Reply(413, "too_large", detail))

    def _pass_to_backend(self, tunnel: Tunnel, payload: bytes) -> None:
        tunnel.from_client(payload)
        self._bytes_in += len(payload)
        self.deadline = monotonic() + tunnel.idle_s
        if self._backend is not None:
            self._backend.send(payload, whole=False)

    def _end_early(self, reply: Reply) -> None:
        """End now: by an answer if none has begun, else by cutting the response short."""
        if self._step is _DONE:
            return
        now = monotonic()
        begun = self._bytes_out > 0
        self.say_goodbye()
        self._drop_backend(reply.end, now, reusable=False)
        if self._tunnel is not None:
            self._finish(reply.end, now, keep=False)
        elif begun:
            self._finish(reply.end, now, keep=False, cut=True)
        else:
            self._keep = False
            self.answer(reply)

    def _finish(self, end: str, now: float, *, keep: bool, cut: bool = False) -> None:
        if self._step is _DONE:
            raise OurError("an exchange ends once")
        hooks = self.hooks
        if hooks is not None:
            hooks.ending()
        self._step = _DONE
        if self._waiting is not None:
            self._waiting.exchange = None
        if self.deadline is not NEVER or self._plan.timeout:
            self._worker.deadlines.forget(self)
        upstream = self._upstream
        if upstream is not None and self._counted:
            upstream.active -= 1
            if self._retrying:
                upstream.budget.retrying -= 1
        if self._held:
            self._held.clear()
        self._record(end, now)
        client = self._client
        if cut:
            client.cut(reset=self._ends_by_close)
        else:
            client.finished(now, keep=keep)
        if hooks is not None:
            self.hooks = None  # The two know each other: parted, they go without the collector.
            hooks.ended(end, now)

    def _record(self, end: str, now: float) -> None:
        """Count and log."""
        worker, plan = self._worker, self._plan
        seconds = now - self._started
        plan.count(self.method, self._status, seconds, self._bytes_in, self._bytes_out)
        log = worker.log
        if log is None:
            return
        log.append(
            (
                worker.wall_offset + now,
                self._request_id,
                self._client.listener,
                self._peer.address,
                self.method,
                self._head.fields.host or b"",
                self._head.target,
                self._head.minor,
                self._status,
                seconds,
                self._connect_s,
                self._first_byte_s,
                self._bytes_in,
                self._bytes_out,
                plan.route,
                plan.upstream_name,
                self._backend_key,
                tuple(self._tries),
                self._reused,
                end,
                self._head.octets if worker.log_wants_head else b"",
                self._peer.proto,
                "" if self.hooks is None else self.hooks.plugin,
            )
        )
        if len(log.records) >= FLUSH_LINES:
            log.flush()
