"""How members make sure of each other: every step, and everything that must not get through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers_kit import GROUP, claim_of

from lb.control.peer_frames import FrameWriter, Kind
from lb.control.peer_handshake import (
    Answerer,
    Claim,
    Dialer,
    Greeting,
    Mode,
    Ourselves,
    Purpose,
    Refusal,
    peek,
    read_refusal,
)

NEW, OLD, OTHER = b"the new secret", b"the old secret", b"another group's"
A, B = claim_of("a", 1), claim_of("b", 2)


def side(claim: Claim, *secrets: bytes, mode: Mode = Mode.SECRET, draw: int = 0) -> Ourselves:
    """Return what a side is made of; `draw` stands for what it drew by chance."""
    drawn = claim.name.encode()[0] + draw
    return Ourselves(claim, mode, secrets, bytes([drawn]) * 8, bytes([drawn]) * 32)


def shake(dialer: Dialer, answerer: Answerer) -> None:
    proof = dialer.welcomed(answerer.greeted(dialer.hello(Purpose.LINK)))
    dialer.proved(answerer.proved(proof))


def code_of(work: Any) -> str:
    with pytest.raises(Refusal) as refused:
        work()
    return refused.value.code


@pytest.mark.parametrize("mode", Mode)
def test_both_learn_who_the_other_is(mode: Mode) -> None:
    secrets = (NEW,) if mode is Mode.SECRET else ()
    dialer, answerer = Dialer(side(A, *secrets, mode=mode)), Answerer(side(B, *secrets, mode=mode))

    shake(dialer, answerer)

    assert (dialer.peer, answerer.peer) == (B, A)
    assert dialer.protocol == answerer.protocol == 1
    if mode is not Mode.SECRET:
        assert dialer.keys is answerer.keys is None
    else:
        assert dialer.keys is not None
        assert answerer.keys is not None
        assert dialer.keys.send == answerer.keys.receive
        assert dialer.keys.receive == answerer.keys.send
        assert dialer.keys.send != dialer.keys.receive


def test_the_bytes_are_those_of_the_page() -> None:
    """docs/group-wire.md says what they are; whoever changes them changes the protocol."""
    dialer, answerer = Dialer(side(A, NEW)), Answerer(side(B, NEW))
    hello = dialer.hello(Purpose.LINK)

    text = (
        f'{{"group":"{GROUP}","member":1,"name":"a","address":"127.0.0.1:1",'
        '"version":"1.0","build":"b1","level":1}'
    ).encode()
    head = b"accrdgrp" + b"\1\0\1\0" + b"\1\1" + b"a" * 8 + b"a" * 32
    assert hello == head + len(text).to_bytes(2, "little") + text
    proof = dialer.welcomed(answerer.greeted(hello))
    assert proof.hex() == PROOFS[0]
    answer = answerer.proved(proof)
    assert answer.hex() == PROOFS[1]
    dialer.proved(answer)
    assert dialer.keys is not None
    assert (dialer.keys.send.hex(), dialer.keys.receive.hex()) == PROOFS[2:]


PROOFS = (
    "e33c894f34af4e608dd2c60077e9770fbe08250ae10f7a569c6b21cbf6a86c67",
    "4ca5642de0faf6092d4c96da79d6925404aece9a03bdfde0d967e9afda5c0550",
    "831d232bd0794de0daa24d98cdfadd5c5bf7ea64e987c423b9005f1d26c55a5b",
    "04d9319e7dd917881342a1de1e8a6b9ee3dbb437a93d2d65191d41139ca9698c",
)


@pytest.mark.parametrize(
    ("dials", "answers", "code"),
    [
        ([NEW], [NEW], ""),
        ([NEW, OLD], [OLD, NEW], ""),  # In the middle of a change, either way round.
        ([OLD, NEW], [NEW, OLD], ""),
        ([NEW], [NEW, OLD], ""),
        ([OLD], [NEW], "wrong-secret"),
        ([NEW], [OTHER], "wrong-secret"),
        ([OTHER, NEW], [NEW], "wrong-secret"),  # The first is what counts for a dialer.
    ],
)
def test_secrets_while_they_change(dials: list[bytes], answers: list[bytes], code: str) -> None:
    dialer, answerer = Dialer(side(A, *dials)), Answerer(side(B, *answers))

    if code:
        assert code_of(lambda: shake(dialer, answerer)) == code
        assert dialer.keys is answerer.keys is None
    else:
        shake(dialer, answerer)
        assert dialer.secret == answerer.secret == dials[0]


def test_a_proof_is_good_once() -> None:
    dialer, answerer = Dialer(side(A, NEW)), Answerer(side(B, NEW))
    hello = dialer.hello(Purpose.LINK)
    proof = dialer.welcomed(answerer.greeted(hello))
    answerer.proved(proof)
    later = Answerer(side(B, NEW, draw=9))
    later.greeted(hello)

    assert code_of(lambda: later.proved(proof)) == "wrong-secret"


def test_an_answer_is_good_once() -> None:
    dialer, answerer = Dialer(side(A, NEW)), Answerer(side(B, NEW))
    welcome = answerer.greeted(dialer.hello(Purpose.LINK))
    answer = answerer.proved(dialer.welcomed(welcome))
    later = Dialer(side(A, NEW, draw=9))
    later.hello(Purpose.LINK)
    later.welcomed(welcome)

    assert code_of(lambda: later.proved(answer)) == "wrong-secret"


def test_what_we_say_cannot_be_sent_back_to_us() -> None:
    dialer = Dialer(side(A, NEW))
    hello = dialer.hello(Purpose.LINK)
    assert code_of(lambda: dialer.welcomed(hello)) == "ourselves"

    dialer = Dialer(side(A, NEW))
    proof = dialer.welcomed(Answerer(side(B, NEW)).greeted(dialer.hello(Purpose.LINK)))
    assert code_of(lambda: dialer.proved(proof)) == "wrong-secret"


def test_a_proof_does_not_go_between_two_others() -> None:
    """Somebody who answers as b cannot use what a proved to c."""
    dialer, b, c = (
        Dialer(side(A, NEW)),
        Answerer(side(B, NEW)),
        Answerer(side(claim_of("c", 3), NEW)),
    )
    hello = dialer.hello(Purpose.LINK)
    c.greeted(hello)
    proof = dialer.welcomed(b.greeted(hello))

    assert code_of(lambda: c.proved(proof)) == "wrong-secret"


def test_nobody_can_change_a_word_on_the_way() -> None:
    hello = Dialer(side(A, NEW)).hello(Purpose.LINK)
    for place in range(len(hello)):
        for bit in (1, 0x20):
            dialer, answerer = Dialer(side(A, NEW)), Answerer(side(B, NEW))
            changed = bytearray(dialer.hello(Purpose.LINK))
            changed[place] ^= bit
            with pytest.raises(Refusal):
                answerer.proved(dialer.welcomed(answerer.greeted(bytes(changed))))
    welcome = Answerer(side(B, NEW)).greeted(hello)
    for place in range(len(welcome)):
        dialer, answerer = Dialer(side(A, NEW)), Answerer(side(B, NEW))
        answerer.greeted(dialer.hello(Purpose.LINK))
        changed = bytearray(welcome)
        changed[place] ^= 1
        with pytest.raises(Refusal):
            answerer.proved(dialer.welcomed(bytes(changed)))


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [((1, 1), (1, 1), 1), ((1, 2), (1, 1), 1), ((2, 4), (3, 5), 4), ((1, 1), (2, 3), 0)],
)
def test_protocols_meet_at_the_newest_of_both(
    ours: tuple[int, int], theirs: tuple[int, int], agreed: int
) -> None:
    dialer = Dialer(side(replace(A, protocol=ours), NEW))
    answerer = Answerer(side(replace(B, protocol=theirs), NEW))

    if agreed:
        shake(dialer, answerer)
        assert dialer.protocol == answerer.protocol == agreed
    else:
        assert code_of(lambda: shake(dialer, answerer)) == "protocol"


@pytest.mark.parametrize("theirs", [Mode.NONE, Mode.TLS])
def test_one_with_a_secret_does_not_talk_without(theirs: Mode) -> None:
    dialer, answerer = Dialer(side(A, mode=theirs)), Answerer(side(B, NEW))

    assert code_of(lambda: shake(dialer, answerer)) == "security"


def test_a_copy_of_a_data_dir_is_found_out() -> None:
    dialer, answerer = Dialer(side(A, NEW)), Answerer(side(replace(B, member=1), NEW))

    assert code_of(lambda: shake(dialer, answerer)) == "same-member"


@pytest.mark.parametrize(
    "claim",
    [
        replace(A, name=""),
        replace(A, name="a" * 64),
        replace(A, name="a\nb"),
        replace(A, group="0" * 65),
        replace(A, member=-1),
        replace(A, member=1 << 63),
        replace(A, address="x" * 301),
        replace(A, version="\x1b[2J"),
        replace(A, level=1 << 20),
    ],
)
def test_claims_out_of_bounds(claim: Claim) -> None:
    answerer = Answerer(side(B, NEW))
    drawn = Ourselves(claim, Mode.SECRET, (NEW,), b"x" * 8, b"x" * 32)

    assert code_of(lambda: answerer.greeted(Dialer(drawn).hello(Purpose.LINK))) == "garbage"


@given(st.binary(max_size=300))
def test_garbage_is_no_greeting(data: bytes) -> None:
    with pytest.raises(Refusal):
        Answerer(side(B, NEW)).greeted(data)


@given(st.data())
def test_a_greeting_that_was_bent_is_refused_or_read(data: st.DataObject) -> None:
    hello = bytearray(Dialer(side(A, NEW)).hello(Purpose.LINK))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(hello) - 1))
        hello[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(hello)))
    try:
        claim = Greeting.read(bytes(hello[:cut])).claim
    except Refusal:
        return
    assert claim.name.isprintable()
    assert claim.protocol[0] <= claim.protocol[1]


def test_a_newer_version_may_claim_more() -> None:
    hello = Dialer(side(A, NEW)).hello(Purpose.LINK)
    text = claim_of("a", 1).to_bytes()[:-1] + b',"colour":"blue"}'
    longer = hello[:54] + len(text).to_bytes(2, "little") + text

    assert Greeting.read(longer).claim == A


def test_who_dials_can_be_read_from_outside() -> None:
    frame = FrameWriter().frame(Kind.HELLO, Dialer(side(A, NEW)).hello(Purpose.LINK))

    assert peek(frame + b"more") == A
    assert [peek(frame[:size]) for size in range(len(frame))] == [None] * len(frame)
    assert peek(b"\x10\0\0\0" + b"GET / HTTP/1.1\r\n" * 20) is None


@given(st.binary(max_size=200))
def test_any_refusal_can_be_read(data: bytes) -> None:
    assert read_refusal(data).heard


def test_a_refusal_keeps_its_words() -> None:
    refusal = read_refusal(Refusal("removed", "b was removed", "wipe it").to_bytes())

    assert (refusal.code, refusal.message, refusal.hint) == ("removed", "b was removed", "wipe it")
