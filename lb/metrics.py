"""Counters in shared memory, and their merging.

Each worker slot has one block of memory (a memfd that the supervisor makes and keeps). Its
worker writes: `view[slot] += 1` is all that counting costs on the path of a request. The
controller maps the same blocks, adds them up and shows them; neither ever waits for the
other. One process at a time may write to a block; a successor takes over where it ended.

A block is a header and then records, one a series, each holding its values and its name:

    word 0              mark 16 bits, state 8, number of values 16, size of the record 24
    word 1              crc32 32 bits, length of the text 16
    values              one word for a counter or gauge, `HISTOGRAM_SLOTS` for a histogram
    text                name, label, value, label, value: UTF-8, a zero byte between two

The header's `EDITS` word is odd while the directory changes, and different afterwards: a
reader copies the block and copies again if the word moved meanwhile. Every field that it
reads is checked against the copy's bounds, so garbage shows as missing series and no more.

Not here: the text of a scrape, which is `exposition`'s; exemplars, summaries.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from lb.errors import OurError
from lb.metric_names import FAMILIES, MICRO, Kind

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
SUM = len(BOUNDS) + 1  # After the buckets, of which the last has no bound: the sum in us.
HISTOGRAM_SLOTS = SUM + 1

SLOTS_MAX = 262_144
MEMORY_BYTES = 32 * 1024 * 1024  # Sparse: a page costs nothing until something is in it.
TEXT_BYTES_MAX = 2_048  # Of one series' name and labels.
GONE_SECONDS = 600.0  # A backend that left keeps its series so long, then they are reused.
SWEEP_BACKENDS_MAX = 256  # At a time: the worker has requests waiting.
COPY_TRIES_MAX = 5

FORMAT = 1
MAGIC = int.from_bytes(b"LBMETR\0" + bytes([FORMAT]), "little")
MAGIC_AT, EDITS, END, HEADER_WORDS = 0, 1, 2, 8
RECORD_HEAD = 2
RECORD_STEP = 4  # Records are this many words or a multiple: few sizes, so a hole fits again.
MARK = 0x4C42
LIVE, FREE = 1, 2
LOW_63 = (1 << 62) - 1

DROPPED = "lb_metrics_dropped_total"
# Where counts go that found no room; nobody sees it but through `DROPPED`.
OVERFLOW = "lb_metrics_overflow"
OVERFLOW_SLOTS = HISTOGRAM_SLOTS + 1

Labels = tuple[tuple[str, str], ...]
Memory = int | mmap.mmap


class Entry(NamedTuple):
    """One series in one block: where its values begin, and how many there are."""

    name: str
    labels: Labels
    base: int
    slots: int


def create_memory() -> int:
    """Make the block of one worker slot; returns the descriptor, which the caller owns."""
    descriptor = os.memfd_create("lb-metrics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, MEMORY_BYTES)
    # Nobody can shorten it under a reader, which would die of SIGBUS.
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class Meters:
    """
    A worker's side of its block: gives out slots, and keeps the directory.

    Ask for a slot once and keep it: `counter`, `gauge` and `histogram` cost a few
    microseconds, `view[slot] += 1` next to nothing. Where there is no room left they give
    out a slot whose counts appear as `lb_metrics_dropped_total`; callers need not know.
    The values are signed, so that a miscounted gauge shows as a negative number and never
    raises in the middle of a request.

    A descriptor is mapped and stays the caller's to close. Taking over a predecessor's block
    keeps its counts and sets its gauges to zero.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = mmap.mmap(memory, 0) if isinstance(memory, int) else memory
        self.view = memoryview(self._memory).cast("q")
        self._bases: dict[tuple[str, Labels], int] = {}
        self._slots_used = 0
        self._holes: dict[int, list[int]] = {}  # Size in words -> records free for reuse.
        self._of_backend: dict[tuple[str, str], list[Entry]] = {}
        self._gone: dict[tuple[str, str], float] = {}  # Backend -> when it left.
        self._take_over()
        overflow = self._base(OVERFLOW, (), OVERFLOW_SLOTS)
        self._lost_histogram = overflow
        self._lost_gauge = overflow + HISTOGRAM_SLOTS
        self._lost = self._base(DROPPED, (), 1)

    def counter(self, name: str, **labels: str) -> int:
        """Return the slot of a counter: `view[slot] += n`."""
        return self._base(name, _check(name, Kind.COUNTER, labels), 1)

    def gauge(self, name: str, **labels: str) -> int:
        """Return the slot of a gauge: `view[slot] = n`. Seconds are kept in microseconds."""
        return self._base(name, _check(name, Kind.GAUGE, labels), 1)

    def histogram(self, name: str, **labels: str) -> int:
        """
        Return the base of a histogram. To observe `s` seconds:
        `view[base + bisect_left(BOUNDS, s)] += 1; view[base + SUM] += int(s * 1e6)`.
        """
        return self._base(name, _check(name, Kind.HISTOGRAM, labels), HISTOGRAM_SLOTS)

    def observe(self, base: int, seconds: float) -> None:
        """Count one observation. For where a call does not hurt; else write it out."""
        self.view[base + bisect_left(BOUNDS, seconds)] += 1
        self.view[base + SUM] += int(seconds * 1e6)

    def keep(self, backends: Iterable[tuple[str, str]], now: float) -> None:
        """
        Say which backends, as (upstream, key), exist now.

        The series of all others are given up `GONE_SECONDS` later, and whoever still holds
        one of their slots would then count for somebody else: a backend that has left but
        still works on requests belongs in the list too.
        """
        present = set(backends)
        for backend in self._of_backend.keys() - present:
            self._gone.setdefault(backend, now)
        for backend in self._gone.keys() & present:
            del self._gone[backend]

    def sweep(self, now: float) -> None:
        """Give up the series of backends that left long ago. Call it now and then."""
        # The oldest stand first: `keep` only adds at the end.
        for backend, left in list(islice(self._gone.items(), SWEEP_BACKENDS_MAX)):
            if now - left < GONE_SECONDS:
                return
            del self._gone[backend]
            for entry in self._of_backend.pop(backend):
                self._release(entry)

    def _base(self, name: str, labels: Labels, slots: int) -> int:
        base = self._bases.get((name, labels))
        if base is not None:
            return base
        text = _encode(name, labels)
        size = _record_size(slots, text)
        at = None
        if len(text) <= TEXT_BYTES_MAX and self._slots_used + slots <= SLOTS_MAX:
            at = self._find_room(size)
        if at is None:
            return self._lost_slots(name)
        self._write_record(at, size, slots, text)
        entry = Entry(name, labels, at + RECORD_HEAD, slots)
        self._remember(entry)
        return entry.base

    def _lost_slots(self, name: str) -> int:
        """Return where counts go that found no room: they add up to `DROPPED`."""
        match FAMILIES[name].kind:
            case Kind.COUNTER:
                return self._lost
            case Kind.HISTOGRAM:
                return self._lost_histogram
            case Kind.GAUGE:
                self.view[self._lost] += 1  # What it is set to says nothing about how often.
                return self._lost_gauge

    def _find_room(self, size: int) -> int | None:
        """Return where a record of `size` words may lie: the first hole that is not too big."""
        for hole_size in range(size, 2 * size + 1, RECORD_STEP):
            holes = self._holes.get(hole_size)
            if holes:
                return holes.pop()
        end = self.view[END]
        return end if end + size <= len(self.view) else None

    def _write_record(self, at: int, size: int, slots: int, text: bytes) -> None:
        view = self.view
        if at < view[END]:
            size = _unpack_head(view[at]).size  # A hole keeps its size, or the walk loses its way.
        text_at = (at + RECORD_HEAD + slots) * 8
        view[EDITS] += 1
        for slot in range(at + RECORD_HEAD, at + RECORD_HEAD + slots):
            view[slot] = 0
        self._memory[text_at : text_at + len(text)] = text
        view[at + 1] = _checksum(text, slots) | len(text) << 32
        view[at] = _pack_head(LIVE, slots, size)
        view[END] = max(view[END], at + size)
        view[EDITS] += 1

    def _remember(self, entry: Entry) -> None:
        self._bases[entry.name, entry.labels] = entry.base
        self._slots_used += entry.slots
        backend = _backend_of(entry.labels)
        if backend is not None:
            self._of_backend.setdefault(backend, []).append(entry)

    def _release(self, entry: Entry) -> None:
        view = self.view
        at = entry.base - RECORD_HEAD
        head = _unpack_head(view[at])
        view[EDITS] += 1
        view[at] = _pack_head(FREE, 0, head.size)
        view[EDITS] += 1
        del self._bases[entry.name, entry.labels]
        self._slots_used -= entry.slots
        self._holes.setdefault(head.size, []).append(at)

    def _take_over(self) -> None:
        """Read back what a predecessor left; start anew where nobody or somebody else was."""
        view = self.view
        view[EDITS] = ((view[EDITS] | 1) & LOW_63) + 2  # Odd, and unlike any that a reader saw.
        if view[MAGIC_AT] != MAGIC or not HEADER_WORDS <= view[END] <= len(view):
            view[END] = HEADER_WORDS
            view[MAGIC_AT] = MAGIC
        end = HEADER_WORDS
        for at, record in _walk(self._memory, view, view[END]):
            size = _unpack_head(view[at]).size
            if record is not None and (record.name, record.labels) not in self._bases:
                self._remember(record)
                if record.name != OVERFLOW and FAMILIES[record.name].kind is Kind.GAUGE:
                    view[record.base] = 0
            else:
                view[at] = _pack_head(FREE, 0, size)
                self._holes.setdefault(size, []).append(at)
            end = at + size
        view[END] = end  # Past it nothing can be told apart any more.
        view[EDITS] += 1


