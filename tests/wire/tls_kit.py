"""Certificates, and both ends of TLS, for the wire tests of it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import trustme
from cryptography import x509

from lb.model import (
    CertificateRef,
    Endpoint,
    Listener,
    ListenerTls,
    Upstream,
    UpstreamTls,
)
from wire.kit import (
    LISTENER,
    Connection,
    Origin,
    Proxy,
    answering,
    read_response,
    response,
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
