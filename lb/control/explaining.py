"""Why a request would go where it goes: the workers' own tables, asked without sending anything.

What is read is the newest edition, so the answer is what workers route by. Not here: which
backend comes next. That is a worker's position in its own turns, and another one's tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lb.config.addresses import BadAddressError, listen_address
from lb.control.problems import Problem
from lb.errors import ClientError
from lb.health import eligible
from lb.model import Endpoint, Health, Listener, Plans, Route, State, Upstream
from lb.outlier import Ejected
from lb.routing import Kind, Match, Router, normalise, pick_share

CANDIDATES_MAX = 1_000  # Listed in one answer.
HEADERS_MAX = 100

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Question:
    """A request as far as routing looks at it. `client` is an address, or empty: not known."""

    method: str
    url: str
    headers: Headers = ()
    listener: str = ""
    client: str = ""


@dataclass(frozen=True, slots=True)
class Serving:
    """What the workers have: one edition, decoded."""

    plans: Plans
    upstreams: Mapping[str, tuple[Endpoint, ...]]
    verdicts: Mapping[str, Mapping[str, Health]]
    revision: int
    ejections: Ejected = field(default_factory=dict)


def question_in(body: Mapping[str, Any]) -> Question:
    """Read the body of `POST /v1/explain`."""
    for name in body:
        if name not in Question.__slots__:
            known = ", ".join(Question.__slots__)
            raise Problem("bad-request", f'"{name}" is not part of a question', f"it has {known}")
    texts = {name: body.get(name, "") for name in ("method", "url", "listener", "client")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise Problem("bad-request", f"{name} must be a text")
    if not texts["method"] or not texts["url"]:
        raise Problem("bad-request", "a question needs method and url")
    return Question(**texts, headers=_headers_in(body.get("headers", ())))


def explain(question: Question, serving: Serving) -> dict[str, Any]:
    """Answer with the listener, each route's reason, the upstream, and who may be chosen."""
    plans = serving.plans
    host, port, path = _parts(question)
    listener = _listener(question, plans.listeners, port)
    plain: dict[str, Any] = {
        "method": question.method,
        "host": host,
        "path": path,
        "listener": listener.name,
        "routes": [],
        "route": None,
        "upstream": None,
        "split": None,
        "candidates": [],
        "plugins": [],
    }
    try:
        path = plain["path"] = normalise(path)
    except ClientError as error:
        return plain | {"answer": "refuse", "status": error.status, "because": error.message}
    if path == listener.ready_path:
        return plain | {"answer": "respond", "status": 200, "because": "it is the ready_path"}

    def values(name: str) -> list[str]:
        return [value for given, value in question.headers if given.lower() == name]

    router = Router(plans.routes, plans.listeners, [each.name for each in plans.upstreams])
    asked = (listener.name, host, path, question.method, values)
    plain["routes"] = [
        {"name": reason.route, "matches": reason.matches, "why": reason.why}
        for reason in router.explain(*asked)
    ]
    try:
        match = router.route(*asked)
    except ClientError as error:
        return plain | {"answer": "refuse", "status": error.status, "because": error.message}
    plain |= _outcome(match, listener)
    of_route = match.route.plugins if match.route is not None else ()
    uses = (*plans.plugins, *listener.plugins, *of_route)
    plain["plugins"] = [{"name": use.plugin, "at": use.place} for use in uses]
    upstream = match.upstream
    if match.route is not None and match.route.split:
        upstream = _share(match.route, question)
        plain["split"] = dict(match.route.split)
        if upstream is None:
            parts = " and ".join(f"{share:.4g} to {name}" for name, share in match.route.split)
            plain["because"] += f", split by {match.route.split_by}: {parts}"
    return plain | (_of_upstream(upstream, serving) if upstream is not None else {})


def _outcome(match: Match, listener: Listener) -> dict[str, Any]:
    route = match.route
    named = {"route": None if route is None else route.name}
    match match.kind:
        case Kind.RESPOND:
            assert route is not None
            assert route.respond is not None
            because = f"route {route.name} answers by itself"
            return named | {
                "answer": "respond",
                "status": route.respond.status,
                "because": because,
            }
        case Kind.METHOD_NOT_ALLOWED:
            because = f"a route matches but for its method; allowed: {', '.join(match.allow)}"
            return named | {"answer": "refuse", "status": 405, "because": because}
        case Kind.NOT_FOUND:
            because = f"no route matches, and listener {listener.name} has no upstream"
            return named | {"answer": "refuse", "status": 404, "because": because}
        case Kind.FORWARD:
            if route is not None:
                because = f"route {route.name} is the most specific that matches"
            elif listener.upstream is not None:
                because = f"no route matches, and upstream is the default of {listener.name}"
            else:
                because = "there is one upstream and no route"
            return named | {"answer": "forward", "status": None, "because": because}


