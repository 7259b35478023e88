"""`GET /v1/events`: what the registry went through, one event a revision, as server-sent events.

What is promised, by the names that etcd gave it: *ordered* and *unique* (a revision comes once,
after all smaller ones), *reliable* and *atomic* (none between two that came is missing, and all
that one changed is in one event), *resumable* (`Last-Event-ID`, or `from`), *bookmarkable* (a
bookmark says that everything up to it was sent). What cannot be kept ends the stream, and says
where to go on: nobody is passed over in silence, and nobody waits for a leader that is gone.

History is kept in memory, from this controller's start on; what came before is compacted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
from aiohttp import web

from lb.control.admin_guard import HEADERS, wall_time
from lb.control.admin_reads import confirm
from lb.control.desk import Desk
from lb.control.problems import Problem
from lb.control.state_machine import Applied
from lb.registry import Change, Command, MoveMember, Registry

HISTORY_REVISIONS_MAX: Final = 10_000
HISTORY_SECONDS_MAX: Final = 600.0
HISTORY_BYTES_MAX: Final = 64 << 20
WATCHERS_MAX: Final = 512
# So much may happen while one write to a watcher waits; then it is cut.
BEHIND_EVENTS_MAX: Final = 1_000
BEHIND_BYTES_MAX: Final = 4 << 20
WRITE_SECONDS_MAX: Final = 30.0
WRITE_BYTES: Final = 64 << 10  # Sent at once, or one event where that is longer.
CLOSE_SECONDS_MAX: Final = 1.0  # For the last event of a stream to leave.
BOOKMARK_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.5
LEADER_LOST_SECONDS: Final = 3.0  # Three election timeouts.
RETRY_MS: Final = 1_000  # What a browser waits before it comes again.
REVISION_DIGITS_MAX: Final = 18


@dataclass(frozen=True, slots=True)
class Event:
    """One revision as it is sent. `at` is when we heard of it, by the loop's clock."""

    revision: int
    frame: bytes
    at: float


class EventLog:
    """
    The newest revisions of one registry, in order and without a gap.

    All up to `compacted` are gone, `newest` is the last that we know of. `id` is the group's:
    another one's revisions have nothing to do with those before.
    """

    def __init__(self, registry: Registry, now: Callable[[], float]) -> None:
        self.id = registry.id
        self.compacted = self.newest = registry.revision
        self.bytes_taken = 0  # Ever.
        self._now = now
        self._events: deque[Event] = deque()
        self._bytes = 0

    def take(self, applied: Applied) -> bool:
        """Keep what an entry did; False if it is known already, as when a log is read again."""
        registry = applied.registry
        revision = registry.revision
        if registry.id == self.id and revision <= self.newest:
            return False
        if registry.id != self.id or revision != self.newest + 1:
            self._restart(registry.id, revision - 1)
        event = Event(revision, frame_of(applied), self._now())
        self._events.append(event)
        self.newest = revision
        self.bytes_taken += len(event.frame)
        self._bytes += len(event.frame)
        self.trim()
        return True

    def follow(self, registry: Registry) -> bool:
        """Take note of a registry that came whole; True if revisions are missing by that."""
        if registry.id == self.id and registry.revision <= self.newest:
            return False
        self._restart(registry.id, registry.revision)
        return True

    def after(self, revision: int) -> Sequence[Event]:
        """Return the first events after a revision that is neither compacted nor to come."""
        assert self.compacted <= revision <= self.newest
        found: list[Event] = []
        size = 0
        for index in range(revision - self.compacted, len(self._events)):
            event = self._events[index]
            size += len(event.frame)
            if found and size > WRITE_BYTES:
                break
            found.append(event)
        return found

    def trim(self) -> None:
        """Forget what is too old, or too much."""
        too_old = self._now() - HISTORY_SECONDS_MAX
        while self._events and (
            len(self._events) > HISTORY_REVISIONS_MAX
            or self._bytes > HISTORY_BYTES_MAX
            or self._events[0].at < too_old
        ):
            gone = self._events.popleft()
            self._bytes -= len(gone.frame)
            self.compacted = gone.revision

    def _restart(self, id_: str, revision: int) -> None:
        self._events.clear()
        self._bytes = 0
        self.id = id_
        self.compacted = self.newest = revision


