"""The form of a member's log on disk: segments, frames and records, written and read back.

No system calls here: bytes in, bytes out. `storage` does the calls, on a real disk or a fake.

A segment is a file of one size, zeroed beforehand: a header in its first sector, then frames.
A frame is all that one fdatasync makes sure, and starts at a sector of its own, so that writing
one never touches a sector that is sure already. Its header has a checksum of its own, which
makes its length one to be trusted, and the checksum of the frame before: a chain. The next
frame is written only after the sync of this one returned, so a frame that follows a bad one
proves that the bad one was once sure.

Reading therefore knows two kinds of bad frames. A *torn tail* is what a power cut leaves of a
write that nobody was told of: the last frame of the last segment, with a sector missing. It is
cut off, and nothing is lost. Anything else is *damage* to what was promised: `DamagedLog`, and
this member must not vote again, since it may have forgotten a vote.

Not here: ordinary CRC-32 for machines without CRC-32C in hardware. The package has a form in
plain Python for those, and one checksum is easier to trust than two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import google_crc32c

from lb.errors import StartError
from lb.raft.messages import ConfState, Entry, HardState, Kind, SnapMeta

SECTOR = 512
FORMAT = 1
CRC32C = 1  # The kind of checksum, in a segment's header. There is no other yet.

SEGMENT_MAGIC = b"accrdwal"
FRAME_MAGIC = int.from_bytes(b"lbfr", "little")

# magic, format, checksum kind, size, group, member, number, first frame's seq, first index,
# checksum of the last frame of the segment before
_SEGMENT = struct.Struct("<8sHH4xQ16sQQQQI")
# magic, body length, body's checksum, checksum of what precedes, natural zero sectors, reserved,
# seq, first index, format, flags
_FRAME = struct.Struct("<IIIIIIQQBB6x")
_CRC = struct.Struct("<I")
FRAME_HEAD = _FRAME.size + _CRC.size  # And then the header's own checksum.

_HARD = struct.Struct("<BQQQ")  # 1, term, vote, commit
_ENTRY = struct.Struct("<BQQBI")  # 2, index, term, kind, length; data follows
_MARK = struct.Struct("<BQQBHH")  # 3, index, term, restart, voters, learners; ids follow
_ZEROS = bytes(SECTOR)


class DamagedLog(StartError):  # noqa: N818  # It says what was found, not what went wrong here.
    """What this member promised to keep is not all there. It must not vote under its old id."""

    def __init__(self, file: str, offset: int, why: str) -> None:
        super().__init__(
            f"{file}, byte {offset}: {why}",
            "this member's log is damaged: wipe it and let it join again under a new id",
        )
        self.file = file
        self.offset = offset
        self.why = why


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose log it is: the group's random id and the member's."""

    group: bytes
    member: int


@dataclass(frozen=True, slots=True)
class Mark:
    """From here on the snapshot of `meta` stands for all up to its index.

    `restart`: what the log held was not what the snapshot holds, and none of it counts.
    """

    meta: SnapMeta
    restart: bool


Record = HardState | Entry | Mark


