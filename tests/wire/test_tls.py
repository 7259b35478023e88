"""TLS on the wire: who is let in, what goes on, and what a handshake that fails leaves behind."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from cryptography import x509

from lb.model import (
    CertificateRef,
    Endpoint,
    Listener,
    ListenerTimeouts,
    ListenerTls,
    Plans,
    Route,
    Upstream,
    UpstreamTls,
)
from lb.proxy.tls_contexts import distinguished_name, quiet_names
from wire.kit import (
    DEADLINE_S,
    LISTENER,
    Connection,
    Origin,
    Proxy,
    answering,
    read_all,
    read_response,
    response,
    until,
)

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
CA = trustme.CA()
OTHER_CA = trustme.CA()


def pem_of(cert: trustme.LeafCert) -> bytes:
    return cert.private_key_and_cert_chain_pem.bytes()


CLIENT = CA.issue_cert("client.example", common_name='me, "I" é')
STRANGER = OTHER_CA.issue_cert("client.example")
BACKEND = CA.issue_cert("127.0.0.1", "backend.example")
MATERIAL = {
    "a": pem_of(CA.issue_cert("a.example")),
    "wild": pem_of(CA.issue_cert("*.wild.example")),
    "new": pem_of(CA.issue_cert("new.example", "a.example")),
    "client": pem_of(CLIENT),
    "ca": CA.cert_pem.bytes(),
    "other": OTHER_CA.cert_pem.bytes(),
}
TLS = ListenerTls(
    (CertificateRef("a", ("a.example",)), CertificateRef("wild", ("*.wild.example",)))
)
REQUIRE = replace(TLS, client_auth="require", client_ca="ca")


class Served(NamedTuple):
    proxy: Proxy
    origin: Origin


@contextmanager
def serving(
    tls: ListenerTls = TLS, listener: Listener = LISTENER, **more: object
) -> Iterator[Served]:
    """Serve TLS in front of an origin that answers `ok`."""
    with (
        Origin(answering(response())) as origin,
        Proxy([origin], listener=replace(listener, tls=tls), material=MATERIAL, **more) as proxy,  # type: ignore[arg-type]
    ):
        yield Served(proxy, origin)


def trusting(cert: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """Make a client's context that trusts our authority, and may have a certificate."""
    context = ssl.create_default_context(cadata=MATERIAL["ca"].decode())
    if cert is not None:
        cert.configure_cert(context)
    return context


