"""The words that everything else is written in: plain, immutable values.

Configuration (with units, positions, documentation) lives in `lb.config`; what is here is
what a worker needs in order to serve, with every unit resolved: seconds, bytes, shares of 1.
An edition carries these values as JSON; `from_plain` turns its mappings back into them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

HTTPS = "https://"  # What the address of a backend that speaks TLS begins with.


class State(StrEnum):
    """What the registry says of a backend: a person's intent."""

    ACTIVE = "active"
    DRAINING = "draining"
    DISABLED = "disabled"


class Health(StrEnum):
    """Whether this instance can use an endpoint now: what its probes showed."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    CHECKING = "checking"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One address that a worker connects to, of one backend.

    `key` is the backend's identity in URLs, metrics and hashing; `address` is `ip:port`,
    `[ip6]:port` or `unix:/path`, after `https://` where TLS is spoken; then `host` is the name
    or address that its certificate is to be for. Where a backend has several endpoints each
    has its own `address` under the same `key`. `weight` is this endpoint's own share.
    """

    key: str
    address: str
    weight: int = 1
    state: State = State.ACTIVE
    backup: bool = False
    host: str = ""


@dataclass(frozen=True, slots=True)
class CertificateRef:
    """A certificate with its key, by the digest that its part of the edition is named after."""

    digest: str
    names: tuple[str, ...] = ()  # lower case, `*.` for a wildcard: which SNI gets it


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """
    TLS with clients. The first certificate is for those who name nothing that we have.

    `minimum`: `1.2` or `1.3`; `client_auth`: `none`, `request` or `require`; `client_ca`: the
    digest of the certificates that clients' own are checked by, "" for none.
    """

    certificates: tuple[CertificateRef, ...]
    minimum: str = "1.2"
    client_auth: str = "none"
    client_ca: str = ""

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ListenerTls:
        return cls(
            certificates=tuple(
                CertificateRef(each["digest"], tuple(each["names"]))
                for each in plain["certificates"]
            ),
            minimum=plain["minimum"],
            client_auth=plain["client_auth"],
            client_ca=plain["client_ca"],
        )


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """
    TLS with backends whose address is `https://`.

    `name` replaces the address's own in SNI and in the check; `ca` and `certificate` are
    digests, "" for the system's authorities and for no certificate of ours.
    """

    verify: bool = True
    name: str = ""
    ca: str = ""
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Bounds of heads (octets, fields), of clients, and of how slow a body may come."""

    connections: int = 10_000  # per instance; a worker is dealt its share
    header_bytes: int = 32 * 1024
    headers: int = 100
    request_line: int = 8 * 1024
    per_client: int = 0  # connections from one address, dealt out as well; 0: no limit
    body_rate: int = 0  # octets a second that a body must bring; 0: any


@dataclass(frozen=True, slots=True)
class ListenerTimeouts:
    """Seconds. `header`: first byte to end of head; `stall`: no progress of a body either way."""

    header: float = 10.0
    stall: float = 30.0
    idle: float = 60.0


@dataclass(frozen=True, slots=True)
class PluginUse:
    """
    One use of a plugin. `place` is where the file has it, `settings` what its Config is made
    of: plain values as JSON, secrets included.
    """

    plugin: str
    place: str
    on_error: str
    settings: str = field(repr=False)


def uses_from_plain(plain: list[dict[str, Any]]) -> tuple[PluginUse, ...]:
    """Read what JSON made of uses."""
    return tuple(PluginUse(**each) for each in plain)


@dataclass(frozen=True, slots=True)
class Listener:
    """Addresses that we accept clients on, and how."""

    name: str
    addresses: tuple[str, ...]
    upstream: str | None = None
    ready_path: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    limits: ListenerLimits = field(default_factory=ListenerLimits)
    timeouts: ListenerTimeouts = field(default_factory=ListenerTimeouts)
    tls: ListenerTls | None = None
    proxy_protocol: bool = False  # connections begin with who they are from
    plugins: tuple[PluginUse, ...] = ()

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Listener:
        tls = plain["tls"]
        return cls(
            name=plain["name"],
            addresses=tuple(plain["addresses"]),
            upstream=plain["upstream"],
            ready_path=plain["ready_path"],
            trusted_proxies=tuple(plain["trusted_proxies"]),
            limits=ListenerLimits(**plain["limits"]),
            timeouts=ListenerTimeouts(**plain["timeouts"]),
            tls=None if tls is None else ListenerTls.from_plain(tls),
            proxy_protocol=plain["proxy_protocol"],
            plugins=uses_from_plain(plain.get("plugins", [])),
        )


@dataclass(frozen=True, slots=True)
class Respond:
    """An answer of our own, given instead of asking an upstream."""

    status: int
    location: str | None = None
    body: str = ""


UPGRADE: Final = ("websocket",)  # what a request may become, where no route says otherwise


@dataclass(frozen=True, slots=True)
class Route:
    """
    Which requests go to which upstream.

    `listeners` empty: all. `hosts`: exact names or `*.suffix`, lower case. `path`: `/v1`
    (a prefix of whole segments), `=/x` (exact), `~^/x$` (regular expression), None: any.
    `headers`: lower-case name and exact value. One of `upstream`, `split` and `respond` is set;
    `split` holds upstream and share (shares of 1, summing to 1) in the file's order.
    """

    name: str
    listeners: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    path: str | None = None
    methods: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    upstream: str | None = None
    split: tuple[tuple[str, float], ...] = ()
    split_by: str = "client_ip"
    respond: Respond | None = None
    body_max: int | None = None
    timeout: float = 0.0
    upgrade: tuple[str, ...] = UPGRADE
    plugins: tuple[PluginUse, ...] = ()

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Route:
        respond = plain["respond"]
        return cls(
            name=plain["name"],
            listeners=tuple(plain["listeners"]),
            hosts=tuple(plain["hosts"]),
            path=plain["path"],
            methods=tuple(plain["methods"]),
            headers=tuple((name, value) for name, value in plain["headers"]),
            upstream=plain["upstream"],
            split=tuple((name, share) for name, share in plain["split"]),
            split_by=plain["split_by"],
            respond=None if respond is None else Respond(**respond),
            body_max=plain["body_max"],
            timeout=plain["timeout"],
            upgrade=tuple(plain["upgrade"]),
            plugins=uses_from_plain(plain.get("plugins", [])),
        )


@dataclass(frozen=True, slots=True)
class Retries:
    """
    `attempts` counts all tries, the first included; `budget` is a share of active requests.
    `statuses` are answers to take elsewhere; `non_idempotent`: repeat any method.
    """

    attempts: int = 2
    budget: float = 0.2
    statuses: tuple[int, ...] = ()
    non_idempotent: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamTimeouts:
    """
    Seconds. `connect`; `response`: to the end of the response head; `stall`: between reads;
    `tunnel`: of silence after an upgrade.
    """

    connect: float = 3.0
    response: float = 30.0
    stall: float = 60.0
    tunnel: float = 3600.0


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Of connections to backends, per endpoint and worker."""

    idle_max: int = 64
    idle: float = 4.0


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """
    Per instance, dealt out to its workers; 0: none. `per_backend` bounds the requests that an
    endpoint works on; `queue` those that wait for one, `queue_timeout` seconds at most.
    """

    per_backend: int = 0
    queue: int = 100
    queue_timeout: float = 1.0


