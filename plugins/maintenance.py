"""Answers 503 with a page of yours while work is being done, but not to everybody."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from lb.plugin import Duration, Network, Networks, Plugin, Reply, Request, UrlPath, reply

LOOK_S: Final = 1.0  # From look to look at the switch.
PAGE_BYTES_MAX: Final = 1 << 20


class Maintenance(Plugin["Maintenance.Config"]):
    """Closes a route, for as long as it is used or a switch file is there."""

    name = "maintenance"

    @dataclass
    class Config:
        """What stands beside `use`."""

        switch: str | None = field(
            default=None,
            metadata={"about": "A file, absolute: closed while it is there. Without: always."},
        )
        body: str = field(
            default="503 Service Unavailable: back soon\n", metadata={"about": "What is answered."}
        )
        page: str | None = field(
            default=None, metadata={"about": "A file, absolute, whose content is answered instead."}
        )
        content_type: str = field(
            default="text/plain; charset=utf-8", metadata={"about": "What body or page is."}
        )
        status: int = field(
            default=503, metadata={"about": "The status; 503 tells robots to wait."}
        )
        retry_after: Duration = field(
            default=60.0, metadata={"about": "When to come again, for Retry-After."}
        )
        allow: list[Network] = field(
            default_factory=list, metadata={"about": "Who gets through nevertheless."}
        )
        open: list[UrlPath] = field(
            default_factory=list, metadata={"about": "Paths that stay open, with all below them."}
        )

        def __post_init__(self) -> None:
            if not 400 <= self.status <= 599:
                raise ValueError("status is from 400 to 599")
            for name in (self.switch, self.page):
                if name is not None and not os.path.isabs(name):
                    raise ValueError(f"{name} is not absolute: nobody would know beside what")
            kind = self.content_type
            if not kind.strip() or not kind.isascii() or not kind.isprintable():
                raise ValueError("content_type is visible ASCII")

    def start(self) -> None:
        """Read the page, and look whether we are closed."""
        config = self.config
        body: str | bytes = config.body
        if config.page is not None:
            body = _content_of(config.page)
        fields = {
            "Content-Type": config.content_type,
            "Cache-Control": "no-store",
            "Retry-After": str(ceil(config.retry_after)),
        }
        self._reply = reply(config.status, fields, body)
        self._allowed = Networks(config.allow)
        self._open = [path.rstrip("/") for path in config.open]
        self._closed = config.switch is None
        if config.switch is not None:
            self._look()
            self.ctx.every(LOOK_S, self._look)

    def on_request(self, req: Request) -> Reply | None:
        """Turn away whoever is not to get through."""
        if not self._closed or (self._open and self._stays_open(req.path)):
            return None
        if req.client in self._allowed:
            return None
        return self._reply

    def _look(self) -> None:
        assert self.config.switch is not None, "see start"
        closed = os.path.exists(self.config.switch)
        if closed != self._closed:
            self._closed = closed
            self.ctx.log.warning("maintenance: %s", "closed" if closed else "open again")

    def _stays_open(self, path: str) -> bool:
        return any(path == each or path.startswith(each + "/") for each in self._open)


def _content_of(page: str) -> bytes:
    try:
        with open(page, "rb") as file:
            content = file.read(PAGE_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"page {page} cannot be read: {error.strerror}") from None
    if len(content) > PAGE_BYTES_MAX:
        raise ValueError(f"page {page} is larger than {PAGE_BYTES_MAX >> 20} MiB")
    return content