def _of_upstream(name: str, serving: Serving) -> dict[str, Any]:
    plan = next(each for each in serving.plans.upstreams if each.name == name)
    verdicts = serving.verdicts.get(name, {})
    default = Health.CHECKING if plan.checked else Health.UNCHECKED
    endpoints = serving.upstreams.get(name, ())
    judged = [(endpoint, verdicts.get(endpoint.address, default)) for endpoint in endpoints]
    ejections = serving.ejections.get(name, {})
    out = [endpoint for endpoint in endpoints if endpoint.address in ejections]
    chosen, panic = eligible(judged, plan.panic, out)
    taking = {id(endpoint) for endpoint in chosen}
    primaries = any(not endpoint.backup for endpoint in chosen)
    return {
        "upstream": name,
        "balance": plan.balance,
        "hash_key": plan.hash_key if plan.balance == "hash" else None,
        "revision": serving.revision,
        "panic": panic,
        "candidates": [
            _candidate(
                endpoint,
                health,
                _why(endpoint, health, plan, endpoint in out, id(endpoint) in taking, primaries),
            )
            for endpoint, health in judged[:CANDIDATES_MAX]
        ],
    }


def _why(
    endpoint: Endpoint, health: Health, plan: Upstream, ejected: bool, taken: bool, primaries: bool
) -> str:
    if endpoint.state is not State.ACTIVE:
        return f"no: {endpoint.state}"
    if endpoint.weight == 0:
        return "no: weight 0"
    if not taken:
        return "no: ejected" if ejected else f"no: {health}"
    if endpoint.backup and primaries:
        return "only if all others fail: backup"
    if health is Health.UNHEALTHY:
        return f"yes: fewer than {plan.panic:.0%} are well, so health is ignored"
    return "yes: ejected, but nobody else is left" if ejected else "yes"


def _candidate(endpoint: Endpoint, health: Health, why: str) -> dict[str, Any]:
    return {
        "backend": endpoint.key,
        "address": endpoint.address,
        "weight": endpoint.weight,
        "state": endpoint.state.value,
        "backup": endpoint.backup,
        "health": health.value,
        "eligible": why.startswith("yes"),
        "why": why,
    }


# Reading the question


def _parts(question: Question) -> tuple[str, int | None, str]:
    """Return the host (lower case, no port), the port and the path that the URL names."""
    url = question.url if "://" in question.url or question.url[:1] == "/" else f"//{question.url}"
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise Problem("bad-request", f'"{question.url}" is no URL: {error}') from None
    host = next((value for name, value in question.headers if name.lower() == "host"), "")
    host = (host or parts.netloc.rpartition("@")[2]).lower()
    if not host.startswith("["):
        host = host.partition(":")[0]
    return host, port, parts.path or "/"


def _listener(question: Question, listeners: Sequence[Listener], port: int | None) -> Listener:
    """Return the listener that is meant: by name, by the URL's port, or because there is one."""
    if question.listener:
        named = [each for each in listeners if each.name == question.listener]
        if not named:
            raise Problem("not-found", f'there is no listener "{question.listener}"')
        return named[0]
    if len(listeners) == 1:
        return listeners[0]
    by_port = [each for each in listeners if port in map(_port_of, each.addresses)]
    if port is None or len(by_port) != 1:
        names = ", ".join(each.name for each in listeners)
        raise Problem(
            "bad-request",
            "the URL's port does not tell which listener is meant",
            f"name it: {names}" if names else "the config has no listener",
        )
    return by_port[0]


def _port_of(address: str) -> int | None:
    try:
        return listen_address(address).port or None
    except BadAddressError:
        return None


def _share(route: Route, question: Question) -> str | None:
    """Return the side of a split, where the question tells what it is split by."""
    kind, _, name = route.split_by.partition(":")
    given = [(header.lower(), value) for header, value in question.headers]
    if kind == "header":
        key = ",".join(value for header, value in given if header == name)
    elif kind == "cookie":
        key = next((_cookie(value, name) for header, value in given if header == "cookie"), "")
    elif question.client:
        key = question.client
    else:
        return None
    return pick_share(route, key.encode("latin-1", "replace"))


def _cookie(header: str, name: str) -> str:
    for pair in header.split(";"):
        key, _, value = pair.strip().partition("=")
        if key == name:
            return value
    return ""


def _headers_in(headers: Any) -> Headers:
    if isinstance(headers, dict):
        headers = list(headers.items())
    if not isinstance(headers, list | tuple) or len(headers) > HEADERS_MAX:
        raise Problem("bad-request", f"headers must be a list of at most {HEADERS_MAX} pairs")
    for pair in headers:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Problem("bad-request", "each header must be a pair of name and value")
        if not all(isinstance(part, str) for part in pair):
            raise Problem("bad-request", "a header's name and value must be texts")
    return [(name, value) for name, value in headers]
