"""The scanner finds what tomllib finds, and where it says, the key or value is."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.config.positions import PATH_PARTS_MAX, Place, Positions, ScanError, scan

ROOT = Path(__file__).resolve().parents[2]
Keys = tuple[str | int, ...]

DOCUMENTS = {
    "empty": "",
    "a comment": "# nothing",
    "pairs": 'a = 1\nb="two"   # three\n\tc\t=\t3.5',
    "dotted": "a.b.c = 1\na . \"d e\" = 2\na.'f.g' = 3",
    "headers": "[a]\nx = 1\n[a.b]\n[c.d.e]\ny = 2\n[c]\nz = 3\n",
    "header with spaces": '[ a . "b c" ]\nx = 1',
    "lists of tables": "[[a]]\nx = 1\n[[a]]\n[a.b]\ny = 2\n[[a.c]]\n[[a.c]]\nz = 1\n",
    "list": 'a = [1, 2,\n  3, # no ] here\n  "]", [4, [5]],\n]\n',
    "inline": 'a = { b = 1, c = { d = [ { e = "}" } ] }, f.g = 2 }',
    "empties": 'a = []\nb = {}\nc = ""\nd = \'\'\n"" = 1',
    "long text": 'a = """x\n"y" ""z\\" """\nb = \'\'\'it\'s\n# no comment\'\'\'\nc = 1',
    "quotes at the end": 'a = """x"""""\nb = \'\'\'x\'\'\'\'\nc = """"x"""\nd = """"""\ne=1',
    "escapes": r'"a\"b\u00e4\t" = "\\"' + "\nc = '\\'\nd = 1",
    "dates": "a = 1979-05-27 07:32:00\nb = 1979-05-27T07:32:00Z # x\nc = [07:32:00, 1979-05-27]",
    "numbers": "a = [+1, -2.5e3, 0xff, 1_000, inf, -nan, true]\nb = { c = -1 }",
}


def paths_of(tree: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield every key and list index of a tree, with its value."""
    if isinstance(tree, dict):
        pairs: list[tuple[str | int, Any]] = list(tree.items())
    elif isinstance(tree, list):
        pairs = list(enumerate(tree))
    else:
        return
    for part, value in pairs:
        yield (*path, part), value
        yield from paths_of(value, (*path, part))


def leaves(tree: Any) -> dict[Keys, str]:
    """Return all paths; a table by its type only, as files do not keep the order of keys."""
    return {
        path: type(value).__name__ if isinstance(value, dict | list) else repr(value)
        for path, value in paths_of(tree)
    }


def cut(text: str, place: Place) -> str:
    line = text.split("\n")[place.line - 1]
    return line[place.column - 1 : place.column - 1 + place.width]


def check(text: str) -> Positions:
    found = scan(text)
    tree = tomllib.loads(text)
    wanted = dict(paths_of(tree))
    assert found.keys.keys() | found.values.keys() == wanted.keys()
    assert found.repeats == []
    for path, place in found.keys.items():
        if isinstance(path[-1], str):
            assert tomllib.loads(f"{cut(text, place)} = 0") == {path[-1]: 0}
    for path, place in found.values.items():
        written = cut(text, place)
        if "\n" not in written and not written.startswith(('"""', "'''", "[", "{")):
            assert repr(tomllib.loads(f"x = {written}")["x"]) == repr(wanted[path])
    return found


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_documents(text: str) -> None:
    check(text)


@pytest.mark.parametrize("path", [*ROOT.glob("*.toml"), *ROOT.glob("conf/*.toml")], ids=str)
def test_real_files(path: Path) -> None:
    check(path.read_text())


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], include_characters="\t"),
    max_size=8,
)
SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    NAMES,
    st.dates(),
    st.datetimes().map(lambda each: each.replace(fold=0)),
    st.times().map(lambda each: each.replace(fold=0)),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


