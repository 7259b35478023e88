"""`/openapi.json`: the admin API described for machines. One table of operations, one of shapes."""

from __future__ import annotations

from typing import Any, get_args

from lb import __version__
from lb.control.admin_roles import Need, need_of
from lb.control.admin_session import COOKIE
from lb.control.desk import GroupState, Role
from lb.control.problems import KINDS
from lb.model import Health, State

Json = dict[str, Any]


def document() -> Json:
    """Return the OpenAPI 3.1 document."""
    paths: Json = {}
    for method, path, summary, details in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(method, path, summary, details)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Accord admin API",
            "version": __version__,
            "description": "Errors are RFC 9457 problems; `code` says which.",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": SECURITY_SCHEMES},
        "security": [{name: []} for name in SECURITY_SCHEMES],
    }


def _operation(method: str, path: str, summary: str, details: Json) -> Json:
    name = path.strip("/").replace("/v1", "").replace("v1/", "")
    words = name.replace("{", "").replace("}", "").replace("/", "_").replace(".", "_")
    operation: Json = {
        "operationId": f"{method}_{words or 'dashboard'}",
        "summary": summary,
        "parameters": [
            *(_in_path(part) for part in IN_PATH if f"{{{part}}}" in path),
            *(PARAMETERS[each] for each in details.get("takes", "").split()),
        ],
        "responses": {
            **{
                status: _answer(details.get("schema"), details.get("type", "application/json"))
                for status in details.get("statuses", "200").split()
            },
            "default": _answer("Problem", "application/problem+json"),
        },
    }
    if need_of(method.upper(), path) is Need.NOTHING:
        operation["security"] = []
    if "body" in details:
        operation["requestBody"] = {
            "required": details.get("body_required", False),
            "content": {"application/json": {"schema": _ref(details["body"])}},
        }
    return operation


def _answer(schema: str | None, media: str) -> Json:
    content = {media: {"schema": _ref(schema) if schema else {}}}
    return {"description": "A problem" if schema == "Problem" else "Done", "content": content}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


IN_PATH = {
    "upstream": "The upstream's name.",
    "backend": "The backend's name or address, percent-encoded where needed.",
    "name": "The member's name.",
}


def _in_path(name: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": IN_PATH[name],
        "schema": {"type": "string", "minLength": 1},
    }


def _query(name: str, description: str, schema: Json | None = None) -> Json:
    schema = schema or {"type": "boolean"}
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _header(name: str, description: str) -> Json:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "schema": schema}


PARAMETERS: dict[str, Json] = {
    "force": _query("force", "Even if no active backend is left."),
    "force_member": _query("force", "Even if too few voters would be up without it."),
    "now": _query("now", "Cut what runs there."),
    "note": _query("note", "Why, for those who look later.", {"type": "string"}),
    "wait": _query(
        "wait", "Wait for every live member; `behind` names those that are late.", {"enum": ["all"]}
    ),
    "consistent": _query(
        "consistent", "Registry fields as of a read through the leader; 503 without quorum."
    ),
    "view": _query(
        "view",
        "`members`: each member's health, in-flight and revision; who is silent is named.",
        {"enum": ["group"]},
    ),
    "from": _query(
        "from",
        "The first revision wanted; without it, what is to come.",
        {"type": "integer", "minimum": 0},
    ),
    "last_event": _header("Last-Event-ID", "The last revision seen; goes before `from`."),
    "dry_run": _query("dry_run", "Only say what would change."),
    "if_match": _header("If-Match", "Only if the revision is still this one; else 412."),
    "if_none_match": _header("If-None-Match", "`*`: create, do not replace; else 412."),
    "key": _header("Idempotency-Key", "Repeated with the same key, the write acts once."),
}
READ = "consistent view"
WRITE = "force note wait if_match key"
SECURITY_SCHEMES: Json = {
    "token": {"type": "http", "scheme": "bearer", "description": "Where `admin.tokens` are set."},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
}
UPSTREAM = "/v1/upstreams/{upstream}"
BACKEND = UPSTREAM + "/backends/{backend}"
MEMBER = "/v1/group/members/{name}"

