"""The controller: reads the config, keeps the registry, probes, composes editions, is asked.

This file builds the parts and joins them; what each does is in `control/`. If this process
dies, traffic goes on: the next one takes up the edition that the supervisor kept.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson

from lb import daemonlog, link
from lb.child import Post
from lb.config.load import Loaded
from lb.config.schema import Config
from lb.control import certificates
from lb.control.admin import AdminServer, ProbeServer
from lb.control.admin_guard import wall_time
from lb.control.admin_views import Views
from lb.control.audit import asker, write_down
from lb.control.certificates import CertificateStore
from lb.control.data_dir import DataDirLock, lock_data_dir, settle_name
from lb.control.desk import Check, Standing, WorkerStanding
from lb.control.file_memory import FileMemory
from lb.control.forced import Forced, Overrides
from lb.control.group import Group
from lb.control.group_desk import GroupDesk
from lb.control.head_count import follow_count
from lb.control.in_force import PART, InForce
from lb.control.kept import kept_edition, via_of
from lb.control.names import NameServers
from lb.control.outliers import Outliers
from lb.control.parser import Parser, ParserProcess
from lb.control.peers import Claim, Plain
from lb.control.probe import Asker
from lb.control.prober import Prober, subjects_of
from lb.control.publisher import Publisher
from lb.control.reloader import Hands, Reloader, addresses_of, in_one_line
from lb.control.resolver import Resolver, names_of
from lb.control.supervising import Supervising
from lb.control.watcher import CHANGED, Watcher
from lb.edition import Composer, Edition, Resolved, Sources
from lb.errors import AccordError
from lb.link import Frame, Message, Stream
from lb.metrics import Reading
from lb.outlier import Ejected
from lb.registry import By, Registry

log = logging.getLogger(__name__)

CHECKS_PART = "control/checks"
NAMES_PART = "control/names"
OUTLIERS_PART = "control/outliers"
FORCED_PART = "control/forced"
FIRST_ANSWERS_SECONDS = 2.0  # A name that takes longer has no address in the first edition.
TASKS_MAX = 1024
DISK_FAILED = (
    "the disk failed while the log was written, so what can be read of it may not be there: "
    "mend the disk, remove raft/ in the data_dir, and restart"
)
SILENT_SECONDS = 1.0  # From the end of a worker's stream to its replacement, if it still runs.


class Controller:
    """All of it, and what the admin sees of it: `control.desk.Desk`."""

    def __init__(self, config_path: str, parser: Parser) -> None:
        self._path = config_path
        self._parser = parser
        self._asked = False  # For readiness, since the last beat.
        self._stopping = False
        self._begun = False
        self._pid, self._started = 0, 0.0  # The supervisor's.
        self._reloads = {"ok": 0, "failed": 0}
        self._error: str | None = None
        self._linked: dict[int, Stream] = {}
        self._early: list[tuple[Message, list[int]]] = []  # Links and reloads before we can.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closers: list[Callable[[], Awaitable[None]]] = []  # In the order of opening.
        self._lock: DataDirLock | None = None

    async def main(self, fd: int) -> bool:
        """Work until the supervisor says otherwise, or is gone; return whether to begin anew."""
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[bool] = self._loop.create_future()
        self._welcomed: asyncio.Future[tuple[Message, list[int]]] = self._loop.create_future()
        self._post = Post(fd, self._told, self._finish, self._take_asked, role="controller")
        self._supervising = Supervising(self._post)
        working = self._loop.create_task(self._work())
        try:
            ends: set[asyncio.Future[Any]] = {working, self._end}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await self._close()
            self._post.close()
        return self._end.done() and self._end.result()

    async def _work(self) -> None:
        await self._begin(*await self._welcomed)
        self._spawn(self._certificates.run())
        self._spawn(follow_count(lambda: self._group.instances, self._publisher.touch))
        await self._watcher.run()

    # Beginning and ending

    async def _begin(self, welcome: Message, fds: list[int]) -> None:
        said = ("pid", "started", "stopping")
        self._pid, self._started, self._stopping = (welcome[word] for word in said)
        self._supervising.take_welcome(welcome)
        if welcome["ended"]:
            log.warning("the controller before this one %s", welcome["ended"])
        kept = kept_edition(fds)
        in_force = await self._config_to_start_with(kept)
        self._in_force = in_force.with_workers(welcome["slots"])
        config = self._in_force.loaded.config
        await self._open_data_dir(config, welcome["disk_failed"])
        self._certificates = CertificateStore(wall_time, self._backends_changed)
        if kept is not None:
            self._certificates.restore(kept.parts)
        await self._certificates.prepare(config, lenient=True)
        self._build(config, kept)
        await self._resolver.first_answers(FIRST_ANSWERS_SECONDS)
        if self._group.has_leader:
            await self._reloader.start()
        else:
            self._spawn(self._reloader.start())  # Nobody's traffic waits for a group to agree.
        addresses = addresses_of(config)
        await self._supervising.ensure(addresses)
        own = [config.admin.address, *([config.admin.probe] if config.admin.probe else [])]
        listen = [config.group.listen] if config.group else []
        socks = await self._supervising.own([*own, *listen])
        held = {address for address, own in welcome["held"].items() if not own}
        self._supervising.forget(held - set(addresses))
        self._publisher.publish()
        self._begun = True
        for message, descriptors in self._early:
            self._told(message, descriptors)
        await self._open_admin(socks[: len(own)])
        await self._meet_group(socks[-1] if listen else None)
        self._supervising.up()

    async def _meet_group(self, sock: socket.socket | None) -> None:
        """Let the other members find us, and find them."""
        views = Views(self)

        async def standing(_: Claim, __: Plain) -> Plain:
            return {**views.own_standing(), **self._group_desk.news()}

        self._group.own_news = views.own_standing
        methods = {**self._group_desk.methods(), **views.methods(), "standing": standing}
        await self._group.serve(sock, methods)

    async def _config_to_start_with(self, kept: Edition | None) -> InForce:
        """Take what was in force; only an instance that starts reads its file."""
        if kept is not None and PART in kept.parts:
            in_force = InForce.from_part(kept.parts[PART])
        else:
            loaded = await self._parser.parse(at_start=True)
            in_force = InForce(loaded, 1, self._path, wall_time())
            for warning in loaded.warnings:
                log.warning("%s", warning)
        daemonlog.adopt(in_force.loaded.config.log.model_dump())
        return in_force

    async def _open_data_dir(self, config: Config, disk_failed: bool) -> None:
        folder = config.node.data_dir
        self._lock = await asyncio.to_thread(lock_data_dir, folder)
        self._name, warning = settle_name(folder, config.node.name)
        if warning:
            log.warning("%s", warning)
        self._group = Group(folder, self._name, lambda: self.config.group, wall_time)
        self._group_desk = GroupDesk(self._group)
        self._closers.append(self._group.close)
        await self._group.open(DISK_FAILED if disk_failed else "")
        self._memory = FileMemory.open(folder)
        if self._memory.warning:
            log.warning("%s", self._memory.warning)

    def _build(self, config: Config, kept: Edition | None) -> None:
        """Make the parts and tell each of the others' changes."""
        asker = Asker()
        self._prober = Prober(asker, self._verdict_changed, wall_time, random.Random(), self._loop)
        self._names = NameServers()
        self._resolver = Resolver(self._backends_changed, self._names)
        self._overrides = Overrides(self._verdict_changed)
        self._outliers = Outliers(
            self._sources, self._verdict_changed, time.monotonic, random.Random()
        )
        if kept is not None:
            self._outliers.restore(orjson.loads(kept.parts.get(OUTLIERS_PART, b"{}")))
            self._overrides.restore(orjson.loads(kept.parts.get(FORCED_PART, b"{}")))
            # A part is missing where an older program kept the edition.
            self._prober.restore(orjson.loads(kept.parts.get(CHECKS_PART, b"{}")))
            self._resolver.restore(orjson.loads(kept.parts.get(NAMES_PART, b"{}")))
        self._publisher = Publisher(
            Composer(self._name, via_of(self._group.registry.id, self._name)),
            lambda: self._overrides.over(self._sources()),
            self._supervising.keep,
            self._control_parts,
            kept,
        )
        self._watcher = Watcher(self._parser.parse, self._disk_changed)
        self._group.subscribe(self._registry_changed)
        self._group.subscribe_applied(write_down)
        self._closers += [asker.close, self._prober.close, self._resolver.close]
        hands = Hands(
            parse=self._parse_and_prepare,
            adopt=self._adopt,
            sockets=self._supervising,
            store=self._group,
            memory=self._memory,
            publisher=self._publisher,
            resolver=self._resolver,
            wall=wall_time,
            member=self._name,
        )
        self._reloader = Reloader(hands, self._in_force)
        self._closers.append(self._reloader.close)
        self._adopt(self._in_force)

    async def _parse_and_prepare(self) -> Loaded:
        """Read the file, and the certificates that it names."""
        loaded = await self._parser.parse()
        await self._certificates.prepare(loaded.config)
        return loaded

    async def _open_admin(self, socks: list[socket.socket]) -> None:
        admin = AdminServer(self, lambda: self._certificates.admin_context(self.config))
        self._group.subscribe_applied(admin.events.take)
        servers: list[AdminServer | ProbeServer] = [admin]
        servers += [ProbeServer(self)] if len(socks) > 1 else []
        for server, sock in zip(servers, socks, strict=True):
            self._closers.append(server.stop)
            await server.start(sock)

    def _adopt(self, in_force: InForce) -> None:
        """Put a config in force, for all who act by it."""
        self._in_force = in_force
        config = in_force.loaded.config
        self._supervising.settle(
            config.node.worker_count(),
            config.node.grace,
            config.node.drain,
            config.log.model_dump(),
        )
        self._group.adopt()
        self._names.use(config.node.resolver)
        self._watcher.follow(in_force.loaded.files, in_force.loaded.digest)
        self._certificates.follow(config)
        self._backends_changed()

    async def _close(self) -> None:
        """End what was begun, as far as it got; the lock last."""
        if self._begun:
            await self._group.hand_over()  # Before anything else: others wait for a leader.
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._linked.values():
            stream.close()
        async with AsyncExitStack() as stack:
            if self._lock is not None:
                stack.callback(self._lock.release)
            for close in self._closers:
                stack.push_async_callback(close)
        self._supervising.close()

    # The supervisor's channel

    def _told(self, message: Message, fds: list[int]) -> None:
        {
            "welcome": self._take_welcome,
            "bound": self._supervising.bound,
            "workers": lambda workers, _: self._supervising.take_workers(workers),
            "metrics": self._supervising.take_metrics,
            "link": self._take_link,
            "reload": self._take_reload,
            "upgraded": self._supervising.upgraded,
            "yours": self._supervising.yours,
            "unready": self._take_unready,
            "reopen": self._take_reopen,
            "stop": self._take_stop,
            "rest": self._take_rest,
        }[message["kind"]](message, fds)

    def _take_welcome(self, message: Message, fds: list[int]) -> None:
        if self._welcomed.done():  # Told to stop before we had begun.
            link.close_all(fds)
        else:
            self._welcomed.set_result((message, fds))

    def _take_link(self, message: Message, fds: list[int]) -> None:
        if self._begun:
            self._spawn(self._link(message["slot"], socket.socket(fileno=fds[0])))
        else:
            self._early.append((message, fds))

    def _take_reload(self, message: Message, fds: list[int]) -> None:
        if self._begun:
            self._spawn(self._reload_and_say(By(member=self._name, source="signal")))
        else:
            self._early.append((message, fds))

    def _take_unready(self, _: Message, __: list[int]) -> None:
        self._stopping = True
        self._post.beat_now()

    def _take_reopen(self, _: Message, __: list[int]) -> None:
        daemonlog.reopen()

    def _take_stop(self, _: Message, __: list[int]) -> None:
        self._finish()

    def _take_rest(self, _: Message, __: list[int]) -> None:
        finish = functools.partial(self._finish, again=True)
        if self._begun:
            self._spawn(self._reloader.when_idle(finish))
        else:
            finish()

    def _finish(self, *, again: bool = False) -> None:
        """End: told to, or the supervisor is gone, and with it all that we serve."""
        if not self._end.done():
            self._end.set_result(again)

    def _take_asked(self) -> bool:
        asked, self._asked = self._asked, False
        return asked

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside the rest; its mistakes are the loop's to report."""
        assert len(self._tasks) < TASKS_MAX, "signals and links come one by one"
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a task failed", "exception": error})

    # Workers

    async def _link(self, slot: int, sock: socket.socket) -> None:
        """Open a stream to a worker that has just started, or that outlived a controller."""

        def heard(stream: Stream, frame: Frame) -> None:
            if frame.kind == "hello":
                self._linked[slot] = stream
                self._publisher.attach(slot, stream, frame.fields["parts"], frame.fields["number"])
            elif frame.kind == "live" and self._linked.get(slot) is stream:
                self._publisher.on_live(slot, frame.fields["number"])
            elif frame.kind == "outlier":
                self._outliers.found(slot, **frame.fields)
            elif frame.kind == "returned":
                self._outliers.returned(**frame.fields)

        def ended(stream: Stream) -> None:
            if self._linked.get(slot) is stream:
                del self._linked[slot]
                self._publisher.detach(slot)
                self._loop.call_later(SILENT_SECONDS, self._replace_if_silent, slot)

        await link.open_stream(sock, heard, ended)

    def _replace_if_silent(self, slot: int) -> None:
        """Have a worker replaced that serves and takes no editions: it could not read one."""
        up = {each.slot for each in self._standings() if each.up}
        if slot in up and slot not in self._linked and not self._stopping:
            self._supervising.replace(slot)

    # Changes

    def _sources(self) -> Sources:
        return Sources(
            config=self._in_force.loaded.config,
            generation=self._in_force.generation,
            registry=self._group.registry,
            verdicts=self._prober.verdicts,
            resolved=self._resolver.resolved,
            certificates=self._certificates.current,
            ejections=self._outliers.ejections,
            instances=self._group.instances,
        )

    def _control_parts(self) -> dict[str, bytes]:
        return {
            PART: self._in_force.to_part(),
            CHECKS_PART: orjson.dumps(self._prober.to_plain()),
            NAMES_PART: orjson.dumps(self._resolver.to_plain()),
            OUTLIERS_PART: orjson.dumps(self._outliers.to_plain()),
            FORCED_PART: orjson.dumps(self._overrides.to_plain()),
            certificates.PART: self._certificates.to_part(),
        }

    def _verdict_changed(self) -> None:
        self._outliers.verdicts_changed()
        if self._begun:  # Before that an edition would name addresses that we may not get.
            self._publisher.touch()

    def _registry_changed(self, _: Registry) -> None:
        self._backends_changed()

    def _backends_changed(self) -> None:
        """Probe and resolve what is there now, and tell the workers."""
        config, registry = self._in_force.loaded.config, self._group.registry
        self._resolver.watch(names_of(config, registry))
        self._prober.update(
            subjects_of(config, registry, self._resolver.resolved, self._certificates.context)
        )
        self._outliers.backends_changed()
        if self._begun:
            self._publisher.touch()

    async def _disk_changed(self) -> None:
        """Reload by ourselves, if that is wanted."""
        if self.config.node.watch and self._watcher.on_disk == CHANGED:
            await self._reload_and_say(By(member=self._name, source="watch"))

    async def _reload_and_say(self, by: By) -> None:
        """Reload for somebody who hears no answer: the log has told."""
        with suppress(AccordError):
            await self.reload(by, dry_run=False, force=False)

    # What the admin asks

    @property
    def config(self) -> Config:
        """The config in force."""
        return self._in_force.loaded.config

    @property
    def store(self) -> Group:
        """The registry."""
        return self._group

    @property
    def name(self) -> str:
        """Ours."""
        return self._name

    @property
    def group(self) -> GroupDesk:
        """What operators ask of the group."""
        return self._group_desk

    @property
    def edition(self) -> Edition:
        """The newest edition."""
        return self._publisher.edition

    def _standings(self) -> list[WorkerStanding]:
        return self._supervising.workers(self._publisher.live_number)

    def standing(self) -> Standing:
        """Say how this instance is."""
        return Standing(
            name=self._name,
            pid=self._pid,
            started=self._started,
            generation=self._in_force.generation,
            source=self._in_force.source,
            files=self._in_force.loaded.files,
            on_disk=self._watcher.on_disk,
            error=self._error,
            reloaded=self._in_force.since,
            reloads=self._reloads,
            workers=self._standings(),
            stopping=self._stopping,
            certificates=self._certificates.standing(),
            upgrade=self._supervising.upgrading,
        )

    def checks(self, upstream: str) -> Mapping[str, Check]:
        """Say what the prober knows of an upstream's endpoints."""
        return self._prober.checks(upstream)

    def ejected(self) -> Ejected:
        """Say who is taken out by what traffic showed."""
        return self._outliers.ejections

    def forced(self) -> Forced:
        """Say who is forced up or down on this instance alone."""
        return self._overrides.forced

    def force(self, upstream: str, key: str, to: str, why: str) -> None:
        """Force a backend up or down here, or leave it to the group again."""
        self._overrides.force(upstream, key, to, why)

    def cut(self, upstream: str, key: str) -> None:
        """Have workers cut what still runs on a backend that was removed."""
        for stream in self._linked.values():
            stream.send("cut", upstream=upstream, key=key)

    def resolved(self) -> Resolved:
        """Return the endpoints of backends that are names."""
        return self._resolver.resolved

    def reading(self, max_age: float = 0.0) -> Reading:
        """Return all counters, added up now or a little ago."""
        return self._supervising.reading(self._loop.time(), max_age)

    def unready(self) -> str:
        """Say why no traffic should come here; nothing if it should."""
        if self._stopping:
            return "stopping"
        if self._group.is_removed:
            return "removed from its group"
        behind = [each.slot for each in self._standings() if not each.up or each.edition == 0]
        if behind or not self._standings():
            return f"not serving yet: worker {', '.join(map(str, behind)) or 'none'}"
        undecided = self._prober.undecided()
        return f"first health checks: {undecided} still out" if undecided else ""

    def note_asked(self) -> None:
        """Pass on that somebody looks at readiness."""
        self._asked = True

    def routed_revision(self) -> int:
        """Return the newest revision that every worker routes by."""
        return self._publisher.routed_revision()

    async def wait_routed(self, revision: int, seconds: float) -> bool:
        """Wait until every worker routes by a revision."""
        return await self._publisher.wait_routed(revision, seconds)

    async def reload(self, by: By, *, dry_run: bool, force: bool) -> Mapping[str, Any]:
        """Reload, or say what one would do."""
        if dry_run:
            return await self._reloader.reload(by, dry_run=True, force=force)
        self._supervising.reloading()
        try:
            reply = await self._reloader.reload(by, force=force)
        except AccordError as error:
            self._supervising.reloaded(error.brief)
            self._reloads["failed"] += 1
            self._error = error.message
            log.warning("a reload changed nothing (asked by %s): %s", asker(by), error.brief)
            raise
        self._supervising.reloaded()
        self._reloads["ok"] += 1
        self._error = None
        log.info(
            "reloaded (asked by %s): generation %d, edition %d: %s",
            *(asker(by), reply["generation"], reply["edition"], in_one_line(reply["changed"])),
        )
        for key in reply["needs_restart"]:
            log.warning("%s: takes effect at the next restart", key)
        return reply

    async def sync(self, by: By, *, dry_run: bool) -> Mapping[str, Any]:
        """Make the registry's view of the file what our file says."""
        return await self._reloader.sync(by, dry_run=dry_run)

    async def stop(self, drain: float | None) -> None:
        """Pass a graceful stop to the supervisor."""
        self._supervising.stop(drain)

    async def upgrade(self) -> int:
        """Have the supervisor run what is installed now."""
        return await self._supervising.upgrade()


async def work(config_path: str, fd: int, first: ParserProcess) -> int:
    """
    Be the controller, and begin anew as often as the supervisor wants it; `first` parses.

    While another program takes over we hold nothing, but are there: if it fails, what we were
    started from may be gone from disk.
    """
    parser = Parser(config_path, first)
    try:
        while await Controller(config_path, parser).main(os.dup(fd)):
            log.debug("at rest: another program's controller works")
    finally:
        parser.close()
    return 0
