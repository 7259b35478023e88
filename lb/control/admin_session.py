"""
The dashboard's cookie: a browser swaps its token for one, and no script in it can read that.

A session is as good as the token behind it, and no longer: one that was taken out of the
configuration, or changed, ends its sessions at once. Sessions are in this process's memory;
a new controller knows none, and the dashboard asks for the token again.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from lb.config.admin import Token
from lb.config.secrets import digest_of

COOKIE: Final = "lb_session"
SESSIONS_MAX: Final = 1024  # Of all tokens together; the oldest ends first.
SESSIONS_OF_ONE_MAX: Final = 32  # Of one token: nobody drives out the others.
SESSION_SECONDS: Final = 8 * 3600.0  # A working day; then the token is asked for again.
ID_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class _Session:
    name: str
    digest: str  # Of the token that it was opened with.
    ends: float


class Sessions:
    """All open sessions, by the digest of their cookie. `now` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._open: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, token: Token) -> str:
        """Begin a session of who showed this token; return the cookie's value."""
        now = self._now()
        for key in [key for key, each in self._open.items() if each.ends <= now]:
            del self._open[key]
        own = [key for key, each in self._open.items() if each.name == token.name]
        for key in own[: max(0, len(own) - SESSIONS_OF_ONE_MAX + 1)]:
            del self._open[key]
        while len(self._open) >= SESSIONS_MAX:
            self._open.popitem(last=False)
        value = secrets.token_urlsafe(ID_BYTES)
        self._open[digest_of(value)] = _Session(token.name, token.token, now + SESSION_SECONDS)
        return value

    def token_of(self, value: str, tokens: Sequence[Token]) -> Token | None:
        """Find whose session a cookie is, among the tokens that there are now."""
        # Looked up by digest: how long that takes says nothing about the value.
        session = self._open.get(digest_of(value))
        if session is None or session.ends <= self._now():
            return None
        return next(
            (each for each in tokens if (each.name, each.token) == (session.name, session.digest)),
            None,
        )

    def close(self, value: str) -> None:
        """End a session."""
        self._open.pop(digest_of(value), None)


def set_cookie(response: web.StreamResponse, value: str, *, secure: bool) -> None:
    """Hand the cookie to a browser."""
    response.set_cookie(
        COOKIE,
        value,
        max_age=int(SESSION_SECONDS),
        path="/",
        httponly=True,
        samesite="Strict",
        secure=secure,
    )


def drop_cookie(response: web.StreamResponse, *, secure: bool) -> None:
    """Have a browser forget it."""
    response.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=secure)
