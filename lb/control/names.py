"""
Asks for the addresses of names: the hosts file first, then DNS, with times to live.

By dnspython and not by the system's `getaddrinfo`, which blocks a thread, hides the time to live
and cannot ask for services. Where the system names no DNS server, the system is asked after all.

Not here: weights of services (RFC 2782); all targets of the best priority count alike.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.resolver

from lb.edition import SRV

HOSTS: Final = "/etc/hosts"
RESOLV_CONF: Final = "/etc/resolv.conf"
FILE_TTL_S: Final = 5.0  # of what no DNS server said
ASK_S: Final = 2.0  # one server, before the next is asked
ASK_ALL_S: Final = 5.0
TARGETS_MAX: Final = 64  # of one service
DNS_PORT: Final = 53
FAR_AWAY: Final = ("2001:4860:4860::8888", 53)  # Nothing is sent there: is there a way at all?


class LookupFailedError(OSError):
    """Nobody could say: what was known before still holds."""


class NoSuchNameError(LookupFailedError):
    """Whoever knows says that there is no such name, or that it has no address."""


@dataclass(frozen=True, slots=True)
class Found:
    """Addresses of a host (`ip`), or endpoints of a service (`ip:port`), and for how long."""

    answers: tuple[str, ...]
    ttl: float


class NameServers:
    """
    Answers questions: a host's name, or `srv://` and a service's.

    `servers` are `ip` or `ip:port`; without any the system's are asked.
    """

    def __init__(self, servers: Sequence[str] = (), hosts: str = HOSTS) -> None:
        self._servers = tuple(servers)
        self._hosts = hosts
        self._hosts_read: tuple[float, dict[str, list[str]]] = (-1.0, {})
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._conf_at = -1.0

    def use(self, servers: Sequence[str]) -> None:
        """Ask these from the next question on."""
        if tuple(servers) != self._servers:
            self._servers = tuple(servers)
            self._conf_at = -1.0

    async def __call__(self, question: str) -> Found:
        """Look up; LookupFailedError if that came to nothing."""
        if question.startswith(SRV):
            return await self._service(question.removeprefix(SRV))
        return await self._host(question)

    async def _host(self, host: str) -> Found:
        listed = self._in_hosts_file().get(host.rstrip("."))
        if listed:
            return Found(tuple(listed), FILE_TTL_S)
        resolver = self._ready()
        if resolver is None:
            return await _ask_the_system(host)
        kinds = ["A", "AAAA"] if _has_ipv6() else ["A"]
        said = await asyncio.gather(
            *(self._ask(resolver, host, kind) for kind in kinds), return_exceptions=True
        )
        found: list[Any] = []
        failures: list[LookupFailedError] = []
        for each in said:
            if isinstance(each, LookupFailedError):
                failures.append(each)
            elif isinstance(each, BaseException):
                raise each
            else:
                found.append(each)
        # Many a server fails on AAAA; one that fails on A alone may hide half of the addresses.
        if not found or (
            isinstance(said[0], LookupFailedError) and not isinstance(said[0], NoSuchNameError)
        ):
            doubtful = [each for each in failures if not isinstance(each, NoSuchNameError)]
            raise (doubtful or failures)[0]
        # In one order always: servers turn theirs, and a turn alone would be a new edition.
        answers = tuple(ip for each in found for ip in sorted(record.address for record in each))
        return Found(answers, min(float(each.rrset.ttl) for each in found))

    async def _service(self, name: str) -> Found:
        resolver = self._ready()
        if resolver is None:
            raise LookupFailedError(0, "no DNS server is known to ask for a service")
        said = await self._ask(resolver, name, "SRV")
        best = min(record.priority for record in said)
        targets = [record for record in said if record.priority == best][:TARGETS_MAX]
        targets = [record for record in targets if record.target != dns.name.root]
        if not targets:
            raise NoSuchNameError(0, "the service is not offered there")
        hosts = await asyncio.gather(
            *(self._host(str(record.target).rstrip(".")) for record in targets),
            return_exceptions=True,
        )
        answers, ttl = [], float(said.rrset.ttl)
        for record, host in zip(targets, hosts, strict=True):
            if isinstance(host, Found):
                answers += [f"{in_brackets(ip)}:{record.port}" for ip in host.answers]
                ttl = min(ttl, host.ttl)
            elif not isinstance(host, LookupFailedError):
                raise host
        failures = [each for each in hosts if isinstance(each, LookupFailedError)]
        if not answers:
            raise failures[0]
        return Found(tuple(sorted(answers)), ttl)

    async def _ask(self, resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> Any:
        try:
            return await resolver.resolve(name, kind, search=not self._servers)
        except dns.resolver.NXDOMAIN:
            raise NoSuchNameError(0, "there is no such name (NXDOMAIN)") from None
        except dns.resolver.NoAnswer:
            raise NoSuchNameError(0, f"the name has no {kind} record") from None
        except dns.exception.Timeout:
            raise LookupFailedError(0, "no DNS server answered in time") from None
        except dns.resolver.NoNameservers as error:
            codes = ", ".join(sorted({str(each[3]) for each in error.kwargs.get("errors", ())}))
            raise LookupFailedError(0, f"no DNS server could say: {codes}") from None
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailedError(0, str(error) or type(error).__name__) from None

    def _ready(self) -> dns.asyncresolver.Resolver | None:
        """Return what asks; made anew when the system's servers have changed."""
        conf_at = 0.0 if self._servers else _changed_at(RESOLV_CONF)
        if conf_at == self._conf_at:
            return self._resolver
        self._conf_at = conf_at
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._servers)
        except dns.resolver.NoResolverConfiguration:
            self._resolver = None
            return None
        if self._servers:
            resolver.nameservers = [_server(each) for each in self._servers]
        resolver.timeout, resolver.lifetime = ASK_S, ASK_ALL_S
        self._resolver = resolver if resolver.nameservers else None
        return self._resolver

    def _in_hosts_file(self) -> dict[str, list[str]]:
        changed_at = _changed_at(self._hosts)
        if changed_at != self._hosts_read[0]:
            listed: dict[str, list[str]] = {}
            try:
                with open(self._hosts, encoding="utf-8", errors="replace") as lines:
                    for ip, names in _host_lines(lines):
                        for name in names:
                            listed.setdefault(name, []).append(ip)
            except OSError:
                listed = {}
            listed.setdefault("localhost", ["127.0.0.1"])
            self._hosts_read = (changed_at, listed)
        return self._hosts_read[1]


