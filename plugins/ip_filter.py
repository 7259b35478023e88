"""
Lets addresses in, or keeps them out.

The longest network that holds an address decides; of two alike, `deny`. An address in no network
is let in, unless there is an `allow`: then the rest is out.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

from lb.plugin import Network, Plugin, Reply, Request, reply

CLIENTS_KEPT_MAX: Final = 8192  # Addresses whose verdict is remembered.
NETWORKS_MAX: Final = 100_000
V6: Final = 1 << 128  # Where the numbers of IPv6 addresses begin, beyond those of IPv4.
MAPPED: Final = 0xFFFF << 32  # Where those of IPv4 in IPv6 clothes begin, among IPv6's own.
Span = tuple[int, int, bool]


class IpFilter(Plugin["IpFilter.Config"]):
    """Judges requests by where they come from."""

    name = "ip_filter"

    @dataclass
    class Config:
        """What stands beside `use`."""

        allow: list[Network] = field(
            default_factory=list, metadata={"about": 'Who gets in; "unix" for socket files.'}
        )
        deny: list[Network] = field(default_factory=list, metadata={"about": "Who does not."})
        status: int = field(default=403, metadata={"about": "What those are answered."})

        def __post_init__(self) -> None:
            if not self.allow and not self.deny:
                raise ValueError("there is nothing to judge by: give allow, deny or both")
            if len(self.allow) + len(self.deny) > NETWORKS_MAX:
                raise ValueError(f"at most {NETWORKS_MAX:,} networks")
            if not 400 <= self.status <= 599:
                raise ValueError("status is from 400 to 599")

    def start(self) -> None:
        """Cut all addresses into stretches of one verdict each."""
        config = self.config
        self._otherwise = not config.allow
        rules = [(each, True) for each in config.allow] + [(each, False) for each in config.deny]
        verdicts = [allowed for name, allowed in rules if name == "unix"]
        self._unix = all(verdicts) if verdicts else self._otherwise
        spans = [span_of(name, allowed) for name, allowed in rules if name != "unix"]
        self._starts, self._verdicts = stretches(spans, otherwise=self._otherwise)
        self._known: dict[str, bool] = {}
        self._reply = reply(config.status)
        self._denied = self.ctx.count("denied")

    def on_request(self, req: Request) -> Reply | None:
        """Refuse those that are out."""
        client = req.client
        allowed = self._known.get(client)
        if allowed is None:
            allowed = self._judge(client)
        if allowed:
            return None
        self._denied()
        return self._reply

    def _judge(self, client: str) -> bool:
        if len(self._known) >= CLIENTS_KEPT_MAX:
            self._known.clear()
        try:
            place = bisect_right(self._starts, number_of(client)) - 1
            allowed = self._verdicts[place]
        except ValueError:
            allowed = self._unix if client.startswith("unix:") else False
        self._known[client] = allowed
        return allowed


def number_of(text: str) -> int:
    """Return an address as a number; IPv4 in IPv6 clothes is IPv4. ValueError if it is none."""
    try:
        if ":" not in text:
            return int.from_bytes(inet_pton(AF_INET, text), "big")
        number = int.from_bytes(inet_pton(AF_INET6, text.partition("%")[0]), "big")
    except OSError:
        raise ValueError(f"{text!r} is no address") from None
    return number - MAPPED if number >> 32 == MAPPED >> 32 else V6 + number


def span_of(network: str, allowed: bool) -> Span:
    """Return where a network begins, where what follows it does, and whether it is let in."""
    address, _, length = network.partition("/")
    first = number_of(address)
    wide = ":" in address
    return first, first + (1 << (128 if wide else 32) - int(length)), allowed


def stretches(spans: list[Span], *, otherwise: bool) -> tuple[list[int], list[bool]]:
    """
    Return where stretches of addresses begin, and whether each is let in.

    Networks are either apart or one within the other: so those that stand open at an address are
    a stack with the longest on top, and on that of two alike the one that denies.
    """
    starts, verdicts = [0], [otherwise]

    def turn(at: int, allowed: bool) -> None:
        if starts[-1] == at:
            verdicts[-1] = allowed
        elif verdicts[-1] != allowed:
            starts.append(at)
            verdicts.append(allowed)

    standing: list[tuple[int, bool]] = []
    for first, end, allowed in sorted(spans, key=lambda span: (span[0], -span[1], not span[2])):
        while standing and standing[-1][0] <= first:
            at, _ = standing.pop()
            turn(at, standing[-1][1] if standing else otherwise)
        turn(first, allowed)
        standing.append((end, allowed))
    while standing:
        at, _ = standing.pop()
        turn(at, standing[-1][1] if standing else otherwise)
    return starts, verdicts
