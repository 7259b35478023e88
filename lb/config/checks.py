"""What no single value can show: names that lead nowhere, addresses taken twice, dead routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lb import model, routing
from lb.config.addresses import Address, backend_address, listen_address
from lb.config.kinds import NAME, nearest, shown
from lb.config.positions import Path
from lb.config.schema import Config, Group, ListenerLimits


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a path of the tree: at its value, or at its key."""

    path: Path
    message: str
    hint: str = ""
    at_key: bool = False


def check(config: Config, tree: Mapping[str, Any], *, sound: bool) -> list[Finding]:
    """
    Check across tables that are right in themselves; `dangling` looks at the others too.

    Some errors can only be told where all else is right: pass `sound`. `tree` is what was
    written: what is wrong in itself is not in the config, and yet is not missing.
    """
    findings = [*_addresses(config), *_admin(config, _table(tree, "admin"))]
    findings += [*_group(config, _table(tree, "group")), *_conflicts(config)]
    if sound and not findings:
        findings += [*_unreachable(config), *_nothing(config)]
    return findings


def dangling(tree: Mapping[str, Any]) -> Iterator[Finding]:
    """Find names of listeners and upstreams that do not exist, in a tree as it was written."""
    listeners, upstreams = _table(tree, "listener"), _table(tree, "upstream")
    for name in listeners:
        path: Path = ("listener", name, "upstream")
        yield from _missing(path, "upstream", _table(listeners, name).get("upstream"), upstreams)
    for name, table in _table(tree, "route").items():
        route = table if isinstance(table, dict) else {}
        several = route.get("listener")
        for index, listener in enumerate(several if isinstance(several, list) else [several]):
            path = ("route", name, "listener", index)
            yield from _missing(path, "listener", listener, listeners)
        target = route.get("upstream")
        yield from _missing(("route", name, "upstream"), "upstream", target, upstreams)
        for share in target if isinstance(target, dict) else ():
            path = ("route", name, "upstream", share)
            yield from _missing(path, "upstream", share, upstreams, at_key=True)


def warnings(config: Config) -> tuple[str, ...]:
    """Say what is allowed, yet probably not meant."""
    return (*_warnings(config), *_warnings_of_admin(config), *_warnings_of_group(config))


def _missing(
    path: Path, what: str, name: object, known: Mapping[str, Any], *, at_key: bool = False
) -> Iterator[Finding]:
    # What is no text, or no name at all, is an error of its own.
    if isinstance(name, str) and NAME.fullmatch(name) and name not in known:
        hint = nearest(name, sorted(known)) or f"add [{what}.{name}]"
        yield Finding(path, f"there is no {what} {shown(name)}", hint, at_key)


