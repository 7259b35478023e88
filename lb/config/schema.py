"""
The shape of the configuration: every key with its kind, default and meaning.

Attributes are named as the keys are. `lb check`, `lb config doc`, the JSON Schema and the list
of what needs a restart all come from here. A key that the design knows and this release does
not stands in its section's `later`, so that it is refused by name and never silently taken.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from lb.config.kinds import (
    NAME_MAX,
    BackendAddress,
    Choice,
    Duration,
    Flag,
    ListenAddress,
    LogFormat,
    Name,
    OrOne,
    Share,
    Size,
    Text,
    Whole,
    Workers,
    shown,
    wrong,
)
from lb.config.requests import (
    BackendHost,
    HeaderName,
    HostPattern,
    Method,
    PathPattern,
    RequestKey,
    Statuses,
    UrlPath,
)

WORKERS_MAX = 256
WEIGHT_MAX = 1000
CONNECTIONS_MAX = 1_000_000
REDIRECTS = {301, 302, 303, 307, 308}
BODILESS = {204, 205, 304}


def host_name() -> str:
    """Name this machine in letters that a name may have; the default of `node.name`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:NAME_MAX]
    return name if name.strip(".") else "lb"


class Section(BaseModel):
    """A table of the file. Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    noun: ClassVar[str]
    later: ClassVar[frozenset[str]] = frozenset()


def restart(default: Any, description: str, **more: Any) -> Any:
    """Declare a key whose change acts only after a restart or `lb upgrade`."""
    return Field(default, description=description, json_schema_extra={"restart": True}, **more)


class Node(Section):
    """This instance; never shared with others."""

    noun = "[node]"
    later = frozenset({"resolver"})

    name: Annotated[str, Name()] = Field(
        default_factory=host_name,
        description="What this instance is called. Unique in its group; default: the host's name.",
        json_schema_extra={"restart": True},
        examples=["a"],
    )
    data_dir: Annotated[str, Text()] = restart(
        "lb-data",
        "Where the registry is kept. Default: $STATE_DIRECTORY, else lb-data beside the file;"
        " a relative path is beside the file too.",
        examples=["/var/lib/lb"],
    )
    workers: Annotated[int | Literal["auto"], Workers(WORKERS_MAX)] = restart(
        "auto", 'How many worker processes; "auto" is one a core.', examples=[4]
    )
    grace: Annotated[float, Duration()] = Field(
        default=5.0,
        description="At a stop: how long to stay open, yet not ready, so that others notice.",
    )
    drain: Annotated[float, Duration()] = Field(
        default=30.0, description="At a stop: how long what runs may take to finish."
    )
    watch: Annotated[bool, Flag()] = Field(
        default=False, description="Reload by ourselves when a file of the configuration changes."
    )

    def worker_count(self) -> int:
        """Say how many workers to start on this machine."""
        if self.workers == "auto":
            return min(WORKERS_MAX, len(os.sched_getaffinity(0)))
        return self.workers


class Admin(Section):
    """Where operators, the command line and the dashboard talk to this instance."""

    noun = "[admin]"
    later = frozenset({"tokens", "tls"})

    address: Annotated[str, ListenAddress()] = restart(
        "127.0.0.1:9900",
        "Loopback, or a unix socket (mode 0660).",
        examples=["unix:/run/lb/admin.sock"],
    )
    hosts: Annotated[list[Annotated[str, HostPattern()]], OrOne()] = Field(
        default=[],
        description="Names by which a browser may call us.",
        examples=[["lb.example.com"]],
    )
    probe: Annotated[str, ListenAddress()] | None = restart(
        None,
        "A second, plain address that knows only /livez, /readyz and /metrics.",
        examples=["0.0.0.0:9902"],
    )


class Log(Section):
    """The daemon's own log: what happens to it, not what it serves."""

    noun = "[log]"

    level: Annotated[str, Choice(("debug", "info", "warning", "error"))] = restart(
        "info", "The least severe line to write."
    )
    output: Annotated[str, Text()] = restart(
        "stderr", 'A path (beside the file, if relative), "stderr" or "stdout".'
    )
    format: Annotated[str, Choice(("text", "json"))] = restart(
        "text", "For people, or one JSON object a line."
    )


class AccessLog(Section):
    """One line for every exchange."""

    noun = "[access_log]"

    output: Annotated[str, Text()] = Field(
        default="stdout",
        description='A path (beside the file, if relative), "stdout" or "off".',
        examples=["/var/log/lb/access.log"],
    )
    format: Annotated[str, LogFormat()] = Field(
        default="json",
        description='"json", "combined" (as web servers have it), or a template.',
        examples=["combined", '{client} "{method} {path}" {status} {ms} {header:user-agent}'],
    )
    redact: Annotated[list[Annotated[str, Text()]], OrOne()] = Field(
        default=[],
        description='What to leave out: "query", and names of headers.',
        examples=[["query", "referer"]],
    )


