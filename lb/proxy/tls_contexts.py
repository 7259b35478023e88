"""
What a handshake goes by: certificates, authorities, versions, who must show a certificate.

A listener has one base context, and that alone decides what a client has to show, by which
versions, and whose tickets are honoured: from the context that a name leads to OpenSSL takes
the certificate, and the authorities that a client's own is checked by, which are the same in
all. So no name gets around `client_auth`. The base stays as long as
what it decides stays the same, or every new certificate would end all resumptions; a change
of it counts from the next connection on.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, Final

from lb.http1.replies import Reply
from lb.model import CertificateRef, ListenerTls, UpstreamTls
from lb.pem import distinguished_name, load_pair
from lb.proxy.plan import Slots, WorkerState
from lb.proxy.tls import App, TlsTransport

ALPN: Final = ["http/1.1"]
PLAIN_HTTP: Final = "HTTP_REQUEST"  # OpenSSL's word for who speaks it to a TLS port
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH: Final = {
    "none": ssl.CERT_NONE,
    "request": ssl.CERT_OPTIONAL,
    "require": ssl.CERT_REQUIRED,
}

Material = Mapping[str, bytes]  # PEM by digest.


class ServerTls:
    """TLS on one listener, in one worker."""

    def __init__(self, worker: WorkerState, listener: str) -> None:
        self._worker = worker
        self._policy: ListenerTls | None = None
        self._base: ssl.SSLContext
        self._default: ssl.SSLContext
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._asks = False  # clients for a certificate
        self.handshake_s = 0.0
        name = "lb_tls_handshakes_total"
        self._counts: Slots[tuple[str, str]] = Slots(
            lambda key: worker.meters.counter(
                name, listener=listener, result=key[0], version=key[1]
            )
        )

    def adopt(self, policy: ListenerTls, material: Material, handshake_s: float) -> None:
        """Go by this from the next connection on."""
        self.handshake_s = handshake_s
        before = self._policy
        if policy == before:
            return
        groups = _groups(policy.certificates)
        contexts = [_server_context(policy, group, material) for group in groups]
        if before is None or _demands(before) != _demands(policy):
            base = _server_context(policy, groups[0], material)
            base.sni_callback = self._choose
            self._base = base
        self._asks = policy.client_auth != "none"
        self._default = contexts[0]
        self._by_name = {}
        for group, context in zip(groups, contexts, strict=True):
            for name in group[0].names:
                self._by_name.setdefault(name, context)
        self._policy = policy

    def wrap(self, client: App) -> TlsTransport:
        """Return the protocol for a client's socket, `client` inside of it."""
        transport = TlsTransport(self._base, client, self, server=True)
        transport.deadline = monotonic() + self.handshake_s
        self._worker.deadlines.watch(transport)
        return transport

    # Called by transports.

    def shaken(self, transport: TlsTransport) -> None:
        """Count it, and see whom we have."""
        self._worker.deadlines.forget(transport)
        if self._asks:
            transport.subject = distinguished_name(transport.certificate.get("subject", ()))
        result = "resumed" if transport.resumed else "ok"
        self._worker.view[self._counts[result, transport.version]] += 1

    def failed(self, transport: TlsTransport, error: Exception | None) -> bytes:
        """Count it; say in HTTP what is wrong to who speaks that."""
        self._worker.deadlines.forget(transport)
        result = "failed"
        if isinstance(error, TimeoutError):
            result = "timeout"
        elif not isinstance(error, ssl.SSLError):
            result = "closed"
        self._worker.view[self._counts[result, ""]] += 1
        if isinstance(error, ssl.SSLError) and error.reason == PLAIN_HTTP:
            return self._worker.render(
                Reply(400, "client_error", "this port speaks TLS: write https://"),
                close=True,
                method=b"",
            )
        return b""

    def _choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Take the certificate for a name; the first one where none is for it."""
        context = None
        if name:
            name = name.lower().rstrip(".")
            context = self._by_name.get(name) or self._by_name.get(f"*.{name.partition('.')[2]}")
        tls.context = context or self._default


def client_context(policy: UpstreamTls, material: Material) -> ssl.SSLContext:
    """Make what handshakes with an upstream's backends go by."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not policy.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif policy.ca:
        context.load_verify_locations(cadata=material[policy.ca].decode())
    else:
        context.load_default_certs()
    if policy.certificate:
        load_pair(context, material[policy.certificate])
    context.set_alpn_protocols(ALPN)
    return context


def quiet_names() -> None:
    """
    Let nobody fill our log with names that are none.

    A name in octets that are not ASCII ends its handshake before `_choose` is asked, and Python
    would write a traceback to stderr, once for each time somebody sends it.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (
            isinstance(unraisable.exc_value, UnicodeDecodeError)
            and isinstance(unraisable.object, bytes)
        ):
            before(unraisable)

    sys.unraisablehook = hook


def _demands(policy: ListenerTls) -> tuple[str, str, str]:
    return policy.minimum, policy.client_auth, policy.client_ca


def _groups(certificates: Iterable[CertificateRef]) -> list[list[CertificateRef]]:
    """Put those of the same names together: kinds of key among which a handshake chooses."""
    groups: dict[frozenset[str], list[CertificateRef]] = {}
    for each in certificates:
        groups.setdefault(frozenset(each.names), []).append(each)
    return list(groups.values())


def _server_context(
    policy: ListenerTls, group: Iterable[CertificateRef], material: Material
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[policy.minimum]
    context.verify_mode = _CLIENT_AUTH[policy.client_auth]
    if policy.client_ca:
        context.load_verify_locations(cadata=material[policy.client_ca].decode())
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(ALPN)
    for each in group:
        load_pair(context, material[each.digest])
    return context
