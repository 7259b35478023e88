"""
Messages as bytes, for wires. Strict: what `encode` would not have made is refused.

Every length is held against a bound before anything is made of it. There is one way to write
each message, so a message that was decoded and encoded again is the same bytes. What a message
says is not judged here; that is for `Node.step`.
"""

from __future__ import annotations

import struct
from typing import Final

from lb.errors import AccordError
from lb.raft.members import LEARNERS_MAX, VOTERS_MAX
from lb.raft.messages import (
    ConfState,
    Entry,
    Kind,
    Message,
    MessageType,
    SnapChunk,
    SnapMeta,
)

MESSAGE_BYTES_MAX: Final = 4 << 20
ENTRIES_MAX: Final = 65_536
CTX_BYTES_MAX: Final = 64
NUMBER_MAX: Final = (1 << 63) - 1

_REJECT: Final = 1
_CHUNK: Final = 2

# type, flags, from, to, term, log index and term, commit, hint index and term, ctx, entries
_HEAD: Final = struct.Struct("<BBQQQQQQQQBI")
_ENTRY: Final = struct.Struct("<QQBI")  # index, term, kind, length
# index, term, voters, learners, offset, total, checksum, checksum of the whole, length
_CHUNK_HEAD: Final = struct.Struct("<QQHHQQIII")
_MEMBER: Final = struct.Struct("<Q")
_ENDS: Final = struct.Struct("<2xQQ")  # Of a head, whom it is from and to.

_WITH_ENTRIES: Final = frozenset({MessageType.APPEND, MessageType.PROPOSE})
_TYPES: Final = {int(kind): kind for kind in MessageType}
_KINDS: Final = {int(kind): kind for kind in Kind}


class BadMessageError(AccordError):
    """Bytes that are no message. Whoever sent them is not one of us, or is broken."""


def encode(message: Message) -> bytes:
    """Make a message's bytes."""
    flags = (_REJECT if message.reject else 0) | (_CHUNK if message.chunk else 0)
    parts = [
        _HEAD.pack(
            message.type,
            flags,
            message.frm,
            message.to,
            message.term,
            message.log_index,
            message.log_term,
            message.commit,
            message.hint_index,
            message.hint_term,
            len(message.ctx),
            len(message.entries),
        ),
        message.ctx,
    ]
    for entry in message.entries:
        parts += (_ENTRY.pack(entry.index, entry.term, entry.kind, len(entry.data)), entry.data)
    if message.chunk is not None:
        parts += _encode_chunk(message.chunk)
    return b"".join(parts)


def _encode_chunk(chunk: SnapChunk) -> list[bytes]:
    meta = chunk.meta
    voters, learners = sorted(meta.conf.voters), sorted(meta.conf.learners)
    head = _CHUNK_HEAD.pack(
        meta.index,
        meta.term,
        len(voters),
        len(learners),
        chunk.offset,
        chunk.total,
        chunk.crc,
        chunk.whole_crc,
        len(chunk.data),
    )
    return [head, *map(_MEMBER.pack, voters), *map(_MEMBER.pack, learners), chunk.data]


def decode(data: bytes) -> Message:
    """Read what `encode` made. BadMessageError: it did not."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise BadMessageError(f"a message of {len(data)} bytes, more than {MESSAGE_BYTES_MAX}")
    return _Reader(data).message()


def ends_of(data: bytes) -> tuple[int, int]:
    """Read whom a message is from and to, and nothing else of it. BadMessageError: cut short."""
    refuse(len(data) < _HEAD.size, "cut short")
    frm, to = _ENDS.unpack_from(data)
    return frm, to


class _Reader:
    """Goes along the bytes of one message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def message(self) -> Message:
        kind, flags, *numbers, ctx_bytes, count = self._unpack(_HEAD)
        refuse(kind not in _TYPES, "a type of message that this version does not know")
        refuse(flags > _REJECT | _CHUNK, "flags that this version does not know")
        refuse(max(numbers) > NUMBER_MAX, "a number out of range")
        frm, to, term, log_index, log_term, commit, hint_index, hint_term = numbers
        refuse(not frm or not to, "from nobody, or to nobody")
        refuse(ctx_bytes > CTX_BYTES_MAX, "too long a ctx")
        refuse(count > ENTRIES_MAX, "too many entries")
        type_ = _TYPES[kind]
        refuse(bool(count) and type_ not in _WITH_ENTRIES, "entries where none belong")
        has_chunk = bool(flags & _CHUNK)
        refuse(has_chunk is not (type_ is MessageType.SNAPSHOT), "a snapshot, or none, wrongly")
        ctx = self._take(ctx_bytes)
        entries = tuple([self._entry() for _ in range(count)])
        chunk = self._chunk() if has_chunk else None
        refuse(self._at != len(self._data), "bytes after its end")
        return Message(
            type=type_,
            frm=frm,
            to=to,
            term=term,
            log_index=log_index,
            log_term=log_term,
            commit=commit,
            entries=entries,
            reject=bool(flags & _REJECT),
            hint_index=hint_index,
            hint_term=hint_term,
            ctx=ctx,
            chunk=chunk,
        )

    def _entry(self) -> Entry:
        index, term, kind, size = self._unpack(_ENTRY)
        refuse(kind not in _KINDS, "a kind of entry that this version does not know")
        refuse(max(index, term) > NUMBER_MAX, "a number out of range")
        return Entry(index, term, _KINDS[kind], self._take(size))

    def _chunk(self) -> SnapChunk:
        index, term, voters, learners, offset, total, crc, whole_crc, size = self._unpack(
            _CHUNK_HEAD
        )
        refuse(max(index, term, offset, total) > NUMBER_MAX, "a number out of range")
        refuse(voters > VOTERS_MAX or learners > LEARNERS_MAX, "too many members")
        conf = ConfState(self._members(voters), self._members(learners))
        refuse(bool(conf.voters & conf.learners), "a member that is both voter and learner")
        meta = SnapMeta(index, term, conf)
        return SnapChunk(meta, offset, total, self._take(size), crc, whole_crc)

    def _members(self, count: int) -> frozenset[int]:
        members = [int(self._unpack(_MEMBER)[0]) for _ in range(count)]
        ascending = all(one < other for one, other in zip([0, *members], members, strict=False))
        refuse(not ascending or max(members, default=0) > NUMBER_MAX, "members out of order")
        return frozenset(members)

    def _unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self._take(form.size))

    def _take(self, size: int) -> bytes:
        start = self._at
        self._at += size
        refuse(self._at > len(self._data), "cut short")
        return self._data[start : self._at]


def refuse(wrong: bool, why: str) -> None:
    """BadMessageError if something is wrong."""
    if wrong:
        raise BadMessageError(f"not a message of a member: {why}")
