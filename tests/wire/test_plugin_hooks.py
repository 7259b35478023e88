"""What plugins do to requests and responses, in octets."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from lb.model import Endpoint, Respond, Route, Upstream
from wire.kit import Connection, Origin, answering, read_all, read_response, response, until
from wire.plugin_kit import hooked, install, plugin

GET = b"GET /a?b=c HTTP/1.1\r\nHost: shop.example\r\n\r\n"
CLOSE = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SAYS_NO = """
def on_request(self, req):
    return reply(403, {"X-Why": "no"}, "not you\\n")
"""
NOTES_ENDS = """
def start(self):
    self.ends = []
def on_request(self, req):
    return None
def on_finish(self, req, end):
    self.ends.append((end.status, end.cause, end.backend))
"""


def test_an_answer_keeps_the_connection_and_reaches_no_backend() -> None:
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": SAYS_NO}) as proxy,
        proxy.connect() as sock,
    ):
        for _ in range(2):
            sock.sendall(GET)
            head, body = read_response(sock)
            assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"X-Why: no\r\n" in head
            assert body == b"not you\n"
        sock.sendall(GET.replace(b"GET", b"HEAD"))
        assert b"Content-Length: 8\r\n" in sock.recv(65536)
        assert not origin.connections


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
def test_an_answer_before_the_body_has_come_is_not_lost(expects: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n" + expects + b"\r\n"
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": SAYS_NO}) as proxy,
    ):
        with proxy.connect() as sock:
            sock.sendall(head + b"x" * 1000)
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"\r\nConnection: close\r\n" in answer


def test_requests_sent_ahead_are_answered_in_turn() -> None:
    hooks = """
    def on_request(self, req):
        return reply(200, body=req.path) if req.path != "/a" else None
    """
    with Origin(answering(response(b"back"))) as origin, hooked([origin], {"one": hooks}) as proxy:
        with proxy.connect() as sock:
            sock.sendall(GET + GET.replace(b"/a?b=c", b"/x") + GET)
            buffer = bytearray()
            bodies = [read_response(sock, buffer)[1] for _ in range(3)]
        assert bodies == [b"back", b"/x", b"back"]


def test_what_goes_on_is_what_the_plugin_made_of_it() -> None:
    hooks = """
    def on_request(self, req):
        assert (req.method, req.path, req.query, req.host) == ("GET", "/a", "b=c", "shop.example")
        assert (req.listener, req.route, req.upstream) == ("web", "", "app")
        assert req.client == "127.0.0.1" and req.scheme == "http" and not req.has_body
        req.headers.set("X-One", "1")
        req.headers.append("X-Two", "b")
        req.headers.remove("X-Gone")
        req.headers.rename("X-Old", "X-New")
        req.rewrite("/other?q=1")
        req.set_host("inner.example")
        req.request_id = "named-by-us"
    """
    sent = (
        b"GET /a?b=c HTTP/1.1\r\nHost: shop.example\r\nX-Gone: 1\r\nX-Two: a\r\nX-Old: z\r\n"
        b"X-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n"
    )
    with Origin(answering(response())) as origin, hooked([origin], {"one": hooks}) as proxy:
        assert proxy.talk(sent).startswith(b"HTTP/1.1 200")
        (got,) = origin.requests
    assert got.startswith(b"GET /other?q=1 HTTP/1.1\r\nX-Request-ID: named-by-us\r\n")
    for line in (b"Host: inner.example", b"X-One: 1", b"X-Two: a", b"X-Two: b", b"X-New: z",
                 b"X-Forwarded-Host: shop.example", b"X-Forwarded-For: 127.0.0.1"):  # fmt: skip
        assert b"\r\n" + line + b"\r\n" in got, got
    assert b"X-Gone" not in got
    assert got.count(b"\r\nHost:") == 1


def test_what_frames_a_message_is_not_a_plugin_s_to_write() -> None:
    hooks = """
    def on_request(self, req):
        req.headers.set("Content-Length", "5")
    """
    with Origin(answering(response())) as origin, hooked([origin], {"one": hooks}) as proxy:
        assert proxy.talk(CLOSE).startswith(b"HTTP/1.1 500 ")
        assert not origin.requests


UPPER = """
class Upper:
    def chunk(self, data): return data.upper()
    def end(self): return b"!"
