"""A data_dir that was copied to another box: two processes would vote as one member."""

from __future__ import annotations

import asyncio

import pytest
from peers_kit import Instance, claim_of, instances, message, run, some, until, with_secret

from lb.control import peers
from lb.control.peer_copies import LATELY, Copies
from lb.control.peers import Security


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
            assert "is a copy: wipe it" in copy.peers.refusals[2].hint
            assert "a second process that says it is a is refused" in b.peers.copies.told()
            assert a.peers.copies.told() == ""
            assert not copy.peers.send(2, message(1, 2))
            assert a.peers.send(2, message(1, 2, 7))
            await until(lambda: b.heard == [(1, message(1, 2, 7))])

    run(test())


def test_a_copy_that_is_gone_is_told_of_no_more() -> None:
    now = [100.0]
    copies = Copies(lambda: now[0])

    assert copies.refuse("a").code == "second"
    assert copies.told().startswith("a second process that says it is a is refused: ")
    now[0] += LATELY
    assert copies.told() == ""


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


def test_a_stranger_behind_a_member_s_address_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the silence about a member does not end that about whoever shares its host."""
    monkeypatch.setattr(peers, "STOOD", 0.3)

    async def test() -> None:
        a, b = some(2, with_secret)
        stranger = Instance(claim_of("x", 9), another_secret())
        async with instances(a, b, stranger):
            a.meet(b)
            b.meet(a)
            stranger.meet(a)
            await until(lambda: a.reaches(b) and "which says it is x" in caplog.text)
            began = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > began + 2.0)
            told = [each for each in caplog.messages if "which says it is x" in each]
            assert len(told) == 1

    run(test())


def another_secret() -> Security:
    return Security.secret((b"not the same secret, by no means",))
