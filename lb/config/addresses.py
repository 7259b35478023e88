"""Addresses as people write them: judged here once, for the file, the command line and the API."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

UNIX_PATH_MAX = 107  # What the kernel's sockaddr_un holds.
HOST_NAME_MAX = 253
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


class BadAddressError(ValueError):
    """No address. `hint` says what to write instead, if that can be known."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Address:
    """
    `host` and `port`, or `path` of a unix socket. Empty host: all addresses.

    `secure`: a backend that TLS is spoken with. `service`: `host` is a name whose SRV records say
    where its endpoints are, ports included.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    secure: bool = False
    service: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        if self.service:
            return f"srv://{self.host}"
        scheme = "https://" if self.secure else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it: a unix socket or a loopback address."""
        if self.path:
            return True
        return bool(self.host) and ipaddress.ip_address(self.host).is_loopback

    @property
    def is_everywhere(self) -> bool:
        """Whether it stands for every address of the machine."""
        return not self.path and self.host in {"", "0.0.0.0", "::"}


def listen_address(text: str) -> Address:
    """Read where to accept: `0.0.0.0:80`, `[::1]:80`, `:80` (all addresses) or `unix:/path`."""
    if text.startswith("unix:"):
        return Address(path=_unix_path(text))
    host, port = _host_and_port(text, "8080")
    if host == "*":
        raise BadAddressError(f'"{text}" is not an address', f'write ":{port}" for all addresses')
    if host == "localhost":
        # A name may resolve to several addresses, today others than tomorrow.
        raise BadAddressError("a name cannot be listened on", f'write "127.0.0.1:{port}"')
    if host:
        try:
            host = str(ipaddress.ip_address(host))
        except ValueError:
            raise BadAddressError(
                f'"{host}" is not an IP address', f'write ":{port}" for all addresses'
            ) from None
    return Address(host=host, port=port)


def backend_address(text: str) -> Address:
    """
    Read where a backend is: `host:port`, `[ip6]:port`, `https://host:port`, `unix:/path`, or
    `srv://_http._tcp.name`.
    """
    if text.startswith("unix:"):
        return Address(path=_unix_path(text))
    if text.startswith("srv://"):
        return Address(host=_service(text), service=True)
    scheme, mark, rest = text.partition("://")
    secure = scheme == "https" and bool(mark)
    if secure:
        host, slash, _ = rest.partition("/")
        if slash:
            raise BadAddressError(f'"{text}" is not an address', f'write "https://{host}"')
        text = rest
    elif mark:
        bare = rest.split("/")[0]
        raise BadAddressError(f'"{text}" is not an address', f'write "{bare}"' if bare else "")
    host, port = _host_and_port(text, "443" if secure else "80")
    if not host:
        raise BadAddressError(f'"{text}" names no host', f'write "127.0.0.1:{port}"')
    try:
        return Address(host=str(ipaddress.ip_address(host)), port=port, secure=secure)
    except ValueError:
        pass  # Not an IP address: then it must be a name.
    if not is_host_name(host):
        raise BadAddressError(f'"{host}" is neither an IP address nor a host name')
    return Address(host=host.lower(), port=port, secure=secure)


def _service(text: str) -> str:
    name = text.removeprefix("srv://").rstrip("/").removesuffix(".").lower()
    labels = name.split(".")
    if not is_host_name(name) or len(labels) < 3 or not name.startswith("_"):
        bare = name.rpartition(":")[0] if ":" in name else name
        hint = f'write "srv://{bare}"' if is_host_name(bare) and bare.startswith("_") else ""
        raise BadAddressError(
            f'"{text}" is not a service', hint or 'like "srv://_http._tcp.app.example"'
        )
    return name


def is_host_name(text: str) -> bool:
    """Whether this could be a name in DNS; one that ends in a number is a broken IP address."""
    labels = text.removesuffix(".").split(".")
    return (
        len(text) <= HOST_NAME_MAX
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()
    )


def _host_and_port(text: str, example: str) -> tuple[str, int]:
    if text.startswith("["):
        host, mark, port = text[1:].partition("]:")
        if not mark or ":" not in host:
            bracketed = text if text.endswith("]") else f"[{text.strip('[]')}]"
            raise BadAddressError(f'"{text}" is not an address', f'write "{bracketed}:{example}"')
    else:
        host, mark, port = text.rpartition(":")
        if not mark:
            hint = f'write "{text}:{example}"'
            if text.isdigit():
                hint = f'write ":{text}" or "127.0.0.1:{text}"'
            raise BadAddressError(f'"{text}" has no port', hint if text else "")
        if ":" in host:
            raise BadAddressError(f'"{text}" is not an address', "IPv6 goes in brackets: [::1]:80")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise BadAddressError(f'"{port}" is not a port', "1 to 65535")
    return host, int(port)


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if not path.startswith("/"):
        raise BadAddressError(
            f'"{text}" has no absolute path', f'write "unix:/{path.lstrip("./")}"'
        )
    if not path.isprintable():
        raise BadAddressError("a path here has no control characters")
    if len(path.encode()) > UNIX_PATH_MAX:
        raise BadAddressError(f"a unix socket's path has at most {UNIX_PATH_MAX} bytes")
    return path
