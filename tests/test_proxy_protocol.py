"""The PROXY protocol, read and written: what is a header, what is half of one, what is none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.http1.proxy_protocol import (
    LOCAL,
    V1_BYTES_MAX,
    V2_BYTES_MAX,
    V2_SIGNATURE,
    Ends,
    ProxyHeaderError,
    read_proxy_header,
    write_proxy_header,
)

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"
ENDS = Ends(("192.0.2.1", 56324), ("198.51.100.1", 443))


def v2(kind: int = 0x21, family: int = 0x11, body: bytes | None = None) -> bytes:
    if body is None:
        body = bytes([192, 0, 2, 1, 198, 51, 100, 1]) + struct.pack("!HH", 56324, 443)
    return V2_SIGNATURE + struct.pack("!BBH", kind, family, len(body)) + body


@pytest.mark.parametrize(
    ("header", "ends"),
    [
        (V1, ENDS),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 0 65535\r\n",
         Ends(("192.0.2.1", 0), ("198.51.100.1", 65535))),
        (b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 1 2\r\n",
         Ends(("2001:db8::1", 1), ("2001:db8::2", 2))),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Ends(("192.0.2.1", 1), ("::1", 2))),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 what ever 1 2\r\n", None),
        (v2(), ENDS),
        (v2(family=0x21, body=bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("!HH", 1, 2)),
         Ends(("::1", 1), ("::2", 2))),
        (v2(body=v2()[16:] + b"\x04\x00\x02ab" + b"\x20\x00\x00"), ENDS),  # with fields of its own
        (v2(kind=0x20), None),
        (v2(kind=0x20, family=0, body=b""), None),
        (v2(family=0, body=b"whatever"), None),
        (v2(family=0x31, body=bytes(216)), None),
        (LOCAL, None),
    ],
)  # fmt: skip
def test_a_header_in_whatever_pieces(header: bytes, ends: Ends | None) -> None:
    for size in range(len(header)):
        assert read_proxy_header(header[:size]) is None, header[:size]
    for rest in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
        found = read_proxy_header(header + rest)
        assert found is not None
        assert (found.ends, found.size) == (ends, len(header))


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"proxy TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
        b"PROXY",  # whole it would be one, with what follows it is none
        b"PROXY  TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 \r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
        b"PROXY TCP4 2001:db8::1 198.51.100.1 56324 443\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.1 56324 443\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.1 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 056 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 +56 443\r\n",
        b"PROXY TCP5 192.0.2.1 198.51.100.1 56 443\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN " + b"x" * V1_BYTES_MAX,
        v2(kind=0x11),
        v2(kind=0x31),
        v2(kind=0x22),
        v2(kind=0x2F),
        v2(family=0x12),  # datagrams
        v2(family=0x41),
        v2(body=b"short"),
        v2(body=bytes(12) + b"\x01\x00\x09short"),
        v2(body=bytes(12) + b"\x01"),
        V2_SIGNATURE + struct.pack("!BBH", 0x21, 0x11, V2_BYTES_MAX),
        b"\r\n\r\n\0\r\nQUIX\n",
    ],
)
def test_what_is_no_header(octets: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        read_proxy_header(octets + b" " * 120)


@pytest.mark.parametrize("version", ["v1", "v2"])
@given(
    source=st.ip_addresses().filter(lambda each: not getattr(each, "ipv4_mapped", None)),
    target=st.ip_addresses().filter(lambda each: not getattr(each, "ipv4_mapped", None)),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
)
def test_what_is_written_is_read(
    version: str, source: object, target: object, ports: tuple[int, int]
) -> None:
    ends = Ends((str(source), ports[0]), (str(target), ports[1]))
    header = write_proxy_header(version, ends)
    found = read_proxy_header(header + b"rest")
    assert found is not None
    assert (found.ends, found.size) == (ends, len(header))
    assert version == "v2" or len(header) <= V1_BYTES_MAX


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_for_ourselves_nobody_is_named(version: str) -> None:
    found = read_proxy_header(write_proxy_header(version, None))
    assert found is not None
    assert found.ends is None


@given(st.binary(max_size=64), st.sampled_from([b"", V1[:20], V2_SIGNATURE, v2()[:20]]))
def test_whatever_comes_is_read_or_refused(octets: bytes, before: bytes) -> None:
    try:
        found = read_proxy_header(before + octets)
    except ProxyHeaderError:
        return
    assert found is None or 0 < found.size <= len(before + octets)