def in_brackets(ip: str) -> str:
    """Return an address as it stands before a port."""
    return f"[{ip}]" if ":" in ip else ip


def _host_lines(lines: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    for line in lines:
        ip, *names = line.partition("#")[0].split() or [""]
        try:
            yield str(ipaddress.ip_address(ip)), [name.lower() for name in names]
        except ValueError:
            continue  # An empty line, or one that the system passes over too.


def _server(text: str) -> dns.nameserver.Nameserver:
    host, mark, port = text.rpartition(":")
    if not mark or (text.count(":") > 1 and not text.startswith("[")):
        host, port = text, str(DNS_PORT)
    return dns.nameserver.Do53Nameserver(host.strip("[]"), int(port))


async def _ask_the_system(host: str) -> Found:
    loop = asyncio.get_running_loop()
    try:
        said = await loop.getaddrinfo(
            host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
    except socket.gaierror as error:
        kind = NoSuchNameError if error.errno == socket.EAI_NONAME else LookupFailedError
        raise kind(0, error.strerror or str(error)) from None
    except UnicodeError as error:  # A label that no DNS could hold.
        raise NoSuchNameError(0, str(error)) from None
    return Found(tuple(str(where[0]) for *_, where in said), FILE_TTL_S)


def _has_ipv6() -> bool:
    """Whether there is any way to an IPv6 address from here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.connect(FAR_AWAY)
    except OSError:
        return False
    return True


def _changed_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
