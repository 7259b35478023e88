"""
Lets addresses in, or keeps them out.

The longest network that holds an address decides; of two alike, `deny`. An address in no network
is let in, unless there is an `allow`: then the rest is out.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from lb.plugin import Network, Plugin, Reply, Request, reply

CLIENTS_KEPT_MAX: Final = 8192  # Addresses whose verdict is remembered.
NETWORKS_MAX: Final = 100_000
V6: Final = 1 << 128  # Where the numbers of IPv6 addresses begin, beyond those of IPv4.


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
        plain = [(_network(name), allowed) for name, allowed in rules if name != "unix"]
        self._starts, self._verdicts = stretches(plain, otherwise=self._otherwise)
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
            place = bisect_right(self._starts, number_of(ip_address(client))) - 1
            allowed = self._verdicts[place]
        except ValueError:
            allowed = self._unix if client.startswith("unix:") else False
        self._known[client] = allowed
        return allowed


def _network(text: str) -> IPv4Network | IPv6Network:
    """Return a network; one of IPv4 in IPv6 clothes as the IPv4 one, so that both are as long."""
    network = ip_network(text)
    first = network.network_address
    if isinstance(first, IPv6Address) and first.ipv4_mapped and network.prefixlen >= 96:
        return IPv4Network((int(first.ipv4_mapped), network.prefixlen - 96))
    return network


def number_of(address: IPv4Address | IPv6Address) -> int:
    """Return an address as a number; IPv4 in IPv6 clothes is IPv4."""
    if isinstance(address, IPv6Address):
        return int(address.ipv4_mapped) if address.ipv4_mapped else V6 + int(address)
    return int(address)


def stretches(
    rules: list[tuple[IPv4Network | IPv6Network, bool]], *, otherwise: bool
) -> tuple[list[int], list[bool]]:
    """
    Return where stretches of addresses begin, and whether each is let in.

    Networks are either apart or one within the other: so, written the widest first and `deny`
    last of two alike, each overwrites what it lies in.
    """
    order = sorted(rules, key=lambda rule: (rule[0].prefixlen, not rule[1]))
    edges = {0, V6}
    spans = []
    for network, allowed in order:
        first = number_of(network[0])
        last = first + network.num_addresses
        edges |= {first, last}
        spans.append((first, last, network.prefixlen, allowed))
    # From edge to edge, the innermost network that is open there decides.
    starts = sorted(edges)
    opening: dict[int, list[tuple[int, int, bool]]] = {}
    for rank, (first, last, _, allowed) in enumerate(spans):
        opening.setdefault(first, []).append((rank, last, allowed))
    standing: list[tuple[int, int, bool]] = []  # A stack: the innermost is on top.
    verdicts = []
    for start in starts:
        while standing and standing[-1][1] <= start:
            standing.pop()
        standing += sorted(opening.get(start, []), key=lambda each: (-each[1], each[0]))
        verdicts.append(standing[-1][2] if standing else otherwise)
    return starts, verdicts
