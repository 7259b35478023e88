"""
Keeps what the files of certificates hold, and takes up new ones by itself.

Files are looked at each second. A new pair is taken once it is whole and matches; until then
the old one is served, and after ten seconds somebody is told: in the log, in status and in a
metric. Keys are in this process's memory and in the edition, which lies in memory too; they
are never logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson

from lb.config.certificates import (
    BadCertificateError,
    Bundle,
    Pair,
    bundles_of,
    group_tls,
    pairs_of,
    read_bundle,
    read_pair,
)
from lb.config.schema import Config
from lb.edition import TLS
from lb.model import CertificateRef
from lb.pem import load_pair
from lb.plans import NO_CERTIFICATES, Certificates

log = logging.getLogger(__name__)

PART: Final = "control/certificates"
OURS: Final = {"admin", "group"}  # Who uses certificates that no worker is to have.
INTERVAL: Final = 1.0  # Seconds from look to look.
PATIENCE: Final = 10.0  # For files that somebody is replacing.
SOON: Final = 14 * 86_400.0  # Before its end a certificate is spoken of,
DAILY: Final = 86_400.0  # so often.

Key = tuple[str, ...]  # A certificate's file and its key's, or a bundle's alone.
Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(slots=True)
class _Held:
    """What one certificate, or one bundle, last was, and how its files stand since then."""

    value: Pair | Bundle
    stamp: Stamp = ()
    bad_since: float | None = None  # On the monotonic clock.
    error: str | None = None  # Why what is on disk is not taken.
    warned: float = 0.0


class CertificateStore:
    """
    `current` is what editions are made with: another object whenever something in it changed.

    `on_change` is called then, without arguments. `wall` gives the seconds since 1970.
    """

    def __init__(
        self,
        wall: Callable[[], float],
        on_change: Callable[[], None],
        interval: float = INTERVAL,
        patience: float = PATIENCE,
    ) -> None:
        self._wall = wall
        self._on_change = on_change
        self._interval = interval
        self._patience = patience
        self._held: dict[Key, _Held] = {}
        self._prepared: dict[Key, _Held] = {}
        self._users: dict[Key, list[str]] = {}
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}
        self.current = NO_CERTIFICATES

    # What changes

    def restore(self, parts: Mapping[str, bytes]) -> None:
        """Start from what a controller before us held, should the files be bad by now."""
        for files, plain in orjson.loads(parts.get(PART, b"[]")):
            pem = parts.get(TLS + plain["digest"])
            if "pem" in plain:
                pem = plain["pem"].encode("latin-1")
            if pem is not None and len(files) == 2:
                names = tuple(plain["names"])
                pair = Pair(plain["digest"], names, plain["starts"], plain["ends"], pem)
                self._held[tuple(files)] = _Held(pair)
            elif pem is not None:
                self._held[tuple(files)] = _Held(Bundle(plain["digest"], pem))

    async def prepare(self, config: Config, *, lenient: bool = False) -> None:
        """
        Read all that a config names, so that it can go live. BadCertificateError.

        `lenient`: what cannot be read stays as it was restored.
        """
        self._prepared = {}
        for key in _wanted(config):
            try:
                self._prepared[key] = await asyncio.to_thread(self._read, key)
            except BadCertificateError as error:
                if not lenient or key not in self._held:
                    raise
                self._held[key].error = error.message
                log.error("%s: what was in force before stays", error.message)

    def follow(self, config: Config) -> None:
        """Serve this config from now on: `prepare` has read what it names."""
        wanted = _wanted(config)
        self._users = wanted
        self._held = {key: self._prepared.get(key) or self._held[key] for key in wanted}
        self._prepared = {}
        self._show()

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.look()

    async def look(self) -> None:
        """Look once at all files; take up what is new and good."""
        changed = False
        for key, held in tuple(self._held.items()):
            self._warn_of_end(key, held)
            stamp = await asyncio.to_thread(_stamp, key)
            if stamp == held.stamp and held.bad_since is None:
                continue
            changed |= await self._take_up(key, held, stamp)
        if changed:
            self._show()
            self._on_change()

    async def _take_up(self, key: Key, held: _Held, stamp: Stamp) -> bool:
        try:
            found = await asyncio.to_thread(self._read, key)
        except BadCertificateError as error:
            self._refuse(key, held, stamp, error)
            return False
        if self._held.get(key) is not held:
            return False  # A reload came in between.
        self._held[key] = found
        if held.error is not None:
            log.info("%s: what is on disk can be used again", key[0])
        if found.value.digest == held.value.digest:
            return held.error is not None
        log.info("%s was replaced, and is served by", key[0])
        return True

    def _refuse(self, key: Key, held: _Held, stamp: Stamp, error: BadCertificateError) -> None:
        now = time.monotonic()
        if held.bad_since is None:
            held.bad_since = now
        elif now - held.bad_since >= self._patience:
            # Not looked at again until the files change once more.
            held.bad_since, held.stamp = None, stamp
            if held.error != error.message:
                log.error("%s: the certificate before stays in force", error.message)
            held.error = error.message

    def _read(self, key: Key) -> _Held:
        stamp = _stamp(key)  # Before the reading: what changes after it is looked at again.
        if len(key) == 1:
            return _Held(read_bundle(key[0]), stamp)
        return _Held(read_pair(key[0], key[1], self._wall()), stamp)

    def _warn_of_end(self, key: Key, held: _Held) -> None:
        now, pair = self._wall(), held.value
        if isinstance(pair, Pair) and pair.ends - now < SOON and now - held.warned > DAILY:
            held.warned = now
            days = (pair.ends - now) / 86_400
            what = f"expires in {days:.1f} days" if days > 0 else "has expired"
            log.warning("the certificate %s %s", key[0], what)

    def _show(self) -> None:
        self._contexts.clear()
        pairs, bundles, parts = {}, {}, {}
        for key, held in self._held.items():
            if self._is_ours(key):
                continue
            value = held.value
            parts[TLS + value.digest] = value.pem
            if isinstance(value, Pair):
                pairs[key[0], key[1]] = CertificateRef(value.digest, value.names)
            else:
                bundles[key[0]] = value.digest
        self.current = Certificates(pairs, bundles, parts)

    def _is_ours(self, key: Key) -> bool:
        users = self._users.get(key, [])
        return users != [] and OURS.issuperset(users)

    # What others ask

    def to_part(self) -> bytes:
        """What the next controller should know; the PEM that workers use is in parts of its own."""
        plain = []
        for key, held in self._held.items():
            value = held.value
            about: dict[str, Any] = {"digest": value.digest}
            if isinstance(value, Pair):
                about |= {"names": value.names, "starts": value.starts, "ends": value.ends}
            if self._is_ours(key):
                about["pem"] = value.pem.decode("latin-1")
            plain.append((key, about))
        return orjson.dumps(plain)

    def standing(self) -> list[dict[str, Any]]:
        """Each certificate: who shows it, whom it is for, when it ends, what is wrong on disk."""
        return [
            {
                "used_by": users,
                "cert": key[0],
                "names": list(held.value.names) if isinstance(held.value, Pair) else [],
                "expires": held.value.ends if isinstance(held.value, Pair) else None,
                "error": held.error,
            }
            for key, users in self._users.items()
            if (held := self._held.get(key)) is not None
        ]

    def context(self, config: Config, upstream: str) -> ssl.SSLContext:
        """What an upstream's backends are probed by, as workers speak to them."""
        tls = config.upstream[upstream].tls
        ca = self._held[tls.ca,].value if tls.ca else None
        pair = self._held[tls.cert, tls.key].value if tls.cert else None
        terms = (tls.verify, ca and ca.digest, pair and pair.digest)
        context = self._contexts.get(terms)
        if context is None:
            context = self._contexts[terms] = ssl.create_default_context(
                cadata=ca.pem.decode() if ca else None
            )
            if not tls.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if pair is not None:
                load_pair(context, pair.pem)
        return context

    def admin_context(self, config: Config) -> ssl.SSLContext | None:
        """What the admin speaks TLS by; None where it speaks none."""
        tls = config.admin.tls
        if tls is None:
            return None
        context = self._contexts.get(("admin",))
        if context is None:
            context = self._contexts["admin",] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            # Nobody comes back by a ticket of before: each shows its certificate anew.
            context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
            context.num_tickets = 0
            context.set_alpn_protocols(["http/1.1"])
            if tls.client_ca:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(cadata=self._held[tls.client_ca,].value.pem.decode())
            load_pair(context, self._held[tls.cert, tls.key].value.pem)
        return context


