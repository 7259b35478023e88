"""Editions: what is composed, what is made anew, what travels and what comes out of it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lb import edition as editions
from lb.config.schema import Config
from lb.edition import Assembly, Composer, Edition, FormatError, Sources, pack, unpack
from lb.errors import OurError
from lb.model import Endpoint, Health, Plans, Respond, State
from lb.registry import By, Changed, Entry, Registry, UpstreamEntry

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


# What is composed


def config_of(upstreams: dict[str, Any], **more: Any) -> Config:
    listener = {"web": {"address": ["127.0.0.1:8080"], "upstream": next(iter(upstreams))}}
    return Config.model_validate({"listener": listener, "upstream": upstreams, **more})


def entry(key: str, revision: int = 1, **fields: Any) -> Entry:
    return Entry(key, Changed(By(), revision, 0.0), **fields)


def upstream_of(*backends: Entry) -> UpstreamEntry:
    revision = max((each.revision for each in backends), default=1)
    return UpstreamEntry(revision, {each.key: each for each in backends})


def compose(composer: Composer, config: Config, registry: Registry, **more: Any) -> Edition:
    return composer.compose(Sources(config, 1, registry, **more), 1)


def served(edition: Edition) -> dict[str, tuple[Endpoint, ...]]:
    upstreams = Assembly().load(edition).upstreams
    assert upstreams is not None
    return upstreams


def test_until_the_registry_knows_an_upstream_the_file_serves() -> None:
    config = config_of(
        {
            "app": {"backends": [{"address": "10.0.0.1:80", "name": "one", "weight": 3}]},
            "api": {"backends": ["10.0.0.2:80"]},
            "bare": {},
        }
    )
    registry = Registry(
        "r", 9, {"api": upstream_of(entry("10.0.0.3:80", state=State.DRAINING, backup=True))}
    )
    edition = compose(Composer("n", "lb-0"), config, registry)
    assert served(edition) == {
        "app": (Endpoint("one", "10.0.0.1:80", 3),),
        "api": (Endpoint("10.0.0.3:80", "10.0.0.3:80", 1, State.DRAINING, backup=True),),
        "bare": (),
    }
    assert edition.revision == 9


def test_an_empty_upstream_of_the_registry_is_empty_whatever_the_file_says() -> None:
    config = config_of({"app": {"backends": ["10.0.0.1:80"]}})
    registry = Registry("r", 9, {"app": upstream_of()})
    assert served(compose(Composer("n", "lb-0"), config, registry)) == {"app": ()}


def test_upstreams_that_the_config_does_not_name_are_left_out() -> None:
    config = config_of({"app": {"backends": ["10.0.0.1:80"]}})
    registry = Registry("r", 9, {"old": upstream_of(entry("10.0.0.3:80"))})
    assert set(served(compose(Composer("n", "lb-0"), config, registry))) == {"app"}


def test_a_name_stands_for_its_addresses_and_they_share_its_weight() -> None:
    config = config_of({"app": {"backends": ["a.example:80", "10.0.0.9:80", "b.example:80"]}})
    resolved = {"a.example:80": ("10.0.0.1:80", "10.0.0.2:80")}
    edition = compose(Composer("n", "lb-0"), config, Registry("r"), resolved=resolved)
    assert served(edition)["app"] == (
        Endpoint("a.example:80", "10.0.0.1:80", 1),
        Endpoint("a.example:80", "10.0.0.2:80", 1),
        Endpoint("10.0.0.9:80", "10.0.0.9:80", 2),
    )


def test_plans_say_what_the_config_says() -> None:
    config = config_of(
        {
            "app": {"health": {"path": "/up"}, "panic": "50%", "drain": {"soft": "1s"}},
            "api": {"health": {"interval": "1s"}, "balance": "weighted", "host": "backend"},
            "tcp": {"health": {"type": "tcp"}, "retries": {"attempts": 3}},
        },
        route={
            "a": {
                "host": "API.example.com",
                "header": {"X-Canary": "1"},
                "upstream": {"app": "75%", "api": "25%"},
                "split_by": "cookie:c",
                "timeout": "2s",
            },
            "b": {"path": "=/old", "respond": {"status": 308, "location": "/new"}},
        },
        access_log={"output": "off", "redact": "query"},
    )
    plans = Assembly().load(compose(Composer("n", "lb-0"), config, Registry("r"))).plans
    assert plans is not None
    assert (plans.node, plans.via, plans.generation) == ("n", "lb-0", 1)
    assert plans.listeners[0].addresses == ("127.0.0.1:8080",)
    assert plans.listeners[0].limits.header_bytes == 32 * 1024
    assert plans.routes[0].hosts == ("api.example.com",)
    assert plans.routes[0].headers == (("x-canary", "1"),)
    assert plans.routes[0].split == (("app", 0.75), ("api", 0.25))
    assert (plans.routes[0].upstream, plans.routes[0].timeout) == (None, 2.0)
    assert plans.routes[1].respond == Respond(308, "/new")
    assert [each.checked for each in plans.upstreams] == [True, False, True]
    assert plans.upstreams[0].drain.soft == 1.0
    assert plans.upstreams[0].panic == 0.5
    assert (plans.upstreams[1].balance, plans.upstreams[1].host) == ("round_robin", "backend")
    assert plans.upstreams[2].retries.attempts == 3
    assert plans.access_log.redact == ("query",)


def test_parts_of_what_was_not_replaced_are_the_same_objects() -> None:
    composer = Composer("n", "lb-0")
    config = config_of({"app": {"backends": ["a.example:80"]}, "api": {}})
    registry = Registry("r", 1, {"api": upstream_of(entry("10.0.0.1:80"))})
    first = compose(composer, config, registry)
    verdicts = {"api": {"10.0.0.1:80": Health.UNHEALTHY}}
    second = compose(composer, config, registry, verdicts=verdicts)
    changed = {name for name in first.parts if first.parts[name] is not second.parts[name]}
    assert changed == {"verdicts"}
    resolved = {"a.example:80": ("10.0.0.5:80",)}
    third = compose(composer, config, registry, verdicts=verdicts, resolved=resolved)
    changed = {name for name in first.parts if second.parts[name] is not third.parts[name]}
    assert changed == {"upstream/app/0"}


def test_a_thousand_backends_are_two_parts_and_take_no_time() -> None:
    composer = Composer("n", "lb-0")
    config = config_of({"app": {}})
    backends = [entry(f"10.0.{index // 250}.{index % 250}:80") for index in range(1000)]
    registry = Registry("r", 1, {"app": upstream_of(*backends)})
    edition = compose(composer, config, registry)
    assert set(edition.for_workers()) == {
        "config",
        "upstream/app/0",
        "upstream/app/1",
        "verdicts",
    }
    assert [each.key for each in served(edition)["app"]] == [each.key for each in backends]
    backends[700] = entry(backends[700].key, revision=2, weight=5)
    registry = Registry("r", 2, {"app": upstream_of(*backends)})
    started = time.process_time()
    after = compose(composer, config, registry)
    assert time.process_time() - started < 0.02
    assert after.parts["upstream/app/0"] is edition.parts["upstream/app/0"]
    assert after.parts["upstream/app/1"] != edition.parts["upstream/app/1"]
