"""
Sends a copy of requests to another place as well, and drops what that one answers.

The original never waits for its copy and never fails because of it: a copy that is too large, or
one too many, is not made, and that is counted.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, Literal

from lb.plugin import Duration, End, HeaderName, Headers, Plugin, Request, Share, Size
from lb.plugin_outside import AUTOMATIC, Web, as_utf8, check_url

AT_ONCE_MAX: Final = 500
HELD_BYTES_MAX: Final = 256 * 1024 * 1024  # Bodies of all copies together, a worker.
ANSWER_BYTES_MAX: Final = 256 * 1024  # Read of an answer; what has more loses its connection.
SAID_EVERY_S: Final = 10.0  # That a copy failed.


class Stage(Enum):
    """How far a copy has come."""

    COLLECTING = auto()
    SENT = auto()
    DROPPED = auto()


@dataclass(slots=True)
class Copy:
    """A request as it is sent a second time."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    stage: Stage = Stage.COLLECTING


class Mirror(Plugin["Mirror.Config"]):
    """Makes copies, few at once."""

    name = "mirror"

    @dataclass
    class Config:
        """What stands beside `use`."""

        url: str = field(
            metadata={"about": "Where copies go: http://HOST:PORT, and what paths begin with."}
        )
        share: Share = field(default=1.0, metadata={"about": "Of how many requests."})
        body_max: Size = field(
            default=64 * 1024, metadata={"about": "Requests with a larger body are not copied."}
        )
        at_once: int = field(
            default=100, metadata={"about": "How many copies are under way, a worker."}
        )
        timeout: Duration = field(
            default=5.0, metadata={"about": "After how long a copy is given up."}
        )
        host: Literal["keep", "url"] = field(
            default="keep",
            metadata={"about": "Which Host a copy has: the request's, or the URL's."},
        )
        strip: list[HeaderName] = field(
            default_factory=list,
            metadata={"about": 'Headers that a copy has not, like "authorization" and "cookie".'},
        )
        mark: HeaderName = field(
            default="x-mirrored", metadata={"about": 'The header that says "1" in a copy.'}
        )

        def __post_init__(self) -> None:
            check_url(self.url, "http://127.0.0.1:9009", "http://shadow/base", query=False)
            if not 1 <= self.at_once <= AT_ONCE_MAX:
                raise ValueError(f"at_once is from 1 to {AT_ONCE_MAX}")
            if self.at_once * self.body_max > HELD_BYTES_MAX:
                raise ValueError(f"at_once times body_max is at most {HELD_BYTES_MAX >> 20}MiB")
            if not 0 < self.timeout <= 60:
                raise ValueError("timeout is more than 0, and at most 60s")
            for name in (self.mark, *self.strip):
                Headers(b"", b"").set(name, "")

    def start(self) -> None:
        """Count from nothing; connections come with the first copy."""
        config = self.config
        self._web = Web(config.at_once, config.timeout)
        self._running = 0
        self._said = -SAID_EVERY_S
        self._base = config.url.rstrip("/")
        self._left_out = {*config.strip, config.mark}
        self._state = f"mirror/{self.ctx.place}"
        self._sent, self._failed = self.ctx.count("sent"), self.ctx.count("failed")
        self._dropped = self.ctx.count("dropped")
        self._too_large = self.ctx.count("too_large")

    def stop(self) -> None:
        """Close what is open."""
        self._web.close()

    def on_request(self, req: Request) -> None:
        """Make a copy, of its head at least."""
        config = self.config
        if config.share < 1.0 and self.ctx.rng.random() >= config.share:
            return
        if req.wants_upgrade or config.mark in req.headers or not req.target.startswith("/"):
            return
        if (req.content_length or 0) > config.body_max:
            self._too_large()
            return
        if self._running >= config.at_once:
            self._dropped()
            return
        self._running += 1
        copy = Copy(req.method, self._base + req.target, self._headers_of(req))
        if req.has_body:
            req.state[self._state] = copy
            req.watch_body(Collector(self, copy))
        else:
            self.launch(copy)

    def on_finish(self, req: Request, end: End) -> None:
        """Let go of a copy whose body never came whole."""
        copy = req.state.get(self._state)
        if copy is not None:
            self.drop(copy)

    def launch(self, copy: Copy) -> None:
        """Send a copy that is whole."""
        if copy.stage is Stage.COLLECTING:
            copy.stage = Stage.SENT
            self.ctx.spawn(self._send(copy))

    def drop(self, copy: Copy, *, too_large: bool = False) -> None:
        """Do without a copy, if it is not on its way."""
        if copy.stage is Stage.COLLECTING:
            copy.stage = Stage.DROPPED
            copy.body.clear()
            self._running -= 1
            (self._too_large if too_large else self._dropped)()

    def _headers_of(self, req: Request) -> list[tuple[str, str]]:
        headers = [
            (name, as_utf8(value))
            for name, value in req.headers
            if name.lower() not in self._left_out
        ]
        if self.config.host == "keep" and req.host:
            headers.append(("Host", req.host))
        headers += [
            ("X-Forwarded-For", req.client),
            ("X-Forwarded-Host", req.host),
            ("X-Forwarded-Proto", req.scheme),
            ("X-Request-ID", req.request_id),
            (self.config.mark, "1"),
        ]
        return headers

    async def _send(self, copy: Copy) -> None:
        try:
            session = await self._web.session()
            yarl: Any = importlib.import_module("yarl")  # It comes with aiohttp.
            async with session.request(
                copy.method,
                yarl.URL(copy.url, encoded=True),  # The path as it is, not as it could be.
                headers=copy.headers,
                data=bytes(copy.body) if copy.body else None,
                skip_auto_headers=AUTOMATIC,
                allow_redirects=False,
            ) as answer:
                left = ANSWER_BYTES_MAX
                while left > 0 and (piece := await answer.content.readany()):
                    left -= len(piece)
            self._sent()
        except self._web.errors as error:
            self._failed()
            self._say(error)
        finally:
            self._running -= 1

    def _say(self, error: Exception) -> None:
        now = self.ctx.now()
        if now - self._said >= SAID_EVERY_S:
            self._said = now
            why = str(error) or type(error).__name__
            self.ctx.log.warning("mirror could not send a copy to %s: %s", self.config.url, why)


class Collector:
    """Keeps a body as it passes, up to what is allowed."""

    def __init__(self, mirror: Mirror, copy: Copy) -> None:
        self._mirror = mirror
        self._copy = copy
        self._bytes_max = mirror.config.body_max

    def chunk(self, data: bytes) -> None:
        """Keep a piece."""
        copy = self._copy
        if copy.stage is not Stage.COLLECTING:
            return
        if len(copy.body) + len(data) > self._bytes_max:
            self._mirror.drop(copy, too_large=True)
        else:
            copy.body += data

    def end(self) -> None:
        """Send it."""
        self._mirror.launch(self._copy)
