"""
Certificates, keys and authorities as they are on disk: read, and judged before anyone uses them.

What is wrong with one is said in the words of whoever made it: which file, and what to do.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from lb.config.checks import Finding
from lb.config.positions import Path
from lb.config.schema import Config, GroupTls
from lb.errors import OperatorError
from lb.pem import load_pair

BYTES_MAX: Final = 1024 * 1024  # Of one file: the authorities of a whole system are a quarter.
LOOK_AGAIN: Final = 0.25  # Seconds between two looks at a pair that does not match.
MISMATCH: Final = "KEY_VALUES_MISMATCH"


class BadCertificateError(OperatorError):
    """Files that cannot be used. `key`: it is the key that is wrong; `match`: they do not fit."""

    def __init__(self, message: str, hint: str = "", *, key: bool = False, match: bool = True):
        super().__init__(message, hint)
        self.key = key
        self.match = match


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key; times are seconds since 1970."""

    digest: str
    names: tuple[str, ...]
    starts: float
    ends: float
    pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Certificates of authorities."""

    digest: str
    pem: bytes = field(repr=False)


def read_pair(cert: str, key: str, now: float) -> Pair:
    """Read a certificate and its key. BadCertificateError where they cannot be used."""
    chain, secret = _read(cert, key=False), _read(key, key=True)
    if b"ENCRYPTED" in secret:
        raise BadCertificateError(
            f"{key} wants a passphrase",
            f"openssl pkey -in {os.path.basename(key)} writes it without one",
            key=True,
        )
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        names, ends = _names(leaf), leaf.not_valid_after_utc
        starts = leaf.not_valid_before_utc
    except ValueError:
        raise BadCertificateError(f"{cert} holds no certificate in PEM") from None
    if b"PRIVATE KEY-----" not in secret:
        raise BadCertificateError(f"{key} holds no private key in PEM", key=True)
    pem = chain.rstrip() + b"\n" + secret
    _fit(pem, cert, key)
    if ends.timestamp() <= now:
        raise BadCertificateError(f"{cert} expired at {_day(ends)}", "renew it")
    return Pair(_digest(pem), names, starts.timestamp(), ends.timestamp(), pem)


def read_bundle(name: str) -> Bundle:
    """Read the certificates of authorities. BadCertificateError where there are none."""
    content = _read(name, key=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        found = x509.load_pem_x509_certificates(content)
        # In canonical form: the files that systems ship have comments in any encoding.
        pem = "".join(ssl.DER_cert_to_PEM_cert(each.public_bytes(Encoding.DER)) for each in found)
        context.load_verify_locations(cadata=pem)
    except (ValueError, ssl.SSLError):
        raise BadCertificateError(f"{name} holds no certificates in PEM") from None
    return Bundle(_digest(pem.encode()), pem.encode())


def pairs_of(config: Config) -> set[tuple[str, str]]:
    """Name all certificates that a config shows to anyone, each with its key."""
    shown = {(pair.cert, pair.key) for each in config.listener.values() for pair in each.tls}
    shown |= {(each.cert, each.key) for each in (config.admin.tls, group_tls(config)) if each}
    return shown | {
        (each.tls.cert, each.tls.key) for each in config.upstream.values() if each.tls.cert
    }


def bundles_of(config: Config) -> set[str]:
    """Name all files of authorities."""
    clients = {each.client_ca for each in config.listener.values() if each.client_ca}
    if config.admin.tls and config.admin.tls.client_ca:
        clients.add(config.admin.tls.client_ca)
    if tls := group_tls(config):
        clients.add(tls.ca)
    return clients | {each.tls.ca for each in config.upstream.values() if each.tls.ca}


def group_tls(config: Config) -> GroupTls | None:
    """Return what members know each other by, if it is certificates."""
    return config.group.tls if config.group else None


def check_certificates(
    config: Config, tree: Mapping[str, Any], patience: float
) -> tuple[list[Finding], list[str]]:
    """
    Say what is wrong with files that a config names, and what is only odd.

    `tree` is the config as it was written; `patience` is for pairs that do not match.
    """
    until = time.monotonic() + patience
    while True:
        findings, hopeful = [], False
        for path, error in _errors(config, tree):
            findings.append(Finding(path, error.message, error.hint))
            hopeful |= not error.match
        if not hopeful or time.monotonic() >= until:
            return findings, list(_oddities(config)) if not findings else []
        time.sleep(LOOK_AGAIN)


def _errors(config: Config, tree: Mapping[str, Any]) -> Iterator[tuple[Path, BadCertificateError]]:
    now = time.time()  # noqa: TID251 - a certificate is judged by the day it is
    for name, listener in config.listener.items():
        several = isinstance(tree.get("listener", {}).get(name, {}).get("tls"), list)
        for index, pair in enumerate(listener.tls):
            where: Path = ("listener", name, "tls", *([index] if several else []))
            try:
                read_pair(pair.cert, pair.key, now)
            except BadCertificateError as error:
                yield (*where, "key" if error.key else "cert"), error
        if listener.client_ca:
            try:
                read_bundle(listener.client_ca)
            except BadCertificateError as error:
                yield ("listener", name, "client_ca"), error
    for path, cert, secret, authority, ca in _others(config):
        key = "cert"
        try:
            if cert:
                read_pair(cert, secret, now)
            key = authority
            if ca:
                read_bundle(ca)
        except BadCertificateError as error:
            yield (*path, "key" if error.key else key), error


def _others(config: Config) -> Iterator[tuple[Path, str, str, str, str | None]]:
    """Yield the tables but listeners' with their certificate, its key, and their authorities."""
    if tls := config.admin.tls:
        yield ("admin", "tls"), tls.cert, tls.key, "client_ca", tls.client_ca
    if group := group_tls(config):
        yield ("group", "tls"), group.cert, group.key, "ca", group.ca
    for name, upstream in config.upstream.items():
        where: Path = ("upstream", name, "tls")
        yield where, upstream.tls.cert, upstream.tls.key, "ca", upstream.tls.ca


