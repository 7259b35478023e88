"""Power cuts: what was written and not made sure is gone when the instance starts again.

The instances run with `power/` on their PYTHONPATH, which keeps undo notes of un-synced writes,
and whose syncs can be told to do nothing. With honest syncs a cut takes nothing that was
promised, and with lying ones it must be seen that it does.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from journeys.kit import ROOT

RECORD = struct.Struct("!QIH")


class Power:
    """The disk of one instance."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._notes = folder
        self._lies = folder / "lies"

    def environ(self) -> dict[str, str]:
        """Return what the instance's environment needs."""
        here = Path(__file__).parent / "power"
        return {
            "PYTHONPATH": f"{here}{os.pathsep}{ROOT}",
            "LB_POWER_NOTES": str(self._notes),
            "LB_POWER_LIES": str(self._lies),
        }

    def lie(self) -> None:
        """From now on let no sync do anything."""
        self._lies.touch()

    def cut(self) -> int:
        """Take back what was not made sure; return how many bytes. After everything was killed."""
        taken = 0
        for path in self._notes.glob("*.undo"):
            for name, offset, before in reversed(records(path.read_bytes())):
                if os.path.exists(name):
                    with open(name, "r+b") as file:
                        file.seek(offset)
                        file.write(before)
                    taken += len(before)
            path.unlink()
        self._lies.unlink(missing_ok=True)
        return taken


def records(notes: bytes) -> list[tuple[bytes, int, bytes]]:
    """Read notes: file, offset, what was there. One that is not whole was not yet acted on."""
    found = []
    place = 0
    while place + RECORD.size <= len(notes):
        offset, length, named = RECORD.unpack_from(notes, place)
        start = place + RECORD.size
        place = start + named + length
        if place > len(notes):
            break
        found.append((notes[start : start + named], offset, notes[start + named : place]))
    return found
