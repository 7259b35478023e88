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
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from lb.config.admin import Admin, AdminTls, Token
from lb.config.group import Group, GroupTls
from lb.config.kinds import (
    NAME_MAX,
    ByteRate,
    Choice,
    DnsServer,
    Duration,
    Flag,
    ListenAddress,
    LogFormat,
    Name,
    OrOne,
    Output,
    Share,
    Size,
    Text,
    Whole,
    Workers,
    shown,
    wrong,
)
from lb.config.requests import (
    HeaderName,
    HostPattern,
    Method,
    Network,
    PathPattern,
    RequestKey,
    UpgradeToken,
    UrlPath,
)
from lb.config.section import Section, restart
from lb.config.upstreams import (
    Backend,
    Drain,
    Health,
    Keepalive,
    Retries,
    Upstream,
    UpstreamTimeouts,
    UpstreamTls,
)
from lb.config.uses import Plugins, Use

__all__ = [
    "AccessLog",
    "Admin",
    "AdminTls",
    "Backend",
    "Certificate",
    "Config",
    "Drain",
    "Group",
    "GroupTls",
    "Health",
    "Keepalive",
    "Listener",
    "ListenerLimits",
    "ListenerTimeouts",
    "Log",
    "Node",
    "Plugins",
    "Respond",
    "Retries",
    "Route",
    "Section",
    "Token",
    "Upstream",
    "UpstreamTimeouts",
    "UpstreamTls",
    "Use",
]

WORKERS_MAX = 256
CONNECTIONS_MAX = 1_000_000
REDIRECTS = {301, 302, 303, 307, 308}
BODILESS = {204, 205, 304}


def host_name() -> str:
    """Name this machine in letters that a name may have; the default of `node.name`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:NAME_MAX]
    return name if name.strip(".") else "lb"


class Node(Section):
    """This instance; never shared with others."""

    noun = "[node]"

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
    resolver: Annotated[list[Annotated[str, DnsServer()]], OrOne()] = Field(
        default=[],
        description="DNS servers, ip or ip:port; none: the system's.",
        examples=[["127.0.0.1:5353"]],
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


class Log(Section):
    """The daemon's own log: what happens to it, not what it serves."""

    noun = "[log]"

    level: Annotated[str, Choice(("debug", "info", "warning", "error"))] = restart(
        "info", "The least severe line to write."
    )
    output: Annotated[str, Output(("stderr", "stdout"))] = restart(
        "stderr", 'A path (beside the file, if relative), "stderr" or "stdout".'
    )
    format: Annotated[str, Choice(("text", "json"))] = restart(
        "text", "For people, or one JSON object a line."
    )


