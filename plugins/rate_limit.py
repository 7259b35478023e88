"""
Lets each client through so often, and answers 429 beyond.

GCRA: of each key one number is kept, the time at which it would be even with its rate again. A
request moves that time on by what one request is worth; one that would move it further than the
burst allows is turned away and moves nothing.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal

from lb.plugin import Plugin, Rate, Reply, Request, Response, reply

KEY_BYTES_MAX: Final = 64  # Of a key as it is; a longer one is counted by its digest.
NETWORKS_MAX: Final = 4096  # IPv6 addresses whose network is remembered.
TOLERANCE: Final = 0.001  # Of a request: sums of floats are not exact.
DIVIDED_EVERY_S: Final = 1.0
BURST_MAX: Final = 1_000_000
MAPPED: Final = b"\0" * 10 + b"\xff\xff"  # What an IPv4 address in IPv6 begins with.
_KEY: Final = re.compile(r"(client_ip|all)|(header|cookie):([!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_POLICY: Final = re.compile(r"[ !#-\[\]-~]{1,64}")  # What a string may have without a backslash.


class RateLimit(Plugin["RateLimit.Config"]):
    """Counts requests by a key."""

    name = "rate_limit"

    @dataclass
    class Config:
        """What stands beside `use`."""

        rate: Rate = field(metadata={"about": "How often one key may come, in the long run."})
        burst: int | None = field(
            default=None,
            metadata={"about": "How many at once; by default what one second gives, at least 1."},
        )
        key: str = field(
            default="client_ip",
            metadata={"about": 'Who is counted: client_ip, header:NAME, cookie:NAME, or "all".'},
        )
        shared: Literal["instance", "group"] = field(
            default="instance",
            metadata={"about": "Whether the rate is each instance's, or all of the group's."},
        )
        tell: Literal["limited", "always"] = field(
            default="limited",
            metadata={"about": "Whether RateLimit fields stand in 429s only, or in all answers."},
        )
        policy: str = field(
            default="default", metadata={"about": "What RateLimit fields call this limit."}
        )

        def __post_init__(self) -> None:
            if self.burst is not None and not 1 <= self.burst <= BURST_MAX:
                raise ValueError(f"burst is from 1 to {BURST_MAX:,}")
            if _POLICY.fullmatch(self.policy) is None:
                raise ValueError("policy is 1 to 64 visible ASCII characters, no quotes")
            found = _KEY.fullmatch(self.key)
            if found is None:
                raise ValueError('key is "client_ip", "header:NAME", "cookie:NAME" or "all"')
            name = (found[3] or "").lower()
            if found[2] == "header" and (name.startswith("x-forwarded-") or name == "x-real-ip"):
                raise ValueError(f'anybody may write {name}; key = "client_ip" is what is believed')

    def start(self) -> None:
        """Work out what every request needs."""
        config = self.config
        burst = config.burst or max(1, int(config.rate))
        window = max(1, math.ceil(burst / config.rate))
        quota = max(burst, int(config.rate * window))
        self._policy = f'"{config.policy}";q={quota};w={window}'
        self._burst = burst
        self._tells = config.tell == "always"
        if self._tells:
            self.on_response = self._tell  # Without it, no response is kept waiting for us.
        self._state = f"rate_limit/{self.ctx.place}"
        table = self.ctx.table(self.ctx.place)
        self._get, self._put, self._now = table.get, table.put, self.ctx.now
        self._key_of = _reader_of(config.key)
        self._limited = self.ctx.count("limited")
        self._divide()
        if config.shared == "group":
            self.ctx.every(DIVIDED_EVERY_S, self._divide)

    def _divide(self) -> None:
        """Take our share of the limit."""
        parts = max(1, self.ctx.instances) if self.config.shared == "group" else 1
        self._interval = parts / self.config.rate
        self._ahead_max = self._interval * (max(1.0, self._burst / parts) + TOLERANCE)

    def on_request(self, req: Request) -> Reply | None:
        """Let it through, or turn it away."""
        key = self._key_of(req)
        now = self._now()
        even = self._get(key)
        even = (even if even > now else now) + self._interval
        if even - now > self._ahead_max:
            return self._refuse(key, even - now, now)
        self._put(key, even)
        if self._tells:
            req.state[self._state] = even - now
        return None

    def _refuse(self, key: bytes, ahead: float, now: float) -> Reply:
        self._limited()
        if ahead > self._ahead_max + self._interval:
            # A slower limit left it there, before a reload: from here on it counts as ours.
            ahead = self._ahead_max - TOLERANCE * self._interval
            self._put(key, now + ahead)
            ahead += self._interval
        wait = max(1, math.ceil(ahead - self._ahead_max))
        fields = {
            "Retry-After": str(wait),
            "RateLimit-Policy": self._policy,
            "RateLimit": f'"{self.config.policy}";r=0;t={wait}',
        }
        return reply(429, fields, cause="limited")

    def _tell(self, req: Request, res: Response) -> None:
        """Say how much is left, in an answer to what was let through."""
        ahead = req.state.get(self._state)
        if ahead is None:
            return
        left = max(0, int((self._ahead_max - ahead) / self._interval))
        wait = 0 if left else math.ceil(self._interval)
        res.headers.append("RateLimit-Policy", self._policy)
        res.headers.append("RateLimit", f'"{self.config.policy}";r={left};t={wait}')


def _reader_of(key: str) -> Callable[[Request], bytes]:
    """Return what reads a request's key. A value that a client sends is never an address's key."""
    kind, _, name = key.partition(":")
    by_address = _address_reader()
    if kind == "all":
        return lambda req: b"all"
    if kind == "header":
        return lambda req: _given(req.headers.get(name)) or by_address(req)
    if kind == "cookie":
        return lambda req: _given(req.cookie(name)) or by_address(req)
    return by_address


def _given(value: str | None) -> bytes | None:
    if not value:
        return None
    given = b"=" + value.encode("latin-1")
    return given if len(given) <= KEY_BYTES_MAX else b"#" + blake2b(given, digest_size=32).digest()


def _address_reader() -> Callable[[Request], bytes]:
    known: dict[str, bytes] = {}

    def learn(address: str) -> bytes:
        if len(known) >= NETWORKS_MAX:
            known.clear()
        known[address] = network = _network(address)
        return network

    def by_address(req: Request) -> bytes:
        address = req.client
        if ":" not in address:
            return address.encode()
        return known.get(address) or learn(address)

    return by_address


def _network(address: str) -> bytes:
    """Return the /64 of an IPv6 address: whoever has one address has all of it."""
    try:
        octets = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address.encode()  # A socket file's.
    return socket.inet_ntoa(octets[12:]).encode() if octets[:12] == MAPPED else b":" + octets[:8]