class Histogram(NamedTuple):
    """How many observations fell into each bucket (not cumulated), and their sum."""

    buckets: tuple[int, ...]
    seconds: float

    @property
    def observations(self) -> int:
        """Return how many there were."""
        return sum(self.buckets)

    def minus(self, earlier: Histogram) -> Histogram:
        """Return what was observed since `earlier`."""
        pairs = zip(self.buckets, earlier.buckets, strict=True)
        return Histogram(
            tuple(max(0, now - before) for now, before in pairs),
            max(0.0, self.seconds - earlier.seconds),
        )

    def quantile(self, share: float) -> float | None:
        """
        Return the seconds that `share` of the observations took at most; None without any.

        Within a bucket they are taken to be spread evenly. What is over the last bound
        counts as the last bound: more is not known.
        """
        rank = share * self.observations
        if not self.observations:
            return None
        lower, seen = 0.0, 0
        for bound, inside in zip(BOUNDS, self.buckets, strict=False):
            if inside and seen + inside >= rank:
                return lower + (bound - lower) * (rank - seen) / inside
            lower, seen = bound, seen + inside
        return lower


NO_OBSERVATIONS = Histogram((0,) * SUM, 0.0)


class Reading:
    """
    What all workers have counted, added up at one moment: the last `refresh`.

    Labels that a question leaves out are added up over; the first such question of a
    reading sorts all series of that name, the following are one look-up.
    """

    def __init__(self, memories: Iterable[Memory]) -> None:
        self._blocks = [_Block(memory) for memory in memories]
        self._sums: dict[str, dict[Labels, list[int]]] = {}
        self._groups: dict[tuple[str, tuple[str, ...]], dict[tuple[str, ...], list[int]]] = {}
        self.refresh()

    def refresh(self) -> Reading:
        """Look again. Returns itself."""
        sums: dict[str, dict[Labels, list[int]]] = {DROPPED: {(): [0]}}
        for block in self._blocks:
            for name, labels, values in block.read():
                series = sums.setdefault(name, {})
                before = series.get(labels)
                if before is None:
                    series[labels] = values
                elif len(before) == len(values):
                    series[labels] = [a + b for a, b in zip(before, values, strict=True)]
        for values in sums.pop(OVERFLOW, {}).values():
            sums[DROPPED][()][0] += sum(values[:SUM])
        self._sums = sums
        self._groups.clear()
        return self

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a counter's or gauge's series that carry these labels."""
        values = self._find(name, labels)
        return 0 if values is None else scaled(values[0], FAMILIES[name].scale)

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return a counter's or gauge's sums for each combination of the labels named."""
        scale = FAMILIES[name].scale
        groups = self._grouped(name, labels)
        return {key: scaled(values[0], scale) for key, values in groups.items()}

    def histogram(self, name: str, **labels: str) -> Histogram:
        """Return the sum of a histogram's series that carry these labels."""
        values = self._find(name, labels)
        if values is None:
            return NO_OBSERVATIONS
        return Histogram(tuple(values[:SUM]), values[SUM] * MICRO)

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Return the seconds within which `share` of the observations were; None without any."""
        return self.histogram(name, **labels).quantile(share)

    def series(self, name: str) -> Mapping[Labels, list[int]]:
        """Return the raw values of every series of that name."""
        return self._sums.get(name, {})

    def close(self) -> None:
        """Let go of the memory; the last picture stays."""
        for block in self._blocks:
            block.close()
        self._blocks.clear()

    def _find(self, name: str, labels: dict[str, str]) -> list[int] | None:
        return self._grouped(name, tuple(labels)).get(tuple(labels.values()))

    def _grouped(self, name: str, labels: tuple[str, ...]) -> dict[tuple[str, ...], list[int]]:
        groups = self._groups.get((name, labels))
        if groups is None:
            groups = self._groups[name, labels] = {}
            for carried, values in self.series(name).items():
                lookup = dict(carried)
                key = tuple(lookup.get(label, "") for label in labels)
                before = groups.get(key)
                groups[key] = (
                    values
                    if before is None
                    else [a + b for a, b in zip(before, values, strict=True)]
                )
        return groups


class _Block:
    """One worker's memory as the reader sees it. Trusts nothing in it."""

    def __init__(self, memory: Memory) -> None:
        self._memory: mmap.mmap | None
        if not isinstance(memory, int):
            self._memory = memory
        elif os.fstat(memory).st_size >= HEADER_WORDS * 8:
            self._memory = mmap.mmap(memory, 0, prot=mmap.PROT_READ)
        else:
            self._memory = None
        self._entries: list[Entry] = []
        self._entries_as_of = -1  # The value of `EDITS`; one that no block can have.

    def read(self) -> Iterator[tuple[str, Labels, list[int]]]:
        """Yield every series with its values."""
        if self._memory is None:
            return
        raw, edits = _copy(self._memory)
        words = memoryview(raw).cast("q")
        if edits is None or edits != self._entries_as_of:
            walked = _walk(raw, words, len(words)) if words[MAGIC_AT] == MAGIC else ()
            self._entries = [record for _, record in walked if record is not None]
            self._entries_as_of = -1 if edits is None else edits
        for name, labels, base, slots in self._entries:
            if base + slots <= len(words):
                yield name, labels, words[base : base + slots].tolist()

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _copy(memory: mmap.mmap) -> tuple[bytes, int | None]:
    """Return header and records as they were at one moment, and `EDITS`; None: it kept moving."""
    raw = b""
    for _ in range(COPY_TRIES_MAX):
        before, end = (int.from_bytes(memory[at * 8 : at * 8 + 8], "little") for at in (EDITS, END))
        raw = memory[: max(HEADER_WORDS, min(end, len(memory) // 8)) * 8]
        after = int.from_bytes(memory[EDITS * 8 : EDITS * 8 + 8], "little")
        if before == after and not before & 1:
            return raw, before
    return raw, None


class _Head(NamedTuple):
    mark: int
    state: int
    slots: int
    size: int


def _pack_head(state: int, slots: int, size: int) -> int:
    return MARK << 48 | state << 40 | slots << 24 | size


def _unpack_head(word: int) -> _Head:
    return _Head(word >> 48, word >> 40 & 0xFF, word >> 24 & 0xFFFF, word & 0xFFFFFF)


def _record_size(slots: int, text: bytes) -> int:
    words = RECORD_HEAD + slots + -(-len(text) // 8)
    return -(-words // RECORD_STEP) * RECORD_STEP


def _walk(
    raw: mmap.mmap | bytes, words: memoryview, end: int
) -> Iterator[tuple[int, Entry | None]]:
    """Yield where each record lies, and what it holds; None for a hole or what we cannot use."""
    at = HEADER_WORDS
    while at + RECORD_HEAD <= end:
        head = _unpack_head(words[at])
        if head.mark != MARK or head.size < RECORD_STEP or at + head.size > end:
            return
        yield at, _read_record(raw, words, at, head) if head.state == LIVE else None
        at += head.size


def _read_record(raw: mmap.mmap | bytes, words: memoryview, at: int, head: _Head) -> Entry | None:
    length = words[at + 1] >> 32 & 0xFFFF
    text_at = (at + RECORD_HEAD + head.slots) * 8
    if text_at + length > (at + head.size) * 8:
        return None
    text = raw[text_at : text_at + length]
    if _checksum(text, head.slots) != words[at + 1] & 0xFFFFFFFF:
        return None
    name, *rest = text.decode("utf-8", "replace").split("\0")
    labels = tuple(zip(rest[::2], rest[1::2], strict=False))
    if name == OVERFLOW:
        slots_due = OVERFLOW_SLOTS
    elif name in FAMILIES and FAMILIES[name].labels == tuple(label for label, _ in labels):
        slots_due = HISTOGRAM_SLOTS if FAMILIES[name].kind is Kind.HISTOGRAM else 1
    else:
        return None  # Of another version of Accord.
    return Entry(name, labels, at + RECORD_HEAD, head.slots) if head.slots == slots_due else None


def _checksum(text: bytes, slots: int) -> int:
    return zlib.crc32(text, slots)


def _encode(name: str, labels: Labels) -> bytes:
    words = (name, *(word.replace("\0", "\ufffd") for pair in labels for word in pair))
    return "\0".join(words).encode("utf-8", "replace")


def _check(name: str, kind: Kind, labels: dict[str, str]) -> Labels:
    """Return the labels in the table's order; asking for what is not in it is our mistake."""
    found = FAMILIES.get(name)
    if found is None or found.kind is not kind or len(found.labels) != len(labels):
        raise OurError(f"no {kind} {name} with labels {sorted(labels)} in lb/metric_names.py")
    try:
        return tuple([(label, labels[label]) for label in found.labels])
    except KeyError as error:
        raise OurError(f"{name} needs the label {error} of lb/metric_names.py") from None


def _backend_of(labels: Labels) -> tuple[str, str] | None:
    lookup = dict(labels)
    backend = lookup.get("backend")
    return None if backend is None else (lookup.get("upstream", ""), backend)


def scaled(value: int, scale: float) -> float:
    """Return a stored whole number in its unit; whole where it is one."""
    return value if scale == 1.0 else value * scale
