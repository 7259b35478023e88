"""
The admin API: HTTP for operators, their scripts and the dashboard.

This file has the servers and the table of paths; `admin_guard` is what every request passes,
`admin_reads`, `admin_writes` and `admin_acts` answer. The admin judges the form of a request
only: whether a backend may go is decided in `registry.apply`, alike on every instance.

Not here: `proxy/`. Control and data path share no HTTP code on purpose: this side may be slow
and complete, that side must be neither.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import Any

from aiohttp import web

from lb.control.admin_access import Access
from lb.control.admin_acts import Acts
from lb.control.admin_door import Door, Tls, plain
from lb.control.admin_group import GroupActs
from lb.control.admin_guard import BODY_BYTES_MAX, answer_errors, guard
from lb.control.admin_plugins import PluginReads
from lb.control.admin_probes import Probes
from lb.control.admin_reads import Reads
from lb.control.admin_recent import RECENT_SECONDS, Recent
from lb.control.admin_static import Static
from lb.control.admin_views import whole_view
from lb.control.admin_writes import Writes
from lb.control.desk import Desk
from lb.control.events import Events
from lb.control.openapi import document
from lb.control.problems import Problem

STOP_SECONDS_MAX = 1.0  # What runs at a stop gets this long.

LATER = ("locks", "rollouts", "exchanges")


class AdminServer:
    """Everything under `admin.address`, on one listening socket; `tls` says how to speak there."""

    def __init__(self, desk: Desk, tls: Tls = plain) -> None:
        self._desk = desk
        self._access = Access(lambda: desk.config, lambda: desk.store.registry)
        self._recent = Recent(desk.reading)
        self._sampler: asyncio.TimerHandle | None = None
        self.events = Events(desk, self._access.still_reads)  # Have it hear of all that is applied.
        self._server = _Server(self._app(), tls)

    async def start(self, sock: socket.socket) -> None:
        """Serve on a listening socket; TCP or unix."""
        self._sample()
        self.events.start()
        await self._server.start(sock)

    async def stop(self) -> None:
        """Stop serving; what runs gets a second."""
        if self._sampler is not None:
            self._sampler.cancel()
        self.events.stop()
        await self._server.stop()

    def _sample(self) -> None:
        self._recent.turn()
        loop = asyncio.get_running_loop()
        self._sampler = loop.call_later(RECENT_SECONDS, self._sample)

    def _app(self) -> web.Application:
        desk = self._desk
        app = web.Application(
            client_max_size=BODY_BYTES_MAX,
            middlewares=[
                answer_errors,
                guard(lambda: desk.config.admin.hosts),
                self._access.middleware(),
            ],
        )
        app.on_response_prepare.append(stamp(desk))
        reads = Reads(desk, self._recent, functools.partial(whole_view, desk))
        writes = Writes(desk, self._recent)
        acts, probes, static = Acts(desk), Probes(desk), Static()
        upstream = "/v1/upstreams/{upstream}"
        backend = upstream + "/backends/{backend:.+}"  # An address may hold a slash: unix:/p
        app.add_routes(
            [
                web.get("/v1/status", reads.status),
                web.get("/v1/upstreams", reads.upstreams),
                web.get(upstream, reads.upstream),
                web.get(backend, reads.backend),
                web.put(backend, writes.put_backend),
                web.patch(backend, writes.patch_backend),
                web.delete(backend, writes.delete_backend),
                web.post(backend + "/renew", writes.renew),
                web.post(backend + "/force", acts.force),
                web.patch(upstream, writes.patch_upstream),
                web.delete(upstream, writes.delete_upstream),
                web.get("/v1/config", reads.config),
                web.post("/v1/config/reload", acts.reload),
                web.post("/v1/config/sync", acts.sync),
                web.post("/v1/explain", acts.explain),
                web.post("/v1/stop", acts.stop),
                web.post("/v1/upgrade", acts.upgrade),
                web.post("/v1/session", self._access.open_session),
                web.delete("/v1/session", self._access.close_session),
                web.get("/v1/plugins", PluginReads(desk).get),
                web.get("/openapi.json", _openapi),
                web.get("/v1/events", self.events.get, allow_head=False),
                *_group_routes(GroupActs(desk, writes)),
                *_probe_routes(probes),
                *(web.route("*", f"/v1/{word}{{rest:(/.*)?}}", _later) for word in LATER),
                web.get("/", static.get),
                web.get("/{file}", static.get),
            ]
        )
        return app


class ProbeServer:
    """`admin.probe`: plain HTTP without tokens, and only what orchestrators and Prometheus ask."""

    def __init__(self, desk: Desk) -> None:
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[answer_errors])
        app.add_routes(_probe_routes(Probes(desk)))
        self._server = _Server(app, plain)

    async def start(self, sock: socket.socket) -> None:
        """Serve on a listening socket."""
        await self._server.start(sock)

    async def stop(self) -> None:
        """Stop serving."""
        await self._server.stop()


class _Server:
    """An aiohttp application on a socket that somebody else bound."""

    def __init__(self, app: web.Application, tls: Tls) -> None:
        self._app = app
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._door: Door | None = None

    async def start(self, sock: socket.socket) -> None:
        assert self._runner is None, "one socket a server"
        self._runner = web.AppRunner(self._app, shutdown_timeout=STOP_SECONDS_MAX)
        await self._runner.setup()
        assert self._runner.server is not None, "it has been set up"
        self._door = Door(self._runner.server, self._tls)
        await self._door.open(sock)

    async def stop(self) -> None:
        if self._door is not None:
            self._door.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def stamp(desk: Desk) -> Any:
    """Return what has each answer say what it goes by, streams too: revision and term."""

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        if request.path.startswith("/v1/"):
            response.headers.setdefault("X-Revision", str(desk.routed_revision()))
            response.headers.setdefault("X-Raft-Term", str(desk.group.term))

    return add


def _group_routes(group: GroupActs) -> list[web.RouteDef]:
    member = "/v1/group/members/{name}"
    return [
        web.get("/v1/group", group.get),
        web.put(member, group.put_member),
        web.delete(member, group.delete_member),
        web.post("/v1/group/transfer", group.transfer),
        web.post("/v1/group/found", group.found),
        web.post("/v1/group/recover", group.recover),
        web.get("/v1/group/ok-to-stop", group.ok_to_stop),
        web.get("/v1/group/backup", group.backup),
        web.post("/v1/group/restore", group.restore),
    ]


def _probe_routes(probes: Probes) -> list[web.RouteDef]:
    return [
        web.get("/livez", probes.live),
        web.get("/readyz", probes.ready),
        web.get("/metrics", probes.metrics),
    ]


async def _openapi(request: web.Request) -> web.Response:
    return web.json_response(document())


async def _later(request: web.Request) -> web.Response:
    raise Problem("not-yet-supported", f"{request.path} is not yet supported")
