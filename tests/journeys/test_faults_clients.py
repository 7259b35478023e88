"""Clients that cost more than they bring: handshakes without end."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, Backend, Daemon
from journeys.programs import program

CA = trustme.CA()
FLOODS = 4
FLOOD_SECONDS = 2
ASKED = 200
BUSY = 10 * FLOODS  # A request beside so many handshakes may take so many times as long as alone,
NOISE_S = 0.1  # or this, where that is little.


@pytest.fixture
def secure(backends: list[Backend], tmp_path: Path) -> str:
    CA.issue_cert("a.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "a.pem")
    tls = f'tls = {{ cert = "{tmp_path}/a.pem", key = "{tmp_path}/a.pem" }}\n'
    return config_of(backends, listener=tls)


def context() -> ssl.SSLContext:
    made = ssl.create_default_context()
    CA.configure_trust(made)
    return made


def median_of(one: Daemon, count: int) -> float:
    """Ask over one kept connection; return what half of the requests took at most."""
    sock = socket.create_connection(("127.0.0.1", one.port), PATIENCE)
    connection = http.client.HTTPConnection("a.example")
    connection.sock = context().wrap_socket(sock, server_hostname="a.example")
    took = []
    for _ in range(count):
        began = time.monotonic()
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, len(answer.read())) == (200, 1)
        took.append(time.monotonic() - began)
    connection.close()
    return sorted(took)[count // 2]


@contextmanager
def flooded(one: Daemon, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Shake hands without end."""
    fixed = ("-connect", f"127.0.0.1:{one.port}", "-time", str(FLOOD_SECONDS))
    command = [program("openssl"), "s_time", *fixed, *words]
    floods = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(FLOODS)
    ]
    try:
        yield floods
    finally:
        for each in floods:
            each.kill()
            each.communicate()


@pytest.mark.parametrize("kind", ["-new", "-reuse"])
def test_handshakes_without_end(secure: str, daemon: Make, kind: str) -> None:
    """Fault 27: whoever is inside is served meanwhile, and so are all afterwards."""
    one = daemon(secure).start()
    alone = median_of(one, ASKED)
    with flooded(one, kind) as floods:
        assert median_of(one, ASKED) < max(BUSY * alone, NOISE_S)
        said = [each.communicate(timeout=PATIENCE)[0] for each in floods]
    assert all("connections in" in each for each in said)
    assert median_of(one, 10) < max(BUSY * alone, NOISE_S)
    assert "Traceback" not in one.log()


def test_nobody_renegotiates(secure: str, daemon: Make) -> None:
    """Fault 27: one connection costs one handshake."""
    one = daemon(secure).start()
    command = [program("openssl"), "s_client", "-tls1_2", "-connect", f"127.0.0.1:{one.port}"]
    client = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    watchdog = threading.Timer(PATIENCE, client.kill)
    watchdog.start()
    try:
        said, _ = client.communicate(b"R\n" * 3)
    finally:
        watchdog.cancel()
        client.kill()
    assert b"RENEGOTIATING" in said
    assert b"renegotiation" in said.partition(b"RENEGOTIATING")[2].lower() or client.returncode
    assert median_of(one, 10) > 0
