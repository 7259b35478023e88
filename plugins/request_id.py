"""Decides what a request is called, here, at the backend and at the client."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import UUID

from lb.plugin import HeaderName, Network, Networks, Plugin, Request, Response, reply

_SANE: Final = re.compile(r"[A-Za-z0-9._:+/=-]{8,128}")


class RequestId(Plugin["RequestId.Config"]):
    """Takes a client's own id, or makes one of a form."""

    name = "request_id"

    @dataclass
    class Config:
        """What stands beside `use`."""

        accept: bool = field(
            default=False, metadata={"about": "Take the X-Request-ID that the client sent."}
        )
        form: Literal["plain", "uuid", "hex"] = field(
            default="plain", metadata={"about": "What one of ours looks like; plain: as without."}
        )
        echo: HeaderName = field(
            default="x-request-id", metadata={"about": "The field in which responses say it."}
        )
        accept_from: list[Network] = field(
            default_factory=list, metadata={"about": "Only from these addresses; empty: from all."}
        )

        def __post_init__(self) -> None:
            if self.accept_from and not self.accept:
                raise ValueError("accept_from says from whom: give accept = true as well")
            try:
                reply(200, {self.echo: ""})
            except ValueError:
                raise ValueError(f"echo: {self.echo} is no field for this") from None

    def start(self) -> None:
        """Leave out what is not asked for."""
        config = self.config
        self._believed = Networks(config.accept_from or ["0.0.0.0/0", "::/0", "unix"])
        self._echo = config.echo
        if config.accept or config.form != "plain":
            self.on_request = self._name

    def _name(self, req: Request) -> None:
        claimed = req.claimed_id if self.config.accept else None
        if claimed is not None and _SANE.fullmatch(claimed) and req.client in self._believed:
            req.request_id = claimed
        elif self.config.form != "plain":
            made = UUID(int=self.ctx.rng.getrandbits(128), version=4)
            req.request_id = str(made) if self.config.form == "uuid" else made.hex

    def on_response(self, req: Request, res: Response) -> None:
        """Tell the client."""
        res.headers.set(self._echo, req.request_id)
