"""
Whom a request comes from: the other end of its connection, or whom trusted proxies name.

Nobody is believed by default: what a client says of X-Forwarded-* is dropped and ours is
written. A proxy in `trusted_proxies` is believed about the address before its own, and that
one, if it is trusted too, about the one before: the first that is not is the client, however
much more the field claims (walked from the right, since only the right end is our friends').
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from lb.http1.head import field_values

TRUST_KEPT_MAX: Final = 4096  # addresses whose verdict is remembered
UNIX: Final = "unix:"

_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|([0-9.]+):\d{1,5}")
_PROTO = re.compile(rb"https?")
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_HOST = re.compile(rb"[A-Za-z0-9._~:\[\]-]{1,255}")


@dataclass(frozen=True, slots=True)
class Peer:
    """
    Whom a request comes from.

    `address` is the client's, for logs and balancing; `chain` is what X-Forwarded-For says to
    the backend. `host` and `request_id` are what a trusted proxy said, None where none did.
    `subject` is whose certificate the other end of the connection showed, b"" for none.
    """

    address: str
    chain: bytes
    proto: bytes = b"http"
    host: bytes | None = None
    request_id: bytes | None = None
    subject: bytes = b""


def direct(address: str, proto: bytes = b"http", subject: bytes = b"") -> Peer:
    """Return the peer that a connection itself has."""
    chain = b"unknown" if address == UNIX else address.encode()
    return Peer(address, chain, proto, subject=subject)


class Trust:
    """The networks of `trusted_proxies`; the word `unix` stands for who comes by a socket file."""

    def __init__(self, networks: Iterable[str]) -> None:
        words = set(networks)
        self._unix = "unix" in words
        self._networks = [ip_network(word, strict=False) for word in words - {"unix"}]
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """Whether anybody at all is trusted."""
        return self._unix or bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether what comes from this address is believed."""
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= TRUST_KEPT_MAX:
                self._known.clear()
            known = self._known[address] = self._judge(address)
        return known

    def _judge(self, address: str) -> bool:
        if address == UNIX:
            return self._unix
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def behind(block: bytes, peer: Peer, trust: Trust) -> Peer:
    """Return whom a request with these fields comes from, if its connection is a proxy's."""
    chain = b", ".join(field_values(block, b"x-forwarded-for"))
    address = peer.address
    for entry in reversed(chain.decode("latin-1").split(",") if chain else ()):
        if not trust.trusts(address):
            break
        named = _address(entry.strip(" \t"))
        if named is None:
            break  # Whatever stands to its left cannot be told from an invention.
        address = named
    return Peer(
        address,
        (chain + b", " if chain else b"") + peer.chain,
        _one(block, b"x-forwarded-proto", _PROTO) or peer.proto,
        _one(block, b"x-forwarded-host", _HOST),
        _one(block, b"x-request-id", _REQUEST_ID),
        peer.subject,
    )


def _address(entry: str) -> str | None:
    """Return an entry's address in its canonical form, without a port."""
    port = _PORT.fullmatch(entry)
    if port is not None:
        entry = port[1] or port[2]
    try:
        return str(ip_address(entry))
    except ValueError:
        return None


def _one(block: bytes, name: bytes, form: re.Pattern[bytes]) -> bytes | None:
    """Return a field's value, if there is exactly one and it has the form."""
    values = field_values(block, name)
    return values[0] if len(values) == 1 and form.fullmatch(values[0]) else None
