"""
For authors of plugins: call one with a request, and see what comes out.

    from lb.testing import call

    def test_it_is_a_teapot():
        assert call("plugins/teapot.py", "GET /coffee").reply.status == 418

Heads are read and judged as the proxy does it, and a Config as the file's is. No socket is
opened; a hook that is `async def` is waited for.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.config.plugin_settings import check
from lb.errors import OperatorError
from lb.http1.head import RequestHead, made_head, read_request_head, read_response_head
from lb.http1.headers import Headers
from lb.http1.peers import Peer, direct
from lb.http1.replies import BODILESS, Reply, body_of, has_body
from lb.plugin import Count, End, Plugin, Request, Response, Table, Transform
from lb.plugin_code import configure, load, plugin_in

LINE_MAX = 64 * 1024
FIELDS_MAX = 1000


class Bench:
    """A `Context` whose time stands still until you move it, and which remembers all it is told."""

    def __init__(
        self, *, node: str = "test", place: str = "route.r", instances: int = 1, seed: int = 0
    ) -> None:
        self.node = node
        self.place = place
        self.log: logging.Logger = logging.getLogger("lb.plugin.test")
        self.rng = random.Random(seed)
        self.instances = instances
        self.time = 1000.0
        self.counts: Counter[str] = Counter()
        self.tables: dict[str, dict[bytes, float]] = {}
        self.periodic: list[tuple[float, Callable[[], None]]] = []
        self.spawned: list[Coroutine[Any, Any, None]] = []

    def now(self) -> float:
        """Return `time`."""
        return self.time

    def count(self, event: str) -> Count:
        """Return a counter whose total stands in `counts`."""

        def add(by: int = 1) -> None:
            self.counts[event] += by

        return add

    def table(self, name: str) -> Table:
        """Return a table kept in `tables`."""
        return _Table(self.tables.setdefault(name, {}))

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Remember it in `periodic`."""
        self.periodic.append((seconds, call))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done at the end of the call that it comes from."""
        self.spawned.append(work)

    async def settle(self) -> None:
        """Do what was spawned."""
        while self.spawned:
            await self.spawned.pop(0)


class _Table:
    def __init__(self, values: dict[bytes, float]) -> None:
        self._values = values

    def get(self, key: bytes) -> float:
        return self._values.get(key, 0.0)

    def put(self, key: bytes, value: float) -> None:
        self._values[key] = value


@dataclass
class Sent:
    """What the backend would get."""

    method: str
    target: str
    host: str
    headers: Headers
    body: bytes
    id: str
    preferred: str
    forbidden: frozenset[str]


@dataclass
class Got:
    """What the client would get: the backend's response as it passed, or a reply."""

    status: int
    headers: Headers
    body: bytes
    chunks: list[bytes] = field(default_factory=list)


@dataclass
class Outcome:
    """
    What came of a call.

    `reply` is the plugin's own answer, None if it gave none. `sent` is None where nothing went
    to a backend.
    """

    reply: Reply | None
    sent: Sent | None
    got: Got
    state: dict[str, Any]


@dataclass
class _Origin:
    head: RequestHead
    peer: Peer
    place: tuple[str, str, str]
    request_id: bytes
    backends: tuple[str, ...]

    def backend_keys(self) -> tuple[str, ...]:
        return self.backends


def make(
    plugin: type[Plugin[Any]] | str | Path,
    config: Mapping[str, Any] | None = None,
    context: Bench | None = None,
) -> Plugin[Any]:
    """
    Make a plugin as a worker would, and start it; `config` is what stands beside `use`.

    OperatorError if its Config refuses that.
    """
    cls = plugin if isinstance(plugin, type) else _class_in(Path(plugin))
    values = check(cls, config or {})
    if isinstance(values, list):
        first = values[0]
        raise OperatorError(f"{'.'.join(map(str, first['loc'])) or cls.name}: {first['msg']}")
    made = cls(configure(cls, values), context or Bench())
    made.start()
    return made


def call(  # noqa: PLR0913 - a test names the few that it needs
    plugin: Plugin[Any] | type[Plugin[Any]] | str | Path,
    request: str = "GET /",
    *,
    config: Mapping[str, Any] | None = None,
    context: Bench | None = None,
    body: bytes | list[bytes] = b"",
    client: str = "192.0.2.1",
    scheme: str = "http",
    response: str = "200 OK",
    response_body: bytes | list[bytes] = b"",
    backends: tuple[str, ...] = ("b1",),
    route: str = "r",
    upstream: str = "app",
) -> Outcome:
    """
    Send a request through a plugin, and a response back.

    `request` is a head: "GET /x" or several lines, "POST /x\\nContent-Length: 3"; Host and
    version come by themselves. `response` likewise: "404 Not Found\\nX-A: b". Bodies may come in
    pieces. The backend that answers is the preferred one, else the first that is not forbidden.
    """
    return asyncio.run(
        call_async(
            plugin,
            request,
            config=config,
            context=context,
            body=body,
            client=client,
            scheme=scheme,
            response=response,
            response_body=response_body,
            backends=backends,
            route=route,
            upstream=upstream,
        )
    )


