"""The admin API about a group: who is in it, what all members say, writes that wait for them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office, office_in
from prometheus_client.parser import text_string_to_metric_families

from lb import __version__
from lb.config.load import load
from lb.control import admin_group, admin_reads, admin_views
from lb.control.admin_guard import BODY_BYTES_MAX
from lb.control.admin_views import Views, config_hash
from lb.control.problems import Problem
from lb.control.store import NoQuorum, RefusedError, UnknownOutcome
from lb.metrics import Reading
from lb.model import Health
from lb.registry import Command, Registry, RemoveUpstream, Reply, Restore

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


# --- How it stands ----------------------------------------------------------------------------


def test_the_group_has_the_design_s_shape(office: Office) -> None:
    office.desk.group.joined("b")

    plain = office.get("/v1/group").plain

    assert {"id", "role", "leader", "term", "revision", "commit", "applied"} <= set(plain)
    assert (plain["name"], plain["role"], plain["leader"]) == ("a", "leader", "a")
    assert (plain["term"], plain["revision"], plain["quorum"]) == (3, 2, True)
    member = plain["members"][1]
    assert member == {
        "name": "b",
        "address": "127.0.0.1:9902",
        "role": "voter",
        "id": 2,
        "match": 5,
        "lag": 2,
        "last_contact_ms": 40,
        "version": "",
        "config_hash": "",
        "live": True,
    }


def test_while_forming_it_says_whom_it_waits_for(office: Office) -> None:
    group = office.desk.group
    group.members.clear()
    group.more = {"waiting_for": ("b", "c"), "detail": "b and c have not answered", "age_s": 4.5}

    plain = office.get("/v1/group").plain
    status = office.get("/v1/status").plain["group"]

    assert (plain["members"], plain["waiting_for"]) == ([], ["b", "c"])
    for shown in (plain, status):
        assert (shown["age_s"], shown["detail"]) == (4.5, "b and c have not answered")
    assert status["waiting_for"] == ["b", "c"]


def test_status_says_what_the_group_is_and_where_the_config_comes_from(office: Office) -> None:
    office.desk.group.leader, office.desk.group.quorum = "", False

    plain = office.get("/v1/status").plain

    assert plain["config"]["source"] == str(office.desk.path)
    group = plain["group"]
    assert (group["role"], group["leader"], group["quorum"]) == ("follower", "", False)
    assert (group["state"], group["term"], group["revision"]) == ("no-quorum", 3, 2)


@pytest.mark.parametrize("path", ["/v1/status", "/v1/group", APP, "/v1/upstreams/nope"])
def test_every_answer_says_revision_and_term(office: Office, path: str) -> None:
    answer = office.get(path)

    assert (answer.headers["X-Revision"], answer.headers["X-Raft-Term"]) == ("2", "3")


def test_metrics_tell_of_the_group(office: Office) -> None:
    office.desk.group.joined("b")
    office.desk.group.more = {"leader_changes": 4, "sync_seconds": 0.002, "age_s": 1.5}

    text = office.get("/metrics").body.decode()

    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["lb_group_role", "leader"] == 1
    assert samples["lb_group_role", "follower"] == 0
    assert samples["lb_group_term",] == 3
    assert samples["lb_group_commit_index",] == 9
    assert samples["lb_group_applied_index",] == 8
    assert samples["lb_group_leader_changes_total",] == 4
    assert samples["lb_group_append_seconds",] == 0.002
    assert samples["lb_group_peer_lag_entries", "b"] == 2
    assert samples["lb_group_quorum",] == 1
    assert samples["lb_registry_age_seconds",] == 1.5


@pytest.mark.parametrize(
    ("live", "dead", "quorum", "ok"),
    [
        (["b", "c"], [], True, True),
        (["b"], ["c"], True, False),
        ([], [], True, False),
        (["b", "c"], [], False, False),
        (["b", "c", "d"], ["e"], True, True),
    ],
)
def test_whether_it_may_be_stopped(
    office: Office, live: list[str], dead: list[str], quorum: bool, ok: bool
) -> None:
    group = office.desk.group
    for name in live + dead:
        group.joined(name, live=name in live)
    group.joined("watcher", voter=False)
    group.quorum = quorum

    plain = office.get("/v1/group/ok-to-stop").plain

    assert plain["ok"] is ok
    assert plain["reason"]
    assert plain["voters"] == 1 + len(live) + len(dead)


def test_a_learner_may_always_be_stopped_where_there_is_a_quorum(office: Office) -> None:
    group = office.desk.group
    group.members.clear()
    group.joined("b")
    group.joined("a", voter=False)

    assert office.get("/v1/group/ok-to-stop").plain["ok"] is True


# --- What may be done to it -------------------------------------------------------------------


def test_members_are_added_and_removed(office: Office) -> None:
    member = "/v1/group/members/d"

    added = office.ask("PUT", member, {"address": "10.0.0.4:9901"})
    removed = office.ask("DELETE", f"{member}?force=true")

    assert (added.status, removed.status) == (200, 200)
    assert office.desk.group.called == [
        ("add", "d", "10.0.0.4:9901", "a"),
        ("remove", "d", True),
    ]


def test_leadership_is_handed_over(office: Office) -> None:
    assert office.ask("POST", "/v1/group/transfer", {"to": "c"}).plain == {"leader": "c"}
    assert office.ask("POST", "/v1/group/transfer").plain == {"leader": "b"}
    assert office.desk.group.called == [("transfer", "c"), ("transfer", None)]


def test_founding_and_recovery_are_passed_on(office: Office) -> None:
    assert office.ask("POST", "/v1/group/found", {}).status == 200
    assert office.ask("POST", "/v1/group/recover", {"lost": ["b", "c"]}).status == 200
    assert office.desk.group.called == [("found",), ("recover", ("b", "c"))]


def test_recovery_by_the_unix_socket(tmp_path: Path) -> None:
    with office_in(tmp_path, unix=True) as office:
        assert office.ask("POST", "/v1/group/recover", {"lost": ["b"]}).status == 200


def test_recovery_only_from_the_machine_itself(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_group, "is_local", lambda _: False)

    answer = office.ask("POST", "/v1/group/recover", {"lost": ["b"]})

    assert (answer.status, answer.code) == (403, "forbidden")
    assert office.desk.group.called == []


@pytest.mark.parametrize(
    ("remote", "local"),
    [("127.0.0.1", True), ("::1", True), ("127.9.9.9", True), ("10.0.0.1", False), ("", False)],
)
def test_who_is_on_this_machine(remote: str, local: bool) -> None:
    class Request:
        transport = None

        def __init__(self) -> None:
            self.remote = remote

    assert admin_group.is_local(Request()) is local  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("PUT", "/v1/group/members/d", {}, "address"),
        ("PUT", "/v1/group/members/d", {"address": 9901}, "address"),
        ("PUT", "/v1/group/members/d", {"address": "10.0.0.4"}, "no port"),
        ("PUT", "/v1/group/members/d", {"address": "unix:/x"}, "address"),
        ("PUT", "/v1/group/members/d", {"address": "10.0.0.4:1", "x": 1}, "x"),
        ("PUT", "/v1/group/members/d%20e", {"address": "10.0.0.4:1"}, "no name"),
        ("PUT", f"/v1/group/members/{'d' * 64}", {"address": "10.0.0.4:1"}, "no name"),
        ("DELETE", "/v1/group/members/d?force=maybe", None, "force"),
        ("POST", "/v1/group/transfer", {"to": 3}, "member"),
        ("POST", "/v1/group/transfer", {"too": "b"}, "too"),
        ("POST", "/v1/group/found", {"now": True}, "now"),
        ("POST", "/v1/group/recover", {}, "lost"),
        ("POST", "/v1/group/recover", {"lost": "b,c"}, "lost"),
        ("POST", "/v1/group/recover", {"lost": [1]}, "no name"),
        ("POST", "/v1/group/recover", {"lost": ["b"] * 17}, "lost"),
        ("POST", "/v1/group/restore", {}, "backup"),
        ("POST", "/v1/group/restore", {"id": 1, "revision": 1, "upstreams": []}, "backup"),
        ("POST", f"{FIRST}/renew", {"ttl": "9s"}, "ttl"),
    ],
)
def test_what_makes_no_sense_gets_no_further(
    office: Office, method: str, path: str, body: object, says: str
) -> None:
    answer = office.ask(method, path, body)

    assert (answer.status, answer.code) == (400, "bad-request")
    assert says in answer.plain["detail"]
    assert office.desk.group.called == []
    assert office.desk.store.registry.revision == 2


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RefusedError("not-found", "no member d"), 404, "not-found"),
        (RefusedError("conflict", "the only voter"), 409, "conflict"),
        (RefusedError("name-taken", "heard 1 s ago"), 409, "name-taken"),
        (NoQuorum("nobody leads"), 503, "no-quorum"),
        (UnknownOutcome("sent"), 504, "unknown-outcome"),
    ],
)
def test_what_the_group_refuses_keeps_its_code(
    office: Office, error: RefusedError, status: int, code: str
) -> None:
    office.desk.group.error = error

    for method, path in (("DELETE", "/v1/group/members/d"), ("POST", "/v1/group/transfer")):
        answer = office.ask(method, path)

        assert (answer.status, answer.code) == (status, code)
        assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)


def test_a_group_that_does_not_answer_is_not_waited_for_for_ever(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_group, "ACT_SECONDS_MAX", 0.05)
    office.desk.group.hangs = True

    assert office.ask("POST", "/v1/group/transfer").code == "unknown-outcome"


# --- Backup and restore -----------------------------------------------------------------------


def test_what_was_backed_up_is_restored_in_one_revision(office: Office) -> None:
    kept = office.get("/v1/group/backup")
    assert 'filename="registry-2.json"' in kept.headers["Content-Disposition"]
    office.ask("PATCH", FIRST, {"weight": 7})
    office.ask("PUT", f"{APP}/backends/127.0.0.1:9009")

    answer = office.ask("POST", "/v1/group/restore?note=oops", kept.plain)

    assert (answer.status, answer.plain["revision"]) == (200, 5)
    shown = office.get(APP).plain["backends"]
    assert [(each["address"], each["weight"]) for each in shown] == [
        ("127.0.0.1:9001", 1),
        ("127.0.0.1:9002", 1),
    ]
    proposed = office.desk.memory_store.proposed[-1]
    assert isinstance(proposed, Restore)
    assert proposed.by.note == "oops"


def test_a_backup_may_be_larger_than_other_bodies(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = office.get("/v1/group/backup").body
    padded = kept[:-1] + b" " * BODY_BYTES_MAX + b"}"
    typed: dict[str, Any] = {"Content_Type": "application/json"}

    assert office.ask("POST", "/v1/group/restore", data=padded, **typed).status == 200
    assert office.ask("POST", "/v1/group/transfer", data=padded, **typed).code == "too-large"
    monkeypatch.setattr(admin_group, "RESTORE_BYTES_MAX", len(kept))
    answer = office.ask("POST", "/v1/group/restore", data=padded, **typed)
    assert (answer.status, answer.code) == (413, "too-large")


@pytest.mark.parametrize("data", [b"not json", b"[1]", b"[" * 100_000, b'{"id":'])
def test_a_restore_that_is_not_json_changes_nothing(office: Office, data: bytes) -> None:
    typed: dict[str, Any] = {"Content_Type": "application/json"}

    assert office.ask("POST", "/v1/group/restore", data=data, **typed).code == "bad-request"
    assert office.desk.memory_store.proposed[-1].kind == "apply-file"


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
    assert set(views.methods()) == {"routed", "view", "standing"}


def test_configs_that_differ_by_right_have_one_name(office: Office) -> None:
    def named(text: str) -> str:
        office.desk.path.write_text(text)
        return config_hash(load(str(office.desk.path), {}).config)

    text = office.desk.path.read_text()

    own = text.replace('name = "a"', 'name = "b"\ndata_dir = "elsewhere"')
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


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "data", "status", "code"),
    [
        (FIRST, b"{not json", 400, "bad-request"),
        (FIRST, b"{}" + b" " * BODY_BYTES_MAX, 413, "too-large"),
        (FIRST, b'{"weight": -1}', 400, "invalid"),
        ("/v1/upstreams/nope/backends/127.0.0.1:1", b"{}", 404, "not-found"),
        (f"{APP}/backends/nowhere:at:all", b"{}", 400, "bad-request"),
        (f"{APP}/backends/10.0.0.1", b"{}", 400, "invalid"),
    ],
)
def test_bad_input_changes_nothing(
    office: Office, path: str, data: bytes, status: int, code: str
) -> None:
    answer = office.ask("PUT", path, data=data, Content_Type="application/json")

    assert (answer.status, answer.code) == (status, code)
    assert office.desk.store.registry.revision == 2


def test_a_body_that_never_ends_is_cut_off(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_group, "RESTORE_BODY_SECONDS_MAX", 0.05)
    head = (
        b"POST /v1/group/restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        b"Content-Type: application/json\r\n\r\n{"
    )

    with socket.create_connection(("127.0.0.1", office.port), timeout=10) as client:
        client.sendall(head)
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too-slow"
