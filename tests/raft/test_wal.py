"""The log's form: whole, torn or damaged, and never one taken for the other."""

from __future__ import annotations

import contextlib
import struct
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.control.storage import Sizes
from lb.control.wal import (
    FRAME_HEAD,
    SECTOR,
    DamagedLog,
    Frame,
    Identity,
    Link,
    Mark,
    Record,
    Replay,
    SegmentHeader,
    checksum,
    decode_records,
    encode_frame,
    encode_records,
    open_segment,
    read_frames,
    read_segment,
    segment_name,
)
from lb.raft.messages import ConfState, Entry, HardState, Kind, SnapMeta
from raft.fake_disk import FakeDisk
from raft.log_kit import (
    CONF,
    GROUP,
    SMALL,
    entry,
    fake_disk,
    indexes,
    new_log,
    persist,
    read_back,
    reopened,
    segments,
    texts,
)

NUMBERS = st.integers(0, 2**63 - 1)
IDS = st.frozensets(st.integers(1, 2**63 - 1), max_size=5)
RECORDS = st.one_of(
    st.builds(HardState, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Entry, NUMBERS, NUMBERS, st.sampled_from(list(Kind)), st.binary(max_size=600)),
    st.builds(
        Mark,
        st.builds(SnapMeta, NUMBERS, NUMBERS, st.builds(ConfState, IDS, IDS)),
        st.booleans(),
    ),
)


def frames_of(disk: FakeDisk) -> list[Frame]:
    """The frames of the last segment."""
    name = segments(disk)[-1]
    return read_segment(name, disk.read(name), None, last=True).frames


def three_frames(data: bytes = b"") -> FakeDisk:
    """A log of one segment: how it opens, and three frames, the last with `data`."""
    disk = fake_disk()
    new_log(
        disk,
        persist(entry(1), hard=(1, 7, 0)),
        persist(entry(2), entry(3), hard=(1, 7, 2)),
        persist(entry(4, data=data), hard=(2, 1, 3)),
    ).close()
    return disk


# --- Whole ------------------------------------------------------------------------------------


def test_the_checksum_is_the_one_that_everybody_means() -> None:
    assert checksum(b"123456789") == 0xE3069283
    assert checksum(b"56789", checksum(b"1234")) == 0xE3069283


@given(st.lists(RECORDS, max_size=8))
def test_records_read_back_as_they_were(records: list[Record]) -> None:
    assert list(decode_records(encode_records(records))) == records


@given(st.lists(st.lists(RECORDS, min_size=1, max_size=4), max_size=5))
def test_frames_read_back_as_they_were(frames: list[list[Record]]) -> None:
    header = SegmentHeader(GROUP, 3, 64 * SECTOR, 5, Link(8, 99))
    data, link = header.encode(), header.before
    for records in frames:
        frame, link = encode_frame(header.salt, link, records)
        assert len(frame) % SECTOR == 0
        data += frame

    segment = read_segment(segment_name(3), data, None, last=True)

    assert [list(frame.records) for frame in segment.frames] == frames
    assert (segment.end, segment.link, segment.torn) == (len(data), link, None)


def test_what_was_written_is_known_again() -> None:
    recovered = reopened(three_frames())

    assert recovered.identity == GROUP
    assert recovered.hard == HardState(2, 1, 3)
    assert recovered.conf == CONF
    assert (recovered.base_index, recovered.base_term, recovered.data) == (0, 0, None)
    assert texts(recovered.entries) == [f"entry {index} of term 1" for index in (1, 2, 3, 4)]
    assert recovered.notes == ()


def test_a_log_that_holds_nothing_yet_still_has_its_vote_and_group() -> None:
    disk = fake_disk()
    new_log(disk).close()

    recovered = reopened(disk)

    assert (recovered.hard, recovered.conf, recovered.entries) == (HardState(0, 0, 0), CONF, ())


# --- Torn -------------------------------------------------------------------------------------


def test_cut_at_every_byte_of_the_last_frame() -> None:
    """T58: the file ends early, as one does whose size was not sure yet."""
    whole = three_frames(b"x" * 700)
    last = frames_of(whole)[-1]
    name = segments(whole)[-1]
    for size in range(last.offset, last.offset + last.size):
        disk = three_frames(b"x" * 700)
        disk.cut(name, size)

        recovered = reopened(disk) if size % 16 == 0 else read_back(disk)

        assert indexes(recovered) == [1, 2, 3], size
        assert recovered.hard == HardState(1, 7, 2)
        assert bool(recovered.notes) == (size > last.offset)


