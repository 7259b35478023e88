"""
Which upstream a request is for, by what its head says.

The most specific route wins among those that match as a whole: exact host, longest wildcard,
none; then exact path, longest prefix, longest regular expression, none; then more conditions
(a listener, methods, each header); then the name. All of that is decided when the router is
made: routes lie in the order in which they are asked, and the first that matches is the one.
A path is looked up, not compared with every route; only regular expressions are tried in turn.

Paths are matched in their normal form, so that no spelling gets around a rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final
from zlib import crc32

from lb.errors import ClientError
from lb.model import Listener, Route

Headers = Callable[[str], Sequence[str]]

HOST_LENGTH_MAX: Final = 255  # no longer name has an address (RFC 1035), so no wildcard is tried


class Kind(Enum):
    """What to do with a request."""

    FORWARD = "forward"
    RESPOND = "respond"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Match:
    """
    Where a request goes. One for each route, made beforehand: a look-up makes nothing.

    `upstream` is None where the route has a split: see `pick_share`.
    """

    kind: Kind
    route: Route | None = None
    upstream: str | None = None
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a route takes a request, or the first of its conditions that stands against it."""

    route: str
    matches: bool
    why: str


NOT_FOUND: Final = Match(Kind.NOT_FOUND)


class Router:
    """Finds the route of a request. Made once for each config; reads nothing else."""

    __slots__ = ("_routes", "_tables")

    def __init__(
        self, routes: Sequence[Route], listeners: Sequence[Listener], upstreams: Collection[str]
    ) -> None:
        only = next(iter(upstreams)) if len(upstreams) == 1 and not routes else None
        self._routes = tuple(routes)
        self._tables = {
            listener.name: _Table(
                [route for route in routes if _serves(route, listener.name)],
                _default(listener.upstream or only),
            )
            for listener in listeners
        }

    def route(self, listener: str, host: str, path: str, method: str, headers: Headers) -> Match:
        """
        Return what to do with a request.

        `host` is lower case and without port, `path` normal and without query, `headers` gives
        the values of all fields of a lower-case name. ClientError where the path is one route's
        as it stands, and another's for a server that takes `%2F` for a separator.
        """
        match = self._find(listener, host, path, method, headers)
        if "%2F" in path:
            other = _SLASHES.sub("/", path.replace("%2F", "/"))
            if self._find(listener, host, other, method, headers) != match:
                raise ClientError(400, "the path is two routes' at once: it has %2F in it")
        return match

    def _find(self, listener: str, host: str, path: str, method: str, headers: Headers) -> Match:
        table = self._tables.get(listener)
        if table is None:
            return NOT_FOUND
        match = table.find(host, path, method, headers)
        if match is not None:
            return match
        if table.has_methods:
            allow = table.allowed(host, path, headers)
            if allow:
                return Match(Kind.METHOD_NOT_ALLOWED, allow=allow)
        return table.default

    def single(self, listener: str) -> Match | None:
        """Return the one answer to all requests of a listener, None if there are several."""
        table = self._tables.get(listener)
        return NOT_FOUND if table is None else table.single

    def explain(
        self, listener: str, host: str, path: str, method: str, headers: Headers
    ) -> list[Reason]:
        """Say of each route why it takes this request or does not, the likeliest first."""
        name = host.removesuffix(".")
        return [
            _reason(route, listener, name, path, method, headers)
            for route in sorted(self._routes, key=_rank_of_route)
        ]


def pick_share(route: Route, key: bytes) -> str:
    """
    Return the upstream of a split that `key` belongs to, the same in every worker and instance.

    As a share grows it keeps its keys: shares lie end to end in the file's order.
    """
    # The `hash` policy stirs the same checksum in another way: were the two alike, one
    # percent of the clients would all meet on one backend.
    place = ((crc32(key) ^ 0x5BD1E995) * 0xD6E8FEB86659FD93 >> 32 & 0xFFFFFFFF) / 2**32
    for upstream, share in route.split:
        place -= share
        if place < 0:
            return upstream
    return route.split[-1][0]  # shares of 1 may sum to a hair under it