def _wanted(config: Config) -> dict[Key, list[str]]:
    """All that a config names, each with who uses it."""
    wanted: dict[Key, list[str]] = {pair: [] for pair in sorted(pairs_of(config))}
    wanted.update({(name,): [] for name in sorted(bundles_of(config))})
    for name, listener in config.listener.items():
        for pair in listener.tls:
            wanted[pair.cert, pair.key].append(f"listener.{name}")
        if listener.client_ca:
            wanted[listener.client_ca,].append(f"listener.{name}")
    if tls := config.admin.tls:
        wanted[tls.cert, tls.key].append("admin")
        if tls.client_ca:
            wanted[tls.client_ca,].append("admin")
    if group := group_tls(config):
        wanted[group.cert, group.key].append("group")
        wanted[group.ca,].append("group")
    for name, upstream in config.upstream.items():
        if upstream.tls.cert:
            wanted[upstream.tls.cert, upstream.tls.key].append(f"upstream.{name}")
        if upstream.tls.ca:
            wanted[upstream.tls.ca,].append(f"upstream.{name}")
    return wanted


def _stamp(key: Key) -> Stamp:
    stamps: list[tuple[int, int, int] | None] = []
    for name in key:
        stamps.append(None)
        with suppress(OSError):
            found = os.stat(name)
            stamps[-1] = (found.st_mtime_ns, found.st_size, found.st_ino)
    return tuple(stamps)
