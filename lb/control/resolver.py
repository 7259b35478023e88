"""
Turns the names of backends into addresses, again and again.

Each name is looked up when it first appears, and again when its time to live is over, within
bounds. A lookup that fails changes nothing for an hour: the last good answer stays. Whoever
knows best may say that a name is no more; only when that has lasted is it believed, since DNS
that is being mended says so too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from lb.config.schema import Config
from lb.control.names import Found, LookupFailedError, NoSuchNameError, in_brackets
from lb.edition import SRV, Resolved, addresses_of, is_name
from lb.errors import OperatorError
from lb.model import HTTPS
from lb.registry import Registry

log = logging.getLogger(__name__)

TTL_MIN = 1.0
TTL_MAX = 60.0
RETRY = 5.0  # Seconds from a failure to the next question.
KEPT_MAX = 3600.0  # Seconds that an answer stays while nobody can say better.
GONE_ANSWERS = 3  # That there is no such name, in a row,
GONE_AFTER = 3 * TTL_MAX  # and for so many seconds, before it is believed.
LOOKUPS_MAX = 64  # Under way at once.
ADDRESSES_MAX = 64  # Of one name; more are left out.

Lookup = Callable[[str], Awaitable[Found]]  # A host's name, or `srv://` and a service's.


def names_of(config: Config, registry: Registry) -> set[str]:
    """The addresses of backends that must be resolved."""
    found: set[str] = set()
    for name, upstream in config.upstream.items():
        found.update(filter(is_name, addresses_of(upstream, registry.upstreams.get(name))))
    return found


class Resolver:
    """
    Keeps `resolved` up to date for the addresses that `watch` names.

    `on_change` is called, without arguments, when `resolved` has become another mapping.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        lookup: Lookup,
        retry: float = RETRY,
    ) -> None:
        self._on_change = on_change
        self._lookup = lookup
        self._retry = retry
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(LOOKUPS_MAX)
        self._wanted: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._answers: dict[str, tuple[str, ...]] = {}
        self._restored: dict[str, tuple[str, ...]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._untried: set[str] = set()
        self._all_tried = asyncio.Event()
        self._resolved: dict[str, tuple[str, ...]] = {}
        self._good_at: dict[str, float] = {}  # When an answer was last good.
        self._gone: dict[str, int] = {}  # How often in a row there was no such name.
        self.errors: dict[str, str] = {}  # By host: why the last lookup failed.

    @property
    def resolved(self) -> Resolved:
        """Endpoints by address. Another object whenever one of them changed."""
        return self._resolved

    def to_plain(self) -> dict[str, list[str]]:
        """What the next controller should know, as JSON can hold it: the last good answers."""
        return {host: list(answer) for host, answer in self._answers.items()}

    def restore(self, plain: Mapping[str, Sequence[str]]) -> None:
        """Start from what a resolver before us knew: a dead DNS server is no reason to forget."""
        self._restored = {host: tuple(answer) for host, answer in plain.items()}

    def watch(self, addresses: Iterable[str]) -> None:
        """Resolve these and no others."""
        self._wanted = frozenset(addresses)
        self._follow()

    @contextmanager
    def holding(self, addresses: Iterable[str]) -> Iterator[None]:
        """Resolve these as well, for as long: backends to come are to have addresses at once."""
        assert not self._held, "one reload at a time"
        self._held = frozenset(filter(is_name, addresses))
        self._follow()
        try:
            yield
        finally:
            self._held = frozenset()
            self._follow()

    async def first_answers(self, seconds: float) -> bool:
        """Wait until each name was looked up once, well or not; False when time ran out."""
        try:
            async with asyncio.timeout(seconds):
                await self._all_tried.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Ask no more. A lookup under way ends by itself, and nobody waits for it."""
        for host in list(self._tasks):
            self._forget(host)
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def _follow(self) -> None:
        hosts = {_host(address) for address in self._wanted | self._held}
        for host in self._tasks.keys() - hosts:
            self._forget(host)
        for host in sorted(hosts - self._tasks.keys()):
            self._untried.add(host)
            if (answer := self._restored.pop(host, None)) is not None:
                self._answers[host] = answer
            self._tasks[host] = self._loop.create_task(self._ask_for_ever(host))
        self._note_tried()
        self._show()

    def _forget(self, host: str) -> None:
        task = self._tasks.pop(host)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        task.cancel()
        self._answers.pop(host, None)
        self._good_at.pop(host, None)
        self._gone.pop(host, None)
        self.errors.pop(host, None)
        self._untried.discard(host)

    async def _ask_for_ever(self, host: str) -> None:
        self._good_at.setdefault(host, self._loop.time())
        while True:
            try:
                async with self._slots:
                    found = await self._lookup(host)
            except LookupFailedError as error:
                self._note_failure(host, error)
                pause = self._retry
            else:
                if self.errors.pop(host, None) is not None:
                    log.info("%s is resolved again", host)
                self._gone.pop(host, None)
                self._good_at[host] = self._loop.time()
                self._answers[host] = _tidy(host, found.answers)
                pause = min(max(found.ttl, TTL_MIN), TTL_MAX)
            self._untried.discard(host)
            self._note_tried()
            self._show()
            await asyncio.sleep(pause)

    def _note_failure(self, host: str, error: LookupFailedError) -> None:
        reason = error.strerror or str(error)
        silent = self._loop.time() - self._good_at[host]
        gone = self._gone.get(host, 0) + 1 if isinstance(error, NoSuchNameError) else 0
        self._gone[host] = gone
        over = silent >= KEPT_MAX or (gone >= GONE_ANSWERS and silent >= GONE_AFTER)
        if over and self._answers.pop(host, ()):
            log.warning("%s: its last addresses are given up: %s", host, reason)
        elif self.errors.get(host) != reason:
            kept = "its last addresses stay" if self._answers.get(host) else "it has no address"
            log.warning("%s cannot be resolved: %s; %s", host, reason, kept)
        self.errors[host] = reason

    def _note_tried(self) -> None:
        if self._untried:
            self._all_tried.clear()
        else:
            self._all_tried.set()

    def _show(self) -> None:
        resolved = {}
        for address in sorted(self._wanted | self._held):
            scheme = HTTPS if address.startswith(HTTPS) else ""
            port = "" if address.startswith(SRV) else f":{address.rpartition(':')[2]}"
            if answer := self._answers.get(_host(address)):
                resolved[address] = tuple(f"{scheme}{each}{port}" for each in answer)
        if resolved != self._resolved:
            self._resolved = resolved
            self._on_change()


def _host(address: str) -> str:
    """What to ask for: a host, or a whole `srv://` address."""
    if not is_name(address):
        raise OperatorError(f"{address} is no name", "only names are resolved")
    if address.startswith(SRV):
        return address
    return address.removeprefix(HTTPS).rpartition(":")[0]


def _tidy(host: str, answer: Iterable[str]) -> tuple[str, ...]:
    """Bring answers into one order and form, so that the same answer looks the same."""
    # One with a scope (fe80::1%eth0) is of one link only, and no connection of ours is.
    found = {_parts(text, ported=host.startswith(SRV)) for text in answer if "%" not in text}
    ordered = sorted(found, key=lambda each: (each[0].version, int(each[0]), each[1]))
    if len(ordered) > ADDRESSES_MAX:
        log.warning("%s has %d addresses; %d are used", host, len(ordered), ADDRESSES_MAX)
    return tuple(in_brackets(str(ip)) + port for ip, port in ordered[:ADDRESSES_MAX])


def _parts(text: str, *, ported: bool) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, str]:
    host, mark, port = text.rpartition(":") if ported else (text, "", "")
    return ipaddress.ip_address(host.strip("[]")), mark + port