def conflicts(routes: Sequence[Route]) -> list[tuple[str, str]]:
    """
    Return pairs that nothing but their names could tell apart: each is an error.

    Of each route at most one pair, with the first like it: a thousand alike are not
    half a million errors.
    """
    found = []
    alike: dict[object, list[Route]] = {}
    for route in routes:
        conditions = (
            frozenset(route.hosts),
            normal_pattern(route.path),
            frozenset(route.methods),
            frozenset(route.headers),
        )
        others = alike.setdefault(conditions, [])
        for other in others:
            shared = set(route.listeners) & set(other.listeners)
            if shared or not route.listeners or not other.listeners:
                found.append((other.name, route.name))
                break
        others.append(route)
    return found


# --- The normal form of paths -----------------------------------------------------------------

_SPECIAL = re.compile(r"[%\\;]|//|/\.")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_SLASHES = re.compile("/{2,}")
_SEPARATORS = re.compile(r"\\|%2F|%5C")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normalise(target_path: str) -> str:
    """
    Return a path as rules see it: unreserved octets decoded, dot segments resolved, slashes merged.

    What one server would read as this path and another as that one is nobody's: ClientError.
    """
    if target_path[:1] != "/":
        raise ClientError(400, "the path does not begin with /")
    if not _SPECIAL.search(target_path):
        return target_path
    path = _ESCAPE.sub(_unescaped, target_path) if "%" in target_path else target_path
    kept: list[str] = []
    *inner, last = path[1:].split("/")
    for segment in inner:
        _enter(kept, segment)
    _enter(kept, last)
    if last in ("", ".", ".."):
        kept.append("")  # What these name is a folder.
    return "/" + "/".join(_without_empty(kept))


def normal_pattern(pattern: str | None) -> str | None:
    """
    Return a route's path in its normal form; `/v1/` becomes `/v1`, for both mean the same.

    ClientError if the pattern is a path that no request can have.
    """
    if pattern is None or pattern[:1] == "~":
        return pattern
    if pattern[:1] == "=":
        return "=" + normalise(pattern[1:])
    return normalise(pattern).rstrip("/") or "/"


def _unescaped(escape: re.Match[str]) -> str:
    digits = escape[1]
    if digits is None:
        raise ClientError(400, "the path has a % without two hex digits", "write % as %25")
    if digits == "00":
        raise ClientError(400, "the path has %00 in it")
    char = chr(int(digits, 16))
    return char if char in _UNRESERVED else f"%{digits.upper()}"


def _enter(kept: list[str], segment: str) -> None:
    """Go from one folder to the next. An empty segment stays, to be seen by `..`."""
    if segment == "..":
        if not kept:
            raise ClientError(400, "the path climbs above the root")
        if not kept.pop():
            # With slashes merged first this leads elsewhere than with dots resolved first.
            raise ClientError(400, "the path has .. after an empty segment")
    elif segment != ".":
        if "\\" in segment or ";" in segment or "%" in segment:
            for piece in _SEPARATORS.split(segment):
                if piece.partition(";")[0] in (".", ".."):
                    raise ClientError(400, "the path hides a dot segment")
        kept.append(segment)


def _without_empty(segments: list[str]) -> Iterator[str]:
    """Merge slashes: only an empty segment at the end says something."""
    for index, segment in enumerate(segments):
        if segment or index == len(segments) - 1:
            yield segment


# --- Tables -----------------------------------------------------------------------------------


class _Rule:
    """What is left to ask of a request whose host and path fit."""

    __slots__ = ("headers", "match", "methods", "open", "rank")

    def __init__(self, route: Route) -> None:
        self.methods = frozenset(route.methods)
        self.headers = route.headers
        self.open = not route.methods and not route.headers
        self.rank = (-_conditions(route), route.name)
        if route.respond is not None:
            self.match = Match(Kind.RESPOND, route)
        else:
            self.match = Match(Kind.FORWARD, route, route.upstream)

    def takes(self, method: str, headers: Headers) -> bool:
        return self.open or (
            (not self.methods or method in self.methods)
            and (not self.headers or self.fits(headers))
        )

    def fits(self, headers: Headers) -> bool:
        return all(value in headers(name) for name, value in self.headers)


