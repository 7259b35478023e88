"""The parser process: the same result as `load`, from a fork of another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.kit import SMALLEST, Folder
from lb.build import BUILD

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = """
from lb.plugin import Plugin
{what}
class Greeter(Plugin):
    name = "greeter"
"""
USES_IT = SMALLEST + "[plugins]\nfolders = 'plugins'\nuse = 'greeter'\n"

Ask = Callable[[str], dict[str, Any]]


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Ask one and the same process of one file after another."""
    with subprocess.Popen(
        [sys.executable, "-m", "lb.config.parse"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        to, back = process.stdin, process.stdout
        assert to is not None
        assert back is not None

        def asked(path: str) -> dict[str, Any]:
            to.write(json.dumps(path).encode() + b"\n")
            to.flush()
            return dict(json.loads(back.read(int(back.readline()))))

        yield asked
        to.close()
        assert process.wait(10) == 0


def test_good_and_bad_files_one_after_another(folder: Folder, ask: Ask) -> None:
    folder.write(SMALLEST)
    folder.write("[upstream.a]\nx = 1\n", "bad.toml")

    good, bad, again = ask("lb.toml"), ask("bad.toml"), ask("lb.toml")

    assert good == again
    assert good["build"] == bad["build"] == BUILD
    assert good["config"]["upstream"]["app"]["panic"] == "30%"
    assert bad["errors"][0]["line"] == 2


def test_a_path_may_have_any_name(folder: Folder, ask: Ask) -> None:
    folder.write(SMALLEST, "a\nb ü.toml")
    assert ask("a\nb ü.toml")["files"] == [str(folder.path / "a\nb ü.toml")]


@pytest.mark.parametrize(
    ("what", "died"),
    [
        ("import os; print('oops', flush=True); os._exit(3)", "oops"),
        ("import os; os._exit(3)", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    ],
)
def test_code_that_ends_its_reader_ends_nothing_else(
    folder: Folder, ask: Ask, what: str, died: str
) -> None:
    write_plugin(folder, what)
    folder.write(USES_IT)
    folder.write(SMALLEST, "other.toml")

    assert ask("lb.toml") == {"build": BUILD, "died": died}
    assert "config" in ask("other.toml")


def test_what_code_prints_is_no_answer(folder: Folder, ask: Ask) -> None:
    write_plugin(folder, "print('hello')")
    folder.write(USES_IT)
    assert "config" in ask("lb.toml")


def test_code_is_read_anew_each_time(folder: Folder, ask: Ask) -> None:
    folder.write(USES_IT)
    write_plugin(folder, "import sys; sys.left_behind = 1")
    assert "config" in ask("lb.toml")
    write_plugin(folder, "import sys; assert not hasattr(sys, 'left_behind')")
    assert "config" in ask("lb.toml")
    write_plugin(folder, "assert False, 'changed'")
    assert "changed" in ask("lb.toml")["text"]


def write_plugin(folder: Folder, what: str) -> None:
    (folder.path / "plugins").mkdir(exist_ok=True)
    folder.write(PLUGIN.format(what=what), "plugins/greeter.py")
