"""
A new file: parsed, judged, made ready for, adopted; or refused, and then nothing has changed.

In this order: parsed in the parser's process, compared, sockets bound, names looked up, an edition
rehearsed. Up to here any failure undoes everything. Then the config is in force, what the file
says of backends is proposed to the registry, which may refuse it for one upstream or another,
and the edition goes to the workers. A worker that does not take it up in time is replaced.

A key that needs a restart keeps its old value in the config in force, so that each reload
names it again until there was one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lb.config.diff import Changes, diff, security_changes
from lb.config.load import Loaded
from lb.config.schema import Config
from lb.config.section import Section, needs_restart
from lb.control.file_memory import (
    FileMemory,
    FileOutcome,
    FileSays,
    plan_proposals,
    plan_sync,
    propose_all,
    try_all,
)
from lb.control.in_force import InForce
from lb.control.publisher import Publisher
from lb.control.resolver import Resolver
from lb.control.store import Store
from lb.errors import OperatorError
from lb.registry import ApplyFile, By

log = logging.getLogger(__name__)

CHANGES_NAMED_MAX = 5  # In one line of the log; the rest is counted.
RELOADS_MAX = 8  # One runs, the others wait; more are turned away.
LIVE_SECONDS_MAX = 5.0  # For workers to take up the edition.
NAMES_SECONDS_MAX = 2.0  # For names that are new; one that takes longer comes in later.
PENDING_AGAIN = 0.5  # Seconds until what the registry could not decide is proposed again.


class Sockets(Protocol):
    """Who holds the listeners' sockets: the supervisor."""

    async def ensure(self, addresses: Iterable[str]) -> None:
        """Hold all of these, or raise an OperatorError and hold none that is new."""
        ...

    def forget(self, addresses: Iterable[str]) -> None:
        """Let go of these, once their queues are empty."""
        ...

    def replace(self, slot: int) -> None:
        """Have a silent worker replaced."""
        ...


@dataclass(frozen=True, slots=True)
class Hands:
    """
    What a reload needs of others.

    `parse` reads and judges the file. `adopt` puts a config in force: from its return on,
    editions are made by it, and everybody who acts by the config knows. It is called with the
    old one again to undo that.
    """

    parse: Callable[[], Awaitable[Loaded]]
    adopt: Callable[[InForce], None]
    sockets: Sockets
    store: Store
    memory: FileMemory
    publisher: Publisher
    resolver: Resolver
    wall: Callable[[], float]
    member: str = ""  # This instance's name, as in `By`.


