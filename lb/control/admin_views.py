"""What members tell each other of themselves, so that one can answer for the whole group.

Each is asked by another member's admin, for `?view=group`, `?wait=all`, or to learn whose config
still names an upstream. What one says of itself is the same that it shows its own operators.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from lb import __version__
from lb.config.schema import Config
from lb.control.admin_reads import entry_of, health_of, upstream_names
from lb.control.desk import Desk
from lb.control.problems import Problem

VIEW_SECONDS_MAX: Final = 2.0
WAIT_ALL_SECONDS_MAX: Final = 5.0
CUT_SECONDS_MAX: Final = 1.0  # That a removal may take to reach workers before what runs is cut.
# What each member has of its own: these may differ.
OWN: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("node", "group", "admin", "log", "access_log"), True),
    "listener": {"__all__": {"address"}},
}
HASH_LENGTH: Final = 12

Plain = dict[str, Any]
Method = Callable[[object, Plain], Awaitable[Plain]]


class Views:
    """What this instance tells other members, by the names that `ask_all` calls it by."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._hashed: tuple[Config, str] | None = None  # Of the config that was last asked about.

    def methods(self) -> Mapping[str, Method]:
        """Return all of them; which member calls matters to none."""
        return {
            "routed": self.routed,
            "view": self.view,
            "standing": self.standing,
            "cut": self.cut,
        }

    async def routed(self, _: object, params: Plain) -> Plain:
        """Say whether all our workers route by a revision, waiting some seconds for it."""
        match params:
            case {"revision": int(revision), "seconds": int() | float() as seconds}:
                patience = min(max(float(seconds), 0.0), WAIT_ALL_SECONDS_MAX)
                return {"routed": await self._desk.wait_routed(revision, patience)}
            case _:
                raise Problem("bad-request", "routed takes a revision and seconds")

    async def view(self, _: object, params: Plain) -> Plain:
        """Say how an upstream's backends look from here."""
        return view_from_here(self._desk, params)

    async def cut(self, _: object, params: Plain) -> Plain:
        """Cut what runs here on a backend that was removed, once our workers know that it was."""
        match params:
            case {"upstream": str(upstream), "key": str(key), "revision": int(revision)}:
                await self._desk.wait_routed(revision, CUT_SECONDS_MAX)
                self._desk.cut(upstream, key)
                return {}
            case _:
                raise Problem("bad-request", "cut takes an upstream, a key and a revision")

    async def standing(self, _: object, __: Plain) -> Plain:
        """Say what runs here."""
        return self.own_standing()

    def own_standing(self) -> Plain:
        """Return the version, a name for the config, and the upstreams that it names."""
        config = self._desk.config
        if self._hashed is None or self._hashed[0] is not config:
            self._hashed = config, config_hash(config)
        return {
            "version": __version__,
            "config_hash": self._hashed[1],
            "upstreams": list(config.upstream),
        }


def view_from_here(desk: Desk, params: Plain) -> Plain:
    """Return health and in-flight of an upstream's backends; with the name empty, of all."""
    name = params.get("upstream")
    if not isinstance(name, str):
        raise Problem("bad-request", "view takes an upstream")
    known = upstream_names(desk)
    revision = desk.routed_revision()
    active = desk.reading().by("lb_backend_active_requests", "upstream", "backend")
    if not name:
        shown = {each: _view(desk, each, active) for each in known}
        return {"revision": revision, "upstreams": shown}
    return {"revision": revision, "backends": _view(desk, name, active) if name in known else {}}


def config_hash(config: Config) -> str:
    """Name what members should have alike of a config; what is their own is left out."""
    text = config.model_dump_json(exclude=dict(OWN))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _view(desk: Desk, upstream: str, active: Mapping[tuple[str, ...], float]) -> Plain:
    return {
        key: {
            "health": health_of(desk, upstream, backend),
            "in_flight": int(active.get((upstream, key), 0)),
        }
        for key, backend in entry_of(desk, upstream).backends.items()
    }


# Asking the others


async def whole_view(desk: Desk, upstream: str) -> dict[str, Plain]:
    """Return what each member says, ours among them; of one that is silent, why."""
    params = {"upstream": upstream}
    said = await _ask(desk, "view", params, VIEW_SECONDS_MAX)
    return {desk.standing().name: view_from_here(desk, params), **said}


async def wait_all(desk: Desk, revision: int) -> Plain:
    """
    Wait until every live member routes by a revision.

    `behind` names those that are up and do not in time, `unreachable` those that cannot be asked.
    """
    seconds = WAIT_ALL_SECONDS_MAX
    params = {"revision": revision, "seconds": seconds}
    here, said = await asyncio.gather(
        desk.wait_routed(revision, seconds),
        _ask(desk, "routed", params, seconds + VIEW_SECONDS_MAX),
    )
    late = [] if here else [desk.standing().name]
    late += [name for name, answer in said.items() if answer.get("routed") is False]
    unreachable = [name for name, answer in said.items() if "routed" not in answer]
    return {"behind": sorted(late), "unreachable": sorted(unreachable)}


async def cut_all(desk: Desk, upstream: str, key: str) -> None:
    """Have all live members cut what runs on a backend that has just been removed."""
    params: Plain = {"upstream": upstream, "key": key, "revision": desk.store.registry.revision}
    desk.cut(upstream, key)
    await _ask(desk, "cut", params, CUT_SECONDS_MAX + VIEW_SECONDS_MAX)


async def named_by(desk: Desk, upstream: str, *, force: bool) -> tuple[str, ...]:
    """
    Return the members whose config names an upstream.

    One that cannot be asked may be among them, so it is, unless `force` says otherwise.
    """
    names = {desk.standing().name} if upstream in desk.config.upstream else set()
    for name, answer in (await _ask(desk, "standing", {}, VIEW_SECONDS_MAX)).items():
        known = answer.get("upstreams")
        if upstream in known if isinstance(known, list) else not force:
            names.add(name if isinstance(known, list) else f"{name} (which does not answer)")
    return tuple(sorted(names))


async def _ask(desk: Desk, method: str, params: Plain, seconds: float) -> dict[str, Plain]:
    """Ask all other members that there are; every one of them has something in the answer."""
    own = desk.standing().name
    said = await desk.group.ask_all(method, params, seconds)
    members = [each.name for each in desk.group.standing().members if each.name != own]
    silent = {"error": "it does not answer"}
    return {name: said.get(name, silent) for name in (*members, *(said.keys() - set(members)))}
