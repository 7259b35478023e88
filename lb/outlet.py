"""Whole lines to a file, pipe, terminal or socket, without ever waiting for whoever reads.

A regular file gets each batch in one appending write. A pipe, terminal or socket may block
for as long as its reader likes, so a thread writes to it, from a bounded queue, in pieces
that the kernel never mixes with those of another process. What cannot be written is counted and
forgotten; the next batch tries anew, so that logging resumes when there is room again.

Descriptors that we inherited are never made non-blocking: that would reach everybody who
shares them.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterable, Iterator, Sequence
from queue import Full, Queue
from select import PIPE_BUF
from threading import Thread

QUEUE_PIECES_MAX = 1_024  # Of at most PIPE_BUF bytes: 4 MiB wait for a reader that stopped.
CLOSE_SECONDS = 1.0  # How long a close waits for the thread to get rid of what is queued.
FILE_MODE = 0o640

INHERITED = {"stdout": 1, "stderr": 2}


class Outlet:
    """
    Where lines go: `stdout`, `stderr` or a path. Each line ends with a newline of its own.

    `lost` counts the lines that could not be written, `problem` is the reason why the last
    one was not, or empty. Not to be shared between threads.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._lost = 0
        self._problem = ""
        self._descriptor: int | None = None
        self._writer: _Writer | None = None
        self._torn = False  # The file ends in the middle of a line of ours.
        self._open()

    @property
    def lost(self) -> int:
        """Return how many lines were lost so far."""
        return self._lost + (self._writer.lost if self._writer else 0)

    @property
    def problem(self) -> str:
        """Return why the last line was lost, or nothing if it was not."""
        return self._problem or (self._writer.problem if self._writer else "")

    @property
    def line_max(self) -> int | None:
        """Return how long a line may be, its newline included; None: as long as it likes."""
        return PIPE_BUF if self._writer else None

    def write(self, lines: Sequence[bytes]) -> None:
        """Write these lines, or lose and count them."""
        if self._descriptor is None:
            self._open()
        if self._descriptor is None:
            self._lost += len(lines)
        elif self._writer is None:
            self._append(self._descriptor, lines)
        else:
            for piece, count in pack(lines):
                if len(piece) > PIPE_BUF:
                    self._lose(count, "a line is longer than a pipe takes in one piece")
                elif self._writer.put(piece, count):
                    self._problem = ""
                else:
                    self._lose(count, "whoever reads it has stopped reading")

    def reopen(self) -> None:
        """Open the path anew, after somebody moved the file; nothing for what we inherited."""
        if self.target not in INHERITED:
            self.close(wait=0.0)
            self._open()

    def close(self, wait: float = CLOSE_SECONDS) -> None:
        """Let go of the target; what is queued gets `wait` seconds to be written."""
        if self._writer is not None:
            self._writer.end(wait)
            self._lost += self._writer.lost
            self._writer = None  # It closes the descriptor, when it is done with it.
        elif self._descriptor is not None and self.target not in INHERITED:
            os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> None:
        inherited = INHERITED.get(self.target)
        try:
            descriptor = _open_path(self.target) if inherited is None else inherited
            mode = os.fstat(descriptor).st_mode
        except OSError as error:
            self._problem = error.strerror or str(error)
            return
        self._torn = False
        self._problem = ""
        self._descriptor = descriptor
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor):
            self._writer = _Writer(descriptor, owned=inherited is None)

    def _append(self, descriptor: int, lines: Sequence[bytes]) -> None:
        data = b"".join((b"\n", *lines) if self._torn else lines)
        try:
            written = os.write(descriptor, data)
        except OSError as error:
            self._lose(len(lines), error.strerror or str(error))
            return
        if written == len(data):
            self._torn = False
            self._problem = ""
            return
        # The disk is full. A second write would fail, or put the rest behind another
        # worker's line; the rest is given up instead.
        whole = _count_whole(lines, written - self._torn)
        self._torn = data[:written][-1:] != b"\n" if written else self._torn
        self._lose(len(lines) - whole, "no space left for the rest of a write")

    def _lose(self, count: int, problem: str) -> None:
        self._lost += count
        self._problem = problem


class _Writer:
    """A thread that writes pieces to one descriptor, one after the other."""

    def __init__(self, descriptor: int, *, owned: bool) -> None:
        self.lost = 0  # Only the thread adds to it.
        self.problem = ""
        self._descriptor = descriptor
        self._owned = owned
        self._queue: Queue[tuple[bytes, int]] = Queue(QUEUE_PIECES_MAX)
        self._ending = False
        # A daemon, for it may hang in a write when the process wants to end.
        self._thread = Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def put(self, piece: bytes, count: int) -> bool:
        """Queue a piece; False if too many wait already."""
        try:
            self._queue.put_nowait((piece, count))
        except Full:
            return False
        return True

    def end(self, wait: float) -> None:
        """End the thread after what is queued, but wait for it no longer than this."""
        self._ending = True
        self.put(b"", 0)  # Wakes it; where there is no room it is awake.
        self._thread.join(wait)

    def _run(self) -> None:
        while not (self._ending and self._queue.empty()):
            piece, count = self._queue.get()
            try:
                self._write(piece)
            except OSError as error:
                self.lost += count
                self.problem = error.strerror or str(error)
            else:
                self.problem = ""
        if self._owned:
            os.close(self._descriptor)

    def _write(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # Somebody else made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


def pack(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield as few pieces as hold these lines, no longer than PIPE_BUF, and their counts."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > PIPE_BUF:
            yield b"".join(piece), len(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield b"".join(piece), len(piece)


def _open_path(path: str) -> int:
    """Open for appending. A FIFO without a reader is an error: waiting for one is for nobody."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    descriptor = os.open(path, flags, FILE_MODE)
    os.set_blocking(descriptor, True)  # We opened it: nobody shares it.
    return descriptor


def _count_whole(lines: Sequence[bytes], written: int) -> int:
    count = 0
    for line in lines:
        written -= len(line)
        if written < 0:
            break
        count += 1
    return count
