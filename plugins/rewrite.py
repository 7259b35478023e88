"""Has backends asked for another path, or another host, than the client asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from lb.plugin import Plugin, Reply, Request, UrlPath, reply

_SLASHES: Final = re.compile(r"^/{2,}")  # Some read //x as a host.


class Rewrite(Plugin["Rewrite.Config"]):
    """Changes what goes on; the route stays what the client's own path made it."""

    name = "rewrite"

    @dataclass
    class Config:
        """What stands beside `use`."""

        strip: UrlPath | None = field(
            default=None, metadata={"about": "A prefix of whole segments to take off."}
        )
        add: UrlPath | None = field(default=None, metadata={"about": "A prefix to put before."})
        match: str | None = field(
            default=None, metadata={"about": "A regular expression, on normalised path and query."}
        )
        to: str | None = field(
            default=None, metadata={"about": "What the whole of it becomes, with \\1 for groups."}
        )
        host: str | None = field(
            default=None, metadata={"about": "The Host that backends see, where it is kept."}
        )

        def __post_init__(self) -> None:
            if (self.match is None) != (self.to is None):
                raise ValueError("match and to go together")
            if self.match is not None and (self.strip is not None or self.add is not None):
                raise ValueError("match does all that strip and add do: leave these out")
            if not (self.match or self.strip or self.add or self.host):
                raise ValueError("there is nothing to do: give strip, add, match or host")
            try:
                pattern = re.compile(self.match or "")
                pattern.sub(self.to or "", "")
            except (re.error, IndexError) as error:
                raise ValueError(f"not a regular expression: {error}") from None
            if self.to is not None and self.to[:1] not in ("/", "\\"):
                raise ValueError(f'to is a path: write "/{self.to}"')
            if self.host is not None and not re.fullmatch(r"[A-Za-z0-9._~:\[\]-]+", self.host):
                raise ValueError(f"{self.host!r} is not a host")

    def start(self) -> None:
        """Work out the pattern and the prefixes."""
        config = self.config
        self._pattern = re.compile(config.match) if config.match is not None else None
        self._to = config.to or ""
        # Escapes as normalised paths have them.
        strip = re.sub(r"%..", lambda escape: escape[0].upper(), config.strip or "")
        self._strip = strip.rstrip("/")
        self._add = (config.add or "").rstrip("/")

    def on_request(self, req: Request) -> Reply | None:
        """Write another target; one that would be none is the client's doing."""
        if self.config.host is not None:
            req.set_host(self.config.host)
        if not req.target.startswith("/"):
            return None  # OPTIONS *
        new = self._of(req.path, req.query)
        if new is not None:
            try:
                req.rewrite(_SLASHES.sub("/", new))
            except ValueError:
                return reply(400, body="400 Bad Request: this path cannot be asked for\n")
        return None

    def _of(self, path: str, query: str) -> str | None:
        """
        Return what becomes of a path, None if it stays as it was spelt.

        It is the path that chose the route, or who spells it /%61pi or /x/../api goes around.
        """
        tail = f"?{query}" if query else ""
        if self._pattern is not None:
            found = self._pattern.search(path + tail)
            return None if found is None else found.expand(self._to)
        prefix = self._strip
        if prefix and (path == prefix or path.startswith(prefix + "/")):
            return (self._add + path[len(prefix) :] or "/") + tail
        return self._add + path + tail if self._add else None
