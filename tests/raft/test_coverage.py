"""Every scenario and every hazard is covered by something that exists, or left out for a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/raft-tests.md"
NO_SUCH = {7, 14, 19, 22, 29, 30, 39, 42, 53, 56, 59, 63}  # Numbers that were never given.
SCENARIOS = {f"T{number:02}" for number in range(1, 66) if number not in NO_SUCH}
HAZARDS = {str(number) for number in range(1, 37)}
ROW = re.compile(r"^\| (T\d\d|\d+) \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
TABLE = dict(ROW.findall((ROOT / PAGE).read_text()))
LEFT_OUT = {number for number, where in TABLE.items() if where.startswith("left out: ")}
PLACES = sorted(
    (number, place) for number, where in TABLE.items() for place in re.findall(r"`([^`]+)`", where)
)


def test_every_number_has_a_row() -> None:
    assert set(TABLE) == SCENARIOS | HAZARDS


def test_what_is_left_out_has_a_reason_and_no_test() -> None:
    covered = {number for number, _ in PLACES}

    assert covered | LEFT_OUT == set(TABLE)
    assert not covered & LEFT_OUT
    assert {"T43", "T44", "T45", "T46", "T47"} <= LEFT_OUT


def numbers_in(text: str) -> set[str]:
    """Return what a text says that it covers: `T05`, `Hazards 3, 4`, `hazard 20`."""
    lists = re.findall(r"\b[Hh]azards? ((?:\d+(?:, | and )?)+)", text)
    return set(re.findall(r"\bT\d\d\b", text)) | {
        number for found in lists for number in re.findall(r"\d+", found)
    }


@pytest.mark.parametrize(("number", "place"), PLACES)
def test_what_covers_it_says_so(number: str, place: str) -> None:
    path, _, name = place.partition("::")
    text = (ROOT / path).read_text()
    if name:
        assert re.search(rf"\b(def|class) {name}\b|^{name} = ", text, re.MULTILINE)
    else:
        assert number in numbers_in(text), f"{path} does not name {number}"


def test_every_transcript_has_its_row() -> None:
    transcripts = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/raft").glob("*.txt")
    }

    assert transcripts == {place for _, place in PLACES if place.endswith(".txt")}
