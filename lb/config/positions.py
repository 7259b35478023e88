"""
Where each key and value of a TOML text stands.

`tomllib` judges the text and gives the values, yet no positions. This scanner finds the same
keys in a text that `tomllib` accepts, and notes line and column. It judges nothing: it skips
over values just well enough to find their ends.

A path is the keys and list indexes that lead to a value: `("upstream", "api", "backends", 0)`.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

PATH_PARTS_MAX = 32  # Keys and indexes that lead to a value; of those that we know six do.

Path = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t]*")
_SPACE_AND_COMMENTS = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"""(?:"{0,2})'
    r"|'''(?:[^']|'(?!''))*+'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*+"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


class Place(NamedTuple):
    """A stretch of one line; both numbers count from 1."""

    line: int
    column: int
    width: int


@dataclass(frozen=True, slots=True)
class Positions:
    """
    `keys`: where a key is written (for a table: in its header); `values`: where its value is.

    `repeats` is for a text that `tomllib` refused: what is there twice, first place and second.
    """

    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    repeats: list[tuple[Path, Place, Place]] = field(default_factory=list)


class ScanError(Exception):
    """The text is no TOML at `offset`; what `tomllib` says of it will be the better words."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class TooDeepError(ScanError):
    """The text goes past what a configuration needs, and what `tomllib` could do quickly."""


def scan(text: str) -> Positions:
    """Find all keys and values of a text that `tomllib` accepts (with \\n as its line end)."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.found


def line_starts(text: str) -> list[int]:
    """List the offset at which each line begins."""
    return [0, *(match.end() for match in re.finditer("\n", text))]


class _Scanner:
    def __init__(self, text: str) -> None:
        self.found = Positions()
        self._text = text
        self._at = 0
        self._line_starts = line_starts(text)
        self._lengths: dict[Path, int] = {}  # Of lists of tables: [[header]] adds one.
        self._headers: set[Path] = set()

    def document(self) -> None:
        table: Path = ()
        while self._skip(_SPACE_AND_COMMENTS) < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """Read `[a.b]` or `[[a.b]]` and return the path of the table that begins there."""
        is_list = self._text.startswith("[[", self._at)
        brackets = 2 if is_list else 1
        self._at += brackets
        parts = self._key()
        self._skip(_SPACE)
        self._at += brackets
        path: Path = ()
        for number, (name, place) in enumerate(parts, start=1):
            path = (*path, name)
            last = number == len(parts)
            first = self.found.keys.setdefault(path, place)
            if path in self.found.values:
                self.found.repeats.append((path, first, place))
            if last and is_list:
                if path in self._headers:
                    self.found.repeats.append((path, first, place))
                self._lengths[path] = self._lengths.get(path, 0) + 1
            elif last:
                if path in self._headers or path in self._lengths:
                    self.found.repeats.append((path, first, place))
                self._headers.add(path)
                self.found.keys[path] = place  # The header itself, not one of a table below it.
            if path in self._lengths:
                path = (*path, self._lengths[path] - 1)
                if last:
                    self.found.keys[path] = place
        return path

    def _pair(self, table: Path) -> None:
        path = table
        parts = self._key()
        for number, (name, place) in enumerate(parts, start=1):
            path = (*path, name)
            first = self.found.keys.setdefault(path, place)
            # The last part is new in every pair; those before it only if they have no value yet.
            if first != place and (number == len(parts) or path in self.found.values):
                self.found.repeats.append((path, first, place))
        self._skip(_SPACE)
        self._at += 1  # The equals sign.
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[tuple[str, Place]]:
        parts: list[tuple[str, Place]] = []
        while True:
            start = self._skip(_SPACE)
            if len(parts) == PATH_PARTS_MAX:
                raise TooDeepError(f"a key has at most {PATH_PARTS_MAX} parts", start)
            name = self._take(_STRING)
            if name:
                name = _unquote(name, start)
            else:
                name = self._take(_BARE_KEY)
                if not name:
                    raise ScanError("there is no key here", start)
            parts.append((name, self._place(start)))
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _value(self, path: Path) -> None:
        start = self._at
        if len(path) > PATH_PARTS_MAX:
            raise TooDeepError(f"values are nested more than {PATH_PARTS_MAX} deep", start)
        if self._text.startswith("[", start):
            self._list(path)
        elif self._text.startswith("{", start):
            self._inline_table(path)
        elif not self._take(_STRING):
            scalar = self._take(_SCALAR)
            if not scalar:
                raise ScanError("there is no value here", start)
            self._at = start + len(scalar.rstrip())
        self.found.values[path] = self._place(start)

    def _list(self, path: Path) -> None:
        self._at += 1
        index = 0
        while not self._text.startswith("]", self._skip(_SPACE_AND_COMMENTS)):
            self._value((*path, index))
            index += 1
            if self._text.startswith(",", self._skip(_SPACE_AND_COMMENTS)):
                self._at += 1
        self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while not self._text.startswith("}", self._skip(_SPACE_AND_COMMENTS)):
            self._pair(path)
            if self._text.startswith(",", self._skip(_SPACE_AND_COMMENTS)):
                self._at += 1
        self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._take(pattern)
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _place(self, start: int) -> Place:
        """Say where the stretch from `start` to here is, or as much of it as the line holds."""
        line = bisect_right(self._line_starts, start)
        column = start - self._line_starts[line - 1] + 1
        end = self._text.find("\n", start, self._at)
        return Place(line, column, (self._at if end < 0 else end) - start)


def _unquote(name: str, offset: int) -> str:
    if name.startswith("'") or "\\" not in name:
        return name[1:-1]
    try:
        value: str = tomllib.loads(f"name = {name}")["name"]
    except tomllib.TOMLDecodeError:
        raise ScanError("there is no key here", offset) from None
    return value
