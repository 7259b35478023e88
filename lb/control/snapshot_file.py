"""The form of a snapshot's file: a header with a checksum of its own, then the state's bytes.

No system calls here; see `storage`. A file is written under another name and renamed when all of
it is on the disk, so one that has its name and is not whole was damaged later.
"""

from __future__ import annotations

import re
import struct

from lb.control.wal import CRC32C, FORMAT, DamagedLog, Identity, checksum
from lb.raft.messages import ConfState, SnapMeta, Snapshot

SNAPSHOT_MAGIC = b"accrdsnp"

# magic, format, checksum kind, group, member, index, term, voters, learners, length of the
# state, its checksum; ids follow, and the header's checksum
_HEAD = struct.Struct("<8sHH4x16sQQQHH4xQI")
_CRC = struct.Struct("<I")
_NAME = re.compile(r"snap-(\d{16})-(\d{16})")


def snapshot_name(meta: SnapMeta) -> str:
    """The file of this snapshot; names sort as terms and indexes do."""
    return f"snap-{meta.term:016d}-{meta.index:016d}"


def snapshot_position(name: str) -> tuple[int, int] | None:
    """Term and index of the snapshot in the file of that name, if it is one's name."""
    parts = _NAME.fullmatch(name)
    return (int(parts[1]), int(parts[2])) if parts else None


def encode_head(identity: Identity, snapshot: Snapshot) -> bytes:
    """Make what stands before the state's bytes."""
    meta = snapshot.meta
    voters, learners = sorted(meta.conf.voters), sorted(meta.conf.learners)
    head = _HEAD.pack(
        SNAPSHOT_MAGIC,
        FORMAT,
        CRC32C,
        identity.group,
        identity.member,
        meta.index,
        meta.term,
        len(voters),
        len(learners),
        len(snapshot.data),
        checksum(snapshot.data),
    ) + struct.pack(f"<{len(voters) + len(learners)}Q", *voters, *learners)
    return head + _CRC.pack(checksum(head))


def decode_snapshot(name: str, data: bytes, identity: Identity) -> Snapshot:
    """Read a snapshot's file; DamagedLog unless every byte is as it was."""
    if len(data) < _HEAD.size:
        raise DamagedLog(name, len(data), "the file ends within its header")
    magic, form, kind, group, member, index, term, voters, learners, length, crc = (
        _HEAD.unpack_from(data)
    )
    start = _HEAD.size + 8 * (voters + learners)
    if magic != SNAPSHOT_MAGIC:
        raise DamagedLog(name, 0, "it does not begin as a snapshot does")
    if form != FORMAT or kind != CRC32C:
        raise DamagedLog(name, 8, f"its format is {form}.{kind}; we read {FORMAT}.{CRC32C}")
    if data[start : start + _CRC.size] != _CRC.pack(checksum(data[:start])):
        raise DamagedLog(name, 0, "its header does not fit its checksum")
    ids = struct.unpack_from(f"<{voters + learners}Q", data, _HEAD.size)
    meta = SnapMeta(index, term, ConfState(frozenset(ids[:voters]), frozenset(ids[voters:])))
    if Identity(group, member) != identity or snapshot_name(meta) != name.rpartition("/")[2]:
        raise DamagedLog(name, 0, "it is another snapshot than its name and place say")
    start += _CRC.size
    body = data[start:]
    if len(body) != length:
        raise DamagedLog(name, len(data), f"it holds {len(body)} bytes of state, not {length}")
    if checksum(body) != crc:
        raise DamagedLog(name, start, "its state does not fit its checksum")
    return Snapshot(meta, body)
