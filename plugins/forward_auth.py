"""
Asks somebody else of each request whether it may pass.

The one who is asked gets what the request says of itself, and never its body. A 2xx lets it pass,
with headers of the answer for the backend; any other answer is the client's: a 401, or the way to
a login page.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from lb.plugin import Duration, HeaderName, Headers, Plugin, Reply, Request, reply

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

BODY_BYTES_MAX: Final = 64 * 1024  # Of an answer that is passed on.
TIMEOUT_MAX_S: Final = 25.0  # A hook may take 30.
AT_ONCE_MAX: Final = 10_000
RETRY_AFTER_S: Final = 1
SAID_EVERY_S: Final = 10.0  # That there was no answer.
KEEPALIVE_S: Final = 15.0
AUTOMATIC: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
NOT_PASSED_ON: Final = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "expect",
        "host",
        "keep-alive",
        "max-forwards",
        "proxy-connection",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    }
)
"""What an answer says of its own connection, or what we say ourselves."""


class ForwardAuth(Plugin["ForwardAuth.Config"]):
    """Keeps connections to the one who is asked."""

    name = "forward_auth"

    @dataclass
    class Config:
        """What stands beside `use`."""

        url: str = field(metadata={"about": "Who is asked, like http://127.0.0.1:9091/verify."})
        method: Literal["GET", "HEAD", "POST", "same"] = field(
            default="GET", metadata={"about": 'With which method; "same": with the request\'s.'}
        )
        headers: list[HeaderName] = field(
            default_factory=lambda: [
                "accept",
                "authorization",
                "cookie",
                "user-agent",
                "x-requested-with",
            ],
            metadata={"about": "Which of the request's headers are shown."},
        )
        backend_headers: list[HeaderName] = field(
            default_factory=list,
            metadata={"about": "Which headers of a 2xx the backend gets; a client's own go."},
        )
        timeout: Duration = field(default=2.0, metadata={"about": "How long an answer may take."})
        on_failure: Literal["closed", "open"] = field(
            default="closed",
            metadata={"about": 'Without an answer: "closed" is a 503, "open" lets pass.'},
        )
        at_once: int = field(
            default=200, metadata={"about": "How many questions are under way, a worker."}
        )

        def __post_init__(self) -> None:
            _check_url(self.url)
            if not 0 < self.timeout <= TIMEOUT_MAX_S:
                raise ValueError(f"timeout is more than 0, and at most {TIMEOUT_MAX_S:g}s")
            if not 1 <= self.at_once <= AT_ONCE_MAX:
                raise ValueError(f"at_once is from 1 to {AT_ONCE_MAX:,}")
            for name in (*self.headers, *self.backend_headers):
                Headers(b"", b"").set(name, "")
            if importlib.util.find_spec("aiohttp") is None:
                raise ValueError("aiohttp is not there: pip install 'accord-lb[plugins]'")

    def start(self) -> None:
        """Count from nothing; connections come with the first question."""
        self._aiohttp: Any = None
        self._session: ClientSession | None = None
        self._running = 0
        self._said = -SAID_EVERY_S
        self._denied = self.ctx.count("denied")
        self._failed = self.ctx.count("failed")
        self._unavailable = reply(503, {"Retry-After": str(RETRY_AFTER_S)})

    def stop(self) -> None:
        """Close what is open."""
        if self._session is not None:
            _close(self._session)

    async def on_request(self, req: Request) -> Reply | None:
        """Ask."""
        if self._running >= self.config.at_once:
            return self._without_answer(req, f"{self._running} questions are under way")
        self._running += 1
        try:
            return await self._ask(req)
        finally:
            self._running -= 1

    async def _ask(self, req: Request) -> Reply | None:
        config = self.config
        session = self._session or await self._connect()
        try:
            async with session.request(
                req.method if config.method == "same" else config.method,
                config.url,
                headers=self._shown(req),
                skip_auto_headers=AUTOMATIC,
                allow_redirects=False,
            ) as answer:
                if 200 <= answer.status < 300:
                    self._let_in(req, answer)
                    return None
                self._denied()
                return await _passed_on(answer)
        except TimeoutError:
            return self._without_answer(req, f"no answer within {config.timeout:g} s")
        except (self._aiohttp.ClientError, OSError, ValueError) as error:
            return self._without_answer(req, str(error) or type(error).__name__)

    async def _connect(self) -> ClientSession:
        # Importing it takes a quarter of a second, in which others want to be served.
        aiohttp = self._aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
        if self._session is None:
            limit = self.config.at_once
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=KEEPALIVE_S),
                # One client's cookies are nothing to the next.
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self.config.timeout),
                auto_decompress=False,
            )
        assert self._session is not None
        return self._session

    def _shown(self, req: Request) -> list[tuple[str, str]]:
        """What is said of a request."""
        shown = [
            ("X-Forwarded-Method", req.method),
            ("X-Forwarded-Proto", req.scheme),
            ("X-Forwarded-Host", req.host),
            ("X-Forwarded-Uri", req.target),
            ("X-Forwarded-For", req.client),
            ("X-Request-ID", req.request_id),
        ]
        for name in self.config.headers:
            shown += [(name, value) for value in req.headers.all(name)]
        return [(name, value if value.isascii() else _text(value)) for name, value in shown]

    def _let_in(self, req: Request, answer: ClientResponse | None) -> None:
        """Give the backend what was said; what the client wrote into these headers goes."""
        for name in self.config.backend_headers:
            req.headers.remove(name)
            octets = name.encode()
            for key, value in answer.raw_headers if answer is not None else ():
                if key.lower() == octets:
                    req.headers.append(name, value.decode("latin-1"))

    def _without_answer(self, req: Request, why: str) -> Reply | None:
        self._failed()
        opened = self.config.on_failure == "open"
        now = self.ctx.now()
        if now - self._said >= SAID_EVERY_S:
            self._said = now
            self.ctx.log.warning(
                "forward_auth got no answer from %s, request %s %s: %s",
                *(self.config.url, req.request_id, "passes" if opened else "is answered 503", why),
            )
        if not opened:
            return self._unavailable
        self._let_in(req, None)
        return None


def _close(session: ClientSession) -> None:
    """Close its connections now: where a worker ends, no loop is left to wait in."""
    closing = session.close()
    with contextlib.suppress(StopIteration):
        closing.send(None)  # All is closed by its first step; the others see it off.
        closing.close()


async def _passed_on(answer: ClientResponse) -> Reply:
    """Return an answer as the client gets it. ValueError if it cannot be passed on."""
    body = b""
    while piece := await answer.content.readany():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise ValueError(f"its answer has more than {BODY_BYTES_MAX} bytes")
    fields = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in answer.raw_headers
        if name.decode("latin-1").lower() not in NOT_PASSED_ON
    ]
    return reply(answer.status, fields, body)


def _text(value: str) -> str:
    """Return octets as they are written in UTF-8; what is none of that, nobody takes for a name."""
    return value.encode("latin-1").decode("utf-8", "replace")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        odd = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        odd = odd or bool(parts.username or parts.fragment)
    except ValueError:
        odd = True
    if odd:
        raise ValueError(f"{url} is no URL like http://127.0.0.1:9091/verify")
