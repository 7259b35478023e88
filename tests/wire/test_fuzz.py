"""
Whatever clients and backends send, in whatever pieces: nobody else notices.

After each example a plain request on a new connection is answered. After all of them nothing
is left open, and h11, a parser that we have no part in, has read from our side exactly those
requests that the access log says went to the backend: no more, no fewer, no others.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lb.model import Upstream, UpstreamTimeouts
from lb.proxy import deadlines
from wire.kit import Connection, Origin, Proxy, read_all, until

SOAK_S: Final = float(os.environ.get("WIRE_SECONDS", "0"))  # for each test here: `make soak-deep`
SEED: Final = int(os.environ.get("WIRE_SEED", "20240229"))
MUTANTS: Final = 1200
EXAMPLES: Final = 400
EXAMPLES_A_SECOND: Final = 40  # about
ALIVE: Final = b"GET /alive HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
EVENT_MAX: Final = 1024 * 1024

REQUESTS: Final = (
    b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n",
    b"GET http://a.example/x HTTP/1.1\r\nHost: b\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello=world",
    b"PUT /q HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nT: 1\r\n\r\n",
    b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
    b"GET /k HTTP/1.1\r\nHost: a\r\nConnection: X-Gone\r\nX-Gone: 1\r\nTE: trailers\r\n\r\n",
    b"POST /s HTTP/1.1\r\nHost: a\r\nContent-Length: 44\r\n\r\n"
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\nX-In: body\r\n\r\n",
)
RESPONSES: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: X-A, close\r\nX-A: 1\r\nKeep-Alive: timeout=5\r\n\r\n",
)
WORDS: Final = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"ffffffff", b"-1", b"\xff",
    b"\r\n\r\n", b"0\r\n\r\n", b"\r\n ", b"\x0b", b"\x85",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length : 3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: identity\r\n", b"Connection: close\r\n", b"Connection: content-length\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n",
    b"Host: other\r\n", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0",
    b"GET /in HTTP/1.1\r\nHost: in\r\n\r\n",
)  # fmt: skip


class Seen(NamedTuple):
    """A request as the origin read it; `body` is None if it did not come whole."""

    id: str
    method: str
    target: str
    fields: list[tuple[bytes, bytes]]
    body: bytes | None


class Bench:
    """A proxy between a raw client and an origin that lets h11 read."""

    def __init__(self, folder: Path, patience: float = 0.2) -> None:
        """`patience` is the proxy's with its backend; short where stalls are to be expected."""
        self._log = folder / "access.log"
        self.seen: list[Seen] = []
        self.complaints: list[str] = []
        self.answer: Sequence[bytes] = ()  # pieces that answer what is not ALIVE, if any
        self._origin = Origin(self._serve)
        timeouts = UpstreamTimeouts(response=patience, stall=patience)
        upstream = Upstream("app", timeouts=timeouts)
        self.proxy = Proxy([self._origin], upstream=upstream, log=str(self._log))

    def __enter__(self) -> Self:
        self._origin.__enter__()
        self.proxy.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                until(lambda: self.proxy.clients == 0, "every client forgotten")
                until(lambda: self.proxy.running == 0, "every exchange over")
                until(lambda: self.proxy.busy == 0, "every backend connection idle or gone")
        finally:
            self.proxy.__exit__(kind, error, traceback)
            self._origin.close()
        if kind is None:
            assert not self.complaints, self.complaints
            self._compare_with_log()

    def send(self, pieces: Sequence[bytes], end: str) -> bytes:
        """Send pieces one by one, end our side, return what comes; then see that all is well."""
        with self.proxy.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = b""
            with suppress(OSError):  # It may have enough of us before we are done.
                for piece in pieces:
                    sock.sendall(piece)
                    self.proxy.call(lambda: None)
                if end == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                elif end == "half":
                    sock.shutdown(socket.SHUT_WR)
            if end == "half":
                answer = read_all(sock)
        # On a busy machine our own backend may once be too slow for its patience.
        alive = until(lambda: self.proxy.talk(ALIVE).startswith(b"HTTP/1.1 200 "), "a plain answer")
        assert alive, pieces
        assert not self.proxy.errors, (pieces, self.proxy.errors)
        assert not self.complaints, (pieces, self.complaints)
        return answer

    def _serve(self, connection: Connection, number: int) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=EVENT_MAX)
        try:
            while self._take_request(connection, parser):
                parser.start_next_cycle()
        except h11.ProtocolError as error:
            self.complaints.append(f"{error}: {parser.trailing_data[0]!r}")

    def _take_request(self, connection: Connection, parser: h11.Connection) -> bool:
        """Read and answer one request; False when that was the last."""
        request: h11.Request | None = None
        body = b""
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                octets = connection.sock.recv(65_536)
                if not octets:  # What is cut short is no request.
                    if request is not None:
                        self._note(request, None)
                    return False
                parser.receive_data(octets)
            elif isinstance(event, h11.Request):
                request = event
            else:
                assert isinstance(event, h11.Data), event
                body += event.data
        assert request is not None, "what ends has begun"
        self._note(request, body)
        if self.answer and request.target != b"/alive":
            for piece in self.answer:
                connection.send(piece)
            return False
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        parser.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        parser.send(h11.EndOfMessage())
        return parser.our_state is h11.DONE

    def _note(self, request: h11.Request, body: bytes | None) -> None:
        [number] = [value for name, value in request.headers if name == b"x-request-id"]
        method, target = request.method.decode(), request.target.decode()
        self.seen.append(Seen(number.decode(), method, target, list(request.headers), body))

    def _compare_with_log(self) -> None:
        lines = [json.loads(line) for line in self._log.read_bytes().splitlines()]
        forwarded = {line["id"]: line for line in lines if line["tries"]}
        times = Counter(each.id for each in self.seen)
        for each in self.seen:
            line = forwarded[each.id]
            path, _, query = each.target.partition("?")
            assert (each.method, path, query) == (line["method"], line["path"], line["query"])
            assert times[each.id] <= len(line["tries"])
        # Where all went well all of it must have come; else some of it may have.
        whole = {each.id: each.body for each in self.seen if each.body is not None}
        for number, line in forwarded.items():
            if line["end"] == "ok":
                assert len(whole[number]) == line["bytes_in"], line


