"""What the processes of one instance say to each other, and how it travels.

Supervisor and child share a `Channel`: a raw SEQPACKET pair, JSON and descriptors. Raw,
because uvloop's transports silently drop SCM_RIGHTS. Controller and worker share a `Stream`:
a unix stream pair that the supervisor made, in frames, over which editions come in parts.

A child says `hello` first and obeys nothing but its channel and that channel's end.

    supervisor -> child       unready   fail readiness, serve on; answered by a beat
                              reopen    log files, now
                              stop      end now
                              link      one end of a Stream (to the controller: slot)
    supervisor -> worker      welcome   slot, workers, drain, log, stopping; counters, edition
                              sockets   open: [[address, slot], ..], one descriptor each
                              return    slot: these queues have their own worker again
                              forget    addresses: accept to empty, then close; given: of these
                                        somebody else holds the socket too; slots (null: all)
                              settings  drain, log
                              edition   to serve by while no controller is up; one descriptor
                              drain     seconds: accept no more, finish what runs, end
    supervisor -> controller  welcome   first, stopping, held {address: own}, ended, upgrade,
                                        taking, slots, pid; edition
                              rest      let go of all, then say hello again and wait
                              yours     an upgrade is done: the instance is ours
                              metrics   slots, one descriptor each
                              workers   who works in which slot, whenever that changes
                              bound     id, error, hint; a descriptor for each of `own`
                              reload    SIGHUP came
                              upgraded  id (0: nobody asked), error, at, pid: of the new supervisor
    child -> supervisor       hello     role, build, pid
                              beat      each second: asked (for readiness, since the last), lag
    worker -> supervisor      serving   an edition is in and its listeners are open
    controller -> supervisor  settings  workers, grace, drain, log
                              bind      id, addresses, own: hold a socket for each
                              forget    addresses
                              edition   number; one descriptor, sealed
                              restart   slot: this worker is silent, replace it
                              stop      drain (null: as configured)
                              reloading, reloaded  error: a reload begins, is over
                              upgrade   id: run what is installed now
                              up        the start is over
    worker -> controller      hello     slot, build, number, parts {name: digest} that it holds
                              live      number
                              outlier   upstream, address, cause: it fails too often
                              returned  upstream, address: ejected, and it answers again
    controller -> worker      part      name; the body is the part
                              gone      name: that part is no more
                              commit    number: swap to what was sent
                              cut       upstream, key: end what runs on a backend that left
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lb.errors import OurError

Message = dict[str, Any]

MESSAGE_BYTES_MAX = 128 * 1024  # A SEQPACKET message must fit into the socket's buffer whole.
MESSAGE_FDS_MAX = 64  # The kernel takes 253 at once.
CHANNEL_QUEUE_MAX = 1024  # Messages that wait for a peer who does not read.
FRAME_BYTES_MAX = 16 * 1024 * 1024
BEAT = 1.0  # Seconds between two `beat`s.

_FRAME = struct.Struct("!II")  # Length of all that follows it, length of the fields.

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def make_channel() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a channel, not yet watched: the supervisor's and the child's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def make_stream() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a stream, the controller's and the worker's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def seal(name: str, body: bytes) -> int:
    """Return a memory descriptor that holds `body` and that nobody can change any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(body)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def unseal(fd: int) -> bytes:
    """Read all of a memory descriptor; its offset is shared with others and stays as it is."""
    size = os.fstat(fd).st_size
    pieces = []
    offset = 0
    while offset < size:
        piece = os.pread(fd, size - offset, offset)
        assert piece, "a sealed memory does not shrink"
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


