"""Frames are followed however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lb.http1.websocket import GOING_AWAY, GOING_AWAY_MASKED, Frames


def frame(payload: bytes, masked: bool) -> bytes:
    size = len(payload)
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes([0x82, bit | size])
    elif size < 65536:
        head = bytes([0x82, bit | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x82, bit | 127]) + size.to_bytes(8, "big")
    return head + (b"mask" if masked else b"") + payload


frames = st.lists(
    st.builds(
        frame, st.sampled_from([0, 1, 125, 126, 127, 65535, 65536]).map(bytes), st.booleans()
    ),
    min_size=1,
    max_size=5,
)


@given(frames, st.lists(st.integers(0, 400_000), max_size=20))
def test_between_is_true_exactly_between_frames(sent: list[bytes], cuts: list[int]) -> None:
    octets = b"".join(sent)
    ends = {0}
    for each in sent:
        ends.add(max(ends) + len(each))
    follower = Frames()
    at = 0
    for cut in sorted({cut % (len(octets) + 1) for cut in cuts} | {len(octets)}):
        follower.take(octets[at:cut])
        at = cut
        assert follower.between == (at in ends)


def test_goodbyes_are_whole_frames() -> None:
    for octets in (GOING_AWAY, GOING_AWAY_MASKED):
        follower = Frames()
        for at in range(len(octets)):
            assert follower.between == (at == 0)
            follower.take(octets[at : at + 1])
        assert follower.between
