"""Certificates and keys that are in memory, given to a library that only reads files."""

from __future__ import annotations

import os
import ssl


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


def _no_passphrase() -> bytes:
    return b""
