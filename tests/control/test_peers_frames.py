"""Frames between members: whole, in order, once, unchanged, from this connection, or not at all."""

from __future__ import annotations

import hmac
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lb.control.peer_frames import (
    BODY_BYTES_MAX,
    GREETING_BYTES_MAX,
    SEAL_BYTES,
    BadFrameError,
    FrameReader,
    FrameWriter,
)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
SAID = [(16, b"first"), (17, b""), (16, b"x" * 300), (19, b"last")]

Frames = list[tuple[int, bytes]]


def writer(key: bytes | None = KEY) -> FrameWriter:
    made = FrameWriter()
    if key is not None:
        made.seal_with(key)
    return made


def reader(key: bytes | None = KEY) -> FrameReader:
    made = FrameReader()
    made.open_up(key)
    return made


def sent(said: Frames = SAID, key: bytes | None = KEY) -> list[bytes]:
    made = writer(key)
    return [made.frame(kind, body) for kind, body in said]


def read(*pieces: bytes, key: bytes | None = KEY) -> tuple[Frames, str]:
    """Return what is handed on of some pieces, and why no more is."""
    made = reader(key)
    got: Frames = []
    try:
        for piece in pieces:
            got.extend(made.feed(piece))
    except BadFrameError as error:
        return got, error.message
    return got, ""


def test_the_bytes_are_those_of_the_page() -> None:
    """docs/group-wire.md says what they are."""
    length = (1 + 5 + 32).to_bytes(4, "little")
    for number, frame in enumerate(sent([(16, b"hello")] * 2)):
        sealed = number.to_bytes(8, "little") + length + b"\x10hello"
        assert frame == length + b"\x10hello" + hmac.digest(KEY, sealed, "sha256")
    assert sent([(17, b"hi")], key=None) == [b"\x03\0\0\0\x11hi"]


@pytest.mark.parametrize("key", [KEY, None])
def test_however_the_stream_is_cut(key: bytes | None) -> None:
    stream = b"".join(sent(key=key))

    assert read(stream, key=key) == (SAID, "")
    assert read(*[stream[at : at + 1] for at in range(len(stream))], key=key) == (SAID, "")
    for cut in range(len(stream)):
        assert read(stream[:cut], stream[cut:], key=key) == (SAID, "")


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=600)), max_size=8),
    st.lists(st.integers(1, 700), max_size=12),
    st.sampled_from([KEY, None]),
)
def test_what_goes_in_comes_out(said: Frames, sizes: list[int], key: bytes | None) -> None:
    stream, pieces = b"".join(sent(said, key)), []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]

    assert read(*pieces, stream, key=key) == (said, "")


def test_every_bit_counts() -> None:
    """Whatever bit flips, the frame that it is in is not handed on, and nothing after it."""
    frames = sent(SAID[:2])
    stream = b"".join(frames)
    for place in range(len(stream)):
        for bit in range(8):
            bent = bytearray(stream)
            bent[place] ^= 1 << bit
            got, why = read(bytes(bent))
            assert got == SAID[: place // len(frames[0]) and 1]
            # A length that grew is found out when what it speaks of has come.
            assert why or place % len(frames[0]) < 4


@pytest.mark.parametrize(
    ("order", "handed_on"),
    [
        ([0, 0], 1),  # Said again.
        ([1], 0),  # One is missing.
        ([0, 2], 1),
        ([1, 0], 0),  # In another order.
        ([0, 1, 2, 1, 3], 3),
    ],
)
def test_frames_out_of_place(order: list[int], handed_on: int) -> None:
    frames = sent()

    got, why = read(b"".join(frames[number] for number in order))

    assert got == SAID[:handed_on]
    assert why == "a frame whose seal does not fit"


def test_frames_of_another_connection_or_direction() -> None:
    ours, theirs = sent(), sent(key=OTHER_KEY)

    assert read(theirs[0])[1]
    assert read(ours[0], theirs[1]) == (SAID[:1], "a frame whose seal does not fit")
    assert read(*sent(key=None))[1], "one without a seal"


def test_two_frames_cannot_be_made_one_nor_one_two() -> None:
    first, second, *_ = sent()
    joined = struct.pack("<I", len(first) + len(second) - 4) + first[4:] + second

    assert read(joined) == ([], "a frame whose seal does not fit")


@pytest.mark.parametrize(
    ("key", "length", "fits"),
    [
        (None, 0, False),
        (None, 1, True),
        (None, BODY_BYTES_MAX + 1, True),
        (None, BODY_BYTES_MAX + 2, False),
        (None, 0xFFFFFFFF, False),
        (KEY, SEAL_BYTES, False),
        (KEY, 1 + SEAL_BYTES, True),
        (KEY, BODY_BYTES_MAX + SEAL_BYTES + 1, True),
        (KEY, BODY_BYTES_MAX + SEAL_BYTES + 2, False),
    ],
)
def test_a_length_is_judged_before_what_it_speaks_of(
    key: bytes | None, length: int, fits: bool
) -> None:
    """Four bytes are enough, in one piece or not."""
    head = struct.pack("<I", length)
    for pieces in ((head,), (head[:3], head[3:])):
        got, why = read(*pieces, key=key)
        assert got == []
        assert (why == "") == fits


def test_before_the_handshake_frames_are_small() -> None:
    def feed(size: int) -> Frames:
        return list(FrameReader().feed(writer(None).frame(1, b"x" * size)))

    assert feed(GREETING_BYTES_MAX)
    with pytest.raises(BadFrameError):
        feed(GREETING_BYTES_MAX + 1)


def test_seals_count_from_the_next_frame_on_also_within_one_read() -> None:
    made, greeting = FrameReader(), writer(None).frame(3, b"proof")
    stream = made.feed(greeting + b"".join(sent()))

    assert next(stream) == (3, b"proof")
    made.open_up(KEY)
    assert list(stream) == SAID


@given(st.lists(st.binary(max_size=80), max_size=6), st.sampled_from([KEY, None]))
@example([b"\1\0\0\0\x10"], None)
def test_garbage_is_refused_or_waited_on_but_never_grows(
    pieces: list[bytes], key: bytes | None
) -> None:
    made = reader(key)
    try:
        for piece in pieces:
            for kind, body in made.feed(piece):
                assert key is None
                assert 0 <= kind < 256
                assert len(body) <= 480
    except BadFrameError:
        return
    assert made.halfway <= sum(map(len, pieces))


@given(st.data())
def test_a_bent_stream_hands_on_a_beginning_of_what_was_said(data: st.DataObject) -> None:
    """Cut out, put in, repeat, overwrite: what comes through is what was said, up to there."""
    stream = b"".join(sent())
    for _ in range(data.draw(st.integers(1, 3))):
        low = data.draw(st.integers(0, len(stream)))
        high = data.draw(st.integers(low, len(stream)))
        middle = data.draw(st.sampled_from([b"", stream[low:high] * 2, b"\0", stream[high:]]))
        stream = stream[:low] + middle + stream[high:]

    got, _ = read(stream)

    assert got == SAID[: len(got)]
