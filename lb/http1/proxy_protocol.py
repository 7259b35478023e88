"""
The PROXY protocol, versions 1 and 2: who a connection is from, said before its first octet.

Both directions are here: reading what a trusted proxy says of a client, and saying it to a
backend. Whoever reads must be sure that the other side writes it: anybody could claim anything.
Nothing is guessed: a connection that does not begin with a whole, well-formed header is none.

Not here: TLVs of version 2, whose lengths are checked and whose contents nobody reads; addresses
of socket files and of datagrams.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

V1_BYTES_MAX: Final = 107  # the longest that the protocol has, CRLF included
V2_BYTES_MAX: Final = 4096  # with all TLVs; addresses take 52 of them
V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
V1_WORD: Final = b"PROXY "
UNKNOWN: Final = b"PROXY UNKNOWN\r\n"
LOCAL: Final = V2_SIGNATURE + b"\x20\x00\x00\x00"

_V2_HEAD = struct.Struct("!12sBBH")
_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})")
_STREAMS: Final = {0x11: (4, 12), 0x21: (16, 36)}  # family: octets of an address, and of all
_UNTOLD: Final = frozenset({0x00, 0x31})  # unspecified, and socket files: accepted, says nothing

Address = tuple[str, int]


class ProxyHeaderError(Exception):
    """What came is no header: the text says what it is."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a client's connection came from, and where to."""

    source: Address
    target: Address


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A whole header. `ends` is None where the sender speaks for itself; `size` in octets."""

    ends: Ends | None
    size: int


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header that a connection begins with; None: more is needed. ProxyHeaderError."""
    if data[:12] == V2_SIGNATURE[: len(data)]:
        return _read_v2(data) if len(data) >= _V2_HEAD.size else None
    if data[:6] == V1_WORD[: len(data)]:
        return _read_v1(data)
    raise ProxyHeaderError("what came first is no PROXY header")


def write_proxy_header(version: str, ends: Ends | None) -> bytes:
    """Return a header of version `v1` or `v2`; None: this connection is nobody's but ours."""
    if ends is None:
        return UNKNOWN if version == "v1" else LOCAL
    source, target = ip_address(ends.source[0]), ip_address(ends.target[0])
    if source.version != target.version:  # One word says what both are.
        source, target = _as_ipv6(source), _as_ipv6(target)
    ports = ends.source[1], ends.target[1]
    if version == "v1":
        return b"PROXY TCP%d %b %b %d %d\r\n" % (
            source.version, str(source).encode(), str(target).encode(), *ports
        )  # fmt: skip
    family = 0x11 if source.version == 4 else 0x21
    addresses = source.packed + target.packed + struct.pack("!HH", *ports)
    return _V2_HEAD.pack(V2_SIGNATURE, 0x21, family, len(addresses)) + addresses


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, V1_BYTES_MAX)
    if end < 0:
        if len(data) >= V1_BYTES_MAX:
            raise ProxyHeaderError("a PROXY line without an end")
        return None
    line, size = data[:end], end + 2
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader(None, size)
    found = _V1.fullmatch(line)
    if found is None:
        raise ProxyHeaderError("a malformed PROXY line")
    family = 4 if found[1] == b"TCP4" else 6
    return ProxyHeader(
        Ends(
            (_address(found[2], family), _port(found[4])),
            (_address(found[3], family), _port(found[5])),
        ),
        size,
    )


def _read_v2(data: bytes) -> ProxyHeader | None:
    _, kind, family, length = _V2_HEAD.unpack_from(data)
    if kind >> 4 != 2:
        raise ProxyHeaderError(f"PROXY protocol of version {kind >> 4}, which nobody knows")
    if kind & 15 > 1:
        raise ProxyHeaderError("a PROXY command that nobody knows")
    size = _V2_HEAD.size + length
    if size > V2_BYTES_MAX:
        raise ProxyHeaderError(f"a PROXY header of {size} bytes")
    if len(data) < size:
        return None
    if kind & 15 == 0 or family in _UNTOLD:
        return ProxyHeader(None, size)
    if family not in _STREAMS:
        raise ProxyHeaderError("a PROXY header about no TCP connection")
    octets, whole = _STREAMS[family]
    if length < whole:
        raise ProxyHeaderError("a PROXY header too short for its addresses")
    _check_tlvs(data[_V2_HEAD.size + whole : size])
    rest = data[_V2_HEAD.size : _V2_HEAD.size + whole]
    ports = struct.unpack("!HH", rest[2 * octets :])
    source, target = ip_address(rest[:octets]), ip_address(rest[octets : 2 * octets])
    return ProxyHeader(Ends((_plain(source), ports[0]), (_plain(target), ports[1])), size)


def _check_tlvs(data: bytes) -> None:
    while data:
        if len(data) < 3 or len(data) < 3 + int.from_bytes(data[1:3], "big"):
            raise ProxyHeaderError("a PROXY header whose fields overlap its end")
        data = data[3 + int.from_bytes(data[1:3], "big") :]


def _address(text: bytes, family: int) -> str:
    try:
        address = ip_address(text.decode("ascii"))
    except ValueError:
        raise ProxyHeaderError("a PROXY line with an address that is none") from None
    if address.version != family:
        raise ProxyHeaderError("a PROXY line with an address of another family")
    return _plain(address)


def _port(digits: bytes) -> int:
    port = int(digits)
    if port > 65535 or (digits[:1] == b"0" and len(digits) > 1):
        raise ProxyHeaderError("a PROXY line with a port that is none")
    return port


def _plain(address: IPv4Address | IPv6Address) -> str:
    """Write an address as a socket for one family would: no IPv4 within IPv6."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _as_ipv6(address: IPv4Address | IPv6Address) -> IPv6Address:
    return (
        IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
        if address.version == 4
        else (IPv6Address(address.packed))
    )
