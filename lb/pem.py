"""Certificates: those in memory given to a library that only reads files, and subjects in words."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from typing import Final

_SPECIAL: Final = frozenset(',+"\\<>;=')
_SHORT: Final = {  # RFC 4514 3
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}


def load_pair(context: ssl.SSLContext, pem: bytes) -> None:
    """
    Load a certificate, its chain and its key. ssl.SSLError where they do not fit or are none.

    They pass through a file that has no name and is gone at the end. A key that wants a
    passphrase is refused: OpenSSL would ask the terminal for it.
    """
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    with open(fd, "wb", buffering=0) as file:
        file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=_no_passphrase)


def distinguished_name(subject: Iterable[Iterable[tuple[str, str]]]) -> bytes:
    """Write a subject as RFC 4514 has it, most special first, in ASCII that no header breaks on."""
    parts = [
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in each)
        for each in subject
    ]
    return ",".join(reversed(parts)).encode("ascii")


def _no_passphrase() -> bytes:
    return b""


def _escaped(value: str) -> str:
    """Escape by RFC 4514 2.4; what is not plain ASCII by the hex of its octets."""
    out = []
    for at, letter in enumerate(value):
        outer = at in (0, len(value) - 1)
        if letter in _SPECIAL or (letter == " " and outer) or (letter == "#" and at == 0):
            out.append(f"\\{letter}")
        elif " " <= letter <= "~":
            out.append(letter)
        else:
            out.append("".join(f"\\{octet:02X}" for octet in letter.encode()))
    return "".join(out)
