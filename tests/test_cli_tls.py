"""The command line over TLS: whom it believes, what it shows, and what it says when that fails."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result
from fake_admin import FakeAdmin, fake_admin

from lb.cli.tree import lb


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from finding an instance or a file of the person who runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("ADMIN", "CONFIG", "TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY"):
        monkeypatch.delenv(f"LB_{name}", raising=False)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(ca: trustme.CA, tmp_path: Path) -> Path:
    """Return a folder with an authority, a server's certificate, and a client's."""
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, names in (("server", ("127.0.0.1",)), ("named", ("lb.example",)), ("me", ("me",))):
        cert = ca.issue_cert(*names)
        cert.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        with open(tmp_path / f"{name}.pem", "wb") as file:
            file.writelines(blob.bytes() for blob in cert.cert_chain_pems)
    return tmp_path


def serving(files: Path, name: str = "server", *, demands: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / f"{name}.pem", files / f"{name}.key")
    if demands:
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # So that the handshake itself fails.
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files / "ca.pem")
    return context


@pytest.fixture
def fake(files: Path) -> Iterator[FakeAdmin]:
    with fake_admin(serving(files)) as opened:
        opened.says("GET /v1/group/ok-to-stop", {"ok": True, "reason": "it may"})
        yield opened


def ok_to_stop(*words: str, **env: str) -> Result:
    return CliRunner().invoke(lb, ["group", "ok-to-stop", *words], env=env, prog_name="lb")


def test_an_authority_is_believed_when_it_is_named(fake: FakeAdmin) -> None:
    url = f"https://{fake.address}"

    stranger = ok_to_stop(LB_ADMIN=url)
    known = ok_to_stop(LB_ADMIN=url, LB_CA="ca.pem")

    assert stranger.exit_code == 4
    assert "is not believed" in stranger.stderr
    assert "$LB_CA" in stranger.stderr
    assert known.exit_code == 0


def test_a_certificate_for_another_name_is_not_believed(files: Path) -> None:
    with fake_admin(serving(files, "named")) as fake:
        result = ok_to_stop(LB_ADMIN=f"https://{fake.address}", LB_CA="ca.pem")

    assert result.exit_code == 4
    assert "by a name that is in it" in result.stderr


def test_the_config_file_s_own_certificate_is_enough(files: Path) -> None:
    """It is the very one that the instance shows; which names are in it does not matter then."""
    with fake_admin(serving(files, "named")) as fake:
        fake.says("GET /v1/group/ok-to-stop", {"ok": True, "reason": "it may"})
        text = f'[admin]\naddress = "{fake.address}"\ntls = {{ cert = "%s.pem", key = "x.key" }}\n'
        (files / "lb.toml").write_text(text % "named")
        (files / "other.toml").write_text(text % "server")

        assert ok_to_stop().exit_code == 0
        assert ok_to_stop("-c", "other.toml").exit_code == 4


def test_a_client_s_certificate_is_shown(files: Path) -> None:
    with fake_admin(serving(files, demands=True)) as fake:
        fake.says("GET /v1/group/ok-to-stop", {"ok": True, "reason": "it may"})
        url = f"https://{fake.address}"
        shown = {"LB_ADMIN": url, "LB_CA": "ca.pem", "LB_CERT": "me.pem", "LB_KEY": "me.key"}

        nobody = ok_to_stop(LB_ADMIN=url, LB_CA="ca.pem")
        me = ok_to_stop(**shown)
        missing = ok_to_stop(**{**shown, "LB_CERT": "no.pem"})

    assert nobody.exit_code == 4
    assert "$LB_CERT" in nobody.stderr
    assert me.exit_code == 0
    assert missing.exit_code == 4
    assert "certificate cannot be read" in missing.stderr


def test_plain_talk_to_a_tls_address_is_one_clear_line(fake: FakeAdmin) -> None:
    result = ok_to_stop(LB_ADMIN=fake.address)

    assert result.exit_code == 4
    assert "Traceback" not in result.output
