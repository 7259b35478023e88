"""The admin API about a group: how it stands, who is in it, what is done after a disaster."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office, office_in
from prometheus_client.parser import text_string_to_metric_families

from lb.control import admin_group
from lb.control.admin_guard import BODY_BYTES_MAX
from lb.control.store import NoQuorum, RefusedError, UnknownOutcome
from lb.registry import Restore

APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with office_in(tmp_path) as opened:
        yield opened


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
