"""What may stand between an exchange and its two ends: what plugins have to say, if any do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lb.http1.framing import BodyReader, Octets
from lb.http1.head import RequestHead, ResponseHead
from lb.http1.replies import Reply
from lb.proxy.upstream import LiveEndpoint
from lb.retry import Failure


class Hooks(Protocol):
    """
    Asked by an exchange before it goes on; each answer is what is left for it to do.

    Hooks may call the exchange in their turn, with what they made of it: then, or later.
    """

    came: RequestHead  # The request, whatever is sent on.
    barred: Sequence[LiveEndpoint]  # Not to be asked.
    judged: bool  # Whether the answer is to be tried again has been decided.
    plugin: str  # Whose answer it is.

    def request_data(self, payload: bytes, *, whole: bool) -> bytes | None:
        """Return what to send of the body; None: nothing now, not even its end."""
        ...

    def answered(self, reply: Reply) -> bool:
        """Whether they take an answer of our own upon themselves."""
        ...

    def response_started(
        self, head: ResponseHead, body: BodyReader | None, payload: Octets, now: float
    ) -> bool:
        """Whether they take a response upon themselves."""
        ...

    def response_continued(self, payload: Octets) -> Octets:
        """Return what to send of the response's body, which may be nothing."""
        ...

    def response_ended(self, now: float, *, reusable: bool) -> bool:
        """Whether they take the end of the response upon themselves."""
        ...

    def backend_failed(self, failure: Failure, detail: str) -> bool:
        """Whether they take the failure of a try upon themselves, until its turn has come."""
        ...

    def ending(self) -> None:
        """Learn that the exchange is about to be counted and logged."""
        ...

    def ended(self, end: str, now: float) -> None:
        """Learn that it has ended, and how, in the access log's words."""
        ...