@dataclass(frozen=True, slots=True)
class Link:
    """Where the chain stands: the number and checksum that the next frame continues from."""

    seq: int
    crc: int


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """A segment's first sector."""

    identity: Identity
    number: int  # 1, 2, 3 without a gap
    size: int
    first_index: int  # of the first entry that it may hold, unless a later leader wrote over it
    before: Link  # the last frame of the segment before

    def encode(self) -> bytes:
        """Make the sector."""
        head = _SEGMENT.pack(
            SEGMENT_MAGIC,
            FORMAT,
            CRC32C,
            self.size,
            self.identity.group,
            self.identity.member,
            self.number,
            self.before.seq + 1,
            self.first_index,
            self.before.crc,
        )
        return (head + _CRC.pack(checksum(head))).ljust(SECTOR, b"\0")

    @property
    def salt(self) -> int:
        """What all checksums in this segment start from, so that no other's frame fits."""
        return checksum(self.encode())


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame, read back."""

    seq: int
    first_index: int  # of its first entry; 0: it has none
    offset: int
    size: int
    crc: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Torn:
    """What a power cut left of the last write: from `offset` on, nothing counts."""

    offset: int
    stop: int
    why: str


@dataclass(slots=True)
class Segment:
    """One segment, read back."""

    name: str
    header: SegmentHeader
    frames: list[Frame] = field(default_factory=list)
    end: int = SECTOR  # Where the next frame goes.
    torn: Torn | None = None

    @property
    def link(self) -> Link:
        """What the next frame continues from."""
        if self.frames:
            return Link(self.frames[-1].seq, self.frames[-1].crc)
        return self.header.before

    @property
    def last_index(self) -> int:
        """The highest index of any entry in it; 0 without entries."""
        records = (record for frame in self.frames for record in frame.records)
        return max((r.index for r in records if isinstance(r, Entry)), default=0)


def checksum(data: bytes, start: int = 0) -> int:
    """CRC-32C of `data`, going on from `start`."""
    return int(google_crc32c.extend(start, data))


def segment_name(number: int) -> str:
    """The file of the segment with this number; names sort as numbers do."""
    return f"wal-{number:010d}"


def padded(size: int) -> int:
    """`size` up to the end of its sector."""
    return -(-size // SECTOR) * SECTOR


# --- Writing ----------------------------------------------------------------------------------


def encode_records(records: Iterable[Record]) -> bytes:
    """Make a frame's body."""
    parts: list[bytes] = []
    for record in records:
        match record:
            case HardState(term=term, vote=vote, commit=commit):
                parts.append(_HARD.pack(1, term, vote, commit))
            case Entry(index=index, term=term, kind=kind, data=data):
                parts += (_ENTRY.pack(2, index, term, kind, len(data)), data)
            case Mark(meta=meta, restart=restart):
                voters, learners = sorted(meta.conf.voters), sorted(meta.conf.learners)
                counts = len(voters), len(learners)
                parts.append(_MARK.pack(3, meta.index, meta.term, restart, *counts))
                parts.append(struct.pack(f"<{sum(counts)}Q", *voters, *learners))
    return b"".join(parts)


def encode_frame(salt: int, before: Link, records: Sequence[Record]) -> tuple[bytes, Link]:
    """Make the frame that follows `before`, and the link that the next one follows."""
    body = encode_records(records)
    first = next((record.index for record in records if isinstance(record, Entry)), 0)
    length = len(body)
    # Padded with ones, so that no single flipped bit makes the last sector look unwritten.
    body = body.ljust(padded(FRAME_HEAD + length) - FRAME_HEAD, b"\xff")
    head = _FRAME.pack(
        FRAME_MAGIC,
        length,
        checksum(body, salt),
        before.crc,
        _zero_sectors(b"\1" * FRAME_HEAD + body),
        0,
        before.seq + 1,
        first,
        FORMAT,
        0,
    )
    crc = checksum(head, salt)
    return head + _CRC.pack(crc) + body, Link(before.seq + 1, crc)


def _zero_sectors(data: bytes) -> int:
    """Count the sectors without a single bit set: what an unwritten sector looks like."""
    if _ZEROS not in data:
        return 0
    return sum(data[at : at + SECTOR] == _ZEROS for at in range(0, len(data), SECTOR))


# --- Reading ----------------------------------------------------------------------------------


def read_segment(name: str, data: bytes, before: Segment | None, last: bool) -> Segment:
    """
    Read a segment that follows `before`, if that is known. DamagedLog, unless all is as it was.

    Only the `last` segment may have a torn tail.
    """
    segment = open_segment(name, data, before)
    read_frames(segment, data, last)
    return segment


def open_segment(name: str, data: bytes, before: Segment | None) -> Segment:
    """Read a segment's header only."""
    segment = Segment(name, _read_header(name, data))
    if before is not None:
        _check_follows(segment, before)
    return segment


def read_frames(segment: Segment, data: bytes, last: bool) -> None:
    """Read a segment's frames. Those before a damaged one are in `segment` even so."""
    salt = segment.header.salt
    while segment.end < segment.header.size:
        found = _read_frame(segment, data, salt)
        if found is None:
            break
        if isinstance(found, Torn):
            if not last:
                raise DamagedLog(segment.name, found.offset, f"{found.why}, yet segments follow")
            segment.torn = found
            break
        segment.frames.append(found)
        segment.end += found.size


