"""What the admin API shows: the instance's status, its upstreams, the config in force."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from time import monotonic
from typing import Any, Final

from aiohttp import web

from lb import __version__
from lb.build import BUILD
from lb.config.addresses import BadAddressError, backend_address
from lb.control.admin_guard import flag, respond, wall_time
from lb.control.admin_recent import Recent
from lb.control.desk import Check, Desk
from lb.control.problems import Problem
from lb.edition import endpoints_of
from lb.metrics import Reading
from lb.model import Health
from lb.outlier import Ejection
from lb.plans import is_checked
from lb.registry import By, Changed, Entry, Source, UpstreamEntry

CONFIRM_SECONDS_MAX: Final = 5.0
Views = Mapping[str, dict[str, Any]]  # What each member says, by name.

# Best first: a backend is as well as the best of its endpoints.
HEALTH_ORDER = (Health.HEALTHY, Health.CHECKING, Health.UNHEALTHY)


class Reads:
    """Handlers of GET; none of them changes anything."""

    def __init__(
        self, desk: Desk, recent: Recent, ask_view: Callable[[str], Awaitable[Views]]
    ) -> None:
        self._desk = desk
        self._recent = recent
        self._ask_view = ask_view

    async def status(self, request: web.Request) -> web.Response:
        """How this instance is."""
        desk = self._desk
        standing = desk.standing()
        group = desk.group.standing()
        unready = desk.unready()
        return respond(
            {
                "name": standing.name,
                "version": __version__,
                "pid": standing.pid,
                "uptime_s": round(max(0.0, wall_time() - standing.started), 1),
                "ready": not unready,
                "unready": unready or None,
                "stopping": standing.stopping,
                "build": BUILD,
                "upgrade": standing.upgrade,
                "config": {
                    "generation": standing.generation,
                    "error": standing.error,
                    "on_disk": standing.on_disk,
                    "source": standing.source,
                    "files": list(standing.files),
                    "reloaded": standing.reloaded,
                },
                "workers": [
                    {
                        "slot": worker.slot,
                        "pid": worker.pid,
                        "up": worker.up,
                        "edition": worker.edition,
                        "restarts": worker.restarts,
                    }
                    for worker in standing.workers
                ],
                "group": {
                    "id": group.id,
                    "role": group.role,
                    "leader": group.leader,
                    "term": group.term,
                    "revision": group.revision,
                    "quorum": group.quorum,
                    "state": group.state,
                    "age_s": round(group.age_s, 3),
                    "waiting_for": list(group.waiting_for),
                    "detail": group.detail,
                },
                "forced": [
                    {"upstream": upstream, "backend": key, "to": to}
                    for upstream, keys in desk.forced().items()
                    for key, to in keys.items()
                ],
                "certificates": list(standing.certificates),
                "traffic": self._traffic(desk.reading()),
            },
            X_Revision=str(desk.routed_revision()),
        )

    async def upstreams(self, request: web.Request) -> web.Response:
        """All upstreams, those of the config first."""
        desk = self._desk
        views = await self._prepare(request, "")
        reading = desk.reading()
        revision = desk.store.registry.revision
        shown = [
            upstream_as_plain(desk, self._recent, reading, name) for name in upstream_names(desk)
        ]
        if views is not None:
            for each in shown:
                each["members"] = _of_upstream(views, each["name"])
        return self._versioned({"revision": revision, "upstreams": shown}, revision)

    async def upstream(self, request: web.Request) -> web.Response:
        """One upstream with all its backends."""
        name = request.match_info["upstream"]
        views = await self._prepare(request, name)
        known_upstream(self._desk, name)
        plain = upstream_as_plain(self._desk, self._recent, self._desk.reading(), name)
        if views is not None:
            plain["members"] = views
        return self._versioned(plain, plain["revision"])

    async def backend(self, request: web.Request) -> web.Response:
        """One backend."""
        name = request.match_info["upstream"]
        views = await self._prepare(request, name)
        entry = entry_of(self._desk, known_upstream(self._desk, name))
        key = known_key(name, entry, request.match_info["backend"])
        plain = backend_as_plain(
            self._desk, self._recent, self._desk.reading(), name, entry.backends[key]
        )
        if views is not None:
            plain["members"] = _of_backend(views, key)
        return self._versioned(plain, plain["revision"])

    async def config(self, request: web.Request) -> web.Response:
        """The config in force, defaults included, secrets as `***`."""
        standing = self._desk.standing()
        plain = {
            "generation": standing.generation,
            "source": standing.source,
            "files": list(standing.files),
            "config": json.loads(self._desk.config.model_dump_json()),
        }
        return respond(plain, ETag=f'"{standing.generation}"')

    async def _prepare(self, request: web.Request, upstream: str) -> Views | None:
        """Do what the query asks for before the answer: read through the leader, ask all."""
        if flag(request, "consistent"):
            await confirm(self._desk)
        match request.query.get("view"):
            case None:
                return None
            case "group":
                return await self._ask_view(upstream)
            case other:
                raise Problem("bad-request", f'"{other}" is not a value of ?view', "it takes group")

    def _versioned(self, plain: Any, revision: int) -> web.Response:
        routed = self._desk.routed_revision()
        return respond(plain, ETag=f'"{revision}"', X_Revision=str(routed))

    def _traffic(self, reading: Reading) -> dict[str, Any]:
        by_code = reading.by("lb_requests_total", "code")
        return {
            "requests": int(sum(by_code.values())),
            "errors": int(sum(count for (code,), count in by_code.items() if code[:1] == "5")),
            "connections": int(reading.total("lb_connections")),
            "latency_ms": self._recent.of_requests(reading),
        }


async def confirm(desk: Desk) -> None:
    """Return when the registry here is as new as any was at the call, or say that it may not be."""
    try:
        async with asyncio.timeout(CONFIRM_SECONDS_MAX):
            await desk.group.confirm()
    except TimeoutError:
        raise Problem(
            "no-quorum",
            f"nobody confirmed within {CONFIRM_SECONDS_MAX:.0f} s that this instance is current",
            "without ?consistent it answers by what it knows",
        ) from None


# What exists


def upstream_names(desk: Desk) -> list[str]:
    """Return the names that config or registry know, the config's first and in its order."""
    return list({**dict.fromkeys(desk.config.upstream), **dict.fromkeys(_registered(desk))})