class ListenerLimits(Section):
    """What a client may ask for at most."""

    noun = "a listener's limits"
    later = frozenset({"per_client", "body_rate"})

    connections: Annotated[int, Whole(1, CONNECTIONS_MAX)] = Field(
        default=10_000, description="Open connections of this instance; each worker has its share."
    )
    header_bytes: Annotated[int, Size(1024, 1 << 20)] = Field(
        default=32 * 1024, description="All header lines of a request together; above: 431."
    )
    headers: Annotated[int, Whole(1, 10_000)] = Field(
        default=100, description="Header lines of a request; above: 431."
    )
    request_line: Annotated[int, Size(64, 1 << 20)] = Field(
        default=8 * 1024, description="The request line; above: 414."
    )


class ListenerTimeouts(Section):
    """How long a client may take."""

    noun = "a listener's timeouts"

    header: Annotated[float, Duration(zero=False)] = Field(
        default=10.0,
        description="From the first byte of a request to the end of its head; then 408.",
    )
    stall: Annotated[float, Duration(zero=False)] = Field(
        default=30.0, description="How long a body may make no progress, either way."
    )
    idle: Annotated[float, Duration(zero=False)] = Field(
        default=60.0, description="How long a connection is kept open between requests."
    )


class Listener(Section):
    """An address that we accept clients on."""

    noun = "a listener"
    later = frozenset(
        {"tls", "tls_min", "client_auth", "client_ca", "trusted_proxies", "proxy_protocol"}
        | {"plugins"}
    )

    address: Annotated[list[Annotated[str, ListenAddress()]], OrOne(), Field(min_length=1)] = Field(
        description="Where to accept; one address or several.", examples=["0.0.0.0:8080"]
    )
    upstream: Annotated[str, Name()] | None = Field(
        default=None, description="Where a request goes that no route matches.", examples=["app"]
    )
    ready_path: Annotated[str, UrlPath()] | None = Field(
        default=None,
        description="A path that the worker itself answers, with 503 once we stop.",
        examples=["/-/ready"],
    )
    limits: ListenerLimits = Field(
        default=ListenerLimits(), description="What a client may ask for at most."
    )
    timeouts: ListenerTimeouts = Field(
        default=ListenerTimeouts(), description="How long a client may take."
    )


class Respond(Section):
    """An answer of our own, given instead of asking an upstream."""

    noun = "an answer"

    status: Annotated[int, Whole(200, 599)] = Field(description="The status.", examples=[308])
    location: Annotated[str, Text()] | None = Field(
        default=None, description="Where a redirect leads.", examples=["https://example.com/"]
    )
    body: Annotated[str, Text(lines=True)] = Field(
        default="", description="The body, as plain text."
    )

    @model_validator(mode="after")
    def _status_fits(self) -> Respond:
        if self.status in REDIRECTS and self.location is None:
            raise wrong(f"a {self.status} needs a location", 'add location = "https://..."')
        if self.status in BODILESS and self.body:
            raise wrong(f"a {self.status} has no body", "leave body out", at=("body",))
        if self.location is not None and not (self.location.isascii() and self.location):
            raise wrong(f"{shown(self.location)} is not a location", at=("location",))
        return self


def _target_kind(value: object) -> str:
    return "<split>" if isinstance(value, dict) else "<name>"


Target = Annotated[
    Annotated[Annotated[str, Name()], Tag("<name>")]
    | Annotated[dict[Annotated[str, Name()], Annotated[float, Share()]], Tag("<split>")],
    Discriminator(_target_kind),
]


