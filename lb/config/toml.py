"""Writing TOML: the shape of our own file, for `lb config show`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def write(tree: Mapping[str, Any]) -> str:
    """Write a tree of plain values; `None` is left out, as TOML has none."""
    return "\n".join(_lines(tree)).strip() + "\n"


def value(plain: Any) -> str:
    """Write one value."""
    match plain:
        case bool():
            return "true" if plain else "false"
        case str():
            return _text(plain)
        case Mapping():
            pairs = [f"{key(k)} = {value(v)}" for k, v in plain.items() if v is not None]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
        case list() | tuple():
            return f"[{', '.join(map(value, plain))}]"
        case _:
            return str(plain)


def key(name: str) -> str:
    """Write a key, quoted where it must be."""
    return name if _BARE.fullmatch(name) else _text(name)


def _lines(tree: Mapping[str, Any]) -> Iterator[str]:
    for name, plain in tree.items():
        if plain is not None and not isinstance(plain, Mapping):
            yield f"{key(name)} = {value(plain)}"
    for name, plain in tree.items():
        if not isinstance(plain, Mapping):
            continue
        if plain and all(isinstance(inner, Mapping) for inner in plain.values()):
            for inner_name, inner in plain.items():
                yield from ("", f"[{key(name)}.{key(inner_name)}]", *_pairs(inner))
        elif plain:
            yield from ("", f"[{key(name)}]", *_pairs(plain))


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    for name, plain in table.items():
        if name == "backends" and isinstance(plain, list) and plain:
            # One a line: this is what people read, compare and cut.
            yield "backends = ["
            yield from (f"  {value(each)}," for each in plain)
            yield "]"
        elif plain is not None:
            yield f"{key(name)} = {value(plain)}"


def _text(plain: str) -> str:
    plain = plain.replace("${", "$${")  # Read back it must not become a variable.
    return '"' + "".join(_ESCAPES.get(each) or _printable(each) for each in plain) + '"'


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
