"""
One question to one endpoint: is it there, and does it answer as it should?

HTTP by aiohttp, each time on a new connection, since a pooled one says nothing about whether
the next client gets in. Redirects are not followed: where one leads is not this endpoint. The
data path has its own reader of HTTP, on purpose: `control` never imports `proxy`, and a check
has other needs than a byte on its way.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from lb import __version__
from lb.config.schema import Health
from lb.model import HTTPS
from lb.plugin_code import FAILURES, PluginError, described, module_of, registered_in

BODY_BYTES_MAX = 64 * 1024  # Of an answer, searched for `body`.
REASON_MAX = 200
USER_AGENT = f"accord-lb/{__version__} health"
ASKED_AS = {
    "User-Agent": USER_AGENT,
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # Or `body` would be looked for in compressed bytes.
}


@dataclass(frozen=True, slots=True)
class Subject:
    """
    What is probed, and how. `host` is what Host says unless the check says otherwise.

    `tls` and `name`, for addresses that are https://: by which terms, and whom we expect.
    """

    upstream: str
    address: str
    host: str
    check: Health
    tls: ssl.SSLContext | None = None
    name: str = ""
    greeting: bytes = b""  # what a connection begins with, before TLS: a PROXY header
    code: Mapping[str, str] | None = None  # of a plugin's check

    @property
    def target(self) -> list[object]:
        """What a verdict is about: while this stays, the verdict holds, whatever else changes."""
        check = self.check
        digest = self.code["digest"] if self.code is not None else ""
        return [check.type, digest, check.path, check.port, check.host, check.expect, check.body,
                self.host, self.name]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found; `reason` is for a person."""

    ok: bool
    reason: str


class Asker:
    """Makes probes. Use it within a running loop, and `close` it there."""

    def __init__(self) -> None:
        self._session = _session(aiohttp.TCPConnector(force_close=True, limit=0))

    async def ask(self, subject: Subject) -> Answer:
        """Probe once; how long that may take is the caller's to say."""
        try:
            return await self._ask(subject)
        except aiohttp.ClientConnectorCertificateError as error:
            reason = f"the certificate is not accepted: {_certificate_words(error)}"
        except aiohttp.ClientConnectorSSLError as error:
            reason = f"no TLS: {_words(error.os_error)}"
        except aiohttp.ClientConnectorError as error:
            reason = _words(error.os_error)
        except aiohttp.ServerDisconnectedError:
            reason = "closed the connection without an answer"
        except (aiohttp.ClientResponseError, aiohttp.ClientPayloadError) as error:
            reason = f"not a valid answer: {error}"
        except ssl.SSLCertVerificationError as error:
            reason = f"the certificate is not accepted: {error.verify_message.rstrip('.')}"
        except OSError as error:
            reason = _words(error)
        except aiohttp.ClientError as error:
            reason = f"{type(error).__name__}: {error}"
        return Answer(False, " ".join(reason.split())[:REASON_MAX])

    async def _ask(self, subject: Subject) -> Answer:
        if subject.code is not None:
            return await _ask_plugin(subject, subject.code)
        if subject.check.type == "tcp":
            return await _connect(subject)
        return await self._get(subject)

    async def close(self) -> None:
        """Let go of what is open."""
        await self._session.close()

    async def _get(self, subject: Subject) -> Answer:
        check, address = subject.check, subject.address
        if subject.greeting:
            async with _session(_Greeting(subject)) as session:
                scheme = "http" if subject.tls is None else "https"
                return await _judge(session, URL(f"{scheme}://probed{check.path}", encoded=True),
                                    subject)  # fmt: skip
        if not address.startswith("unix:"):
            scheme = "http" if subject.tls is None else "https"
            url = URL(f"{scheme}://{_probed_address(subject)}{check.path}", encoded=True)
            return await _judge(self._session, url, subject)
        # A connector is for one path; a session that lasts would have to be kept per endpoint.
        connector = aiohttp.UnixConnector(address.removeprefix("unix:"), force_close=True)
        async with _session(connector) as session:
            url = URL(f"http://localhost{check.path}", encoded=True)
            return await _judge(session, url, subject)


