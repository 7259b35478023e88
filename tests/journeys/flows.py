"""
Both ends of a huge body, each a small process that holds none of it.

Run as a script: `flows.py ROLE PROGRESS HOW [PORT]`. An end that takes does so once a line comes
on its input; PROGRESS is a file in which it notes how many bytes it has moved so far.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HUGE = 1024 * 1024 * 1024
PIECE = bytes(256 * 1024)
SIPPED = 4 * 1024 * 1024  # So much is taken in sips, slower than any sender.
SIP = 512
END = b"\r\n\r\n"


class Tally:
    """Counts bytes where another process can see it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        self.count = 0

    def add(self, count: int) -> None:
        self.count += count
        os.pwrite(self._fd, b"%020d" % self.count, 0)


def read_head(sock: socket.socket) -> bytes:
    """Read a head to its end; return what came of the body with it."""
    data = b""
    while END not in data:
        more = sock.recv(65536)
        assert more, "the other side left within a head"
        data += more
    return data.partition(END)[2]


def swallow(sock: socket.socket, tally: Tally, rest: bytes, end: bytes = b"") -> None:
    """Read a huge body, to its last chunk where it comes in chunks."""
    tally.add(len(rest))
    room = memoryview(bytearray(len(PIECE)))
    last = rest[-len(end) :] if end else b""
    while not last.endswith(end) if end else tally.count < HUGE:
        got = sock.recv_into(room[:SIP] if tally.count < SIPPED else room)
        assert got, f"the other side left after {tally.count} bytes"
        tally.add(got)
        if end:
            last = (last + bytes(room[max(0, got - len(end)) : got]))[-len(end) :]


def pour(sock: socket.socket, tally: Tally, *, chunked: bool) -> None:
    """Write a huge body."""
    piece = b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE
    for _ in range(HUGE // len(PIECE)):
        left = memoryview(piece)
        while left:
            sent = sock.send(left)
            tally.add(sent)
            left = left[sent:]
    if chunked:
        sock.sendall(b"0\r\n\r\n")


def wait_for_word() -> None:
    """Wait until somebody lets us go on."""
    sys.stdin.readline()


def say(text: str) -> None:
    print(text, flush=True)


def backend(role: str, tally: Tally, chunked: bool) -> None:
    """Take or give one huge body."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        say(str(server.getsockname()[1]))
        sock, _ = server.accept()
    with sock:
        rest = read_head(sock)
        if role == "giver":
            length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % HUGE
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + length + END)
            pour(sock, tally, chunked=chunked)
            return
        wait_for_word()
        swallow(sock, tally, rest, b"\r\n0\r\n\r\n" if chunked else b"")
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")


def client(role: str, tally: Tally, port: int, chunked: bool) -> None:
    """Ask for one huge body, or send one."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        if role == "asker":
            sock.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for_word()
            swallow(sock, tally, read_head(sock), b"\r\n0\r\n\r\n" if chunked else b"")
            say("done")
            return
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % HUGE
        sock.sendall(b"POST /huge HTTP/1.1\r\nHost: x\r\n" + length + END)
        pour(sock, tally, chunked=chunked)
        read_head(sock)
        say("done")


def main(role: str, progress: str, how: str, port: str = "") -> None:
    """Be one end."""
    tally = Tally(progress)
    chunked = how == "chunked"
    if port:
        client(role, tally, int(port), chunked)
    else:
        backend(role, tally, chunked)


class End:
    """One end, run from a test."""

    def __init__(self, folder: Path, role: str, how: str, port: int | None = None) -> None:
        self._progress = folder / f"{role}.progress"
        words = [role, str(self._progress), how, *([] if port is None else [str(port)])]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def moved(self) -> int:
        """How many bytes it has moved by now."""
        return int(self._progress.read_bytes() or b"0") if self._progress.exists() else 0

    def go(self) -> None:
        """Let it read."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def end_of(folder: Path, role: str, how: str, port: int | None = None) -> Iterator[End]:
    """Run one end for the length of the block."""
    end = End(folder, role, how, port)
    try:
        yield end
    finally:
        end.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
