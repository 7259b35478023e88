"""
What comes before a client's first octet, on listeners that want to know whom they have.

Here a PROXY header is read, and clients of one address are counted. It stands at the socket
only so long: then the connection's own protocol takes its place, TLS or not, and gets the
octets that came behind the header. So whoever follows never learns of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from lb.http1.peers import UNIX, Trust
from lb.http1.proxy_protocol import Ends, ProxyHeaderError, read_proxy_header
from lb.http1.replies import Reply
from lb.proxy.client_connection import ClientConnection, address_of
from lb.proxy.deadlines import NEVER
from lb.proxy.door import kin_of
from lb.proxy.tls import TlsTransport

NOBODY: Final = Trust(())


class Arrival:
    """One connection until we know whom it is from."""

    __slots__ = ("_address", "_buffer", "_client", "_follow", "_share", "_transport", "_trust",
                 "deadline")  # fmt: skip

    def __init__(
        self,
        client: ClientConnection,
        trust: Trust | None,
        share: int,
        follow: Callable[[ClientConnection], ClientConnection | TlsTransport],
    ) -> None:
        """`share`: how many from one address this worker takes, 0 for any number."""
        self._client = client
        self._trust = trust or NOBODY
        self._share = share
        self._follow = follow
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until made
        self._address = ""  # of who connected
        self._buffer = b""
        self.deadline = NEVER

    # Called by the loop.

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        client = self._client
        client.approach(transport)
        address = self._address = address_of(transport)
        if not client.plan.proxy_protocol:
            # A proxy's connections are many clients', and it says of each request whose.
            self._pass(None, UNIX if self._trust.trusts(address) else address)
        elif not self._trust.trusts(address):
            self._refuse("proxy_untrusted", "it is not in trusted_proxies")
        else:
            self.deadline = monotonic() + client.plan.timeouts.header
            client.watch(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            header = read_proxy_header(self._buffer)
        except ProxyHeaderError as error:
            self._refuse("proxy_header", str(error))
            return
        if header is not None:
            self._buffer = self._buffer[header.size :]
            ends = header.ends
            self._pass(ends, self._address if ends is None else ends.source[0])

    def eof_received(self) -> bool:
        return False  # The transport closes itself, connection_lost follows.

    def connection_lost(self, error: Exception | None) -> None:
        if self.deadline is not NEVER:
            self._refuse("proxy_truncated", "it ended before its PROXY header")
        self._client.connection_lost(error)

    def pause_writing(self) -> None:
        """Nothing is written from here."""

    def resume_writing(self) -> None:
        """Nothing is written from here."""

    def on_deadline(self, now: float) -> None:
        """Give up on the header."""
        key = f"listener.{self._client.plan.name}.timeouts.header"
        self._refuse("proxy_timeout", f"{key} passed without a PROXY header")

    # Within.

    def _refuse(self, reason: str, detail: str) -> None:
        self._settle()
        self._client.door.refuse(reason, self._address, detail, monotonic())
        self._transport.abort()

    def _pass(self, ends: Ends | None, address: str) -> None:
        """Let who follows take over the socket."""
        self._settle()
        client, transport = self._client, self._transport
        client.ends = ends
        if self._share and client.refused is None and address != UNIX:
            self._count(address)
        follower = self._follow(client)
        transport.set_protocol(follower)  # type: ignore[arg-type]  # A protocol but by name.
        follower.connection_made(transport)
        if self._buffer and not transport.is_closing():
            follower.data_received(self._buffer)

    def _count(self, address: str) -> None:
        client = self._client
        kin = kin_of(address)
        if client.door.enter(kin, self._share):
            client.kin = kin
            return
        client.door.open -= 1
        client.door.turn_away("per_client")
        setting = f"listener.{client.plan.name}.limits.per_client"
        detail = f"{setting} ({client.plan.limits.per_client}) are open from your address"
        client.refused = Reply(429, "client_limited", detail)

    def _settle(self) -> None:
        """Stop waiting."""
        self.deadline = NEVER
        self._client.unwatch(self)
