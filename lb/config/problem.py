"""What is wrong with a configuration, and where: one value an error, one text for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lb.errors import OperatorError

PROBLEMS_MAX = 100  # A file of rubbish has no end of errors; nobody reads past these.
SOURCE_COLUMNS_MAX = 160  # Of a line quoted below an error; a longer one is cut around the place.


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One error. `line` and `column` count from 1; line 0 means the file as a whole.

    `width` is how many characters of `source_line` are at fault, `hint` what to do instead.
    Of a long line `source_line` is the part around the place, which is then at column `at` of it.
    """

    file: str
    line: int
    column: int
    message: str
    source_line: str = ""
    width: int = 1
    hint: str = ""
    at: int = 0

    def __str__(self) -> str:
        if self.line == 0:
            hint = f"; {self.hint}" if self.hint else ""
            return f"{self.file}: error: {self.message}{hint}"
        source, before = self.source_line, (self.at or self.column) - 1
        # Tabs stay tabs, or the caret would stand somewhere else than what it points at.
        pad = "".join("\t" if letter == "\t" else " " for letter in source[:before])
        width = max(1, min(self.width, len(source) - before))
        marks = f"{'^' * width} {self.hint}".rstrip()
        return (
            f"{self.file}:{self.line}:{self.column}: error: {self.message}\n"
            f"{self.line:>5} | {source}\n"
            f"      | {pad}{marks}"
        )


class ConfigErrors(OperatorError):  # noqa: N818 - it is all of them, not one
    """A configuration that cannot be used; its text is what `lb check` prints."""

    exit_status = 3

    def __init__(self, problems: Iterable[Problem], count: int = 0) -> None:
        """`count` is how many there are, where not all of them are in `problems`."""
        found = tuple(problems)
        assert found, "an error without a problem says nothing"
        self.problems = found[:PROBLEMS_MAX]
        self.count = max(count, len(found))
        super().__init__(render(self.problems, self.count))

    @property
    def brief(self) -> str:
        """The first problem, and how many more there are."""
        first = str(self.problems[0]).partition("\n")[0].replace(": error: ", ": ")
        more = self.count - 1
        return first + (f" (and {more} more: see lb check)" if more else "")

    def as_plain(self) -> dict[str, Any]:
        """For JSON: what the parser process answers and `POST /v1/config/reload` answers with."""
        return {
            "errors": [asdict(problem) for problem in self.problems],
            "count": self.count,
            "text": self.message,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ConfigErrors:
        """Undo `as_plain`."""
        return cls((Problem(**problem) for problem in plain["errors"]), plain["count"])


def render(problems: Iterable[Problem], count: int) -> str:
    """Write all problems one below the other, and last how many there are."""
    lines = [str(problem) for problem in problems]
    if count > len(lines):
        lines.append(f"... and {count - len(lines)} more")
    lines.append(f"{count} error{'' if count == 1 else 's'}; nothing was changed")
    return "\n".join(lines)


def excerpt(source: str, column: int) -> tuple[str, int]:
    """
    Cut a long line around a column; return what is left, and the column in it.

    Control characters become question marks, so that they never reach a terminal.
    """
    start = 0
    if len(source) > SOURCE_COLUMNS_MAX:
        start = max(0, min(column - 1 - SOURCE_COLUMNS_MAX // 2, len(source) - SOURCE_COLUMNS_MAX))
    lead = "..." if start else ""
    text = source[start : start + SOURCE_COLUMNS_MAX]
    clean = "".join(letter if letter.isprintable() or letter == "\t" else "?" for letter in text)
    return lead + clean, column - start + len(lead)