"""


def transforming(way: str) -> str:
    return f"""
    class Upper:
        def chunk(self, data): return data.upper()
        def end(self): return b"!"
    def on_{way}(self, req{", res" if way == "response" else ""}):
        {"req" if way == "request" else "res"}.transform_body(self.Upper())
    """


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
)
def test_a_request_s_body_is_changed_as_it_passes(body: bytes) -> None:
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": transforming("request")}) as proxy,
    ):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        assert proxy.talk(head + body).startswith(b"HTTP/1.1 200")
        (got,) = origin.requests
    assert b"\r\nTransfer-Encoding: chunked\r\n" in got
    assert b"Content-Length" not in got
    assert got.replace(b"\r\n", b"").endswith(b"3ABC1!0") or got.endswith(b"4\r\nABC!\r\n0\r\n\r\n")


def test_a_request_gets_another_body_whatever_comes() -> None:
    hooks = """
    def on_request(self, req):
        req.replace_body(b"ours")
    """
    with Origin(answering(response())) as origin, hooked([origin], {"one": hooks}) as proxy:
        assert proxy.talk(CLOSE).startswith(b"HTTP/1.1 200")
        post = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 6\r\n\r\ntheirs"
        assert proxy.talk(post).startswith(b"HTTP/1.1 200")
        for got in origin.requests:
            assert b"\r\nContent-Length: 4\r\n" in got
            assert got.endswith(b"\r\n\r\nours")


@pytest.mark.parametrize(
    ("answer", "request_", "body"),
    [
        (response(b"abc"), CLOSE, b"\r\n\r\n3\r\nABC\r\n1\r\n!\r\n0\r\n\r\n"),
        (response(b"abc"), b"GET / HTTP/1.0\r\n\r\n", b"\r\n\r\nABC!"),
        (response(b"abc"), CLOSE.replace(b"GET", b"HEAD"), b"\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", CLOSE, b"\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", CLOSE,
         b"\r\n\r\n2\r\nAB\r\n1\r\n!\r\n0\r\n\r\n"),
    ],
)  # fmt: skip
def test_a_response_s_body_is_changed_as_it_passes(
    answer: bytes, request_: bytes, body: bytes
) -> None:
    def script(connection: Connection, number: int) -> None:
        asked = connection.request()
        assert asked is not None
        connection.send(answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if asked[:4] == b"HEAD"
                        else answer)  # fmt: skip

    with Origin(script) as origin, hooked([origin], {"one": transforming("response")}) as proxy:
        got = proxy.talk(request_)
    assert got.endswith(body), got
    assert b"Content-Length: 3" not in got


def test_a_large_response_passes_a_slow_client_with_bounded_memory() -> None:
    size = 8 << 20
    with (
        Origin(answering(response(b"a" * size))) as origin,
        hooked([origin], {"one": transforming("response")}) as proxy,
        proxy.connect_slowly() as sock,
    ):
        sock.sendall(CLOSE)
        until(lambda: proxy.clogged, "a client that reads no more")
        got = read_all(sock)
        assert got.count(b"A") == size


def test_heads_and_status_of_responses_ours_included() -> None:
    hooks = """
    def on_request(self, req):
        return reply(429) if req.path == "/no" else None
    def on_response(self, req, res):
        res.headers.set("X-Seen", f"{res.status} {res.backend or 'ours'}")
        res.headers.remove("Server")
        if res.status == 500:
            res.status = 502
    """
    answer = response(b"ok", b"Server: secret", status=b"500 Oh")
    routes = [Route("r", path="/given", respond=Respond(200, body="r"))]
    with (
        Origin(answering(answer)) as origin,
        hooked([origin], {"one": hooks}, routes=routes) as proxy,
    ):
        got = proxy.talk(CLOSE)
        assert got.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"secret" not in got
        assert b"X-Seen: 500 " + origin.address.encode() in got
        assert b"X-Seen: 429 ours" in proxy.talk(CLOSE.replace(b"/a", b"/no"))
        assert b"X-Seen: 200 ours" in proxy.talk(CLOSE.replace(b"/a", b"/given"))
        origin.close()
        proxy.install(endpoints=[])
        assert b"X-Seen: 503 ours" in proxy.talk(CLOSE)


def test_another_answer_instead_of_the_backend_s() -> None:
    hooks = """
    def on_response(self, req, res):
        return reply(200, body="instead\\n")
    """
    with (
        Origin(answering(response(b"x" * 100_000))) as origin,
        hooked([origin], {"one": hooks}) as proxy,
        proxy.connect() as sock,
    ):
        for _ in range(2):
            sock.sendall(GET)
            assert read_response(sock)[1] == b"instead\n"
        until(lambda: proxy.busy == 0, "no connection left")


def test_order_both_ways() -> None:
    hooks = """
    def on_request(self, req):
        req.headers.append("X-Way", self.name)
    def on_response(self, req, res):
        res.headers.append("X-Back", self.name)
    """
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": hooks, "two": hooks, "three": hooks}) as proxy,
    ):
        got = proxy.talk(CLOSE)
        asked = origin.requests[0]
    names = [b"one", b"two", b"three"]
    assert [line[7:] for line in asked.split(b"\r\n") if line.startswith(b"X-Way")] == names
    assert [line[8:] for line in got.split(b"\r\n") if line.startswith(b"X-Back")] == names[::-1]


def test_those_after_an_answer_never_hear_of_it() -> None:
    after = NOTES_ENDS
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": SAYS_NO, "two": after}) as proxy,
    ):
        proxy.talk(CLOSE)
        assert plugin(proxy, "two").ends == []


@pytest.mark.parametrize("way", ["prefer", "forbid"])
def test_backends_are_preferred_and_forbidden(way: str) -> None:
    hooks = f"""
    def on_request(self, req):
        assert set(req.backends) == {{"a", "b"}}
        req.{way}("b")
    """
    with Origin(answering(response(b"a"))) as one, Origin(answering(response(b"b"))) as two:
        endpoints = [Endpoint("a", one.address), Endpoint("b", two.address)]
        with hooked(endpoints, {"one": hooks}) as proxy:
            got = {proxy.talk(CLOSE)[-1:] for _ in range(6)}
    assert got == {b"b" if way == "prefer" else b"a"}


def test_a_forbidden_backend_is_asked_by_no_retry_either() -> None:
    hooks = """
    def on_request(self, req):
        req.forbid("b")
    """
    with Origin(lambda connection, number: connection.reset()) as one, \
            Origin(answering(response(b"b"))) as two:  # fmt: skip
        endpoints = [Endpoint("a", one.address), Endpoint("b", two.address)]
        with hooked(endpoints, {"one": hooks}) as proxy:
            assert proxy.talk(CLOSE).startswith(b"HTTP/1.1 502 ")
            assert not two.requests


def test_the_end_is_told_once_whatever_it_is() -> None:
    def script(connection: Connection, number: int) -> None:
        asked = connection.request()
        if asked is not None and b"/cut" in asked:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        elif asked is not None and b"/gone" not in asked:
            connection.send(response())
        elif asked is not None:
            connection.request()  # Waits for the client to go.

    policy = Upstream("app")
    with Origin(script) as origin, hooked([origin], {"one": NOTES_ENDS}, upstream=policy) as proxy:
        proxy.talk(CLOSE)
        proxy.talk(CLOSE.replace(b"/a", b"/cut"))
        with proxy.connect() as sock:
            sock.sendall(CLOSE.replace(b"/a", b"/gone"))
            until(lambda: len(origin.requests) == 3, "it has come")
            leave(sock)
        ends = plugin(proxy).ends
        until(lambda: len(ends) == 3, "three ends")
        assert ends == [
            (200, "ok", origin.address),
            (200, "backend_closed", origin.address),
            (499, "client_closed", origin.address),
        ]


# --- Hooks that wait --------------------------------------------------------------------------

WAITS = """
def start(self):
    self.gate = asyncio.Event()
    self.waiting = 0
