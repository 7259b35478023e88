"""Decides what a request is called, here, at the backend and at the client."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final, Literal
from uuid import UUID

from lb.plugin import HeaderName, Network, Plugin, Request, Response

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

    def start(self) -> None:
        """Leave out what is not asked for."""
        config = self.config
        self._networks = [ip_network(each) for each in config.accept_from]
        self._echo = config.echo
        if config.accept or config.form != "plain":
            self.on_request = self._name

    def _name(self, req: Request) -> None:
        claimed = req.claimed_id if self.config.accept else None
        if claimed is not None and _SANE.fullmatch(claimed) and self._believed(req.client):
            req.request_id = claimed
        elif self.config.form != "plain":
            made = UUID(int=self.ctx.rng.getrandbits(128), version=4)
            req.request_id = str(made) if self.config.form == "uuid" else made.hex

    def on_response(self, req: Request, res: Response) -> None:
        """Tell the client."""
        res.headers.set(self._echo, req.request_id)

    def _believed(self, client: str) -> bool:
        if not self._networks:
            return True
        try:
            address = ip_address(client)
        except ValueError:
            return False  # On a socket file: no network has it.
        return any(address in network for network in self._networks)
