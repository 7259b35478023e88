"""Editions: what is composed, what is made anew, what travels and what comes out of it."""

from __future__ import annotations

import pytest

from lb import edition as editions
from lb.edition import Assembly, Edition, FormatError, pack, unpack
from lb.errors import OurError
from lb.model import Endpoint, Health, Plans, State

VERDICTS = b'{"app":{"10.0.0.1:80":"healthy","10.0.0.2:80":"checking"}}'


def upstream_part(name: str, index: int, *rows: str) -> bytes:
    endpoints = ",".join(f'["{row}","{row}",1,"active",false]' for row in rows)
    return (
        f'{{"upstream":"{name}","index":{index},"revision":0,"endpoints":[{endpoints}]}}'.encode()
    )


def whole(number: int = 1) -> Edition:
    plans = (
        b'{"node":"n","via":"lb-00000000","generation":1,"listeners":[],"routes":[],'
        b'"upstreams":[],"access_log":{"output":"off","format":"json","redact":[]}}'
    )
    return Edition(
        number,
        7,
        {
            "config": plans,
            "upstream/app/0": upstream_part("app", 0, "10.0.0.1:80", "10.0.0.2:80"),
            "upstream/api/0": upstream_part("api", 0, "10.0.0.3:80"),
            "verdicts": VERDICTS,
            "control/health": b"{}",
        },
    )


# What travels


def test_what_is_packed_comes_out_again() -> None:
    assert unpack(pack(whole())) == whole()


@pytest.mark.parametrize("cut", [0, 5, 9, 40, -1])
def test_an_edition_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(FormatError, match=r"cut short|damaged"):
        unpack(pack(whole())[:cut])


def test_an_edition_of_an_unknown_format_is_refused() -> None:
    packed = bytearray(pack(whole()))
    packed[5] = 99
    with pytest.raises(FormatError, match="format 99"):
        unpack(bytes(packed))


def test_what_is_no_edition_is_refused() -> None:
    with pytest.raises(FormatError, match="no edition"):
        unpack(b"GET / HTTP/1.1\r\n\r\n")


# What a worker makes of it


def test_a_whole_edition_brings_everything() -> None:
    change = Assembly().load(whole(number=3))
    assert change.number == 3
    assert isinstance(change.plans, Plans)
    assert change.upstreams is not None
    assert [each.address for each in change.upstreams["app"]] == ["10.0.0.1:80", "10.0.0.2:80"]
    assert change.upstreams["api"] == (Endpoint("10.0.0.3:80", "10.0.0.3:80"),)
    assert change.upstreams["api"][0].state is State.ACTIVE
    assert change.verdicts == {
        "app": {"10.0.0.1:80": Health.HEALTHY, "10.0.0.2:80": Health.CHECKING}
    }


def test_a_commit_brings_only_what_changed() -> None:
    assembly = Assembly()
    assembly.load(whole())
    assembly.put("verdicts", b'{"app":{"10.0.0.1:80":"unhealthy"}}')
    change = assembly.commit(2)
    assert change.plans is None
    assert change.upstreams is None
    assert change.verdicts == {"app": {"10.0.0.1:80": Health.UNHEALTHY}}
    assert assembly.commit(3).verdicts is None


def test_an_upstream_that_did_not_change_stays_the_same_object() -> None:
    assembly = Assembly()
    before = assembly.load(whole()).upstreams
    assembly.put("upstream/app/1", upstream_part("app", 1, "10.0.0.9:80"))
    after = assembly.commit(2).upstreams
    assert before is not None
    assert after is not None
    assert after["api"] is before["api"]
    assert [each.key for each in after["app"]] == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"]


def test_parts_that_are_dropped_leave() -> None:
    assembly = Assembly()
    assembly.load(whole())
    assembly.drop("upstream/api/0")
    change = assembly.commit(2)
    assert change.upstreams is not None
    assert set(change.upstreams) == {"app"}
    assert "upstream/api/0" not in assembly.digests


def test_loading_drops_what_the_edition_does_not_have() -> None:
    assembly = Assembly()
    assembly.put("upstream/old/0", upstream_part("old", 0, "10.0.0.1:80"))
    change = assembly.load(whole())
    assert change.upstreams is not None
    assert "old" not in change.upstreams


def test_control_parts_are_not_for_workers() -> None:
    assembly = Assembly()
    assembly.load(whole())
    assert set(assembly.digests) == set(whole().for_workers())


def test_a_commit_before_everything_came_is_our_bug() -> None:
    assembly = Assembly()
    assembly.put("verdicts", b"{}")
    with pytest.raises(OurError, match="before it was whole"):
        assembly.commit(1)


# Addresses and weights


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("10.0.0.1:80", False),
        ("[::1]:80", False),
        ("unix:/run/app.sock", False),
        ("localhost:80", True),
        ("app.example.com:80", True),
        ("10.example:80", True),
        ("1.2.3.example4:80", True),
    ],
)
def test_which_addresses_are_names(address: str, answer: bool) -> None:
    assert editions.is_name(address) is answer


def test_endpoints_of_a_backend() -> None:
    resolved = {"app.example:80": ("10.0.0.1:80", "10.0.0.2:80")}
    assert editions.endpoints_of("app.example:80", resolved) == ("10.0.0.1:80", "10.0.0.2:80")
    assert editions.endpoints_of("other.example:80", resolved) == ()
    assert editions.endpoints_of("unix:/a", resolved) == ("unix:/a",)


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((1, 1), (1, 1)),
        ((1, 2), (2, 1)),
        ((2, 3), (3, 2)),
        ((0, 4), (4, 1)),
    ],
)
def test_a_weight_is_shared_evenly_by_integers(
    counts: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    scale = editions.share_scale(counts)
    assert tuple(editions.share_weight(1, count or 1, scale) for count in counts) == weights


def test_a_scale_has_a_bound_and_no_share_is_lost() -> None:
    scale = editions.share_scale(range(1, 65))
    assert scale == editions.SCALE_MAX
    shares = [64 * editions.share_weight(1, 64, scale), editions.share_weight(1, 1, scale)]
    assert abs(shares[0] / shares[1] - 1) < 0.01
    assert editions.share_weight(0, 3, scale) == 0
