"""
The present edition made live: who listens for what, which plan a request falls under, which
upstream serves it. `install` swaps in what changed; exchanges that run keep what they began
with.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from lb.balance import StandIn
from lb.errors import ClientError
from lb.http1.forwarding import COUNTS_HOPS, loops
from lb.http1.head import RequestFields, RequestHead, cookie_value, field_values, split_absolute
from lb.http1.peers import Peer, Trust, behind
from lb.http1.replies import Reply
from lb.metrics import Meters
from lb.model import Endpoint, Health, Listener, Plans, Route, Upstream
from lb.outlier import Ejection
from lb.plugin import Table
from lb.proxy.accesslog import AccessLog
from lb.proxy.arrival import Arrival
from lb.proxy.client_connection import ClientConnection
from lb.proxy.descriptors import Descriptors
from lb.proxy.door import Door
from lb.proxy.exchange import Exchange
from lb.proxy.hooked import open_hooked
from lb.proxy.live_plugins import LivePlugins
from lb.proxy.load import Load
from lb.proxy.outliers import Outliers
from lb.proxy.plan import Plan, WorkerState
from lb.proxy.tls import TlsTransport
from lb.proxy.tls_contexts import ServerTls
from lb.proxy.upstream import LiveEndpoint, LiveUpstream
from lb.routing import Kind, Match, Router, normalise, pick_share

# What a path must hold before normalising can change or refuse it.
_PATH_TO_NORMALISE = re.compile(rb"[%\\;]|//|/\.")
_KEEP_SERIES_EVERY_S: Final = 30.0


class Direct:
    """Where every plain request of a listener goes that no route can match."""

    __slots__ = ("by", "plan", "ready_path", "upstream")

    def __init__(self, plan: Plan, upstream: LiveUpstream, ready_path: str | None) -> None:
        self.plan = plan
        self.upstream = upstream
        self.by = _hash_key(upstream.policy)
        self.ready_path = (ready_path or "").encode()


class Switchboard:
    """Connects each request with what the present edition says of it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: int,
        workers: int,
        meters: Meters,
        rng: random.Random,
        table: Callable[[str], Table],
    ) -> None:
        self.worker = WorkerState(loop, meters, rng, worker)
        self.workers = workers
        self.ready = True
        self.ready_asked = False  # The worker looks each second, and takes it back.
        self.clients: set[ClientConnection] = set()
        self._loop = loop
        self._meters = meters
        self._rng = rng
        self._node = ""
        self._listeners: dict[str, Listener] = {}
        self._by_address: dict[str, str] = {}  # those that are leaving included
        self._present: dict[str, str] = {}
        self._router = Router((), (), ())
        self._trust: dict[str, Trust] = {}
        self._material: dict[str, bytes] = {}
        self._tls: dict[str, ServerTls] = {}
        self._direct: dict[str, Direct] = {}
        self._upstreams: dict[str, LiveUpstream] = {}
        self._departed: list[LiveUpstream] = []
        self._doors: dict[str, Door] = {}
        self._plans: dict[tuple[str, str, str], Plan] = {}
        self._log: AccessLog | None = None
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self._verdicts: dict[str, dict[str, Health]] = {}
        self._ejections: dict[str, dict[str, Ejection]] = {}
        self.outliers = Outliers(worker, rng)
        self.plugins = LivePlugins(loop, meters, rng, table)
        self.descriptors = Descriptors()
        self.load = Load()
        self.on_full: Callable[[str], None] = lambda address: None  # The listeners' to set,
        self.on_gone: Callable[[], None] = lambda: None  # both of them.
        self._shed_shown = meters.gauge("lb_worker_shed_ratio", worker=str(worker))
        self._policies: Plans | None = None
        self._series_kept_at = 0.0
        self.worker.deadlines.every_tick(self.worker.on_tick)
        self.worker.deadlines.every_tick(self._on_tick)
        self.worker.deadlines.start()

    # Called by the worker.

    def install(
        self,
        plans: Plans | None,
        upstreams: dict[str, tuple[Endpoint, ...]] | None,
        verdicts: dict[str, dict[str, Health]] | None,
        material: dict[str, bytes] | None = None,
        ejections: dict[str, dict[str, Ejection]] | None = None,
        sources: dict[str, bytes] | None = None,
    ) -> None:
        """
        Serve by these from now on; None stands for what did not change.

        `material` are the certificates and keys that plans name by digest, `sources` the code
        of their plugins.
        """
        touched: set[str] = set()
        if material is not None:
            self._material = material
        if verdicts is not None:
            touched |= {name for name in verdicts.keys() | self._verdicts.keys()
                        if verdicts.get(name) != self._verdicts.get(name)}  # fmt: skip
            self._verdicts = verdicts
        if ejections is not None:
            touched |= ejections.keys() | self._ejections.keys()
            self._ejections = ejections
        if upstreams is not None:
            touched |= {name for name in upstreams.keys() | self._endpoints.keys()
                        if upstreams.get(name) != self._endpoints.get(name)}  # fmt: skip
            self._endpoints = upstreams
        if plans is not None:
            self._install_plans(plans, sources or {})
            touched |= self._upstreams.keys()
        if self._policies is None:
            return
        for policy in self._policies.upstreams:
            if policy.name in touched:
                self._upstreams[policy.name].balancers = self.plugins.balancers
                self._upstreams[policy.name].install(
                    policy,
                    self._endpoints.get(policy.name, ()),
                    self._verdicts.get(policy.name, {}),
                    self._material,
                    None if ejections is None else ejections.get(policy.name, {}),
                )
        if plans is not None:
            self._direct = dict(self._direct_ways())

    def cut(self, upstream: str, key: str) -> None:
        """Cut what still runs on a backend that was removed."""
        for each in (self._upstreams.get(upstream), *self._departed):
            if each is not None and each.name == upstream:
                each.cut(key)

    @property
    def settled(self) -> bool:
        """Whether all balancers are those of the present edition, and none stands in for one."""
        return not any(
            isinstance(upstream.balancer, StandIn) for upstream in self._upstreams.values()
        )

    def reopen_logs(self) -> None:
        """Open log files anew, under their names."""
        if self._log is not None:
            self._log.reopen()

    def close(self) -> None:
        """Close what is idle, write out what is left; nothing may be served after this."""
        self.worker.deadlines.stop()
        self.plugins.close()
        for upstream in self._upstreams.values():
            upstream.leave()
        if self._log is not None:
            self._log.close()

    # Called by the listeners.

    def plan_of(self, address: str) -> Listener | None:
        """Return the listener that has `address` now, None if none has."""
        return self._listeners.get(self._by_address.get(address, ""))

    def accept(self, address: str) -> ClientConnection | TlsTransport | Arrival:
        """Make the protocol of a client that connected to `address`."""
        plan = self.plan_of(address) or Listener("", (address,))
        client = ClientConnection(self, plan, address)
        client.draining = address not in self._present
        door = client.door = self._door(plan.name)
        limits = plan.limits
        self.descriptors.room -= 1
        most = -(-limits.connections // self.workers)
        if door.open + 1 >= most or not self.descriptors.plenty:
            self.on_full(address)
        if door.open >= most:
            door.turn_away("connections")
            setting = f"listener.{plan.name}.limits.connections"
            client.refused = Reply(503, "limited", f"{setting} are open")
        else:
            door.come()
        self.clients.add(client)
        if plan.proxy_protocol or limits.per_client:
            share = -(-limits.per_client // self.workers)
            return Arrival(client, self._trust.get(plan.name), share, self._in_tls_if_due)
        return self._in_tls_if_due(client)

    def room(self, address: str) -> int:
        """Return how many more may come to an address now; 0 or less: none."""
        plan = self.plan_of(address) or Listener("", (address,))
        most = -(-plan.limits.connections // self.workers)
        return min(most - self._door(plan.name).open, self.descriptors.room)

    def _in_tls_if_due(self, client: ClientConnection) -> ClientConnection | TlsTransport:
        tls = self._tls.get(client.plan.name)
        return client if tls is None else tls.wrap(client)

    # Called by client connections.

    def closed(self, client: ClientConnection) -> None:
        """Forget a connection."""
        if client in self.clients:
            self.clients.remove(client)
            if client.refused is not None:
                client.door.turned_away -= 1
            else:
                client.door.open -= 1
            if client.kin:
                client.door.leave(client.kin)
            self.descriptors.room += 1
            self.on_gone()

    def open_exchange(
        self,
        client: ClientConnection,
        head: RequestHead,
        started: float,
    ) -> None:
        """Find the request's plan, and begin. ClientError where it can have none."""
        target, fields = head.target, head.fields
        if self.load.shed and self._sheds(client, head, started):
            return
        if fields.via and loops(fields, self.worker.via):
            raise ClientError(508, "the request has come through here too often")
        if not fields.hops and head.method in COUNTS_HOPS:
            self._answer_as_last(client, head, started)
            return
        direct = self._direct.get(client.plan.name)
        if (
            direct is not None
            and target[:1] == b"/"
            and _PATH_TO_NORMALISE.search(target) is None
            and target != direct.ready_path
        ):
            upstream = direct.upstream
            peer = self._peer(client, fields)
            key = self._key(direct.by, peer, target, fields) if direct.by else b""
            client.exchange = exchange = Exchange(
                self.worker, direct.plan, upstream, client, peer, head, started
            )
            if direct.plan.chain is None:
                exchange.start(key)
            else:
                open_hooked(exchange, direct.plan.chain, key)
        else:
            self._open_by_route(client, head, started)

    def _open_by_route(
        self,
        client: ClientConnection,
        head: RequestHead,
        started: float,
    ) -> None:
        method, path = head.method, head.target
        if path[:1] != b"/" and path != b"*":
            authority, path = split_absolute(path)
            whole_server = method == b"OPTIONS" and head.target.endswith(b"//" + authority)
            head = head.with_authority(authority, b"*" if whole_server else path)
        elif path == b"*":  # RFC 9112 3.2.4
            if method != b"OPTIONS":
                raise ClientError(400, "malformed target")
            path = b"/"
        fields = head.fields
        peer = self._peer(client, fields)
        host = fields.host or b""
        listener = client.plan
        match = self._route(listener.name, method, host, path, fields)
        route, upstream_name = match.route, match.upstream
        if route is not None and route.split:
            upstream_name = pick_share(route, self._key(route.split_by, peer, path, fields))
        upstream = self._upstreams.get(upstream_name) if upstream_name else None
        plan = self._plan(listener.name, route, upstream_name or "")
        key, reply, chain = b"", None, plan.chain
        if listener.ready_path and path.decode() == listener.ready_path:
            upstream, reply, chain = None, self._readiness(), None
        elif upstream is not None:
            by = _hash_key(upstream.policy)
            key = self._key(by, peer, path, fields) if by else b""
        else:
            reply = self._own_reply(match)
        client.exchange = exchange = Exchange(
            self.worker, plan, upstream, client, peer, head, started
        )
        if chain is not None:
            open_hooked(exchange, chain, key, reply)
        elif reply is not None:
            exchange.answer(reply)
        else:
            exchange.start(key)

    def _sheds(self, client: ClientConnection, head: RequestHead, started: float) -> bool:
        """Turn away a part of what comes, while there is more than this worker can do."""
        ready = client.plan.ready_path
        if self._rng.random() >= self.load.shed or (ready and head.target == ready.encode()):
            return False
        plan = self._plan(client.plan.name, None, "")
        client.exchange = exchange = Exchange(
            self.worker, plan, None, client, client.peer, head, started
        )
        exchange.answer(Reply(503, "overloaded", "this worker has more to do than it can"))
        return True

    def _answer_as_last(self, client: ClientConnection, head: RequestHead, started: float) -> None:
        """Answer a request that asked to go no further (RFC 9110 7.6.2)."""
        plan = self._plan(client.plan.name, None, "")
        client.exchange = exchange = Exchange(
            self.worker, plan, None, client, client.peer, head, started
        )
        if head.method == b"OPTIONS":
            exchange.answer(Reply(200, "ok", body=""))
        else:
            exchange.answer(Reply(405, "no_route", "TRACE is not answered here", (("Allow", ""),)))

    def refuse(self, client: ClientConnection, reply: Reply, octets: bytes) -> bytes:
        """Return the answer to what is no request, counted and logged."""
        data = self.worker.render(reply, close=True, method=b"")
        plan = self._plan(client.plan.name, None, "")
        plan.count(b"", reply.status, 0.0, len(octets), len(data))
        log = self.worker.log
        if log is not None:
            line = octets[:256].split(b"\r\n", 1)[0]
            log.append(
                (self.worker.wall_offset + self._loop.time(), self.worker.next_request_id(),
                 client.plan.name, client.peer.address, b"", b"", line, 1, reply.status, 0.0, None,
                 None, len(octets), len(data), "", "", "", (), False, reply.end, b"",
                 client.peer.proto, "")
            )  # fmt: skip
        return data

    # Routing.

    def _route(
        self, listener: str, method: bytes, host: bytes, path: bytes, fields: RequestFields
    ) -> Match:
        plain = normalise(path.split(b"?", 1)[0].decode("ascii"))
        block = fields.block

        def values(name: str) -> list[str]:
            return [value.decode("latin-1") for value in field_values(block, name.encode())]

        name = host.decode("ascii").lower()
        if not name.startswith("["):
            name = name.partition(":")[0]
        return self._router.route(listener, name, plain, method.decode("ascii"), values)

    def _peer(self, client: ClientConnection, fields: RequestFields) -> Peer:
        """Return whom a request comes from."""
        trust = self._trust.get(client.plan.name)
        if trust is None or not trust.trusts(client.peer.address):
            return client.peer
        return behind(fields.block, client.peer, trust)

    def _key(self, by: str, peer: Peer, target: bytes, fields: RequestFields) -> bytes:
        """Return the octets that `split_by` or `hash_key` names."""
        kind, _, name = by.partition(":")
        if kind == "header":
            return b",".join(field_values(fields.block, name.encode()))
        if kind == "cookie":
            return cookie_value(fields.block, name.encode()) or b""
        if kind == "path":
            return target.split(b"?", 1)[0]
        return peer.address.encode()

    def _own_reply(self, match: Match) -> Reply:
        respond = match.route.respond if match.route is not None else None
        if match.kind is Kind.METHOD_NOT_ALLOWED:
            allow = (("Allow", ", ".join(match.allow)),)
            return Reply(405, "no_route", "no route takes this method here", allow)
        if respond is not None:
            where = (("Location", respond.location),) if respond.location else ()
            return Reply(respond.status, "ok", fields=where, body=respond.body)
        if match.kind is Kind.NOT_FOUND:
            return Reply(404, "no_route", "no route matches, and the listener has no upstream")
        return Reply(503, "no_backend", f"upstream {match.upstream} is not known here yet")

    def _readiness(self) -> Reply:
        self.ready_asked = True
        if self.ready:
            return Reply(200, "ok", body="ready\n")
        return Reply(503, "ok", body="stopping\n")

    # Swapping.

    def _install_plans(self, plans: Plans, sources: dict[str, bytes]) -> None:
        self._policies = plans
        self.plugins.install(plans, sources)
        self._node = plans.node
        self.worker.via = plans.via.encode()
        names = {upstream.name for upstream in plans.upstreams}
        self._install_listeners(plans.listeners, names)
        self._router = Router(plans.routes, tuple(self._listeners.values()), names)
        for name in self._upstreams.keys() - names:
            gone = self._upstreams.pop(name)
            gone.leave()
            self._departed.append(gone)
        for name in names - self._upstreams.keys():
            self._upstreams[name] = LiveUpstream(
                name,
                self._loop,
                self.worker.deadlines,
                self._meters,
                self._rng,
                self.workers,
                self.outliers,
            )
        self._plans.clear()  # running exchanges hold on to theirs
        for client in self.clients:
            client.plan = self.plan_of(client.came_to) or client.plan
        self._change_log(plans)

    def _install_listeners(self, listeners: Sequence[Listener], upstreams: set[str]) -> None:
        """
        Take up listeners. Whoever came to one that is gone now, or waits in its queue, is still
        answered: by the listener of that name, or by what the last one said.
        """
        before = self._listeners
        in_use = {client.plan.name for client in self.clients} | set(self._present.values())
        self._present = {
            address: listener.name for listener in listeners for address in listener.addresses
        }
        self._listeners = {listener.name: listener for listener in listeners}
        for name in before.keys() & in_use - self._listeners.keys():
            gone = before[name]
            known = gone.upstream if gone.upstream in upstreams else None
            self._listeners[name] = replace(gone, upstream=known)
        self._by_address = {
            address: name for address, name in self._by_address.items() if name in self._listeners
        } | self._present
        self._trust = {
            name: Trust(listener.trusted_proxies)
            for name, listener in self._listeners.items()
            if listener.trusted_proxies
        }
        self._install_tls()

    def _install_tls(self) -> None:
        """Speak TLS where that is due; by what was loaded before, on listeners that are leaving."""
        before, self._tls = self._tls, {}
        for name, listener in self._listeners.items():
            if listener.tls is not None:
                tls = before.get(name) or ServerTls(self.worker, name)
                if name in self._present.values():
                    tls.adopt(listener.tls, self._material, listener.timeouts.header)
                self._tls[name] = tls

    def _direct_ways(self) -> Iterator[tuple[str, Direct]]:
        for listener in self._listeners.values():
            match = self._router.single(listener.name)
            if match is None or match.kind is not Kind.FORWARD or match.upstream is None:
                continue
            route = match.route
            if route is None or not route.split:
                plan = self._plan(listener.name, route, match.upstream)
                upstream = self._upstreams[match.upstream]
                yield listener.name, Direct(plan, upstream, listener.ready_path)

    def _change_log(self, plans: Plans) -> None:
        settings, log = plans.access_log, self._log
        if log is None:
            log = AccessLog(settings, plans.node, self.worker.worker, self._meters)
            self._log = log
        else:
            log.configure(settings, plans.node)
        self.worker.log = log if log.enabled else None
        self.worker.log_wants_head = log.wants_head

    def _plan(self, listener: str, route: Route | None, upstream: str) -> Plan:
        key = (listener, route.name if route is not None else "", upstream)
        plan = self._plans.get(key)
        if plan is None:
            known = self._listeners.get(listener) or Listener(listener, ())
            chain = self.plugins.chain(known, route)
            plan = self._plans[key] = Plan(self._meters, listener, route, upstream, chain)
        return plan

    def _door(self, listener: str) -> Door:
        door = self._doors.get(listener)
        if door is None:
            door = self._doors[listener] = Door(self._meters, listener)
        return door

    def _on_tick(self, now: float) -> None:
        self.load.look(now)
        self.plugins.on_tick(now)
        self._meters.view[self._shed_shown] = int(self.load.shed * 1e6)
        busy = sum(each.connections for each in self._upstreams.values())
        self.descriptors.look(now, len(self.clients) + busy)
        if self.descriptors.room <= 0:
            for upstream in self._upstreams.values():
                upstream.drop_idle()
        for door in self._doors.values():
            self._meters.view[door.shown] = door.open
        overdue: set[LiveEndpoint] = set()
        asked: set[LiveEndpoint] = set()
        for upstream in (*self._upstreams.values(), *self._departed):
            cut, ask = upstream.on_tick(now)
            overdue.update(cut)
            asked.update(ask)
        self._departed = [upstream for upstream in self._departed if upstream.active]
        if overdue or asked:
            self._end_exchanges(overdue, asked)
        if now - self._series_kept_at > _KEEP_SERIES_EVERY_S:
            self._series_kept_at = now
            self._meters.keep(self._backends(), now)
            self._meters.sweep(now)

    def _end_exchanges(self, overdue: set[LiveEndpoint], asked: set[LiveEndpoint]) -> None:
        """End what still runs on endpoints that have left, or have it be the last there."""
        for client in tuple(self.clients):
            exchange = client.exchange
            if exchange is None:
                continue
            if exchange.uses(overdue):
                exchange.overdue()
            elif exchange.uses(asked):
                exchange.ask_to_end()

    def _backends(self) -> set[tuple[str, str]]:
        upstreams = (*self._upstreams.values(), *self._departed)
        return {(upstream.name, key) for upstream in upstreams for key in upstream.keys}


def _hash_key(policy: Upstream) -> str:
    return policy.hash_key if policy.balance == "hash" else ""
