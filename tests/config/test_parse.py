"""The parse child: the same result as `load`, in another process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.kit import SMALLEST, Folder
from lb.build import BUILD
from lb.config import parse
from lb.config.load import ConfigErrors, load
from lb.config.parse import parse_in_child
from lb.errors import OperatorError, OurError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_the_result_is_that_of_load(folder: Folder) -> None:
    folder.write(SMALLEST + "[upstream.b]\nhealth = { path = '/h', interval = '250ms' }\n")

    loaded = asyncio.run(parse_in_child("lb.toml"))

    assert loaded == load("lb.toml", os.environ)


def test_errors_come_back_whole(folder: Folder) -> None:
    folder.write("x = 1\n" * 1 + "[listener.a]\n" + "".join(f"k{n} = 1\n" for n in range(200)))
    with pytest.raises(ConfigErrors) as there:
        load("lb.toml", {})
    with pytest.raises(ConfigErrors) as here:
        asyncio.run(parse_in_child("lb.toml"))

    assert here.value.problems == there.value.problems
    assert here.value.count == there.value.count
    assert str(here.value) == str(there.value)


def test_what_the_child_prints(folder: Folder) -> None:
    folder.write("[upstream.a]\nx = 1\n")
    command = [sys.executable, "-m", "lb.config.parse", "lb.toml"]

    bad = subprocess.run(command, capture_output=True, check=False)
    folder.write(SMALLEST)
    good = subprocess.run(command, capture_output=True, check=False)

    assert (bad.returncode, good.returncode) == (3, 0)
    assert json.loads(bad.stdout)["errors"][0]["line"] == 2
    assert json.loads(good.stdout)["build"] == BUILD
    assert json.loads(good.stdout)["config"]["upstream"]["app"]["panic"] == "30%"


def test_a_child_that_dies(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(SMALLEST)
    folder.write("raise SystemExit('no lb here')", "lb/__init__.py")
    monkeypatch.setenv("PYTHONPATH", str(folder.path))

    with pytest.raises(OurError, match="no lb here"):
        asyncio.run(parse_in_child("lb.toml"))


def test_a_child_of_another_build(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(SMALLEST)
    monkeypatch.setattr(parse, "BUILD", "another")

    with pytest.raises(OperatorError, match="not the one that runs"):
        asyncio.run(parse_in_child("lb.toml"))


def test_a_child_that_does_not_end(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("import signal; signal.pause()", "lb/__init__.py")
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    monkeypatch.setattr(parse, "PARSE_SECONDS_MAX", 0.2)

    with pytest.raises(OperatorError, match="not parsed within"):
        asyncio.run(parse_in_child("lb.toml"))


def test_the_child_lets_workers_go_first(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    nicer = os.getpriority(os.PRIO_PROCESS, 0) + parse.NICER
    folder.write(
        f"import os, sys\nwhile os.getpriority(os.PRIO_PROCESS, 0) < {min(nicer, 19)}: pass\n"
        "sys.exit('it has lower priority')",
        "lb/__init__.py",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    monkeypatch.setattr(parse, "PARSE_SECONDS_MAX", 5.0)

    with pytest.raises(OurError, match="it has lower priority"):
        asyncio.run(parse_in_child("lb.toml"))


def test_the_loop_turns_meanwhile(folder: Folder) -> None:
    folder.write("import signal; signal.pause()", "lb/__init__.py")

    async def race() -> None:
        task = asyncio.ensure_future(parse_in_child("lb.toml"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(race())
