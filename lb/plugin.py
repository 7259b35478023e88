"""
What a plugin is made of: everything that its author needs, and nothing of how we call it.

A plugin is a class in a file of its own:

    from dataclasses import dataclass
    from lb.plugin import Plugin, Reply, Request, reply

    class Teapot(Plugin):
        name = "teapot"

        @dataclass
        class Config:
            path: str = "/coffee"

        def on_request(self, req: Request) -> Reply | None:
            return reply(418) if req.path == self.config.path else None

Hooks are plain functions, called on the path of a request: what they wait for, everybody waits
for. One that has to wait is an `async def`, and only its own route pays for that. `on_request` is
called in the order in which the plugins are written, `on_response` in the other direction: who is
written first sees what the client sees.

Nothing here does input or output, and none of it knows a socket.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from logging import Logger
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar

from lb.balance import Balancer, Candidate
from lb.errors import ClientError
from lb.http1.head import cookie_value, field_values
from lb.http1.headers import FRAMING, Headers, can_be_field
from lb.http1.replies import BODILESS, Reply
from lb.plugin_kinds import (
    Duration,
    HeaderName,
    Network,
    Networks,
    Rate,
    Secret,
    Share,
    Size,
    UrlPath,
)
from lb.routing import normalise

if TYPE_CHECKING:
    import random

    from lb.http1.head import RequestHead, ResponseFields
    from lb.http1.peers import Peer

__all__ = [
    "API",
    "Balancer",
    "Candidate",
    "Context",
    "Duration",
    "End",
    "HeaderName",
    "Headers",
    "Network",
    "Networks",
    "Plugin",
    "Rate",
    "Reply",
    "Request",
    "Response",
    "Secret",
    "Share",
    "Size",
    "Table",
    "Transform",
    "UrlPath",
    "Watcher",
    "balancer",
    "health_check",
    "reply",
]

API: Final = 1  # What `Plugin.api` says; a plugin for another one is refused, not tried.


# --- Messages ---------------------------------------------------------------------------------


class Transform(Protocol):
    """Changes a body as it passes. What it holds back is its own to bound."""

    def chunk(self, data: bytes) -> bytes:
        """Take a piece; return what goes on now, which may be nothing."""
        ...

    def end(self) -> bytes:
        """Return what is left, once the body has ended."""
        ...


class Watcher(Protocol):
    """Looks at a body as it passes, and changes nothing. What it keeps is its own to bound."""

    def chunk(self, data: bytes) -> None:
        """Take a piece."""
        ...

    def end(self) -> None:
        """Hear that the body has ended; one that is cut off never does."""
        ...


class _Watched:
    """A watcher as a transform: what passes is what came, whatever it does."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def chunk(self, data: bytes) -> bytes:
        self._watcher.chunk(data)
        return data

    def end(self) -> bytes:
        self._watcher.end()
        return b""


class Origin(Protocol):
    """What a request is read from: the exchange."""

    @property
    def head(self) -> RequestHead: ...
    @property
    def peer(self) -> Peer: ...
    @property
    def place(self) -> tuple[str, str, str]: ...  # listener, route, upstream
    @property
    def request_id(self) -> bytes: ...

    def backend_keys(self) -> tuple[str, ...]: ...


