"""The listening sockets of an instance: bound once, held by the supervisor, dealt to workers.

A TCP address has one SO_REUSEPORT socket per worker slot, so that the kernel spreads the
clients and no worker waits for another. A unix socket is one queue that all share.
SO_REUSEPORT would also let a second daemon of the same user share the port without a word;
so an address is first tried with a probe socket that does not ask for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

from lb.errors import StartError

BACKLOG = 4096  # The kernel cuts it to net.core.somaxconn.
ADDRESSES_MAX = 1024  # Held at once; each costs one descriptor per worker slot.
PROBE_PATIENCE = 2.0  # A predecessor that is just ending frees its port within this.
PROBE_STEP = 0.1
LISTENER_MODE = 0o666  # Of unix sockets: who may ask a listener is for its folder to say.
OWN_MODE = 0o660

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Place:
    """An address of the configuration in the words of the kernel."""

    family: socket.AddressFamily
    sockaddr: tuple[str, int] | str
    dual: bool = False  # All addresses, of both families, on one socket.


def parse(address: str) -> Place:
    """Understand `ip:port`, `[ip6]:port`, `:port` and `unix:/path`."""
    if address.startswith("unix:"):
        return Place(socket.AF_UNIX, address.removeprefix("unix:"))
    host, colon, digits = address.rpartition(":")
    try:
        port = int(digits)
        if not host and not colon:
            raise ValueError("a port alone")
        if not host and socket.has_dualstack_ipv6():
            return Place(socket.AF_INET6, ("::", port), dual=True)
        ip = ip_address(host.strip("[]") or "0.0.0.0")
        return Place(_FAMILIES[ip.version], (str(ip), port))
    except ValueError:
        raise StartError(
            f"{address!r} is no address to listen on",
            'write "127.0.0.1:80", ":80", "[::1]:80" or "unix:/path"',
        ) from None


@dataclass(slots=True)
class Held:
    """The sockets of one address, in the order of the slots; a unix socket has only one."""

    sockets: list[socket.socket]
    file: tuple[str, int, int] | None = None  # Path, device and inode that we made.
    own: bool = False  # Not dealt to workers: the controller's.
    shared: bool = False  # One queue, of which every worker takes: unix, or given.
    given: bool = False  # By a service manager, who goes on holding it.

    def of(self, slot: int) -> socket.socket:
        """Return the socket that a slot's worker accepts on."""
        return self.sockets[slot if len(self.sockets) > 1 else 0]


@dataclass(slots=True)
class Sockets:
    """All addresses that this instance holds. Nothing here accepts: that is for the others."""

    slots: int = 1
    held: dict[str, Held] = field(default_factory=dict)
    given: list[socket.socket] = field(default_factory=list)  # By a service manager.
    theirs: bool = False  # Files are another program's to remove: of one that we follow, or leave.

    async def ensure(
        self, addresses: Iterable[str], *, own: bool = False, patience: float = PROBE_PATIENCE
    ) -> list[str]:
        """Hold sockets for all of `addresses` or, if one cannot be had, for no more than before.

        Returns those that are new. Raises StartError, whose text names the address.
        """
        new: list[str] = []
        try:
            for address in dict.fromkeys(addresses):
                if address in self.held:
                    if self.held[address].own != own:
                        raise StartError(f"{address} is both a listener's and our own address")
                    continue
                if len(self.held) >= ADDRESSES_MAX:
                    raise StartError(f"more than {ADDRESSES_MAX} addresses to listen on")
                self.held[address] = await self._bind(address, own, patience)
                new.append(address)
        except StartError:
            self.forget(new)
            raise
        return new

    def forget(self, addresses: Iterable[str]) -> None:
        """Close our copies. Clients who wait are refused only once the last copy is closed."""
        for address in addresses:
            held = self.held.pop(address, None)
            if held is None:
                continue
            for sock in held.sockets:
                sock.close()
            if held.file is not None and not self.theirs:
                _remove_file(*held.file)

    def adopt(self, address: str, held: Held) -> None:
        """
        Hold what the program before us held; a queue for each slot, where slots have their own.

        Queues past our slots stay with its workers, who take them to their ends.
        """
        if not held.own and not held.shared:
            while len(held.sockets) > self.slots:
                held.sockets.pop().close()
            try:
                more = self.slots - len(held.sockets)
                held.sockets += _bind_slots(parse(address), more)
            except OSError as error:
                for sock in held.sockets:
                    sock.close()
                raise _explained(address, error) from None
        self.held[address] = held

    def unused(self) -> list[str]:
        """Return where sockets listen that we were given and have no use for."""
        held = [each.sockets[0].getsockname() for each in self.held.values() if each.given]
        names = [sock.getsockname() for sock in self.given]
        return [str(name) for name in names if name not in held]

    def listeners(self) -> list[str]:
        """Return the addresses that are dealt to workers."""
        return [address for address, held in self.held.items() if not held.own]

    def close(self, keep: Collection[str] = ()) -> None:
        """Close all but `keep`, at the end of the instance."""
        self.forget([address for address in self.held if address not in keep])

    async def _bind(self, address: str, own: bool, patience: float) -> Held:
        place = parse(address)
        for sock in self.given:
            if _is_at(sock, place):
                return Held([sock.dup()], own=own, shared=True, given=True)
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            try:
                if place.family == socket.AF_UNIX:
                    return _bind_unix(str(place.sockaddr), own)
                _probe(place)
                return Held(_bind_slots(place, 1 if own else self.slots), own=own)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or asyncio.get_running_loop().time() >= deadline:
                    raise _explained(address, error) from None
            await asyncio.sleep(PROBE_STEP)


