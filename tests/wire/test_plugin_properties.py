"""Whatever plugins, clients and backends do together: one whole answer, or a cut, and no traces.

Two plugins do what fields of the request tell them to, and so does the backend.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lb.proxy import chain
from wire.kit import Connection, Origin, Proxy, until
from wire.plugin_kit import hooked, plugin

EXAMPLES = int(os.environ.get("PLUGIN_EXAMPLES", "0"))  # 0: a few, always the same.

HOOKS = """
def told(self, req, hook):
    return req.headers.get(f"X-{self.name}-{hook}", "pass")

def act(self, what, where):
    if what == "answer":
        return reply(299, body=self.name)
    if what == "empty":
        return reply(204)
    if what == "raise":
        raise RuntimeError("as told")
    if what == "exit":
        raise SystemExit("as told")
    if what == "wrong":
        return 3
    if what == "set":
        where.headers.set(f"X-Set-{self.name}", "1")
    if what == "transform":
        where.transform_body(self.Same())
    if what == "fail":
        where.transform_body(self.Fails())
    if what == "status":
        where.status = 201 if where.status < 204 else where.status
    if what == "rewrite":
        where.rewrite("/elsewhere")
    if what == "replace":
        where.replace_body(b"replaced")

class Same:
    def chunk(self, data): return data
    def end(self): return b""

class Fails:
    def chunk(self, data): raise RuntimeError("as told")
    def end(self): raise RuntimeError("as told")

async def later(self, what, where):
    await asyncio.sleep(0)
    return self.act(what, where)

def on_request(self, req):
    number = req.headers.get("X-Number")
    if number is None:
        return None
    SEEN.append(("asked", number))
    what = self.told(req, "ask")
    return self.later(what[5:], req) if what[:5] == "wait-" else self.act(what, req)

def on_response(self, req, res):
    if req.headers.get("X-Number") is None:
        return None
    what = self.told(req, "show")
    return self.later(what[5:], res) if what[:5] == "wait-" else self.act(what, res)

def on_finish(self, req, end):
    number = req.headers.get("X-Number")
    if number is not None:
        SEEN.append(("told", number))
        self.act(self.told(req, "end"), None)
