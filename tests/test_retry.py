"""When a failed try may be followed by another: RFC 9110 9.2.2 as a table."""

from __future__ import annotations

import pytest

from lb.retry import RETRIES_AT_LEAST, Answer, Failure, RetryBudget, judge, may_retry

UNSENT = (Failure.REFUSED, Failure.CONNECT_TIMEOUT, Failure.TLS, Failure.LIMITED)
LOST = (Failure.STALE, Failure.RESET, Failure.CLOSED, Failure.STATUS)
NEVER = (Failure.TIMEOUT, Failure.BAD_RESPONSE)


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("wrote", [False, True])
@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("replayable", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_every_case(
    failure: Failure, wrote: bool, idempotent: bool, replayable: bool, begun: bool
) -> None:
    allowed = may_retry(
        failure, wrote=wrote, idempotent=idempotent, replayable=replayable, begun=begun
    )

    if begun or not replayable or failure in NEVER:
        assert not allowed
    elif failure in UNSENT or not wrote:
        assert allowed
    else:
        assert failure in LOST
        assert allowed == idempotent


def test_budget_is_a_share_but_never_under_the_least() -> None:
    budget = RetryBudget(0.2)
    allowed = 0
    while budget.allows(100):
        budget.retrying += 1
        allowed += 1

    assert allowed == 20
    assert [RetryBudget(0.2).allows(active) for active in (0, 1, 5)] == [True] * 3
    few = RetryBudget(0.2)
    few.retrying = RETRIES_AT_LEAST
    assert not few.allows(5)


@pytest.mark.parametrize(
    ("ends", "attempts", "answer"),
    [
        (["backend_refused"], 2, Answer.YES),
        (["backend_refused"], 1, Answer.ELSEWHERE),
        (["backend_refused", "backend_refused"], 2, Answer.ELSEWHERE),
        (["backend_refused"] * 16, 2, Answer.NO),
        (["backend_reset", "backend_reset"], 2, Answer.NO),
        (["backend_stale"], 1, Answer.FREE),
        (["backend_refused", "backend_stale"], 2, Answer.FREE),
        (["backend_stale", "backend_stale"], 2, Answer.YES),
        (["backend_stale", "backend_refused"], 2, Answer.YES),
        (["backend_stale", "backend_reset", "backend_reset"], 2, Answer.NO),
        (["backend_timeout"], 9, Answer.NO),
    ],
)
def test_attempts_are_counted_but_one_stale_connection_is_free(
    ends: list[str], attempts: int, answer: Answer
) -> None:
    failure = Failure(ends[-1])

    got = judge(failure, ends, attempts, wrote=False, idempotent=True, replayable=True, begun=False)

    assert got is answer