def _table(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = tree.get(key)
    return table if isinstance(table, dict) else {}


def _addresses(config: Config) -> Iterator[Finding]:
    taken: dict[Address, str] = {}
    for path, text, owner in _all_addresses(config):
        address = listen_address(text)
        several = [address]
        if address.is_everywhere and not address.host:
            # ":80" is both of these, which are two and may stand side by side.
            several = [Address("0.0.0.0", address.port), Address("::", address.port)]
        other = next((taken[each] for each in several if each in taken), None)
        if other is not None:
            yield Finding(path, f"{text} is taken by {other}", "choose another")
        taken.update(dict.fromkeys(several, owner))


def _all_addresses(config: Config) -> Iterator[tuple[Path, str, str]]:
    yield ("admin", "address"), config.admin.address, "[admin]"
    if config.admin.probe is not None:
        yield ("admin", "probe"), config.admin.probe, "[admin] probe"
    if config.group is not None:
        yield ("group", "listen"), config.group.listen, "[group]"
    for name, listener in config.listener.items():
        for index, text in enumerate(listener.address):
            yield ("listener", name, "address", index), text, f"[listener.{name}]"


def _admin(config: Config, written: Mapping[str, Any]) -> Iterator[Finding]:
    admin = config.admin
    missing = [
        *([] if written.get("tls") else ['tls = { cert = "a.pem", key = "a.key" }']),
        *([] if written.get("tokens") else ["tokens"]),
    ]
    if missing and not listen_address(admin.address).is_local:
        yield Finding(
            ("admin", "address"),
            "others could reach this: it needs TLS and tokens",
            f"add {' and '.join(missing)}, or write a loopback address or a unix socket",
        )
    if admin.tls and listen_address(admin.address).path:
        yield Finding(("admin", "tls"), "a unix socket speaks no TLS", "leave it out")


def _group(config: Config, written: Mapping[str, Any]) -> Iterator[Finding]:
    group = config.group
    if group is None:
        return
    listen, name = listen_address(group.listen), config.node.name
    if listen.is_everywhere and name not in _table(written, "members"):
        yield Finding(
            ("group", "listen"),
            f"others could not know where {shown(name)} can be reached",
            f"listen on one address, or add {shown(name)} to members",
        )
    known = any(written.get(key) for key in ("tls", "secret", "secret_file"))
    if not known and not _stays_here(group):
        yield Finding(
            ("group", "listen"),
            "others could reach this: members must know each other by tls or a secret",
            'add secret_file = "group.secret", or tls',
        )


def _stays_here(group: Group) -> bool:
    """Whether all of a group is on this machine."""
    others = (*group.members.values(), *group.join)
    return listen_address(group.listen).is_local and all(map(_is_loopback, others))


def _is_loopback(text: str) -> bool:
    address = backend_address(text)
    try:
        return address.is_local
    except ValueError:
        return address.host == "localhost"  # Any other name may be anywhere.


def _conflicts(config: Config) -> Iterator[Finding]:
    plans = [
        model.Route(
            name=name,
            listeners=tuple(route.listener),
            hosts=tuple(route.host),
            path=route.path,
            methods=tuple(route.method),
            headers=tuple(route.header.items()),
        )
        for name, route in config.route.items()
    ]
    for first, second in routing.conflicts(plans):
        yield Finding(
            ("route", second),
            f"routes {shown(first)} and {shown(second)} match the same requests",
            "let host, path, method or header differ",
            at_key=True,
        )


def _unreachable(config: Config) -> Iterator[Finding]:
    """Find listeners that could not know where to send anything."""
    if config.route or len(config.upstream) < 2:
        return
    for name, listener in config.listener.items():
        if listener.upstream is None:
            yield Finding(
                ("listener", name),
                f"listener {shown(name)} has several upstreams to choose from, and no route",
                f"add upstream = {shown(next(iter(config.upstream)))}, or a [route.NAME]",
                at_key=True,
            )


def _nothing(config: Config) -> Iterator[Finding]:
    # A file that an editor has just emptied must not take everything away at a reload.
    if not config.listener and not config.route and not config.upstream:
        yield Finding((), "there is nothing in it to serve", "add a [listener.NAME]")


def _warnings(config: Config) -> Iterator[str]:
    workers = config.node.worker_count()
    used = {target for route in config.route.values() for target in route.targets()}
    for name, listener in config.listener.items():
        yield from _warnings_of_shares(name, listener.limits, workers)
        if listener.upstream is not None:
            used.add(listener.upstream)
        elif not config.route:
            used |= set(config.upstream)
            if not config.upstream:
                yield f"listener.{name} has no upstream to go to: it answers 404 to all"
    if not config.listener:
        yield "there is no listener: no client is served"
    for name, upstream in config.upstream.items():
        if name not in used:
            yield f"upstream.{name} is used by no listener and no route"
        if upstream.health is not None and not upstream.health.active:
            yield f'upstream.{name}.health has neither path nor type = "tcp": nothing is checked'


def _warnings_of_shares(name: str, limits: ListenerLimits, workers: int) -> Iterator[str]:
    if limits.connections < workers:
        yield (
            f"listener.{name}.limits.connections is {limits.connections},"
            f" less than the {workers} workers: some could accept nobody"
        )
    if 0 < limits.per_client < workers:
        yield (
            f"listener.{name}.limits.per_client is {limits.per_client},"
            f" less than the {workers} workers: each of them takes one"
        )


def _warnings_of_admin(config: Config) -> Iterator[str]:
    for token in config.admin.tokens:
        for name in token.upstreams:
            if name not in config.upstream:
                yield f"admin.tokens: {token.name} may register in {name}, which is not here"


def _warnings_of_group(config: Config) -> Iterator[str]:
    group, name = config.group, config.node.name
    if group is None:
        return
    if group.members and not group.join and name not in group.members:
        yield f"group.members has no {name}, which is this instance: it can only join the others"
    if group.security == "secret":
        if not _stays_here(group):
            yield "group.secret proves who speaks and hides nothing: tls encrypts as well"
    elif group.secret or group.secret_file:
        yield "group.secret is not used, as there is group.tls"