def _oddities(config: Config) -> Iterator[str]:
    now = time.time()  # noqa: TID251 - see above
    for cert, key in sorted(pairs_of(config)):
        pair = read_pair(cert, key, now)
        if pair.starts > now:
            yield f"{cert} is not valid yet, by this machine's clock"
        if os.stat(key).st_mode & 0o007:
            yield f"{key} may be read by everybody on this machine"
    if tls := group_tls(config):
        names = read_pair(tls.cert, tls.key, now).names
        if config.node.name.lower() not in names:
            yield (
                f"{tls.cert} is for {', '.join(names) or 'nobody'}: others of the group"
                f' will not take it for "{config.node.name}"'
            )


def _read(name: str, *, key: bool) -> bytes:
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(BYTES_MAX + 1)
    except FileNotFoundError:
        raise BadCertificateError(f"{name}: no such file", key=key) from None
    except PermissionError:
        raise BadCertificateError(
            f"{name}: the user that runs lb may not read it", key=key
        ) from None
    except OSError as error:
        raise BadCertificateError(f"{name} cannot be read: {error.strerror}", key=key) from None
    if len(content) > BYTES_MAX:
        raise BadCertificateError(f"{name} is larger than 1 MiB", key=key)
    return content


def _fit(pem: bytes, cert: str, key: str) -> None:
    try:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pem)
    except ssl.SSLError as error:
        if error.reason == MISMATCH:
            raise BadCertificateError(
                f"{key} is not the key of {cert}",
                "the certificate comes first in its file, then its chain",
                match=False,
            ) from None
        reason = (error.reason or "not in PEM").replace("_", " ").lower()
        raise BadCertificateError(f"{cert} and {key} cannot be used: {reason}") from None


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    """Say whom a certificate is for; its common name counts only where it says no more."""
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        common = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(str(each.value).lower() for each in common[:1])
    return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _day(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
