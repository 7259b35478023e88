"""
The part of a config that workers act on: every unit resolved, every certificate by its digest.

Not here: backends, which are the registry's (`lb.edition`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from lb import model
from lb.model import Plans

if TYPE_CHECKING:
    from lb.config import schema


@dataclass(frozen=True, slots=True)
class Certificates:
    """
    What the files hold that a config names: `pairs` by certificate and key, `bundles` by name.

    `parts` holds the PEM of each, by the name of its part. No key is anywhere else.
    """

    pairs: Mapping[tuple[str, str], model.CertificateRef] = field(default_factory=dict)
    bundles: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict, repr=False)


NO_CERTIFICATES = Certificates()


def plan(
    config: schema.Config,
    node: str,
    via: str,
    generation: int,
    certificates: Certificates = NO_CERTIFICATES,
    instances: int = 1,
) -> Plans:
    """The part of a config that workers act on."""
    log = config.access_log
    return Plans(
        node=node,
        via=via,
        generation=generation,
        listeners=tuple(
            _plan_listener(name, each, certificates) for name, each in config.listener.items()
        ),
        routes=tuple(_plan_route(name, each) for name, each in config.route.items()),
        upstreams=tuple(
            _plan_upstream(name, each, certificates) for name, each in config.upstream.items()
        ),
        access_log=model.AccessLog(log.output, log.format, tuple(log.redact)),
        plugins=_plan_uses("plugins", config.plugins.use),
        code=tuple(_plan_code(name, each) for name, each in config.plugins.code.items()),
        instances=instances,
    )


def sources_of(config: schema.Config) -> dict[str, bytes]:
    """The code of plugins, by digest; that of installed packages is on the disk."""
    code = config.plugins.code.values()
    return {each["digest"]: each["source"].encode() for each in code if "source" in each}


def _plan_uses(place: str, uses: Iterable[schema.Use]) -> tuple[model.PluginUse, ...]:
    """`place` and a plugin's name tell uses apart; the second of a name has a number as well."""
    found = []
    seen: Counter[str] = Counter()
    for use in uses:
        seen[use.use] += 1
        again = f"#{seen[use.use]}" if seen[use.use] > 1 else ""
        settings = orjson.dumps(use.values or {}).decode()
        found.append(model.PluginUse(use.use, f"{place}{again}", use.on_error, settings))
    return tuple(found)


def _plan_code(name: str, code: Mapping[str, str]) -> model.PluginCode:
    stem, entry = code.get("stem", ""), code.get("entry", "")
    return model.PluginCode(name, code["digest"], code["file"], stem, entry)


def _plan_listener(
    name: str, listener: schema.Listener, certificates: Certificates
) -> model.Listener:
    limits, timeouts = listener.limits, listener.timeouts
    return model.Listener(
        name=name,
        addresses=tuple(listener.address),
        upstream=listener.upstream,
        ready_path=listener.ready_path,
        trusted_proxies=tuple(listener.trusted_proxies),
        tls=_plan_tls(listener, certificates),
        limits=model.ListenerLimits(
            connections=limits.connections,
            header_bytes=limits.header_bytes,
            headers=limits.headers,
            request_line=limits.request_line,
            per_client=limits.per_client,
            body_rate=limits.body_rate,
        ),
        timeouts=model.ListenerTimeouts(timeouts.header, timeouts.stall, timeouts.idle),
        proxy_protocol=listener.proxy_protocol,
        plugins=_plan_uses(f"listener.{name}", listener.plugins),
    )


def _plan_tls(listener: schema.Listener, certificates: Certificates) -> model.ListenerTls | None:
    if not listener.tls:
        return None
    return model.ListenerTls(
        certificates=tuple(certificates.pairs[pair.cert, pair.key] for pair in listener.tls),
        minimum=listener.tls_min,
        client_auth=listener.client_auth,
        client_ca=certificates.bundles[listener.client_ca] if listener.client_ca else "",
    )


def _plan_route(name: str, route: schema.Route) -> model.Route:
    target, answer = route.upstream, route.respond
    split = tuple(target.items()) if isinstance(target, dict) else ()
    respond = None
    if answer is not None:
        respond = model.Respond(answer.status, answer.location, answer.body)
    return model.Route(
        name=name,
        listeners=tuple(route.listener),
        hosts=tuple(host.lower() for host in route.host),
        path=route.path,
        methods=tuple(route.method),
        headers=tuple((header.lower(), value) for header, value in route.header.items()),
        upstream=target if isinstance(target, str) else None,
        split=split,
        split_by=route.split_by,
        respond=respond,
        body_max=route.body_max,
        timeout=route.timeout,
        upgrade=tuple(token.lower() for token in route.upgrade),
        plugins=_plan_uses(f"route.{name}", route.plugins),
    )


def is_checked(health: schema.Health | None) -> bool:
    """Whether a check is made at all: it takes a path, or `type = "tcp"`."""
    return health is not None and health.active


def outlier_of(upstream: schema.Upstream) -> model.Outlier:
    """By what rule an upstream's endpoints are ejected."""
    rule = upstream.outlier
    return model.Outlier(rule.errors, rule.within, rule.eject, rule.max_ejected)


def _plan_upstream(
    name: str, upstream: schema.Upstream, certificates: Certificates
) -> model.Upstream:
    retries, timeouts, limits = upstream.retries, upstream.timeouts, upstream.limits
    tls = upstream.tls
    return model.Upstream(
        name=name,
        balance=upstream.balance,
        hash_key=upstream.hash_key,
        checked=is_checked(upstream.health),
        panic=upstream.panic,
        retries=model.Retries(
            retries.attempts, retries.budget, tuple(retries.statuses), retries.non_idempotent
        ),
        limits=model.UpstreamLimits(limits.per_backend, limits.queue, limits.queue_timeout),
        timeouts=model.UpstreamTimeouts(
            timeouts.connect, timeouts.response, timeouts.stall, timeouts.tunnel
        ),
        keepalive=model.Keepalive(upstream.keepalive.idle_max, upstream.keepalive.idle),
        drain=model.Drain(upstream.drain.soft, upstream.drain.force),
        host=upstream.host,
        outlier=outlier_of(upstream),
        slow_start=upstream.slow_start,
        send_proxy=upstream.send_proxy,
        tls=model.UpstreamTls(
            verify=tls.verify,
            name=tls.name,
            ca=certificates.bundles[tls.ca] if tls.ca else "",
            certificate=certificates.pairs[tls.cert, tls.key].digest if tls.cert else "",
        ),
    )
