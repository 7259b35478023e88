"""The shape of `[upstream.NAME]`: backends, checks, and how both are used."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lb.config.addresses import BadAddressError, backend_address
from lb.config.kinds import (
    BackendAddress,
    Choice,
    Duration,
    Flag,
    Name,
    OrOne,
    Share,
    Text,
    Whole,
    shown,
    wrong,
)
from lb.config.requests import BackendHost, OrPlugin, RequestKey, Statuses, UrlPath
from lb.config.section import Section

WEIGHT_MAX = 1000
POLICIES = ("round_robin", "random", "least_requests", "two_choices", "hash", "peak_ewma")
CHECKS = ("http", "tcp")


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

    type: Annotated[str, OrPlugin(CHECKS)] = Field(
        default="http",
        description='"http" asks for path; "tcp" only connects; others are what plugins bring.',
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
        return self.type != "http" or self.path is not None

    @property
    def type_plugin(self) -> str:
        """The check of a plugin that is made, "" if it is one of ours."""
        return "" if self.type in CHECKS else self.type

    @property
    def expected(self) -> tuple[tuple[int, int], ...]:
        """The good statuses as ranges, both ends included."""
        found = (part.split("-") for part in self.expect.split(","))
        return tuple((int(ends[0]), int(ends[-1])) for ends in found)


class Outlier(Section):
    """Ejection: what real traffic shows takes a backend out for a while."""

    noun = "outlier ejection"

    errors: Annotated[int, Whole(0, 1000)] = Field(
        default=5, description="Failures in a row, of one worker, that take it out; 0: never."
    )
    within: Annotated[float, Duration(zero=False)] = Field(
        default=10.0, description="All of them in this time, or they do not count."
    )
    eject: Annotated[float, Duration(zero=False)] = Field(
        default=10.0, description="For how long; each time soon after another once more as long."
    )
    max_ejected: Annotated[float, Share()] = Field(
        default=0.5,
        description='Of the backends, at most; one always may, the last never. "0%": none.',
    )


class Retries(Section):
    """When another backend is asked."""

    noun = "an upstream's retries"

    attempts: Annotated[int, Whole(1, 10)] = Field(
        default=2, description="All tries of one request, the first included."
    )
    budget: Annotated[float, Share()] = Field(
        default=0.2, description="Retries under way, at most, as a share of running requests."
    )
    statuses: Annotated[list[Annotated[int, Whole(500, 599)]], OrOne()] = Field(
        default=[],
        description="Answers after which an idempotent request is taken elsewhere.",
        examples=[[502, 503, 504]],
    )
    non_idempotent: Annotated[bool, Flag()] = Field(
        default=False,
        description="Repeat POST and the like too: only where backends can take one twice.",
    )


class UpstreamTimeouts(Section):
    """How long a backend may take."""

    noun = "an upstream's timeouts"

    connect: Annotated[float, Duration(zero=False)] = Field(
        default=3.0, description="To connect; then the next backend is tried."
    )
    response: Annotated[float, Duration(zero=False)] = Field(
        default=30.0, description="From the request to the end of the answer's head; then 504."
    )
    stall: Annotated[float, Duration(zero=False)] = Field(
        default=60.0, description="How long an answer may pause between two reads."
    )
    tunnel: Annotated[float, Duration(zero=False)] = Field(
        default=3600.0, description="How long both sides of a WebSocket may be silent."
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


class UpstreamLimits(Section):
    """How much backends get at a time."""

    noun = "an upstream's limits"

    per_backend: Annotated[int, Whole(0, 1_000_000)] = Field(
        default=0, description="Requests that one backend works on at a time; 0: no limit."
    )
    queue: Annotated[int, Whole(0, 100_000)] = Field(
        default=100, description="Requests that wait when every backend is at its limit."
    )
    queue_timeout: Annotated[float, Duration(zero=False)] = Field(
        default=1.0, description="How long each waits; then 503."
    )


class UpstreamTls(Section):
    """TLS with backends whose address begins with https://."""

    noun = "an upstream's tls"

    verify: Annotated[bool, Flag()] = Field(
        default=True, description="Speak only with whom their certificate says we mean."
    )
    ca: Annotated[str, Text(empty=True)] = Field(
        default="",
        description="A PEM file with the authorities to accept; default: the system's.",
        examples=["backends-ca.pem"],
    )
    name: Annotated[str, Text(empty=True)] = Field(
        default="",
        description="The name to ask for and to expect; default: the address's own.",
        examples=["api.internal"],
    )
    cert: Annotated[str, Text(empty=True)] = Field(
        default="", description="A certificate to show, in PEM.", examples=["lb.pem"]
    )
    key: Annotated[str, Text(empty=True)] = Field(
        default="", description="Its private key, in PEM.", examples=["lb.key"]
    )

    @model_validator(mode="after")
    def _fits(self) -> UpstreamTls:
        if bool(self.cert) != bool(self.key):
            there, missing = ("cert", "key") if self.cert else ("key", "cert")
            raise wrong(f"{there} needs its {missing}", f"add {missing}", at=(there,))
        if self.name:
            try:
                host = backend_address(f"{self.name}:443").host
            except BadAddressError as error:
                raise wrong(f"{shown(self.name)} is not a host", error.hint, at=("name",)) from None
            assert host, "an address has one"
        if self.ca and not self.verify:
            raise wrong("ca means nothing without verify", "leave one out", at=("ca",))
        return self


class Upstream(Section):
    """A named set of backends, with one way of choosing among them."""

    noun = "an upstream"

    balance: Annotated[
        str,
        OrPlugin(POLICIES, also=(("weighted", "round_robin"),)),
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
    outlier: Outlier = Field(default=Outlier(), description="What real traffic shows.")
    slow_start: Annotated[float, Duration()] = Field(
        default=0.0,
        description="From little to all of its share, after a recovery or when it joins.",
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
    limits: UpstreamLimits = Field(
        default=UpstreamLimits(), description="How much backends get at a time."
    )
    keepalive: Keepalive = Field(
        default=Keepalive(), description="Connections kept for the next request."
    )
    drain: Drain = Field(
        default=Drain(), description="How a backend leaves that still has requests."
    )
    tls: UpstreamTls = Field(
        default=UpstreamTls(), description="TLS with backends that are https://."
    )
    host: Annotated[str, BackendHost()] = Field(
        default="keep",
        description='The Host that backends see: "keep", "backend" (its address), or a name.',
    )
    send_proxy: Annotated[str, Choice(("off", "v1", "v2"))] = Field(
        default="off",
        description="Begin each connection with a PROXY header that says whose it is; clients"
        " then share none.",
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

    @property
    def balance_plugin(self) -> str:
        """The balancer of a plugin that is used, "" if it is one of ours."""
        return "" if self.balance in POLICIES else self.balance
