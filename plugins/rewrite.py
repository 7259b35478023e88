"""Has backends asked for another path, or another host, than the client asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lb.plugin import Plugin, Reply, Request, UrlPath, reply


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
            default=None, metadata={"about": "A regular expression, on path and query."}
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
            if self.host is not None and not re.fullmatch(r"[A-Za-z0-9._~:\[\]-]+", self.host):
                raise ValueError(f"{self.host!r} is not a host")

    def start(self) -> None:
        """Work out the pattern and the prefixes."""
        config = self.config
        self._pattern = re.compile(config.match) if config.match is not None else None
        self._strip = (config.strip or "").rstrip("/")
        self._add = (config.add or "").rstrip("/")

    def on_request(self, req: Request) -> Reply | None:
        """Write another target; one that would be none is the client's doing."""
        if self.config.host is not None:
            req.set_host(self.config.host)
        target = req.target
        if not target.startswith("/"):
            return None  # OPTIONS *
        new = self._of(target)
        if new != target:
            try:
                req.rewrite(new)
            except ValueError:
                return reply(400, body="400 Bad Request: this path cannot be asked for\n")
        return None

    def _of(self, target: str) -> str:
        if self._pattern is not None:
            found = self._pattern.search(target)
            return target if found is None else found.expand(self.config.to or "")
        path, mark, query = target.partition("?")
        prefix = self._strip
        if prefix and (path == prefix or path.startswith(prefix + "/")):
            path = path[len(prefix) :] or "/"
        if self._add:
            path = self._add + path
        return path + mark + query
