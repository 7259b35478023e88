"""The system calls by which a member's log and snapshots reach the disk, and no others.

The log's code takes a `FileSystem`. In production that is `RealFileSystem`; in tests and in
the simulator it is a disk that forgets, tears and fails. Paths are plain strings. Any call may
raise OSError; what a call did before it raised is unknown.

What holds after which call, on the real one as on the fake:

- what was written is sure to be there once `File.sync` returned, not before;
- a name made, changed or taken away by `open`, `rename` or `unlink` is sure to be so once
  `sync_directory` returned, not before;
- `rename` puts a file in another's place at once: nobody ever sees neither.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Protocol

from lb.control.disk import FILE_MODE

DIRECTORY_MODE = 0o700


class File(Protocol):
    """An open file, written at offsets that its owner keeps."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""

    def sync(self) -> None:
        """Wait until all that was written, and the size, is on the disk (fdatasync)."""

    def preallocate(self, size: int) -> None:
        """Make the file at least `size` bytes long, in room that is sure to be there, zeroed."""

    def close(self) -> None:
        """Let go of the file; once is enough, more does no harm."""


class FileSystem(Protocol):
    """Files and names."""

    def open(self, path: str, create: bool = False) -> File:
        """Open for writing what is there; with `create`, a new empty file (it must not be)."""

    def read(self, path: str) -> bytes:
        """All of a file."""

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory of that name."""

    def list_directory(self, path: str) -> list[str]:
        """The names in a directory, sorted; none if there is no such directory."""

    def make_directory(self, path: str) -> None:
        """Make a directory, which must not be there."""

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in the place of what had it."""

    def unlink(self, path: str) -> None:
        """Take a file's name away."""

    def sync_directory(self, path: str) -> None:
        """Wait until a directory's names are on the disk."""

    def lock(self, path: str) -> File:
        """Make or open a file and lock it for us alone, until it is closed; BlockingIOError."""


class RealFile:
    """A descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        rest = memoryview(data)
        while rest:  # A short write is followed up: that finishes it, or says what is wrong.
            written = os.pwrite(self._descriptor, rest, offset)
            if not written:
                raise OSError(errno.EIO, "the disk took nothing")
            rest, offset = rest[written:], offset + written

    def sync(self) -> None:
        """Wait for the disk."""
        os.fdatasync(self._descriptor)

    def preallocate(self, size: int) -> None:
        """Have the file system set room aside, so that no later write can lack it."""
        os.posix_fallocate(self._descriptor, 0, size)

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RealFileSystem:
    """The kernel's."""

    def open(self, path: str, create: bool = False) -> RealFile:
        """Open for writing."""
        flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        return RealFile(os.open(path, flags, FILE_MODE))

    def read(self, path: str) -> bytes:
        """All of a file."""
        with open(path, "rb") as file:
            return file.read()

    def exists(self, path: str) -> bool:
        """Whether anything has that name."""
        return os.path.lexists(path)

    def list_directory(self, path: str) -> list[str]:
        """The names, sorted: no order but ours may decide anything."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def make_directory(self, path: str) -> None:
        """Make a directory that only we may look into."""
        os.mkdir(path, DIRECTORY_MODE)

    def rename(self, source: str, target: str) -> None:
        """Rename, at once."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Take a name away."""
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        """Wait for the directory."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> RealFile:
        """Lock, without waiting; the kernel lets go when this process ends."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return RealFile(descriptor)