class Route(Section):
    """Which requests go to which upstream. Without conditions: all."""

    noun = "a route"
    later = frozenset({"upgrade", "plugins"})

    listener: Annotated[list[Annotated[str, Name()]], OrOne()] = Field(
        default=[], description="Only on these listeners; default: all.", examples=[["secure"]]
    )
    host: Annotated[list[Annotated[str, HostPattern()]], OrOne()] = Field(
        default=[],
        description="Only for these hosts.",
        examples=[["api.example.com", "*.api.example.com"]],
    )
    path: Annotated[str, PathPattern()] | None = Field(
        default=None,
        description='"/v1" is a prefix of whole segments, "=/x" exact, "~^/x$" a regular'
        " expression. Compared with the normalised path.",
        examples=["/v1/"],
    )
    method: Annotated[list[Annotated[str, Method()]], OrOne()] = Field(
        default=[], description="Only these methods; others get 405.", examples=[["GET", "POST"]]
    )
    header: dict[Annotated[str, HeaderName()], Annotated[str, Text()]] = Field(
        default={},
        description="Only where these headers have exactly these values.",
        examples=[{"x-canary": "1"}],
    )
    upstream: Target | None = Field(
        default=None,
        description="Where it goes: an upstream, or a table of upstreams and shares.",
        examples=["api", {"api": "99%", "canary": "1%"}],
    )
    split_by: Annotated[str, RequestKey(("client_ip",))] = Field(
        default="client_ip",
        description="What keeps a client on one side of a split:"
        ' "client_ip", "cookie:NAME" or "header:NAME".',
    )
    respond: Respond | None = Field(
        default=None,
        description="An answer of our own, instead of an upstream.",
        examples=[{"status": 308, "location": "https://example.com/"}],
    )
    body_max: Annotated[int, Size()] | None = Field(
        default=None,
        description="The largest request body; above: 413. Default: none.",
        examples=["10MiB"],
    )
    timeout: Annotated[float, Duration()] = Field(
        default=0.0, description='For the whole exchange, retries included; "0s": none.'
    )

    @model_validator(mode="after")
    def _fits(self) -> Route:
        if self.upstream is not None and self.respond is not None:
            raise wrong(
                "a route has an upstream or an answer, not both",
                "leave one out",
                at=("respond",),
            )
        if self.upstream is None and self.respond is None:
            raise wrong("this route leads nowhere", "give it an upstream or respond")
        if isinstance(self.upstream, dict):
            total = sum(self.upstream.values())
            if abs(total - 1) > 1e-6:
                raise wrong(
                    f"these shares make {Share().write(round(total, 6))}",
                    "they must make 100%",
                    at=("upstream",),
                )
        return self

    def targets(self) -> list[str]:
        """Name the upstreams that it may lead to."""
        if self.upstream is None:
            return []
        return [self.upstream] if isinstance(self.upstream, str) else list(self.upstream)


class Backend(Section):
    """One server of an upstream, as the file knows it."""

    noun = "a backend"
    later = frozenset({"ttl", "labels"})

    address: Annotated[str, BackendAddress()] = Field(
        description="Where it is.", examples=["10.0.0.5:80"]
    )
    name: Annotated[str, Name()] | None = Field(
        default=None, description="A name that stays when the address changes.", examples=["app-1"]
    )
    weight: Annotated[int, Whole(0, WEIGHT_MAX)] = Field(
        default=1,
        description="Its part of the traffic, against the others' weights; 0: nothing new.",
    )
    backup: Annotated[bool, Flag()] = Field(
        default=False, description="Used only where no other backend is left."
    )

    @property
    def key(self) -> str:
        """What it is called in URLs, metrics and hashing."""
        return self.name if self.name is not None else self.address

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"address": value} if isinstance(value, str | int | float) else value


class Health(Section):
    """An active check: made only with a path, or with type = "tcp"."""

    noun = "a health check"

    type: Annotated[str, Choice(("http", "tcp"))] = Field(
        default="http", description='"http" asks for path; "tcp" only connects.'
    )
    path: Annotated[str, UrlPath(query=True)] | None = Field(
        default=None,
        description="What to ask for; without it there is no check.",
        examples=["/healthz"],
    )
    interval: Annotated[float, Duration(zero=False)] = Field(
        default=5.0, description="From check to check, give or take a fifth."
    )
    timeout: Annotated[float, Duration(zero=False)] = Field(
        default=2.0, description="How long one check may take, connecting included."
    )
    rise: Annotated[int, Whole(1, 100)] = Field(
        default=2, description="Good checks in a row that make it healthy."
    )
    fall: Annotated[int, Whole(1, 100)] = Field(
        default=3, description="Bad checks in a row that make it unhealthy."
    )
    expect: Annotated[str, Statuses()] = Field(
        default="200-399", description="The statuses that are good."
    )
    port: Annotated[int, Whole(1, 65535)] | None = Field(
        default=None, description="Check this port, not the backend's own.", examples=[8081]
    )
    host: Annotated[str, Text()] | None = Field(
        default=None, description="The Host to send; default: the backend's address."
    )
    body: Annotated[str, Text(lines=True)] | None = Field(
        default=None, description="Text that the answer's body must hold.", examples=["ok"]
    )

    @property
    def active(self) -> bool:
        """Whether there is anything to check."""
        return self.type == "tcp" or self.path is not None

    @property
    def expected(self) -> tuple[tuple[int, int], ...]:
        """The good statuses as ranges, both ends included."""
        found = (part.split("-") for part in self.expect.split(","))
        return tuple((int(ends[0]), int(ends[-1])) for ends in found)


class Retries(Section):
    """When another backend is asked."""

    noun = "an upstream's retries"
    later = frozenset({"statuses", "non_idempotent"})

    attempts: Annotated[int, Whole(1, 10)] = Field(
        default=2, description="All tries of one request, the first included."
    )
    budget: Annotated[float, Share()] = Field(
        default=0.2, description="Retries under way, at most, as a share of running requests."
    )


