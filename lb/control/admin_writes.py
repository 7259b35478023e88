"""Writes to the registry: the form is judged here, everything else where it is applied."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from aiohttp import web
from pydantic_core import PydanticCustomError

from lb.config.addresses import BadAddressError, backend_address
from lb.config.kinds import NAME, Duration
from lb.control.admin_access import who_of
from lb.control.admin_guard import flag, read_object, respond, wall_time
from lb.control.admin_reads import (
    backend_as_plain,
    canonical_key,
    known_upstream,
    upstream_as_plain,
)
from lb.control.admin_recent import Recent
from lb.control.admin_views import cut_all, named_by, wait_all
from lb.control.desk import Desk
from lb.control.problems import Problem
from lb.control.store import UnknownOutcome
from lb.metrics import Reading
from lb.model import State
from lb.registry import (
    By,
    Command,
    Fields,
    IfMatch,
    Outcome,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    RemoveBackend,
    RemoveUpstream,
    Reply,
    Restore,
)

log = logging.getLogger("lb.admin")

# Seconds. A write is not asked for its counters, and adding up those of 10,000 backends takes a
# while in which nothing else happens here, the group included: then they may be older still.
READING_AGE = 5.0
READING_AGE_MAX = 60.0
READING_SHARE = 0.01  # Of all time, at most, goes into adding up for those who write.
ROUTED_SECONDS_MAX = 1.0  # So long an answer waits for the workers.
LOOK_SECONDS = 0.02  # So often, and so many times, one looks whether the file's upstream is known.
KNOWN_LOOKS_MAX = 100

FIELDS = ("address", "name", "weight", "state", "backup", "labels", "ttl")
STATES = tuple(state.value for state in State)


class Writes:
    """Handlers that propose one command each, and answer once workers route by it."""

    def __init__(self, desk: Desk, recent: Recent) -> None:
        self._desk = desk
        self._recent = recent
        self._age = READING_AGE

    async def put_backend(self, request: web.Request) -> web.Response:
        """Add a backend, or replace it."""
        key = key_in(request)
        fields = fields_in(await read_object(request), key)
        none_match = request.headers.get("If-None-Match")
        if none_match not in (None, "*"):
            raise Problem("bad-request", "If-None-Match takes only *: create, do not replace")
        return await self._write(
            request,
            PutBackend(
                key=key, fields=fields, if_none_match=none_match == "*", **self._common(request)
            ),
        )

    async def patch_backend(self, request: web.Request) -> web.Response:
        """Change what is said of a backend, and nothing else."""
        key = self._present_key(request)
        fields = fields_in(await read_object(request), key)
        return await self._write(
            request, PatchBackend(key=key, fields=fields, **self._common(request))
        )

    async def delete_backend(self, request: web.Request) -> web.Response:
        """Take a backend out of the registry; workers finish what runs there, or cut it `now`."""
        key = self._present_key(request)
        now = flag(request, "now")
        response = await self._write(request, RemoveBackend(key=key, **self._common(request)))
        if now:
            await cut_all(self._desk, request.match_info["upstream"], key)
        return response

    async def patch_upstream(self, request: web.Request) -> web.Response:
        """Change several backends in one revision."""
        body = await read_object(request)
        edits = edits_in(body)
        return await self._write(request, PatchUpstream(edits=edits, **self._common(request)))

    async def delete_upstream(self, request: web.Request) -> web.Response:
        """Forget an upstream that no config names any more."""
        common = self._common(request)
        naming = await named_by(self._desk, common["upstream"], force=common["force"])
        return await self._write(request, RemoveUpstream(named_by=naming, **common))

    async def restore(self, request: web.Request, content: dict[str, Any]) -> web.Response:
        """Make all upstreams what a backup says; an ordinary write."""
        # The rest of a backup stays out of the log, where an entry has only so much room.
        needed: dict[str, Any] = {"upstreams": content["upstreams"]}
        needed |= {"level": content["level"]} if "level" in content else {}
        return await self._write(request, Restore(content=needed, **self._common(request)))

    async def renew(self, request: web.Request) -> web.Response:
        """Extend a lease by its whole time; that takes no revision."""
        if body := await read_object(request):
            raise Problem("bad-request", f'"{next(iter(body))}" is not known here', "it takes none")
        key = self._present_key(request)
        by = by_of(request, self._name())
        plain = await self._desk.group.renew(request.match_info["upstream"], key, by)
        return respond(plain)

    async def _write(self, request: web.Request, command: Command) -> web.Response:
        desk = self._desk
        wait = request.query.get("wait")
        if wait not in (None, "all"):
            raise Problem("bad-request", f'"{wait}" is not a value of ?wait', "it takes all")
        await self._until_known(command.upstream)
        try:
            reply = await desk.store.propose(command)
        except UnknownOutcome as error:
            raise Problem(
                "unknown-outcome",
                error.message,
                error.hint or "repeat it with this idempotency_key: it will not act twice",
                idempotency_key=command.idempotency_key,
            ) from None
        refuse(reply)
        routed = await desk.wait_routed(reply.revision, ROUTED_SECONDS_MAX)
        plain: dict[str, Any] = {"revision": reply.revision, "routed": routed}
        if wait == "all":
            plain |= await wait_all(desk, reply.revision)
        etag = reply.revision
        if reply.backend is not None:
            etag = reply.backend.revision
            plain["backend"] = backend_as_plain(
                desk, self._recent, self._counters(), command.upstream, reply.backend
            )
        elif isinstance(command, PatchUpstream):
            shown = upstream_as_plain(desk, self._recent, self._counters(), command.upstream)
            etag, plain["upstream"] = shown["revision"], shown
        return respond(
            plain,
            201 if reply.outcome is Outcome.CREATED else 200,
            ETag=f'"{etag}"',
            X_Revision=str(desk.routed_revision()),
        )

    def _counters(self) -> Reading:
        """Return counters for an answer; the longer adding up takes, the older they may be."""
        began = time.perf_counter()
        reading = self._desk.reading(self._age)
        needed = (time.perf_counter() - began) / READING_SHARE
        if needed > READING_AGE:
            self._age = min(needed, READING_AGE_MAX)
        return reading

    async def _until_known(self, upstream: str) -> None:
        """
        Wait a moment for an upstream of which only the file knows.

        What files say is proposed once the group has a leader, and so may a first write be.
        """
        desk = self._desk
        for _ in range(KNOWN_LOOKS_MAX):
            if upstream not in desk.config.upstream or upstream in desk.store.registry.upstreams:
                return
            if not desk.group.standing().quorum:
                return  # `propose` says so, in its own time.
            await asyncio.sleep(LOOK_SECONDS)

    def _common(self, request: web.Request) -> dict[str, Any]:
        """What every command carries."""
        upstream = request.match_info.get("upstream", "")
        configured = self._desk.config.upstream.get(upstream)
        return {
            "upstream": upstream,
            "by": by_of(request, self._name()),
            "at": wall_time(),
            "force": flag(request, "force"),
            "min_active": 0.0 if configured is None else configured.min_active,
            "if_match": if_match_in(request.headers.get("If-Match")),
            # Ours if need be: who does not learn what came of it can still repeat it safely.
            "idempotency_key": request.headers.get("Idempotency-Key") or uuid.uuid4().hex,
        }

    def _present_key(self, request: web.Request) -> str:
        """Return the key in the path; whether it is there is for the registry to say."""
        known_upstream(self._desk, request.match_info["upstream"])
        entry = self._desk.store.registry.upstreams.get(request.match_info["upstream"])
        text = request.match_info["backend"]
        if entry is not None and text in entry.backends:
            return text
        return canonical_key(text)

    def _name(self) -> str:
        return self._desk.name


def by_of(request: web.Request, member: str) -> By:
    """Return whose write this is."""
    note = request.query.get("note", "")
    return By(token=who_of(request), member=member, source="api", note=note)


def refuse(reply: Reply) -> None:
    """Answer a refusal with its own code, which is a problem's as well."""
    if reply.refusal is not None:
        refusal = reply.refusal
        raise Problem(refusal.code.value, refusal.detail, refusal.hint, revision=reply.revision)


