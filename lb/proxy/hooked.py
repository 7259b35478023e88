"""
An exchange that plugins have a say in.

Only routes with plugins have these; what they add stands here, so that all others pay nothing.
A plugin's answer, its changes to the two heads, its hand on the two bodies: each is worked in
before the plain exchange sees anything. While a hook waits (`async def`), what comes of the
request is held as for a slow backend, and what comes of the response is put aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from lb.http1.framing import BodyReader, Octets
from lb.http1.head import RequestHead, ResponseFields, ResponseHead, altered, made_head
from lb.http1.peers import Peer
from lb.http1.replies import REASONS, Reply, body_of, has_body
from lb.plugin import End, Request, Response, Transform
from lb.plugin_code import FAILURES
from lb.proxy.chain import Chain, LivePlugin, Outcome
from lb.proxy.exchange import Exchange
from lb.proxy.trying import Step
from lb.retry import REPLAY_BYTES_MAX, Failure

HOOK_SECONDS_MAX: Final = 30.0  # That a hook may wait.
_OVER: Final[Request] = Request(None)  # type: ignore[arg-type]  # Stands where one was.

Then = Callable[[Reply | None], None]


class Hooked(Exchange):
    """Walks its chain with the request, then with the response, and tells it of the end."""

    __slots__ = ("__dict__", "_came", "_chain", "_req")

    # What most exchanges never need costs them nothing.
    _aside: list[Callable[[], None]] | None = None  # What came while a hook waited.
    _early: list[tuple[bytes, bool]] | None = None  # Of the body, before all had been asked.
    _instead: tuple[bytes, Reply | None] = (b"", None)  # Key and answer, where a hook waits.
    _outward: tuple[Transform, ...] = ()
    _shown = False  # Plugins have seen the response, or are seeing it.
    _waited: asyncio.Future[Reply | None] | None = None
    _wait_ends: asyncio.TimerHandle | None = None

    # Read by `Request`.

    @property
    def head(self) -> RequestHead:
        """The request as it came."""
        return self._came

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

    # Called by the switchboard.

    def open(self, key: bytes, otherwise: Reply | None) -> None:
        """Ask the plugins, then go on as a plain one: to a backend, or with an answer of ours."""
        chain = self._plan.chain
        assert chain is not None, "a plan without plugins has plain exchanges"
        self._chain: Chain = chain
        chain.running += 1
        self._came = self._head  # As it came: what is logged, whatever is sent on.
        self._req = req = Request(self)
        outcome = chain.ask(req)
        if (
            outcome is None
            and self._upstream is not None
            and not req.touched
            and req._headers is None
        ):
            Exchange.start(self, key)
            return
        self._instead = key, otherwise
        self._go_on_asking(outcome)

    def _go_on_asking(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reply):
            self.plugin = self._chain.lives[self._req.asked].name
            self.answer(outcome)
        elif outcome is None:
            self._enter()
        else:
            self._wait("on_request", self._req.asked, outcome, self._asked_on)

    def _asked_on(self, reply: Reply | None) -> None:
        if reply is not None:
            self._go_on_asking(reply)
        else:
            self._go_on_asking(self._chain.ask(self._req, self._req.asked))

    def _enter(self) -> None:
        """Send what the plugins made of the request."""
        key, otherwise = self._instead
        upstream, req = self._upstream, self._req
        if upstream is None:
            assert otherwise is not None, "it goes somewhere or is answered"
            self.answer(otherwise)
            return
        self._head = self._altered_head(req)
        if req._id is not None:
            self._request_id = req._id.encode()
        early, self._early = self._early, None
        for payload, whole in early or ():
            # Only now is it known who changes it, and how it is framed.
            self._bytes_in -= len(payload)
            self.request_data(payload, whole=whole)
            if self._over:
                return
        if req.new_body is not None:
            self._held = [req.new_body]
            self._whole = True
        first = None
        if req.forbidden:
            self.barred = self._tried = upstream.endpoints_of(req.forbidden)
        if req.preferred and req.preferred not in req.forbidden:
            first = upstream.usable(req.preferred)
        Exchange.start(self, key, first)

    def _altered_head(self, req: Request) -> RequestHead:
        head, fields = self._came, self._came.fields
        headers = req._headers
        length, chunked = fields.length, fields.chunked
        if req.new_body is not None:
            length, chunked = len(req.new_body), False
        elif req.resized and (chunked or length > 0):
            length, chunked = -1, True
        changed = headers is not None and headers.changed
        if not (changed or req.new_target or req.new_host) and length == fields.length:
            return head
        if req.new_host and self._peer.host is None:
            self._peer = replace(self._peer, host=fields.host)
        return altered(
            head,
            target=req.new_target or head.target,
            kept=headers.kept if headers is not None else fields.kept,
            host=req.new_host or fields.host,
            length=length,
            chunked=chunked,
        )

    # Called by the client connection.

    def request_data(self, payload: bytes, *, whole: bool) -> None:
        """Take octets of the request's body, through the plugins that change it."""
        if self._early is not None:
            self._early.append((payload, whole))
            self._bytes_in += len(payload)
            self._whole = whole
            if self._bytes_in > REPLAY_BYTES_MAX:
                self._client.hold()  # Until there is a backend that takes it.
            return
        req = self._req
        if self.tunnels or not (req.transforms or req.new_body is not None):
            Exchange.request_data(self, payload, whole=whole)
            return
        self._bytes_in += len(payload)
        if req.new_body is not None:
            return  # It goes nowhere.
        try:
            data = (_through if whole else _passed)(req.transforms, payload)
        except FAILURES as error:
            self._transform_failed("on_request", error)
            return
        self._bytes_in -= len(data)  # The plain one counts these.
        if data or whole:
            Exchange.request_data(self, data, whole=whole)

    # Answers of our own.

    def answer(self, reply: Reply) -> None:
        """Answer by ourselves, as the plugins have it; ends the exchange."""
        if self._shown or not self._chain.responds or self._req.asked < 0:
            Exchange.answer(self, reply)
            return
        self._shown = True
        head = made_head(reply.status, reply.fields, len(body_of(reply)))
        res = Response(head, "", has_body(reply, self.method))

        def then(other: Reply | None) -> None:
            Exchange.answer(self, other or self._reworked(reply, res))

        self._show(res, self._chain.respond(self._req, res), then)

    def _reworked(self, reply: Reply, res: Response) -> Reply:
        """Return a reply of ours as the plugins changed it."""
        fields = tuple(res.headers) if res._headers is not None else reply.fields
        body: str | bytes | None = reply.body
        if res.transforms and res.has_body:
            try:
                body = _through(res.transforms, body_of(reply))
            except FAILURES as error:
                return self._blame("on_response", error) or reply
        elif res.status != reply.status:
            body = body_of(reply)
        return replace(reply, status=res.status, fields=fields, body=body)

    # Called by the backend connection.

    def response_started(
        self, head: ResponseHead, body: BodyReader | None, payload: Octets, now: float
    ) -> None:
        """Take a response's head, and show it to the plugins."""
        chain = self._chain
        if not chain.responds or self._shown:
            Exchange.response_started(self, head, body, payload, now)
            return
        assert self._upstream is not None, "see start"
        statuses = self._upstream.policy.retries.statuses
        if statuses and head.status in statuses and self._passes_over(head, now):
            return
        self._shown = self.judged = True
        res = Response(head, self._backend_key, body is not None)
        outcome = chain.respond(self._req, res)
        if outcome is None:
            self._pass_on(head, body, payload, now, res)
            return

        def then(reply: Reply | None) -> None:
            if reply is not None:
                self.plugin = self._chain.lives[self._req.answering].name
                self._replace_response(head, reply, now)
            else:
                self._pass_on(head, body, payload, now, res)

        self._show(res, outcome, then)

    def _pass_on(
        self,
        head: ResponseHead,
        body: BodyReader | None,
        payload: Octets,
        now: float,
        res: Response,
    ) -> None:
        """Send a response on as the plugins changed it."""
        if res._headers is None and not res.transforms and not res.new_status:
            Exchange.response_started(self, head, body, payload, now)
            return
        if res.transforms and body is not None:
            self._outward = res.transforms
            try:
                payload = _passed(self._outward, payload)
            except FAILURES as error:
                self._transform_failed("on_response", error)
                return
        changed = res._headers is not None and res._headers.changed
        if changed or res.new_status or res.transforms:
            head = _altered_response(head, res, has_body=body is not None)
        Exchange.response_started(self, head, body, payload, now)

    def _replace_response(self, head: ResponseHead, reply: Reply, now: float) -> None:
        """Give another answer than the backend did, which is no fault of the backend's."""
        endpoint = self._endpoint
        self._step = Step.RESPONDING
        self._status = head.status
        self._first_byte_s = now - self._try_started
        if endpoint is not None and self._upstream is not None:
            self._upstream.judge(endpoint, head.status, now)
        self._drop_backend("ok", now, reusable=False)
        Exchange.answer(self, reply)

    def response_continued(self, payload: Octets) -> None:
        """Take more of the response's body, through the plugins that change it."""
        if self._aside is not None:
            data = bytes(payload)
            self._aside.append(lambda: self.response_continued(data))
            return
        if self._outward:
            try:
                payload = _passed(self._outward, payload)
            except FAILURES as error:
                self._transform_failed("on_response", error)
                return
            if not payload:
                return
        Exchange.response_continued(self, payload)

    def response_ended(self, now: float, *, reusable: bool) -> None:
        """Take the end of the response."""
        if self._aside is not None:
            self._aside.append(lambda: self.response_ended(now, reusable=reusable))
            return
        if self._outward:
            try:
                last = _through(self._outward, b"")
            except FAILURES as error:
                self._transform_failed("on_response", error)
                return
            if last:
                Exchange.response_continued(self, last)
        Exchange.response_ended(self, now, reusable=reusable)

    def backend_failed(self, failure: Failure, detail: str) -> None:
        """Take the failure of a try, in its turn."""
        if self._aside is not None:
            self._aside.append(lambda: self.backend_failed(failure, detail))
            return
        Exchange.backend_failed(self, failure, detail)

    # Waiting for a hook.

    def _show(self, res: Response, outcome: Outcome, then: Then) -> None:
        """Go on once all plugins have seen a response."""
        if outcome is None or isinstance(outcome, Reply):
            then(outcome)
            return

        def shown_on(reply: Reply | None) -> None:
            if reply is not None:
                then(reply)
            else:
                at = self._req.answering
                self._show(res, self._chain.respond(self._req, res, at), then)

        self._wait("on_response", self._req.answering, outcome, shown_on)

    def _wait(self, hook: str, at: int, work: Awaitable[Reply | None], then: Then) -> None:
        """Have a hook's coroutine run; `then` gets what it gives, or what its failure means."""
        if self._wait_ends is not None:
            self._stop_waiting()  # One whose exchange is being answered otherwise.
        loop = self._worker.loop
        live = self._chain.lives[at]
        if hook == "on_request" and self._early is None:
            self._early = []
        if hook == "on_response" and self._backend is not None:
            self._aside = [] if self._aside is None else self._aside
            self._backend.pause_reading()
        future = asyncio.ensure_future(work, loop=loop)
        self._waited = future
        self._wait_ends = loop.call_later(HOOK_SECONDS_MAX, future.cancel)
        future.add_done_callback(lambda done: self._waited_for(done, hook, live, then))

    def _waited_for(
        self, done: asyncio.Future[Reply | None], hook: str, live: LivePlugin, then: Then
    ) -> None:
        if self._waited is not done:
            if not done.cancelled():
                done.exception()  # The exchange has ended: nobody wants it.
            return
        self._waited = None
        if self._wait_ends is not None:
            self._wait_ends.cancel()
            self._wait_ends = None
        error: BaseException | None
        if done.cancelled():
            error = TimeoutError(f"it did not come back within {HOOK_SECONDS_MAX:g} s")
        else:
            error = done.exception()
        request_id = self._req.request_id
        if error is not None:
            reply = live.failed(hook, error, request_id)
        else:
            given = live.checked(hook, done.result(), request_id)
            reply = given if isinstance(given, Reply) else None
        aside, self._aside = self._aside, None
        then(reply)
        if aside is not None:
            if self._backend is not None:
                self._backend.resume_reading()
            for each in aside:
                if not self._over:
                    each()

    @property
    def _over(self) -> bool:
        return self._step is Step.DONE

    # Failing and ending.

    def _blame(self, hook: str, error: BaseException) -> Reply | None:
        """Count a failure on a transform's part, whose plugin is not known: the last to look."""
        at = self._req.answering if hook == "on_response" else self._req.asked
        live = self._chain.lives[min(max(at, 0), len(self._chain.lives) - 1)]
        return live.failed(hook, error, self._req.request_id)

    def _transform_failed(self, hook: str, error: BaseException) -> None:
        """A body that is changed in part can neither be passed on nor be passed over."""
        reply = self._blame(hook, error)
        self._end_early(reply or Reply(500, "plugin_error", "a plugin failed within a body"))

    def _finish(self, end: str, now: float, *, keep: bool, cut: bool = False) -> None:
        if self._wait_ends is not None:
            self._stop_waiting()
        chain, req = self._chain, self._req
        self._head = self._came
        if req._id is not None:
            self._request_id = req._id.encode()  # Also where nothing was sent on.
        Exchange._finish(self, end, now, keep=keep, cut=cut)
        chain.running -= 1
        if chain.finishes and req.asked >= 0:
            chain.finish(
                req,
                End(
                    self._status,
                    end,
                    now - self._started,
                    self._bytes_in,
                    self._bytes_out,
                    self._backend_key,
                    self._plan.upstream_name,
                ),
            )
        # The two know each other: parted, they go without the collector.
        self._req = _OVER

    def _stop_waiting(self) -> None:
        waited, self._waited = self._waited, None
        if waited is not None:
            waited.cancel()
        if self._wait_ends is not None:
            self._wait_ends.cancel()
            self._wait_ends = None


