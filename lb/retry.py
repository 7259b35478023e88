"""
Whether a failed try may be followed by another (RFC 9110 9.2.2).

What decides is how much of the request may have had an effect: nothing was written, then
any request may go elsewhere; something was written, then only an idempotent one, whole; a
response has begun, then none. A timeout is never retried: the work may be running, and a
second copy of slow work makes it slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

RETRIES_AT_LEAST: Final = 3  # the budget never stops so few at a time
REFUSALS_MAX: Final = 16  # backends that one request may find closed
REPLAY_BYTES_MAX: Final = 64 * 1024
SAME_BACKEND_DELAY_S: Final = (0.025, 0.25)


class Failure(Enum):
    """How a try ended. The value is the access log's word for it."""

    REFUSED = "backend_refused"
    CONNECT_TIMEOUT = "backend_connect_timeout"
    TLS = "backend_tls"  # no agreement on who is who, or on how to talk
    STALE = "backend_stale"  # a pooled connection, dead before any octet of the response
    RESET = "backend_reset"
    CLOSED = "backend_closed"
    TIMEOUT = "backend_timeout"
    BAD_RESPONSE = "backend_bad_response"
    LIMITED = "limited"  # no descriptor, port or memory of ours was left to connect with
    STATUS = "backend_status"  # an answer that `retries.statuses` lists


# Nothing of the request can have reached the backend's work.
_UNSENT: Final = frozenset({Failure.REFUSED, Failure.CONNECT_TIMEOUT, Failure.TLS, Failure.LIMITED})
_MAY_REPEAT: Final = frozenset({Failure.STALE, Failure.RESET, Failure.CLOSED, Failure.STATUS})


class Answer(Enum):
    """Whether to try again."""

    NO = "no"
    YES = "yes"
    FREE = "free"  # it counts neither as an attempt nor against the budget
    ELSEWHERE = "elsewhere"  # free, but only at a backend that has not been tried


def may_retry(
    failure: Failure, *, wrote: bool, idempotent: bool, replayable: bool, begun: bool
) -> bool:
    """
    Whether the request may be sent once more, attempts and budget apart.

    `wrote`: any octet was given to the connection; `replayable`: all that was sent of the
    body is still held; `begun`: any octet of a response, 1xx included, went to the client.
    """
    if begun or not replayable:
        return False
    if failure in _UNSENT or (not wrote and failure in _MAY_REPEAT):
        return True
    return idempotent and failure in _MAY_REPEAT


def judge(
    failure: Failure,
    ends: Sequence[str],
    attempts: int,
    *,
    wrote: bool,
    idempotent: bool,
    replayable: bool,
    begun: bool,
) -> Answer:
    """
    Decide on one more try, the budget apart; see `may_retry`.

    `ends` says how each try so far ended, the last by `failure`. A kept connection that was
    dead already says nothing of its backend: the first such end is free. A refused connection
    has cost a backend nothing: past `attempts` such a request still goes to whoever is left.
    """
    allowed = may_retry(
        failure, wrote=wrote, idempotent=idempotent, replayable=replayable, begun=begun
    )
    if not allowed:
        return Answer.NO
    stale = sum(end == Failure.STALE.value for end in ends)
    if failure is Failure.STALE and stale == 1:
        return Answer.FREE
    if len(ends) - min(stale, 1) < attempts:
        return Answer.YES
    if failure is Failure.REFUSED and len(ends) < REFUSALS_MAX:
        return Answer.ELSEWHERE
    return Answer.NO


# What metrics call a failure, and which ones are a 504.
ERROR_KINDS: Final = {
    Failure.REFUSED: "connect",
    Failure.CONNECT_TIMEOUT: "connect",
    Failure.TLS: "tls",
    Failure.STALE: "reset",
    Failure.RESET: "reset",
    Failure.CLOSED: "reset",
    Failure.TIMEOUT: "timeout",
    Failure.BAD_RESPONSE: "protocol",
    Failure.LIMITED: "limited",
    Failure.STATUS: "status",
}
GATEWAY_TIMEOUTS: Final = frozenset({Failure.TIMEOUT, Failure.CONNECT_TIMEOUT})


class RetryBudget:
    """Bounds the retries of one upstream in one worker to a share of its active requests."""

    __slots__ = ("retrying", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self.retrying = 0

    def allows(self, active: int) -> bool:
        """Whether one more request may be a retry while `active` requests run."""
        return self.retrying < max(RETRIES_AT_LEAST, int(active * self.share))
