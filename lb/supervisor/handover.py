"""What an old and a new program say to each other while one follows the other.

The old supervisor starts the new one as a child with a channel, so both speak as supervisor
and child do (`lb.link`). Versions differ on the two ends: fields may be added, none may change
its meaning, and `PROTOCOL` is raised where that does not do.

    new -> old   hello     build, pid, protocol
    old -> new   begin     grace, drain, log, workers, disk_failed, build, stays; the edition
                 sockets   entries: [address, index, count, own, shared, file, given], one
                           descriptor each; those without address are a service manager's
                 metrics   slots, state (current | retired), one descriptor each
                 go        that was all: start workers beside ours
                 edition, settings, sockets, forget    what changed since
    new -> old   serving   all workers serve, and a controller waits
    old -> new   control   reload: our controller has ended and let go of the data_dir
    new -> old   up        the new controller is ready
    old -> new   yours     the instance is yours; our workers drain
                 drained   they have ended
                 reload, reopen, stop, quit    signals that came to us all the same
    new -> old   failed    reason
    old -> new   abort     end, what you began to serve finished
    new -> old   released  the new controller has let go of the data_dir
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

from lb import link
from lb.link import Message
from lb.sockets import Held, Sockets

PROTOCOL = 1


def pieces(
    sockets: Sockets, addresses: Iterable[str], *, with_given: bool = False
) -> Iterator[tuple[list[Any], list[int]]]:
    """Yield what `sockets` messages say of these addresses, as many at a time as one takes."""
    rows: list[tuple[list[Any], int]] = []
    for address in addresses:
        held = sockets.held[address]
        for index, sock in enumerate(held.sockets):
            count, given = len(held.sockets), held.given
            entry = [address, index, count, held.own, held.shared, held.file, given]
            rows.append((entry, sock.fileno()))
    if with_given:
        rows += [(["", 0, 1, False, True, None, True], sock.fileno()) for sock in sockets.given]
    for start in range(0, len(rows), link.MESSAGE_FDS_MAX):
        some = rows[start : start + link.MESSAGE_FDS_MAX]
        yield [entry for entry, _ in some], [fd for _, fd in some]


class Incoming:
    """Sockets on their way in: an address is adopted once all of its queues have come."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._partly: dict[str, list[socket.socket]] = {}

    def take(self, message: Message, fds: list[int]) -> list[str]:
        """Take one message; return the addresses that are held now. StartError: one is not."""
        whole = []
        for entry, fd in zip(message["entries"], fds, strict=True):
            address, _, count, own, shared, file, given = entry
            if not address:
                self._sockets.given.append(socket.socket(fileno=fd))
                continue
            got = self._partly.setdefault(address, [])
            got.append(socket.socket(fileno=fd))
            if len(got) < count:
                continue
            del self._partly[address]
            made = tuple(file) if file is not None else None
            self._sockets.adopt(address, Held(got, made, own, shared, given))
            if not own:
                whole.append(address)
        return whole