@dataclass(frozen=True, slots=True)
class Drain:
    """Seconds that running exchanges keep a backend that is leaving: asked to end, then cut."""

    soft: float = 30.0
    force: float = 300.0


@dataclass(frozen=True, slots=True)
class Outlier:
    """
    Ejection by what real traffic shows: `errors` failures in a row `within` seconds take an
    endpoint out for `eject` seconds, `max_ejected` of an upstream's at most. `errors` 0: never.
    """

    errors: int = 5
    within: float = 10.0
    eject: float = 10.0
    max_ejected: float = 0.5


@dataclass(frozen=True, slots=True)
class Upstream:
    """How one upstream is used; which backends it has comes from the registry, apart."""

    name: str
    balance: str = "round_robin"
    hash_key: str = "client_ip"
    checked: bool = False  # an active check exists: without a verdict an endpoint is `checking`
    panic: float = 0.3
    retries: Retries = field(default_factory=Retries)
    timeouts: UpstreamTimeouts = field(default_factory=UpstreamTimeouts)
    keepalive: Keepalive = field(default_factory=Keepalive)
    drain: Drain = field(default_factory=Drain)
    host: str = "keep"
    limits: UpstreamLimits = field(default_factory=UpstreamLimits)
    tls: UpstreamTls = field(default_factory=UpstreamTls)
    outlier: Outlier = field(default_factory=Outlier)
    slow_start: float = 0.0  # seconds from the least to the whole of its weight
    send_proxy: str = "off"  # or `v1`, `v2`: what a connection to a backend begins with

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Upstream:
        return cls(
            name=plain["name"],
            balance=plain["balance"],
            hash_key=plain["hash_key"],
            checked=plain["checked"],
            panic=plain["panic"],
            retries=Retries(**plain["retries"]),
            limits=UpstreamLimits(**plain["limits"]),
            timeouts=UpstreamTimeouts(**plain["timeouts"]),
            keepalive=Keepalive(**plain["keepalive"]),
            drain=Drain(**plain["drain"]),
            host=plain["host"],
            tls=UpstreamTls(**plain["tls"]),
            outlier=Outlier(**plain["outlier"]),
            slow_start=plain["slow_start"],
            send_proxy=plain["send_proxy"],
        )


@dataclass(frozen=True, slots=True)
class PluginCode:
    """
    Where the code of a plugin is: in the material, by its digest, or in an installed package.

    `name` is `NAME`, or `balancer:NAME`, `health_check:NAME`.
    """

    name: str
    digest: str
    file: str
    stem: str = ""
    entry: str = ""


@dataclass(frozen=True, slots=True)
class AccessLog:
    """`output`: a path, `stdout` or `off`; `format`: `json`, `combined` or a template."""

    output: str = "stdout"
    format: str = "json"
    redact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plans:
    """The `config` part of an edition: all that a worker needs besides backends and verdicts."""

    node: str
    via: str  # our pseudonym in Via, `lb-` and eight hex digits
    generation: int
    listeners: tuple[Listener, ...]
    routes: tuple[Route, ...]
    upstreams: tuple[Upstream, ...]
    access_log: AccessLog = field(default_factory=AccessLog)
    plugins: tuple[PluginUse, ...] = ()  # Of every request.
    code: tuple[PluginCode, ...] = ()
    instances: int = 1  # Of the group, that live: limits may be shared among them.

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Plans:
        log = plain["access_log"]
        return cls(
            node=plain["node"],
            via=plain["via"],
            generation=plain["generation"],
            listeners=tuple(map(Listener.from_plain, plain["listeners"])),
            routes=tuple(map(Route.from_plain, plain["routes"])),
            upstreams=tuple(map(Upstream.from_plain, plain["upstreams"])),
            access_log=AccessLog(log["output"], log["format"], tuple(log["redact"])),
            plugins=uses_from_plain(plain.get("plugins", [])),
            code=tuple(PluginCode(**each) for each in plain.get("code", [])),
            instances=plain.get("instances", 1),
        )