def _altered_response(head: ResponseHead, res: Response, *, has_body: bool) -> ResponseHead:
    fields = ResponseFields(head.fields.block)
    for name in ResponseFields.__slots__:
        setattr(fields, name, getattr(head.fields, name))
    if res._headers is not None:
        fields.kept = res._headers.kept
        fields.dated = "date" in res._headers
    if res.transforms:
        fields.length = -1
        fields.chunked = has_body
    text = head.text
    if res.new_status:
        text = b"%d %b" % (res.new_status, REASONS.get(res.new_status, b""))
    return ResponseHead(head.octets, head.minor, res.status, text, fields)


def _passed(transforms: tuple[Transform, ...], payload: Octets) -> bytes:
    data = bytes(payload)
    for each in transforms:
        if not data:
            break
        data = _octets(each.chunk(data))
    return data


def _through(transforms: tuple[Transform, ...], payload: Octets) -> bytes:
    """Pass a whole body, or what is left of one, through one transform after the other."""
    data = bytes(payload)
    for each in transforms:
        data = (_octets(each.chunk(data)) if data else b"") + _octets(each.end())
    return data


def _octets(given: object) -> bytes:
    if not isinstance(given, bytes | bytearray | memoryview):
        raise TypeError(f"a transform returned {type(given).__name__}, not bytes")
    return bytes(given)
