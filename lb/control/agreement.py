"""Members compare what they have come to: the same commands must have made the same registry.

Every so many revisions each member names its registry by a hash, and tells the others. One that
differs from its leader has met a bug, or a machine that computes wrongly. It stops applying, so
that the difference does not spread to what it serves next, and says so.
"""

from __future__ import annotations

import asyncio
from typing import Any

from lb.registry import Registry, state_hash

HASH_EVERY = 1_000  # Revisions.
HASHES_MAX = 8  # Kept, the newest.


class Agreement:
    """The hashes of this member's registry, by revision."""

    def __init__(self) -> None:
        self._hashes: dict[int, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, registry: Registry) -> None:
        """Take in a registry that was just come to; it is hashed in a thread, if its turn."""
        if registry.revision % HASH_EVERY == 0:
            task = asyncio.get_running_loop().create_task(self._hash(registry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _hash(self, registry: Registry) -> None:
        self._hashes[registry.revision] = await asyncio.to_thread(state_hash, registry)
        while len(self._hashes) > HASHES_MAX:
            del self._hashes[min(self._hashes)]

    def differs(self, said: list[Any]) -> int:
        """Return the first revision at which another's hashes are not ours; 0 if none is."""
        return next((at for at, name in said if self._hashes.get(at, name) != name), 0)

    def to_plain(self) -> list[list[Any]]:
        """Return them as they are told to others."""
        return [[at, name] for at, name in sorted(self._hashes.items())]
