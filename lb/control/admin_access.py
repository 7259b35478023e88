"""
Whether a caller may do what it asks: who it is, and what its role covers.

A unix socket may do everything: who may open it is for its mode to say. TCP needs a token as
soon as there are any; without any, an address of this machine alone may do everything too.
The table is in `admin_roles`; what a register token may do depends on the backend as well, and
is judged here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from lb.config.addresses import listen_address
from lb.config.admin import Token
from lb.config.schema import Config
from lb.control.admin_guard import by_unix_socket, flag, read_object, respond
from lb.control.admin_reads import canonical_key
from lb.control.admin_roles import Need, allows, need_of
from lb.control.admin_session import COOKIE, SESSION_SECONDS, Sessions, drop_cookie, set_cookie
from lb.control.admin_tokens import SUBJECT_MAX, Caller, WrongTokens, find_token
from lb.control.problems import Problem
from lb.pem import distinguished_name
from lb.registry import Registry

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CALLER: Final = web.RequestKey("caller", Caller)


class Access:
    """The middleware, and the handlers of `/v1/session`."""

    def __init__(
        self,
        config: Callable[[], Config],
        registry: Callable[[], Registry],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._registry = registry
        self._sessions = Sessions(now)
        self._wrong = WrongTokens(now)

    def middleware(self) -> Any:
        """Return what every request passes after the guard."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            need = _need(request)
            if need is not Need.NOTHING:
                caller = request[CALLER] = self._caller(request)
                if not allows(caller.role, need):
                    raise _not_covered(caller, need)
                if need is Need.REGISTER and caller.role == "register":
                    await self._judge_registration(request, caller)
            return await handler(request)

        return check

    def still_reads(self, request: web.Request) -> bool:
        """Whether who began to read may go on: tokens leave the config, and sessions end."""
        if self._is_open(request):
            return True
        tokens, shown = self._config().admin.tokens, _bearer(request)
        if shown:
            token = find_token(tokens, shown)
        else:
            token = self._sessions.token_of(request.cookies.get(COOKIE, ""), tokens)
        return token is not None and allows(token.role, _need(request))

    # The dashboard's cookie

    async def open_session(self, request: web.Request) -> web.Response:
        """Swap a token, of the body or of the header, for a cookie."""
        body = await read_object(request)
        if unknown := body.keys() - {"token"}:
            raise Problem("bad-request", f'"{unknown.pop()}" is not known here', "there is token")
        if self._is_open(request):
            caller = self._caller(request)
            return respond({"name": caller.token, "role": caller.role, "seconds": None})
        shown = body.get("token", _bearer(request))
        if not isinstance(shown, str) or not shown:
            raise Problem("unauthorized", "no token was sent", 'send {"token": "..."}')
        token = self._token(request, shown)
        response = respond(
            {"name": token.name, "role": token.role, "seconds": int(SESSION_SECONDS)}
        )
        set_cookie(response, self._sessions.open(token), secure=request.secure)
        return response

    async def close_session(self, request: web.Request) -> web.Response:
        """End the session that the cookie is of."""
        await read_object(request)
        self._sessions.close(request.cookies.get(COOKIE, ""))
        response = respond({"closed": True})
        drop_cookie(response, secure=request.secure)
        return response

    # Who it is

    def _is_open(self, request: web.Request) -> bool:
        """Whether nobody has to say who they are."""
        admin = self._config().admin
        # Tokens may have been taken out by a reload that the address waits a restart for.
        local = listen_address(admin.address).is_local
        return by_unix_socket(request) or (local and not admin.tokens)

    def _caller(self, request: web.Request) -> Caller:
        tokens, shown = self._config().admin.tokens, _bearer(request)
        if self._is_open(request):
            named = find_token(tokens, shown) if shown else None
            return Caller("admin", named.name if named else "", _subject(request))
        if shown:
            return _caller_of(self._token(request, shown), request)
        cookie = request.cookies.get(COOKIE)
        token = self._sessions.token_of(cookie, tokens) if cookie else None
        if token is None:
            what = "the session has ended" if cookie else "this needs a token"
            raise Problem("unauthorized", what, "send Authorization: Bearer, or set LB_TOKEN")
        return _caller_of(token, request)

    def _token(self, request: web.Request, shown: str) -> Token:
        address = request.remote or ""
        if seconds := self._wrong.too_many(address):
            raise Problem(
                "too-many-attempts",
                f"too many different wrong tokens came from {address}",
                f"try again in {seconds:.0f} s, or use a unix socket",
            )
        token = find_token(self._config().admin.tokens, shown)
        if token is None:
            self._wrong.add(address, shown)
            raise Problem(
                "unauthorized", "the token is none of ours", "it may have been changed or taken out"
            )
        return token

    # What a register token may do

    async def _judge_registration(self, request: web.Request, caller: Caller) -> None:
        upstream = request.match_info["upstream"]
        if upstream not in caller.upstreams:
            raise _not_allowed(
                f'the token "{caller.token}" is not for the upstream "{upstream}"',
                f"it is for {', '.join(caller.upstreams)}",
            )
        if flag(request, "force"):
            raise _not_allowed("a register token cannot force anything", "leave ?force out")
        entry = self._registry().upstreams.get(upstream)
        text = request.match_info["backend"]
        backends = entry.backends if entry is not None else {}
        there = backends.get(text) or backends.get(canonical_key(text))
        if there is not None and there.ttl is None:
            raise _not_allowed(
                f'"{text}" has no lease, and this token is for backends that have one',
                "somebody else has added it",
            )
        if request.method == "PUT" and (await read_object(request)).get("ttl") is None:
            raise _not_allowed("a register token registers for a time", 'add "ttl": "15s"')


def who_of(request: web.Request) -> str:
    """Name the caller as `by.token` does; nothing for somebody on this machine."""
    caller = request.get(CALLER)
    return caller.who if caller is not None else ""


def _need(request: web.Request) -> Need:
    resource = request.match_info.route.resource
    if resource is None:  # There is no such path, or it does not take this method.
        return Need.ANY
    return need_of(request.method, resource.canonical)


def _bearer(request: web.Request) -> str:
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    return shown.strip() if scheme.lower() == "bearer" else ""


def _caller_of(token: Token, request: web.Request) -> Caller:
    return Caller(token.role, token.name, _subject(request), tuple(token.upstreams))


def _subject(request: web.Request) -> str:
    certificate = request.get_extra_info("peercert")
    if not certificate:
        return ""
    subject = distinguished_name(certificate.get("subject", ())).decode("ascii")
    return subject[:SUBJECT_MAX]


def _not_covered(caller: Caller, need: Need) -> Problem:
    return _not_allowed(
        f'the token "{caller.token}" has the role {caller.role}; this needs {need.value}',
        "use another token",
    )


def _not_allowed(detail: str, hint: str) -> Problem:
    return Problem("not-allowed", detail, hint)
