"""
Says to browsers which other sites' pages may use what is here (Fetch standard, CORS protocol).

Preflights are answered by itself. All that depends on who asks says so in Vary, refusals included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from lb.plugin import Duration, HeaderName, Plugin, Reply, Request, Response, reply

ORIGINS_KEPT_MAX: Final = 1024  # Origins whose verdict is remembered.
ORIGIN_LENGTH_MAX: Final = 512
_METHOD: Final = re.compile(r"[A-Za-z][A-Za-z_-]*")
SIMPLE_METHODS: Final = ["GET", "HEAD", "POST"]


class Cors(Plugin["Cors.Config"]):
    """Answers preflights, and marks responses."""

    name = "cors"

    @dataclass
    class Config:
        """What stands beside `use`."""

        origins: list[str] = field(
            metadata={"about": 'Whose pages: "https://a.example", "https://*.a.example", or "*".'}
        )
        methods: list[str] = field(
            default_factory=lambda: [*SIMPLE_METHODS, "PUT", "PATCH", "DELETE"],
            metadata={"about": "Which methods they may use."},
        )
        headers: list[HeaderName] = field(
            default_factory=list,
            metadata={"about": "Which request headers; empty: those that are asked for."},
        )
        expose: list[HeaderName] = field(
            default_factory=list, metadata={"about": "Which response headers they may read."}
        )
        credentials: bool = field(
            default=False, metadata={"about": "Whether cookies and the like come along."}
        )
        max_age: Duration = field(
            default=600.0, metadata={"about": "How long a browser may remember a preflight."}
        )

        def __post_init__(self) -> None:
            if not self.origins:
                raise ValueError("origins is empty: nobody would be let in")
            if "*" in self.origins and len(self.origins) > 1:
                raise ValueError('"*" stands for all: leave the others out')
            if "*" in self.origins and self.credentials:
                raise ValueError("credentials for every site would be none: name the origins")
            if "null" in self.origins and self.credentials:
                raise ValueError('every page can make itself "null": not with credentials')
            for method in self.methods:
                if not _METHOD.fullmatch(method):
                    raise ValueError(f"{method!r} is not the name of a method")
            for origin in self.origins:
                if origin not in ("*", "null"):
                    _check(origin)

    def start(self) -> None:
        """Work out what is said each time."""
        config = self.config
        self._all = config.origins == ["*"]
        self._exact = {each.lower() for each in config.origins if "*" not in each}
        self._wild = [each.lower().split("*", 1) for each in config.origins if "://*." in each]
        self._methods = ", ".join(config.methods)
        self._headers = ", ".join(config.headers)
        self._expose = ", ".join(config.expose)
        self._max_age = str(int(config.max_age))
        self._credentials = config.credentials
        self._allows = lru_cache(maxsize=ORIGINS_KEPT_MAX)(self._judge)

    def on_request(self, req: Request) -> Reply | None:
        """Answer a preflight; all else goes on."""
        if req.method != "OPTIONS":
            return None
        wanted = req.headers.get("access-control-request-method")
        origin = req.headers.get("origin")
        if wanted is None or origin is None:
            return None  # An OPTIONS of the application's own.
        fields = [("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")]
        if not self._may(origin):
            return reply(403, fields, body="403 Forbidden: this origin may not\n")
        asked = req.headers.get("access-control-request-headers", "")
        fields += [("Access-Control-Allow-Methods", self._methods)]
        if allowed := self._headers or asked:
            fields += [("Access-Control-Allow-Headers", allowed)]
        fields += [("Access-Control-Max-Age", self._max_age)]
        return reply(204, fields)

    def on_response(self, req: Request, res: Response) -> None:
        """Say who may read it; what the backend says of that itself is taken out."""
        headers = res.headers
        if res.backend:
            for name in {name for name, _ in headers if name.lower() in _OURS}:
                headers.remove(name)
        origin = req.headers.get("origin")
        if not self._all and not _varies(headers.all("vary")):
            headers.append("Vary", "Origin")
        if origin is None or not self._may(origin):
            return
        headers.set("Access-Control-Allow-Origin", "*" if self._all else origin)
        if self._credentials:
            headers.set("Access-Control-Allow-Credentials", "true")
        if self._expose and req.method != "OPTIONS":
            headers.set("Access-Control-Expose-Headers", self._expose)

    def _may(self, origin: str) -> bool:
        return self._all or (len(origin) <= ORIGIN_LENGTH_MAX and self._allows(origin.lower()))

    def _judge(self, origin: str) -> bool:
        if origin in self._exact:
            return True
        for before, after in self._wild:
            label = origin[len(before) : len(origin) - len(after)]
            fits = origin.startswith(before) and origin.endswith(after) and label
            if fits and not set(label) & set("/@:?#"):
                return True
        return False


_OURS: Final = {
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-max-age",
}


def _varies(values: list[str]) -> bool:
    """Whether a response says already that it depends on Origin."""
    names = {name.strip() for value in values for name in value.lower().split(",")}
    return "origin" in names or "*" in names


def _check(origin: str) -> None:
    """Refuse what no browser sends as an Origin."""
    parts = urlsplit(origin.replace("*.", "", 1))
    if not parts.scheme or not parts.netloc or parts.path or parts.query or parts.fragment:
        raise ValueError(f'{origin!r} is no origin: like "https://a.example", without a path')
    if "*" in origin and (origin.count("*") > 1 or "://*." not in origin):
        raise ValueError(f'{origin!r}: a star stands for names before a dot, "https://*.a.example"')
