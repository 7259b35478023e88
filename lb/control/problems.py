"""RFC 9457 problems: every error of the admin API, its status and its title.

A code here is part of the contract: the CLI turns it into an exit status, scripts branch on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lb.errors import AccordError


@dataclass(frozen=True, slots=True)
class Kind:
    """What all problems of one code share."""

    status: int
    title: str


KINDS = {
    "bad-request": Kind(400, "The request makes no sense"),
    "invalid": Kind(400, "This cannot be written"),
    "not-supported": Kind(400, "Not yet supported"),
    "unauthorized": Kind(401, "Who are you?"),
    "not-allowed": Kind(403, "This token may not do that"),
    "host-not-allowed": Kind(403, "The Host is not one of ours"),
    "origin-not-allowed": Kind(403, "The Origin is not this host"),
    "forbidden": Kind(403, "Not allowed from here"),
    "not-found": Kind(404, "There is no such thing"),
    "method-not-allowed": Kind(405, "Not with this method"),
    "too-slow": Kind(408, "The body did not come in time"),
    "would-empty": Kind(409, "No active backend would be left"),
    "upstream-in-use": Kind(409, "A config still names it"),
    "conflict": Kind(409, "Not as things stand"),
    "name-taken": Kind(409, "A member of that name is there"),
    "removed": Kind(409, "It was removed from the group"),
    "too-many": Kind(409, "The registry is full"),
    "compacted": Kind(410, "These revisions are not here"),
    "precondition-failed": Kind(412, "It has changed, or is there already"),
    "too-large": Kind(413, "The body is too large"),
    "not-json": Kind(415, "A body must be JSON"),
    "key-reused": Kind(422, "The Idempotency-Key was used for something else"),
    "config-invalid": Kind(422, "The config file is not valid"),
    "too-many-attempts": Kind(429, "Too many wrong tokens"),
    "our-error": Kind(500, "We made a mistake"),
    "not-yet-supported": Kind(501, "Not yet supported"),
    "no-quorum": Kind(503, "The group has no quorum"),
    "busy": Kind(503, "Too much of this is going on already"),
    "not-applied": Kind(503, "It could not be put into effect"),
    "unknown-outcome": Kind(504, "It is not known whether this was committed"),
}


class Problem(AccordError):  # noqa: N818 - RFC 9457's own word.
    """One answer that is an error; raised anywhere below the admin's handlers."""

    def __init__(self, code: str, detail: str, hint: str = "", **more: Any) -> None:
        super().__init__(detail, hint)
        assert code in KINDS, code
        self.code = code
        self.more = more

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.code].status

    def as_plain(self) -> dict[str, Any]:
        """The body: type, code, title, status, detail, hint, and what else belongs to this code."""
        kind = KINDS[self.code]
        return {
            "type": f"urn:accord:{self.code}",
            "code": self.code,
            "title": kind.title,
            "status": kind.status,
            "detail": self.message,
            "hint": self.hint,
            **self.more,
        }