"""

EITHER = ["pass", "answer", "empty", "raise", "exit", "wrong", "set", "transform", "fail"]
ASKED = [*EITHER, "rewrite", "replace"]
SHOWN = [*EITHER, "status"]
ENDS = ["pass", "raise"]
BACKENDS = ["length", "chunked", "close", "none", "pieces", "dies", "cut", "reset"]
HARMLESS = {"pass", "set", "wait-pass", "wait-set", "transform", "wait-transform"}
PIECE = b"0123456789" * 10


def waiting(words: list[str]) -> list[str]:
    """Return these, and each of them as what comes of waiting."""
    return [*words, *(f"wait-{word}" for word in words)]


@dataclass(frozen=True)
class Play:
    """What all of them do at one request."""

    method: str
    framing: str
    pieces: int
    backend: str
    stays: bool  # The client, until it has its answer.
    asked: tuple[str, str]
    shown: tuple[str, str]
    ends: tuple[str, str]

    @property
    def harmless(self) -> bool:
        """Whether plugins leave status and bodies as they are."""
        return {*self.asked, *self.shown} <= HARMLESS

    def octets(self, number: int) -> list[bytes]:
        """Return the request, in the pieces in which it is sent."""
        lines = [f"{self.method} /a HTTP/1.1", "Host: a", f"X-Number: {number}"]
        lines.append(f"X-Back: {self.backend}")
        for at, name in enumerate(("one", "two")):
            lines.append(f"X-{name}-ask: {self.asked[at]}")
            lines.append(f"X-{name}-show: {self.shown[at]}")
            lines.append(f"X-{name}-end: {self.ends[at]}")
        body = b""
        if self.framing == "length":
            lines.append(f"Content-Length: {self.pieces * len(PIECE)}")
            body = self.pieces * PIECE
        elif self.framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
            body = self.pieces * (b"64\r\n%b\r\n" % PIECE)
            body += b"0\r\n\r\n"
        head = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
        return [head, *(body[at : at + 60] for at in range(0, len(body), 60))]


def pairs(words: list[str]) -> st.SearchStrategy[tuple[str, str]]:
    # Mostly nothing, or hardly any request would get far.
    one = st.one_of(st.just("pass"), st.sampled_from(words))
    return st.tuples(one, one)


PLAYS = st.builds(
    Play,
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT"]),
    framing=st.sampled_from(["none", "length", "chunked"]),
    pieces=st.integers(0, 3),
    backend=st.sampled_from(BACKENDS),
    stays=st.integers(0, 5).map(bool),
    asked=pairs(waiting(ASKED)),
    shown=pairs(waiting(SHOWN)),
    ends=pairs(ENDS),
)


def behave(connection: Connection, number: int) -> None:
    """Be the backend."""
    while (request := connection.request()) is not None:
        head = request.partition(b"\r\n\r\n")[0]
        kind = head.partition(b"X-Back: ")[2].partition(b"\r\n")[0]
        start = b"HTTP/1.1 200 OK\r\n"
        if request.startswith(b"HEAD "):
            connection.send(start + b"Content-Length: 200\r\n\r\n")
        elif kind == b"chunked":
            connection.send(start + b"Transfer-Encoding: chunked\r\n\r\n64\r\n%b\r\n" % PIECE)
            connection.send(b"64\r\n%b\r\n0\r\n\r\n" % PIECE)
        elif kind == b"close":
            connection.send(start + b"Connection: close\r\n\r\n" + 2 * PIECE)
            return
        elif kind == b"none":
            connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        elif kind == b"pieces":
            connection.send(start + b"Content-Length: 200\r\n\r\n")
            connection.send(PIECE)
            connection.send(PIECE)
        elif kind == b"dies":
            return
        elif kind == b"cut":
            connection.send(start + b"Content-Length: 200\r\n\r\n" + PIECE)
            return
        elif kind == b"reset":
            connection.send(start + b"Content-Length: 200\r\n\r\n")
            connection.reset()
            return
        else:
            connection.send(start + b"Content-Length: 200\r\n\r\n" + 2 * PIECE)


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "ERRORS_MAX", 1 << 40)  # Nobody is switched off.
        with Origin(behave) as origin, hooked([origin], {"one": HOOKS, "two": HOOKS}) as made:
            yield made


class Answer:
    """What comes back for a request, as h11 reads it."""

    def __init__(self, sock: socket.socket, method: str) -> None:
        self.status = 0
        self.body = b""
        self.fields: dict[bytes, bytes] = {}
        self.whole = False
        self.extra = b""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        reader.send(h11.EndOfMessage())
        ended = False
        while True:
            try:
                event = reader.next_event()
            except h11.RemoteProtocolError:
                # h11 has no other name for an end within a body; all else is a failure.
                if not ended:
                    raise
                return
            if event is h11.NEED_DATA:
                try:
                    data = sock.recv(65536)
                except ConnectionResetError:
                    return
                ended = not data
                reader.receive_data(data)
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                self.fields = dict(event.headers)
            elif isinstance(event, h11.Data):
                self.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.whole = True
                self.extra = reader.trailing_data[0]
                return
            elif isinstance(event, h11.ConnectionClosed):
                return


class Numbers:
    """Each request of all examples has a number of its own."""

    last = 0


def seen(proxy: Proxy, number: int) -> list[tuple[str, str]]:
    """Return what both plugins were asked and told of a request."""
    found = []
    for name in ("one", "two"):
        module = sys.modules[type(plugin(proxy, name)).__module__]
        found += [(what, name) for what, which in module.SEEN if which == str(number)]
    return found


@settings(
    max_examples=EXAMPLES or 300,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(play=PLAYS)
def test_one_whole_answer_or_a_cut_and_no_traces(proxy: Proxy, play: Play) -> None:
    Numbers.last += 1
    number = Numbers.last
    with closing(proxy.connect()) as sock:
        with suppress(BrokenPipeError, ConnectionResetError):  # It may be answered before.
            for piece in play.octets(number):
                sock.sendall(piece)
        if play.stays:
            judge(play, sock)
    until(lambda: told_all_who_were_asked(proxy, number), "each is told of the end, once")
    until(lambda: proxy.running == 0, "nothing is left of it")


def told_all_who_were_asked(proxy: Proxy, number: int) -> bool:
    found = seen(proxy, number)
    assert len(found) == len(set(found)), "nobody is asked or told twice"
    return {who for what, who in found if what == "asked"} == {
        who for what, who in found if what == "told"
    }


def judge(play: Play, sock: socket.socket) -> None:
    """Read the answer, and if the connection stays, another one by nobody's leave."""
    answer = Answer(sock, play.method)
    assert not answer.extra
    if not answer.whole:
        # Cut is only what had begun, and whose rest there is none of.
        assert play.backend in ("cut", "reset") or "fail" in " ".join(play.shown)
    if play.harmless and play.backend not in ("dies", "cut", "reset"):
        none = play.backend == "none" and play.method != "HEAD"
        assert answer.status == (204 if none else 200)
        if play.method != "HEAD" and answer.status == 200:
            assert answer.body == 2 * PIECE
    if answer.whole and answer.fields.get(b"connection") != b"close":
        sock.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\nX-Back: length\r\n\r\n")
        again = Answer(sock, "GET")
        assert (again.status, again.body) == (200, 2 * PIECE)