class Watcher:
    """One stream: all up to `sent` has gone out."""

    def __init__(
        self, log: EventLog, sent: int, still_let_in: Callable[[], bool] = lambda: True
    ) -> None:
        self.sent = sent
        self.still_let_in = still_let_in
        self.id = log.id
        self.end = ""  # Why it ends, once it does.
        self.wake = asyncio.Event()
        self._log = log
        self._waits_since: tuple[int, int] | None = None
        self._patience: asyncio.Timeout | None = None

    def close(self, reason: str) -> None:
        """End it, at once: nothing more is sent but why."""
        self.end = self.end or reason
        self.wake.set()
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    def news(self) -> None:
        """Something was taken into the log."""
        self.wake.set()
        if self._waits_since is not None:
            newest, taken = self._waits_since
            log = self._log
            if (
                log.newest - newest > BEHIND_EVENTS_MAX
                or log.bytes_taken - taken > BEHIND_BYTES_MAX
            ):
                self.close("slow")

    def missed(self) -> str:
        """Say why it cannot go on from where it is; nothing if it can."""
        if self.id != self._log.id:
            return "reset"
        return "" if self.sent >= self._log.compacted else "compacted"

    async def send(self, response: web.StreamResponse, data: bytes) -> None:
        """Write, with patience: who does not read is cut."""
        self._waits_since = self._log.newest, self._log.bytes_taken
        try:
            async with asyncio.timeout(WRITE_SECONDS_MAX) as self._patience:
                await response.write(data)
        except TimeoutError:
            self.close("slow")
        finally:
            self._patience = self._waits_since = None


DETAILS = {
    "slow": "this reader does not keep up with what happens",
    "compacted": "what comes next is compacted away: list what there is, then go on from there",
    "reset": "the registry is another one now: list what there is, then go on from there",
    "no-leader": "the group's leader is lost: what happens now does not get here",
    "unauthorized": "the token that this was opened with is none of ours any more, or may not read",
    "stopping": "this instance stops: go on with another, or in a moment",
}


class Events:
    """The handler, and what wakes its watchers."""

    def __init__(
        self, desk: Desk, still_let_in: Callable[[web.Request], bool] = lambda _: True
    ) -> None:
        self._desk = desk
        self._still_let_in = still_let_in
        self._log: EventLog | None = None
        self.watchers: set[Watcher] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._led_at = 0.0

    def start(self) -> None:
        """Begin: what happened until now is compacted."""
        loop = asyncio.get_running_loop()
        self._log = EventLog(self._desk.store.registry, loop.time)
        self._led_at = loop.time()
        self._look()

    def stop(self) -> None:
        """End all streams, each with a word about it."""
        if self._timer is not None:
            self._timer.cancel()
        for watcher in self.watchers:
            watcher.close("stopping")

    def take(self, applied: Applied) -> None:
        """Hear of an entry that took a revision; see `Group.subscribe_applied`."""
        if self._log is not None and self._log.take(applied):
            for watcher in self.watchers:
                watcher.news()

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Stream, from the revision that was asked for."""
        assert self._log is not None, "started before it is asked"
        if len(self.watchers) >= WATCHERS_MAX:
            raise Problem(
                "busy", f"{WATCHERS_MAX} streams of events are open already", "try again later"
            )
        wanted = first_wanted(request)
        self._require_leader()
        await self._catch_up()
        log = self._log
        if wanted is None:
            wanted = log.newest + 1
        elif wanted > log.newest + 1:
            # Whoever resumes may be ahead of us: then see whether there is more by now.
            await confirm(self._desk)
            await self._catch_up()
        self._require_history(wanted)
        watcher = Watcher(log, wanted - 1, partial(self._still_let_in, request))
        self.watchers.add(watcher)
        try:
            return await self._stream(request, watcher)
        finally:
            self.watchers.discard(watcher)

    async def _stream(self, request: web.Request, watcher: Watcher) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={**HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        try:
            await response.prepare(request)
            await watcher.send(response, self._created(watcher))
            while not watcher.end:
                await self._turn(response, watcher)
            await self._finish(request, response, watcher)
        except ConnectionError:
            watcher.close("gone")  # The reader has left; that is how most streams end.
        return response

    async def _turn(self, response: web.StreamResponse, watcher: Watcher) -> None:
        """Send what there is, or wait for it."""
        assert self._log is not None
        watcher.wake.clear()
        if reason := watcher.missed():
            watcher.close(reason)
            return
        if events := self._log.after(watcher.sent):
            # It is out of our hands from the call on, whether or not we get to wait for it.
            watcher.sent = events[-1].revision
            await watcher.send(response, b"".join(event.frame for event in events))
            return
        try:
            async with asyncio.timeout(BOOKMARK_SECONDS):
                await watcher.wake.wait()
        except TimeoutError:
            bookmark = {"revision": watcher.sent}
            await watcher.send(response, frame("bookmark", bookmark, watcher.sent))

    async def _finish(
        self, request: web.Request, response: web.StreamResponse, watcher: Watcher
    ) -> None:
        plain = {
            "reason": watcher.end,
            "detail": DETAILS[watcher.end],
            "revision": watcher.sent,
            "resume": watcher.sent + 1,
        }
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await response.write(frame("closed", plain, watcher.sent))
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()

    def _created(self, watcher: Watcher) -> bytes:
        assert self._log is not None
        plain = {"revision": self._log.newest, "from": watcher.sent + 1}
        return b"retry: %d\n" % RETRY_MS + frame("created", plain)

    # What is asked for, against what there is

    async def _catch_up(self) -> None:
        """See to it that the log is as new as the registry that everyone sees."""
        seen = self._desk.store.registry
        await asyncio.sleep(0)  # What was applied before is told in the turn after, at the latest.
        self._follow(seen)

    def _follow(self, seen: Registry) -> None:
        assert self._log is not None
        if self._log.follow(seen):
            for watcher in self.watchers:
                watcher.news()

    def _require_history(self, wanted: int) -> None:
        assert self._log is not None
        log = self._log
        if log.compacted < wanted <= log.newest + 1:
            return
        if wanted <= log.compacted:
            detail = f"revision {wanted} is compacted away: the oldest kept is {log.compacted + 1}"
        else:
            detail = f"revision {wanted} is ahead of the registry, which is at {log.newest}"
        raise Problem(
            "compacted",
            detail,
            "list what there is at its revision R, then ask for events from R + 1",
            compact_revision=log.compacted,
            current_revision=log.newest,
            oldest=log.compacted + 1,
        )

    # The leader

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._log is not None
        self._timer = loop.call_later(LOOK_SECONDS, self._look)
        self._log.trim()
        loop.call_soon(self._follow, self._desk.store.registry)
        if self._leader_lost():
            for watcher in self.watchers:
                watcher.close("no-leader")
        for watcher in self.watchers:
            if not watcher.still_let_in():
                watcher.close("unauthorized")

    def _leader_lost(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._desk.group.standing().leader:
            self._led_at = now
        return now - self._led_at > LEADER_LOST_SECONDS

    def _require_leader(self) -> None:
        if self._leader_lost():
            raise Problem("no-quorum", DETAILS["no-leader"], "ask another instance, or wait")


def first_wanted(request: web.Request) -> int | None:
    """Return the first revision that is asked for; None: whatever comes next."""
    last = request.headers.get("Last-Event-ID")
    if last is not None:  # A browser that comes again repeats the query of its first time.
        return _revision(last, "Last-Event-ID") + 1
    if "from" not in request.query:
        return None
    return max(_revision(request.query["from"], "from"), 1)


def _revision(text: str, name: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= REVISION_DIGITS_MAX:
        return int(text)
    raise Problem("bad-request", f'"{text}" is not a revision', f"{name} takes a whole number")


# How it looks


def frame(kind: str, plain: dict[str, Any], revision: int | None = None) -> bytes:
    """Return one server-sent event; without a revision, the reader's place stays as it was."""
    id_ = b"" if revision is None else b"id: %d\n" % revision
    return b"event: %s\n%sdata: %s\n\n" % (kind.encode(), id_, orjson.dumps(plain))