def key_in(request: web.Request) -> str:
    """Return the key that a PUT names: an address in its one spelling, or a name."""
    text = request.match_info["backend"]
    if ":" not in text and NAME.fullmatch(text):
        return text
    return address_in(text)


def address_in(text: object) -> str:
    """Return an address in its one spelling, or answer what is wrong with it."""
    if not isinstance(text, str):
        raise Problem("bad-request", "an address is a text", 'like "10.0.0.5:80"')
    try:
        return str(backend_address(text))
    except BadAddressError as error:
        raise Problem("bad-request", str(error), error.hint) from None


def fields_in(body: Mapping[str, Any], key: str) -> Fields:
    """Read what a body says of a backend; an unknown or misshapen field is an error."""
    for name in body:
        if name not in FIELDS:
            close = get_close_matches(name, FIELDS, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(FIELDS)}"
            raise Problem("bad-request", f'"{name}" is not a field of a backend', hint)
    if body.get("name") not in (None, key):
        raise Problem(
            "bad-request",
            f'the body names "{body["name"]}", the path "{key}"',
            "a backend's name is the key in the path",
        )
    address = address_in(body["address"]) if "address" in body else None
    return Fields(
        address=None if address == key else address,
        weight=_whole(body, "weight"),
        state=_state(body),
        backup=_flag(body, "backup"),
        labels=_labels(body),
        ttl=_ttl(body),
    )


