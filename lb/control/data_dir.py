"""The directory in which an instance keeps what must outlive it: made, locked, and named.

One daemon at a time: two would write the same files. The lock is the kernel's, so it is gone
with the process that held it, however that ended; the file itself is never removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from lb.control.disk import DamagedError, Disk, UnsettledError, seal, unseal
from lb.errors import StartError

LOCK_FILE = "lock"
NODE_FILE = "node.json"
NODE_FORMAT = 1
LOCK_WAIT = 5.0  # Seconds: a predecessor that is being replaced lets go in less.
LOCK_RETRY = 0.05
DIRECTORY_MODE = 0o700
HOLDER_BYTES_MAX = 32  # Two lines: the controller's process and its supervisor's.


class DataDirLock:
    """A data_dir that is ours until `release`, or until this process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another have it. Once is enough, more does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> DataDirLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock_data_dir(path: str | Path, wait: float = LOCK_WAIT) -> DataDirLock:
    """
    Make the directory if need be, and lock it, waiting up to `wait` seconds for its holder.

    Blocks meanwhile. StartError, with the cure, if it is held or cannot be used.
    """
    directory = Path(path).absolute()
    descriptor = _open_lock(directory)
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(LOCK_RETRY)
                continue
            label = os.pread(descriptor, HOLDER_BYTES_MAX, 0).decode(errors="replace")
            holder = label.partition("\n")[0]
            os.close(descriptor)
            raise StartError(
                f"data_dir {directory} is in use by process {holder or 'unknown'}",
                "stop that daemon, or give this one its own node.data_dir",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise _unusable(directory, error) from error
        break
    with contextlib.suppress(OSError):  # A full disk: the lock holds, only its label is missing.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n%d\n" % (os.getpid(), os.getppid()), 0)
    return DataDirLock(directory, descriptor)


def settle_name(
    data_dir: str | Path, wanted: str, disk: Disk | None = None
) -> tuple[str, str | None]:
    """
    Return the instance's name and a warning, if there is one to give.

    The name kept in the data_dir wins over the wanted one: what lies there belongs to it. At
    the first start the wanted name is kept.
    """
    disk = disk or Disk()
    path = Path(data_dir) / NODE_FILE
    try:
        kept = _kept_name(path, disk)
        if kept is None:
            disk.replace(path, seal(NODE_FORMAT, {"name": wanted}))
            return wanted, None
    except (OSError, UnsettledError) as error:
        raise _unusable(Path(data_dir), error) from error
    if kept == wanted:
        return kept, None
    return kept, (
        f'this instance is "{kept}", as {path} says, not "{wanted}": '
        f'set node.name = "{kept}", or start with an empty data_dir'
    )


def _kept_name(path: Path, disk: Disk) -> str | None:
    data = disk.read(path)
    if data is None:
        return None
    try:
        _, body = unseal(data)
        return str(body["name"])
    except (DamagedError, KeyError, TypeError) as error:
        raise StartError(
            f"{path} cannot be used: {error}",
            "remove it: the name is taken from node.name then",
        ) from error


def _open_lock(directory: Path) -> int:
    try:
        directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(directory / LOCK_FILE, flags, 0o600)
    except OSError as error:
        raise _unusable(directory, error) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        os.close(descriptor)
        raise StartError(f"data_dir {directory} cannot be written to", _CURE)
    return descriptor


def _unusable(directory: Path, error: Exception) -> StartError:
    reason = getattr(error, "strerror", None) or str(error)
    return StartError(f"data_dir {directory} cannot be used: {reason}", _CURE)


_CURE = "set node.data_dir to a directory that this user can write to"
