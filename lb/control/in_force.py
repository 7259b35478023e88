"""The config in force, in a form that the next controller goes on from.

It rides in the edition that the supervisor keeps: a controller that was restarted serves what
was in force, not what may stand in the file by now.
"""

from __future__ import annotations

from dataclasses import dataclass

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