def edits_in(body: Mapping[str, Any]) -> tuple[tuple[str, Fields | None], ...]:
    """
    Read a PATCH of an upstream: `{"backends": {KEY: {...} or null}}`; null removes.

    A list, as GET shows it, is taken as well: each backend with its `name` or `address`.
    """
    if set(body) != {"backends"}:
        raise Problem("bad-request", 'the body must be {"backends": {...}} and nothing else')
    backends = body["backends"]
    if isinstance(backends, list):
        backends = {_key_of(each): each for each in backends}
    if not isinstance(backends, dict):
        raise Problem("bad-request", '"backends" must be an object or a list')
    edits: list[tuple[str, Fields | None]] = []
    for text, said in backends.items():
        key = canonical_key(text)
        if said is not None and not isinstance(said, dict):
            raise Problem("bad-request", f'what is said of "{text}" must be an object or null')
        edits.append((key, None if said is None else fields_in(said, key)))
    return tuple(edits)


def if_match_in(header: str | None) -> IfMatch:
    """Read If-Match; an ETag that cannot be one of ours matches nothing."""
    if header is None:
        return None
    if header.strip() == "*":
        return "*"
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return tuple(int(tag) for tag in tags if tag.isascii() and tag.isdigit() and len(tag) < 20)


def _key_of(said: Any) -> str:
    key = (said.get("name") or said.get("address")) if isinstance(said, dict) else None
    if not isinstance(key, str):
        raise Problem("bad-request", "each of the backends needs its name or address")
    return key


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise Problem("bad-request", f"{name} must be a whole number")


def _flag(body: Mapping[str, Any], name: str) -> bool | None:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise Problem("bad-request", f"{name} must be true or false")


def _ttl(body: Mapping[str, Any]) -> float | None:
    value = body.get("ttl")
    if value is None:
        return None
    try:
        return Duration().read(value)
    except PydanticCustomError as error:
        hint = str((error.context or {}).get("hint", ""))
        raise Problem("bad-request", f"ttl: {error.message()}", hint) from None


def _state(body: Mapping[str, Any]) -> State | None:
    value = body.get("state")
    if value is None:
        return None
    if value not in STATES:
        raise Problem("bad-request", f"state must be one of {', '.join(STATES)}")
    return State(value)


def _labels(body: Mapping[str, Any]) -> Mapping[str, str | None] | None:
    labels = body.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, dict) or not all(
        value is None or isinstance(value, str) for value in labels.values()
    ):
        raise Problem("bad-request", "labels must be an object of texts")
    return labels