async def on_request(self, req):
    self.waiting += 1
    await self.gate.wait()
    req.headers.set("X-Waited", "1")
    return reply(200, body="by the hook") if req.path == "/own" else None
"""


def open_gate(proxy: Any) -> None:
    proxy.call(plugin(proxy).gate.set)


def test_a_request_waits_with_its_body_and_the_next_one_after_it() -> None:
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": WAITS}) as proxy,
        proxy.connect() as sock,
    ):
        body = b"x" * 300_000
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + body[:1000])
        until(lambda: plugin(proxy).waiting == 1, "it waits")
        open_gate(proxy)
        sock.sendall(body[1000:] + GET.replace(b"/a?b=c", b"/own"))
        buffer = bytearray()
        assert read_response(sock, buffer)[1] == b"ok"
        assert read_response(sock, buffer)[1] == b"by the hook"
        (got,) = origin.requests
        assert got.endswith(body)
        assert b"X-Waited: 1\r\n" in got


def test_a_client_that_leaves_ends_the_wait() -> None:
    with Origin(answering(response())) as origin, hooked([origin], {"one": WAITS}) as proxy:
        with proxy.connect() as sock:
            sock.sendall(GET)
            until(lambda: plugin(proxy).waiting == 1, "it waits")
            leave(sock)
        until(lambda: proxy.clients == 0, "the client gone")
        assert not origin.requests


def test_a_hook_that_waits_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.proxy.hooked.HOOK_SECONDS_MAX", 0.05)
    with Origin(answering(response())) as origin, hooked([origin], {"one": WAITS}) as proxy:
        assert proxy.talk(CLOSE).startswith(b"HTTP/1.1 500 ")
        assert not origin.requests


WAITS_BACK = """
def start(self):
    self.gate = asyncio.Event()
    self.waiting = 0
