"""From files to a Config, or to every error with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.kit import SMALLEST, Folder
from lb.config.load import ConfigErrors, find_config, load
from lb.config.problem import PROBLEMS_MAX
from lb.config.schema import Config
from lb.errors import UsageError


def test_the_smallest_file(folder: Folder) -> None:
    loaded = folder.load(SMALLEST)

    assert loaded.config.listener["web"].address == ["0.0.0.0:8080"]
    backends = loaded.config.upstream["app"].backends
    assert backends is not None
    assert [each.key for each in backends] == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert loaded.files == (str(folder.path / "lb.toml"),)
    assert loaded.warnings == ()
    assert loaded.config.node.data_dir == str(folder.path / "lb-data")


def test_the_form_of_errors(folder: Folder) -> None:
    folder.write(
        """
        [upstream.app]
        backends = [{ address = "10.0.0.5:80", wieght = 3 }]

        [listener.web]
        \taddress = "8080"
        """
    )
    with pytest.raises(ConfigErrors) as raised:
        load("./lb.toml", {})

    assert raised.value.exit_status == 3
    assert str(raised.value) == "\n".join(
        [
            './lb.toml:3:40: error: "wieght" is not a key of a backend',
            '    3 | backends = [{ address = "10.0.0.5:80", wieght = 3 }]',
            '      |                                        ^^^^^^ did you mean "weight"?',
            './lb.toml:6:12: error: "8080" has no port',
            '    6 | \taddress = "8080"',
            '      | \t          ^^^^^^ write ":8080" or "127.0.0.1:8080"',
            "2 errors; nothing was changed",
        ]
    )


def test_one_run_says_everything(folder: Folder) -> None:
    """Wrong keys, wrong values, missing ones, dangling names, taken addresses: all of them."""
    found = folder.messages(
        """
        versoin = 2
        [node]
        grace = 5
        [listener.web]
        limits = { conections = 1, per_client = -3 }
        address = ":80"
        upstream = "ap"
        header_bytes = "1KiB"
        [listener.other]
        address = [":80", "10.0.0.1"]
        [listener.none]
        upstream = "zz"
        [upstream.app]
        backends = ["127.0.0.1:1", { adress = "b:1" }]
        balance = "hsah"
        [upstream.app.v2]
        [route.a]
        listener = ["webb", "web"]
        upstream = { app = "50%", canary = "40%" }
        [route.b]
        respond = { status = 301 }
        [route.c]
        [group]
        [admin]
        address = "0.0.0.0:9900"
        """
    )
    assert found == [
        '2:1 "versoin" is not a key of this file',
        "4:9 5 has no unit",
        '6:12 "conections" is not a key of a listener\'s limits',
        "6:41 -3 is out of range",
        '8:12 there is no upstream "ap"',
        '9:1 "header_bytes" is not a key of a listener',
        '11:19 "10.0.0.1" has no port',
        "12:11 a listener needs address",
        '13:12 there is no upstream "zz"',
        "15:28 a backend needs address",
        '15:30 "adress" is not a key of a backend',
        '16:11 "hsah" is not one of round_robin, random, least_requests, two_choices, hash,'
        " peak_ewma",
        '17:15 "v2" is not a key of an upstream',
        '19:13 there is no listener "webb"',
        "20:12 these shares make 90%",
        '20:27 there is no upstream "canary"',
        "22:11 a 301 needs a location",
        "23:8 this route leads nowhere",
        "24:2 [group] needs listen",
        "26:11 others could reach this: it needs TLS and tokens",
    ]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ('[listener.web]\naddress = ":80"\nheader_bytes = "1KiB"', '"limits.header_bytes"'),
        ("[listeners.web]", '"listener"'),
        ("[upstream.app.v2]", '[upstream."app.v2"]'),
        ('[listener]\nweb = ":80"', "web = { ... }"),
        ('listener = ":80"', "[listener.NAME]"),
        ("[upstream.app]\noutliers = {}", '"outlier"'),
        ("[listener.web]", 'add address = "0.0.0.0:8080"'),
        ('[listener.web]\naddress = ":80"\nupstream = "ap"\n[upstream.app]', '"app"'),
        ('[listener.web]\naddress = ":80"\nupstream = "app"', "add [upstream.app]"),
    ],
)
def test_the_nearest_right_name(folder: Folder, line: str, hint: str) -> None:
    assert any(hint in problem.hint for problem in folder.errors(line))


@pytest.mark.parametrize("key", ["ttl", "labels"])
@pytest.mark.parametrize("value", ['"x"', "1", "[]", "{ a = { b = 1 } }"])
def test_what_is_not_built_is_never_taken(folder: Folder, key: str, value: str) -> None:
    """Whatever its value is: the name has a meaning elsewhere, and we do not act on it here."""
    backend = f'{{ address = "a:1", {key} = {value} }}'
    problems = folder.errors(f"[upstream.app]\nbackends = [{backend}]\n")

    assert f'"{key}" is not yet supported' in [problem.message for problem in problems]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a = ", "1:4 not TOML: invalid value", ""),
        ("a = debug", "1:5 not TOML: invalid value", "text goes in quotes"),
        ("a.b = 1\na = 2", '2:1 "a" is defined twice', "first on line 1"),
        ("[[a]]\n[a]\n", "2:2 [a] is defined twice", "first on line 1"),
        ("[listener.web\n", "1:14 not TOML: expected ']' at the end of a table declaration", ""),
        ("[a]\nx = 0.0.0.0:80\n", None, "text goes in quotes"),
        ('x = "abc\n', None, ""),
        ("x = [1,\n2", "2:2 not TOML: unclosed array", ""),
        ("x = 1\nx = 2\n", '2:1 "x" is defined twice', "first on line 1"),
        ("[a]\n[b]\n[a]\n", "3:2 [a] is defined twice", "first on line 1"),
        ("a = {b = 1, b = 2}", '1:13 "b" is defined twice', "first on line 1"),
        ("a = 1\n[a.b]", "2:2 [a] is defined twice", "first on line 1"),
        ("x = " + "[" * 3000, "1:37 values are nested more than 32 deep", ""),
        ("x = " + "9" * 5000, "1:5 this number is too long", ""),
        ("x = \x01", None, ""),
    ],
)
def test_what_is_no_toml(folder: Folder, text: str, message: str | None, hint: str) -> None:
    (problem,) = folder.errors(text.encode())
    assert message in (None, f"{problem.line}:{problem.column} {problem.message}")
    assert hint in (None, problem.hint)


def test_long_lines_are_cut_and_kept_printable(folder: Folder) -> None:
    (problem,) = folder.errors(f'x = "{"y" * 5000}\x1b[31m"'.encode())
    text = str(problem)

    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 200
    _, source, marks = text.splitlines()
    assert source[marks.index("^")] == "?"


def test_rubbish_is_not_listed_without_end(folder: Folder) -> None:
    folder.write("".join(f"key{number} = 1\n" for number in range(5000)))
    with pytest.raises(ConfigErrors) as raised:
        load("lb.toml", {})

    assert len(raised.value.problems) == PROBLEMS_MAX
    assert str(raised.value).endswith("... and 4900 more\n5000 errors; nothing was changed")


# --- Files ------------------------------------------------------------------------------------


def only(folder: Folder, name: str) -> str:
    with pytest.raises(ConfigErrors) as raised:
        load(name, {})
    text, last = str(raised.value).split("\n", 1)
    assert last == "1 error; nothing was changed"
    return text


def test_a_missing_file(folder: Folder) -> None:
    assert only(folder, "x.toml") == (
        'x.toml: error: no such file; make one with "lb init", or name another with -c'
    )


def test_a_folder(folder: Folder) -> None:
    assert only(folder, ".").startswith(".: error: is a directory, not a file")


def test_a_pipe_without_a_writer(folder: Folder) -> None:
    os.mkfifo("pipe")

    assert only(folder, "pipe").startswith("pipe: error: cannot be read: is not a regular file")


def test_an_unreadable_file(folder: Folder) -> None:
    os.symlink("loop", "loop")

    assert only(folder, "loop").startswith("loop: error: cannot be read: Too many levels")


def test_not_utf8(folder: Folder) -> None:
    (problem,) = folder.errors(b"# caf\xc3\xa9\nx = '\xff'\n")

    assert str(problem).startswith("lb.toml:2:6: error: not UTF-8: byte 0xff")


def test_a_byte_order_mark_and_windows_lines(folder: Folder) -> None:
    folder.write(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())

    assert "web" in load("lb.toml", {}).config.listener


def test_more_than_a_mebibyte(folder: Folder) -> None:
    folder.write(SMALLEST + "#" * (1024 * 1024 - len(SMALLEST)))
    load("lb.toml", {})
    folder.write(SMALLEST + "#" * (1024 * 1024 - len(SMALLEST) + 1))

    assert "larger than 1 MiB" in only(folder, "lb.toml")


def test_more_than_a_mebibyte_together(folder: Folder) -> None:
    folder.write('include = ["a.toml", "b.toml"]')
    folder.write("#" * 600_000, "a.toml")
    folder.write("#" * 600_000, "b.toml")

    assert only(folder, "lb.toml") == (
        "b.toml: error: the configuration is larger than 1 MiB, all files together;"
        " nothing needs that much"
    )


# --- Includes ---------------------------------------------------------------------------------


def test_includes(folder: Folder) -> None:
    folder.write('include = ["conf.d/*.toml"]\n[node]\ngrace = "1s"\n', "etc/lb.toml")
    folder.write('include = "more/c.toml"\n[listener.web]\naddress = ":80"\n', "etc/conf.d/b.toml")
    folder.write("[upstream.a]\n", "etc/conf.d/a.toml")
    folder.write("[upstream.c]\n[route.c]\nupstream = 'c'\n", "etc/conf.d/more/c.toml")
    folder.write("[upstream.d]\n", "etc/conf.d/not-this")
    loaded = load("etc/lb.toml", {})

    assert list(loaded.config.upstream) == ["a", "c"]
    assert loaded.config.node.grace == 1
    names = ["lb.toml", "conf.d/a.toml", "conf.d/b.toml", "conf.d/more/c.toml"]
    assert loaded.files == tuple(str(folder.path / "etc" / name) for name in names)


def test_a_pattern_may_match_nothing(folder: Folder) -> None:
    loaded = folder.load('include = ["conf.d/*.toml"]\n' + SMALLEST)

    assert len(loaded.files) == 1


def test_errors_name_the_included_file(folder: Folder) -> None:
    folder.write("# one\n[upstream.b]\nbalanse = 'hash'\n", "d/b.toml")

    assert [str(each).split("\n")[0] for each in folder.errors('include = ["d/*"]\nx = 1')] == [
        'lb.toml:2:1: error: "x" is not a key of this file',
        'd/b.toml:3:1: error: "balanse" is not a key of an upstream',
    ]


def test_a_table_in_two_files(folder: Folder) -> None:
    folder.write("[upstream.a]\n[upstream.b]\n[node]\n", "one.toml")
    problems = folder.errors('include = "one.toml"\nversion = 1\n[node]\n[upstream.b]\n')

    assert [(str(each).split("\n")[0], each.hint) for each in problems] == [
        ("one.toml:2:11: error: [upstream.b] is defined twice", "first in lb.toml:4"),
        ("one.toml:3:2: error: [node] is defined twice", "first in lb.toml:3"),
    ]


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ('"lb.toml"', "1:11 lb.toml: includes go round: lb.toml -> lb.toml"),
        ('"b.toml"', "2:11 lb.toml: includes go round: lb.toml -> b.toml -> lb.toml"),
        ('["c.toml", "d.toml"]', "1:22 d.toml: is included twice"),
        ('"x.toml"', "1:11 x.toml: no such file"),
        ('"."', "1:11 .: is a directory, not a file"),
        ("5", "1:11 5 is not a file or pattern"),
        ('["", 5]', '1:12 "" is not a file or pattern'),
    ],
)
def test_bad_includes(folder: Folder, include: str, message: str) -> None:
    folder.write('\ninclude = "lb.toml"', "b.toml")
    folder.write("", "c.toml")
    os.symlink("c.toml", "d.toml")

    assert message in folder.messages(f"include = {include}\n")


def test_the_digest_is_over_all_files(folder: Folder) -> None:
    folder.write("# one", "a.toml")
    text = 'include = "a.toml"\n' + SMALLEST
    before = folder.load(text).digest
    assert folder.load(text).digest == before
    folder.write("# two", "a.toml")

    assert folder.load(text).digest != before


# --- The environment --------------------------------------------------------------------------


def test_variables(folder: Folder) -> None:
    environ = {"PORT": "8080", "HOST": "10.0.0.1", "EMPTY": "", "COUNT": "3"}
    loaded = folder.load(
        """
        include = "${NONE:-conf.d}/*.toml"
        [node]
        workers = "${COUNT}"
        grace = "${EMPTY:-2s}"
        [listener.web]
        address = ["${HOST}:${PORT}", "unix:/run/${EMPTY:-}x"]
        [upstream.app]
        backends = [{ address = "${B:-b}:1", weight = "${COUNT}" }]
        [route.a]
        path = "~^/a$"
        header = { "${HOST}" = "$${HOST} $5 $", b = "${EMPTY}" }
        upstream = "app"
        """.replace('"${HOST}" =', '"x-host" ='),
        environ,
    ).config

    assert loaded.node.workers == 3
    assert loaded.node.grace == 2
    assert loaded.listener["web"].address == ["10.0.0.1:8080", "unix:/run/x"]
    assert loaded.route["a"].header == {"x-host": "${HOST} $5 $", "b": ""}
    assert loaded.route["a"].path == "~^/a$"
    backends = loaded.upstream["app"].backends
    assert backends is not None
    assert (backends[0].address, backends[0].weight) == ("b:1", 3)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("x ${NOPE}", "2:14 NOPE is not set"),
        ("${1X}", "2:12 ${1X} names no variable"),
        ("${", "2:12 ${ names no variable"),
        ("${BAD}", "2:12 BAD holds bytes that are not UTF-8"),
    ],
)
def test_variables_that_do_not_work(folder: Folder, written: str, message: str) -> None:
    text = f'[listener.web]\naddress = "{written}"\n'

    assert folder.messages(text, {"BAD": "\udcff"}) == [message]


# --- What depends on where and how we run -----------------------------------------------------


def test_paths_are_beside_the_file(folder: Folder) -> None:
    text = '[node]\ndata_dir = "d"\n[log]\noutput = "l"\n[access_log]\noutput = "/a"\n'
    folder.write(SMALLEST + text, "etc/lb.toml")
    config = load("etc/lb.toml", {"STATE_DIRECTORY": "/var/lib/lb"}).config

    assert config.node.data_dir == str(folder.path / "etc/d")
    assert config.log.output == str(folder.path / "etc/l")
    assert config.access_log.output == "/a"


def test_the_state_directory_of_systemd(folder: Folder) -> None:
    config = folder.load(SMALLEST, {"STATE_DIRECTORY": "/var/lib/lb:/var/lib/other"}).config

    assert config.node.data_dir == "/var/lib/lb"


def test_which_file(folder: Folder) -> None:
    missing = not Path("/etc/lb/lb.toml").exists()
    assert find_config("given", {"LB_CONFIG": "named"}) == "given"
    assert find_config(None, {"LB_CONFIG": "named"}) == "named"
    if missing:
        with pytest.raises(UsageError, match="looked for"):
            find_config(None, {})
    folder.write(SMALLEST)
    assert find_config(None, {}) == "lb.toml"


def test_a_config_survives_json(folder: Folder) -> None:
    config = folder.load(
        SMALLEST
        + """
        [route.a]
        upstream = { app = "99.5%", other = "0.5%" }
        host = "*.Example.com"
        body_max = "1KiB"
        timeout = "1500ms"
        [route.b]
        respond = { status = 308, location = "https://a/" }
        [upstream.other]
        health = { type = "tcp", interval = "0.5s" }
        backends = []
        """
    ).config

    assert Config.model_validate_json(config.model_dump_json()) == config
