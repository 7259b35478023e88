"""What every admin request passes first: who may ask, in what form, and what an error looks like.

A browser is the danger here: any page on the web may make it send requests to a loopback
address. So on TCP the Host must be one that only we have (a name of an attacker's that points
to 127.0.0.1 is not), an Origin must be that host itself, and a write must be JSON, which no
form can send without asking first. A unix socket is out of a browser's reach and needs none
of it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from lb.config.problem import ConfigErrors
from lb.control.problems import KINDS, Problem
from lb.control.store import NoQuorum, UnknownOutcome
from lb.errors import AccordError

BODY_BYTES_MAX = 1024 * 1024
BODY_SECONDS_MAX = 10.0

HEADERS = {
    "Server": "accord-lb",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
}

BY_STATUS = {
    401: {"WWW-Authenticate": 'Bearer realm="accord"'},
    429: {"Retry-After": "60"},
    503: {"Retry-After": "1"},
}

log = logging.getLogger("lb.admin")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def respond(plain: Any, status: int = 200, **headers: str) -> web.Response:
    """Return a JSON answer; header names come with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    return web.Response(text=text, status=status, headers=named, content_type="application/json")


def wall_time() -> float:
    """Return the time of day, in seconds since 1970."""
    return datetime.now(UTC).timestamp()


def as_response(problem: Problem) -> web.Response:
    """Return the problem as the answer it stands for."""
    text = json.dumps(problem.as_plain(), separators=(",", ":"), ensure_ascii=False)
    return web.Response(
        text=text,
        status=problem.status,
        headers=BY_STATUS.get(problem.status, {}),
        content_type="application/problem+json",
        charset="utf-8",
    )


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever is raised below into a problem; our own bugs are logged, never shown."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = as_response(_of_http(error, request))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except AccordError as error:
        response = as_response(as_problem(error))
    # The one broad except of the admin: here a bug must become an answer.
    except Exception:
        log.exception("admin: %s %s failed; this is a bug", request.method, request.path)
        response = as_response(
            Problem(
                "our-error",
                f"{request.method} {request.path} failed because of a bug in Accord",
                "the traceback is in the daemon's log; please report it",
            )
        )
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def as_problem(error: AccordError) -> Problem:
    """Return the problem that says to an operator what this error says to us."""
    match error:
        case Problem():
            return error
        case ConfigErrors():
            plain = error.as_plain()
            return Problem("config-invalid", error.message, error.hint, **plain)
        case NoQuorum():
            return Problem("no-quorum", error.message, error.hint)
        case UnknownOutcome():
            hint = error.hint or "repeat it with this idempotency_key: it will not act twice"
            return Problem("unknown-outcome", error.message, hint)
        case _:
            code = getattr(error, "code", None)  # What the group refuses names its problem.
            return Problem(code if code in KINDS else "not-applied", error.message, error.hint)


def guard(hosts: Callable[[], Collection[str]]) -> Any:
    """Return the middleware that holds TCP callers to Host, Origin and Content-Type."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not by_unix_socket(request):
            check_host(request.headers.get("Host", ""), hosts())
            check_origin(request.headers.get("Origin"), request.headers["Host"])
            if request.body_exists and request.method not in ("GET", "HEAD"):
                check_type(request.headers.get("Content-Type", ""))
        return await handler(request)

    return check


def check_host(host: str, allowed: Collection[str]) -> None:
    """Refuse a Host that is neither an IP literal, `localhost`, nor one of `admin.hosts`."""
    name = host_name(host)
    if name == "localhost" or name in {each.lower() for each in allowed} or _is_ip(name):
        return
    raise Problem(
        "host-not-allowed",
        f'the Host "{host}" is not an IP address, localhost, or in admin.hosts',
        "add the name to admin.hosts, or call by address",
    )


def check_origin(origin: str | None, host: str) -> None:
    """Refuse a browser that another site sent here."""
    if origin is None:
        return
    scheme, _, rest = origin.partition("://")
    if scheme.lower() in ("http", "https") and rest.lower() == host.lower():
        return
    raise Problem(
        "origin-not-allowed",
        f'the Origin "{origin}" is not the host that was called, "{host}"',
        "call from a page that this admin address served",
    )


def check_type(content_type: str) -> None:
    """Refuse a body that is not declared as JSON."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Problem(
            "not-json",
            f'the body is declared as "{content_type}"' if content_type else "the body has no type",
            "send Content-Type: application/json",
        )


def host_name(host: str) -> str:
    """Return a Host without its port, and an IPv6 address without its brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the JSON object that is the body; without a body, an empty one."""
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            body = await request.read()
    except TimeoutError:
        raise Problem(
            "too-slow", f"the body did not come within {BODY_SECONDS_MAX:.0f} s"
        ) from None
    except ConnectionError:
        raise Problem("bad-request", "the connection ended before the body did") from None
    if not body:
        return {}
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem("bad-request", f"the body is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise Problem("bad-request", "the body must be a JSON object")
    return plain


def flag(request: web.Request, name: str) -> bool:
    """Return whether a query parameter is set: bare, `1`, `true` or `yes`."""
    value = request.query.get(name)
    if value is None or value in ("0", "false", "no"):
        return False
    if value in ("", "1", "true", "yes"):
        return True
    raise Problem("bad-request", f'"{value}" is not a value of ?{name}', "write true or false")


def by_unix_socket(request: web.Request) -> bool:
    """Whether a request came over a unix socket, which only who may open it can call."""
    if request.transport is None:
        return False
    sock = request.transport.get_extra_info("socket")
    return sock is not None and sock.family == socket.AF_UNIX


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _of_http(error: web.HTTPException, request: web.Request) -> Problem:
    match error.status:
        case 404:
            return Problem("not-found", f"there is no {request.path} here", "see /openapi.json")
        case 405:
            allow = error.headers.get("Allow", "")
            return Problem(
                "method-not-allowed", f"{request.path} does not take {request.method}", allow
            )
        case 413:
            return Problem("too-large", f"a body may have at most {BODY_BYTES_MAX} bytes")
        case _:
            return Problem("bad-request", f"{request.method} {request.path}: {error.reason}")