@pytest.mark.parametrize("data", [b"x" * 2000, bytes(2000), b"x" * 300 + bytes(1800) + b"y"])
def test_any_subset_of_sectors_of_the_last_frame_unwritten(data: bytes) -> None:
    """T61: a frame counts if nothing of it is missing, and else leaves no trace."""
    whole = three_frames(data)
    name = segments(whole)[-1]
    last = frames_of(whole)[-1]
    bytes_written = whole.read(name)[last.offset : last.offset + last.size]
    sectors = [bytes_written[at : at + SECTOR] for at in range(0, last.size, SECTOR)]
    assert len(sectors) == 5
    for written in product([False, True], repeat=len(sectors)):
        disk = three_frames(data)
        kept = [
            sector if there else bytes(SECTOR)
            for sector, there in zip(sectors, written, strict=True)
        ]
        disk.put(name, disk.read(name)[: last.offset] + b"".join(kept) + bytes(2048))

        recovered = reopened(disk)

        assert indexes(recovered) == ([1, 2, 3, 4] if kept == sectors else [1, 2, 3]), written


def test_what_was_cut_off_is_kept_aside_and_its_place_is_clean_again() -> None:
    disk = three_frames(b"x" * 700)
    name = segments(disk)[-1]
    last = frames_of(disk)[-1]
    data = disk.read(name)
    torn = data[last.offset : last.offset + SECTOR] + bytes(SECTOR)
    disk.put(name, data[: last.offset] + torn + data[last.offset + len(torn) :])

    recovered = reopened(disk)

    assert len(recovered.notes) == 1
    assert f"byte {last.offset}" in recovered.notes[0]
    assert disk.read(name + ".broken") == torn
    assert len(disk.read(name)) == SMALL.segment
    assert [frame.seq for frame in frames_of(disk)] == [1, 2, 3, 4]
    assert read_back(disk).notes == ()


def test_a_segment_whose_opening_is_torn_gets_another() -> None:
    """The rename was seen, the file's end was not: what the older segments say counts."""
    disk = fake_disk()
    new_log(disk, *[persist(entry(i, data=b"x" * 900), hard=(1, 7, i - 1)) for i in range(1, 9)])
    name = segments(disk)[-1]
    opening = frames_of(disk)[0]
    assert len(segments(disk)) == 2
    disk.cut(name, opening.offset)

    disk.kill()
    before = read_back(disk)
    reopened(disk)

    assert isinstance(frames_of(disk)[0].records[0], Mark)
    assert read_back(disk).hard == before.hard


# --- Damaged ----------------------------------------------------------------------------------


def test_each_byte_flipped_is_damage_found_where_it_is() -> None:
    """No flip in what was written is ever taken for a torn tail, nor right behind it."""
    disk = three_frames(b"\0\0data with zeros \0\0\0" + bytes(1100))
    name = segments(disk)[-1]
    whole = disk.read(name)
    frames = frames_of(disk)
    end = frames[-1].offset + frames[-1].size
    starts = [0, *(frame.offset for frame in frames), end]
    for offset in range(end + SECTOR):
        for mask in (0x01, 0x80, 0xFF):
            data = bytearray(whole)
            data[offset] ^= mask
            with pytest.raises(DamagedLog) as caught:
                read_segment(name, bytes(data), None, last=True)
            start = max(at for at in starts if at <= offset)
            assert caught.value.offset == start or (start == 0 and offset < SECTOR)
            assert caught.value.file == name


def test_a_byte_flipped_where_nothing_was_written_yet_costs_nothing() -> None:
    disk = three_frames()
    disk.flip(segments(disk)[-1], SMALL.segment - 1)

    assert indexes(reopened(disk)) == [1, 2, 3, 4]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_sector_missing_with_whole_frames_behind_it_is_damage(which: int) -> None:
    disk = three_frames()
    name = segments(disk)[-1]
    offset = frames_of(disk)[which].offset
    data = disk.read(name)
    disk.put(name, data[:offset] + bytes(SECTOR) + data[offset + SECTOR :])

    with pytest.raises(DamagedLog, match=f"byte {offset}: .* yet frame"):
        read_back(disk)


def test_a_flipped_length_does_not_pass_for_a_file_that_ends_early() -> None:
    disk = three_frames()
    name = segments(disk)[-1]
    disk.flip(name, frames_of(disk)[-1].offset + 6, 0x40)  # 4 MiB more.

    with pytest.raises(DamagedLog, match="header does not fit its checksum"):
        read_back(disk)


def many_segments() -> FakeDisk:
    disk = fake_disk()
    writes = [persist(entry(i, data=b"x" * 900), hard=(1, 7, i - 1)) for i in range(1, 23)]
    new_log(disk, *writes).close()
    assert len(segments(disk)) == 4
    return disk


def test_only_the_last_segment_may_be_torn() -> None:
    disk = many_segments()
    name = segments(disk)[1]
    segment = read_segment(name, disk.read(name), None, last=True)
    disk.cut(name, segment.frames[-1].offset + SECTOR)

    with pytest.raises(DamagedLog, match="yet segments follow"):
        read_back(disk)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_segment_is_damage(missing: int) -> None:
    disk = many_segments()
    disk.unlink(segments(disk)[missing])

    with pytest.raises(DamagedLog, match="missing"):
        read_back(disk)