class Channel:
    """
    One end of a supervisor's channel: whole messages, with descriptors.

    `send` never blocks. Descriptors sent stay the caller's; those received are the
    receiver's to close. `on_end` is called once, when the peer is gone or reads no more.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._on_message = on_message
        self._on_end = on_end
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        loop.add_reader(sock.fileno(), self._readable)

    def send(self, kind: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Say one thing. After the end of the peer this does nothing: `on_end` told."""
        if not self._open:
            return
        data = json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode()
        if len(data) > MESSAGE_BYTES_MAX or len(fds) > MESSAGE_FDS_MAX:
            raise OurError(f"a {kind!r} message of {len(data)} bytes and {len(fds)} descriptors")
        try:
            if not self._waiting and self._push(data, fds):
                return
        except OSError:
            self._lost()
            return
        if len(self._waiting) >= CHANNEL_QUEUE_MAX:
            self._end()
            return
        if not self._waiting:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._waiting.append((data, [os.dup(fd) for fd in fds]))

    def close(self) -> None:
        """Close this end without a call of `on_end`."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for _, fds in self._waiting:
            close_all(fds)
        self._waiting.clear()
        self._sock.close()

    def _push(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._sock, [data], list(fds))
        except BlockingIOError:
            return False
        return True

    def _writable(self) -> None:
        try:
            while self._waiting and self._push(*self._waiting[0]):
                close_all(self._waiting.popleft()[1])
        except OSError:
            self._lost()
            return
        if not self._waiting:
            self._loop.remove_writer(self._sock.fileno())

    def _lost(self) -> None:
        """Take the end of the peer, which could not be sent to; what it said before counts."""
        self._readable()
        self._end()

    def _readable(self) -> None:
        while self._open:
            try:
                data, fds, flags = _receive(self._sock)
            except BlockingIOError:
                return
            except ConnectionError:
                data, fds, flags = b"", [], 0
            if not data:
                self._end()
                return
            assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC), "senders keep the bounds"
            self._on_message(json.loads(data), fds)

    def _end(self) -> None:
        if self._open:
            self.close()
            self._on_end()


def _receive(sock: socket.socket) -> tuple[bytes, list[int], int]:
    """Take one message. Not `socket.recv_fds`, which passes no flags on: children of ours
    would inherit what it returns."""
    fds = array("i")
    data, ancillary, flags, _ = sock.recvmsg(
        MESSAGE_BYTES_MAX,
        socket.CMSG_SPACE(MESSAGE_FDS_MAX * fds.itemsize),
        socket.MSG_CMSG_CLOEXEC,
    )
    for level, kind, piece in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(piece)
    return data, fds.tolist(), flags


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that a message brought and nobody wants."""
    for fd in fds:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Frame:
    """One thing said on a stream: `kind`, its small `fields` and the `body`, which is opaque."""

    kind: str
    fields: Message = field(default_factory=dict)
    body: bytes = b""

    def pack(self) -> bytes:
        """Return the frame as it travels."""
        head = json.dumps({"kind": self.kind, **self.fields}, separators=(",", ":")).encode()
        length = _FRAME.size - 4 + len(head) + len(self.body)
        if length > FRAME_BYTES_MAX:
            raise OurError(f"a {self.kind!r} frame of {length} bytes")
        return b"".join((_FRAME.pack(length, len(head)), head, self.body))


class Framer:
    """Cuts a byte stream back into the frames it was made of."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in what arrived and yield each frame that is whole now."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _FRAME.size:
            length, head_length = _FRAME.unpack_from(buffer, start)
            if length > FRAME_BYTES_MAX or head_length > length:
                raise OurError(f"a frame that claims {length} bytes")
            end = start + 4 + length
            if len(buffer) < end:
                break
            head_start = start + _FRAME.size
            head = json.loads(bytes(buffer[head_start : head_start + head_length]))
            body = bytes(buffer[head_start + head_length : end])
            yield Frame(head.pop("kind"), head, body)
            start = end
        del buffer[:start]


class Stream(asyncio.Protocol):
    """
    One end of the way between the controller and one worker; made by `open_stream`.

    `send` never blocks; how much waits for the peer is `waiting`, in bytes. `on_end` is
    called once, whoever closed.
    """

    def __init__(
        self,
        on_frame: Callable[[Stream, Frame], None],
        on_end: Callable[[Stream], None] | None = None,
    ) -> None:
        self._on_frame = on_frame
        self._on_end = on_end
        self._framer = Framer()
        self._transport: asyncio.WriteTransport | None = None

    def send(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        """Say one thing; nothing once the peer is gone."""
        if self._transport is not None:
            self._transport.write(Frame(kind, fields, body).pack())

    @property
    def waiting(self) -> int:
        """Bytes that were sent and that the peer has not read yet, as far as we can see."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Close after what was sent has left."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be told by the loop that the way is open."""
        # uvloop's transports have the methods of asyncio's and none of their base classes.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Be told by the loop what arrived."""
        for frame in self._framer.feed(data):
            self._on_frame(self, frame)

    def connection_lost(self, error: Exception | None) -> None:
        """Be told by the loop that the way is closed."""
        self._transport = None
        if self._on_end is not None:
            self._on_end(self)


async def open_stream(
    sock: socket.socket,
    on_frame: Callable[[Stream, Frame], None],
    on_end: Callable[[Stream], None] | None = None,
) -> Stream:
    """
    Make a stream of one end of `make_stream`, on the running loop; it owns `sock` now.

    The first frames may come in before this returns, so both callbacks are given the stream.
    """
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_unix_connection(lambda: Stream(on_frame, on_end), sock=sock)
    return stream
