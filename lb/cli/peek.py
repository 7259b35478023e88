"""What a config file says of its instance's admin address, read without the daemon's eyes.

pydantic would take longer than a whole command may, and a file with errors must not keep anyone
from asking the instance how it is.
"""

from __future__ import annotations

import os
import re
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from glob import glob

from lb.cli.output import say
from lb.config.environment import replace
from lb.errors import UsageError

DEFAULT_ADMIN = "127.0.0.1:9900"
FILE_BYTES_MAX = 1024 * 1024
INCLUDES_DEEP_MAX = 8

_ADMIN_SECTION = re.compile(r"\s*\[\s*admin\s*\]\s*(#.*)?$")
_ADMIN_ADDRESS = re.compile(r"""\s*address\s*=\s*["']([^"']+)["']""")


@dataclass(frozen=True, slots=True)
class Named:
    """An admin address; with a certificate it speaks TLS, and shows that one."""

    address: str
    cert: str = ""


def named_by_config(given: str | None) -> Named | None:
    """Find `admin.address` in the config file that is meant."""
    for path in (given or os.environ.get("LB_CONFIG"), "lb.toml", "/etc/lb/lb.toml"):
        if not path:
            continue
        try:
            return named_in(path)
        except (OSError, UnicodeError) as error:
            if path == given:
                raise UsageError(f"{path} cannot be read: {error}", "see -c") from None
            if not isinstance(error, FileNotFoundError):
                say(f"{path} cannot be read, so its admin.address is not known: {error}")
            if path == os.environ.get("LB_CONFIG"):
                return None  # The file that is meant is known; others are not.
    return None


def named_in(path: str, depth: int = 0) -> Named | None:
    """Return what a config file, or one that it includes, says of `[admin]`."""
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(FILE_BYTES_MAX)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return _salvage(text)
    admin = tree.get("admin")
    if isinstance(admin, dict) and not {"address", "tls"}.isdisjoint(admin):
        address = admin.get("address")
        cert = _cert_in(path, admin.get("tls"))
        return Named(_expand(address) if isinstance(address, str) else DEFAULT_ADMIN, cert)
    for included in _includes(path, tree.get("include")) if depth < INCLUDES_DEEP_MAX else ():
        with suppress(OSError, UnicodeError):
            if found := named_in(included, depth + 1):
                return found
    return None


def _cert_in(path: str, tls: object) -> str:
    """Return the certificate that the instance shows, beside the file that names it."""
    cert = tls.get("cert") if isinstance(tls, dict) else None
    return os.path.join(os.path.dirname(path), _expand(cert)) if isinstance(cert, str) else ""


def _includes(path: str, include: object) -> list[str]:
    """Return the files that a file includes."""
    patterns = include if isinstance(include, list) else [include]
    folder = os.path.dirname(path)
    return [
        name
        for pattern in patterns
        if isinstance(pattern, str)
        for name in sorted(glob(os.path.join(folder, _expand(pattern))))
    ]


def _salvage(text: str) -> Named | None:
    """Find the address in a file that is not TOML at present: line by line."""
    inside = False
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            inside = _ADMIN_SECTION.match(line) is not None
        elif inside and (found := _ADMIN_ADDRESS.match(line)):
            return Named(_expand(found[1]))
    return None


def _expand(text: str) -> str:
    return replace(text, os.environ)[0]
