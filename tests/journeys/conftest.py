"""Daemons and backends for the length of one test; whatever happens, none outlives it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from journeys.group_kit import Group, Instance
from journeys.kit import Backend, Daemon

Make = Callable[..., Daemon]


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    """Two backends, `a` and `b`."""
    with contextlib.ExitStack() as stack:
        made = [Backend(name) for name in "ab"]
        for backend in made:
            stack.callback(backend.close)
        yield made


@pytest.fixture
def plain(backends: list[Backend]) -> str:
    """The smallest config: one listener, one upstream with both backends."""
    return config_of(backends)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Make]:
    """Make a daemon of a config: `daemon(config, workers=2)`; it is not yet started."""
    with contextlib.ExitStack() as stack:

        def make(config: str, name: str = "one", **more: Any) -> Daemon:
            made = Daemon(tmp_path / name, config, **more)
            stack.callback(made.end)
            return made

        yield make


def config_of(backends: list[Backend], upstream: str = "", listener: str = "") -> str:
    """Write a config with one listener and one upstream, each with more lines if wanted."""
    addresses = ", ".join(f'"{backend.address}"' for backend in backends)
    return (
        f'[listener.web]\naddress = "127.0.0.1:{{port}}"\n{listener}\n'
        f"[upstream.app]\nbackends = [{addresses}]\n{upstream}\n"
    )


MakeGroup = Callable[..., Group]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[MakeGroup]:
    """Make a group of a config: `group(config, names="abc")`; it is not yet started."""
    with contextlib.ExitStack() as stack:

        def make(config: str, names: str = "abc", **more: Any) -> Group:
            made = Group(tmp_path, config, names, **more)
            stack.callback(made.end)
            return made

        yield make
        # Whatever was done to them, nothing foreseeable ends in a traceback.
        for log in sorted(tmp_path.glob("*/err.log")):
            assert "Traceback" not in log.read_text(), f"{log.parent.name}\n{log.read_text()}"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[[str], Instance]]:
    """Make an instance that belongs to none of the groups yet: `alone("d")`."""
    with contextlib.ExitStack() as stack:

        def make(name: str, folder: str = "") -> Instance:
            made = Instance(tmp_path / (folder or f"{name}-alone"), name)
            stack.callback(made.end)
            return made

        yield make