OPERATIONS: list[tuple[str, str, str, Json]] = [
    ("get", "/v1/status", "How this instance is.", {"schema": "Status"}),
    ("get", "/v1/upstreams", "All upstreams.", {"schema": "Upstreams", "takes": READ}),
    (
        "get",
        UPSTREAM,
        "One upstream with its backends.",
        {"schema": "Upstream", "takes": READ},
    ),
    (
        "patch",
        UPSTREAM,
        "Change several backends in one revision.",
        {"schema": "Written", "takes": WRITE, "body": "Edits", "body_required": True},
    ),
    (
        "delete",
        UPSTREAM,
        "Forget an upstream that no config names.",
        {"schema": "Written", "takes": WRITE},
    ),
    ("get", BACKEND, "One backend.", {"schema": "Backend", "takes": READ}),
    (
        "put",
        BACKEND,
        "Add a backend, or replace what is said of it; `state` is kept unless named.",
        {
            "schema": "Written",
            "takes": f"{WRITE} if_none_match",
            "body": "Said",
            "statuses": "200 201",
        },
    ),
    (
        "patch",
        BACKEND,
        "Change what is said of a backend, and nothing else.",
        {"schema": "Written", "takes": WRITE, "body": "Said", "body_required": True},
    ),
    (
        "delete",
        BACKEND,
        "Take a backend out; what runs there is finished, or cut.",
        {"schema": "Written", "takes": f"{WRITE} now"},
    ),
    (
        "post",
        BACKEND + "/force",
        "Force a backend up or down on this instance alone; needs no quorum.",
        {"schema": "Object", "takes": "note", "body": "Force", "body_required": True},
    ),
    (
        "post",
        BACKEND + "/renew",
        "Extend a lease by its whole ttl, without a revision; 404: register again.",
        {"schema": "Lease", "takes": "note"},
    ),
    (
        "get",
        "/v1/events",
        "Server-sent events: one a revision, in order; 410 for what is compacted away.",
        {"type": "text/event-stream", "schema": "Event", "takes": "from last_event"},
    ),
    ("get", "/v1/group", "How the group stands, seen from here.", {"schema": "Group"}),
    (
        "put",
        MEMBER,
        "Expect an instance of that name; it comes in as a learner.",
        {"schema": "Object", "takes": "note", "body": "Address", "body_required": True},
    ),
    (
        "delete",
        MEMBER,
        "Take a member out for good.",
        {"schema": "Object", "takes": "force_member note"},
    ),
    (
        "post",
        "/v1/group/transfer",
        "Hand leadership to a member, or to the one that is furthest.",
        {"schema": "Leader", "takes": "note", "body": "To"},
    ),
    (
        "post",
        "/v1/group/found",
        "Found the group now, though not every listed member has answered.",
        {"schema": "Object", "takes": "note"},
    ),
    (
        "post",
        "/v1/group/recover",
        "Make what this instance knows a new group of one; only from its own machine.",
        {"schema": "Object", "takes": "note", "body": "Lost", "body_required": True},
    ),
    (
        "get",
        "/v1/group/ok-to-stop",
        "Whether the group has a quorum without this instance.",
        {"schema": "OkToStop"},
    ),
    ("get", "/v1/group/backup", "All that the registry holds.", {"schema": "Object"}),
    (
        "post",
        "/v1/group/restore",
        "Make the registry what a backup says, in one revision.",
        {"schema": "Written", "takes": "note wait key", "body": "Object", "body_required": True},
    ),
    ("get", "/v1/config", "The config in force.", {"schema": "Object"}),
    ("get", "/v1/plugins", "Plugins in use, and how they do.", {"schema": "Object"}),
    (
        "post",
        "/v1/config/reload",
        "Reload the config file.",
        {"schema": "Reload", "takes": "dry_run force note"},
    ),
    (
        "post",
        "/v1/config/sync",
        "Make the registry's view of the file what this instance's file says.",
        {"schema": "Reload", "takes": "dry_run note"},
    ),
    (
        "post",
        "/v1/explain",
        "Why a request would go where it goes.",
        {"schema": "Object", "body": "Question", "body_required": True},
    ),
    (
        "post",
        "/v1/stop",
        "Stop gracefully.",
        {"schema": "Object", "body": "Stop", "statuses": "202"},
    ),
    (
        "post",
        "/v1/upgrade",
        "Run what is installed now, in place; answered once its workers serve.",
        {"schema": "Object", "statuses": "202"},
    ),
    (
        "post",
        "/v1/session",
        "Swap a token for the dashboard's cookie.",
        {"schema": "Session", "body": "Token"},
    ),
    ("delete", "/v1/session", "End the cookie's session.", {"schema": "Object"}),
    ("get", "/livez", "Whether this process answers.", {"schema": "Object"}),
    ("get", "/readyz", "Whether traffic should come here.", {"schema": "Object"}),
    ("get", "/metrics", "Prometheus text.", {"type": "text/plain"}),
    ("get", "/openapi.json", "This document.", {"schema": "Object"}),
    ("get", "/", "The dashboard.", {"type": "text/html"}),
]

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
FLAG: Json = {"type": "boolean"}
MILLISECONDS: Json = {"type": ["number", "null"]}
LATENCY: Json = {"type": "object", "properties": {"p50": MILLISECONDS, "p99": MILLISECONDS}}
STATE: Json = {"enum": [state.value for state in State]}
HEALTH: Json = {"enum": [health.value for health in Health]}
LABELS: Json = {"type": "object", "additionalProperties": {"type": ["string", "null"]}}
TEXTS: Json = {"type": "array", "items": TEXT}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties}


def _list(name: str) -> Json:
    return {"type": "array", "items": _ref(name)}