async def on_response(self, req, res):
    self.waiting += 1
    await self.gate.wait()
    res.headers.set("X-Waited", "1")
"""


@pytest.mark.parametrize("size", [2, 3 << 20])
def test_a_response_waits_and_loses_nothing(size: int) -> None:
    with (
        Origin(answering(response(b"y" * size))) as origin,
        hooked([origin], {"one": WAITS_BACK}) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET)
        until(lambda: plugin(proxy).waiting == 1, "it waits")
        open_gate(proxy)
        head, body = read_response(sock)
        assert b"X-Waited: 1\r\n" in head
        assert body == b"y" * size
        sock.sendall(GET)
        assert len(read_response(sock)[1]) == size


def test_a_backend_that_dies_while_the_hook_waits_cuts_the_response() -> None:
    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    with (
        Origin(script) as origin,
        hooked([origin], {"one": WAITS_BACK}) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET)
        until(lambda: plugin(proxy).waiting == 1, "it waits")
        open_gate(proxy)
        assert read_all(sock).endswith(b"abc")


def test_a_client_that_leaves_while_the_response_waits() -> None:
    with Origin(answering(response())) as origin, hooked([origin], {"one": WAITS_BACK}) as proxy:
        with proxy.connect() as sock:
            sock.sendall(GET)
            until(lambda: plugin(proxy).waiting == 1, "it waits")
            leave(sock)
        until(lambda: proxy.clients == 0 and proxy.busy == 0, "all gone")


# --- Failures ---------------------------------------------------------------------------------

ERRORS = ["ValueError('x')", "SystemExit(3)", "RecursionError()", "StopIteration()"]


@pytest.mark.parametrize("on_error", ["closed", "open"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("hook", ["on_request", "on_response", "on_finish"])
def test_whatever_a_hook_raises(hook: str, error: str, on_error: str) -> None:
    more = {"on_request": "", "on_response": ", res", "on_finish": ", end"}[hook]
    hooks = f"""
    def {hook}(self, req{more}):
        raise {error}
    """
    with (
        Origin(answering(response())) as origin,
        hooked([origin], {"one": hooks}, on_error) as proxy,
    ):
        for _ in range(3):
            status = proxy.talk(CLOSE)[9:12]
            fails = on_error == "closed" and hook != "on_finish"
            assert status == (b"500" if fails else b"200")


@pytest.mark.parametrize("given", ["'text'", "True", "404", "[]"])
@pytest.mark.parametrize("hook", ["on_request", "on_response"])
def test_what_is_no_answer_is_a_failure(hook: str, given: str) -> None:
    more = ", res" if hook == "on_response" else ""
    hooks = f"""
    def {hook}(self, req{more}):
        return {given}
    """
    with Origin(answering(response())) as origin, hooked([origin], {"one": hooks}) as proxy:
        assert proxy.talk(CLOSE)[9:12] == b"500"


@pytest.mark.parametrize("what", ["raise ValueError", "return None", "return 'text'"])
def test_a_body_that_cannot_be_changed_is_cut(what: str) -> None:
    hooks = f"""
    class Broken:
        def chunk(self, data): {what}
        def end(self): return b""
    def on_response(self, req, res):
        res.transform_body(self.Broken())
    """
    with Origin(answering(response())) as origin, hooked([origin], {"one": hooks}) as proxy:
        got = proxy.talk(CLOSE)
        assert got == b"" or got.startswith(b"HTTP/1.1 500") or not got.endswith(b"0\r\n\r\n")


def test_enough_failures_switch_it_off_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.proxy.chain.OFF_S", 0.3)
    hooks = """
    def start(self):
        self.calls = 0
    def on_request(self, req):
        self.calls += 1
        if self.calls <= 5:
            raise ValueError("not yet")
    """
    with Origin(answering(response())) as origin, hooked([origin], {"one": hooks}) as proxy:
        statuses = [proxy.talk(CLOSE)[9:12] for _ in range(7)]
        assert statuses == [b"500"] * 7
        assert plugin(proxy).calls == 5
        reading = proxy.reading
        assert reading.refresh().total("lb_plugin_off", plugin="one") == 1
        until(lambda: proxy.talk(CLOSE)[9:12] == b"200", "it is tried again")
        assert reading.refresh().total("lb_plugin_off", plugin="one") == 0
        assert reading.total("lb_plugin_errors_total", plugin="one") == 5


def test_all_hooks_of_a_sample_are_timed_one_that_is_off_included() -> None:
    hooks = """
    def on_response(self, req, res):
        raise ValueError("never")
    def on_finish(self, req, end):
        return None
    """

    def timed(proxy: Any, hook: str) -> float:
        found = proxy.reading.refresh()._sums.get("lb_plugin_seconds", {})
        return sum(sum(values[:-1]) for labels, values in found.items() if ("hook", hook) in labels)

    with Origin(answering(response())) as origin, hooked([origin], {"one": hooks}) as proxy:
        for _ in range(5):
            proxy.await_ticks(1)
            assert proxy.talk(CLOSE)[9:12] == b"500"
        assert timed(proxy, "on_response") >= 1
        assert timed(proxy, "on_finish") >= 1
        for _ in range(3):  # Off: nobody asks it, and what answers for it has no series.
            proxy.await_ticks(1)
            assert proxy.talk(CLOSE)[9:12] == b"500"


# --- Editions ---------------------------------------------------------------------------------


def test_changed_code_is_for_new_requests_and_the_old_is_stopped_after_its_last() -> None:
    old = (
        WAITS
        + """
