"""Numbers that workers share: kept, pushed out, and never torn however many write at once."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.proxy import shared_table
from lb.proxy.shared_table import KNOWN_BYTES_MAX, KNOWN_MAX, SharedTable, SharedTables, create

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 20_000
KEYS = 200


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = create(64)
    yield descriptor
    os.close(descriptor)


def test_what_is_put_is_got(memory: int) -> None:
    table = SharedTables(memory).table("a")

    assert table.get(b"k") == 0.0
    table.put(b"k", 1.5)
    table.put(b"l", -2.0)
    table.put(b"k", 2.5)

    assert table.get(b"k") == 2.5
    assert table.get(b"l") == -2.0


def test_another_process_finds_it(memory: int) -> None:
    """Mapped anew, it is another view of the same memory, as another worker has it."""
    mine, theirs = SharedTables(memory).table("a"), SharedTables(memory).table("a")
    mine.put(b"k", 1.0)

    assert theirs.get(b"k") == 1.0
    theirs.put(b"k", 2.0)
    assert mine.get(b"k") == 2.0


def test_tables_of_other_names_do_not_meet(memory: int) -> None:
    tables = SharedTables(memory)
    tables.table("a").put(b"k", 1.0)

    assert tables.table("b").get(b"k") == 0.0
    assert tables.table("a").get(b"k") == 1.0


def test_each_memory_has_a_salt_of_its_own() -> None:
    """Whoever finds keys that meet in one memory has found nothing about another."""
    places = []
    for _ in range(2):
        descriptor = create(2**20)
        table = SharedTables(descriptor).table("a")
        os.close(descriptor)
        table.put(b"k", 1.0)
        places.append(table._known[b"k"][:2])

    assert places[0] != places[1]


def test_keys_spread_over_the_buckets() -> None:
    descriptor = create(2**14)
    table = SharedTables(descriptor).table("a")
    os.close(descriptor)
    keys = [b"10.0.%d.%d" % divmod(number, 256) for number in range(2**12)]
    for number, key in enumerate(keys, 1):
        table.put(key, float(number))

    kept = sum(table.get(key) == number for number, key in enumerate(keys, 1))

    assert kept > 0.99 * len(keys), "a quarter full, nearly all have found room"


def test_the_smallest_number_makes_room() -> None:
    descriptor = create(8)
    table = SharedTables(descriptor).table("a")
    os.close(descriptor)
    for number in range(1, 9):
        table.put(b"%d" % number, float(number))

    table.put(b"new", 1.5)

    assert table.get(b"1") == 0.0
    assert [table.get(b"%d" % number) for number in range(2, 9)] == [2, 3, 4, 5, 6, 7, 8]
    assert table.get(b"new") == 1.5
    table.put(b"newer", 9.0)
    assert table.get(b"new") == 0.0, "it was the smallest then"


def test_what_is_no_number_is_not_kept(memory: int) -> None:
    table = SharedTables(memory).table("a")
    table.put(b"k", 1.0)
    for none in ("nan", "inf", "-inf"):
        table.put(b"k", float(none))

    assert table.get(b"k") == 1.0


def test_zero_is_none_and_leaves_its_place_to_others(memory: int) -> None:
    table = SharedTables(memory).table("a")
    table.put(b"k", 1.0)
    table.put(b"k", 0.0)

    assert table.get(b"k") == 0.0
    table.put(b"k", 2.0)
    assert table.get(b"k") == 2.0


def test_what_a_worker_remembers_is_bounded() -> None:
    descriptor = create()
    table = SharedTables(descriptor).table("a")
    os.close(descriptor)
    for number in range(KNOWN_MAX + 10):
        table.put(b"%d" % number, 1.0)
    long = b"x" * (KNOWN_BYTES_MAX + 1)
    table.put(long, 2.0)

    assert len(table._known) <= KNOWN_MAX
    assert long not in table._known
    assert table.get(long) == 2.0


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 63, b"x" * 192, shared_table.MAGIC + b"\0" * 184],
    ids=["empty", "short", "other", "of another size"],
)
def test_a_memory_of_another_format_is_refused(content: bytes) -> None:
    memory = mmap.mmap(-1, max(1, len(content)))
    memory[: len(content)] = content

    with pytest.raises(ValueError, match="table"):
        SharedTables(memory)


def test_a_torn_place_reads_as_nothing(memory: int) -> None:
    table = SharedTables(memory).table("a")
    table.put(b"k", 1.0)
    _, at, _ = table._known[b"k"]
    for half in (slice(at, at + 8), slice(at + 8, at + 16)):
        whole = bytes(table._view[at : at + 16])
        table._view[half] = os.urandom(8)
        assert table.get(b"k") == 0.0
        table._view[at : at + 16] = whole
        assert table.get(b"k") == 1.0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=80), st.floats(-1e300, 1e300, allow_subnormal=False)),
        max_size=60,
    )
)
def test_with_room_enough_it_is_a_dict(puts: list[tuple[bytes, float]]) -> None:
    descriptor = create(2**16)
    table = SharedTables(descriptor).table("a")
    os.close(descriptor)
    expected: dict[bytes, float] = {}
    for key, number in puts:
        table.put(key, number)
        expected[key] = number

    assert {key: table.get(key) for key in expected} == expected


def test_a_number_below_zero_is_no_free_place() -> None:
    descriptor = create(8)  # One bucket.
    table = SharedTables(descriptor).table("a")
    os.close(descriptor)
    keys = [bytes([number]) for number in range(8)]
    for key in keys:
        table.put(key, -1.0 - key[0])

    assert [table.get(key) for key in keys] == [-1.0 - key[0] for key in keys]


# --- Several writers --------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, "tests")
from test_shared_table import hammer, hit
what, descriptor, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
{"hammer": hammer, "hit": hit}[what](descriptor, seed)
"""


def hammer(descriptor: int, seed: int) -> None:
    """Put and get many keys that fight for few places; a number says for which key it was put."""
    table = SharedTables(descriptor).table("a")
    rng = random.Random(seed)
    keys = [b"key-%d" % number for number in range(KEYS)]
    found = 0
    for _ in range(ROUNDS):
        number = rng.randrange(KEYS)
        table.put(keys[number], number + 1 + rng.randrange(1, 1024) / 1024)
        number = rng.randrange(KEYS)
        got = table.get(keys[number])
        assert got == 0.0 or int(got) == number + 1, (number, got)
        found += got != 0.0
    assert found > ROUNDS / 20, "some were there"


def hit(descriptor: int, seed: int) -> None:
    """Put one key again and again: it stays where it is, and is there for the others."""
    table: SharedTable = SharedTables(descriptor).table("a")
    table.put(b"k", 1.0)
    missed = 0
    for number in range(1, ROUNDS):
        table.put(b"k", 1.0 + number / ROUNDS)
        got = table.get(b"k")
        missed += got == 0.0
        assert got == 0.0 or 1.0 <= got < 2.0
    assert missed < ROUNDS / 1000, missed


@pytest.mark.parametrize("what", ["hammer", "hit"])
def test_two_processes_at_once(memory: int, what: str) -> None:
    command = [sys.executable, "-c", WRITER, what, str(memory)]
    writers = [
        subprocess.Popen(
            [*command, str(seed)], cwd=ROOT, pass_fds=[memory], stderr=subprocess.PIPE, text=True
        )
        for seed in (1, 2)
    ]
    said = [writer.communicate(timeout=60)[1] for writer in writers]

    assert [writer.returncode for writer in writers] == [0, 0], said
