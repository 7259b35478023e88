"""Addresses let in, or kept out."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import OperatorError
from lb.plugin_code import load
from lb.testing import Bench, call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "ip_filter.py"


@pytest.mark.parametrize(
    ("config", "client", "status"),
    [
        ({"allow": "10.0.0.0/8"}, "10.1.2.3", 200),
        ({"allow": "10.0.0.0/8"}, "11.1.2.3", 403),
        ({"allow": "10.0.0.0/8"}, "::ffff:10.1.2.3", 200),
        ({"allow": "10.0.0.0/8"}, "2001:db8::1", 403),
        ({"allow": "10.0.0.0/8"}, "unix:", 403),
        ({"allow": ["10.0.0.0/8", "unix"]}, "unix:", 200),
        ({"allow": "10.0.0.0/8", "deny": "10.1.0.0/16"}, "10.1.2.3", 403),
        ({"allow": "10.1.2.3", "deny": "10.1.0.0/16"}, "10.1.2.3", 200),
        ({"allow": "10.1.2.3", "deny": "10.1.0.0/16"}, "10.1.2.4", 403),
        ({"allow": "10.1.0.0/16", "deny": "10.1.0.0/16"}, "10.1.2.3", 403),
        ({"allow": "::ffff:10.0.0.0/104", "deny": "10.0.0.0/8"}, "10.1.2.3", 403),
        ({"allow": "::ffff:10.1.0.0/112", "deny": "10.0.0.0/8"}, "10.1.2.3", 200),
        ({"deny": "2001:db8::/32", "status": 404}, "2001:db8::9", 404),
        ({"deny": "2001:db8::/32"}, "2001:db9::9", 200),
        ({"deny": "0.0.0.0/0"}, "255.255.255.255", 403),
        ({"deny": "0.0.0.0/0"}, "::1", 200),
        ({"deny": "::/0"}, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 403),
        ({"deny": "10.0.0.0/8"}, "unknown", 403),
    ],
)
def test_who_gets_in(config: dict[str, Any], client: str, status: int) -> None:
    made = make(PLUGIN, config)
    assert call(made, client=client).got.status == status
    assert call(made, client=client).got.status == status  # As remembered.


def test_those_who_are_out_are_counted() -> None:
    bench = Bench()
    made = make(PLUGIN, {"deny": "192.0.2.0/24"}, bench)
    call(made)
    assert bench.counts["denied"] == 1


NETWORKS = st.builds(
    lambda number, length: IPv4Network((number << (32 - length), length)),
    st.integers(0, 15),
    st.just(4),
) | st.builds(
    lambda number, length: IPv4Network(((number >> (8 - length)) << (32 - length), length)),
    st.integers(0, 255),
    st.integers(0, 8),
)


@given(
    st.lists(st.tuples(NETWORKS, st.booleans()), max_size=8),
    st.integers(0, 255),
    st.booleans(),
)
def test_the_longest_network_decides(
    rules: list[tuple[IPv4Network, bool]], first: int, otherwise: bool
) -> None:
    module: Any = load("ip_filter", PLUGIN.read_bytes(), str(PLUGIN))
    address = IPv4Address(first << 24)
    holding = [(net.prefixlen, not allowed) for net, allowed in rules if address in net]
    expected = not max(holding)[1] if holding else otherwise

    spans = [module.span_of(str(net), allowed) for net, allowed in rules]
    starts, verdicts = module.stretches(spans, otherwise=otherwise)
    assert starts == sorted(set(starts))
    found = verdicts[sum(start <= int(address) for start in starts) - 1]

    assert found is expected


@given(st.ip_addresses())
def test_numbers_are_those_of_addresses(address: IPv4Address | IPv6Address) -> None:
    module: Any = load("ip_filter", PLUGIN.read_bytes(), str(PLUGIN))
    mapped = getattr(address, "ipv4_mapped", None)
    if address.version == 4:
        assert module.number_of(str(address)) == int(address)
        assert module.number_of(f"::ffff:{address}") == int(address)
    elif mapped is None:
        assert module.number_of(str(address)) == module.V6 + int(address)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "nothing to judge by"),
        ({"allow": "10.0.0.1/8"}, "not a network"),
        ({"deny": "10.0.0.0/8", "status": 200}, "from 400"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