class Request:
    """
    A request on its way to a backend.

    Read it, change it, or answer it by returning `reply(...)` from `on_request`. What is
    changed after `on_request` has no effect on what the backend gets.
    """

    # Class attributes, so that a request costs only what is asked of it.
    _headers: Headers | None = None
    _path: str | None = None
    _state: dict[str, Any] | None = None
    _id: str | None = None
    new_target: bytes | None = None
    new_host: bytes | None = None
    preferred = ""
    forbidden: frozenset[str] = frozenset()
    transforms: tuple[Transform, ...] = ()
    resized = False  # One of them may change the body's length.
    new_body: bytes | None = None
    touched = False  # Something is to be done with it, besides its fields.
    sampled = False  # Its calls are timed for the metrics.
    asked = -1  # The place of the last plugin that was asked.
    answering = 0  # The place of the plugin that looks at the response now.

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    # What it is.

    @property
    def method(self) -> str:
        """The method."""
        return self._origin.head.method.decode()

    @property
    def target(self) -> str:
        """Path and query as the backend gets them."""
        return (self.new_target or self._origin.head.target).decode("latin-1")

    @property
    def path(self) -> str:
        """The path by which routes are chosen: normalised, without the query."""
        if self._path is None:
            path = self.target.partition("?")[0]
            self._path = normalise(path) if path[:1] == "/" else "/"
        return self._path

    @property
    def query(self) -> str:
        """The query, without its `?`."""
        return self.target.partition("?")[2]

    @property
    def host(self) -> str:
        """The host that is asked for, with its port if it has one."""
        return (self.new_host or self._origin.head.fields.host or b"").decode("latin-1")

    @property
    def scheme(self) -> str:
        """How the client speaks: http or https."""
        return self._origin.peer.proto.decode()

    @property
    def client(self) -> str:
        """The client's address, as trusted proxies say; "unix:" for one on a socket file."""
        return self._origin.peer.address

    @property
    def subject(self) -> str:
        """The subject of the client's certificate, "" without one."""
        return self._origin.peer.subject.decode("latin-1")

    @property
    def listener(self) -> str:
        """The name of the listener it came to."""
        return self._origin.place[0]

    @property
    def route(self) -> str:
        """The name of its route, "" without one."""
        return self._origin.place[1]

    @property
    def upstream(self) -> str:
        """The name of the upstream it goes to, "" if it goes to none."""
        return self._origin.place[2]

    @property
    def backends(self) -> tuple[str, ...]:
        """The keys of the backends that may take it now."""
        return self._origin.backend_keys()

    @property
    def headers(self) -> Headers:
        """Its fields."""
        if self._headers is None:
            fields = self._origin.head.fields
            self._headers = Headers(fields.block, fields.kept)
        return self._headers

    def cookie(self, name: str) -> str | None:
        """Return the first cookie of a name."""
        headers = self._headers
        block = self._origin.head.fields.block
        if headers is not None and headers.changed:
            block = headers.kept + b"\r\n"
        value = cookie_value(block, name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    @property
    def claimed_id(self) -> str | None:
        """The X-Request-ID that the client itself sent: anything, by anybody."""
        values = field_values(self._origin.head.fields.block, b"x-request-id")
        return values[0].decode("latin-1") if values else None

    @property
    def content_length(self) -> int | None:
        """The length of its body; None where there is none, or where only its end will tell."""
        length = self._origin.head.fields.length
        return None if length < 0 else length

    @property
    def has_body(self) -> bool:
        """Whether a body comes, or may come."""
        fields = self._origin.head.fields
        return fields.chunked or fields.length > 0

    @property
    def wants_upgrade(self) -> bool:
        """Whether it asks to become another protocol, like a WebSocket."""
        return bool(self._origin.head.fields.upgrade)

    @property
    def state(self) -> dict[str, Any]:
        """Yours to keep things in until `on_finish`; keys begin with your plugin's name."""
        if self._state is None:
            self._state = {}
        return self._state

    # What may be done with it.

    @property
    def request_id(self) -> str:
        """What it is called in logs, and in X-Request-ID; visible ASCII, at most 128 of it."""
        return self._id or self._origin.request_id.decode()

    @request_id.setter
    def request_id(self, value: str) -> None:
        if not re.fullmatch(r"[!-~]{1,128}", value):
            raise ValueError("a request's id is 1 to 128 characters of visible ASCII")
        self._id = value
        self.touched = True

    def rewrite(self, target: str) -> None:
        """Have the backend asked for another path and query; the route stays what it was."""
        if not re.fullmatch(r"/[!-~]*", target) or "#" in target:
            raise ValueError(f"{target!r} is not a path that can be asked for")
        try:
            normalise(target.partition("?")[0])
        except ClientError as error:
            raise ValueError(f"{target!r} cannot be asked for: {error.message}") from None
        self.new_target = target.encode()
        self.touched = True
        self._path = None

    def set_host(self, host: str) -> None:
        """Have the backend see another Host, where the upstream keeps it."""
        if not re.fullmatch(r"[A-Za-z0-9._~:\[\]-]{1,255}", host):
            raise ValueError(f"{host!r} is not a host")
        self.new_host = host.encode()
        self.touched = True

    def prefer(self, key: str) -> None:
        """Have it go to this backend if that may take it, else to another, as usual."""
        self.preferred = key
        self.touched = True

    def forbid(self, *keys: str) -> None:
        """Have it not go to these backends, come what may."""
        self.forbidden |= set(keys)
        self.touched = True

    def transform_body(self, transform: Transform) -> None:
        """Have its body changed as it passes; its length is then unknown beforehand."""
        self.transforms = (*self.transforms, transform)
        self.resized = self.touched = True

    def watch_body(self, watcher: Watcher) -> None:
        """Have its body looked at as it passes, its length untouched."""
        self.transforms = (*self.transforms, _Watched(watcher))
        self.touched = True

    def replace_body(self, body: bytes) -> None:
        """Have another body sent, whatever comes; a body that came is read and dropped."""
        self.new_body = body
        self.touched = True


class Source(Protocol):
    """What a response is read from: its head."""

    @property
    def status(self) -> int: ...
    @property
    def fields(self) -> ResponseFields: ...


class Response:
    """
    A response on its way to the client: a backend's, or one of our own.

    Change it, or give another by returning `reply(...)` from `on_response`.
    """

    _headers: Headers | None = None
    transforms: tuple[Transform, ...] = ()
    new_status = 0

    def __init__(self, source: Source, backend: str, has_body: bool) -> None:
        self._source = source
        self.backend = backend  # Its key, "" where we answer ourselves.
        self.has_body = has_body  # Not where the method or the status forbids it.

    @property
    def content_length(self) -> int | None:
        """The length of its body; None where only its end will tell."""
        length = self._source.fields.length
        return None if length < 0 else length

    @property
    def status(self) -> int:
        """Its status; 200 to 599."""
        return self.new_status or self._source.status

    @status.setter
    def status(self, value: int) -> None:
        before = self._source.status
        if not 200 <= value <= 599 or (value in BODILESS) != (before in BODILESS):
            raise ValueError(f"a {before} cannot become a {value}: their bodies differ")
        self.new_status = value

    @property
    def headers(self) -> Headers:
        """Its fields."""
        if self._headers is None:
            fields = self._source.fields
            self._headers = Headers(fields.block, fields.kept, FRAMING)
        return self._headers

    def transform_body(self, transform: Transform) -> None:
        """Have its body changed as it passes; Content-Length goes."""
        self.transforms = (transform, *self.transforms)


@dataclass(frozen=True, slots=True)
class End:
    """How an exchange went. `cause` is the access log's word: "ok", "client_closed", ..."""

    status: int
    cause: str
    seconds: float
    bytes_in: int
    bytes_out: int
    backend: str
    upstream: str


def reply(
    status: int,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: str | bytes | None = None,
    *,
    cause: str = "",
) -> Reply:
    """
    Make an answer, to be returned from `on_request` or `on_response`.

    Without a `body` it says its status in words. `cause` goes into the access log: "ok",
    "denied" or "limited"; without it an error is "denied".
    """
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not a status to answer with")
    if cause not in ("", "ok", "denied", "limited"):
        raise ValueError(f"{cause!r} is not one of ok, denied, limited")
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    fields = []
    for name, value in pairs:
        if not can_be_field(name, value) or name.lower() in FRAMING:
            raise ValueError(f"{name}: {value!r} cannot stand in an answer")
        fields.append((name, value))
    if body is None and status < 400:
        body = ""
    word = cause or ("ok" if status < 400 else "denied")
    return Reply(status, word, fields=tuple(fields), body=body)


# --- The plugin and what it is given ----------------------------------------------------------


class Count(Protocol):
    """A counter of a plugin's own, `lb_plugin_events_total`."""

    def __call__(self, by: int = 1) -> None: ...


class Table(Protocol):
    """
    Numbers by key, shared by all workers of this instance: a fixed number of places.

    Where there is none left, the smallest number nearby makes room: let numbers be times. Two
    workers that write at once may lose one of the writes: good for rates, not for money.
    """

    def get(self, key: bytes) -> float:
        """Return the number; 0.0 if there is none."""
        ...

    def put(self, key: bytes, value: float) -> None:
        """Keep a number."""
        ...


class Context(Protocol):
    """What a plugin may use of the worker that it runs in."""

    log: Logger
    """The daemon's log; lines name the plugin."""
    rng: random.Random
    """Chance."""

    @property
    def node(self) -> str:
        """The name of this instance."""
        ...

    @property
    def place(self) -> str:
        """Where the file has this use: "route.api", "listener.web#2"; each has its own."""
        ...

    @property
    def instances(self) -> int:
        """How many instances of the group live, this one included; at least 1."""
        ...

    def now(self) -> float:
        """Seconds that only ever go forward, the same for all workers of this instance."""
        ...

    def count(self, event: str) -> Count:
        """Return a counter: `lb_plugin_events_total{plugin, event}`. At most 100 events each."""
        ...

    def table(self, name: str) -> Table:
        """Return a table of numbers that this instance's workers share."""
        ...

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Have something done again and again, until the plugin stops."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done beside; cut off when the plugin stops. At most 1,000 at once."""
        ...


C = TypeVar("C")


class Plugin(Generic[C]):
    """
    The base of all plugins: one instance a `use` in the file, in each worker.

    Besides these hooks a plugin may have `on_request`, `on_response` and `on_finish`:

        def on_request(self, req: Request) -> Reply | None
        def on_response(self, req: Request, res: Response) -> Reply | None
        def on_finish(self, req: Request, end: End) -> None

    The first two may be `async def`. `on_response` is also called for answers of our own, and
    for those of plugins written after this one. Whoever was asked by `on_request` is told by
    `on_finish`, whatever comes.
    """

    name: ClassVar[str]
    """What the file calls it: letters, digits, `_` and `-`."""
    api: ClassVar[int] = API
    """For which form of this module it is written."""
    Config: ClassVar[type | None] = None
    """A dataclass: what may stand beside `use`. ValueError in `__post_init__` refuses it."""

    config: C
    ctx: Context

    def __init__(self, config: C, ctx: Context) -> None:
        self.config = config
        self.ctx = ctx

    def start(self) -> None:
        """Get ready; called once, before the first request. What raises refuses the reload."""

    def stop(self) -> None:
        """Let go of everything; called once, after the last request."""


RequestHook = Callable[[Request], "Reply | Awaitable[Reply | None] | None"]
ResponseHook = Callable[[Request, Response], "Reply | Awaitable[Reply | None] | None"]
FinishHook = Callable[[Request, End], None]
HOOKS: Final = {"on_request": ("req",), "on_response": ("req", "res"), "on_finish": ("req", "end")}


def waits(hook: object) -> bool:
    """Whether a hook is a coroutine."""
    return inspect.iscoroutinefunction(hook)


# --- Other things that a file may add ---------------------------------------------------------

B = TypeVar("B", bound=type[Balancer[Any]])
Check = Callable[[str, float], Coroutine[Any, Any, None]]
REGISTERED: Final = "__accord__"  # The attribute that says what a class or function is for.


def balancer(name: str) -> Callable[[B], B]:
    """Make a subclass of `Balancer` known to `balance` of an upstream, by this name."""

    def register(cls: B) -> B:
        setattr(cls, REGISTERED, ("balancer", name))
        return cls

    return register


def health_check(name: str) -> Callable[[Check], Check]:
    """
    Make a check known to `health.type` of an upstream, by this name.

    It is an `async def` of an endpoint's address and the seconds that it may take; what it
    raises is why the endpoint is unhealthy.
    """

    def register(check: Check) -> Check:
        setattr(check, REGISTERED, ("health_check", name))
        return check

    return register
