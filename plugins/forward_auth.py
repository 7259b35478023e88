"""
Asks somebody else of each request whether it may pass.

The one who is asked gets what the request says of itself, and never its body. A 2xx lets it pass,
with headers of the answer for the backend; any other answer is the client's: a 401, or the way to
a login page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from lb.plugin import Duration, HeaderName, Headers, Plugin, Reply, Request, reply
from lb.plugin_outside import AUTOMATIC, Web, as_utf8, check_url

if TYPE_CHECKING:
    from aiohttp import ClientResponse

BODY_BYTES_MAX: Final = 64 * 1024  # Of an answer that is passed on.
TIMEOUT_MAX_S: Final = 25.0  # A hook may take 30.
AT_ONCE_MAX: Final = 10_000
RETRY_AFTER_S: Final = 1
SAID_EVERY_S: Final = 10.0  # That there was no answer.
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
            check_url(self.url, "http://127.0.0.1:9091/verify")
            if not 0 < self.timeout <= TIMEOUT_MAX_S:
                raise ValueError(f"timeout is more than 0, and at most {TIMEOUT_MAX_S:g}s")
            if not 1 <= self.at_once <= AT_ONCE_MAX:
                raise ValueError(f"at_once is from 1 to {AT_ONCE_MAX:,}")
            for name in (*self.headers, *self.backend_headers):
                Headers(b"", b"").set(name, "")

    def start(self) -> None:
        """Count from nothing; connections come with the first question."""
        self._web = Web(self.config.at_once, self.config.timeout)
        self._running = 0
        self._said = -SAID_EVERY_S
        self._denied = self.ctx.count("denied")
        self._failed = self.ctx.count("failed")
        self._unavailable = reply(503, {"Retry-After": str(RETRY_AFTER_S)})

    def stop(self) -> None:
        """Close what is open."""
        self._web.close()

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
        session = await self._web.session()
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
        except self._web.errors as error:
            return self._without_answer(req, str(error) or type(error).__name__)

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
        return [(name, as_utf8(value)) for name, value in shown]

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
