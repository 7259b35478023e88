"""A list of networks, asked for clients."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.plugin import Networks
from lb.plugin_kinds import CLIENTS_KEPT_MAX


@pytest.mark.parametrize(
    ("networks", "client", "holds"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:0:0/96"], "255.255.255.255", True),
        (["::ffff:0:0/96"], "::1", False),
        (["::/0"], "10.1.2.3", False),
        (["2001:db8::/32"], "2001:db8::9", True),
        (["unix"], "unix:", True),
        (["10.0.0.0/8"], "unix:", False),
        (["unix"], "10.1.2.3", False),
        (["10.0.0.0/8"], "nonsense", False),
        ([], "10.1.2.3", False),
    ],
)
def test_who_is_in_it(networks: list[str], client: str, holds: bool) -> None:
    asked = Networks(networks)
    assert (client in asked) is holds
    assert (client in asked) is holds  # As remembered.
    assert bool(asked) is bool(networks)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_clothes_change_nothing(client: int, base: int, length: int) -> None:
    network = IPv4Network((base >> (32 - length) << (32 - length), length))
    address = IPv4Address(client)
    dressed = f"::ffff:{network.network_address}/{length + 96}"
    for text in (str(network), dressed):
        asked = Networks([text])
        assert (str(address) in asked) is (address in network)
        assert (f"::ffff:{address}" in asked) is (address in network)


def test_what_is_remembered_is_bounded() -> None:
    asked = Networks(["10.0.0.0/8"])
    for number in range(CLIENTS_KEPT_MAX + 10):
        assert str(IPv4Address((10 << 24) + number)) in asked
        assert len(asked._known) <= CLIENTS_KEPT_MAX
