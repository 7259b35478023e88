"""TLS with backends: who is believed, and what is sent to nobody else."""

from __future__ import annotations

import socket
import ssl
from dataclasses import replace

import pytest
import trustme

from wire.kit import (
    Connection,
    Origin,
    Proxy,
    answering,
    read_response,
    response,
    until,
)
from wire.tls_kit import (
    BACKEND,
    GET,
    MATERIAL,
    STRANGER,
    secure,
    tls_origin,
    upstream,
)


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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_new_connection_resumes_the_session_of_the_one_before(version: ssl.TLSVersion) -> None:
    """A full handshake costs both sides ten times as much; who cannot resume makes one."""
    reused: list[bool | None] = []

    def script(connection: Connection, number: int) -> None:
        assert isinstance(connection.sock, ssl.SSLSocket)
        reused.append(connection.sock.session_reused)
        if connection.request() is not None:
            connection.send(response())
            connection.request()  # Kept until the proxy lets go.

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    BACKEND.configure_cert(context)

    def secured(connection: Connection, number: int) -> None:
        connection.sock = context.wrap_socket(connection.sock, server_side=True)
        script(connection, number)

    with (
        Origin(secured) as origin,
        Proxy([secure(origin)], upstream=upstream(), material=MATERIAL) as proxy,
        proxy.connect() as sock,
    ):
        for count in range(1, 4):
            sock.sendall(GET)
            assert read_response(sock)[1] == b"ok"
            assert len(reused) == count
            until(lambda: proxy.idle == 1, "the connection kept")
            origin.connections[-1].close()
            until(lambda: proxy.idle == 0, "the connection gone")
        assert reused == [False, True, True]
        # Other terms: what was agreed on by the old ones is not taken up again.
        policy = upstream(name="backend.example")
        proxy.install(replace(proxy._plans, upstreams=(policy,)))
        sock.sendall(GET)
        assert read_response(sock)[1] == b"ok"
        assert reused == [False, True, True, False]
