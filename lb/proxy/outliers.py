"""
What a worker does about outliers: it tells the controller, which decides for the instance.

While there is no controller it decides by itself, and tells the next one.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from lb.outlier import Ejection, Ejections

if TYPE_CHECKING:
    from lb.model import Outlier

log = logging.getLogger(__name__)

UNSAID_MAX: Final = 1024  # what was decided without a controller, and no other has been told

Say = Callable[..., None]


class Troubled(Protocol):
    """An upstream, as what is decided of its endpoints needs it."""

    name: str
    ejections: Mapping[str, Ejection]

    @property
    def rule(self) -> Outlier:
        """By what endpoints are ejected."""
        ...

    def pool(self) -> dict[str, bool]:
        """Return the endpoints that take traffic by state and weight, each with its health."""
        ...

    def eject(self, ejections: Mapping[str, Ejection]) -> None:
        """Have these out from now on, and no others."""
        ...


class Outliers:
    """Passes on what answers show of endpoints; keeps ejections only while nobody else does."""

    def __init__(self, slot: int, rng: random.Random) -> None:
        self.slot = slot
        self._rng = rng
        self._say: Say | None = None
        self._alone: dict[str, Ejections] = {}
        self._unsaid: dict[tuple[str, str], dict[str, Any]] = {}

    def attach(self, say: Say) -> None:
        """A controller is there: tell it what was decided without one."""
        self._say = say
        unsaid, self._unsaid = self._unsaid, {}
        self._alone.clear()
        for (upstream, address), fields in unsaid.items():
            say(upstream=upstream, address=address, **fields)

    def detach(self) -> None:
        """The controller is gone."""
        self._say = None

    def found(self, upstream: Troubled, address: str, cause: str) -> None:
        """An endpoint failed too often in a row, or in its trial."""
        if self._say is not None:
            self._say("outlier", upstream=upstream.name, address=address, cause=cause)
            return
        ejections = self._ejections(upstream)
        now = monotonic()
        before = ejections.standing.get(address)
        made = ejections.eject(
            address,
            cause,
            self.slot,
            rule=upstream.rule,
            pool=upstream.pool(),
            now=now,
            rng=self._rng,
        )
        if isinstance(made, Ejection) and made is not before:
            log.warning(
                "%s/%s is ejected for %.0f s, its last failure: %s (no controller: by this worker)",
                *(upstream.name, address, made.until - now, cause),
            )
            self._note(upstream, address, ejections, kind="outlier", cause=cause)

    def returned(self, upstream: Troubled, address: str) -> None:
        """An endpoint that was out has answered well in its trial."""
        if self._say is not None:
            self._say("returned", upstream=upstream.name, address=address)
            return
        ejections = self._ejections(upstream)
        if ejections.end(address, monotonic()) is not None:
            log.info("%s/%s is back: it answers", upstream.name, address)
            self._note(upstream, address, ejections, kind="returned")

    def _ejections(self, upstream: Troubled) -> Ejections:
        ejections = self._alone.get(upstream.name)
        if ejections is None:
            ejections = self._alone[upstream.name] = Ejections()
            ejections.standing.update(upstream.ejections)
        return ejections

    def _note(self, upstream: Troubled, address: str, ejections: Ejections, **fields: Any) -> None:
        key = (upstream.name, address)
        if key in self._unsaid or len(self._unsaid) < UNSAID_MAX:
            self._unsaid[key] = fields
        upstream.eject(dict(ejections.standing))
