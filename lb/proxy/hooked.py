"""
What plugins have to say of an exchange.

Only exchanges of which plugins want something have this. A plugin's answer, its changes to the
two heads, its hand on the two bodies: each is worked in before the exchange goes on. That is one
class, whatever plugins do: two that share their methods would each make the other slower, since
Python remembers at each place the class that it saw there last (measured: 7.2 us without, 10.9
beside one of a subclass). While a hook waits (`async def`), what comes of the
request is held as for a slow backend, and what comes of the response is put aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Final

from lb.http1.framing import BodyReader, Octets
from lb.http1.head import RequestHead, ResponseFields, ResponseHead, altered, made_head
from lb.http1.replies import REASONS, Reply, body_of, has_body
from lb.plugin import End, Request, Response, Transform
from lb.plugin_code import FAILURES, contained
from lb.proxy.chain import Chain, LivePlugin, Outcome
from lb.proxy.exchange import Exchange
from lb.proxy.trying import Step
from lb.proxy.upstream import LiveEndpoint
from lb.retry import REPLAY_BYTES_MAX, Failure

HOOK_SECONDS_MAX: Final = 30.0  # That a hook may wait.

Then = Callable[[Reply | None], None]


def open_hooked(
    exchange: Exchange, chain: Chain, key: bytes, otherwise: Reply | None = None
) -> None:
    """
    Ask the plugins, then go on: to a backend, `key` by its balancer, or with an answer of ours.

    Where plugins only ask, nearly all requests pass as they came, and are plain from here on.
    """
    req = Request(exchange)
    outcome = chain.ask(req)
    if outcome is not None or chain.tells or not _as_it_came(req):
        hooked = exchange.hooks = Hooked(exchange, chain, req)
        hooked.begin(outcome, key, otherwise)
    elif otherwise is not None:
        exchange.answer(otherwise)
    else:
        exchange.start(key)


def _as_it_came(req: Request) -> bool:
    headers = req._headers
    return not req.touched and (headers is None or not headers.changed)


class Hooked:
    """Walks a chain with a request, then with its response, and tells it of the end: `Hooks`."""

    # What most exchanges never need costs them nothing.
    barred: Sequence[LiveEndpoint] = ()
    judged = False
    plugin = ""
    _aside: list[Callable[[], None]] | None = None  # What came while a hook waited.
    _early: list[tuple[bytes, bool]] | None = None  # Of the body, before all had been asked.
    _outward: tuple[Transform, ...] = ()
    _unread = False  # Of a body that is replaced, the client has not sent all there is.
    _shown = False  # Plugins have seen the response, or are seeing it.
    _waited: asyncio.Future[Reply | None] | None = None
    _wait_ends: asyncio.TimerHandle | None = None

    def __init__(self, exchange: Exchange, chain: Chain, req: Request) -> None:
        self._exchange = exchange
        self._chain = chain
        self._req = req
        self.came = exchange._head
        chain.running += 1

    # Asking.

    def begin(self, outcome: Outcome, key: bytes, otherwise: Reply | None) -> None:
        """Go on with what the plugins that have been asked want."""
        self._instead = key, otherwise
        if outcome is None and otherwise is None and _as_it_came(self._req):
            self._exchange.start(key)
        else:
            self._go_on_asking(outcome)

    def _go_on_asking(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reply):
            self.plugin = self._chain.lives[self._req.asked].name
            self._exchange.answer(outcome)
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
        exchange, req = self._exchange, self._req
        upstream = exchange._upstream
        if upstream is None:
            assert otherwise is not None, "it goes somewhere or is answered"
            exchange.answer(otherwise)
            return
        exchange._head = self._altered_head(req)
        if req._id is not None:
            exchange._request_id = req._id.encode()
        self._unread = req.new_body is not None and not exchange._whole
        early, self._early = self._early, None
        for payload, whole in early or ():
            # Only now is it known who changes it, and how it is framed.
            exchange._bytes_in -= len(payload)
            exchange.request_data(payload, whole=whole)
            if self._over or self._shown:  # It is being answered.
                return
        if req.new_body is not None:
            exchange._held = [req.new_body]
            exchange._whole = True
        first = None
        if req.forbidden:
            self.barred = exchange._tried = upstream.endpoints_of(req.forbidden)
        if req.preferred and req.preferred not in req.forbidden:
            first = upstream.usable(req.preferred)
        exchange.start(key, first)

    def _altered_head(self, req: Request) -> RequestHead:
        head, fields = self.came, self.came.fields
        headers = req._headers
        length, chunked = fields.length, fields.chunked
        if req.new_body is not None:
            length, chunked = len(req.new_body), False
        elif req.resized and (chunked or length > 0):
            length, chunked = -1, True
        changed = headers is not None and headers.changed
        if not (changed or req.new_target or req.new_host) and length == fields.length:
            return head
        exchange = self._exchange
        if req.new_host and exchange._peer.host is None:
            exchange._peer = replace(exchange._peer, host=fields.host)
        return altered(
            head,
            target=req.new_target or head.target,
            kept=headers.kept if headers is not None else fields.kept,
            host=req.new_host or fields.host,
            length=length,
            chunked=chunked,
        )

    # Called by the exchange, see `Hooks`.

    def request_data(self, payload: bytes, *, whole: bool) -> bytes | None:
        """Take octets of the request's body, through the plugins that change it."""
        exchange, req = self._exchange, self._req
        if self._early is not None:
            self._early.append((payload, whole))
            exchange._bytes_in += len(payload)
            exchange._whole = whole
            if exchange._bytes_in > REPLAY_BYTES_MAX:
                exchange._client.hold()  # Until there is a backend that takes it.
            return None
        if req.new_body is None and not req.transforms:
            return payload
        exchange._bytes_in += len(payload)
        if req.new_body is not None:
            self._unread = not whole
            return None  # It goes nowhere.
        try:
            data = (_through if whole else _passed)(req.transforms, payload)
        except FAILURES as error:
            self._transform_failed("on_request", error)
            return None
        if not data and not whole:
            return None
        exchange._bytes_in -= len(data)  # The exchange counts these.
        return data

    def answered(self, reply: Reply) -> bool:
        """Show an answer of our own to the plugins, and send it as they have it."""
        if self._unread:
            self._exchange._keep = False
        if self._shown or not self._chain.responds or self._req.asked < 0:
            return False
        self._shown = True
        head = made_head(reply.status, reply.fields, len(body_of(reply)))
        res = Response(head, "", has_body(reply, self._exchange.method))

        def then(other: Reply | None) -> None:
            self._exchange.answer(other or self._reworked(reply, res))

        self._show(res, self._chain.respond(self._req, res), then)
        return True

    def response_started(
        self, head: ResponseHead, body: BodyReader | None, payload: Octets, now: float
    ) -> bool:
        """Take a response's head, and show it to the plugins."""
        chain, exchange = self._chain, self._exchange
        if self._unread:
            exchange._keep = False
        if not chain.responds or self._shown:
            return False
        assert exchange._upstream is not None, "see start"
        statuses = exchange._upstream.policy.retries.statuses
        if statuses and head.status in statuses and exchange._passes_over(head, now):
            return True
        self._shown = self.judged = True
        res = Response(head, exchange._backend_key, body is not None)
        outcome = chain.respond(self._req, res)
        if outcome is None:
            return self._passed_on(head, body, payload, now, res)

        def then(reply: Reply | None) -> None:
            if reply is not None:
                self.plugin = chain.lives[self._req.answering].name
                self._replace_response(head, reply, now)
            elif not self._passed_on(head, body, payload, now, res):
                exchange.response_started(head, body, payload, now)

        self._show(res, outcome, then)
        return True

    def response_continued(self, payload: Octets) -> Octets:
        """Take more of the response's body, through the plugins that change it."""
        if self._aside is not None:
            data = bytes(payload)
            self._aside.append(lambda: self._exchange.response_continued(data))
            return b""
        if not self._outward:
            return payload
        try:
            return _passed(self._outward, payload)
        except FAILURES as error:
            self._transform_failed("on_response", error)
            return b""

    def response_ended(self, now: float, *, reusable: bool) -> bool:
        """Take the end of the response, and what is left of a body that plugins change."""
        exchange = self._exchange
        if self._aside is not None:
            self._aside.append(lambda: exchange.response_ended(now, reusable=reusable))
            return True
        if not self._outward:
            return False
        outward, self._outward = self._outward, ()
        try:
            last = _through(outward, b"")
        except FAILURES as error:
            self._transform_failed("on_response", error)
            return True
        if last:
            exchange.response_continued(last)
        return False

    def backend_failed(self, failure: Failure, detail: str) -> bool:
        """Take the failure of a try, in its turn."""
        if self._aside is None:
            return False
        self._aside.append(lambda: self._exchange.backend_failed(failure, detail))
        return True

    def ending(self) -> None:
        """Wait no more; what is logged is the request as it came."""
        if self._wait_ends is not None:
            self._stop_waiting()
        self._exchange._head = self.came
        if self._req._id is not None:
            self._exchange._request_id = self._req._id.encode()  # Also where nothing was sent on.

    def ended(self, end: str, now: float) -> None:
        """Tell the plugins how it went."""
        chain, exchange = self._chain, self._exchange
        chain.running -= 1
        if chain.finishes and self._req.asked >= 0:
            chain.finish(
                self._req,
                End(
                    exchange._status,
                    end,
                    now - exchange._started,
                    exchange._bytes_in,
                    exchange._bytes_out,
                    exchange._backend_key,
                    exchange._plan.upstream_name,
                ),
            )

    # Responses as the plugins have them.

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

    def _passed_on(
        self,
        head: ResponseHead,
        body: BodyReader | None,
        payload: Octets,
        now: float,
        res: Response,
    ) -> bool:
        """Send a response on as the plugins changed it; False if it is as it came."""
        changed = res._headers is not None and res._headers.changed
        if not (changed or res.new_status or res.transforms):
            return False
        if res.transforms and body is not None:
            try:
                payload = _passed(res.transforms, payload)
            except FAILURES as error:
                self._transform_failed("on_response", error)
                return True
            self._outward = res.transforms
        head = _altered_response(head, res, has_body=body is not None)
        self._exchange.response_started(head, body, payload, now)
        return True

    def _replace_response(self, head: ResponseHead, reply: Reply, now: float) -> None:
        """Give another answer than the backend did, which is no fault of the backend's."""
        exchange = self._exchange
        endpoint = exchange._endpoint
        exchange._step = Step.RESPONDING
        exchange._status = head.status
        exchange._first_byte_s = now - exchange._try_started
        if endpoint is not None and exchange._upstream is not None:
            exchange._upstream.judge(endpoint, head.status, now)
        exchange._drop_backend("ok", now, reusable=False)
        exchange.answer(reply)

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
        loop, backend = self._exchange._worker.loop, self._exchange._backend
        live = self._chain.lives[at]
        if hook == "on_request" and self._early is None:
            self._early = []
        if hook == "on_response" and backend is not None:
            self._aside = [] if self._aside is None else self._aside
            backend.pause_reading()
        future = loop.create_task(contained(work))
        if isinstance(work, Coroutine):
            # One that is cancelled before its first step would be said to be forgotten.
            future.add_done_callback(lambda _: work.close())
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
            # Another hook may wait by now: what it puts aside has to stay bounded.
            if self._aside is None and self._exchange._backend is not None:
                self._exchange._backend.resume_reading()
            for each in aside:
                if not self._over:
                    each()

    @property
    def _over(self) -> bool:
        return self._exchange._step is Step.DONE

    # Failing and ending.

    def _blame(self, hook: str, error: BaseException) -> Reply | None:
        """Count a failure on a transform's part, whose plugin is not known: the last to look."""
        at = self._req.answering if hook == "on_response" else self._req.asked
        live = self._chain.lives[min(max(at, 0), len(self._chain.lives) - 1)]
        return live.failed(hook, error, self._req.request_id)

    def _transform_failed(self, hook: str, error: BaseException) -> None:
        """A body that is changed in part can neither be passed on nor be passed over."""
        reply = self._blame(hook, error)
        self._exchange._end_early(
            reply or Reply(500, "plugin_error", "a plugin failed within a body")
        )

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
