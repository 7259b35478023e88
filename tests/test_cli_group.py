"""`lb group`: what it asks, what it says, and what it leaves on disk."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from fake_admin import FakeAdmin, fake_admin

from lb.cli.group_files import differences
from lb.cli.group_words import alarms, in_short, in_words
from lb.cli.tree import lb


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from finding an instance or a file of the person who runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("LB_ADMIN", "LB_CONFIG", "LB_TOKEN", "LB_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeAdmin]:
    with fake_admin() as opened:
        yield opened


def run(fake: FakeAdmin | None, *words: str) -> Result:
    env = {"LB_ADMIN": fake.address} if fake else {}
    return CliRunner().invoke(lb, list(words), env=env, prog_name="lb")


def member(name: str, role: str = "voter", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "address": f"10.0.0.{ord(name) - 96}:9901",
        "role": role,
        "match": 17,
        "lag": 0,
        "last_contact_ms": 12,
        "version": "0.1.0",
        "config_hash": "4f1c0a9be2",
        "live": True,
        **more,
    }


def group(state: str = "ok", **more: Any) -> dict[str, Any]:
    return {
        "id": "7f00aa11",
        "role": "follower",
        "leader": "a",
        "term": 3,
        "revision": 17,
        "commit": 40,
        "applied": 40,
        "quorum": state == "ok",
        "state": state,
        "waiting_for": [],
        "members": [member(name) for name in "abc"],
        "detail": "",
        "age_s": 0.0,
        **more,
    }


# --- How it is --------------------------------------------------------------------------------


def test_status_is_a_line_in_words_and_a_table(fake: FakeAdmin) -> None:
    fake.says("GET /v1/group", group())

    result = run(fake, "group", "status")

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "group 7f00aa11  ok  leader a, term 3, revision 17"
    assert lines[1] == "  3 voters: any 1 of them may be lost"
    assert lines[2].split()[:3] == ["NAME", "ROLE", "ADDRESS"]
    assert lines[3].split() == [
        *("a", "leader", "10.0.0.1:9901", "17", "0", "12", "ms", "ago", "0.1.0", "4f1c0a9b")
    ]
    assert lines[4].split()[1] == "voter"
    assert json.loads(run(fake, "group", "status", "-o", "json").stdout)["id"] == "7f00aa11"


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        (group(members=[member("a")]), "one voter: it agrees with itself"),
        (group("alone", quorum=True, members=[]), "one voter"),
        (group(members=[member("a"), member("b")]), "neither may be lost"),
        (
            group(members=[member("a"), member("d", "learner", lag=120)]),
            "d is a learner, 120 entries behind",
        ),
        (
            group(members=[member("a"), member("b", last_contact_ms=12_000)]),
            "b has not been heard for 12s",
        ),
        (group(members=[member("a"), member("b", lag=1000)]), "b is 1000 entries behind"),
        (
            group(members=[member("a"), member("b", config_hash="ffffffff")]),
            "their configs differ",
        ),
        (
            group("forming", id="", leader="", waiting_for=["b", "c"], members=[]),
            "no group yet: waiting for b, c; until then this instance serves its file",
        ),
        (group("forming", members=[]), "lb group found goes on without"),
        (
            group("no-quorum", leader="", age_s=75.0),
            "traffic goes on by the last good registry, as it was 1m 15s ago (revision 17)",
        ),
        (
            group("no-quorum", members=[member("a"), member("b", live=False)]),
            "not heard: b",
        ),
        (group("no-quorum"), "lb group recover --lost"),
        (group("forming", detail="the name b is taken", members=[]), "the name b is taken"),
        (group("removed"), "remove raft/ in its data_dir"),
        (
            group("damaged", detail="raft/wal-7.log, at offset 4096: no such frame"),
            "its log is damaged: raft/wal-7.log, at offset 4096",
        ),
        (group("stopped-apply", detail="an unknown command"), "an unknown command"),
        (group("of-tomorrow"), "of-tomorrow: this lb does not know that state"),
    ],
)
def test_each_state_is_said_in_words(plain: dict[str, Any], says: str) -> None:
    assert says in "\n".join(in_words(plain))


def test_a_first_start_is_not_advised_where_a_group_is_known() -> None:
    said = "\n".join(in_words(group("forming", detail="the name b is taken")))

    assert "lb group found" not in said


@pytest.mark.parametrize("state", ["forming", "no-quorum", "removed", "damaged", "stopped-apply"])
def test_a_group_that_is_not_well_is_exit_status_1(fake: FakeAdmin, state: str) -> None:
    fake.says("GET /v1/group", group(state))

    result = run(fake, "group", "status")

    assert result.exit_code == 1
    assert f"  {state}  " in result.stdout


def test_a_group_that_is_well_but_for_a_copied_data_dir_is_exit_status_1(fake: FakeAdmin) -> None:
    fake.says("GET /v1/group", group(detail="a second process that says it is b is refused"))

    result = run(fake, "group", "status")

    assert result.exit_code == 1
    assert "a second process that says it is b is refused" in result.stdout


def test_a_status_names_leader_term_and_revision() -> None:
    assert in_short(group()) == "follower (ok), leader a, term 3, revision 17"
    assert in_short(group("no-quorum", leader="")).startswith("follower (no-quorum), leader none")
    assert in_short(group("alone")) == "alone, revision 17"


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        (group(), ""),
        (group("alone", quorum=True), ""),
        (group("forming"), "no group yet: this instance serves its file"),
        (
            group("no-quorum", age_s=75.0),
            "NO QUORUM: it serves the LAST GOOD registry",
        ),
        (group(quorum=False), "NO QUORUM"),
        (group("removed"), "REMOVED"),
        (group("damaged"), "ITS LOG IS DAMAGED"),
        (group("stopped-apply"), "IT HAS STOPPED FOLLOWING"),
    ],
)
def test_what_nobody_may_overlook_is_loud(plain: dict[str, Any], says: str) -> None:
    said = "\n".join(alarms(plain))

    assert said.startswith(says)
    assert bool(said) == bool(says)


# --- Who is in it -----------------------------------------------------------------------------


def test_members_are_added_removed_and_made_leader(fake: FakeAdmin) -> None:
    fake.says("PUT /v1/group/members/d", {"revision": 18})
    fake.says("DELETE /v1/group/members/c", {"revision": 19})
    fake.says("POST /v1/group/transfer", {"leader": "b"})

    added = run(fake, "group", "add", "d", "10.0.0.4:9901", "--note", "more")
    assert added.exit_code == 0
    assert "invited d, at 10.0.0.4:9901" in added.stderr
    assert fake.last("PUT").plain == {"address": "10.0.0.4:9901"}
    assert fake.last("PUT").query == {"note": "more"}

    removed = run(fake, "group", "remove", "c", "--force")
    assert removed.exit_code == 0
    assert "remove raft/" in removed.stderr
    assert fake.last("DELETE").query == {"force": "true"}

    moved = run(fake, "group", "transfer", "b")
    assert moved.stderr == "b leads now\n"
    assert fake.last("POST").plain == {"to": "b"}
    assert json.loads(run(fake, "group", "transfer", "-o", "json").stdout) == {"leader": "b"}
    assert fake.last("POST").plain == {}


@pytest.mark.parametrize(
    ("status", "code", "exit_status"), [(409, "name-taken", 5), (503, "no-quorum", 5), (504, "", 6)]
)
def test_what_the_group_refuses_is_exit_status_5_or_6(
    fake: FakeAdmin, status: int, code: str, exit_status: int
) -> None:
    fake.refuses("PUT /v1/group/members/d", status, code, "there is a d, and it is alive")

    result = run(fake, "group", "add", "d", "10.0.0.4:9901")

    assert result.exit_code == exit_status
    assert result.stderr == "lb: there is a d, and it is alive\n"


@pytest.mark.parametrize("ok", [True, False])
def test_ok_to_stop_is_an_exit_status(fake: FakeAdmin, ok: bool) -> None:
    fake.says("GET /v1/group/ok-to-stop", {"ok": ok, "reason": "so it is"})

    result = run(fake, "group", "ok-to-stop")

    assert result.exit_code == (0 if ok else 1)
    assert "so it is" in result.stderr
    assert result.stdout == ""
    assert ("do not stop it" in result.stderr) != ok


def test_found_and_recover_say_what_they_do_and_ask_first(fake: FakeAdmin) -> None:
    fake.says("GET /v1/group", group("forming", waiting_for=["b", "c"]))
    fake.says("POST /v1/group/found", {"id": "1"})
    fake.says("POST /v1/group/recover", {"id": "2"})

    for words in (["found"], ["recover", "--lost", "b,c"]):
        unasked = run(fake, "group", *words)
        assert unasked.exit_code == 2
        assert "b and c" in unasked.stderr
        assert "add --yes" in unasked.stderr
        assert not [each for each in fake.asked if each.method == "POST"]

    assert run(fake, "group", "found", "--yes").exit_code == 0
    assert fake.last("POST").path == "/v1/group/found"
    assert run(fake, "group", "recover", "--lost", "b, c", "-y").exit_code == 0
    assert fake.last("POST").plain == {"lost": ["b", "c"]}
    assert run(fake, "group", "recover").exit_code == 2


# --- Backends, seen by the whole group ----------------------------------------------------------


def test_backends_are_shown_as_each_member_sees_them(fake: FakeAdmin) -> None:
    backends = [
        {"name": "", "address": "x:1", "weight": 1, "state": "active"},
        {"name": "two", "address": "x:2", "weight": 3, "state": "draining"},
    ]
    members = {
        "a": {"revision": 17, "backends": {"x:1": {"health": "healthy", "in_flight": 2}}},
        "b": {"revision": 16, "backends": {"two": {"health": "unhealthy", "in_flight": 0}}},
        "c": {"error": "it does not answer"},
    }
    plain = {"revision": 17, "panic": False, "backends": backends, "leaving": []}
    fake.says("GET /v1/upstreams/app", {**plain, "members": members})

    result = run(fake, "backend", "list", "app", "--view", "group", "--consistent")

    assert fake.last("GET").query == {"view": "group", "consistent": "true"}
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["BACKEND", "WEIGHT", "STATE", "a", "b", "c"],
        ["x:1", "1", "active", "healthy,", "2", "active", "-", "-"],
        ["two", "3", "draining", "-", "unhealthy", "-"],
    ]
    assert result.stderr.splitlines() == [
        "b routes by revision 16, this is of 17",
        "c: it does not answer",
    ]


def test_a_write_may_wait_for_all_and_be_a_lease(fake: FakeAdmin) -> None:
    done = {"revision": 18, "routed": True, "behind": ["b"], "unreachable": ["c"]}
    fake.says("PUT /v1/upstreams/app/backends/x:1", done, status=201)
    fake.says("PATCH /v1/upstreams/app/backends/x:1", {"revision": 19, "routed": True})

    added = run(fake, "backend", "add", "app", "x:1", "--ttl", "15s", "--wait", "all")

    assert added.exit_code == 0
    assert fake.last("PUT").query == {"wait": "all"}
    assert fake.last("PUT").plain == {"ttl": "15000ms"}
    assert added.stderr.splitlines() == [
        "added x:1 (revision 18)",
        "committed, but not every worker of these routes by it yet: b",
        "committed; these could not be asked: c",
    ]
    assert run(fake, "backend", "drain", "app", "x:1", "--wait", "all").exit_code == 0
    assert fake.last("PATCH").query == {"wait": "all"}
    assert run(fake, "backend", "drain", "app", "x:1", "--wait", "some").exit_code == 2


# --- Backups ----------------------------------------------------------------------------------


def kept(**upstreams: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "7f00aa11",
        "revision": 17,
        "upstreams": {name: {"backends": backends} for name, backends in upstreams.items()},
    }


def entry(address: str, **more: Any) -> dict[str, Any]:
    changed = {"by": {}, "revision": 3, "at": 1.0}
    return {"address": address, "weight": 1, "state": "active", "changed": changed, **more}


def test_a_backup_is_written_whole_and_for_its_owner_only(fake: FakeAdmin, tmp_path: Path) -> None:
    fake.says("GET /v1/group/backup", kept(app={"x:1": entry("x:1"), "x:2": entry("x:2")}))

    result = run(fake, "group", "backup", "here.json")

    assert result.exit_code == 0
    assert "1 upstreams with 2 backends, revision 17" in result.stderr
    written = tmp_path / "here.json"
    assert json.loads(written.read_text())["revision"] == 17
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["here.json"]
    assert json.loads(run(fake, "group", "backup", "-").stdout)["revision"] == 17
    told = json.loads(run(fake, "group", "backup", "here.json", "-o", "json").stdout)
    assert told == {"file": "here.json", "group": "7f00aa11", "revision": 17}
    nowhere = run(fake, "group", "backup", "no/such/folder.json")
    assert nowhere.exit_code == 1
    assert "cannot be written" in nowhere.stderr


def test_a_restore_says_what_changes_and_asks_first(fake: FakeAdmin, tmp_path: Path) -> None:
    fake.says("GET /v1/group/backup", kept(app={"x:1": entry("x:1"), "x:2": entry("x:2")}))
    fake.says("POST /v1/group/restore", {"revision": 18})
    other = kept(app={"x:1": entry("x:1", weight=3), "x:3": entry("x:3")})
    tmp_path.joinpath("there.json").write_text(json.dumps(other))

    dry = run(fake, "group", "restore", "there.json", "--dry-run")
    unasked = run(fake, "group", "restore", "there.json")
    done = run(fake, "group", "restore", "there.json", "--yes", "--note", "back")

    assert dry.exit_code == 0
    assert dry.stdout.splitlines() == [
        "~ app: x:1: weight 1 -> 3",
        "- app: x:2",
        "+ app: x:3",
    ]
    assert "dry run" in dry.stderr
    assert unasked.exit_code == 2
    assert done.exit_code == 0
    assert "restored (revision 18)" in done.stderr
    assert fake.last("POST").plain == other
    assert fake.last("POST").query == {"note": "back"}
    assert len([each for each in fake.asked if each.method == "POST"]) == 1


def test_differences_name_whole_upstreams() -> None:
    now, then = kept(app={}, old={"x:1": entry("x:1")}), kept(app={}, new={"x:9": entry("x:9")})

    assert list(differences(now, then)) == [
        "+ new: a new upstream",
        "+ new: x:9",
        "- old: the whole upstream",
    ]


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"upstreams": 1}'])
def test_what_is_no_backup_is_not_sent(fake: FakeAdmin, tmp_path: Path, text: str) -> None:
    tmp_path.joinpath("there.json").write_text(text)

    result = run(fake, "group", "restore", "there.json", "--yes")

    assert result.exit_code == 2
    assert "is no backup" in result.stderr
    assert fake.asked == []


# --- Certificates -----------------------------------------------------------------------------


def test_certificates_come_from_one_authority_and_carry_the_name(tmp_path: Path) -> None:
    first = run(None, "group", "cert", "a", "--ca-dir", "ca")
    second = run(None, "group", "cert", "b", "--ca-dir", "ca", "-o", "json")

    assert first.exit_code == 0
    assert first.stdout == (
        '[group]\ntls = { cert = "a.pem", key = "a.key", ca = "group-ca.pem" }\n'
    )
    assert "made the group's authority" in first.stderr
    assert json.loads(second.stdout)["new_ca"] is False
    ca = x509.load_pem_x509_certificate((tmp_path / "ca/group-ca.pem").read_bytes())
    for name in "ab":
        made = x509.load_pem_x509_certificate((tmp_path / f"ca/{name}.pem").read_bytes())
        builder = PolicyBuilder().store(Store([ca]))
        builder.build_server_verifier(x509.DNSName(name)).verify(made, [])
        builder.build_client_verifier().verify(made, [])
    for path in (tmp_path / "ca").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_a_certificate_is_replaced_only_when_told_so(tmp_path: Path) -> None:
    run(None, "group", "cert", "a", "--ca-dir", "ca")
    before = (tmp_path / "ca/a.pem").read_bytes()

    again = run(None, "group", "cert", "a", "--ca-dir", "ca")
    assert again.exit_code == 1
    assert "--renew" in again.stderr
    assert (tmp_path / "ca/a.pem").read_bytes() == before
    assert run(None, "group", "cert", "a", "--ca-dir", "ca", "--renew").exit_code == 0
    assert (tmp_path / "ca/a.pem").read_bytes() != before


@pytest.mark.parametrize("name", ["a b", "", "group-ca", "../a", "a" * 64])
def test_a_name_that_no_member_can_have_gets_no_certificate(name: str, tmp_path: Path) -> None:
    result = run(None, "group", "cert", name, "--ca-dir", "ca")

    assert result.exit_code == 2
    assert not (tmp_path / "ca").exists()


def test_half_an_authority_is_not_made_whole(tmp_path: Path) -> None:
    run(None, "group", "cert", "a", "--ca-dir", "ca")
    (tmp_path / "ca/group-ca.key").unlink()

    result = run(None, "group", "cert", "b", "--ca-dir", "ca")

    assert result.exit_code == 1
    assert "group-ca.key is missing" in result.stderr
