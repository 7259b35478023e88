"""Which file is meant. Apart from `load`: `lb run` asks this and must not load pydantic for it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lb.errors import UsageError

DEFAULT_FILES = ("lb.toml", "/etc/lb/lb.toml")


def find_config(given: str | None, environ: Mapping[str, str]) -> str:
    """Say which file to read: the one given, else $LB_CONFIG, ./lb.toml, /etc/lb/lb.toml."""
    named = given or environ.get("LB_CONFIG")
    if named:
        return named
    for path in DEFAULT_FILES:
        if os.path.exists(path):
            return path
    raise UsageError(
        f"no configuration: looked for $LB_CONFIG, ./{', '.join(DEFAULT_FILES)}",
        'name one with -c, or make one with "lb init"',
    )
