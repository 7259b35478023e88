"""
What a plugin's Config may hold, besides str, int, float, bool, lists, dicts and dataclasses.

Names of kinds that the config knows: here they are words, so that a worker needs nothing of it.
What can be asked of a list of networks is here as well, as each plugin would get it wrong alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Final

CLIENTS_KEPT_MAX: Final = 4096  # Addresses whose verdict is remembered, a list of networks.
_MAPPED: Final = 96  # The bits before an IPv4 address in IPv6 clothes.


@dataclass(frozen=True, slots=True)
class Marked:
    """What sort of value it is, by the name that the config knows."""

    sort: str


Duration = Annotated[float, Marked("duration")]
"""Seconds; the file says "1.5s", "10m"."""
Size = Annotated[int, Marked("size")]
"""Bytes; the file says "64KiB"."""
Share = Annotated[float, Marked("share")]
"""0 to 1; the file says "20%"."""
Rate = Annotated[float, Marked("rate")]
"""Times a second; the file says "100/s", "30/m", "5000/h"."""
Secret = Annotated[str, Marked("secret")]
"""What is never shown: not by `lb config show`, not in a log."""
HeaderName = Annotated[str, Marked("header_name")]
"""The name of a header, in lower case."""
Network = Annotated[str, Marked("network")]
"""An address or a network of them, like "10.0.0.0/8"; or "unix", for clients on socket files."""
UrlPath = Annotated[str, Marked("url_path")]
"""A path, like "/healthz"."""


class Networks:
    """
    A list of `Network`, to be asked for clients: `req.client in networks`.

    IPv4 in IPv6 clothes is IPv4, on both sides.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        words = set(networks)
        self._unix = "unix" in words
        self._networks = [undressed(ip_network(word)) for word in words - {"unix"}]
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._unix or bool(self._networks)

    def __contains__(self, client: str) -> bool:
        """Whether a client's address is in one of them."""
        known = self._known.get(client)
        if known is None:
            if len(self._known) >= CLIENTS_KEPT_MAX:
                self._known.clear()
            known = self._known[client] = self._judge(client)
        return known

    def _judge(self, client: str) -> bool:
        if client.startswith("unix:"):
            return self._unix
        try:
            address = ip_address(client)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def undressed(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return a network of IPv4 in IPv6 clothes as the one of IPv4 that it is."""
    first = network.network_address
    if isinstance(first, IPv6Address) and first.ipv4_mapped and network.prefixlen >= _MAPPED:
        return IPv4Network((int(first.ipv4_mapped), network.prefixlen - _MAPPED))
    return network
