"""The files that we write for others: the annotated one, and the smallest that works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lb.config import toml
from lb.errors import OperatorError

_PACKAGE = Path(__file__).parent.parent
_PLACES = (_PACKAGE / "_conf" / "lb.toml", _PACKAGE.parent / "conf" / "lb.toml")


def sample() -> str:
    """Return the annotated file that `lb init` writes, from the wheel or from a checkout."""
    for place in _PLACES:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise OperatorError(f"{_PLACES[0]} is missing", "install accord-lb anew")


def smallest(listen: Sequence[str], to: Sequence[str], data_dir: str | None = None) -> str:
    """Return a file for `lb run --listen ... --to ...`: one listener, one upstream."""
    tree: dict[str, dict[str, object]] = {
        "listener": {"web": {"address": list(listen)}},
        "upstream": {"app": {"backends": list(to)}},
    }
    if data_dir is not None:
        tree = {"node": {"data_dir": data_dir}, **tree}
    return toml.write(tree)
