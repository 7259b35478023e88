"""Answers by sending the client elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from lb.plugin import Plugin, Reply, Request, reply

STATUSES: Final = (301, 302, 303, 307, 308)
_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_KNOWN: Final = ("scheme", "host", "path", "query")
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
            if self.to is not None:
                self._check_target(self.to)
            try:
                re.compile(self.match or "")
            except re.error as error:
                raise ValueError(f"match is not a regular expression: {error}") from None

        def _check_target(self, to: str) -> None:
            for name in _PLACE.findall(to):
                if name not in _KNOWN:
                    known = ", ".join(f"{{{each}}}" for each in _KNOWN)
                    raise ValueError(f"{{{name}}} is not known: there are {known}")
            if not re.match(r"https?://[^/\\{}]|/(?!/|\\(?!\d))|\{scheme\}://", to):
                raise ValueError("to begins with /, http:// or https://, and then says where")
            if re.search(r"\\(?!\d)", to) or (re.search(r"\\\d", to) and self.match is None):
                raise ValueError(
                    "\\1 stands for a group of match, and a backslash for nothing else"
                )

    def start(self) -> None:
        """Work out the pattern and the text around what is filled in."""
        self._pattern = re.compile(self.config.match) if self.config.match is not None else None
        self._status = self.config.status

    def on_request(self, req: Request) -> Reply | None:
        """Answer, unless this one is to go on."""
        if self.config.https:
            if req.scheme == "https" or not req.host:
                return None
            found = None
        elif self._pattern is not None and (found := self._pattern.search(req.path)) is None:
            return None
        else:
            found = None if self._pattern is None else found
        where = f"https://{_name(req.host)}{_local(req.target)}"
        if self.config.to is not None:
            where = self._filled(self.config.to, req, found)
        return reply(self._status, {"Location": _OUTSIDE.sub(_quoted, where)})

    def _filled(self, to: str, req: Request, found: re.Match[str] | None) -> str:
        values = {
            "scheme": req.scheme,
            "host": req.host,
            "path": _local(req.target.partition("?")[0]),
            "query": req.query,
        }
        text = _PLACE.sub(lambda place: values[place[1]], to)
        if found is not None:
            groups = found
            text = re.sub(r"\\(\d)", lambda number: _group(groups, int(number[1])), text)
        return text if re.match(r"https?://", text) else _local(text)


def _local(path: str) -> str:
    """
    Return a path that no browser takes for a host.

    //evil.example and /\\evil.example lead away from here: one slash, and no backslash, is a path.
    """
    return re.sub(r"^[/\\]+", "/", path)


def _name(host: str) -> str:
    """Return a host without its port: that is plain HTTP's."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def _group(found: re.Match[str], number: int) -> str:
    return (found[number] or "") if number <= (found.re.groups or 0) else ""


def _quoted(char: re.Match[str]) -> str:
    return "".join(f"%{octet:02X}" for octet in char[0].encode("latin-1", "replace"))
