"""A data_dir that was copied to another box: two processes would vote as one member."""

from __future__ import annotations

import pytest
from peers_kit import Instance, claim_of, instances, message, run, some, until, with_secret


@pytest.mark.parametrize("copy_comes_first", [False, True])
def test_a_copy_of_a_member_that_runs_is_let_in_nowhere(
    copy_comes_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        copy = Instance(claim_of("a", 1), with_secret())
        async with instances(a, b, copy):
            if copy_comes_first:
                copy.meet(b)
                await until(lambda: copy.reaches(b))
            b.meet(a)
            a.meet(b)
            await until(lambda: a.reaches(b) and b.reaches(a))
            copy.meet(b)
            await until(lambda: 2 in copy.peers.refusals)
            await until(lambda: not copy.reaches(b))
            assert copy.peers.refusals[2].code == "second"
            assert "is a copy: wipe it" in caplog.text
            assert not copy.peers.send(2, message(1, 2))
            assert a.peers.send(2, message(1, 2, 7))
            await until(lambda: b.heard == [(1, message(1, 2, 7))])

    run(test())


def test_a_member_that_has_moved_is_let_in_when_it_runs_no_more_where_it_was() -> None:
    async def test() -> None:
        a, b = some(2, with_secret)
        moved = Instance(claim_of("a", 1), with_secret())
        async with instances(a, b, moved):
            b.meet(a)
            await until(lambda: b.reaches(a))
            moved.meet(b)
            await until(lambda: 2 in moved.peers.refusals)
            await a.peers.close()
            await until(lambda: moved.reaches(b))

    run(test())