def _read_header(name: str, data: bytes) -> SegmentHeader:
    sector = data[:SECTOR]
    if len(sector) < SECTOR:
        raise DamagedLog(name, len(sector), "the file ends within its header")
    magic, form, kind, size, group, member, number, seq, first, crc = _SEGMENT.unpack_from(sector)
    if magic != SEGMENT_MAGIC:
        raise DamagedLog(name, 0, "it does not begin as a segment of a log does")
    if form != FORMAT or kind != CRC32C:
        raise DamagedLog(name, 8, f"its format is {form}.{kind}; we read {FORMAT}.{CRC32C}")
    header = SegmentHeader(Identity(group, member), number, size, first, Link(seq - 1, crc))
    if seq == 0 or header.encode() != sector:
        raise DamagedLog(name, 0, "its header does not fit its checksum")
    if segment_name(number) != name.rpartition("/")[2]:
        raise DamagedLog(name, 0, f"it is segment {number} by its header")
    if len(data) > size:
        raise DamagedLog(name, size, f"the file goes on beyond the {size} bytes it was made with")
    return header


def _check_follows(segment: Segment, before: Segment) -> None:
    header, name = segment.header, segment.name
    if header.identity != before.header.identity:
        raise DamagedLog(name, 0, "it belongs to another member or group than the one before it")
    if header.number != before.header.number + 1:
        raise DamagedLog(name, 0, f"segment {before.header.number + 1} is missing")
    if header.before != before.link:
        raise DamagedLog(
            before.name,
            before.end,
            f"it ends with frame {before.link.seq}, but {name} goes on from "
            f"frame {header.before.seq}",
        )


def _read_frame(segment: Segment, data: bytes, salt: int) -> Frame | Torn | None:
    """Read what is at the end of the frames so far: one more, a torn one, or nothing."""
    offset, before = segment.end, segment.link
    sector = data[offset : offset + SECTOR]
    if not any(sector):
        rest = data[offset:]
        if rest.count(0) == len(rest):
            return None
        return _torn(segment, data, salt, offset + SECTOR, "the frame's first sector is missing")
    if len(sector) < FRAME_HEAD:
        return Torn(offset, len(data), "the file ends within the frame's header")
    head = _read_frame_head(sector, salt)
    if head is None:
        raise DamagedLog(segment.name, offset, "a frame's header does not fit its checksum")
    if (head.seq, head.before) != (before.seq + 1, before.crc):
        raise DamagedLog(
            segment.name, offset, f"frame {head.seq} stands where {before.seq + 1} should"
        )
    return _read_body(segment, data, salt, head)


def _read_body(segment: Segment, data: bytes, salt: int, head: _FrameHead) -> Frame | Torn:
    """Read the rest of a frame whose header is whole, and can be believed."""
    offset = segment.end
    stop = offset + padded(FRAME_HEAD + head.length)
    if stop > segment.header.size:
        raise DamagedLog(segment.name, offset, "a frame is longer than its segment")
    if stop > len(data):
        return Torn(offset, len(data), "the file ends within the frame")
    body = data[offset + FRAME_HEAD : stop]
    if checksum(body, salt) != head.body_crc:
        if _zero_sectors(data[offset:stop]) <= head.zero_sectors:
            raise DamagedLog(segment.name, offset, "a frame does not fit its checksum")
        return _torn(segment, data, salt, stop, "a sector of the frame is missing")
    try:
        records = tuple(decode_records(body[: head.length]))
    except (ValueError, struct.error) as error:
        raise DamagedLog(segment.name, offset, f"a whole frame makes no sense: {error}") from None
    return Frame(head.seq, head.first_index, offset, stop - offset, head.crc, records)