async def call_async(  # noqa: PLR0913 - as `call`
    plugin: Plugin[Any] | type[Plugin[Any]] | str | Path,
    request: str = "GET /",
    *,
    config: Mapping[str, Any] | None = None,
    context: Bench | None = None,
    body: bytes | list[bytes] = b"",
    client: str = "192.0.2.1",
    scheme: str = "http",
    response: str = "200 OK",
    response_body: bytes | list[bytes] = b"",
    backends: tuple[str, ...] = ("b1",),
    route: str = "r",
    upstream: str = "app",
) -> Outcome:
    """As `call`, in the running loop: for plugins that keep connections from call to call."""
    bench = context or Bench()
    made = plugin if isinstance(plugin, Plugin) else make(plugin, config, bench)
    head = _request_head(request, body)
    origin = _Origin(
        head, direct(client, scheme.encode()), ("web", route, upstream), b"test-1", backends
    )
    outcome = await _call(made, Request(origin), origin, (body, response, response_body))
    if isinstance(made.ctx, Bench):
        await made.ctx.settle()
    return outcome


async def _call(
    plugin: Plugin[Any], req: Request, origin: _Origin, rest: tuple[Any, str, Any]
) -> Outcome:
    body, response, response_body = rest
    asked = await _waited(_hook(plugin, "on_request", req))
    sent = None
    backend = ""
    if asked is None:
        sent = _sent(req, _through(req.transforms, body))
        usable = [key for key in origin.backends if key not in req.forbidden]
        backend = req.preferred if req.preferred in usable else next(iter(usable), "")
        if not backend:
            asked = Reply(503, "no_backend")
    res, data = _response(asked, response, response_body, backend, req.method)
    changed = await _waited(_hook(plugin, "on_response", req, res))
    if changed is not None:
        asked = changed
        res, data = _response(changed, response, b"", "", req.method)
    pieces = _through(res.transforms, data if res.has_body else b"")
    got = Got(res.status, res.headers, b"".join(pieces), pieces)
    cause = asked.end if asked is not None else "ok"
    end = End(got.status, cause, 0.001, 0, len(got.body), backend, origin.place[2])
    _hook(plugin, "on_finish", req, end)
    return Outcome(asked, sent, got, req.state)


def _sent(req: Request, pieces: list[bytes]) -> Sent:
    body = b"".join(pieces) if req.new_body is None else req.new_body
    return Sent(
        req.method,
        req.target,
        req.host,
        req.headers,
        body,
        req.request_id,
        req.preferred,
        req.forbidden,
    )


def _hook(plugin: Plugin[Any], name: str, *arguments: Any) -> Any:
    hook = getattr(plugin, name, None)
    return None if hook is None else hook(*arguments)


async def _waited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _through(transforms: tuple[Transform, ...], body: bytes | list[bytes]) -> list[bytes]:
    """Pass a body through one transform after the other, piece by piece."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    for each in transforms:
        pieces = [each.chunk(piece) for piece in pieces if piece] + [each.end()]
    return [piece for piece in pieces if piece]


def _request_head(text: str, body: bytes | list[bytes]) -> RequestHead:
    first, *fields = text.split("\n")
    names = {line.partition(":")[0].lower() for line in fields}
    if not first.endswith("HTTP/1.1"):
        first += " HTTP/1.1"
    if "host" not in names:
        fields.append("Host: example.com")
    if body and not names & {"content-length", "transfer-encoding"}:
        size = len(body) if isinstance(body, bytes) else sum(map(len, body))
        fields.append(f"Content-Length: {size}")
    octets = "".join(f"{line}\r\n" for line in (first, *fields, "")).encode("latin-1")
    return read_request_head(octets, None, LINE_MAX, FIELDS_MAX)


def _response(
    reply: Reply | None, text: str, body: Any, backend: str, method: str
) -> tuple[Response, Any]:
    if reply is not None:
        data = body_of(reply)
        made = made_head(reply.status, reply.fields, len(data))
        return Response(made, "", has_body(reply, method.encode())), data
    first, *fields = text.split("\n")
    lines = (f"HTTP/1.1 {first}", *fields, "")
    head = read_response_head("".join(f"{line}\r\n" for line in lines).encode("latin-1"), None)
    known = head.fields
    if known.length < 0 and isinstance(body, bytes) and not known.chunked:
        known.length = len(body)
    return Response(head, backend, method != "HEAD" and head.status not in BODILESS), body


def _class_in(path: Path) -> type[Plugin[Any]]:
    cls = plugin_in(load(path.stem, path.read_bytes(), str(path)))
    if cls is None:
        raise OperatorError(f"{path} has no plugin in it", "write a class with Plugin as its base")
    return cls