def known_upstream(desk: Desk, name: str) -> str:
    """Return the name, or answer that there is no such upstream."""
    if name not in desk.config.upstream and name not in _registered(desk):
        raise Problem(
            "not-found", f'there is no upstream "{name}"', "GET /v1/upstreams shows those there are"
        )
    return name


def entry_of(desk: Desk, name: str) -> UpstreamEntry:
    """Return what is routed by: the registry's entry, or the file's list until it has one."""
    entry = _registered(desk).get(name)
    if entry is not None:
        return entry
    nobody = Changed(By(source="file"), 0, 0.0)
    return UpstreamEntry(
        0,
        {
            said.key: Entry(
                said.address, nobody, said.name, said.weight, backup=said.backup, source=Source.FILE
            )
            for said in desk.config.upstream[name].backends or ()
        },
    )


def known_key(upstream: str, entry: UpstreamEntry, text: str) -> str:
    """Return the key of the backend that the text names: its name, or its address."""
    for key in (text, canonical_key(text)):
        if key in entry.backends:
            return key
    raise Problem(
        "not-found",
        f'upstream "{upstream}" has no backend "{text}"',
        f"GET /v1/upstreams/{upstream} shows those it has",
    )


def canonical_key(text: str) -> str:
    """Return an address in the one spelling that we use for it; anything else as it came."""
    try:
        return str(backend_address(text))
    except BadAddressError:
        return text


def _registered(desk: Desk) -> Mapping[str, UpstreamEntry]:
    return desk.store.registry.upstreams


# How it looks


def upstream_as_plain(desk: Desk, recent: Recent, reading: Reading, name: str) -> dict[str, Any]:
    """Return one upstream as the design shows it."""
    entry = entry_of(desk, name)
    configured = desk.config.upstream.get(name)
    return {
        "name": name,
        "revision": entry.revision,
        "configured": configured is not None,
        "balance": None if configured is None else configured.balance,
        "panic": reading.total("lb_upstream_panic", upstream=name) > 0,
        "backends": [
            backend_as_plain(desk, recent, reading, name, backend)
            for backend in entry.backends.values()
        ],
        "leaving": list(_leaving(reading, name, entry)),
    }