def _torn(segment: Segment, data: bytes, salt: int, stop: int, why: str) -> Torn:
    """Say that the next frame is torn, unless a later one proves that it was whole once."""
    for at in range(stop, len(data), SECTOR):
        head = _read_frame_head(data[at : at + SECTOR], salt)
        if head is not None and head.seq > segment.link.seq:
            raise DamagedLog(segment.name, segment.end, f"{why}, yet frame {head.seq} follows")
    return Torn(segment.end, stop, why)


@dataclass(frozen=True, slots=True)
class _FrameHead:
    length: int
    body_crc: int
    before: int
    zero_sectors: int
    seq: int
    first_index: int
    crc: int


def _read_frame_head(sector: bytes, salt: int) -> _FrameHead | None:
    if len(sector) < FRAME_HEAD:
        return None
    magic, length, body_crc, before, zeros, _, seq, first, form, _ = _FRAME.unpack_from(sector)
    (crc,) = _CRC.unpack_from(sector, _FRAME.size)
    if magic != FRAME_MAGIC or form != FORMAT or checksum(sector[: _FRAME.size], salt) != crc:
        return None
    return _FrameHead(length, body_crc, before, zeros, seq, first, crc)


def decode_records(body: bytes) -> Iterable[Record]:
    """Read a frame's body; ValueError or struct.error if it is not one."""
    at = 0
    while at < len(body):
        kind = body[at]
        if kind == 1:
            _, term, vote, commit = _HARD.unpack_from(body, at)
            at += _HARD.size
            yield HardState(term, vote, commit)
        elif kind == 2:
            _, index, term, entry_kind, length = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
            if at + length > len(body):
                raise ValueError(f"entry {index} is longer than its frame")
            yield Entry(index, term, Kind(entry_kind), body[at : at + length])
            at += length
        elif kind == 3:
            _, index, term, restart, voters, learners = _MARK.unpack_from(body, at)
            at += _MARK.size
            ids = struct.unpack_from(f"<{voters + learners}Q", body, at)
            at += 8 * len(ids)
            conf = ConfState(frozenset(ids[:voters]), frozenset(ids[voters:]))
            yield Mark(SnapMeta(index, term, conf), bool(restart))
        else:
            raise ValueError(f"there is no record of kind {kind}")


# --- From records to what a member knew -------------------------------------------------------


class Replay:
    """Takes in all records in order, and holds what they come to."""

    def __init__(self) -> None:
        self.hard: HardState | None = None
        self.mark: SnapMeta | None = None
        self.entries: list[Entry] = []  # Without gaps; may begin anywhere up to mark.index + 1.

    def take(self, record: Record) -> None:
        """Take in one record; ValueError if it cannot follow what came before."""
        match record:
            case HardState():
                self._take_hard(record)
            case Mark(meta=meta, restart=restart):
                if self.mark is not None and meta.index < self.mark.index:
                    raise ValueError(f"snapshot {meta.index} after {self.mark.index}")
                self.mark = meta
                if restart:
                    self.entries.clear()
            case Entry(index=index):
                self._take_entry(record, index)

    def _take_hard(self, hard: HardState) -> None:
        if self.hard is not None and hard.term < self.hard.term:
            raise ValueError(f"term {hard.term} after {self.hard.term}")
        self.hard = hard

    def _take_entry(self, entry: Entry, index: int) -> None:
        if self.entries:
            first = self.entries[0].index
            if index > first + len(self.entries):
                raise ValueError(f"entry {index} after {self.entries[-1].index}")
            # An entry takes the place of its old self and of all that followed that.
            del self.entries[max(0, index - first) :]
        self.entries.append(entry)

    def finish(self) -> tuple[HardState, SnapMeta]:
        """What is certain now; ValueError if what must be there is not."""
        if self.hard is None or self.mark is None:
            raise ValueError("it holds neither vote nor term")
        mark, last = self.mark, self.mark.index
        if self.entries:
            if self.entries[0].index > mark.index + 1:
                raise ValueError(f"entries {mark.index + 1} to {self.entries[0].index - 1} missing")
            last = max(last, self.entries[-1].index)
        if self.hard.commit > last:
            raise ValueError(f"it ends at {last}, though {self.hard.commit} was committed")
        commit = max(self.hard.commit, mark.index)
        return HardState(self.hard.term, self.hard.vote, commit), mark
