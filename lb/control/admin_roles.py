"""
Which token may do what: one table of methods and paths, and the only place that says so.

What is not in the table wants an `admin` token, so a path that somebody forgot is closed. A
test goes through the document of the API and fails for a path that has no line here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Need(StrEnum):
    """What one operation asks of whoever calls."""

    NOTHING = "nothing"  # No token at all: the page that asks for one.
    ANY = "any"
    READ = "read"
    REGISTER = "register"  # Leased backends; a register token only in its own upstreams.
    WRITE = "write"
    ADMIN = "admin"


UPSTREAM: Final = "/v1/upstreams/{upstream}"
BACKEND: Final = UPSTREAM + "/backends/{backend}"

NEEDS: Final[dict[tuple[str, str], Need]] = {
    ("GET", "/"): Need.NOTHING,
    ("GET", "/{file}"): Need.NOTHING,
    ("POST", "/v1/session"): Need.NOTHING,
    ("DELETE", "/v1/session"): Need.ANY,
    ("GET", "/livez"): Need.ANY,
    ("GET", "/readyz"): Need.ANY,
    ("GET", "/openapi.json"): Need.ANY,
    ("GET", "/metrics"): Need.READ,
    ("GET", "/v1/status"): Need.READ,
    ("GET", "/v1/upstreams"): Need.READ,
    ("GET", UPSTREAM): Need.READ,
    ("PATCH", UPSTREAM): Need.WRITE,
    ("DELETE", UPSTREAM): Need.ADMIN,
    ("GET", BACKEND): Need.READ,
    ("PUT", BACKEND): Need.REGISTER,
    ("PATCH", BACKEND): Need.WRITE,
    ("DELETE", BACKEND): Need.REGISTER,
    ("POST", BACKEND + "/renew"): Need.REGISTER,
    ("POST", BACKEND + "/force"): Need.WRITE,
    ("GET", "/v1/events"): Need.READ,
    ("GET", "/v1/group"): Need.READ,
    ("PUT", "/v1/group/members/{name}"): Need.ADMIN,
    ("DELETE", "/v1/group/members/{name}"): Need.ADMIN,
    ("POST", "/v1/group/transfer"): Need.ADMIN,
    ("POST", "/v1/group/found"): Need.ADMIN,
    ("POST", "/v1/group/recover"): Need.ADMIN,
    ("GET", "/v1/group/ok-to-stop"): Need.READ,
    ("GET", "/v1/group/backup"): Need.ADMIN,
    ("POST", "/v1/group/restore"): Need.ADMIN,
    ("GET", "/v1/locks"): Need.READ,
    ("PUT", "/v1/locks/{name}"): Need.WRITE,
    ("DELETE", "/v1/locks/{name}"): Need.WRITE,
    ("POST", "/v1/rollouts"): Need.ADMIN,
    ("GET", "/v1/rollouts/{id}"): Need.READ,
    ("POST", "/v1/rollouts/{id}/confirm"): Need.ADMIN,
    ("GET", "/v1/config"): Need.READ,
    ("POST", "/v1/config/reload"): Need.ADMIN,
    ("POST", "/v1/config/sync"): Need.ADMIN,
    ("POST", "/v1/explain"): Need.READ,
    ("GET", "/v1/exchanges/{id}"): Need.READ,
    ("GET", "/v1/plugins"): Need.READ,
    ("POST", "/v1/stop"): Need.ADMIN,
    ("POST", "/v1/upgrade"): Need.ADMIN,
}

# What each role covers. `register` is no step of the ladder: it may not even read.
COVERS: Final[dict[str, frozenset[Need]]] = {
    "read": frozenset({Need.NOTHING, Need.ANY, Need.READ}),
    "register": frozenset({Need.NOTHING, Need.ANY, Need.REGISTER}),
    "write": frozenset({Need.NOTHING, Need.ANY, Need.READ, Need.REGISTER, Need.WRITE}),
    "admin": frozenset(Need),
}


def need_of(method: str, path: str) -> Need:
    """Say what an operation asks for; `path` is the template, as the document of the API has it."""
    return NEEDS.get(("GET" if method == "HEAD" else method, path), Need.ADMIN)


def allows(role: str, need: Need) -> bool:
    """Whether a role may do what needs this; of a register token more is asked where it matters."""
    return need in COVERS[role]