def frame_of(applied: Applied) -> bytes:
    """Return the event of one revision; of no special kind, so that browsers call `onmessage`."""
    data = orjson.dumps(as_plain(applied))
    return b"id: %d\ndata: %s\n\n" % (applied.registry.revision, data)


def as_plain(applied: Applied) -> dict[str, Any]:
    """Say what an entry did. `by` is None where nobody is known to have asked for it."""
    registry, command = applied.registry, applied.command
    plain: dict[str, Any] = {"revision": registry.revision}
    if command is None:
        return plain | {
            "at": applied.at or wall_time(),
            "by": None if applied.by is None else applied.by.to_plain(),
            "kind": f"member-{applied.member_change}",
            "upstream": "",
            "member": applied.member,
            "changes": [],
        }
    changes = applied.reply.changes if applied.reply is not None else ()
    plain |= {
        "at": command.at,
        "by": command.by.to_plain(),
        "kind": command.kind,
        "upstream": command.upstream,
        "changes": [_change(registry, command, change) for change in changes],
    }
    if isinstance(command, MoveMember) and (member := registry.members.get(command.member)):
        plain["member"] = member.name
    return plain


def _change(registry: Registry, command: Command, change: Change) -> dict[str, Any]:
    """Say what became of a backend, and how it is now: who follows events need not ask again."""
    name = change.upstream or command.upstream
    plain: dict[str, Any] = {"upstream": name, "key": change.key, "what": change.what}
    upstream = registry.upstreams.get(name)
    entry = None if upstream is None else upstream.backends.get(change.key)
    if change.what == "changed":
        plain["fields"] = list(change.fields)
    if entry is not None and change.what != "removed":
        now = entry.to_plain()
        del now["changed"]  # Who wrote it is said of the event as a whole.
        plain["backend"] = now
    return plain