stopped = 0
def stop(self):
    self.stopped += 1
def on_response(self, req, res):
    res.headers.set("X-Code", "old")
"""
    )
    new = """
    def on_response(self, req, res):
        res.headers.set("X-Code", "new")
    """
    with Origin(answering(response())) as origin, hooked([origin], {"one": old}) as proxy:
        before = plugin(proxy)
        with proxy.connect() as sock:
            sock.sendall(GET)
            until(lambda: before.waiting == 1, "it waits")
            install(proxy, {"one": new})
            assert b"X-Code: new" in proxy.talk(CLOSE)
            assert before.stopped == 0
            proxy.call(before.gate.set)
            assert b"X-Code: old" in read_response(sock)[0]
        until(lambda: before.stopped == 1, "it is stopped")


def test_what_did_not_change_keeps_what_it_knows() -> None:
    with Origin(answering(response())) as origin, hooked([origin], {"one": NOTES_ENDS}) as proxy:
        proxy.talk(CLOSE)
        before = plugin(proxy)
        install(proxy, {"one": NOTES_ENDS, "two": SAYS_NO})
        assert plugin(proxy) is before
        assert len(before.ends) == 1


def test_a_websocket_passes_the_request_s_hook() -> None:
    hooks = NOTES_ENDS.replace("return None", "req.headers.set('X-Up', str(req.wants_upgrade))")

    def script(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                        b"Upgrade: websocket\r\n\r\n")  # fmt: skip
        connection.send(connection.sock.recv(100))

    with Origin(script) as origin, hooked([origin], {"one": hooks}) as proxy:
        with proxy.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
                         b"Upgrade: websocket\r\n\r\n")  # fmt: skip
            assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
        until(lambda: plugin(proxy).ends, "its end")
        assert b"X-Up: True" in origin.requests[0]
        assert plugin(proxy).ends[0][0] == 101


def leave(sock: socket.socket) -> None:
    """Go as one goes who wants nothing any more: an end alone may mean that it only listens."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, data
        data += more
    return data
