"""The admin over TLS: its certificate, those of clients, and who speaks something else."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner, Result
from guarded import FIRST, TOKENS, bearer, by_of, read_all, tokens, with_admin
from office import PATIENCE, Answer, Office

from lb.cli.tree import lb
from lb.config.admin import AdminTls
from lb.control import admin_door
from lb.control.admin import AdminServer, ProbeServer
from lb.control.certificates import CertificateStore


class TlsOffice(Office):
    """An office that speaks TLS by the files that its config names."""

    def __init__(self, folder: Path, tls: AdminTls) -> None:
        super().__init__(folder)
        self.desk.config = with_admin(self.desk.config, tokens=tokens(), tls=tls)
        self.certificates = CertificateStore(time.time, lambda: None)

    def __enter__(self) -> TlsOffice:
        super().__enter__()
        return self

    async def _open(self) -> None:
        await self.desk.take_file()
        await self.certificates.prepare(self.desk.config)
        self.certificates.follow(self.desk.config)
        self.admin = AdminServer(
            self.desk, lambda: self.certificates.admin_context(self.desk.config)
        )
        self._probe = ProbeServer(self.desk)
        await self.admin.start(self._sock)
        await self._probe.start(self._probe_sock)

    def securely(
        self, context: ssl.SSLContext, method: str, path: str, body: Any = None, **headers: str
    ) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            named["Content-Type"] = "application/json"
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=PATIENCE, context=context
        )
        with contextlib.closing(connection):
            connection.request(method, path, body=data, headers=named)
            with contextlib.closing(connection.getresponse()) as response:
                return Answer(response)


CA = trustme.CA()
OTHERS = trustme.CA()


def put(folder: Path, cert: trustme.LeafCert) -> AdminTls:
    (folder / "a.pem").write_bytes(b"".join(each.bytes() for each in cert.cert_chain_pems))
    (folder / "a.key").write_bytes(cert.private_key_pem.bytes())
    (folder / "ca.pem").write_bytes(CA.cert_pem.bytes())
    return AdminTls(cert=str(folder / "a.pem"), key=str(folder / "a.key"))


def client(authority: trustme.CA = CA, shows: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if shows is not None:
        shows.configure_cert(context)
    return context


def test_the_admin_speaks_tls_and_the_cookie_is_secure(tmp_path: Path) -> None:
    with TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office:
        assert office.securely(client(), "GET", "/v1/status").status == 401
        assert office.securely(client(), "GET", "/v1/status", **bearer("read")).status == 200
        session = office.securely(client(), "POST", "/v1/session", {"token": TOKENS["read"]})
        assert "Secure" in session.headers["Set-Cookie"]
        with pytest.raises(ssl.SSLCertVerificationError):
            office.securely(client(OTHERS), "GET", "/")


def test_plain_http_on_the_tls_port_is_closed_without_a_word(tmp_path: Path) -> None:
    with (
        TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office,
        socket.create_connection(("127.0.0.1", office.port), PATIENCE) as sock,
    ):
        sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"HTTP" not in read_all(sock)
        assert office.securely(client(), "GET", "/").status == 200


def test_who_says_nothing_in_a_handshake_is_put_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admin_door.HANDSHAKE, "ssl_handshake_timeout", 0.2)
    with (
        TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office,
        socket.create_connection(("127.0.0.1", office.port), PATIENCE) as sock,
    ):
        assert read_all(sock) == b""
        assert office.securely(client(), "GET", "/").status == 200


def test_replaced_files_count_from_the_next_handshake_on(tmp_path: Path) -> None:
    with TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office:
        put(tmp_path, OTHERS.issue_cert("127.0.0.1"))
        office.run(office.certificates.look())

        assert office.securely(client(OTHERS), "GET", "/").status == 200
        (tmp_path / "a.key").write_bytes(CA.issue_cert("x").private_key_pem.bytes())
        office.run(office.certificates.look())
        assert office.securely(client(OTHERS), "GET", "/").status == 200


def test_a_client_certificate_is_demanded_and_names_the_client(tmp_path: Path) -> None:
    tls = put(tmp_path, CA.issue_cert("127.0.0.1"))
    tls = tls.model_copy(update={"client_ca": str(tmp_path / "ca.pem")})
    alice = CA.issue_cert("alice@example.org", common_name="alice")
    stranger = OTHERS.issue_cert("mallory@example.org", common_name="alice")
    with TlsOffice(tmp_path, tls) as office:
        for shows in (None, stranger):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                office.securely(client(shows=shows), "GET", "/")
        context = client(shows=alice)
        assert office.securely(context, "GET", "/v1/status").status == 401
        answer = office.securely(context, "PATCH", FIRST, {"weight": 2}, **bearer("write"))

        assert answer.status == 200
        token = by_of(office)["token"]
        assert token.startswith("write (CN=alice,")


def test_the_admin_s_key_never_reaches_workers(tmp_path: Path) -> None:
    with TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office:
        store = office.certificates
        assert store.current.parts == {}
        assert store.current.pairs == {}
        assert [each["used_by"] for each in store.standing()] == [["admin"]]

        # A controller that comes next starts from what this one held, should the files be bad.
        again = CertificateStore(time.time, lambda: None)
        again.restore({"control/certificates": store.to_part()})
        (tmp_path / "a.pem").write_text("broken")
        office.run(again.prepare(office.desk.config, lenient=True))
        again.follow(office.desk.config)
        assert again.admin_context(office.desk.config) is not None


# --- The command line -------------------------------------------------------------------------


def lb_says(office: TlsOffice, *words: str, **env: str) -> Result:
    named = {"LB_ADMIN": f"https://127.0.0.1:{office.port}", **env}
    return CliRunner().invoke(lb, words, env=named, prog_name="lb")


@pytest.fixture
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from finding an instance or a file of the person who runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("ADMIN", "CONFIG", "TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY"):
        monkeypatch.delenv(f"LB_{name}", raising=False)


@pytest.mark.usefixtures("nothing_set")
def test_the_command_line_shows_its_token(tmp_path: Path) -> None:
    with TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office:
        (tmp_path / "my.token").write_text(f"{TOKENS['read']}\n")
        ca = ("--ca", "ca.pem")

        assert lb_says(office, "status").exit_code == 4
        assert lb_says(office, "status", *ca).exit_code == 4
        assert lb_says(office, "status", *ca, LB_TOKEN=TOKENS["read"]).exit_code == 0
        assert lb_says(office, "status", LB_CA="ca.pem", LB_TOKEN_FILE="my.token").exit_code == 0
        waiting = lb_says(office, "status", "--wait", "ready", "60s", *ca)
        drain = ("backend", "drain", "app", "127.0.0.1:9001", *ca)
        refused = lb_says(office, *drain, LB_TOKEN=TOKENS["read"])

        assert waiting.exit_code == 4
        assert "this needs a token" in waiting.stderr
        assert refused.exit_code == 4
        assert "role read" in refused.stderr


@pytest.mark.usefixtures("nothing_set")
def test_the_command_line_shows_its_certificate(tmp_path: Path) -> None:
    tls = put(tmp_path, CA.issue_cert("127.0.0.1"))
    tls = tls.model_copy(update={"client_ca": str(tmp_path / "ca.pem")})
    alice = CA.issue_cert("alice@example.org", common_name="alice")
    alice.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "alice.pem"))
    env = {"LB_TOKEN": TOKENS["write"], "LB_CA": "ca.pem"}
    drain = ("backend", "drain", "app", "127.0.0.1:9001")
    with TlsOffice(tmp_path, tls) as office:
        for words in (("status",), drain):
            nobody = lb_says(office, *words, **env)
            assert nobody.exit_code == 4
            assert "LB_CERT" in nobody.stderr
        assert lb_says(office, *drain, **env, LB_CERT="alice.pem").exit_code == 0
        assert by_of(office)["token"].startswith("write (CN=alice,")
