"""`${VAR}` and `${VAR:-default}` inside text, replaced after parsing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# `$${` is a plain `${`; a `$` before anything else, as in `~^/x$`, means itself.
_VARIABLE = re.compile(
    r"\$\$(?=\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{[^}]*\}?"
)


@dataclass(frozen=True, slots=True)
class Unset:
    """What could not be replaced: the text as written, and why."""

    written: str
    message: str
    hint: str


def replace(text: str, environ: Mapping[str, str]) -> tuple[str, list[Unset]]:
    """
    Replace every variable. One that is empty counts as unset where there is a default.

    What cannot be replaced stays as it is and is returned.
    """
    unset: list[Unset] = []

    def value(found: re.Match[str]) -> str:
        written, name, default = found[0], found["name"], found["default"]
        if written == "$$":
            return "$"
        if name is None:
            unset.append(Unset(written, f"{written} names no variable", 'like "${PORT:-80}"'))
            return written
        current = environ.get(name)
        if current is None and default is None:
            unset.append(
                Unset(written, f"{name} is not set", f'set it, or write "${{{name}:-...}}"')
            )
            return written
        if current is not None and not _is_text(current):
            unset.append(Unset(written, f"{name} holds bytes that are not UTF-8", "set it anew"))
            return written
        return (current or default or "") if default is not None else (current or "")

    return (_VARIABLE.sub(value, text), unset) if "${" in text else (text, unset)


def _is_text(value: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in value)
