"""
Keeps a client with the backend that it met first, by a signed cookie.

The cookie does not name the backend: it holds a keyed digest of its key, which only who has the
secret can make, so nobody can choose a backend by writing one, nor read our network from it.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from math import ceil
from typing import Final, Literal

from lb.plugin import Duration, Plugin, Request, Response, Secret, UrlPath

TOKEN_BYTES: Final = 18
TOKENS_KEPT_MAX: Final = 65_536  # Of backends, each with each secret.
SECRET_MIN: Final = 16
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Sticky(Plugin["Sticky.Config"]):
    """Prefers the backend that a cookie stands for, and gives cookies."""

    name = "sticky"

    @dataclass
    class Config:
        """What stands beside `use`."""

        secret: list[Secret] = field(
            metadata={"about": "What cookies are signed with; a second one is still believed."}
        )
        cookie: str = field(default="lb_sticky", metadata={"about": "The cookie's name."})
        max_age: Duration = field(
            default=0.0, metadata={"about": "How long it lasts; 0: as long as the browser runs."}
        )
        path: UrlPath = field(default="/", metadata={"about": "Where browsers send it."})
        same_site: Literal["Lax", "Strict", "None"] = field(
            default="Lax", metadata={"about": "Whether other sites' pages send it along."}
        )

        def __post_init__(self) -> None:
            if not 1 <= len(self.secret) <= 2:
                raise ValueError("one secret, or two while rotating: the first signs")
            if any(len(each) < SECRET_MIN for each in self.secret):
                raise ValueError(f"a secret has at least {SECRET_MIN} characters")
            if len(set(self.secret)) < len(self.secret):
                raise ValueError("the two secrets are the same one")
            if ";" in self.path:
                raise ValueError("path ends at a ; in a cookie: give a shorter one")
            if _NAME.fullmatch(self.cookie) is None:
                raise ValueError(f"{self.cookie!r} is not the name of a cookie")

    def start(self) -> None:
        """Work out what stands in every cookie."""
        config = self.config
        self._keys = [each.encode() for each in config.secret]
        self._tokens: dict[tuple[int, str, str], str] = {}
        # Looked up by a hash that is salted in each process: its time says nothing of a token.
        self._known: dict[tuple[str, str], tuple[int, str]] = {}
        self._learned_of: dict[str, tuple[str, ...]] = {}
        age = f"; Max-Age={ceil(config.max_age)}" if config.max_age else ""
        rest = f"; Path={config.path}{age}; HttpOnly; SameSite={config.same_site}"
        self._rest = {"http": rest, "https": f"{rest}; Secure"}
        if config.same_site == "None":
            self._rest["http"] = f"{rest}; Secure"  # Browsers drop it otherwise.
        self._state = f"sticky/{config.cookie}"

    def on_request(self, req: Request) -> None:
        """Go to the backend that the cookie stands for, if it may take this."""
        token = req.cookie(self.config.cookie)
        if token is None or not token.isascii():
            return
        found = self._known.get((req.upstream, token)) or self._learned(req, token)
        if found is not None:
            number, key = found
            req.prefer(key)
            if number == 0:  # By an older secret: the next answer brings a newer cookie.
                req.state[self._state] = key

    def on_response(self, req: Request, res: Response) -> None:
        """Give a cookie to whoever has none for the backend that answered."""
        if res.backend and req.state.get(self._state) != res.backend:
            token = self._token(0, req.upstream, res.backend)
            value = f"{self.config.cookie}={token}{self._rest[req.scheme]}"
            res.headers.append("Set-Cookie", value)

    def _learned(self, req: Request, token: str) -> tuple[int, str] | None:
        """Work out the tokens of all backends there are, unless that was done for these."""
        backends = req.backends
        if backends == self._learned_of.get(req.upstream):
            return None  # Whoever makes cookies up is not to cost much.
        if len(self._known) + len(backends) * len(self._keys) > TOKENS_KEPT_MAX:
            self._known.clear()
            self._learned_of.clear()
        self._learned_of[req.upstream] = backends
        for key in backends[: TOKENS_KEPT_MAX >> 1]:
            for number in range(len(self._keys)):
                self._known[req.upstream, self._token(number, req.upstream, key)] = (number, key)
        return self._known.get((req.upstream, token))

    def _token(self, number: int, upstream: str, key: str) -> str:
        known = self._tokens.get((number, upstream, key))
        if known is None:
            if len(self._tokens) >= TOKENS_KEPT_MAX:
                self._tokens.clear()
            said = f"{upstream}\0{key}".encode()
            digest = hmac.new(self._keys[number], said, sha256).digest()[:TOKEN_BYTES]
            known = self._tokens[number, upstream, key] = urlsafe_b64encode(digest).decode()
        return known
