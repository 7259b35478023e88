"""What the admin API sets going (reload, sync, stop, upgrade), and why a request goes where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic_core import PydanticCustomError

from lb.config.kinds import Duration
from lb.control.admin_guard import flag, read_object, respond
from lb.control.admin_reads import entry_of, known_key, known_upstream
from lb.control.admin_writes import by_of
from lb.control.desk import Desk
from lb.control.explaining import Serving, explain, question_in
from lb.control.forced import WORDS
from lb.control.problems import Problem
from lb.edition import Assembly


class Acts:
    """Handlers of POST that are no writes to the registry."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._serving: tuple[int, Serving] | None = None  # By the edition's number.

    async def reload(self, request: web.Request) -> web.Response:
        """Reload the config; the answer says what changed, or all that is wrong with it."""
        await read_object(request)
        by = by_of(request, self._desk.standing().name)
        reply = await self._desk.reload(
            by, dry_run=flag(request, "dry_run"), force=flag(request, "force")
        )
        return respond(dict(reply))

    async def sync(self, request: web.Request) -> web.Response:
        """Make the registry's view of the file what this instance's file says."""
        await read_object(request)
        by = by_of(request, self._desk.standing().name)
        reply = await self._desk.sync(by, dry_run=flag(request, "dry_run"))
        return respond(dict(reply))

    async def explain(self, request: web.Request) -> web.Response:
        """Say where a request would go, and why."""
        question = question_in(await read_object(request))
        return respond(explain(question, self._newest()))

    async def force(self, request: web.Request) -> web.Response:
        """Force a backend up or down, on this instance alone; needs no quorum."""
        upstream = known_upstream(self._desk, request.match_info["upstream"])
        key = known_key(upstream, entry_of(self._desk, upstream), request.match_info["backend"])
        body = await read_object(request)
        if unknown := body.keys() - {"to"}:
            raise Problem("bad-request", f'"{unknown.pop()}" is not known here', "there is to")
        to = body.get("to")
        if to not in WORDS:
            raise Problem("bad-request", f"to must be one of {', '.join(WORDS)}")
        by = by_of(request, self._desk.standing().name)
        who = f" (by {by.token or by.source}{f': {by.note}' if by.note else ''})"
        self._desk.force(upstream, key, to, who)
        here = self._desk.standing().name
        return respond({"upstream": upstream, "backend": key, "forced": to, "member": here})

    async def stop(self, request: web.Request) -> web.Response:
        """Pass a graceful stop to the supervisor; it is under way when this is answered."""
        body = await read_object(request)
        drain = seconds_in(body, "drain")
        standing, node = self._desk.standing(), self._desk.config.node
        await self._desk.stop(drain)
        plain = {
            "stopping": True,
            "pid": standing.pid,
            "grace_s": node.grace,
            "drain_s": node.drain if drain is None else drain,
        }
        return respond(plain, 202)

    async def upgrade(self, request: web.Request) -> web.Response:
        """
        Have what is installed now take our place.

        Answered once its workers serve; this controller, and with it this API, then ends, and
        a moment later the next one answers.
        """
        body = await read_object(request)
        if body:
            raise Problem("bad-request", f'"{next(iter(body))}" is not known here')
        pid = await self._desk.upgrade()
        return respond({"upgrading": True, "pid": pid}, 202)

    def _newest(self) -> Serving:
        edition = self._desk.edition
        if self._serving is None or self._serving[0] != edition.number:
            change = Assembly().load(edition)
            assert change.plans is not None, "a whole edition has all its parts"
            assert change.verdicts is not None
            self._serving = (
                edition.number,
                Serving(
                    change.plans,
                    change.upstreams or {},
                    change.verdicts,
                    edition.revision,
                    change.ejections or {},
                ),
            )
        return self._serving[1]


def seconds_in(body: Mapping[str, Any], name: str) -> float | None:
    """Read a duration of the body, the only thing that it may say."""
    if unknown := body.keys() - {name}:
        raise Problem("bad-request", f'"{unknown.pop()}" is not known here', f"there is {name}")
    if body.get(name) is None:
        return None
    try:
        return float(Duration().read(body[name]))
    except PydanticCustomError as error:
        hint = str((error.context or {}).get("hint", ""))
        raise Problem("bad-request", f"{name}: {error.message()}", hint) from None
