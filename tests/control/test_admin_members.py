"""What the admin API says and does for all members: reads, writes that wait for them, leases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office, office_in

from lb import __version__
from lb.config.load import load
from lb.control import admin_reads, admin_views
from lb.control.admin_views import Views, config_hash
from lb.control.problems import Problem
from lb.control.store import NoQuorum, RefusedError, UnknownOutcome
from lb.metrics import Reading
from lb.model import Health
from lb.registry import Command, Registry, RemoveUpstream, Reply

APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with office_in(tmp_path) as opened:
        yield opened


class FailingStore:
    """A group that cannot decide, or does not know whether it has."""

    def __init__(self, registry: Registry, error: Exception) -> None:
        self.registry = registry
        self.error = error

    async def propose(self, command: Command) -> Reply:
        raise self.error

    def subscribe(self, on_change: object) -> None:
        """Nobody has anything to hear."""


# --- Reads through the leader, and of all members ---------------------------------------------


@pytest.mark.parametrize("path", ["/v1/upstreams", APP, FIRST])
def test_a_consistent_read_is_confirmed_first(office: Office, path: str) -> None:
    assert office.get(path).status == 200
    assert office.desk.group.called == []

    assert office.get(f"{path}?consistent=true").status == 200
    assert office.desk.group.called == [("confirm",)]

    office.desk.group.error = NoQuorum("nobody leads")
    answer = office.get(f"{path}?consistent=true")
    assert (answer.status, answer.code) == (503, "no-quorum")
    assert answer.headers["Retry-After"] == "1"
    assert office.get(path).status == 200, "what is known is shown without a quorum"


def test_a_consistent_read_does_not_wait_for_ever(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_reads, "CONFIRM_SECONDS_MAX", 0.05)
    office.desk.group.hangs = True

    assert office.get(f"{APP}?consistent=true").code == "no-quorum"


def seen(health: str, in_flight: int = 0) -> dict[str, Any]:
    return {"health": health, "in_flight": in_flight}


def test_the_view_of_the_group_shows_each_member_s(office: Office) -> None:
    group = office.desk.group
    for name in ("b", "c", "d"):
        group.joined(name, live=name != "d")
    said = {"revision": 1, "backends": {"127.0.0.1:9001": seen("unhealthy", 3)}}
    group.said["view"] = {"b": said, "c": {"error": "it is slow"}}
    office.judge("app", "127.0.0.1:9001", Health.HEALTHY)

    members = office.get(f"{APP}?view=group").plain["members"]

    assert group.called == [("view", {"upstream": "app"})]
    assert members["a"] == {
        "revision": 2,
        "backends": {"127.0.0.1:9001": seen("healthy"), "127.0.0.1:9002": seen("checking")},
    }
    assert members["b"] == said
    assert members["c"] == {"error": "it is slow"}
    assert "error" in members["d"], "a member that nobody reached is named too"


def test_the_view_of_one_backend_and_of_all_upstreams(office: Office) -> None:
    group = office.desk.group
    group.joined("b")
    one = {"127.0.0.1:9001": seen("unhealthy", 3)}
    group.said["view"] = {"b": {"revision": 1, "backends": one}}

    assert office.get(f"{FIRST}?view=group").plain["members"] == {
        "a": {"revision": 2, **seen("checking")},
        "b": {"revision": 1, **seen("unhealthy", 3)},
    }
    second = office.get(f"{APP}/backends/127.0.0.1:9002?view=group").plain["members"]
    assert second["b"] == {"revision": 1, "health": None, "in_flight": 0}

    group.said["view"] = {"b": {"revision": 1, "upstreams": {"app": one}}}
    app, images = office.get("/v1/upstreams?view=group").plain["upstreams"]
    assert app["members"]["b"] == {"revision": 1, "backends": one}
    assert images["members"]["b"] == {"revision": 1, "backends": {}}
    assert images["members"]["a"]["backends"] == {"one": seen("unchecked")}


def test_there_is_one_view_only(office: Office) -> None:
    assert office.get(f"{APP}?view=all").code == "bad-request"


# --- What members are asked -------------------------------------------------------------------


def test_a_member_says_how_backends_look_from_it(office: Office) -> None:
    views = Views(office.desk)
    labels = {"upstream": "app", "backend": "127.0.0.1:9001"}
    meters = office.desk.meters
    meters.view[meters.gauge("lb_backend_active_requests", **labels)] = 4

    shown = office.run(views.view(None, {"upstream": "app"}))
    everything = office.run(views.view(None, {"upstream": ""}))

    assert shown["revision"] == 2
    assert shown["backends"]["127.0.0.1:9001"] == seen("checking", 4)
    assert everything["upstreams"]["app"] == shown["backends"]
    assert office.run(views.view(None, {"upstream": "nope"})) == {"revision": 2, "backends": {}}
    assert Reading([office.desk.memory]).total("lb_backend_active_requests", **labels) == 4


def test_a_member_says_whether_its_workers_route_by_a_revision(office: Office) -> None:
    views = Views(office.desk)

    assert office.run(views.routed(None, {"revision": 2, "seconds": 1})) == {"routed": True}
    assert office.run(views.routed(None, {"revision": 3, "seconds": 0.5})) == {"routed": False}


@pytest.mark.parametrize("params", [{}, {"revision": "2", "seconds": 1}, {"upstream": 3}])
def test_a_member_that_asks_nonsense_is_told(office: Office, params: dict[str, Any]) -> None:
    views = Views(office.desk)

    with pytest.raises(Problem):
        office.run(views.routed(None, params))
    with pytest.raises(Problem):
        office.run(views.view(None, params))


def test_a_member_says_what_it_runs(office: Office) -> None:
    views = Views(office.desk)

    shown = office.run(views.standing(None, {}))

    assert shown["version"] == __version__
    assert shown["upstreams"] == ["app", "images"]
    assert shown["config_hash"] == config_hash(office.desk.config)
    assert {"routed", "view", "standing"} <= set(views.methods())


def test_configs_that_differ_by_right_have_one_name(office: Office) -> None:
    def named(text: str) -> str:
        office.desk.path.write_text(text)
        return config_hash(load(str(office.desk.path), {}).config)

    text = office.desk.path.read_text()

    own = text.replace('name = "a"', 'name = "b"\ndata_dir = "elsewhere"')
    own = own.replace("127.0.0.1:8080", "127.0.0.2:8080")
    assert named(text) == named(own + '\n[log]\nlevel = "debug"\n')
    assert named(text) != named(text.replace("9001", "9101"))


# --- Writes -----------------------------------------------------------------------------------


def test_a_write_that_waits_for_all_says_who_is_behind(office: Office) -> None:
    group = office.desk.group
    for name in ("b", "c", "d", "e"):
        group.joined(name)
    group.said["routed"] = {
        "b": {"routed": True},
        "c": {"routed": False},
        "d": {"error": "it is slow"},
    }

    plain = office.ask("PATCH", f"{FIRST}?wait=all", {"weight": 2}).plain

    [(method, params)] = group.called
    assert (method, params["revision"]) == ("routed", 3)
    assert params["seconds"] <= admin_views.WAIT_ALL_SECONDS_MAX
    assert (plain["behind"], plain["unreachable"]) == (["c"], ["d", "e"])
    office.desk.routes_by_newest = False
    assert office.ask("DELETE", f"{FIRST}?wait=all").plain["behind"] == ["a", "c"]


def test_a_write_that_waits_for_nobody_asks_nobody(office: Office) -> None:
    plain = office.ask("PATCH", FIRST, {"weight": 2}).plain

    assert "behind" not in plain
    assert office.desk.group.called == []


def test_every_write_has_an_idempotency_key(office: Office) -> None:
    office.ask("PATCH", FIRST, {"weight": 2})
    office.ask("PATCH", FIRST, {"weight": 3})
    office.ask("PATCH", FIRST, {"weight": 4}, Idempotency_Key="mine")

    one, two, mine = (each.idempotency_key for each in office.desk.memory_store.proposed[-3:])

    assert one
    assert two
    assert one != two
    assert mine == "mine"


@pytest.mark.parametrize("own", [None, "mine"])
def test_an_unknown_outcome_names_the_key_to_repeat_it_with(
    office: Office, own: str | None
) -> None:
    error = UnknownOutcome("it was sent, and no answer came")
    office.desk.store = FailingStore(office.desk.store.registry, error)
    headers: dict[str, Any] = {} if own is None else {"Idempotency_Key": own}

    answer = office.ask("PATCH", FIRST, {"weight": 2}, **headers)

    assert (answer.status, answer.code) == (504, "unknown-outcome")
    key = answer.plain["idempotency_key"]
    assert key == own if own else len(key) >= 16


def test_no_quorum_is_said_so(office: Office) -> None:
    office.desk.store = FailingStore(office.desk.store.registry, NoQuorum("nobody leads"))

    answer = office.ask("DELETE", FIRST)

    assert (answer.status, answer.code) == (503, "no-quorum")
    assert answer.headers["Retry-After"] == "1"


# --- Leases -----------------------------------------------------------------------------------


def test_a_backend_may_be_leased(office: Office) -> None:
    leased = f"{APP}/backends/127.0.0.1:9009"

    answer = office.ask("PUT", leased, {"ttl": "15s"})

    assert (answer.status, answer.plain["backend"]["ttl"]) == (201, 15.0)
    assert answer.plain["backend"]["suspect"] is False
    assert office.ask("PATCH", leased, {"ttl": "1m"}).plain["backend"]["ttl"] == 60.0
    assert office.backend("127.0.0.1:9001")["ttl"] is None


def test_a_lease_is_renewed_without_a_revision(office: Office) -> None:
    office.ask("PUT", f"{APP}/backends/127.0.0.1:9009", {"ttl": "15s"})

    answer = office.ask("POST", f"{APP}/backends/127.0.0.1:9009/renew")

    assert answer.plain == {"ttl": 15.0, "suspect": False}
    assert office.desk.group.called == [("renew", "app", "127.0.0.1:9009")]
    assert office.desk.store.registry.revision == 3


def test_a_lease_that_has_ended_must_be_registered_again(office: Office) -> None:
    office.desk.group.error = RefusedError("not-found", "it has ended", "register it again")

    answer = office.ask("POST", f"{FIRST}/renew", {})

    assert (answer.status, answer.code) == (404, "not-found")
    assert answer.plain["hint"] == "register it again"
    assert office.ask("POST", "/v1/upstreams/nope/backends/x/renew").status == 404
    assert office.ask("POST", FIRST).status in (404, 405)


# --- Upstreams that a config may still name ---------------------------------------------------


def drop_images(office: Office) -> None:
    """Have this instance's config name it no more."""
    text = office.desk.path.read_text()
    before, _, _ = text.partition("[upstream.images]")
    office.desk.path.write_text(before.replace('upstream = "images"', 'upstream = "app"'))
    office.ask("POST", "/v1/config/reload", {})


