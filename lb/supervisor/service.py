"""What a service manager is told and what it gives: systemd's notify protocol and sockets.

Without one (no `NOTIFY_SOCKET`) nothing is said. Nothing here ever waits: what a manager has no
room for is said again a little later, and not for ever.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import time
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

FIRST_GIVEN = 3  # The descriptors of sockets that we are given begin here, by convention.
GIVEN_MAX = 1024
SAY_AGAIN = 0.1  # Seconds until a manager may have room again,
TRIES_MAX = 50  # and how often it is given the chance.
STATUS_MAX = 200  # Characters of a line that `systemctl status` shows.


class ServiceManager:
    """The one way to whoever started us as a service, if anybody did."""

    def __init__(self, environ: MutableMapping[str, str], loop: asyncio.AbstractEventLoop) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._loop = loop
        self._sock: socket.socket | None = None
        if self._address.startswith(("/", "@")):
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
        watchdog = environ.get("WATCHDOG_USEC", "")
        if self._sock is not None and watchdog.isdigit() and int(watchdog) > 0:
            # Whose watchdog it is does not matter: after an upgrade it is that of our manager.
            self._still_alive(int(watchdog) / 2e6)

    def ready(self, status: str) -> None:
        """Say that we serve, or serve by a new config."""
        self._say("READY=1", _status(status))

    def reloading(self) -> None:
        """Say that `ready` will come again."""
        # In microseconds of the clock that the manager looks at as well.
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that our end is meant."""
        self._say("STOPPING=1", _status("stopping: finishing what runs"))

    def main_process(self, pid: int) -> None:
        """Say who the service is from now on, while we may still say so."""
        self._say(f"MAINPID={pid}")

    def status(self, text: str) -> None:
        """Say in words how things are."""
        self._say(_status(text))

    def _say(self, *lines: str, tries: int = TRIES_MAX) -> None:
        if self._sock is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            self._sock.sendto("\n".join(lines).encode(), address)
        except BlockingIOError:
            if tries > 1:
                self._loop.call_later(
                    SAY_AGAIN, functools.partial(self._say, *lines, tries=tries - 1)
                )
        except OSError as error:
            log.debug("the service manager was not told %s: %s", lines[0], error)

    def _still_alive(self, seconds: float) -> None:
        self._say("WATCHDOG=1", tries=1)
        self._loop.call_later(seconds, self._still_alive, seconds)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:STATUS_MAX]}"


def given_sockets(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """
    Return the listening sockets that our manager bound for us, each with its name.

    Said once: the words about them are taken out, or our children would take them for theirs.
    """
    words = [environ.pop(f"LISTEN_{word}", "") for word in ("PID", "FDS", "FDNAMES")]
    pid, count, names = words
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    named = names.split(":")
    given = []
    for index in range(min(int(count), GIVEN_MAX)):
        sock = socket.socket(fileno=FIRST_GIVEN + index)
        sock.set_inheritable(False)
        sock.setblocking(False)
        name = named[index] if index < len(named) else "unknown"
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            given.append((name, sock))
        else:
            log.warning("the socket %s from the service manager does not listen: not used", name)
            sock.close()
    return given