class AccessLog(Section):
    """One line for every exchange."""

    noun = "[access_log]"

    output: Annotated[str, Output(("stdout", "off"))] = Field(
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
    per_client: Annotated[int, Whole(0, CONNECTIONS_MAX)] = Field(
        default=0,
        description="Open connections from one address (of IPv6: from one /64), dealt out to"
        " workers as well; above: 429. 0: no limit.",
    )
    body_rate: Annotated[int, ByteRate()] = Field(
        default=0, description="How fast a body must come, given 5 s; slower: 408. 0: any."
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


class Certificate(Section):
    """A certificate that we show, with its chain, and its key."""

    noun = "a certificate"

    cert: Annotated[str, Text()] = Field(
        description="A PEM file: the certificate, then those that lead from it to its authority.",
        examples=["example.pem"],
    )
    key: Annotated[str, Text()] = Field(
        description="A PEM file with its private key, without a passphrase.",
        examples=["example.key"],
    )


class Listener(Section):
    """An address that we accept clients on."""

    noun = "a listener"

    address: Annotated[list[Annotated[str, ListenAddress()]], OrOne(), Field(min_length=1)] = Field(
        description="Where to accept; one address or several.", examples=["0.0.0.0:8080"]
    )
    upstream: Annotated[str, Name()] | None = Field(
        default=None, description="Where a request goes that no route matches.", examples=["app"]
    )
    tls: Annotated[list[Certificate], OrOne()] = Field(
        default=[],
        description="Speak TLS, by these certificates; the name that a client asks for decides,"
        " and who asks for none of them gets the first. Read again when the files change.",
        examples=[{"cert": "example.pem", "key": "example.key"}],
    )
    tls_min: Annotated[str, Choice(("1.2", "1.3"))] = Field(
        default="1.2", description="The oldest version of TLS to speak."
    )
    client_auth: Annotated[str, Choice(("none", "request", "require"))] = Field(
        default="none",
        description="Whether clients have to show a certificate; its subject goes to backends in"
        " X-Client-Cert-Subject.",
    )
    client_ca: Annotated[str, Text()] | None = Field(
        default=None,
        description="A PEM file with the authorities that clients' certificates must come from.",
        examples=["clients-ca.pem"],
    )
    ready_path: Annotated[str, UrlPath()] | None = Field(
        default=None,
        description="A path that the worker itself answers, with 503 once we stop.",
        examples=["/-/ready"],
    )
    trusted_proxies: Annotated[list[Annotated[str, Network()]], OrOne()] = Field(
        default=[],
        description='Whose X-Forwarded-* are believed: networks, addresses, or "unix".',
        examples=[["10.0.0.0/8", "::1"]],
    )
    proxy_protocol: Annotated[bool, Flag()] = Field(
        default=False,
        description="Connections begin with a PROXY header (version 1 or 2), before TLS too;"
        " only trusted_proxies get in.",
    )
    limits: ListenerLimits = Field(
        default=ListenerLimits(), description="What a client may ask for at most."
    )
    timeouts: ListenerTimeouts = Field(
        default=ListenerTimeouts(), description="How long a client may take."
    )

    plugins: Annotated[list[Use], OrOne()] = Field(
        default=[],
        description="What every request that comes here passes, in this order.",
        examples=[["request_id"]],
    )

    @model_validator(mode="after")
    def _somebody_is_believed(self) -> Listener:
        if self.proxy_protocol and not self.trusted_proxies:
            raise wrong(
                "nobody's PROXY header would be believed, so nobody would get in",
                'add trusted_proxies = ["10.0.0.0/8"]',
                at=("proxy_protocol",),
            )
        return self

    @model_validator(mode="after")
    def _tls_fits(self) -> Listener:
        if not self.tls:
            for key in ("tls_min", "client_auth", "client_ca"):
                if key in self.model_fields_set and getattr(self, key) != (
                    type(self).model_fields[key].default
                ):
                    raise wrong(f"{key} means nothing without tls", "add tls", at=(key,))
        elif self.client_auth != "none" and self.client_ca is None:
            raise wrong(
                "nobody's certificate could be checked",
                'add client_ca = "clients-ca.pem"',
                at=("client_auth",),
            )
        elif self.client_auth == "none" and self.client_ca is not None:
            raise wrong(
                'client_ca means nothing while client_auth is "none"',
                'add client_auth = "require"',
                at=("client_ca",),
            )
        return self


class Respond(Section):
    """An answer of our own, given instead of asking an upstream."""

    noun = "an answer"

    status: Annotated[int, Whole(200, 599)] = Field(description="The status.", examples=[308])
    location: Annotated[str, Text()] | None = Field(
        default=None, description="Where a redirect leads.", examples=["https://example.com/"]
    )
    body: Annotated[str, Text(lines=True, empty=True)] = Field(
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
    header: dict[Annotated[str, HeaderName()], Annotated[str, Text(empty=True)]] = Field(
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
    upgrade: Annotated[list[Annotated[str, UpgradeToken()]], OrOne()] = Field(
        default=["websocket"],
        description="What a request may ask to become; any other Upgrade is taken off it.",
        examples=[["websocket"]],
    )

    plugins: Annotated[list[Use], OrOne()] = Field(
        default=[],
        description="What its requests pass, in this order, after the listener's.",
        examples=[[{"use": "rate_limit", "rate": "100/s"}]],
    )

    @field_validator("header", mode="before")
    @classmethod
    def _headers_differ(cls, value: object) -> object:
        seen: set[str] = set()
        for name in value if isinstance(value, dict) else ():
            if str(name).lower() in seen:
                raise wrong(f"{shown(name)} is here twice", "case makes no difference", at=(name,))
            seen.add(str(name).lower())
        return value

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


class Config(Section):
    """All of it."""

    noun = "this file"

    version: Annotated[int, Whole(0, 2**53)] | None = Field(
        default=None, description="Raise it so that a new machine's file may change the registry."
    )
    node: Node = Field(default=Node(), description="This instance.")
    admin: Admin = Field(default=Admin(), description="Where operators talk to it.")
    log: Log = Field(default=Log(), description="The daemon's own log.")
    access_log: AccessLog = Field(default=AccessLog(), description="One line for every exchange.")
    group: Group | None = restart(
        None, "The instances that agree on backends. Left out: a group of one."
    )
    plugins: Plugins = Field(default=Plugins(), description="Where plugins come from.")
    listener: dict[Annotated[str, Name()], Listener] = Field(
        default={}, description="Addresses that we accept clients on."
    )
    route: dict[Annotated[str, Name()], Route] = Field(
        default={}, description="Which requests go to which upstream."
    )
    upstream: dict[Annotated[str, Name()], Upstream] = Field(
        default={}, description="Named sets of backends."
    )