def backend_as_plain(
    desk: Desk, recent: Recent, reading: Reading, upstream: str, backend: Entry
) -> dict[str, Any]:
    """Return one backend as the design shows it."""
    endpoints = _endpoints(desk, upstream, backend.address)
    ejections = desk.ejected().get(upstream, {})
    labels = {"upstream": upstream, "backend": backend.key}
    return {
        "address": backend.address,
        "name": backend.name,
        "weight": backend.weight,
        "state": backend.state.value,
        "backup": backend.backup,
        "ttl": backend.ttl,
        "suspect": backend.suspect,
        "source": backend.source.value,
        "labels": dict(backend.labels),
        "revision": backend.revision,
        "health": _health(_checked(desk, upstream), endpoints),
        "ejected": is_ejected(desk, upstream, backend),
        "forced": desk.forced().get(upstream, {}).get(backend.key),
        "last_check": _last_check(endpoints),
        "in_flight": int(reading.total("lb_backend_active_requests", **labels)),
        "requests": int(reading.total("lb_backend_requests_total", **labels)),
        "errors": int(reading.total("lb_backend_errors_total", **labels)),
        "latency_ms": recent.of_backend(reading, upstream, backend.key),
        "changed": _changed(backend),
        "endpoints": [
            {
                "address": address,
                "health": check.verdict.value,
                "last_check": _plain_check(check),
                "ejected": address in ejections,
                "ejection": _plain_ejection(ejections.get(address)),
            }
            for address, check in endpoints.items()
        ],
    }


def health_of(desk: Desk, upstream: str, backend: Entry) -> str:
    """Return the verdict on a backend: that of the best of its endpoints."""
    return _health(_checked(desk, upstream), _endpoints(desk, upstream, backend.address))


def is_ejected(desk: Desk, upstream: str, backend: Entry) -> bool:
    """Whether all of a backend's endpoints are taken out by what traffic showed."""
    ejections = desk.ejected().get(upstream, {})
    endpoints = endpoints_of(backend.address, desk.resolved())
    return bool(endpoints) and all(address in ejections for address in endpoints)


def checks_of(desk: Desk, upstream: str, backend: Entry) -> Collection[Check]:
    """Return what is known of each of a backend's endpoints."""
    return _endpoints(desk, upstream, backend.address).values()


def _changed(backend: Entry) -> dict[str, Any] | None:
    if backend.revision == 0:
        return None  # Nobody wrote it yet: it is served from the file.
    changed = backend.changed
    return {"by": changed.by.to_plain(), "revision": changed.revision, "at": changed.at}


def _of_upstream(views: Views, upstream: str) -> dict[str, Any]:
    """Cut what each member says of all upstreams down to one."""
    shown = {}
    for member, said in views.items():
        upstreams = said.get("upstreams")
        shown[member] = (
            {"revision": said["revision"], "backends": upstreams.get(upstream, {})}
            if isinstance(upstreams, dict)
            else said
        )
    return shown


def _of_backend(views: Views, key: str) -> dict[str, Any]:
    """Cut it down to one backend; None where a member does not know it."""
    shown = {}
    for member, said in views.items():
        backends = said.get("backends")
        if isinstance(backends, dict):
            of_it = backends.get(key) or {"health": None, "in_flight": 0}
            shown[member] = {"revision": said["revision"], **of_it}
        else:
            shown[member] = said
    return shown


def _endpoints(desk: Desk, upstream: str, address: str) -> dict[str, Check]:
    checks = desk.checks(upstream)
    default = Check(Health.CHECKING if _checked(desk, upstream) else Health.UNCHECKED)
    found = endpoints_of(address, desk.resolved())
    return {each: checks.get(each, default) for each in found}


def _checked(desk: Desk, upstream: str) -> bool:
    configured = desk.config.upstream.get(upstream)
    return configured is not None and is_checked(configured.health)


def _health(checked: bool, endpoints: Mapping[str, Check]) -> str:
    if not checked:
        return Health.UNCHECKED.value
    verdicts = {check.verdict for check in endpoints.values()}
    best = (verdict for verdict in HEALTH_ORDER if verdict in verdicts)
    return next(best, Health.CHECKING).value  # A name that is not resolved yet has no endpoint.


def _last_check(endpoints: Mapping[str, Check]) -> dict[str, Any] | None:
    """Return the newest check: where a backend has one endpoint, that is the one."""
    checks = [check.last_check for check in endpoints.values() if check.last_check is not None]
    return dict(max(checks, key=lambda check: float(check["at"]))) if checks else None


def _plain_check(check: Check) -> dict[str, Any] | None:
    return None if check.last_check is None else dict(check.last_check)


def _plain_ejection(ejection: Ejection | None) -> dict[str, Any] | None:
    if ejection is None:
        return None
    left = max(0.0, ejection.until - monotonic())
    return {"cause": ejection.cause, "times": ejection.times, "seconds_left": round(left, 1)}


def _leaving(reading: Reading, upstream: str, entry: UpstreamEntry) -> Iterator[dict[str, Any]]:
    """Yield those that are out of the registry while workers still finish what runs there."""
    active = reading.by("lb_backend_active_requests", "upstream", "backend")
    for (name, key), count in active.items():
        if name == upstream and count > 0 and key not in entry.backends:
            yield {"address": key, "in_flight": int(count)}
