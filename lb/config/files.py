"""
From files to one tree of plain values, each of which can still be found in its file.

Reads the file, what it includes, and what that includes; replaces variables; joins the tables.
All that is wrong is collected, so that one run says everything.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

from lb.config import environment
from lb.config.kinds import shown
from lb.config.positions import Path, Place, Positions, ScanError, TooDeepError, line_starts, scan
from lb.config.problem import Problem, excerpt
from lb.config.secrets import blanked

BYTES_MAX = 1024 * 1024  # All files together.
FILES_MAX = 1000
NAMED_TABLES = ("listener", "route", "upstream")  # Of these a file adds some, not all.
Order = tuple[int, int, int]  # File, line, column.
Blame = Callable[[str], Problem]
_BARE_TEXT = re.compile(r"=\s*[\w.:/*~-]")
_TOML_ERROR = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


@dataclass(slots=True)
class Source:
    """One file: as it is called in messages, its text, and where in it everything stands."""

    name: str
    text: str
    tree: dict[str, Any] = field(default_factory=dict)
    positions: Positions = field(default_factory=Positions)
    lines: list[str] = field(default_factory=list)  # Filled when first asked for.

    def problem(self, place: Place | None, message: str, hint: str = "") -> Problem:
        """Make an error at a place of this file, or about the file as a whole."""
        if place is None:
            return Problem(self.name, 0, 0, message, hint=hint)
        source_line, at = excerpt(blanked(self.line(place.line)), place.column)
        return Problem(
            self.name, place.line, place.column, message, source_line, place.width, hint, at
        )

    def line(self, number: int) -> str:
        """Return one line, counting from 1."""
        if not self.lines:
            self.lines = self.text.split("\n")
        return self.lines[number - 1] if number <= len(self.lines) else ""

    def place_at(self, offset: int) -> Place:
        """Say which line and column an offset is."""
        starts = line_starts(self.text)
        line = bisect_right(starts, offset)
        return Place(line, offset - starts[line - 1] + 1, 1)


class Files:
    """All files of one configuration, joined. `problems` says whether `tree` can be trusted."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.tree: dict[str, Any] = {}
        self.names: list[str] = []  # Absolute, in the order of reading.
        self.problems: list[Problem] = []
        self.unresolved: set[Path] = set()  # Values with a variable that could not be replaced.
        self._environ = environ
        self._digest = sha256()
        self._bytes_left = BYTES_MAX
        self._sources: list[Source] = []
        self._ranks: dict[str, int] = {}  # Names in the order of reading.
        self._owners: dict[Path, Source] = {}
        self._read: dict[str, str] = {}  # Real path of a file: by which name we read it.

    @property
    def digest(self) -> str:
        """A digest over the contents of all files, in the order of reading."""
        return self._digest.hexdigest()

    def read(self, name: str) -> None:
        """Read a file and what it includes into `tree`."""
        hint = 'make one with "lb init", or name another with -c'
        self._add(name, (), lambda message: Problem(name, 0, 0, message, hint=hint))

    def add_to_digest(self, content: bytes) -> None:
        """Have the digest depend on what is not a file of ours, and yet part of it all."""
        self._digest.update(b"%d:" % len(content) + content)

    def problem(self, path: Path, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """Make an error about a value, or about its key."""
        source, place = self._find(path, at_key)
        return source.problem(place, message, hint)

    def order(self, path: Path, *, at_key: bool = False) -> Order:
        """Say where in the order of reading a value is, or its key."""
        source, place = self._find(path, at_key)
        line, column, _ = place or (0, 0, 0)
        return self._rank(source.name), line, column

    def order_of(self, problem: Problem) -> Order:
        """Say where in the order of reading an error is."""
        return self._rank(problem.file), problem.line, problem.column

    def where(self, path: Path) -> str:
        """Say `file:line` of a key, for a message about another place."""
        source = self._owner(path)
        place = source.positions.keys.get(path)
        return f"{source.name}:{place.line}" if place else source.name

    def _find(self, path: Path, at_key: bool) -> tuple[Source, Place | None]:
        """Find the nearest place that is known: what has a default is in no file."""
        source = self._owner(path)
        positions = source.positions
        path = _as_written(path, positions)
        first, second = (
            (positions.keys, positions.values) if at_key else (positions.values, positions.keys)
        )
        for length in range(len(path), 0, -1):
            place = first.get(path[:length]) or second.get(path[:length])
            if place is not None:
                return source, place
        return source, None

    def _rank(self, name: str) -> int:
        return self._ranks.setdefault(name, len(self._ranks))

    def _owner(self, path: Path) -> Source:
        return self._owners.get(path[:2]) or self._owners.get(path[:1]) or self._sources[0]

    def _add(self, name: str, within: tuple[str, ...], blame: Blame) -> None:
        """Read one file. `blame` makes the error of one that cannot be read."""
        real = os.path.realpath(name)
        excuse = ""
        if real in within:
            loop = " -> ".join([*(self._read[each] for each in within), name])
            excuse = f"includes go round: {loop}"
        elif real in self._read:
            excuse = "is included twice"
        elif len(self._read) == FILES_MAX:
            excuse = f"is one more than {FILES_MAX} files"
        if excuse:
            self.problems.append(blame(excuse))
            return
        self._read[real] = name
        source = self._open(name, blame)
        if source is None:
            return
        self._sources.append(source)
        self._rank(name)
        if not _parse(source, self.problems):
            return
        self._replace_variables(source)
        include = source.tree.pop("include", None)
        self._join(source)
        for path, pattern in self._patterns(source, include):
            self._include(source, path, pattern, (*within, real))

    def _open(self, name: str, blame: Blame) -> Source | None:
        try:
            content = _read_bytes(name, self._bytes_left)
        except OSError as error:
            self.problems.append(blame(_excuse(error)))
            return None
        self.names.append(os.path.abspath(name))
        self.add_to_digest(content)
        if len(content) > self._bytes_left:
            self._bytes_left = 0
            message = "the configuration is larger than 1 MiB, all files together"
            self.problems.append(Problem(name, 0, 0, message, hint="nothing needs that much"))
            return None
        self._bytes_left -= len(content)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            before = Source(name, content[: error.start].decode())
            place = before.place_at(len(before.text))
            message = f"not UTF-8: byte 0x{content[error.start]:02x}"
            self.problems.append(
                Problem(name, place.line, place.column, message, hint="save it as UTF-8")
            )
            return None
        if text.startswith("\ufeff"):
            text = text[1:]  # A byte order mark, which editors of old put there.
        return Source(name, text.replace("\r\n", "\n"))

    def _replace_variables(self, source: Source) -> None:
        def visit(value: Any, path: Path) -> Any:
            match value:
                case dict():
                    return {key: visit(each, (*path, key)) for key, each in value.items()}
                case list():
                    return [visit(each, (*path, index)) for index, each in enumerate(value)]
                case str():
                    text, unset = environment.replace(value, self._environ)
                    if unset:
                        self.unresolved.add(path)
                    for each in unset:
                        place = _within(source, source.positions.values.get(path), each.written)
                        self.problems.append(source.problem(place, each.message, each.hint))
                    return text
                case _:
                    return value

        source.tree = visit(source.tree, ())

    def _patterns(self, source: Source, include: object) -> Iterator[tuple[Path, str]]:
        several = include if isinstance(include, list) else [include]
        for index, pattern in enumerate(several if include is not None else []):
            path: Path = ("include", index) if isinstance(include, list) else ("include",)
            if isinstance(pattern, str) and pattern and "\0" not in pattern:
                yield path, pattern
            else:
                place = source.positions.values.get(path)
                message = f"{shown(pattern)} is not a file or pattern"
                self.problems.append(source.problem(place, message, 'like "conf.d/*.toml"'))

    def _include(self, source: Source, path: Path, pattern: str, within: tuple[str, ...]) -> None:
        folder, place = os.path.dirname(source.name), source.positions.values.get(path)
        names = [pattern]
        if glob.has_magic(pattern):
            names = sorted(glob.glob(pattern, root_dir=folder or "."))

        for name in names:
            file = os.path.join(folder, name)
            self._add(file, within, partial(_blame_include, source, place, file))

    def _join(self, source: Source) -> None:
        for key, value in source.tree.items():
            there = self.tree.get(key)
            if key in NAMED_TABLES and isinstance(value, dict) and isinstance(there, dict | None):
                self._owners.setdefault((key,), source)
                named = self.tree.setdefault(key, {})
                for name, table in value.items():
                    self._put(named, name, table, (key, name), source)
            else:
                self._put(self.tree, key, value, (key,), source)

    def _put(self, table: dict[str, Any], key: str, value: Any, path: Path, source: Source) -> None:
        if key not in table:
            table[key] = value
            self._owners[path] = source
            return
        what = ".".join(str(part) for part in path)
        what = f"[{what}]" if isinstance(value, dict) else f'"{what}"'
        place = source.positions.keys.get(path)
        hint = f"first in {self.where(path)}"
        self.problems.append(source.problem(place, f"{what} is defined twice", hint))


def _blame_include(source: Source, place: Place | None, file: str, excuse: str) -> Problem:
    return source.problem(place, f"{file}: {excuse}")


def _read_bytes(name: str, bytes_left: int) -> bytes:
    """Read one byte more than there is room for, and never wait for a pipe's other end."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        return file.read(bytes_left + 1)


def _excuse(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "the user that runs lb may not read it"
        case IsADirectoryError():
            return "is a directory, not a file"
        case _:
            return f"cannot be read: {error.strerror or error}"


def _as_written(path: Path, positions: Positions) -> Path:
    """Leave out indexes of lists that were written as their only element."""
    written: Path = ()
    for part in path:
        longer = (*written, part)
        alone = part == 0 and written in positions.keys
        if not alone or longer in positions.values or longer in positions.keys:
            written = longer
    return written


def _parse(source: Source, problems: list[Problem]) -> bool:
    """Fill in tree and positions, or say what is wrong with the TOML."""
    astray: ScanError | None = None
    try:
        source.positions = scan(source.text)
    except TooDeepError as error:
        # Before tomllib: a key of many parts costs it their square, and lists its stack.
        problems.append(source.problem(source.place_at(error.offset), error.message))
        return False
    except ScanError as error:
        astray = error
    try:
        source.tree = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        problems.append(_toml_problem(source, str(error)))
        return False
    except ValueError:
        # Python's own bound on the digits of a number: tomllib lets it through.
        digits = re.search(r"[0-9_]{4000,}", source.text)
        place = source.place_at(digits.start() if digits else 0)
        problems.append(source.problem(place, "this number is too long"))
        return False
    assert astray is None, f"tomllib reads what our scanner does not: {astray}"
    return True


def _toml_problem(source: Source, text: str) -> Problem:
    found = _TOML_ERROR.fullmatch(text)
    message = found[1] if found else text
    if message.startswith(("Cannot", "Duplicate")):
        repeat = _repeat(source)
        if repeat is not None:
            return repeat
    if found and found[2]:
        place = Place(int(found[2]), int(found[3]), 1)
    else:
        place = source.place_at(len(source.text.rstrip()))
    hint = ""
    if message.startswith(("Expected newline", "Invalid value")) and _BARE_TEXT.search(
        source.line(place.line)
    ):
        hint = "text goes in quotes"
    return source.problem(place, f"not TOML: {message[:1].lower()}{message[1:]}", hint)


def _repeat(source: Source) -> Problem | None:
    """Find what is there twice; tomllib says so only after it, and not where the first is."""
    repeats = source.positions.repeats
    if not repeats:
        return None
    path, first, again = repeats[0]
    what = f'"{path[-1]}"'
    if source.line(again.line).lstrip().startswith("["):
        what = f"[{'.'.join(map(str, path))}]"
    return source.problem(again, f"{what} is defined twice", f"first on line {first.line}")


def _within(source: Source, place: Place | None, written: str) -> Place | None:
    """Narrow the place of a text down to the part of it that is meant, if it is on that line."""
    if place is None:
        return None
    start = source.line(place.line).find(written, place.column - 1)
    return place if start < 0 else Place(place.line, start + 1, len(written))
