"""The comparison runs, and stands or falls with real programs: nginx, wrk, and Accord itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from journeys.kit import ROOT

TURN = ("--size", "1k", "--rounds", "1", "--seconds", "1")


@pytest.mark.skipif(not os.sched_getaffinity(0) >= {0, 1}, reason="needs cores 0 and 1")
@pytest.mark.parametrize(
    "kind",
    [pytest.param((), id="alike"), pytest.param(("--vary",), id="varied", marks=pytest.mark.long)],
)
def test_the_table_has_a_row_for_each(tmp_path: Path, kind: tuple[str, ...]) -> None:
    table = tmp_path / "table.md"
    words = ("--only", "nginx,accord", *TURN, *kind, "--out", str(table))

    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "compare.py"), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=90,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| 1k \| (\w+) \| ([\d.]+) \|", table.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == ["nginx", "accord"]
    assert all(float(cost) > 0 for _, cost in rows)


def test_a_word_that_it_does_not_know_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "compare.py"), "--only", "apache"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert "apache" in done.stderr
