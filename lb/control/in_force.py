"""The config in force, in a form that the next controller goes on from.

It rides in the edition that the supervisor keeps: a controller that was restarted serves what
was in force, not what may stand in the file by now.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson

from lb.config.load import Loaded
from lb.config.parse import loaded_from_plain, loaded_to_plain

PART = "control/config"


@dataclass(frozen=True, slots=True)
class InForce:
    """`generation` counts the configs of this instance's life; `since` is wall time."""

    loaded: Loaded
    generation: int
    source: str
    since: float

    def to_part(self) -> bytes:
        """Return it as a part of an edition."""
        plain = {
            "loaded": loaded_to_plain(self.loaded),
            "generation": self.generation,
            "source": self.source,
            "since": self.since,
        }
        return orjson.dumps(plain)

    def with_workers(self, count: int) -> InForce:
        """Return it with so many workers as there are; an upgrade is what may change them."""
        node = self.loaded.config.node
        if count in (0, node.worker_count()):
            return self
        config = self.loaded.config.model_copy(
            update={"node": node.model_copy(update={"workers": count})}
        )
        return replace(self, loaded=replace(self.loaded, config=config))

    @classmethod
    def from_part(cls, body: bytes) -> InForce:
        """Undo `to_part`."""
        plain = orjson.loads(body)
        return cls(
            loaded=loaded_from_plain(plain["loaded"]),
            generation=plain["generation"],
            source=plain["source"],
            since=plain["since"],
        )
