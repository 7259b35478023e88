"""Writing a small file so that after any crash it is the old one or the new one, whole.

The steps are methods of their own, in the order of `replace`: tests stop the machine, as it
were, before each of them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FILE_MODE = 0o600  # What we keep may name tokens and notes: nobody else's business.


class Disk:
    """The few calls by which the control plane touches its data_dir."""

    def read(self, path: Path) -> bytes | None:
        """The file's contents, or None if there is no such file."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` in the place of the file at `path`; OSError leaves the old one."""
        spare = spare_path(path)
        try:
            self.write(spare, data)
            self.rename(spare, path)
        except OSError:
            with contextlib.suppress(OSError):  # The first error is the one to report.
                spare.unlink(missing_ok=True)
            raise
        self.sync_directory(path.parent)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file and wait until it is on the disk."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        with open(descriptor, "wb", buffering=0) as file:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            self.sync(descriptor)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def sync_directory(self, path: Path) -> None:
        """Wait until the directory's names are on the disk: a rename alone is not."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)


def spare_path(path: Path) -> Path:
    """Where a new version is written before it takes the old one's name."""
    return path.with_name(path.name + ".new")
