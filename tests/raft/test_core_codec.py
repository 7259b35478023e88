"""Messages as bytes: there and back, and nothing else gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.raft.codec import MESSAGE_BYTES_MAX, NUMBER_MAX, BadMessageError, decode, encode
from lb.raft.messages import (
    ConfState,
    Entry,
    Kind,
    Message,
    MessageType,
    SnapChunk,
    SnapMeta,
)

numbers = st.integers(0, NUMBER_MAX)
members = st.frozensets(st.integers(1, NUMBER_MAX), max_size=5)
crcs = st.integers(0, (1 << 32) - 1)
entries = st.builds(Entry, numbers, numbers, st.sampled_from(Kind), st.binary(max_size=40))
confs = st.builds(lambda a, b: ConfState(a, b - a), members, members)
metas = st.builds(SnapMeta, numbers, numbers, confs)
chunks = st.builds(SnapChunk, metas, numbers, numbers, st.binary(max_size=40), crcs, crcs)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(MessageType))
    some = kind in (MessageType.APPEND, MessageType.PROPOSE)
    return Message(
        type=kind,
        frm=draw(st.integers(1, NUMBER_MAX)),
        to=draw(st.integers(1, NUMBER_MAX)),
        term=draw(numbers),
        log_index=draw(numbers),
        log_term=draw(numbers),
        commit=draw(numbers),
        entries=tuple(draw(st.lists(entries, max_size=4))) if some else (),
        reject=draw(st.booleans()),
        hint_index=draw(numbers),
        hint_term=draw(numbers),
        ctx=draw(st.binary(max_size=20)),
        chunk=draw(chunks) if kind is MessageType.SNAPSHOT else None,
    )


@given(messages())
def test_there_and_back(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages(), st.data())
def test_what_is_cut_short_or_added_to_is_refused(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    end = data.draw(st.integers(0, len(whole) - 1))

    with pytest.raises(BadMessageError):
        decode(whole[:end])
    with pytest.raises(BadMessageError):
        decode(whole + b"\0")


@given(messages(), st.data())
def test_changed_bytes_are_another_message_or_none(message: Message, data: st.DataObject) -> None:
    changed = bytearray(encode(message))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(changed))
    except BadMessageError:
        return

    assert other != message
    assert encode(other) == changed


@given(st.binary(max_size=300))
def test_noise_is_refused_or_read_as_it_is(noise: bytes) -> None:
    try:
        message = decode(noise)
    except BadMessageError:
        return

    assert encode(message) == noise


def test_lengths_are_held_against_what_is_there_before_anything_is_made() -> None:
    whole = bytearray(encode(Message(MessageType.APPEND, 1, 2, 3)))
    whole[-4:] = (0xFFFFFFFF).to_bytes(4, "little")  # So many entries.

    with pytest.raises(BadMessageError, match="too many entries"):
        decode(bytes(whole))
    with pytest.raises(BadMessageError, match="bytes, more than"):
        decode(bytes(MESSAGE_BYTES_MAX + 1))
