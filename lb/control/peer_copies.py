"""Second processes that claim to be a member: a data_dir was copied, and both would vote as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lb.control.peer_handshake import Refusal

COPIED: Final = "one of the two data_dirs is a copy: wipe it, and let its instance join anew"
LATELY: Final = 10.0  # Seconds; who is refused dials again within a second or so.


class Copies:
    """Whom we turned away because the member that it says it is runs elsewhere. Bounded by that:
    only members are asked after, so there are no more names than members."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._at: dict[str, float] = {}

    def refuse(self, name: str) -> Refusal:
        """Take down that a second one was here, and return what it is told."""
        self._at[name] = self._now()
        return Refusal("second", f"{name} runs already, at its own address", COPIED)

    def told(self) -> str:
        """Say for an operator whom we have turned away lately; nothing if nobody."""
        since = self._now() - LATELY
        self._at = {name: at for name, at in self._at.items() if at > since}
        names = ", ".join(sorted(self._at))
        return f"a second process that says it is {names} is refused: {COPIED}" if names else ""
