"""Writing files and reading what the loader says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from lb.config.load import ConfigErrors, Loaded, Problem, load

SMALLEST = """
[listener.web]
address = "0.0.0.0:8080"
upstream = "app"

[upstream.app]
backends = ["127.0.0.1:9001", "127.0.0.1:9002"]
"""


class Folder:
    """A folder that is the current one: messages name files as an operator would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str | bytes, name: str = "lb.toml") -> str:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
        return name

    def load(self, text: str, environ: Mapping[str, str] | None = None) -> Loaded:
        return load(self.write(text), environ or {})

    def errors(
        self, text: str | bytes, environ: Mapping[str, str] | None = None
    ) -> tuple[Problem, ...]:
        self.write(text)
        with pytest.raises(ConfigErrors) as raised:
            load("lb.toml", environ or {})
        return raised.value.problems

    def messages(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        return [f"{each.line}:{each.column} {each.message}" for each in self.errors(text, environ)]
