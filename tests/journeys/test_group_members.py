"""Members added, removed and replaced by hand; tokens and certificates between all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trustme

from journeys.conftest import MakeGroup
from journeys.group_kit import Group, Instance
from journeys.kit import free_ports, until

Alone = Callable[..., Instance]

TOKENS = """
tokens = [
    { name = "eyes", token = "read-0123456789abcdef", role = "read" },
    { name = "hands", token = "write-0123456789abcdef", role = "write" },
    { name = "boss", token = "admin-0123456789abcdef", role = "admin" },
    { name = "app", token = "register-0123456789abcdef", role = "register", upstreams = ["app"] },
]
"""


@pytest.fixture
def three(group: MakeGroup, plain: str) -> Group:
    return group(plain).start()


def names(instance: Instance) -> set[str]:
    return {each["name"] for each in instance.standing()["members"]}


def test_a_member_is_added_and_follows(three: Group, alone: Alone, plain: str) -> None:
    fourth = alone("d")
    [nobody] = free_ports(1)
    fourth.configure(plain, {}, more=f'join = ["127.0.0.1:{nobody}"]')
    fourth.start()
    assert fourth.standing()["state"] == "forming"
    path = "/v1/group/members/d"
    added = three.followers()[0].admin(path, "PUT", body={"address": fourth.peer_address})
    assert added.status in (200, 201, 202), added.text
    until(lambda: fourth.standing()["state"] == "ok", lambda: f"it has joined\n{fourth.log()}")
    assert names(three["a"]) == set("abcd")
    assert three["a"].voters() == set("abc")  # Three vote already.
    wrote = fourth.put("127.0.0.1:9", state="disabled")
    assert wrote.status == 201, wrote.text + fourth.log()
    three.everywhere(lambda each: "127.0.0.1:9" in each.backends(), "known")


def test_a_member_is_removed_and_knows_it(three: Group) -> None:
    gone = three.followers()[0]
    removed = three.leader().admin(f"/v1/group/members/{gone.name}", "DELETE")
    assert removed.status == 200, removed.text
    others = [each for each in three if each is not gone]
    until(lambda: all(gone.name not in names(each) for each in others), "it is out")
    until(lambda: gone.standing()["state"] == "removed", lambda: f"it knows\n{gone.log()}")
    assert gone.admin("/readyz").status == 503
    assert gone.routes() == {"a", "b"}  # Who still asks it is still served.
    assert gone.put("127.0.0.1:9", state="disabled").status == 503
    assert others[0].put("127.0.0.1:9", state="disabled").status == 201
    # It stays out, and disturbs nobody, when it starts again.
    term = others[0].status()["term"]
    gone.end()
    gone.launch()
    until(lambda: gone.standing()["state"] == "removed", lambda: f"it still knows\n{gone.log()}")
    assert others[0].status()["term"] == term


def test_the_leader_is_removed(three: Group) -> None:
    leader = three.leader()
    left = three.followers()
    removed = left[0].admin(f"/v1/group/members/{leader.name}", "DELETE")
    assert removed.status == 200, removed.text
    until(lambda: left[0].put("127.0.0.1:9", state="disabled").status in (200, 201), "goes on")
    until(lambda: all(leader.name not in names(each) for each in left), "it is out")


def test_the_leader_takes_itself_out(three: Group) -> None:
    leader = three.leader()
    removed = leader.admin(f"/v1/group/members/{leader.name}", "DELETE")
    assert removed.status == 200, removed.text + leader.log()
    until(lambda: leader.standing()["state"] == "removed", lambda: f"it knows\n{leader.log()}")


def test_a_member_is_replaced(three: Group, plain: str) -> None:
    """As a box is: removed while it is down, wiped, and started again under its name."""
    old = three.followers()[0]
    other = three.leader()
    old.end()
    removed = other.admin(f"/v1/group/members/{old.name}", "DELETE")
    assert removed.status == 200, removed.text
    old.wipe()
    old.launch()
    until(lambda: old.name in other.voters(), lambda: f"it votes again\n{three.log()}", 30.0)
    assert old.put("127.0.0.1:9", state="disabled").status == 201


# --- Tokens -------------------------------------------------------------------------------------


def test_roles_hold_on_every_instance(group: MakeGroup, plain: str) -> None:
    three = group(plain)
    for each in three:
        text = each.path.read_text()
        address = f'address = "127.0.0.1:{each.admin_port}"\n'
        assert address in text
        each.path.write_text(text.replace(address, address + TOKENS))
        each.launch()
    assert three["a"].path.read_text().count("token = ") == 4
    boss = bearer("admin-0123456789abcdef")
    three.everywhere(lambda each: each.admin("/readyz", fields=boss).status == 200, "ready")

    def voters() -> bool:
        said = three["a"].admin("/v1/group", fields=boss).json()
        return len([each for each in said["members"] if each["role"] == "voter"]) == 3

    until(voters, lambda: f"three vote\n{three.log()}", 30.0)
    path = "/v1/upstreams/app/backends/10.9.6.1:80"
    for each in three:
        for token, read, write, lead in [
            ("", 401, 401, 401),
            ("nobody-0123456789abcdef", 401, 401, 401),
            ("read-0123456789abcdef", 200, 403, 403),
            ("register-0123456789abcdef", 403, 403, 403),
            ("write-0123456789abcdef", 200, 200, 403),
        ]:
            fields = bearer(token) if token else {}
            body = {"state": "disabled"}
            assert each.admin("/v1/upstreams/app", fields=fields).status == read, token
            wrote = each.admin(path, "PUT", body=body, fields=fields)
            assert wrote.status in (write, write + 1), (token, wrote.text)
            handed = each.admin("/v1/group/transfer", "POST", body={}, fields=fields)
            assert handed.status == lead, (token, handed.text)
    leased = three["b"].admin(
        "/v1/upstreams/app/backends/10.9.6.2:80",
        "PUT",
        body={"ttl": "15s"},
        fields=bearer("register-0123456789abcdef"),
    )
    assert leased.status == 201, leased.text
    # Who wrote is told on every member, and no token is anywhere to be read.
    for each in three:
        shown = each.admin("/v1/upstreams/app", fields=boss)
        [mine] = [b for b in shown.json()["backends"] if b["address"] == "10.9.6.1:80"]
        assert mine["changed"]["by"]["token"] == "hands"
        everything = shown.text + each.log() + each.admin("/v1/config", fields=boss).text
        assert "0123456789abcdef" not in everything


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- Certificates -------------------------------------------------------------------------------


class Papers:
    """A certificate authority, and what it has signed, as files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._authority = trustme.CA()
        self.authority = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.authority)

    def of(self, name: str) -> str:
        """Return the line of [group] for a member of this name."""
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        made = self._authority.issue_cert(name, common_name=name)
        made.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        for blob in made.cert_chain_pems:
            blob.write_to_path(cert, append=True)
        return f'tls = {{ cert = "{cert}", key = "{key}", ca = "{self.authority}" }}'


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path / "papers")


@pytest.mark.long
def test_members_know_each_other_by_certificates(
    group: MakeGroup, alone: Alone, papers: Papers, plain: str, tmp_path: Path
) -> None:
    three = group(plain, secret="")
    for each in three:
        each.configure(plain, three.members, secret="", more=papers.of(each.name))
    three.start()
    assert three["b"].put("127.0.0.1:9", state="disabled").status == 201
    three.everywhere(lambda each: "127.0.0.1:9" in each.backends(), "known")
    join = f'join = ["{three["a"].peer_address}"]\n'
    # Of another authority; of ours, in somebody else's name; and without any.
    strangers = Papers(tmp_path / "strangers")
    for name, more in [
        ("x", strangers.of("x")),
        ("y", papers.of("z")),
        ("w", 'secret = "a-secret-of-the-tests-0123456789"'),
    ]:
        other = alone(name)
        other.configure(plain, {}, secret="", more=join + more)
        other.launch()
        until(partial(speaks_of_tls, other), f"why {name} is refused")
        assert other.routes() == {"a", "b"}
        assert three["a"].voters() == set("abc")
        other.end()


def speaks_of_tls(instance: Instance) -> bool:
    log = instance.log().lower()
    return "certificate" in log or "tls" in log
