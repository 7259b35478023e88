"""Files that are no plugins of ours: what the operator reads, with file and line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.kit import SMALLEST, Folder
from lb.config import plugins
from lb.config.load import ConfigErrors, load

GOOD = """\
from dataclasses import dataclass

from lb.plugin import Plugin


class A(Plugin):
    name = "a"
"""
USE = f'[plugins]\nfolders = "p"\nuse = "a"\n{SMALLEST}'


def said(folder: Folder, config: str = USE) -> str:
    """Return what is said of a config, in the words that are printed."""
    folder.write(config)
    with pytest.raises(ConfigErrors) as raised:
        load("lb.toml", {})
    return str(raised.value).replace(f"{folder.path}/", "")


def method(text: str) -> str:
    """Return the good one with another method."""
    return GOOD + "\n" + "".join(f"    {line}\n" for line in text.split("\n"))


BAD = {
    "syntax": (
        method("def on_request(self, req)\n    pass"),
        "p/a.py:9:5: error: not Python: expected ':'\n"
        "    9 |     def on_request(self, req)\n"
        "      |     ^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "1 error; nothing was changed",
    ),
    "an import": (
        f"import no_such_thing\n{GOOD}",
        "p/a.py:1:1: error: cannot be imported: ModuleNotFoundError: No module named"
        " 'no_such_thing'\n"
        "    1 | import no_such_thing\n"
        "      | ^^^^^^^^^^^^^^^^^^^^\n"
        "1 error; nothing was changed",
    ),
    "it raises": (f"{GOOD}\n1 / 0\n", "p/a.py:9:1: error: cannot be imported: ZeroDivisionError"),
    "it exits": (f"{GOOD}\nexit()\n", "p/a.py:9:1: error: cannot be imported: SystemExit"),
    "not text": (GOOD + "\0", "p/a.py: error: not Python: source code string cannot contain null"),
    "not UTF-8": (b"# \xe4\n" + GOOD.encode(), "p/a.py: error: not UTF-8; save it as UTF-8\n"),
    "too large": (GOOD + "#" * (512 * 1024), "p/a.py: error: larger than 512 KiB\n"),
    "no name": (
        GOOD.replace('name = "a"', "pass"),
        "p/a.py:6:1: error: plugin A has no name\n"
        "    6 | class A(Plugin):\n"
        '      | ^^^^^^^^^^^^^^^^ write name = "..." in it\n',
    ),
    "a name that is computed": (
        GOOD.replace('"a"', '"a".lower()').replace("(Plugin)", "(Plugin[None])"),
        "p/a.py:6:1: error: plugin A has no name\n",
    ),
    "a name that nobody could write": (
        GOOD.replace('"a"', '"a plugin"'),
        'p/a.py:7:5: error: "a plugin" is no name of a plugin\n',
    ),
    "two in one file": (
        GOOD + '\nclass B(Plugin):\n    name = "b"\n',
        "p/a.py:10:5: error: two plugins, a and b\n"
        '   10 |     name = "b"\n'
        "      |     ^^^^^^^^^^ one file, one plugin\n"
        "1 error; nothing was changed",
    ),
    "another API": (
        method("api = 99"),
        "p/a.py: error: A is written for API 99, and this is API 1; see docs/plugins.md",
    ),
    "an async end": (
        method("async def on_finish(self, req, end):\n    pass"),
        "p/a.py:9:5: error: A.on_finish cannot be async\n"
        "    9 |     async def on_finish(self, req, end):\n"
        "      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ use ctx.spawn for what waits\n",
    ),
    "a hook misspelt": (
        method("def on_requst(self, req):\n    pass"),
        "p/a.py:9:5: error: A.on_requst is no hook\n"
        "    9 |     def on_requst(self, req):\n"
        "      |     ^^^^^^^^^^^^^^^^^^^^^^^^^ hooks are on_request, on_response, on_finish\n",
    ),
    "a hook that takes too little": (
        method("def on_response(self, req):\n    pass"),
        "p/a.py:9:5: error: A.on_response cannot be called with what there is\n"
        "    9 |     def on_response(self, req):\n"
        "      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^ write on_response(self, req, res)\n",
    ),
    "a hook that wants too much": (
        method("def on_finish(self, req, res, end):\n    pass"),
        "| ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ write on_finish(self, req, end)\n".replace(
            "| ^", "|     ^"
        ),
    ),
    "a hook that is none": (method("on_request = 3"), "p/a.py: error: A.on_request is not a func"),
    "a hook that is nothing": (method("on_request = None"), "A.on_request is not a function"),
    "a Config that is none": (
        method("class Config:\n    limit: int = 3"),
        "p/a.py: error: A.Config is not a dataclass; write @dataclass\n",
    ),
    "a start that fails": (
        method("def start(self):\n    raise ValueError('no luck')"),
        "lb.toml:3:7: error: plugin a failed: ValueError: no luck (p/a.py:10)\n",
    ),
}


@pytest.mark.parametrize(("code", "words"), BAD.values(), ids=BAD)
def test_a_file_with_something_wrong(folder: Folder, code: str | bytes, words: str) -> None:
    folder.write(code, "p/a.py")
    assert words in said(folder)
    assert "there is no plugin" not in said(folder)  # Its file has been told of.


def test_hooks_may_take_anything_that_fits(folder: Folder) -> None:
    code = (
        "def on_request(self, *any):\n    pass\n@staticmethod\ndef on_finish(req, end):\n    pass"
    )
    folder.write(method(code), "p/a.py")
    assert folder.load(USE).config.plugins.use[0].use == "a"


def test_two_files_with_the_same_name(folder: Folder) -> None:
    folder.write(GOOD, "p/a.py")
    folder.write(GOOD, "p/b.py")
    assert (
        "p/b.py:7:5: error: plugin a is there twice\n"
        '    7 |     name = "a"\n'
        "      |     ^^^^^^^^^^ first in p/a.py\n"
    ) in said(folder)


def test_the_name_of_one_of_ours(folder: Folder) -> None:
    folder.write(GOOD.replace('"a"', '"headers"'), "p/a.py")
    assert "p/a.py:7:5: error: plugin headers is there twice" in said(folder)


def test_a_base_class_may_have_no_name(folder: Folder) -> None:
    folder.write(GOOD.replace('name = "a"', "pass") + '\nclass B(A):\n    name = "a"\n', "p/a.py")
    assert folder.load(USE).config.plugins.use[0].use == "a"


def test_a_file_without_any_plugin_is_a_warning(folder: Folder) -> None:
    folder.write("LIMIT = 3\n", "p/shared.py")
    folder.write(GOOD, "p/a.py")
    assert folder.load(USE).warnings == (f"{folder.path}/p/shared.py has no plugin in it",)


def test_a_name_that_is_not_there(folder: Folder) -> None:
    folder.write(GOOD.replace('"a"', '"greeter"'), "p/greeter.py")
    assert 'there is no plugin "greter"' in (text := said(folder, USE.replace('"a"', '"greter"')))
    assert 'did you mean "greeter"?' in text


def test_a_folder_that_is_not_there(folder: Folder) -> None:
    assert "lb.toml:2:11: error: p cannot be read: No such file" in said(folder)


def test_a_folder_that_is_none(folder: Folder) -> None:
    folder.write("", "p")
    assert "lb.toml:2:11: error: p is no folder" in said(folder)


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_folder_that_others_may_write_into(folder: Folder, mode: int) -> None:
    folder.write(GOOD, "p/a.py")
    os.chmod("p", mode)
    text = said(folder)
    assert "lb.toml:2:11: error: others may write into this folder" in text
    assert "chmod go-w p" in text


def test_a_file_that_others_may_write_into(folder: Folder) -> None:
    folder.write(GOOD, "p/a.py")
    os.chmod("p/a.py", 0o666)
    assert "p/a.py: error: others may write into this file" in said(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else(folder: Folder) -> None:
    folder.write(GOOD, "p/a.py")
    os.chown("p/a.py", 12345, 12345)
    assert "p/a.py: error: this file belongs to another user" in said(folder)


@pytest.mark.parametrize("kind", ["folder", "pipe", "nowhere"])
def test_a_file_that_cannot_be_read(folder: Folder, kind: str) -> None:
    path = Path("p/a.py")
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    text = said(folder)
    wrong = {"folder": "Is a directory", "nowhere": "No such file or directory"}.get(kind)
    assert wrong is None or f"p/a.py: error: cannot be read: {wrong}" in text


def test_too_many_files(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "FILES_MAX", 2)
    for name in "abc":
        folder.write(GOOD.replace('"a"', f'"{name}"'), f"p/{name}.py")
    assert "there are more than 2 plugins" in said(folder)


def with_config(fields: str) -> str:
    return method("@dataclass\nclass Config:\n" + "\n".join(f"    {f}" for f in fields.split("; ")))


SETTINGS = {
    "a key that is none": (
        "limit: int = 3",
        "limits = 4",
        'lb.toml:3:20: error: "limits" is not a key of plugin a\n'
        '    3 | use = { use = "a", limits = 4 }\n'
        '      |                    ^^^^^^ did you mean "limit"?\n'
        "1 error; nothing was changed",
    ),
    "a value of another type": (
        "limit: int = 3",
        'limit = "x"',
        'lb.toml:3:28: error: "x" is not a whole number\n'
        '    3 | use = { use = "a", limit = "x" }\n'
        "      |                            ^^^\n"
        "1 error; nothing was changed",
    ),
    "a value that is missing": (
        "limit: int",
        "",
        "lb.toml:3:1: error: plugin a needs limit\n"
        '    3 | use = { use = "a" }\n'
        "      | ^^^ add it\n"
        "1 error; nothing was changed",
    ),
}


@pytest.mark.parametrize(("fields", "written", "words"), SETTINGS.values(), ids=SETTINGS)
def test_settings_with_something_wrong(
    folder: Folder, fields: str, written: str, words: str
) -> None:
    folder.write(with_config(fields), "p/a.py")
    use = f'{{ use = "a"{", " if written else ""}{written} }}'
    assert said(folder, USE.replace('use = "a"', f"use = {use}")) == words


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("on_error: int = 1", "p/a.py: error: A.Config.on_error cannot be written"),
        ("model_x: int = 1", "p/a.py: error: A.Config.model_x is not for a file to set"),
        ("_hidden: int = 1", "p/a.py: error: A.Config._hidden is not for a file to set"),
        ("raw: bytes = b''", "p/a.py: error: A.Config.raw is of a type that no file can hold"),
    ],
)
def test_settings_that_nobody_could_write(folder: Folder, fields: str, words: str) -> None:
    folder.write(with_config(fields), "p/a.py")
    assert words in said(folder)


@pytest.mark.parametrize("name", ["copy", "json", "dict", "schema", "noun", "fields"])
def test_settings_may_have_any_other_name(folder: Folder, name: str) -> None:
    folder.write(with_config(f"{name}: int = 1"), "p/a.py")
    loaded = folder.load(USE.replace('use = "a"', f'use = {{ use = "a", {name} = 2 }}'))
    assert loaded.config.plugins.use[0].values == {name: 2}
