"""`lb run` without a file, and `lb demo`: the files that they make, and what the demo says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lb.cli.running import config_text
from lb.config.load import load
from lb.demo import Ports, body_for, free_ports, lb_command
from lb.demo import config_text as demo_config
from lb.errors import StartError, UsageError


def test_run_without_a_file_is_a_file(tmp_path: Path) -> None:
    text = config_text((":8080",), ("127.0.0.1:9001", "b.example:80"), "127.0.0.1:9901")
    path = tmp_path / "made.toml"
    path.write_text(text.replace("{folder}", str(tmp_path)))

    config = load(str(path), {}).config

    assert config.listener["main"].address == [":8080"]
    backends = config.upstream["main"].backends
    assert backends is not None
    assert [backend.address for backend in backends] == ["127.0.0.1:9001", "b.example:80"]
    assert config.admin.address == "127.0.0.1:9901"
    assert config.node.data_dir == str(tmp_path / "state")
    with pytest.raises(UsageError):
        config_text((":8080",), ("a",), None)


@pytest.mark.parametrize(
    ("path", "word"),
    [("", ".venv/bin/lb"), ("{bin}", "lb"), ("/usr/bin", ".venv/bin/lb")],
)
def test_the_demo_names_the_lb_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, word: str
) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", path.replace("{bin}", str(folder)))

    assert lb_command() == f"{folder / 'python'} -m lb.cli"
    (folder / "lb").touch(mode=0o755)
    assert lb_command() == word


def test_the_demo_s_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(demo_config(str(tmp_path), Ports(8080, 9900, (9001, 9002, 9003))))

    loaded = load(str(path), {})

    assert not loaded.warnings
    assert loaded.config.node.grace == 0
    assert loaded.config.node.workers == 1  # So that a b c come in turn.


def test_free_ports_are_below_or_refused() -> None:
    ports = free_ports(20_000, 3, taken={20_001})

    assert len(set(ports)) == 3
    assert 20_001 not in ports
    with pytest.raises(StartError):
        free_ports(65_535, 3, taken=set())


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (b"/", b"a\n"),
        (b"/x?y", b"a\n"),
        (b"/healthz", b"ok\n"),
        (b"/bytes/3", b"aaa"),
        (b"/bytes/x", b"a\n"),
    ],
)
def test_a_toy_answers_its_letter(target: bytes, body: bytes) -> None:
    assert body_for(target, b"a") == body