def test_a_segment_that_lost_its_last_frame_whole_is_damage() -> None:
    disk = many_segments()
    name = segments(disk)[1]
    segment = read_segment(name, disk.read(name), None, last=True)
    disk.cut(name, segment.frames[-1].offset)

    with pytest.raises(DamagedLog, match="goes on from frame"):
        read_back(disk)


def test_a_segment_of_another_group_or_place_is_damage() -> None:
    disk, other = many_segments(), many_segments()
    first, second = segments(disk)[:2]
    disk.put(second, other.read(first))
    with pytest.raises(DamagedLog, match="it is segment 1 by its header"):
        read_back(disk)

    header = SegmentHeader(Identity(b"another group's!", 7), 2, 8192, 1, Link(0, 0))
    disk.put(second, header.encode())
    with pytest.raises(DamagedLog, match="another member or group"):
        read_back(disk)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends within its header"),
        (b"not a log".ljust(SECTOR), "does not begin as"),
        (b"accrdwal\x09\x00\x01\x00".ljust(SECTOR, b"\0"), "format is 9.1"),
        (SegmentHeader(GROUP, 1, SECTOR, 1, Link(0, 0)).encode() + b"more", "goes on beyond"),
    ],
)
def test_files_that_are_no_segments(data: bytes, why: str) -> None:
    with pytest.raises(DamagedLog, match=why):
        read_segment(segment_name(1), data, None, last=True)


def test_the_frames_before_damage_can_still_be_shown() -> None:
    disk = three_frames()
    name = segments(disk)[-1]
    disk.flip(name, frames_of(disk)[2].offset + FRAME_HEAD)
    segment = open_segment(name, disk.read(name), None)

    with pytest.raises(DamagedLog):
        read_frames(segment, disk.read(name), last=True)

    assert [frame.seq for frame in segment.frames] == [1, 2]


@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    header = SegmentHeader(GROUP, 1, 8 * SECTOR, 1, Link(0, 0)).encode()
    for found in (data, header + data):
        with contextlib.suppress(DamagedLog):
            read_segment(segment_name(1), found[: 8 * SECTOR], None, last=True)


@given(st.binary(max_size=60))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(ValueError, struct.error):
        records = list(decode_records(body))
        assert len(encode_records(records)) == len(body)


# --- From records to what a member knew -------------------------------------------------------


def replayed(*records: Record) -> Replay:
    replay = Replay()
    for record in (Mark(SnapMeta(0, 0, CONF), False), HardState(1, 0, 0), *records):
        replay.take(record)
    return replay


def mark(index: int, term: int, restart: bool = False) -> Mark:
    return Mark(SnapMeta(index, term, CONF), restart)


def test_an_entry_takes_the_place_of_its_old_self_and_of_all_after_it() -> None:
    replay = replayed(entry(1), entry(2), entry(3), entry(2, term=2))

    assert [(e.index, e.term) for e in replay.entries] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("restart", "left"), [(False, [1, 2, 3]), (True, [])], ids=["matching", "other history"]
)
def test_a_snapshot_keeps_what_matches_it_and_nothing_else(restart: bool, left: list[int]) -> None:
    replay = replayed(entry(1), entry(2), entry(3), mark(2, 1, restart))

    hard, snapshot = replay.finish()

    assert [e.index for e in replay.entries] == left
    assert (hard.commit, snapshot.index) == (2, 2)


def test_after_a_snapshot_the_log_may_begin_anew() -> None:
    replay = replayed(entry(1), mark(8, 2, restart=True), entry(9, term=2))

    replay.finish()

    assert [e.index for e in replay.entries] == [9]


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([entry(1), entry(3)], "entry 3 after 1"),
        ([HardState(3, 0, 0), HardState(2, 0, 0)], "term 2 after 3"),
        ([mark(5, 1), mark(4, 1)], "snapshot 4 after 5"),
        ([entry(5)], "entries 1 to 4 missing"),
        ([mark(3, 1, True), entry(5)], "entries 4 to 4 missing"),
        ([entry(1), HardState(1, 0, 2)], "ends at 1, though 2 was committed"),
    ],
)
def test_records_that_cannot_follow_each_other(records: list[Record], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replayed(*records).finish()


def test_no_vote_and_term_is_never_taken_for_none() -> None:
    with pytest.raises(ValueError, match="neither vote nor term"):
        Replay().finish()


def test_a_large_frame_gets_a_segment_of_its_own_size() -> None:
    disk = fake_disk()
    big = b"big" * 10_000
    new_log(disk, persist(entry(1)), persist(entry(2, data=big)), persist(entry(3))).close()

    assert reopened(disk, Sizes(8 << 10, 0)).entries[1].data == big
