"""TLS from the file to the wire: certificates come and go, and bad ones change nothing."""

from __future__ import annotations

import http.client
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from journeys.conftest import Make
from journeys.kit import PATIENCE, ROOT, Backend, Daemon, until

CA = trustme.CA()
OLD = datetime(2001, 1, 1, tzinfo=UTC)


class Files:
    """A certificate and its key as a daemon has them, replaced as people replace them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cert, self.key, self.ca = folder / "a.pem", folder / "a.key", folder / "ca.pem"
        self.ca.write_bytes(CA.cert_pem.bytes())
        self.put(CA.issue_cert("a.example", "old.example"))

    def put(self, cert: trustme.LeafCert) -> None:
        self.put_cert(cert)
        self.put_key(cert)

    def put_cert(self, cert: trustme.LeafCert) -> None:
        content = b"".join(each.bytes() for each in cert.cert_chain_pems)
        replace(self.cert, content)

    def put_key(self, cert: trustme.LeafCert) -> None:
        replace(self.key, cert.private_key_pem.bytes())


def replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o600)
    os.replace(new, path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "one")


@pytest.fixture
def secure(backends: list[Backend]) -> str:
    """One listener that speaks TLS, before both backends."""
    addresses = ", ".join(f'"{each.address}"' for each in backends)
    return (
        '[listener.web]\naddress = "127.0.0.1:{port}"\n'
        'tls = { cert = "a.pem", key = "a.key" }\n'
        f"[upstream.app]\nbackends = [{addresses}]\n"
    )


def context() -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
    made.check_hostname = False
    return made


def connect(daemon: Daemon) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(
        "127.0.0.1", daemon.port, timeout=PATIENCE, context=context()
    )


def ask(connection: http.client.HTTPSConnection) -> bytes:
    connection.request("GET", "/")
    return connection.getresponse().read()


def names(daemon: Daemon) -> set[str]:
    """Return whom the certificate is for that a new connection is shown."""
    connection = connect(daemon)
    try:
        connection.connect()
        found: Any = connection.sock.getpeercert()
        return {name for _, name in found["subjectAltName"]}
    finally:
        connection.close()


@contextmanager
def asking(daemon: Daemon, clients: int = 3) -> Iterator[list[str]]:
    """Ask over new and kept connections until the end; what fails is in the list."""
    failures: list[str] = []
    done = [0]
    stopping = threading.Event()

    def run(kept: bool) -> None:
        connection = connect(daemon)
        while not stopping.is_set():
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    failures.append(str(answer.status))
                done[0] += 1
                if not kept:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                connection.close()
        connection.close()

    threads = [threading.Thread(target=run, args=(bool(at % 2),)) for at in range(clients)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: done[0] > 20, "some answers")
        yield failures
    finally:
        stopping.set()
        for thread in threads:
            thread.join(PATIENCE)


def check(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lb.cli", "check", "-c", str(daemon.path)],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def certificate(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.admin("/v1/status").json()["certificates"][0]
    return found


def test_a_replaced_certificate_is_taken_up_under_traffic(
    daemon: Make, secure: str, files: Files
) -> None:
    one = daemon(secure).start()
    assert names(one) == {"a.example", "old.example"}
    with asking(one) as failures:
        for name in ("b.example", "c.example", "d.example"):
            files.put(CA.issue_cert("a.example", name))
            until(lambda name=name: name in names(one), f"the certificate for {name}")  # type: ignore[misc]
        assert one.admin("/v1/config/reload", "POST").status == 200
    assert not failures
    assert "lb_tls_cert_expiry_timestamp_seconds{" in one.admin("/metrics").text


def test_a_pair_that_does_not_match_keeps_the_old_and_alarms(
    daemon: Make, secure: str, files: Files
) -> None:
    one = daemon(secure).start()
    new = CA.issue_cert("a.example", "new.example")
    files.put_cert(new)
    until(lambda: certificate(one)["error"], "an alarm")

    assert "is not the key of" in certificate(one)["error"]
    assert "is not the key of" in one.log()
    refused = 'lb_tls_cert_refused{listener="web",names="a.example,old.example"}'
    assert f"{refused} 1.0" in one.admin("/metrics").text
    assert names(one) == {"a.example", "old.example"}
    files.put_key(new)
    until(lambda: names(one) == {"a.example", "new.example"}, "the new certificate")
    until(lambda: certificate(one)["error"] is None, "no alarm")
    assert "BEGIN" not in one.log()


def test_a_new_controller_knows_the_certificate_that_is_served(
    daemon: Make, secure: str, files: Files
) -> None:
    one = daemon(secure).start()
    files.key.unlink()
    before = one.controller()
    os.kill(before, 9)
    until(lambda: one.children("controller") not in ([], [before]), "another controller")
    one.ready()
    assert certificate(one)["error"]
    assert names(one) == {"a.example", "old.example"}
    worker = one.workers()[0]
    os.kill(worker, 9)
    until(lambda: worker not in one.workers(), "another worker")
    one.ready()
    assert names(one) == {"a.example", "old.example"}


def test_a_demand_for_certificates_comes_by_reload(daemon: Make, secure: str, files: Files) -> None:
    one = daemon(secure).start()
    with asking(one, 1) as failures:
        one.write(secure.replace("tls =", 'client_auth = "request"\nclient_ca = "ca.pem"\ntls ='))
        assert one.admin("/v1/config/reload", "POST").status == 200
    assert not failures
    one.write(secure.replace("tls =", 'client_auth = "require"\nclient_ca = "ca.pem"\ntls ='))
    assert one.admin("/v1/config/reload", "POST").status == 200
    refused = connect(one)
    try:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(refused)
    finally:
        refused.close()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files.key.unlink(), "no such file"),
        (lambda files: files.cert.write_text("no certificate"), "holds no certificate in PEM"),
        (lambda files: files.key.write_text("no key"), "holds no private key in PEM"),
        (lambda files: files.put_key(CA.issue_cert("a.example")), "is not the key of"),
        (
            lambda files: files.put(CA.issue_cert("a.example", not_after=OLD)),
            "expired at 2001-01-01",
        ),
    ],
)
def test_check_says_what_is_wrong_and_where(
    daemon: Make, secure: str, files: Files, spoil: Any, words: str
) -> None:
    one = daemon(secure)
    assert check(one).returncode == 0, check(one).stderr
    spoil(files)
    found = check(one)
    assert found.returncode == 3
    line = 1 + one.path.read_text().splitlines().index('tls = { cert = "a.pem", key = "a.key" }')
    assert f"{one.path}:{line}:" in found.stderr + found.stdout
    assert words in found.stderr + found.stdout


def test_a_reload_with_a_bad_certificate_changes_nothing(
    daemon: Make, secure: str, files: Files
) -> None:
    one = daemon(secure).start()
    one.write(secure.replace("a.key", "missing.key"))
    refused = one.admin("/v1/config/reload", "POST")
    assert refused.status == 422
    assert "missing.key: no such file" in refused.text
    assert names(one) == {"a.example", "old.example"}
