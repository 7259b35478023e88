"""Answers by sending the client elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from lb.plugin import Plugin, Reply, Request, reply

STATUSES: Final = (301, 302, 303, 307, 308)
_NAMED: Final = re.compile(r"\{([A-Za-z_]*)\}")
_KNOWN: Final = ("scheme", "host", "path", "query")
_FILLED: Final = re.compile(r"\{(scheme|host|path|query)\}|\\([0-9])")
_ABSOLUTE: Final = re.compile(
    r"(?:https?|\{scheme\})://"
    r"(?=[A-Za-z0-9\[{])(?:[A-Za-z0-9_.:\[\]-]|\{host\})+"
    r"(?=[/?#]|\{path\}|\Z)"
)
"""A URL whose host is the file's or the request's own: nothing else of a request touches it."""
_RELATIVE: Final = re.compile(r"/(?!/|\\(?![0-9]))")
_OUTSIDE: Final = re.compile(r"[^!-~]")  # What no Location may hold as it is.


class Redirect(Plugin["Redirect.Config"]):
    """Sends clients to another address, all of them or those whose path matches."""

    name = "redirect"

    @dataclass
    class Config:
        """What stands beside `use`."""

        to: str | None = field(
            default=None,
            metadata={"about": "Where: a path or a URL, with {scheme} {host} {path} {query}, \\1."},
        )
        status: int = field(default=308, metadata={"about": "301, 302, 303, 307 or 308."})
        https: bool = field(
            default=False, metadata={"about": "Send those who came by http to https, same address."}
        )
        match: str | None = field(
            default=None, metadata={"about": "Only paths that this regular expression matches."}
        )

        def __post_init__(self) -> None:
            if self.status not in STATUSES:
                raise ValueError(f"status is one of {', '.join(map(str, STATUSES))}")
            if self.https == (self.to is not None):
                raise ValueError("give https = true, or to: one of the two")
            try:
                groups = re.compile(self.match or "").groups
            except re.error as error:
                raise ValueError(f"match is not a regular expression: {error}") from None
            if self.to is not None:
                _check_target(self.to, -1 if self.match is None else groups)

    def start(self) -> None:
        """Work out the pattern, and the text around what is filled in."""
        config = self.config
        self._pattern = re.compile(config.match or "")
        self._to = "https://{host}{path}?{query}" if config.to is None else config.to
        self._names_host = "{host}" in self._to
        self._is_path = self._to.startswith("/")

    def on_request(self, req: Request) -> Reply | None:
        """Answer, unless this one is to go on."""
        if self.config.https and req.scheme == "https":
            return None
        found = self._pattern.search(req.path)
        if found is None or not req.target.startswith("/"):
            return None  # OPTIONS * is about no address.
        host = _name(req.host)
        if self._names_host and not host:
            return reply(400, body="400 Bad Request: it does not say for which host it is\n")
        where = self._filled(req, host, found)
        return reply(self.config.status, {"Location": _OUTSIDE.sub(_quoted, where)})

    def _filled(self, req: Request, host: str, found: re.Match[str]) -> str:
        path, _, query = req.target.partition("?")
        values = {"scheme": req.scheme, "host": host, "path": _local(path), "query": query}

        def fill(place: re.Match[str]) -> str:
            return values[place[1]] if place[1] else found[int(place[2])] or ""

        text = _FILLED.sub(fill, self._to).removesuffix("?")
        return _local(text) if self._is_path else text


def _check_target(to: str, groups: int) -> None:
    """Refuse a target that clients could turn elsewhere. `groups` is -1 without `match`."""
    for name in _NAMED.findall(to):
        if name not in _KNOWN:
            known = ", ".join(f"{{{each}}}" for each in _KNOWN)
            raise ValueError(f"{{{name}}} is not known: there are {known}")
    if not _RELATIVE.match(to) and not _ABSOLUTE.match(to):
        raise ValueError(
            "to begins with one /, or with http:// or https:// and a host; what is filled in"
            " stands after the host's /, or clients would choose the host"
        )
    if re.search(r"\\(?![0-9])", to) or ("\\" in to and groups < 0):
        raise ValueError("\\1 stands for a group of match, and a backslash for nothing else")
    for number in re.findall(r"\\([0-9])", to):
        if int(number) > groups:
            raise ValueError(f"\\{number}: match has {groups} groups, by its brackets")


def _local(path: str) -> str:
    """
    Return a path that no browser takes for a host.

    //evil.example and /\\evil.example lead away from here: one slash, and no backslash, is a path.
    """
    return re.sub(r"^[/\\]+", "/", path)


def _name(host: str) -> str:
    """Return a host without its port: that is for where it came to."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def _quoted(char: re.Match[str]) -> str:
    return "".join(f"%{octet:02X}" for octet in char[0].encode("latin-1", "replace"))
