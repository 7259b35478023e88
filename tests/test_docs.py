"""Pages that say what is so: their links lead somewhere, their examples are taken."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lb.cli.tree import lb
from lb.config.load import load

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "bench", "plugins", "changelog.d")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]
)
README_LINES_MAX = 130
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
TARGET = re.compile(r"`make ([a-z-]+)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FAULT = re.compile(r"^\| (\d+) \|(.*)$", re.MULTILINE)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
FAULTS = 53
LEFT_OUT_MAX = 5
FRAGMENT = re.compile(r"[a-z0-9-]+\.(security|breaking|feature|fix|speed)\.md")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]

    lost = [link for link in links if not (page.parent / link).exists()]

    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_make_has_the_targets_that_pages_name(page: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(TARGET.findall(page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_example_files_are_taken_as_they_stand(page: Path, tmp_path: Path) -> None:
    for number, (kind, text) in enumerate(FENCED.findall(page.read_text())):
        if kind == "toml":
            example = tmp_path / f"{number}.toml"
            example.write_text(text)
            load(str(example), {})


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of each `lb ...` that a page quotes."""
    for quoted in re.findall(r"`([^`\n]+)`", text) + text.splitlines():
        for part in re.split(r"&&|;|#", quoted):
            words = part.strip().removeprefix("$ ").split()
            if words[:1] == ["lb"] and len(words) > 1 and "…" not in part and "|" not in part:
                yield words[1:]


def unknown_in(words: list[str]) -> set[str]:
    """Return what of a command line `lb` does not have: the command itself, or options."""
    command: click.Command = lb
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return {rest[0]}
        command = found
        rest.pop(0)
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return {word for word in rest if re.fullmatch(r"--?[a-z][a-z-]*", word)} - known - {"--help"}


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"], ids=named)
def test_commands_that_pages_name_are_there(page: Path) -> None:
    lines = list(commands_in(page.read_text()))

    assert {" ".join(words): unknown for words in lines if (unknown := unknown_in(words))} == {}


def test_the_readme_is_short_and_says_how_to_start() -> None:
    text = (ROOT / "README.md").read_text()

    assert text.count("\n") <= README_LINES_MAX
    assert "make run" in text
    assert "make test" in text


def test_fragments_are_named_for_their_section() -> None:
    names = [path.name for path in (ROOT / "changelog.d").iterdir() if path.name != "README.md"]

    assert [name for name in names if not FRAGMENT.fullmatch(name)] == []


def test_every_fault_has_tests_that_exist_or_a_reason() -> None:
    text = (ROOT / "docs/faults.md").read_text()
    faults = {int(number): rest for number, rest in FAULT.findall(text)}

    assert list(faults) == list(range(1, FAULTS + 1))
    untested = [rest for rest in faults.values() if not NAMED_TEST.search(rest)]
    assert len(untested) <= LEFT_OUT_MAX
    assert all("left out: " in rest for rest in untested)
    lost = [
        f"{path}::{name}"
        for path, name in NAMED_TEST.findall(text)
        if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert lost == []