_Rules = tuple[_Rule, ...]


class _Paths:
    """The routes of one host pattern, by path."""

    __slots__ = ("_any", "_exact", "_lengths", "_patterns", "_prefixes")

    def __init__(self, routes: Sequence[Route]) -> None:
        exact: dict[str, list[_Rule]] = {}
        prefixes: dict[str, list[_Rule]] = {}
        patterns: list[tuple[str, _Rule]] = []
        anywhere: list[_Rule] = []
        for route in routes:
            rule, path = _Rule(route), normal_pattern(route.path)
            if path is None:
                anywhere.append(rule)
            elif path[0] == "=":
                exact.setdefault(path[1:], []).append(rule)
            elif path[0] == "~":
                patterns.append((path[1:], rule))
            else:
                prefixes.setdefault(path.rstrip("/"), []).append(rule)
        self._exact = {path: _ordered(rules) for path, rules in exact.items()}
        self._prefixes = {path: _ordered(rules) for path, rules in prefixes.items()}
        # Not the path's own segments, of which a client may send thousands.
        self._lengths = tuple(sorted({len(path) for path in prefixes}, reverse=True))
        patterns.sort(key=lambda pair: (-len(pair[0]), pair[1].rank))
        self._patterns = tuple((re.compile(pattern), rule) for pattern, rule in patterns)
        self._any = _ordered(anywhere)

    def find(self, path: str, method: str, headers: Headers) -> Match | None:
        rules = self._exact.get(path)
        if rules is not None:
            match = _first(rules, method, headers)
            if match is not None:
                return match
        for length in self._lengths:
            # The cut falls before a slash, or at the path's end.
            if path[length : length + 1] in "/":
                rules = self._prefixes.get(path[:length])
                if rules is not None:
                    match = _first(rules, method, headers)
                    if match is not None:
                        return match
        for pattern, rule in self._patterns:
            if rule.takes(method, headers) and pattern.search(path):
                return rule.match
        return _first(self._any, method, headers) if self._any else None

    def all_for(self, path: str) -> Iterator[_Rule]:
        yield from self._exact.get(path, ())
        for length in self._lengths:
            if path[length : length + 1] in "/":
                yield from self._prefixes.get(path[:length], ())
        for pattern, rule in self._patterns:
            if pattern.search(path):
                yield rule
        yield from self._any

    def single(self) -> Match | None:
        """Return the match of every path, None if there is no such."""
        if self._exact or self._patterns or self._lengths not in ((), (0,)):
            return None
        first = (*self._prefixes.get("", ()), *self._any)[0]
        return first.match if first.open else None


class _Table:
    """The routes of one listener, by host."""

    __slots__ = ("_any", "_exact", "_suffixes", "default", "has_methods", "single")

    def __init__(self, routes: Sequence[Route], default: Match) -> None:
        exact: dict[str, list[Route]] = {}
        suffixes: dict[str, list[Route]] = {}
        anywhere: list[Route] = []
        for route in routes:
            for host in route.hosts:
                if host[:2] == "*.":
                    suffixes.setdefault(host[1:], []).append(route)
                else:
                    exact.setdefault(host, []).append(route)
            if not route.hosts:
                anywhere.append(route)
        self._exact = {host: _Paths(some) for host, some in exact.items()}
        self._suffixes = {suffix: _Paths(some) for suffix, some in suffixes.items()}
        self._any = _Paths(anywhere) if anywhere else None
        self.default = default
        self.has_methods = any(route.methods for route in routes)
        self.single: Match | None = None
        if not routes:
            self.single = default
        elif self._any is not None and not exact and not suffixes:
            self.single = self._any.single()

    def find(self, host: str, path: str, method: str, headers: Headers) -> Match | None:
        if self._exact or self._suffixes:
            if host[-1:] == ".":
                host = host[:-1]
            paths = self._exact.get(host)
            if paths is not None:
                match = paths.find(path, method, headers)
                if match is not None:
                    return match
            if self._suffixes:
                for paths in self._wildcards(host):
                    match = paths.find(path, method, headers)
                    if match is not None:
                        return match
        return self._any.find(path, method, headers) if self._any is not None else None

    def allowed(self, host: str, path: str, headers: Headers) -> tuple[str, ...]:
        """Return the methods of all routes that match but for their methods."""
        name = host.removesuffix(".")
        places = [self._exact.get(name), *self._wildcards(name), self._any]
        methods: set[str] = set()
        for paths in places:
            if paths is not None:
                for rule in paths.all_for(path):
                    if rule.fits(headers):
                        methods |= rule.methods
        return tuple(sorted(methods))

    def _wildcards(self, host: str) -> Iterator[_Paths]:
        """Yield what may hold for a host, the longest first."""
        dot = host.find(".", 1) if len(host) <= HOST_LENGTH_MAX else -1
        while dot > 0:
            paths = self._suffixes.get(host[dot:])
            if paths is not None:
                yield paths
            dot = host.find(".", dot + 1)


