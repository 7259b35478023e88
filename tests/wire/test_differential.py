"""
The same octets through Accord, nginx and HAProxy: what each makes of them.

docs/wire.md has the table: for each input what the three do, and why we do what we do. The
test sees to it that the table is true, and that it leaves out nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from wire.inputs import INPUTS
from wire.rivals import VERSIONS, Talk, all_three, version

PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "wire.md"
COLUMNS: Final = ("Accord", "nginx", "HAProxy")
SHOWN_MAX: Final = 40
NO_REASON: Final = "\N{EN DASH}"


def outcome(answer: bytes, passed: Sequence[bytes]) -> str:
    """Say in a few words what came back, and what the backend was asked."""
    codes = re.findall(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r)", answer)
    words = " ".join(code.decode() for code in codes)
    if not words:
        words = "closed" if not answer else "no HTTP head"
    return "; ".join([words, *(request_in_words(each) for each in passed)])


def request_in_words(request: bytes) -> str:
    """Return method, target, and what of the message an input may be about."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    method, _, rest = line.partition(" ")
    target = rest.rpartition(" ")[0]
    shown = f"{method} {target}"
    for field in fields:
        name, _, value = field.partition(":")
        told = name.lower().startswith(("x-odd", "x_odd", "te", "expect", "upgrade"))
        if told or (name.lower() == "host" and value.strip() != "a"):
            shown += f", {name.lower()}:{value}".rstrip()
    if body:
        shown += f", body {body.decode('latin-1')!r}"
    plain = "".join(each if " " <= each <= "~" else f"\\x{ord(each):02x}" for each in shown)
    plain = re.sub(r"127\.0\.0\.1:[0-9]+", "(the backend's)", plain)
    plain = plain.replace("|", "\\x7c").replace("`", "\\x60")
    return plain if len(plain) <= SHOWN_MAX * 2 else plain[:SHOWN_MAX] + "..." + plain[-10:]


def rows_of_page() -> dict[str, dict[str, str]]:
    """Return the table's rows: input, and the cell of each proxy and of the reason."""
    rows: dict[str, dict[str, str]] = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 5 and cells[0] in INPUTS:
            assert cells[0] not in rows, f"{cells[0]} is there twice"
            rows[cells[0]] = dict(zip((*COLUMNS, "why"), cells[1:], strict=True))
    return rows


def measure(talks: dict[str, Talk]) -> dict[str, dict[str, str]]:
    """Return the outcome of every input with each proxy; the three are asked side by side."""

    def ask(name: str) -> dict[str, str]:
        return {key: outcome(*talks[name](octets)) for key, octets in INPUTS.items()}

    with ThreadPoolExecutor(len(talks)) as pool:
        return dict(zip(talks, pool.map(ask, talks), strict=True))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, str]]]:
    with all_three(tmp_path_factory.mktemp("rivals")) as talks:
        yield measure(talks)


@pytest.mark.parametrize("name", COLUMNS)
def test_the_table_is_true(name: str, measured: dict[str, dict[str, str]]) -> None:
    if name not in measured:
        pytest.skip(f"{name} {VERSIONS[name]} is not installed, but {version(name)}")
    rows = rows_of_page()
    wrong = {
        key: (rows.get(key, {}).get(name), found)
        for key, found in measured[name].items()
        # Where it depends on how fast octets come, the page says "one or the other".
        if f"`{found}`" not in rows.get(key, {}).get(name, "").split(" or ")
    }
    assert not wrong, "\n".join(
        f"{key}: page {page}, seen `{seen}`" for key, (page, seen) in wrong.items()
    )


def test_every_difference_is_explained() -> None:
    for key, row in rows_of_page().items():
        if len({row[name] for name in COLUMNS}) > 1:
            assert row["why"] != NO_REASON, f"{key}: no reason"
            assert re.search(r"[MS] \d|RFC|[Oo]urs|design", row["why"]), f"{key}: no section"


def test_every_input_has_a_row() -> None:
    assert rows_of_page().keys() == INPUTS.keys()