class Reloader:
    """The one way to another config. One at a time; a second reload waits for the first."""

    def __init__(self, hands: Hands, in_force: InForce) -> None:
        self._hands = hands
        self._in_force = in_force
        self._turn = asyncio.Lock()
        self._asked = 0
        self._again: asyncio.Task[None] | None = None

    @property
    def in_force(self) -> InForce:
        """The config in force, and where it came from."""
        return self._in_force

    async def start(self) -> FileOutcome:
        """Propose what the file says at a start, where it is not what it said last time."""
        async with self._turn:
            return await self._propose(By(member=self._hands.member, source="file"), force=False)

    async def when_idle(self, then: Callable[[], None]) -> None:
        """Do something once what was asked for before is over."""
        async with self._turn:
            then()

    async def reload(self, by: By, *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """
        Make what the file says now the config in force; with `dry_run` only say what would be.

        Returns the design's reply. Raises ConfigErrors for a bad file and other AccordErrors
        where a good one could not go live; then nothing has changed.
        """
        async with self._queued():
            loaded = await self._hands.parse()
            running = self._in_force.loaded.config
            changes = diff(running, loaded.config)
            loaded = replace(loaded, config=keep_restart_keys(running, loaded.config))
            if dry_run:
                return self._foresee(loaded, changes, by, force=force)
            return await self._go_live(loaded, changes, by, force=force)

    async def sync(self, by: By, *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Make the registry's view of the file what the config in force says."""
        hands = self._hands
        async with self._queued():
            says = FileSays.of(self._in_force.loaded.config)
            commands = plan_sync(says, by=by, at=hands.wall(), force=force)
            if dry_run:
                return _sync_reply(try_all(hands.store.registry, commands), dry_run=True)
            outcome = await propose_all(hands.store, hands.memory, commands)
            return _sync_reply(outcome, dry_run=False)

    async def close(self) -> None:
        """Propose nothing more."""
        again, self._again = self._again, None
        if again is not None:
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)

    @asynccontextmanager
    async def _queued(self) -> AsyncIterator[None]:
        """Wait for our turn, if not too many do."""
        if self._asked >= RELOADS_MAX:
            raise OperatorError(
                f"{RELOADS_MAX} reloads are waiting already", "let one of them finish first"
            )
        self._asked += 1
        try:
            async with self._turn:
                yield
        finally:
            self._asked -= 1

    # A reload

    async def _go_live(
        self, loaded: Loaded, changes: Changes, by: By, *, force: bool
    ) -> dict[str, Any]:
        hands, before = self._hands, self._in_force
        old, new = addresses_of(before.loaded.config), addresses_of(loaded.config)
        with hands.resolver.holding(_names_to_come(loaded.config)):
            with ExitStack() as undo:
                added = [address for address in new if address not in old]
                await hands.sockets.ensure(added)
                undo.callback(hands.sockets.forget, added)
                await hands.resolver.first_answers(NAMES_SECONDS_MAX)
                undo.callback(self._adopt, before)
                self._adopt(InForce(loaded, before.generation + 1, before.source, hands.wall()))
                hands.publisher.rehearse()
                undo.pop_all()
            # From here on the config is in force, whatever the registry says to the rest.
            outcome = await self._propose(by, force=force)
            edition = hands.publisher.publish()
            silent = await hands.publisher.wait_live(edition.number, LIVE_SECONDS_MAX)
        for slot in sorted(silent):
            log.error(
                "worker %d did not take up edition %d within %g s: it is replaced",
                *(slot, edition.number, LIVE_SECONDS_MAX),
            )
            hands.sockets.replace(slot)
        hands.sockets.forget(address for address in old if address not in new)
        return {
            **self._reply(changes, outcome, loaded),
            "edition": edition.number,
            "revision": edition.revision,
            "replaced": sorted(silent),
        }

    def _adopt(self, in_force: InForce) -> None:
        self._in_force = in_force
        self._hands.adopt(in_force)

    def _reply(self, changes: Changes, outcome: FileOutcome, loaded: Loaded) -> dict[str, Any]:
        reply: dict[str, Any] = {
            "generation": self._in_force.generation,
            "changed": what_changed(changes, outcome),
            "needs_restart": changes.needs_restart,
            "refused": outcome.refused(),
            "stale": outcome.stale(),
            "differs": outcome.differs(),
            "warnings": [*loaded.warnings, *outcome.warnings],
        }
        _add_pending(reply, outcome)
        return reply

    def _foresee(self, loaded: Loaded, changes: Changes, by: By, *, force: bool) -> dict[str, Any]:
        """Say what a reload would answer, as far as that can be known without doing it."""
        commands = self._plan(loaded.config, by, force=force)
        outcome = try_all(self._hands.store.registry, commands)
        return {**self._reply(changes, outcome, loaded), "dry_run": True}

    # What the file says of backends

    def _plan(self, config: Config, by: By, *, force: bool) -> list[ApplyFile]:
        hands = self._hands
        return plan_proposals(
            hands.memory,
            FileSays.of(config),
            hands.store.registry,
            by=by,
            at=hands.wall(),
            force=force,
        )

    async def _propose(self, by: By, *, force: bool) -> FileOutcome:
        """Propose what is new; what cannot be decided now is proposed again until it is."""
        await self.close()
        commands = self._plan(self._in_force.loaded.config, by, force=force)
        outcome = await propose_all(self._hands.store, self._hands.memory, commands)
        _tell(outcome)
        if outcome.pending:
            loop = asyncio.get_running_loop()
            self._again = loop.create_task(self._propose_again(by, force=force))
        return outcome

    async def _propose_again(self, by: By, *, force: bool) -> None:
        while True:
            await asyncio.sleep(PENDING_AGAIN)
            # Planned anew: the registry may know by now what we could not hear of.
            commands = self._plan(self._in_force.loaded.config, by, force=force)
            outcome = await propose_all(self._hands.store, self._hands.memory, commands)
            if not outcome.pending:
                _tell(outcome)
                log.info("what the file says of backends has been decided")
                return


def keep_restart_keys(running: Config, wanted: Config) -> Config:
    """Return `wanted` with the values that `running` has of keys that need a restart."""
    update: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        before, after = getattr(running, name), getattr(wanted, name)
        if isinstance(before, Section) and isinstance(after, Section):
            kept = {key: getattr(before, key) for key in _restart_keys(type(after))}
            update[name] = after.model_copy(update=kept)
        elif needs_restart(field):
            update[name] = before
    if security_changes(running, wanted):
        assert running.group is not None
        # Listening where others can reach us, and asking nobody who they are, is never in force.
        kept = {key: getattr(running.group, key) for key in ("tls", "secret", "secret_file")}
        update["group"] = update["group"].model_copy(update=kept)
    return wanted.model_copy(update=update)


def _restart_keys(section: type[Section]) -> list[str]:
    return [key for key, field in section.model_fields.items() if needs_restart(field)]


def addresses_of(config: Config) -> list[str]:
    """The addresses on which a config accepts clients."""
    return list(dict.fromkeys(a for listener in config.listener.values() for a in listener.address))


def what_changed(changes: Changes, outcome: FileOutcome) -> list[str]:
    """
    Return a file's differences, in words; of backends those that the registry took up.

    The registry may refuse what the file says of backends, have it already, or only now take
    what an earlier file said and it had refused.
    """
    done = {(each["upstream"], each["backend"]): each for each in outcome.changed()}
    lines = []
    for line in changes.changed:
        about = changes.about.get(line)
        if about is None or about in done or about[0] in outcome.pending:
            lines.append(line)
    told = set(changes.about.values())
    new = {upstream for upstream, _ in done if f"upstream.{upstream} added" in changes.changed}
    lines += [
        _in_words(each) for key, each in done.items() if key not in told and key[0] not in new
    ]
    return lines


def in_one_line(changes: Sequence[str]) -> str:
    """Return the first of a reload's changes, and how many more there are."""
    more = len(changes) - CHANGES_NAMED_MAX
    named = "; ".join(changes[:CHANGES_NAMED_MAX]) or "nothing changed"
    return named + (f"; and {more} more" if more > 0 else "")


def _names_to_come(config: Config) -> Collection[str]:
    return {b.address for upstream in config.upstream.values() for b in upstream.backends or ()}


def _tell(outcome: FileOutcome) -> None:
    for each in outcome.refused():
        log.warning("%s keeps its backends: %s", each["upstream"], each["detail"])
    for each in outcome.stale():
        log.warning(
            "%s: what this file says of %s is older than the registry and was passed over",
            *(each["upstream"], each["backend"]),
        )
    for each in outcome.differs():
        log.warning(
            "%s: %s differs from the registry, and this file is new here;"
            " `lb config sync` would make the registry follow it",
            *(each["upstream"], each["backend"]),
        )
    for warning in outcome.warnings:
        log.warning("%s", warning)
    if outcome.pending:
        log.warning(
            "what the file says of %s waits: %s",
            *(", ".join(outcome.pending), outcome.why_pending),
        )


def _sync_reply(outcome: FileOutcome, *, dry_run: bool) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "changed": [_in_words(each) for each in outcome.changed()],
        "refused": outcome.refused(),
        "warnings": outcome.warnings,
        "revision": max((each.revision for each in outcome.replies.values()), default=0),
        "dry_run": dry_run,
    }
    _add_pending(reply, outcome)
    return reply


def _add_pending(reply: dict[str, Any], outcome: FileOutcome) -> None:
    if outcome.pending:
        reply["pending"] = {"upstreams": outcome.pending, "reason": outcome.why_pending}


def _in_words(change: dict[str, Any]) -> str:
    """As `config.diff` words it."""
    where = f"upstream.{change['upstream']}.backends"
    if change["what"] == "changed":
        return f"{where} {change['backend']}: {', '.join(change['fields'])}"
    return f"{where} {'+' if change['what'] == 'added' else '-'} {change['backend']}"
