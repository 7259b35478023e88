"""Small files that after any crash are the old one or the new one, whole.

The steps of writing are methods of their own, in the order of `replace`: tests stop the
machine, as it were, before each of them. A sealed file is JSON with a checksum around it.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from pathlib import Path
from typing import Any

import orjson

FILE_MODE = 0o600  # What we keep may name tokens and notes: nobody else's business.


class UnsettledError(Exception):
    """A file has been replaced, but not for sure: a power cut may bring the old one back."""


class Disk:
    """The few calls by which the control plane touches its data_dir."""

    def read(self, path: Path) -> bytes | None:
        """The file's contents, or None if there is no such file."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def replace(self, path: Path, data: bytes) -> None:
        """
        Put `data` in the place of the file at `path`.

        OSError: the old one is still there. UnsettledError: the new one is, but the machine may
        yet lose it.
        """
        spare = spare_path(path)
        try:
            self.write(spare, data)
            self.rename(spare, path)
        except OSError:
            with contextlib.suppress(OSError):  # The first error is the one to report.
                self.remove(spare)
            raise
        try:
            self.sync_directory(path.parent)
        except OSError as error:
            raise UnsettledError(str(error)) from error

    def remove(self, path: Path) -> None:
        """Take a file away, if it is there."""
        path.unlink(missing_ok=True)

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


class DamagedError(Exception):
    """A sealed file is not whole; the text says what is wrong with it."""


def seal(form: int, body: Any) -> bytes:
    """Make a JSON file that shows by itself whether it is whole. `form` numbers its format."""
    data = orjson.dumps(body)
    return b'{"format":%d,"crc":"%08x","body":%b}\n' % (form, _checksum(form, data), data)


def unseal(data: bytes) -> tuple[int, Any]:
    """Return format and body of what `seal` made; DamagedError unless every byte is as it was."""
    if not data:
        raise DamagedError("it is empty")
    parts = _SEALED.fullmatch(data)
    if parts is None:
        ours = data.startswith(b'{"format":')
        raise DamagedError(
            "it is cut short or added to" if ours else "it is not a file that we wrote"
        )
    form, checksum, body = int(parts[1]), int(parts[2], 16), parts[3]
    if _checksum(form, body) != checksum:
        raise DamagedError("its checksum is wrong: it was changed or damaged")
    return form, orjson.loads(body)


def _checksum(form: int, data: bytes) -> int:
    return zlib.crc32(data, form)


_SEALED = re.compile(rb'\{"format":([0-9]{1,9}),"crc":"([0-9a-f]{8})","body":(.*)\}\n', re.DOTALL)
