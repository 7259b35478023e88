"""TLS on the wire: who is let in, what goes on, and what a handshake that fails leaves behind."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from lb.model import (
    CertificateRef,
    ListenerTimeouts,
    ListenerTls,
    Plans,
    Route,
)
from lb.pem import distinguished_name
from lb.proxy.tls_contexts import quiet_names
from wire.kit import (
    DEADLINE_S,
    LISTENER,
    Connection,
    Origin,
    Proxy,
    read_all,
    read_response,
    response,
    until,
)
from wire.tls_kit import (
    CLIENT,
    GET,
    MATERIAL,
    REQUIRE,
    STRANGER,
    TLS,
    ask,
    connected,
    handshakes,
    secure,
    serving,
    shown,
    tls_origin,
    trusting,
    upstream,
)

# Serving


def test_a_request_and_its_answer(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(log=str(log)) as (proxy, origin), connected(proxy) as sock:
        assert sock.version() == "TLSv1.3"
        assert ask(sock)[1] == b"ok"
        assert ask(sock)[1] == b"ok"

        assert b"\r\nX-Forwarded-Proto: https\r\n" in origin.requests[0]
        assert b"X-Client-Cert" not in origin.requests[0]
        assert handshakes(proxy, "ok") == 1
        line = until(lambda: log.exists() and log.read_text(), "a line").splitlines()[0]
        assert json.loads(line)["scheme"] == "https"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.example", "a.example"),
        ("A.Example", "a.example"),
        ("x.wild.example", "*.wild.example"),
        ("x.y.wild.example", "a.example"),
        ("unknown.example", "a.example"),
        (None, "a.example"),
    ],
)
def test_the_name_decides_on_the_certificate(name: str | None, expected: str) -> None:
    with serving() as (proxy, _), connected(proxy, name) as sock:
        assert shown(sock) == {expected}
        assert ask(sock)[1] == b"ok"


def test_only_http_1_is_agreed_on() -> None:
    context = trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with serving() as (proxy, _), connected(proxy, context=context) as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("name", ["a.example", "x.wild.example", None])
def test_an_old_version_is_refused_with_an_alert(name: str | None) -> None:
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(replace(TLS, minimum="1.3")) as (proxy, _):
        with (
            pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"),
            connected(proxy, name, context),
        ):
            pass
        assert handshakes(proxy, "failed") == 1
    with serving() as (proxy, _), connected(proxy, name, context) as sock:
        assert sock.version() == "TLSv1.2"
        assert ask(sock)[1] == b"ok"


def test_who_comes_again_has_a_short_handshake() -> None:
    with serving() as (proxy, _):
        context = trusting()
        with connected(proxy, context=context) as sock:
            ask(sock)
            session = sock.session
        with connected(proxy, context=context, session=session) as sock:
            ask(sock)
            assert sock.session_reused
        assert handshakes(proxy, "resumed") == 1


# Clients' certificates


@pytest.mark.parametrize("name", ["a.example", "x.wild.example", "unknown.example", None])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("cert", [None, STRANGER], ids=["none", "stranger"])
def test_no_name_gets_around_a_required_certificate(
    name: str | None, version: ssl.TLSVersion, cert: trustme.LeafCert | None
) -> None:
    context = trusting(cert)
    context.maximum_version = version
    with serving(REQUIRE) as (proxy, origin):
        with (
            pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|UNKNOWN_CA"),
            connected(proxy, name, context) as sock,
        ):
            ask(sock)
        assert not origin.requests
        until(lambda: handshakes(proxy, "failed") == 1, "a count")


@pytest.mark.parametrize("auth", ["request", "require"])
def test_the_subject_goes_on_and_cannot_be_made_up(auth: str) -> None:
    forged = GET[:-2] + b"X-Client-Cert-Subject: CN=boss\r\nX_Client_Cert_Subject: CN=boss\r\n\r\n"
    with (
        serving(replace(REQUIRE, client_auth=auth)) as (proxy, origin),
        connected(proxy, "x.wild.example", trusting(CLIENT)) as sock,
    ):
        ask(sock, forged)
        (request,) = origin.requests
        assert request.lower().count(b"client-cert-subject") == 1
        assert rb"X-Client-Cert-Subject: CN=me\, \"I\" \C3\A9," in request
        assert b"boss" not in request


def test_a_certificate_that_is_asked_for_may_be_missing() -> None:
    forged = GET[:-2] + b"X-Client-Cert-Subject: CN=boss\r\n\r\n"
    with serving(replace(REQUIRE, client_auth="request")) as (proxy, origin):
        with connected(proxy) as sock:
            ask(sock, forged)
        assert b"boss" not in origin.requests[0]


def test_names_are_written_by_rfc_4514() -> None:
    subject = ((("countryName", "DE"),), (("organizationName", "#a;b "), ("commonName", "x\r\ny")))

    assert distinguished_name(subject) == rb"O=\#a\;b\ +CN=x\0D\0Ay,C=DE"


# Handshakes that fail


def stall(sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x01\x02\x00\x01")


@pytest.mark.parametrize(
    ("octets", "result", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "failed", b"HTTP/1.1 400 "),
        (b"\0" * 400, "failed", b""),
        (b"\x16\x03\x01\x00\x05hello", "failed", b"\x15\x03"),
        (b"\x16\x03\x01\x02\x00\x01", "timeout", b""),
        (b"", "timeout", b""),
    ],
)
def test_what_is_no_handshake_is_ended_and_counted(
    octets: bytes, result: str, answer: bytes
) -> None:
    listener = replace(LISTENER, timeouts=ListenerTimeouts(header=0.3))
    with serving(listener=listener) as (proxy, _):
        with proxy.connect() as sock:
            sock.sendall(octets)
            assert read_all(sock).startswith(answer)
        until(lambda: handshakes(proxy, result) == 1, "a count")
        until(lambda: proxy.clients == 0, "the client's end")
        with connected(proxy) as good:
            assert ask(good)[1] == b"ok"


def test_who_leaves_during_a_handshake_is_forgotten() -> None:
    with serving() as (proxy, _):
        for _ in range(20):
            with proxy.connect() as sock:
                stall(sock)
        until(lambda: handshakes(proxy, "closed") == 20, "20 counts")
        until(lambda: proxy.clients == 0, "no client")


# Swapping


def changed(proxy: Proxy, tls: ListenerTls) -> Plans:
    plans: Plans = proxy._plans
    return replace(plans, listeners=(replace(proxy.listener, tls=tls),))


def test_a_new_certificate_is_shown_at_once_and_tickets_stay_good() -> None:
    new = replace(TLS, certificates=(CertificateRef("new", ("a.example",)),))
    with serving() as (proxy, _):
        context = trusting()
        with connected(proxy, context=context) as old:
            ask(old)
            proxy.install(changed(proxy, new))
            assert ask(old)[1] == b"ok"
            session = old.session
        with connected(proxy) as sock:
            assert "new.example" in shown(sock)
        with connected(proxy, context=context, session=session) as sock:
            assert sock.session_reused


def test_a_new_demand_holds_for_the_next_connection_and_ends_tickets() -> None:
    with serving() as (proxy, origin):
        context = trusting()
        with connected(proxy, context=context) as old:
            ask(old)
            session = old.session
            proxy.install(changed(proxy, REQUIRE))
            assert ask(old)[1] == b"ok"
        with (
            pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
            connected(proxy, context=context, session=session) as sock,
        ):
            ask(sock)
        assert len(origin.requests) == 2


# Bodies, and ends


def test_bodies_pass_both_ways() -> None:
    body = bytes(range(256)) * 16_384  # 4 MiB

    def echo(connection: Connection, number: int) -> None:
        request = connection.request()
        assert request is not None
        connection.send(response(request.partition(b"\r\n\r\n")[2]))

    with (
        Origin(echo) as origin,
        Proxy([origin], listener=replace(LISTENER, tls=TLS), material=MATERIAL) as proxy,
        connected(proxy) as sock,
    ):
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert ask(sock, head + body)[1] == body


def test_a_refused_upload_is_told_so_before_the_end() -> None:
    route = Route("small", upstream="app", body_max=1000)
    with serving(routes=[route]) as (proxy, _), connected(proxy) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n")
        sock.sendall(b"x" * 100_000)
        head, _ = read_response(sock)
        assert head.startswith(b"HTTP/1.1 413 ")
        until(lambda: sock.recv(100) == b"", "close_notify")


def test_a_client_that_does_not_read_is_paused() -> None:
    size = 32 * 1024 * 1024

    def flood(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            connection.send(b"x" * 65536)

    with (
        Origin(flood) as origin,
        Proxy([origin], listener=replace(LISTENER, tls=TLS), material=MATERIAL) as proxy,
        connected(proxy) as sock,
    ):
        sock.sendall(GET)
        until(lambda: proxy.clogged, "a clogged client")
        assert len(read_response(sock)[1]) == size


def test_curl_and_openssl_speak_to_it(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(MATERIAL["ca"])
    with serving() as (proxy, _):
        curl = subprocess.run(
            ["curl", "-sS", "--cacert", ca, "--connect-to", f"a.example:443:127.0.0.1:{proxy.port}",
             "https://a.example/"],
            capture_output=True, check=False, timeout=DEADLINE_S,
        )  # fmt: skip
        assert curl.stdout == b"ok", curl.stderr
        client = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{proxy.port}", "-CAfile", ca,
             "-servername", "x.wild.example", "-verify_hostname", "x.wild.example",
             "-verify_return_error", "-quiet"],
            input=GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
            capture_output=True, check=False, timeout=DEADLINE_S,
        )  # fmt: skip
        assert client.stdout.endswith(b"ok"), client.stderr


# What else comes by


def client_hello(name: str) -> bytes:
    """Return the first octets that a client sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting().wrap_bio(incoming, outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_name_in_odd_octets_ends_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.unraisablehook
    try:
        quiet_names()
        with serving() as (proxy, _):
            for octets in (b"\xffxample.org", b"\xc3\xa9ample.org"):
                with proxy.connect() as sock:
                    sock.sendall(client_hello("example.org").replace(b"example.org", octets))
                    assert read_all(sock)[:2] == b"\x15\x03"
            assert handshakes(proxy, "failed") == 2
    finally:
        sys.unraisablehook = before
    assert capfd.readouterr().err == ""


def test_a_hello_that_comes_octet_by_octet() -> None:
    with serving() as (proxy, _), proxy.connect() as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting().wrap_bio(incoming, outgoing, server_hostname="a.example")
        answer = b""
        sent = False
        while b"\r\n\r\nok" not in answer:
            try:
                if not sent:
                    tls.do_handshake()
                    tls.write(GET)
                    sent = True
                answer += tls.read(65536)
            except ssl.SSLWantReadError:
                for octet in outgoing.read():
                    raw.send(bytes([octet]))
                incoming.write(raw.recv(65536))
        assert handshakes(proxy, "ok") == 1


def test_a_tunnel_from_tls_to_tls() -> None:
    asking = (
        b"GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )

    def echo(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\nhello"
        )
        while data := connection.sock.recv(65536):
            connection.send(data)
        assert isinstance(connection.sock, ssl.SSLSocket)
        connection.sock.unwrap()

    with (
        tls_origin(echo) as origin,
        Proxy(
            [secure(origin)],
            listener=replace(LISTENER, tls=TLS),
            upstream=upstream(),
            material=MATERIAL,
        ) as proxy,
        connected(proxy) as sock,
    ):
        sock.sendall(asking)
        answer = b""
        while not answer.endswith(b"\r\n\r\nhello"):
            answer += sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 101 ")
        for size in (1, 20_000, 300_000):
            sock.sendall(b"x" * size)
            left = size
            while left:
                left -= len(sock.recv(65536))
        until(lambda: proxy.busy == 1, "a tunnel")
        sock.unwrap()
        until(lambda: proxy.busy == 0, "its end")
