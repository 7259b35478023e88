"""
Where members who dial us come in: how many may at a time, how fast, and for how long unknown.

Whoever can reach the port gets this far, so all that an unknown one may cost has a bound here.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Final

from lb.control.peer_connection import PeerConnection, State
from lb.control.peer_handshake import Mode
from lb.control.peer_security import Security
from lb.errors import OperatorError

GREETING_SECONDS: Final = 5.0  # For TLS and the handshake together.
UNKNOWN_MAX: Final = 32  # Connections that have not proved anything yet,
UNKNOWN_OF_ONE_MAX: Final = 16  # and those of them from one address.
ACCEPTS_MAX: Final = 16  # In one turn of the loop.
RATE: Final = 50.0  # New connections a second from one address,
BURST_MAX: Final = 100  # after so many at once.
SOURCES_MAX: Final = 1024  # Addresses that are counted.
NO_DESCRIPTOR_PAUSE: Final = 1.0

_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Entrance:
    """
    Accepts, and sees each connection through its handshake or to its end.

    `make` makes our end of a connection from an address; `say` logs a cause once for an address.
    """

    def __init__(
        self,
        security: Security,
        make: Callable[[str], PeerConnection],
        say: Callable[[str, str, str], None],
    ) -> None:
        self._security = security
        self._make = make
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._unknown: dict[asyncio.Task[None], str] = {}  # Each with the address it is from.
        self._rates: dict[str, tuple[float, float]] = {}  # What is left, and as of when.

    def open(self, sock: socket.socket) -> None:
        """Accept on a listening socket, which is ours from now on."""
        if self._security.mode is Mode.NONE and not is_loopback(sock.getsockname()[0]):
            sock.close()
            raise OperatorError(
                "the group listens beyond this machine with neither TLS nor a secret",
                "set `group.tls` or `group.secret`, or listen on 127.0.0.1",
            )
        sock.setblocking(False)
        self._sockets.append(sock)
        self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def close(self) -> None:
        """Accept no more, and let go of those who have not said who they are."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        unknown = list(self._unknown)
        for task in unknown:
            task.cancel()
        await asyncio.gather(*unknown, return_exceptions=True)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                arrived, place = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _FULL:
                    continue  # That one is gone already.
                self._say("accept", "", f"cannot accept members: {error.strerror}")
                self._loop.remove_reader(sock.fileno())
                self._loop.call_later(NO_DESCRIPTOR_PAUSE, self._accept_again, sock)
                return
            host = place[0]
            if why := self._turned_away(host):
                arrived.close()
                self._say(why, host, f"connections from {host} are turned away: {why}")
                continue
            arrived.setblocking(False)
            task = self._loop.create_task(self._greet(arrived, host))
            self._unknown[task] = host
            task.add_done_callback(self._unknown.pop)

    def _accept_again(self, sock: socket.socket) -> None:
        if sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _turned_away(self, host: str) -> str:
        """Say why nobody listens to a new connection, or nothing."""
        if self._security.mode is Mode.NONE and not is_loopback(host):
            return "they are from beyond this machine"
        if len(self._unknown) >= UNKNOWN_MAX:
            return f"{UNKNOWN_MAX} others have not said who they are yet"
        if list(self._unknown.values()).count(host) >= UNKNOWN_OF_ONE_MAX:
            return f"{UNKNOWN_OF_ONE_MAX} of them have not said who they are yet"
        now = self._loop.time()
        left, since = self._rates.pop(host, (float(BURST_MAX), now))
        left = min(float(BURST_MAX), left + (now - since) * RATE)
        self._rates[host] = (max(0.0, left - 1.0), now)  # At the end: the oldest goes first.
        if len(self._rates) > SOURCES_MAX:
            del self._rates[next(iter(self._rates))]
        return "" if left >= 1.0 else f"there are more than {RATE:g} a second"

    async def _greet(self, sock: socket.socket, host: str) -> None:
        connection, connected = self._make(host), False
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await self._loop.connect_accepted_socket(
                    lambda: connection, sock, ssl=self._security.server
                )
                connected = True
                await asyncio.shield(connection.opening)
        except TimeoutError:
            self._say("slow", host, f"{host} did not say who it is within {GREETING_SECONDS:g} s")
        except OSError as error:  # TLS that fails is one too.
            why = str(error) or "it broke off"
            self._say("tls", host, f"no TLS with {host}: {why}")
        finally:
            if not connected:
                connection.give_up()
                sock.close()
            elif connection.state is State.GREETING:
                connection.abort()


def is_loopback(host: str) -> bool:
    """Whether an IP address is this machine's alone."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
