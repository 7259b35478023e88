"""The kinds of values that speak of requests: hosts, paths, methods, headers, statuses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_network
from typing import Any

from lb.config.addresses import is_host_name
from lb.config.kinds import NAME, Choice, Kind, is_number, nearest, shown, wrong
from lb.errors import ClientError
from lb.routing import normal_pattern

METHODS = (
    *("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"),
    *("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "SEARCH", "REPORT"),
    *("PURGE", "LINK", "UNLINK", "MKACTIVITY", "CHECKOUT", "MERGE", "NOTIFY", "SUBSCRIBE"),
    *("UNSUBSCRIBE", "BIND", "REBIND", "UNBIND", "ACL", "MKCALENDAR", "M-SEARCH", "SOURCE"),
)
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(r"/[!-~]*")
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h|d)")
_RATE_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NUMBER_MAX = 1e15
MISSPELT = 0.75  # So near to a word of ours that no plugin is meant.
_STATUSES = re.compile(r"(\d{3})(?:-(\d{3}))?")


@dataclass(frozen=True, slots=True)
class OrPlugin(Kind):
    """One of a few words, or the name of something that a plugin brings."""

    options: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        """Say in words what may stand here."""
        return f"{Choice(self.options, self.also).describe()}, or a plugin's"

    def read(self, value: object) -> str:
        """Take a word of ours, or a name: whether a plugin has that is seen later."""
        text = dict(self.also).get(self.text(value), self.text(value))
        misspelt = get_close_matches(text, self.options, n=1, cutoff=MISSPELT)
        if text not in self.options and (misspelt or NAME.fullmatch(text) is None):
            return str(Choice(self.options, self.also).read(value))
        return text


@dataclass(frozen=True, slots=True)
class UrlPath(Kind):
    """What a request asks for: a path, with a query where `query` allows one."""

    query: bool = False
    words = 'path, like "/healthz"'

    def read(self, value: object) -> str:
        """Take a path as it stands in a request line."""
        text = self.text(value)
        if not _PATH.fullmatch(text) or "#" in text:
            fits = text and not text.startswith("/") and _PATH.fullmatch("/" + text)
            raise wrong(f"{shown(text)} is not a path", f'write "/{text}"' if fits else 'like "/x"')
        path, mark, _ = text.partition("?")
        if mark and not self.query:
            raise wrong("this path cannot have a query", f'write "{path}"')
        return text


@dataclass(frozen=True, slots=True)
class PathPattern(Kind):
    """Which paths a route is for: a prefix, `=` and a path, or `~` and a regular expression."""

    words = 'path, like "/v1/", "=/x", "~^/x$"'

    def read(self, value: object) -> str:
        """Take a pattern that could match something."""
        text = self.text(value)
        if not text.startswith("~"):
            UrlPath().read(text.removeprefix("="))
            try:
                normal_pattern(text)
            except ClientError as error:
                raise wrong(f"no request can have this path: {error.message}") from None
            return text
        try:
            re.compile(text[1:])
        except (re.error, RecursionError, OverflowError) as error:
            raise wrong(f"not a regular expression: {error}") from None
        return text


@dataclass(frozen=True, slots=True)
class Method(Kind):
    """A method that we pass on; methods differ by case."""

    words = 'method, like "GET"'

    def read(self, value: object) -> str:
        """Take one of the methods that the parser knows; others are answered with 501."""
        text = self.text(value)
        if text not in METHODS:
            upper = f'write "{text.upper()}"' if text.upper() in METHODS else ""
            hint = upper or nearest(text.upper(), list(METHODS))
            raise wrong(f"{shown(text)} is not a method", hint)
        return text


@dataclass(frozen=True, slots=True)
class Network(Kind):
    """Addresses of clients: a network, one address, or those of a socket file."""

    words = 'network, like "10.0.0.0/8"'

    def read(self, value: object) -> str:
        """Take a network in its canonical form, or the word "unix"."""
        text = self.text(value)
        if text == "unix":
            return text
        try:
            return str(ip_network(text))
        except ValueError as error:
            hint = "the network's own address ends in zeros" if "host bits" in str(error) else ""
            raise wrong(f"{shown(text)} is not a network", hint) from None


@dataclass(frozen=True, slots=True)
class UpgradeToken(Kind):
    """A protocol that a request may ask to become, in lower case."""

    words = 'protocol, like "websocket"'

    def read(self, value: object) -> str:
        """Take a token; h2c would go past routes, limits and logs, so it never goes on."""
        text = self.text(value).lower()
        if text == "h2c":
            raise wrong('"h2c" is never passed on', "requests inside it could not be routed")
        if TOKEN.fullmatch(text.partition("/")[0]) is None:
            raise wrong(f"{shown(text)} is not a protocol's name")
        return text


@dataclass(frozen=True, slots=True)
class HeaderName(Kind):
    """The name of a header, in lower case, as heads are compared."""

    words = "header name"

    def read(self, value: object) -> str:
        """Take a token."""
        text = self.text(value)
        if not TOKEN.fullmatch(text):
            raise wrong(f"{shown(text)} is not the name of a header")
        return text.lower()


@dataclass(frozen=True, slots=True)
class Rate(Kind):
    """How often: a number, and of what time."""

    words = 'rate, like "100/s", "30/m"'

    def read(self, value: object) -> float:
        """Take a rate; return times a second."""
        if is_number(value):
            raise wrong(f"{shown(value)} has no unit", f'write "{value}/s"')
        text = self.text(value)
        found = _RATE.fullmatch(text.replace(" ", ""))
        if found is None or not float(found[1]):
            raise wrong(f"{shown(text)} is not a rate", 'like "100/s", "30/m", "5000/h"')
        return float(found[1]) / _RATE_SECONDS[found[2]]

    def write(self, value: float) -> str:
        """Write it in the unit that makes the shortest text."""
        exact = [f"{value * seconds:.12g}/{unit}" for unit, seconds in _RATE_SECONDS.items()]
        return min(exact, key=len)

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "string", "pattern": r"^\d+(\.\d+)?/[smhd]$"}


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """Any number."""

    words = "number"

    def read(self, value: object) -> float:
        """Take a number that is one."""
        if not is_number(value) or not -NUMBER_MAX <= value <= NUMBER_MAX:  # type: ignore[operator]
            raise wrong(f"{shown(value)} is not a number")
        return float(value)  # type: ignore[arg-type]

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "number"}


@dataclass(frozen=True, slots=True)
class Statuses(Kind):
    """Statuses and ranges of them, parted by commas."""

    words = 'statuses, like "200-399" or "200,204"'

    def read(self, value: object) -> str:
        """Take them, one status as a bare number too."""
        text = str(value) if isinstance(value, int) else self.text(value)
        for part in text.split(","):
            found = _STATUSES.fullmatch(part.strip())
            if found is None or not 100 <= int(found[1]) <= int(found[2] or found[1]) <= 599:
                raise wrong(f"{shown(part.strip())} is not a status", 'like "200-399"')
        return text.replace(" ", "")


@dataclass(frozen=True, slots=True)
class BackendHost(Kind):
    """What Host the backend sees: `keep`, `backend` or a name, with a port if need be."""

    words = '"keep", "backend" or a host name'

    def read(self, value: object) -> str:
        """Take a word or what can stand in a Host header."""
        text = self.text(value)
        if not re.fullmatch(r"[A-Za-z0-9_.:\[\]-]+", text):
            raise wrong(f"{shown(text)} is not a host")
        return text


@dataclass(frozen=True, slots=True)
class HostPattern(Kind):
    """A host that a route is for: a name, an IP address, or `*.` and a name."""

    words = 'host, like "api.example.com", "*.example.com"'

    def read(self, value: object) -> str:
        """Take a host without port, in lower case."""
        text = self.text(value).lower()
        if text == "*":
            raise wrong('"*" is no host', "leave host out to match all")
        if not text.isascii():
            raise wrong(f"{shown(text)} is not ASCII", "write its xn-- form")
        if text.startswith("[") and text.endswith("]"):
            return text
        if not is_host_name(text.removeprefix("*.")) and not re.fullmatch(r"[0-9.]+", text):
            host, mark, _ = text.rpartition(":")
            hint = f'write "{host}"; ports do not count' if mark and host else ""
            raise wrong(f"{shown(text)} is not a host", hint)
        return text.removesuffix(".")


@dataclass(frozen=True, slots=True)
class RequestKey(Kind):
    """What of a request decides: the client's address, a header, a cookie, the path."""

    plain: tuple[str, ...]
    words = 'key, like "client_ip", "header:NAME", "cookie:NAME"'

    def read(self, value: object) -> str:
        """Take one of the plain words, or a source and a name."""
        text = self.text(value)
        if text in self.plain:
            return text
        source, _, name = text.partition(":")
        if source not in {"header", "cookie"}:
            known = ", ".join((*self.plain, "header:NAME", "cookie:NAME"))
            raise wrong(
                f"{shown(text)} is not one of {known}",
                nearest(text, [*self.plain, "header:NAME", "cookie:NAME"]),
            )
        if not TOKEN.fullmatch(name):
            raise wrong(f"{shown(name)} is not the name of a {source}", f'like "{source}:session"')
        return f"header:{name.lower()}" if source == "header" else text
