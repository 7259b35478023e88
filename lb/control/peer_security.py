"""What guards the connections between members: the group's own TLS, its secret, or loopback.

Reads files and makes contexts; who a certificate names is judged here, whom to believe is not.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from typing import Any, Final

from lb.config.certificates import BadCertificateError, Bundle, Pair, read_bundle, read_pair
from lb.control.peer_handshake import Mode
from lb.errors import OperatorError
from lb.pem import load_pair

SECRETS_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class Files:
    """Where a member's certificate lies, its key, and the authority of its group."""

    cert: str
    key: str
    ca: str


@dataclass(slots=True)
class Security:
    """
    Made by `none`, `secret` or `tls`; `reload` and `take` change it for handshakes to come.

    Which of the three it is stays as it is: that needs a restart.
    """

    mode: Mode
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    files: Files | None = None
    _read: tuple[Pair, Bundle] | None = field(default=None, repr=False)
    _server: ssl.SSLContext | None = field(default=None, repr=False)
    _client: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def none(cls) -> Security:
        """Only this machine: neither end of a connection may be elsewhere."""
        return cls(Mode.NONE)

    @classmethod
    def secret(cls, secrets: tuple[bytes, ...]) -> Security:
        """One secret that all members have; two while it changes. The first is the one sent."""
        _judge(secrets)
        return cls(Mode.SECRET, secrets)

    @classmethod
    def tls(cls, cert: str, key: str, ca: str) -> Security:
        """Certificates of the group's own authority. OperatorError: they cannot be used."""
        made = cls(Mode.TLS, files=Files(cert, key, ca))
        made.reload()
        return made

    def reload(self) -> bool:
        """
        Read the files again and say whether they brought anything new.

        OperatorError: they cannot be used, and what was read before stays in use. It reads from
        the disk, so it belongs on a thread.
        """
        if self.files is None:
            return False
        now = time.time()  # noqa: TID251 - a certificate is judged by the day it is
        read = read_pair(self.files.cert, self.files.key, now), read_bundle(self.files.ca)
        if read == self._read:
            return False
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, *read)
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, *read)
        self._read = read
        return True

    def take(self, other: Security) -> None:
        """Go on with another's secrets or files, which a new configuration named."""
        if other.mode is not self.mode:
            raise OperatorError(
                "what guards the group's connections changes only with a restart",
                "restart the instances one after another",
            )
        self.secrets, self.files, self._read = other.secrets, other.files, other._read
        self._server, self._client = other._server, other._client

    @property
    def server(self) -> ssl.SSLContext | None:
        """What to answer TLS with; None where there is no TLS."""
        return self._server

    @property
    def client(self) -> ssl.SSLContext | None:
        """What to dial with."""
        return self._client


def names_of(certificate: dict[str, Any]) -> tuple[str, ...]:
    """Return whom a verified certificate names: its subject's common name and its DNS names."""
    common = [
        value
        for part in certificate.get("subject", ())
        for key, value in part
        if key == "commonName"
    ]
    others = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return tuple(dict.fromkeys([*common, *others]))


def _judge(secrets: tuple[bytes, ...]) -> None:
    if not secrets or not all(secrets):
        raise OperatorError("the group's secret is empty", "openssl rand -hex 32 makes a good one")
    if len(secrets) > SECRETS_MAX:
        raise OperatorError(
            f"{len(secrets)} secrets of the group",
            f"{SECRETS_MAX} at most: the one in use, and the one before or after it",
        )


def _context(side: int, pair: Pair, authority: Bundle) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # Names of members are no host names: see `names_of`.
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # The group's authority alone: a context of this kind knows none of the system's.
        context.load_verify_locations(cadata=authority.pem.decode())
        load_pair(context, pair.pem)
    except ssl.SSLError as error:
        raise BadCertificateError(f"TLS of the group: {error.reason or error}") from None
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # Every connection shows its certificate.
        context.options |= ssl.OP_NO_TICKET
    return context
