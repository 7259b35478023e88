"""The client's end of an exchange, as the exchange sees it."""

from __future__ import annotations

from typing import Protocol

from lb.http1.framing import Octets


class Client(Protocol):
    """The client connection, as its exchange sees it."""

    clogged: bool

    @property
    def listener(self) -> str:
        """The listener's name."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether the connection may carry another request after this one."""
        ...

    def write(self, data: Octets) -> None:
        """Send octets of the response."""
        ...

    def write_all(self, pieces: list[Octets]) -> None:
        """Send several pieces at once."""
        ...

    def hold(self) -> None:
        """Stop reading the request's body."""
        ...

    def release(self) -> None:
        """Read the request's body on."""
        ...

    def finished(self, now: float, *, keep: bool) -> None:
        """Learn that the response is whole, and whether the connection may go on."""
        ...

    def cut(self, *, reset: bool) -> None:
        """Close at once; by a RST where an end would make the response look whole."""
        ...

    def switch(self) -> None:
        """Pass on octets from here, both ways."""
        ...

    def invited(self) -> None:
        """Learn that the backend has answered an expectation: the body is due now."""
        ...

    def met_limit(self, limit: str) -> None:
        """Count that the client met a limit, by its key."""
        ...

    def proxy_header(self, version: str, address: str) -> bytes:
        """Return the PROXY header that tells a backend of whom this is: of `address`."""
        ...