def _is_at(sock: socket.socket, place: Place) -> bool:
    """Whether a socket that we were given listens where a place is."""
    if sock.family != place.family:
        return False
    name = sock.getsockname()
    return bool((name if sock.family == socket.AF_UNIX else name[:2]) == place.sockaddr)


def _probe(place: Place) -> None:
    """Raise EADDRINUSE where somebody listens, even one who would share the port with us.

    SO_REUSEADDR here and on what we listen with: without it the connections that a
    predecessor left in TIME_WAIT would look like somebody listening.
    """
    with _bound(place, share=False):
        pass


def _bind_slots(place: Place, slots: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for _ in range(slots):
            made.append(_bound(place, share=True))
            made[-1].listen(BACKLOG)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made


def _bound(place: Place, *, share: bool) -> socket.socket:
    sock = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if place.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not place.dual))
        sock.setblocking(False)
        sock.bind(place.sockaddr)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: str, own: bool) -> Held:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~(OWN_MODE if own else LISTENER_MODE))
    try:
        sock.setblocking(False)
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    made = os.stat(path)
    return Held([sock], (path, made.st_dev, made.st_ino), own, shared=True)


def _remove_stale(path: str) -> None:
    """Remove the file of a socket that nobody listens on: its daemon was killed."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is no socket", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # Somebody listens, whose queue is full.
    raise OSError(errno.EADDRINUSE, "somebody listens on it", path)


def _remove_file(path: str, device: int, inode: int) -> None:
    """Remove the file that we made, unless a successor has put its own there."""
    try:
        now = os.stat(path)
        if (now.st_dev, now.st_ino) == (device, inode):
            os.unlink(path)
    except OSError:
        return  # The folder is gone or no longer ours; a stale file is in nobody's way.


def _explained(address: str, error: OSError) -> StartError:
    """Say which address, what is in the way and what to do about it."""
    unix = address.startswith("unix:")
    match error.errno:
        case errno.EADDRINUSE:
            why = "another program listens there"
            hint = f"find it with `ss -l{'x' if unix else 'tn'}p`, or choose another address"
        case errno.EACCES | errno.EPERM if not unix:
            why = "not permitted"
            hint = "ports below 1024 need CAP_NET_BIND_SERVICE; or choose a higher one"
        case errno.EADDRNOTAVAIL:
            why = "this machine does not have that address"
            hint = "look at `ip address`"
        case errno.EAFNOSUPPORT:
            why = "IPv6 is off on this machine"
            hint = "give an IPv4 address"
        case errno.ENOENT if unix:
            why = "its folder does not exist"
            hint = "make the folder first"
        case errno.EMFILE | errno.ENFILE:
            why = "no descriptor is left"
            hint = "raise `ulimit -n`"
        case _:
            why = error.strerror or str(error)
            hint = ""
    return StartError(f"cannot listen on {address}: {why}", hint)