async def _ask_plugin(subject: Subject, code: Mapping[str, str]) -> Answer:
    """Have a plugin's check made: what it raises is why the endpoint is not well."""
    name = subject.check.type_plugin
    try:
        check = registered_in(module_of(code), "health_check").get(name)
        if check is None:
            return Answer(False, f"plugin check {name} is not in {code['file']}")
        await check(_probed_address(subject), subject.check.timeout)
    except PluginError as error:
        return Answer(False, f"plugin check {name}: {error.message}"[:REASON_MAX])
    except FAILURES as error:  # Whatever it raises: that is how it says no.
        return Answer(False, described(error)[:REASON_MAX])
    return Answer(True, f"{name} is content")


def _session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
    )


async def _judge(session: aiohttp.ClientSession, url: URL, subject: Subject) -> Answer:
    check = subject.check
    port = ":80" if subject.tls is None else ":443"
    headers = {**ASKED_AS, "Host": check.host or subject.host.removesuffix(port)}
    async with session.get(
        url,
        headers=headers,
        allow_redirects=False,
        ssl=subject.tls or True,
        server_hostname=subject.name or None,
    ) as response:
        status = response.status
        if not any(first <= status <= last for first, last in check.expected):
            return Answer(False, f"status {status}, expected {check.expect}")
        if check.body is not None and not await _holds(response, check.body.encode()):
            return Answer(False, f"status {status}, but the body lacks {check.body!r}"[:REASON_MAX])
        response.close()  # Unread: the rest is of no interest.
        return Answer(True, f"status {status}")


async def _holds(response: aiohttp.ClientResponse, wanted: bytes) -> bool:
    """Look for `wanted` in the first bytes of a body, and read no further than needed."""
    body = b""
    while len(body) < BODY_BYTES_MAX:
        piece = await response.content.read(BODY_BYTES_MAX - len(body))
        if not piece:
            return False
        body += piece
        if wanted in body:
            return True
    return False


class _Greeting(aiohttp.BaseConnector):
    """Connects to one subject, and says the PROXY header first."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(force_close=True)
        self._subject = subject

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: object,
        timeout: object,  # noqa: ASYNC109  # As inherited.
    ) -> ResponseHandler:
        subject = self._subject
        sock = await _open(subject)
        try:
            _, protocol = await self._loop.create_connection(
                self._factory,
                sock=sock,
                ssl=subject.tls,
                server_hostname=subject.name if subject.tls is not None else None,
            )
        except OSError:
            sock.close()
            raise
        return protocol


async def _connect(subject: Subject) -> Answer:
    (await _open(subject)).close()
    return Answer(True, "connected")


async def _open(subject: Subject) -> socket.socket:
    """Connect, and say what comes before all else."""
    loop = asyncio.get_running_loop()
    where: str | tuple[str, int]
    if subject.address.startswith("unix:"):
        family, where = socket.AF_UNIX, subject.address.removeprefix("unix:")
    else:
        host, _, port = _probed_address(subject).rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        where = (host.strip("[]"), int(port))
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        await loop.sock_sendall(sock, subject.greeting)
        stack.pop_all()  # It is the caller's now.
    return sock


def _probed_address(subject: Subject) -> str:
    address = subject.address.removeprefix(HTTPS)
    if subject.check.port is None:
        return address
    return f"{address.rpartition(':')[0]}:{subject.check.port}"


def _certificate_words(error: aiohttp.ClientConnectorCertificateError) -> str:
    inner = error.certificate_error
    words = getattr(inner, "verify_message", "") or str(inner)
    return str(words).rstrip(".")


def _words(error: OSError) -> str:
    """What the system said, as short as it says it."""
    if error.errno is None:
        return str(error)
    if error.errno == errno.ENOENT:
        return "no such socket"
    return os.strerror(error.errno).lower()