class UpstreamTimeouts(Section):
    """How long a backend may take."""

    noun = "an upstream's timeouts"
    later = frozenset({"tunnel"})

    connect: Annotated[float, Duration(zero=False)] = Field(
        default=3.0, description="To connect; then the next backend is tried."
    )
    response: Annotated[float, Duration(zero=False)] = Field(
        default=30.0, description="From the request to the end of the answer's head; then 504."
    )
    stall: Annotated[float, Duration(zero=False)] = Field(
        default=60.0, description="How long an answer may pause between two reads."
    )


class Keepalive(Section):
    """Connections to backends that are kept for the next request."""

    noun = "an upstream's keepalive"

    idle_max: Annotated[int, Whole(0, 10_000)] = Field(
        default=64, description="Unused connections kept for each backend, in each worker."
    )
    idle: Annotated[float, Duration()] = Field(
        default=4.0,
        description="How long an unused one is kept; shorter than the backends' own time.",
    )


class Drain(Section):
    """How a backend leaves that still has requests."""

    noun = "an upstream's drain"

    soft: Annotated[float, Duration()] = Field(
        default=30.0, description="How long what runs goes on undisturbed."
    )
    force: Annotated[float, Duration()] = Field(
        default=300.0, description="When the rest of it is cut."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Drain:
        if self.force < self.soft:
            raise wrong("force comes before soft", "make it the longer one", at=("force",))
        return self


class Upstream(Section):
    """A named set of backends, with one way of choosing among them."""

    noun = "an upstream"
    later = frozenset({"outlier", "limits", "slow_start", "tls", "send_proxy"})

    balance: Annotated[
        str,
        Choice(
            ("round_robin", "random", "least_requests", "two_choices", "hash", "peak_ewma"),
            also=(("weighted", "round_robin"),),
        ),
    ] = Field(default="round_robin", description="How to choose; every way honours weights.")
    hash_key: Annotated[str, RequestKey(("client_ip", "path"))] = Field(
        default="client_ip",
        description='For "hash": "client_ip", "header:NAME", "cookie:NAME" or "path".',
    )
    backends: Annotated[list[Backend], OrOne()] | None = Field(
        default=None,
        description="The backends. Left out: the file says nothing about them. []: none.",
        examples=[["10.0.0.4:80", {"address": "10.0.0.5:80", "weight": 3}]],
    )
    health: Health | None = Field(
        default=None, description="The active check.", examples=[{"path": "/healthz"}]
    )
    panic: Annotated[float, Share()] = Field(
        default=0.3, description='Less than this usable: health is ignored, visibly; "0%": never.'
    )
    min_active: Annotated[float, Share()] = Field(
        default=0.0, description="A change that would leave fewer active backends is refused."
    )
    retries: Retries = Field(default=Retries(), description="When another is asked.")
    timeouts: UpstreamTimeouts = Field(
        default=UpstreamTimeouts(), description="How long a backend may take."
    )
    keepalive: Keepalive = Field(
        default=Keepalive(), description="Connections kept for the next request."
    )
    drain: Drain = Field(
        default=Drain(), description="How a backend leaves that still has requests."
    )
    host: Annotated[str, BackendHost()] = Field(
        default="keep",
        description='The Host that backends see: "keep", "backend" (its address), or a name.',
    )

    @model_validator(mode="after")
    def _backends_differ(self) -> Upstream:
        seen: dict[str, int] = {}
        for index, backend in enumerate(self.backends or ()):
            if backend.key in seen:
                raise wrong(
                    f"{shown(backend.key)} is here twice",
                    "give them different names, or one of them more weight",
                    at=("backends", str(index)),
                )
            seen[backend.key] = index
        return self


class Config(Section):
    """All of it."""

    noun = "this file"
    later = frozenset({"group", "plugins"})

    version: Annotated[int, Whole(0, 2**53)] | None = Field(
        default=None, description="Raise it so that a new machine's file may change the registry."
    )
    node: Node = Field(default=Node(), description="This instance.")
    admin: Admin = Field(default=Admin(), description="Where operators talk to it.")
    log: Log = Field(default=Log(), description="The daemon's own log.")
    access_log: AccessLog = Field(default=AccessLog(), description="One line for every exchange.")
    listener: dict[Annotated[str, Name()], Listener] = Field(
        default={}, description="Addresses that we accept clients on."
    )
    route: dict[Annotated[str, Name()], Route] = Field(
        default={}, description="Which requests go to which upstream."
    )
    upstream: dict[Annotated[str, Name()], Upstream] = Field(
        default={}, description="Named sets of backends."
    )
