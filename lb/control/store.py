"""Where commands are committed: the seam behind which the group stands.

`Store` is all that the rest of the control plane knows of it; `group.Group` is the one there is.
Another engine that agrees on commands in one order could stand here as well. Versions before
the group kept the registry of an instance alone in one file, which is read here once more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lb.control.disk import DamagedError, Disk, unseal
from lb.errors import OperatorError, StartError
from lb.registry import (
    Command,
    Registry,
    Reply,
    registry_from_plain,
)

__all__ = [
    "DamagedRegistryError",
    "NoQuorum",
    "NotStored",
    "RefusedError",
    "Store",
    "UnknownOutcome",
    "read_registry_file",
]

REGISTRY_FILE = "registry.json"
REGISTRY_FORMAT = 1

OnChange = Callable[[Registry], None]


class NoQuorum(OperatorError):  # noqa: N818  # The words that people know it by.
    """The group cannot decide now: nothing was changed. Never raised by an instance alone."""

    exit_status = 5


class UnknownOutcome(OperatorError):  # noqa: N818  # As above.
    """Sent, and not known to be committed: safe to repeat with the same idempotency key."""

    exit_status = 6


class NotStored(OperatorError):  # noqa: N818  # As above.
    """The command could not be kept, and so was not applied: nothing was changed."""

    exit_status = 5


class RefusedError(OperatorError):
    """The group does not do that, and `code` names the problem. Nothing was changed."""

    exit_status = 5

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class DamagedRegistryError(StartError):
    """The registry's file is not whole. `path` and `reason` name it for status and log."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be used: {reason}",
            "put back a copy of it, or move it away to start anew from the config file",
        )
        self.path = path
        self.reason = reason


class Store(Protocol):
    """The registry as this instance has it, and the one way to change it."""

    @property
    def registry(self) -> Registry:
        """The newest registry that is committed and applied here."""
        ...

    async def propose(self, command: Command) -> Reply:
        """
        Return once the command is committed and applied here.

        Raises NoQuorum or NotStored if it was not applied, and UnknownOutcome if that is not
        known. Cancelling the wait does not take the command back.
        """
        ...

    def subscribe(self, on_change: OnChange) -> None:
        """Have `on_change` called in the loop after each change that one routes by."""
        ...


def read_registry_file(data_dir: Path) -> Registry | None:
    """Read what an earlier version kept of an instance alone, if there is any."""
    path = data_dir / REGISTRY_FILE
    try:
        data = Disk().read(path)
    except OSError as error:
        raise DamagedRegistryError(path, _reason(error)) from error
    return None if data is None else _from_file(path, data)


def _from_file(path: Path, data: bytes) -> Registry:
    try:
        form, body = unseal(data)
    except DamagedError as error:
        raise DamagedRegistryError(path, str(error)) from error
    if form != REGISTRY_FORMAT:
        raise StartError(
            f"{path} has format {form}, and this version reads {REGISTRY_FORMAT}",
            "start the version that wrote it",
        )
    try:
        return registry_from_plain(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRegistryError(path, f"it does not hold a registry ({error!r})") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