@contextmanager
def connected(
    proxy: Proxy,
    name: str | None = "a.example",
    context: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> Iterator[ssl.SSLSocket]:
    context = context or trusting()
    context.check_hostname = False
    with (
        proxy.connect() as raw,
        context.wrap_socket(raw, server_hostname=name, session=session) as sock,
    ):
        yield sock


def shown(sock: ssl.SSLSocket) -> set[str]:
    """Return the names in the certificate that the other side showed."""
    der = sock.getpeercert(binary_form=True)
    assert der is not None
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return set(names.value.get_values_for_type(x509.DNSName))


def handshakes(proxy: Proxy, result: str) -> float:
    by_result = proxy.reading.refresh().by("lb_tls_handshakes_total", "result")
    return by_result.get((result,), 0)


def ask(sock: ssl.SSLSocket, octets: bytes = GET) -> tuple[bytes, bytes]:
    sock.sendall(octets)
    return read_response(sock)


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


# Backends


def tls_origin(
    script: Callable[[Connection, int], None],
    cert: trustme.LeafCert = BACKEND,
    *,
    asks: bool = False,
) -> Origin:
    """Make a backend that speaks TLS, and wants our certificate if it `asks`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=MATERIAL["ca"].decode())

    def secured(connection: Connection, number: int) -> None:
        connection.sock = context.wrap_socket(connection.sock, server_side=True)
        script(connection, number)

    return Origin(secured)


def secure(origin: Origin, host: str = "127.0.0.1", key: str = "") -> Endpoint:
    address = f"https://{origin.address}"
    return Endpoint(key or address, address, host=host)


def upstream(**tls: object) -> Upstream:
    return Upstream("app", tls=UpstreamTls(**({"ca": "ca"} | tls)))  # type: ignore[arg-type]


def test_a_backend_over_tls_is_pooled_as_others() -> None:
    with (
        tls_origin(answering(response())) as origin,
        Proxy([secure(origin)], upstream=upstream(), material=MATERIAL) as proxy,
        proxy.connect() as sock,
    ):
        for _ in range(5):
            sock.sendall(GET)
            assert read_response(sock)[1] == b"ok"
        assert len(origin.connections) == 1
        assert proxy.idle == 1


@pytest.mark.parametrize(
    ("cert", "host", "tls", "words"),
    [
        (BACKEND, "wrong.example", {}, "hostname mismatch"),
        (BACKEND, "127.0.0.1", {"name": "wrong.example"}, "hostname mismatch"),
        (STRANGER, "client.example", {}, "unable to get local issuer certificate"),
        (BACKEND, "127.0.0.1", {"ca": ""}, "unable to get local issuer certificate"),
    ],
)
def test_who_cannot_prove_its_name_gets_no_request(
    cert: trustme.LeafCert, host: str, tls: dict[str, object], words: str
) -> None:
    with (
        tls_origin(answering(response()), cert) as origin,
        Proxy([secure(origin, host)], upstream=upstream(**tls), material=MATERIAL) as proxy,
    ):
        answer = proxy.talk(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

        assert answer.startswith(b"HTTP/1.1 502 ")
        assert words in answer.decode().lower()
        assert not origin.requests
        kinds = proxy.reading.refresh().by("lb_backend_errors_total", "kind")
        assert kinds[("tls",)] >= 1


@pytest.mark.parametrize("host", ["127.0.0.1", "backend.example"])
@pytest.mark.parametrize("name", ["", "backend.example"])
def test_the_name_to_expect_is_the_addresses_or_the_files(host: str, name: str) -> None:
    with (
        tls_origin(answering(response())) as origin,
        Proxy([secure(origin, host)], upstream=upstream(name=name), material=MATERIAL) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET)
        assert read_response(sock)[1] == b"ok"


def test_a_post_goes_elsewhere_since_nothing_was_sent() -> None:
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    with (
        tls_origin(answering(response()), STRANGER) as bad,
        tls_origin(answering(response())) as good,
        Proxy([secure(bad), secure(good)], upstream=upstream(), material=MATERIAL) as proxy,
        proxy.connect() as sock,
    ):
        for _ in range(4):
            sock.sendall(post)
            assert read_response(sock)[1] == b"ok"
        assert len(good.requests) == 4
        assert not bad.requests


def test_a_backend_in_plain_text_is_never_spoken_to_so() -> None:
    heard = []

    def plain(connection: Connection, number: int) -> None:
        heard.append(connection.sock.recv(65536))
        connection.send(response())

    with (
        Origin(plain) as origin,
        Proxy([secure(origin)], upstream=upstream(), material=MATERIAL) as proxy,
    ):
        assert proxy.talk(GET[:-2] + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    assert heard
    assert not any(b"HTTP" in each for each in heard)


def test_without_verification_anyone_will_do() -> None:
    with (
        tls_origin(answering(response()), STRANGER) as origin,
        Proxy([secure(origin)], upstream=upstream(verify=False, ca=""), material=MATERIAL) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET)
        assert read_response(sock)[1] == b"ok"


@pytest.mark.parametrize("certificate", ["client", ""])
def test_a_backend_may_want_our_certificate(certificate: str) -> None:
    with (
        tls_origin(answering(response()), asks=True) as origin,
        Proxy(
            [secure(origin)], upstream=upstream(certificate=certificate), material=MATERIAL
        ) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET)
        head, _ = read_response(sock)
        assert head.startswith(b"HTTP/1.1 200 " if certificate else b"HTTP/1.1 502 ")


def test_a_body_cut_off_without_a_word_of_tls_is_no_whole_one() -> None:
    def cut(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf a bo")
        connection.sock.shutdown(socket.SHUT_RDWR)

    with (
        tls_origin(cut) as origin,
        Proxy([secure(origin)], upstream=upstream(), material=MATERIAL) as proxy,
    ):
        answer = proxy.talk(GET)
        assert b"half a bo" in answer
        assert not answer.endswith(b"0\r\n\r\n")


def test_a_body_that_ends_with_the_connection_is_whole_after_close_notify() -> None:
    def end(connection: Connection, number: int) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        assert isinstance(connection.sock, ssl.SSLSocket)
        connection.sock.unwrap()

    with (
        tls_origin(end) as origin,
        Proxy([secure(origin)], upstream=upstream(), material=MATERIAL) as proxy,
    ):
        assert proxy.talk(GET[:-2] + b"Connection: close\r\n\r\n").endswith(b"0\r\n\r\n")


def test_tickets_that_come_late_leave_a_connection_fresh() -> None:
    """TLS 1.3 sends them after the handshake: octets that are no answer to anything."""
    with (
        tls_origin(answering(response())) as origin,
        Proxy([secure(origin)], upstream=upstream(), material=MATERIAL) as proxy,
    ):
        # Whoever asked is gone before the connection stands: so it is pooled before it was used.
        proxy.lose_client_while_connecting(GET)
        until(lambda: proxy.idle == 1, "a pooled connection")
        with proxy.connect() as sock:
            sock.sendall(GET)
            assert read_response(sock)[1] == b"ok"
        assert len(origin.connections) == 1


def test_other_terms_are_for_new_connections_at_once() -> None:
    with (
        tls_origin(answering(response())) as origin,
        Proxy([secure(origin)], upstream=upstream(), material=MATERIAL) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(GET)
        assert read_response(sock)[1] == b"ok"
        proxy.install(replace(proxy._plans, upstreams=(upstream(ca="other"),)))
        assert proxy.idle == 0
        sock.sendall(GET)
        assert read_response(sock)[0].startswith(b"HTTP/1.1 502 ")


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