@pytest.fixture(autouse=True)
def _quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "TICK_S", 0.02)


def rounds() -> Iterator[int]:
    """Go round as often as is usual, and in a soak for as long as that is to take."""
    until_s = time.monotonic() + SOAK_S
    done = 0
    while done < MUTANTS or time.monotonic() < until_s:
        done += 1
        yield done


def cut(octets: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut octets at places, counted round the end."""
    at = sorted({place % (len(octets) + 1) for place in places} | {0, len(octets)})
    return [octets[a:b] for a, b in pairwise(at)]


def mutate(octets: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Change octets in one to three places."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(octets))
        end = min(len(octets), at + rng.randint(1, 8))
        match rng.randrange(6):
            case 0:
                octets = octets[:at] + bytes([rng.randrange(256)]) + octets[at + 1 :]
            case 1:
                octets = octets[:at] + octets[end:]
            case 2:
                octets = octets[:end] + octets[at:]
            case 3:
                octets = octets[:at] + rng.choice(WORDS) + octets[end:]
            case 4:
                line = octets.find(b"\r\n", at) + 2
                octets = octets[:line] + rng.choice(WORDS) + octets[line:]
            case _:
                octets = octets[:at] + rng.choice(others)
    return octets


def check_what_a_client_got(answer: bytes, method: bytes) -> None:
    """Let h11 read a client's answers: each a response, the last perhaps cut short."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=EVENT_MAX)
    parser.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(answer)
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA or isinstance(event, h11.EndOfMessage):
            return


ends = st.sampled_from(["half", "half", "close", "reset"])
places = st.lists(st.integers(0, 2000), max_size=6)
fields = st.lists(
    st.one_of(
        st.sampled_from([word for word in WORDS if word.endswith(b"\r\n") and b":" in word]),
        st.builds(
            lambda name, value: name + b": " + value + b"\r\n",
            st.from_regex(rb"[A-Za-z-]{1,12}", fullmatch=True),
            st.from_regex(rb"[\t -~\x80-\xff]{0,20}", fullmatch=True),
        ),
    ),
    max_size=5,
)
requests = st.builds(
    lambda line, more, body: line + b" HTTP/1.1\r\nHost: a\r\n" + b"".join(more) + b"\r\n" + body,
    st.from_regex(rb"(GET|POST|PUT|HEAD|OPTIONS) /[!-~]{0,10}", fullmatch=True),
    fields,
    st.one_of(st.just(b""), st.binary(max_size=30), st.sampled_from([*REQUESTS, *WORDS])),
)


class Good(NamedTuple):
    """A well-formed request, and what is to arrive of it."""

    octets: bytes
    value: bytes
    body: bytes


def good_request(value: bytes, body: bytes, pieces: Sequence[int]) -> Good:
    """Make a request of a field and a body; chunked if there are pieces to cut that into."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nX-Own: %b\r\n" % value
    if not pieces:
        return Good(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), value, body)
    chunks = b"".join(b"%x;e\r\n%b\r\n" % (len(each), each) for each in cut(body, pieces))
    framed = b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nT: 1\r\n\r\n"
    return Good(head + framed, value, body)


good_requests = st.builds(
    good_request,
    st.from_regex(rb"[a-z]{2}", fullmatch=True),
    st.one_of(st.binary(max_size=20), st.sampled_from(REQUESTS)),
    st.lists(st.integers(0, 50), max_size=3),
)
quick = settings(
    max_examples=max(EXAMPLES, int(SOAK_S * EXAMPLES_A_SECOND)),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_requests_made_of_plausible_parts(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:

        @quick
        @given(st.lists(requests, min_size=1, max_size=3), places, ends)
        def run(sent: list[bytes], where: list[int], end: str) -> None:
            bench.send(cut(b"".join(sent), where), end)

        run()


def test_good_requests_arrive_whatever_the_pieces(tmp_path: Path) -> None:
    """Each with its own field and body, and with nothing of its neighbours."""
    with Bench(tmp_path, patience=20.0) as bench:

        @quick
        @given(st.lists(good_requests, min_size=1, max_size=4), places)
        def run(sent: list[Good], where: list[int]) -> None:
            before = len(bench.seen)
            bench.send(cut(b"".join(each.octets for each in sent), where), "half")
            came = [each for each in bench.seen[before:] if each.target != "/alive"]
            values = [dict(each.fields)[b"x-own"] for each in came]
            assert [(value, each.body) for value, each in zip(values, came, strict=True)] == [
                (each.value, each.body) for each in sent
            ]

        run()


def test_requests_mutated(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with Bench(tmp_path) as bench:
        for _ in rounds():
            sent = b"".join(rng.choices(REQUESTS, k=rng.randint(1, 3)))
            mutant = mutate(sent, REQUESTS, rng)
            where = [rng.randrange(2000) for _ in range(rng.randint(0, 4))]
            bench.send(cut(mutant, where), rng.choice(["half", "half", "close", "reset"]))


def test_responses_mutated(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with Bench(tmp_path) as bench:
        for _ in rounds():
            method = rng.choice([b"GET", b"HEAD", b"DELETE"])
            mutant = mutate(rng.choice(RESPONSES), RESPONSES, rng)
            bench.answer = cut(mutant, [rng.randrange(200) for _ in range(rng.randint(0, 3))])
            answer = bench.send([method + b" / HTTP/1.1\r\nHost: a\r\n\r\n"], "half")
            check_what_a_client_got(answer, method)


def test_responses_made_of_plausible_parts(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:

        @quick
        @given(st.integers(100, 599), fields, st.binary(max_size=40), places)
        def run(status: int, more: list[bytes], body: bytes, where: list[int]) -> None:
            head = b"HTTP/1.1 %d Why\r\n" % status + b"".join(more) + b"\r\n"
            bench.answer = cut(head + body, where)
            answer = bench.send([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], "half")
            check_what_a_client_got(answer, b"GET")

        run()
