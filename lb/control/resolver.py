"""
Turns the names of backends into addresses, again and again, off the loop.

Each name is looked up when it first appears and every ten seconds after that, by the system's
resolver. A lookup that fails changes nothing: the last good answer stays.

Not here, yet: times to live and servers of our own choice, which the system's resolver hides.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lb.config.schema import Config
from lb.edition import Resolved, backends_of, is_name
from lb.errors import OperatorError
from lb.model import HTTPS
from lb.registry import Registry

log = logging.getLogger(__name__)

INTERVAL = 10.0  # Seconds from an answer to the next question.
LOOKUPS_MAX = 8  # Under way at once: each holds a thread, and a dead DNS server holds it long.
ADDRESSES_MAX = 64  # Of one name; more are left out.

Lookup = Callable[[str], Iterable[str]]


def names_of(config: Config, registry: Registry) -> set[str]:
    """The addresses of backends that must be resolved."""
    return {
        row.address
        for name, upstream in config.upstream.items()
        for row in backends_of(name, upstream, registry.upstreams.get(name))
        if is_name(row.address)
    }


def look_up(host: str) -> list[str]:
    """Ask the system for a host's addresses. Blocks. OSError if it has none."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(where[0]) for _, _, _, _, where in found]


class Resolver:
    """
    Keeps `resolved` up to date for the addresses that `watch` names.

    `on_change` is called, without arguments, when `resolved` has become another mapping.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        lookup: Lookup = look_up,
        interval: float = INTERVAL,
    ) -> None:
        self._on_change = on_change
        self._lookup = lookup
        self._interval = interval
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
        self.errors.pop(host, None)
        self._untried.discard(host)

    async def _ask_for_ever(self, host: str) -> None:
        while True:
            async with self._slots:
                answer = await self._ask(host)
            if isinstance(answer, OSError):
                self._note_failure(host, answer)
            else:
                if self.errors.pop(host, None) is not None:
                    log.info("%s is resolved again", host)
                self._answers[host] = _tidy(host, answer)
            self._untried.discard(host)
            self._note_tried()
            self._show()
            await asyncio.sleep(self._interval)

    async def _ask(self, host: str) -> list[str] | OSError:
        """Look up in a thread that nobody has to wait for: neither a stop nor another name."""
        future: asyncio.Future[list[str] | OSError] = self._loop.create_future()

        def tell(answer: list[str] | OSError) -> None:
            if not future.done():
                future.set_result(answer)

        def work() -> None:
            answer: list[str] | OSError
            try:
                answer = list(self._lookup(host))
            except OSError as error:
                answer = error
            except UnicodeError as error:  # A label that no DNS could hold.
                answer = OSError(str(error))
            with suppress(RuntimeError):  # The loop is closed: nobody wants to know.
                self._loop.call_soon_threadsafe(tell, answer)

        threading.Thread(target=work, name=f"look up {host}", daemon=True).start()
        return await future

    def _note_failure(self, host: str, error: OSError) -> None:
        reason = error.strerror or str(error)
        if self.errors.get(host) != reason:
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
            port = address.rpartition(":")[2]
            if answer := self._answers.get(_host(address)):
                resolved[address] = tuple(f"{scheme}{ip}:{port}" for ip in answer)
        if resolved != self._resolved:
            self._resolved = resolved
            self._on_change()


def _host(address: str) -> str:
    if not is_name(address):
        raise OperatorError(f"{address} is no name", "only names are resolved")
    return address.removeprefix(HTTPS).rpartition(":")[0]


def _tidy(host: str, answer: Iterable[str]) -> tuple[str, ...]:
    """Bring addresses into one order and form, so that the same answer looks the same."""
    # One with a scope (fe80::1%eth0) is of one link only, and no connection of ours is.
    found = {ipaddress.ip_address(text) for text in answer if "%" not in text}
    ordered = sorted(found, key=lambda ip: (ip.version, int(ip)))
    if len(ordered) > ADDRESSES_MAX:
        log.warning("%s has %d addresses; %d are used", host, len(ordered), ADDRESSES_MAX)
    return tuple(str(ip) if ip.version == 4 else f"[{ip}]" for ip in ordered[:ADDRESSES_MAX])
