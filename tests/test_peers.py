"""Whom a request comes from: what trusted proxies say, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.http1.peers import Trust, behind, direct

TRUST = Trust(["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        (b"", "10.0.0.1"),
        (b"X-Forwarded-For: 203.0.113.5", "203.0.113.5"),
        (b"X-Forwarded-For: 6.6.6.6, 203.0.113.5", "203.0.113.5"),
        (b"X-Forwarded-For: 203.0.113.5, 10.1.1.1", "203.0.113.5"),
        (b"X-Forwarded-For: 203.0.113.5\r\nX-Forwarded-For: 10.1.1.1,192.0.2.7", "203.0.113.5"),
        (b"X-Forwarded-For: 6.6.6.6, nonsense", "10.0.0.1"),
        (b"X-Forwarded-For: 203.0.113.5:4711", "203.0.113.5"),
        (b"X-Forwarded-For: [2001:DB8:0::9]:80", "2001:db8::9"),
        (b"X-Forwarded-For: 10.9.9.9", "10.9.9.9"),
        (b"X-Forwarded-For: ,", "10.0.0.1"),
    ],
)
def test_the_chain_is_walked_from_the_right(fields: bytes, client: str) -> None:
    peer = behind(b"\r\n" + fields + b"\r\n", direct("10.0.0.1"), TRUST)

    assert peer.address == client
    assert peer.chain.endswith(b"10.0.0.1")


def test_what_a_trusted_proxy_says_goes_on() -> None:
    block = (
        b"\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: www.example.com"
        b"\r\nX-Request-ID: abc-1\r\nX-Forwarded-For: 203.0.113.5\r\n"
    )

    peer = behind(block, direct("10.0.0.1"), TRUST)

    assert (peer.proto, peer.host, peer.request_id) == (b"https", b"www.example.com", b"abc-1")
    assert peer.chain == b"203.0.113.5, 10.0.0.1"


def test_odd_or_repeated_claims_are_dropped() -> None:
    block = (
        b"\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: a\r\nX-Forwarded-Host: b"
        b"\r\nX-Request-ID: a b\r\n"
    )

    peer = behind(block, direct("10.0.0.1"), TRUST)

    assert (peer.proto, peer.host, peer.request_id) == (b"http", None, None)


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("192.0.2.7", True),
        ("2001:db8::1", True),
        ("unix:", False),
        ("nonsense", False),
    ],
)
def test_networks(address: str, trusted: bool) -> None:
    assert TRUST.trusts(address) is trusted
    assert TRUST.trusts(address) is trusted, "and again, from memory"


def test_socket_files_are_trusted_by_their_word_only() -> None:
    assert Trust(["unix"]).trusts("unix:")
    assert not Trust(["0.0.0.0/0"]).trusts("unix:")
    assert not Trust([])


@given(st.binary(max_size=60).filter(lambda octets: b"\r" not in octets and b"\n" not in octets))
def test_no_claim_raises_and_none_is_believed_past_an_untrusted_hop(value: bytes) -> None:
    block = b"\r\nX-Forwarded-For: " + value + b", 203.0.113.5\r\n"

    assert behind(block, direct("10.0.0.1"), TRUST).address == "203.0.113.5"