def test_an_upstream_that_another_member_s_config_names_stays(office: Office) -> None:
    drop_images(office)
    office.desk.group.joined("b")
    office.desk.group.said["standing"] = {"b": {"upstreams": ["images"]}}

    for query in ("", "?force=true"):
        answer = office.ask("DELETE", f"/v1/upstreams/images{query}")

        assert (answer.status, answer.code) == (409, "upstream-in-use")
        assert "b" in answer.plain["detail"]


def test_a_member_that_cannot_be_asked_may_name_it(office: Office) -> None:
    drop_images(office)
    for name in ("b", "c", "d"):
        office.desk.group.joined(name)
    office.desk.group.said["standing"] = {"b": {"upstreams": ["app"]}, "c": {"error": "slow"}}

    refused = office.ask("DELETE", "/v1/upstreams/images")
    named = office.desk.memory_store.proposed[-1]
    forced = office.ask("DELETE", "/v1/upstreams/images?force=true")

    assert refused.code == "upstream-in-use"
    assert isinstance(named, RemoveUpstream)
    assert [each.split()[0] for each in named.named_by] == ["c", "d"]
    assert forced.status == 200
    assert office.get("/v1/upstreams/images").status == 404


def test_a_removal_is_repeated_under_its_key_whoever_answers_by_then(office: Office) -> None:
    drop_images(office)
    office.desk.group.joined("b")
    office.desk.group.said["standing"] = {"b": {"upstreams": []}}
    path = "/v1/upstreams/images"

    first = office.ask("DELETE", path, Idempotency_Key="one")
    office.desk.group.said.clear()
    again = office.ask("DELETE", path, Idempotency_Key="one")

    assert (first.status, again.status) == (200, 200)
    assert first.plain["revision"] == again.plain["revision"]
