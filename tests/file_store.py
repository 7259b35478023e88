"""A store of one file, as versions before the group had it: what it wrote is still taken over.

For tests that need a real `Store` with a real disk under it and nothing more.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from pathlib import Path

from lb.control.disk import Disk, UnsettledError, seal, spare_path
from lb.control.store import (
    REGISTRY_FILE,
    REGISTRY_FORMAT,
    NotStored,
    OnChange,
    UnknownOutcome,
    read_registry_file,
)
from lb.errors import OurError, StartError
from lb.registry import Command, Registry, Reply, apply, registry_to_plain

ID_BYTES = 16
PROPOSALS_MAX = 1_000  # Waiting to be written; more are turned away at once.


class FileStore:
    """
    The registry in `registry.json`. See `Store`.

    Commands that arrive while the file is being written are committed by the next write
    together, so a burst costs a few writes and not one each.
    """

    def __init__(self, path: Path, registry: Registry, disk: Disk) -> None:
        self._path = path
        self._registry = registry
        self._disk = disk
        self._subscribers: list[OnChange] = []
        self._waiting: deque[tuple[Command, asyncio.Future[Reply]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, data_dir: str | Path, disk: Disk | None = None) -> FileStore:
        """Read what is kept in a data_dir that is locked, or begin with an empty registry."""
        disk = disk or Disk()
        path = Path(data_dir) / REGISTRY_FILE
        try:
            data = disk.read(path)
            if data is None:
                registry = Registry(id=secrets.token_hex(ID_BYTES))
                disk.replace(path, _as_file(registry))
            else:
                found = read_registry_file(path.parent)
                assert found is not None
                registry = found
                disk.remove(spare_path(path))  # Left by a crash; never more than a draft.
        except (OSError, UnsettledError) as error:
            raise StartError(
                f"{path} cannot be read or written: {_reason(error)}",
                "see that node.data_dir is on a sound disk with room left, and ours to write",
            ) from error
        return cls(path, registry, disk)

    @property
    def registry(self) -> Registry:
        """The newest registry that is on the disk."""
        return self._registry

    async def propose(self, command: Command) -> Reply:
        """Commit and apply; see `Store.propose`."""
        if len(self._waiting) >= PROPOSALS_MAX:
            raise NotStored(
                f"{PROPOSALS_MAX} writes are waiting already", "try again in a moment, and slower"
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((command, answer))
        if self._writer is None:
            self._writer = loop.create_task(self._write_all())
        return await answer

    def subscribe(self, on_change: OnChange) -> None:
        """Call `on_change` with each registry of a new revision."""
        self._subscribers.append(on_change)

    async def close(self) -> None:
        """Wait until all that was proposed is on the disk."""
        if self._writer is not None:
            await self._writer

    async def _write_all(self) -> None:
        batch: list[tuple[Command, asyncio.Future[Reply]]] = []
        try:
            while self._waiting:
                batch = list(self._waiting)
                self._waiting.clear()
                await self._commit(batch)
        finally:
            self._writer = None
            # Nobody is left waiting, even if the writing ended by a mistake of ours.
            for _, answer in (*batch, *self._waiting):
                if not answer.done():
                    answer.set_exception(OurError("the registry's writer has ended"))
            self._waiting.clear()

    async def _commit(self, batch: list[tuple[Command, asyncio.Future[Reply]]]) -> None:
        registry = self._registry
        replies: list[tuple[asyncio.Future[Reply], Reply]] = []
        for command, answer in batch:
            registry, reply = apply(registry, command)
            replies.append((answer, reply))
        if registry is not self._registry:
            try:
                await asyncio.to_thread(self._save, registry)
            except (OSError, UnsettledError) as error:
                self._fail(batch, error)
                return
            self._show(registry)
        for answer, reply in replies:
            if not answer.done():  # Done already: whoever asked has gone.
                answer.set_result(reply)

    def _save(self, registry: Registry) -> None:
        """In a thread: a slow disk must not hold up the loop."""
        self._disk.replace(self._path, _as_file(registry))

    def _show(self, registry: Registry) -> None:
        loop = asyncio.get_running_loop()
        if registry.revision != self._registry.revision:
            for on_change in self._subscribers:
                # Not a plain call: a mistake there is the loop's to report, not our writer's end.
                loop.call_soon(on_change, registry)
        self._registry = registry

    def _fail(
        self, batch: list[tuple[Command, asyncio.Future[Reply]]], error: OSError | UnsettledError
    ) -> None:
        for _, answer in batch:
            if answer.done():
                continue
            if isinstance(error, UnsettledError):
                # The file in place may hold the commands. We go on from what we had: repeating
                # them writes them again, and then for sure.
                answer.set_exception(
                    UnknownOutcome(
                        f"{self._path} was written, but may not outlive a power cut: "
                        f"{_reason(error)}",
                        "repeat the write with the same idempotency key",
                    )
                )
            else:
                answer.set_exception(
                    NotStored(
                        f"{self._path} cannot be written: {_reason(error)}",
                        "make room or mend the disk, then repeat the write",
                    )
                )


def _as_file(registry: Registry) -> bytes:
    return seal(REGISTRY_FORMAT, registry_to_plain(registry))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