def _first(rules: _Rules, method: str, headers: Headers) -> Match | None:
    for rule in rules:
        if rule.open or rule.takes(method, headers):
            return rule.match
    return None


def _ordered(rules: list[_Rule]) -> _Rules:
    return tuple(sorted(rules, key=lambda rule: rule.rank))


def _serves(route: Route, listener: str) -> bool:
    return not route.listeners or listener in route.listeners


def _default(upstream: str | None) -> Match:
    return NOT_FOUND if upstream is None else Match(Kind.FORWARD, upstream=upstream)


def _conditions(route: Route) -> int:
    return bool(route.listeners) + bool(route.methods) + len(route.headers)


# --- Explaining -------------------------------------------------------------------------------


def _rank_of_route(route: Route) -> tuple[int, int, int, int, int, str]:
    """Order routes as they would be asked, were each host of a route its most specific one."""
    longest = max((len(host) for host in route.hosts if host[:2] == "*."), default=0)
    exact = any(host[:2] != "*." for host in route.hosts)
    host_class = 0 if exact else 1 if route.hosts else 2
    path = normal_pattern(route.path) or ""
    path_class = {"=": 0, "/": 1, "~": 2, "": 3}[path[:1]]
    length = -len(path)
    return host_class, -longest, path_class, length, -_conditions(route), route.name


def _reason(
    route: Route, listener: str, host: str, path: str, method: str, headers: Headers
) -> Reason:
    against = ""
    if not _serves(route, listener):
        against = f"it is for listener {' or '.join(route.listeners)}, not {listener}"
    elif route.hosts and not any(_host_fits(pattern, host) for pattern in route.hosts):
        against = f"its host is {' or '.join(route.hosts)}, not {host or 'none'}"
    elif not _path_fits(route.path, path):
        against = f"its path is {route.path}, not {path}"
    elif route.methods and method not in route.methods:
        against = f"its method is {' or '.join(route.methods)}, not {method}"
    else:
        for name, value in route.headers:
            if value not in headers(name):
                got = ", ".join(headers(name)) or "none"
                against = f"its header {name} is {value}, not {got}"
                break
    if against:
        return Reason(route.name, False, against)
    conditions = [
        *(f"listener {name}" for name in route.listeners if name == listener),
        *([f"host {host}"] if route.hosts else []),
        *([f"path {route.path}"] if route.path is not None else []),
        *([f"method {method}"] if route.methods else []),
        *(f"header {name}: {value}" for name, value in route.headers),
    ]
    return Reason(route.name, True, ", ".join(conditions) or "it takes everything")


def _host_fits(pattern: str, host: str) -> bool:
    if pattern[:2] == "*.":
        return len(pattern) <= len(host) <= HOST_LENGTH_MAX and host.endswith(pattern[1:])
    return host == pattern


def _path_fits(pattern: str | None, path: str) -> bool:
    normal = normal_pattern(pattern)
    if normal is None:
        return True
    if normal[0] == "=":
        return path == normal[1:]
    if normal[0] == "~":
        return re.search(normal[1:], path) is not None
    return normal in ("/", path) or path.startswith(normal + "/")