class Writer:
    """Writes a tree in one of the many ways that TOML has for it."""

    def __init__(self, draw: st.DataObject) -> None:
        self._draw = draw

    def document(self, tree: dict[str, Any], prefix: str = "") -> str:
        """Pairs first, then tables: as headers, lists of tables, dotted or inline."""
        pairs, tables = [], []
        for name, value in tree.items():
            key = self.key(name)
            header = f"{prefix}{key}"
            if isinstance(value, dict) and self.either():
                tables.append(f"[{self.gap()}{header}{self.gap()}]{self.end()}")
                tables.append(self.document(value, f"{header}{self.gap()}.{self.gap()}"))
            elif (
                isinstance(value, list)
                and value
                and self.either()
                and all(isinstance(each, dict) for each in value)
            ):
                for each in value:
                    tables.append(f"[[{header}]]{self.end()}")
                    tables.append(self.document(each, f"{header}."))
            else:
                pairs.append(self.pair(key, value) + self.end())
        return "".join(pairs + tables)

    def pair(self, key: str, value: Any) -> str:
        if isinstance(value, dict) and len(value) == 1 and self.either():
            ((name, inner),) = value.items()
            return self.pair(f"{key}{self.gap()}.{self.gap()}{self.key(name)}", inner)
        return f"{key}{self.gap()}={self.gap()}{self.value(value)}"

    def value(self, value: Any) -> str:
        if isinstance(value, dict):
            inner = ", ".join(self.pair(self.key(name), each) for name, each in value.items())
            return f"{{{self.gap()}{inner}{self.gap()}}}"
        if isinstance(value, list):
            inner = "".join(f"{self.break_()}{self.value(each)}{self.break_()}," for each in value)
            return f"[{inner if self.either() else inner.rstrip(',')}{self.break_()}]"
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        return repr(value) if isinstance(value, int | float) else value.isoformat()

    def text(self, value: str) -> str:
        basic = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        forms = [basic, f'""{basic}""' if basic != '""' else basic]
        if "'" not in value:
            forms += [f"'{value}'", f"'''\n{value}'''", f"'''{value}'''"]
        return self._draw.draw(st.sampled_from(forms))

    def key(self, name: str) -> str:
        bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if bare and self.either():
            return name
        if "'" not in name and self.either():
            return f"'{name}'"
        return json.dumps(name, ensure_ascii=False)

    def either(self) -> bool:
        return self._draw.draw(st.booleans())

    def gap(self) -> str:
        return self._draw.draw(st.sampled_from(["", " ", "\t "]))

    def end(self) -> str:
        return self._draw.draw(st.sampled_from(["\n", " # ] } = \" '\n", "\n\n  "]))

    def break_(self) -> str:
        return self._draw.draw(st.sampled_from(["", " ", "\n", "# ] , \" '\n"]))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=5), st.data())
def test_any_document(tree: dict[str, Any], draw: st.DataObject) -> None:
    text = Writer(draw).document(tree)
    assert leaves(tomllib.loads(text)) == leaves(tree), "the test's own writer is wrong"
    check(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab[]{}\"'=.,#\n \\0"), max_size=40))
def test_what_is_no_toml_does_no_harm(text: str) -> None:
    """It is only ever asked about what tomllib accepts, or to find what is there twice."""
    with suppress(ScanError):
        scan(text)


TOKENS = st.sampled_from(
    [
        *("a", "b", '"c"', "'d'", '"""e"""', "'''f'''", ".", "=", "1", "[", "]", "[[", "]]"),
        *("{", "}", ",", "\n", " ", "# x", '"', "'", "\\", "a = ", "[a]\n", "[[a]]\n", "= 1\n"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(TOKENS, max_size=20).map("".join))
def test_whatever_tomllib_accepts_is_read(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    check(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        ".".join("a" * 5000) + " = 1",
        "[" + ".".join("a" * 99) + "]",
    ],
)
def test_nesting_has_a_bound(text: str) -> None:
    with pytest.raises(ScanError, match=str(PATH_PARTS_MAX)):
        scan(text)


def test_places_count_from_one() -> None:
    found = scan("\n  [listener.web]\naddress = [ 'ä', \"b\" ]")

    assert found.keys["listener", "web"] == Place(2, 13, 3)
    assert found.keys["listener", "web", "address"] == Place(3, 1, 7)
    assert found.values["listener", "web", "address", 1] == Place(3, 18, 3)