SCHEMAS: dict[str, Json] = {
    "Object": {"type": "object"},
    "Problem": {
        **_object(
            type=TEXT,
            code={"enum": list(KINDS)},
            title=TEXT,
            status={"type": "integer"},
            detail=TEXT,
            hint=TEXT,
        ),
        "required": ["type", "code", "title", "status", "detail", "hint"],
    },
    "Status": {
        **_object(
            name=TEXT,
            version=TEXT,
            pid=COUNT,
            uptime_s={"type": "number"},
            ready=FLAG,
            unready={"type": ["string", "null"]},
            stopping=FLAG,
            config={"type": "object"},
            workers=_list("Object"),
            group={"type": "object"},
            traffic={"type": "object"},
        ),
        "required": ["name", "version", "uptime_s", "config", "workers", "group"],
    },
    "Upstreams": _object(revision=COUNT, upstreams=_list("Upstream")),
    "Upstream": {
        **_object(
            name=TEXT,
            revision=COUNT,
            configured=FLAG,
            balance={"type": ["string", "null"]},
            panic=FLAG,
            backends=_list("Backend"),
            leaving=_list("Object"),
            members={"type": "object"},
        ),
        "required": ["name", "revision", "backends"],
    },
    "Backend": {
        **_object(
            address=TEXT,
            name={"type": ["string", "null"]},
            weight=COUNT,
            state=STATE,
            backup=FLAG,
            source={"enum": ["file", "api"]},
            labels=LABELS,
            ttl={"type": ["number", "null"]},
            suspect=FLAG,
            revision=COUNT,
            health=HEALTH,
            ejected=FLAG,
            forced={"enum": ["up", "down", None]},
            last_check={"type": ["object", "null"]},
            in_flight={"type": "integer"},
            requests=COUNT,
            errors=COUNT,
            latency_ms=LATENCY,
            changed={"type": ["object", "null"]},
            endpoints=_list("Object"),
        ),
        "required": ["address", "weight", "state", "backup", "source", "health"],
    },
    "Said": {
        **_object(
            address=TEXT,
            name=TEXT,
            weight={"type": "integer", "minimum": 0, "maximum": 1000},
            state=STATE,
            backup=FLAG,
            labels=LABELS,
            ttl={**TEXT, "description": "5s or more; renewed in time, or the backend is gone."},
        ),
        "additionalProperties": False,
    },
    "Edits": {
        **_object(
            backends={
                "type": "object",
                "additionalProperties": {"anyOf": [_ref("Said"), {"type": "null"}]},
            }
        ),
        "required": ["backends"],
        "additionalProperties": False,
    },
    "Written": {
        **_object(
            revision=COUNT,
            routed=FLAG,
            behind=TEXTS,
            unreachable=TEXTS,
            backend=_ref("Backend"),
            upstream=_ref("Upstream"),
        ),
        "required": ["revision", "routed"],
    },
    "Lease": _object(ttl={"type": "number"}, suspect=FLAG),
    "Event": {
        **_object(
            revision=COUNT,
            at={"type": "number"},
            by={"type": ["object", "null"]},
            kind=TEXT,
            upstream=TEXT,
            member=TEXT,
            changes=_list("Object"),
        ),
        "required": ["revision", "at", "by", "kind", "upstream", "changes"],
    },
    "Group": {
        **_object(
            name=TEXT,
            id=TEXT,
            role={"enum": list(get_args(Role))},
            leader=TEXT,
            term=COUNT,
            revision=COUNT,
            commit=COUNT,
            applied=COUNT,
            quorum=FLAG,
            state={"enum": list(get_args(GroupState))},
            detail=TEXT,
            age_s={"type": "number"},
            waiting_for=TEXTS,
            members=_list("Member"),
        ),
        "required": ["id", "role", "leader", "term", "revision", "quorum", "state", "members"],
    },
    "Member": {
        **_object(
            name=TEXT,
            address=TEXT,
            role={"enum": ["voter", "learner"]},
            id=COUNT,
            match={"type": ["integer", "null"]},
            lag={"type": ["integer", "null"]},
            last_contact_ms={"type": ["integer", "null"]},
            version=TEXT,
            config_hash=TEXT,
            live=FLAG,
        ),
        "required": ["name", "address", "role"],
    },
    "Address": {
        **_object(address=TEXT),
        "required": ["address"],
        "additionalProperties": False,
    },
    "To": {**_object(to=TEXT), "additionalProperties": False},
    "Leader": _object(leader=TEXT),
    "Lost": {**_object(lost=TEXTS), "required": ["lost"], "additionalProperties": False},
    "OkToStop": {
        **_object(ok=FLAG, reason=TEXT, voters=COUNT, needed=COUNT, left=COUNT),
        "required": ["ok", "reason"],
    },
    "Reload": _object(
        generation=COUNT,
        changed=TEXTS,
        needs_restart=TEXTS,
        refused=_list("Object"),
        stale={"type": "array"},
    ),
    "Question": {
        **_object(
            method=TEXT,
            url=TEXT,
            listener=TEXT,
            client=TEXT,
            headers={"type": "array", "items": {"type": "array", "items": TEXT}},
        ),
        "required": ["method", "url"],
        "additionalProperties": False,
    },
    "Force": {**_object(to={"enum": ["up", "down", "auto"]}), "required": ["to"]},
    "Stop": {**_object(drain=TEXT), "additionalProperties": False},
    "Token": {**_object(token=TEXT), "additionalProperties": False},
    "Session": _object(name=TEXT, role=TEXT, seconds={"type": ["integer", "null"]}),
}
