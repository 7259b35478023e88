"""`[group]`: who the others are, and how they know each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from config.kit import SMALLEST, Folder
from lb.config.diff import diff
from lb.config.doc import describe, show
from lb.config.parse import loaded_from_plain, loaded_to_plain
from lb.control.reloader import keep_restart_keys

MEMBERS = 'members = { a = "10.0.0.1:9901", b = "10.0.0.2:9901", c = "lb-c.example:9901" }\n'
LONG = "0123456789abcdef0123456789abcdef"
GROUP = f'[group]\nlisten = "10.0.0.1:9901"\n{MEMBERS}'
NODE = '[node]\nname = "a"\n'


def certificate(folder: Path, *names: str) -> None:
    ca = trustme.CA()
    cert = ca.issue_cert(*names)
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    cert.private_key_pem.write_to_path(str(folder / "a.key"))
    (folder / "a.key").chmod(0o600)
    (folder / "a.pem").write_bytes(b"".join(each.bytes() for each in cert.cert_chain_pems))


TLS = 'tls = { cert = "a.pem", key = "a.key", ca = "ca.pem" }\n'


def test_a_group(folder: Folder) -> None:
    group = folder.load(f'{SMALLEST}{NODE}{GROUP}secret = "{LONG}"\n').config.group

    assert group is not None
    assert group.listen == "10.0.0.1:9901"
    assert list(group.members) == ["a", "b", "c"]
    assert (group.join, group.voter, group.voters) == ([], "auto", 3)
    assert (group.security, group.secret) == ("secret", (LONG,))
    assert LONG not in repr(group)


def test_no_group_is_a_group_of_one(folder: Folder) -> None:
    assert folder.load(SMALLEST).config.group is None


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[group]", ["1:2 [group] needs listen"]),
        (
            '[group]\nlisten = "127.0.0.1:1"',
            ["1:2 a group has neither members nor join: there is nobody to agree with"],
        ),
        (
            '[group]\nlisten = "unix:/run/g.sock"\njoin = "127.0.0.1:2"',
            ["2:10 members talk over TCP"],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = ["unix:/x", "https://b:1", "b", 7]',
            [
                '3:9 "unix:/x" is no member\'s address',
                '3:20 "https://b:1" is no member\'s address',
                '3:35 "b" has no port',
                "3:40 7 is no address",
            ],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\nmembers = { a = "[::1]:1", c = "[::1]:1" }',
            ['3:32 "[::1]:1" is a\'s already'],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = "127.0.0.1:2"\nvoter = "maybe"\nvoters = 99',
            ['4:9 "maybe" is none of true, false and "auto"', "5:10 99 is out of range"],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = "127.0.0.1:2"\nsecret = "***"',
            ["4:10 *** stands for a secret that was left out"],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = "127.0.0.1:2"\nsecret = """a\nb\nc"""',
            ["4:10 these are 3 secrets"],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = "127.0.0.1:2"\nsecret = "x"\n'
            'secret_file = "x"',
            ["5:15 a secret stands here or in a file, not both"],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = "127.0.0.1:2"\nsecret_file = "x"',
            ["4:15 {folder}/x: no such file"],
        ),
        # What others could reach.
        (
            f'[group]\nlisten = "10.0.0.1:1"\n{MEMBERS}',
            ["2:10 others could reach this: members must know each other by tls or a secret"],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = "10.0.0.2:1"',
            ["2:10 others could reach this: members must know each other by tls or a secret"],
        ),
        (
            '[group]\nlisten = "127.0.0.1:1"\njoin = "lb-b.example:1"',
            ["2:10 others could reach this: members must know each other by tls or a secret"],
        ),
        (
            f'[group]\nlisten = ":1"\njoin = "10.0.0.2:1"\nsecret = "{LONG}"',
            ['2:10 others could not know where "me" can be reached'],
        ),
        (
            '[group]\nlisten = "127.0.0.1:9900"\njoin = "127.0.0.1:2"',
            ["2:10 127.0.0.1:9900 is taken by [admin]"],
        ),
        (
            f'[group]\nlisten = "127.0.0.1:1"\njoin = "127.0.0.1:2"\n{TLS}',
            [
                "4:16 {folder}/a.pem: no such file",
            ],
        ),
    ],
)
def test_a_group_that_cannot_be(folder: Folder, text: str, messages: list[str]) -> None:
    found = folder.messages(f'{text}\n[node]\nname = "me"\n{SMALLEST}')

    assert found == [each.replace("{folder}", str(folder.path)) for each in messages]


@pytest.mark.parametrize(
    "text",
    [
        'listen = "127.0.0.1:1"\njoin = "127.0.0.1:2"',
        'listen = "[::1]:1"\njoin = ["localhost:2", "[::1]:3"]',
        'listen = "127.0.0.1:1"\nmembers = { a = "127.0.0.1:1", b = "127.0.0.1:2" }',
        'listen = "127.0.0.1:1"\nmembers = { a = "127.0.0.1:1" }\njoin = "127.0.0.1:2"',
        'listen = "127.0.0.1:1"\njoin = "127.0.0.1:2"\nvoter = "${V:-false}"',
    ],
)
def test_on_one_machine_nothing_needs_proof(folder: Folder, text: str) -> None:
    loaded = folder.load(f"{SMALLEST}{NODE}[group]\n{text}\n")

    assert loaded.config.group is not None
    assert loaded.config.group.security == "none"
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (f'secret = "{LONG}"', "group.secret proves who speaks and hides nothing"),
        ('secret = "short"', "group.secret has less than 16 characters"),
        (f'{TLS}secret = "{LONG}"', "group.secret is not used, as there is group.tls"),
        (TLS, "a.pem is for b, c: others of the group will not take it for"),
    ],
)
def test_what_is_odd_of_a_group(folder: Folder, text: str, warning: str) -> None:
    certificate(folder.path, "b", "c")

    warnings = folder.load(f"{SMALLEST}{NODE}{GROUP}{text}\n").warnings

    assert any(warning in each for each in warnings)
    assert LONG not in "".join(warnings)


def test_who_is_not_in_members_can_only_join(folder: Folder) -> None:
    text = f'{SMALLEST}[node]\nname = "d"\n{GROUP}secret = "{LONG}"\n'

    assert any("can only join" in each for each in folder.load(text).warnings)
    joins = folder.load(f'{text}join = "10.0.0.1:9901"').warnings
    assert not any("can only join" in each for each in joins)


def test_a_certificate_of_the_group_that_fits(folder: Folder) -> None:
    certificate(folder.path, "a")
    loaded = folder.load(f"{SMALLEST}{NODE}{GROUP}{TLS}")

    assert loaded.warnings == ()
    assert loaded.config.group is not None
    assert loaded.config.group.security == "tls"
    assert loaded.config.group.tls is not None
    assert loaded.config.group.tls.ca == str(folder.path / "ca.pem")


def test_a_secret_of_two_lines_is_being_changed(folder: Folder) -> None:
    folder.write("new-0123456789abcdef\nold-0123456789abcdef\n", "group.secret")
    (folder.path / "group.secret").chmod(0o600)
    group = folder.load(f'{SMALLEST}{NODE}{GROUP}secret_file = "group.secret"\n').config.group
    assert group is not None

    assert group.secret == ("new-0123456789abcdef", "old-0123456789abcdef")
    assert group.secret_file == str(folder.path / "group.secret")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a\nb\nc\n", "these are 3 secrets"),
        (b"x" * 10_000, "it is too large for a secret"),
        (b"a\x07b", "a secret has no control characters"),
    ],
)
def test_a_secret_file_that_cannot_be_used(folder: Folder, content: bytes, message: str) -> None:
    folder.write(content, "group.secret")

    (problem,) = folder.errors(f'{NODE}{GROUP}secret_file = "group.secret"\n{SMALLEST}')

    assert message in problem.message
    assert problem.line == 6


# --- What is printed, and what is passed on ---------------------------------------------------


def test_secrets_are_shown_as_stars(folder: Folder) -> None:
    config = folder.load(f'{SMALLEST}{NODE}{GROUP}secret = "{LONG}"\n').config

    assert 'secret = "***"' in show(config)
    assert LONG not in show(config) + config.model_dump_json() + repr(config)


def test_where_a_secret_has_a_file_what_is_shown_can_be_loaded(folder: Folder) -> None:
    folder.write(LONG, "group.secret")
    config = folder.load(f'{SMALLEST}{NODE}{GROUP}secret_file = "group.secret"\n').config

    assert LONG not in show(config)
    assert folder.load(show(config)).config == config


def test_an_error_never_quotes_a_secret(folder: Folder) -> None:
    text = f'{NODE}{GROUP}secret = "{LONG}" x\n'
    assert all(LONG not in str(each) for each in folder.errors(text))
    tokens = f'[admin]\ntokens = [{{ name = "ops", token = "{LONG}", rol = "x" }}]\n{SMALLEST}'
    problems = folder.errors(tokens)
    assert len(problems) == 2
    assert all(LONG not in str(each) for each in problems)
    assert all("***" in each.source_line for each in problems)


def test_secrets_reach_our_own_next_process(folder: Folder) -> None:
    loaded = folder.load(f'{SMALLEST}{NODE}{GROUP}secret = "{LONG}"\n')

    again = loaded_from_plain(loaded_to_plain(loaded))

    assert again.config == loaded.config
    assert again.config.group is not None
    assert again.config.group.secret == (LONG,)


@pytest.mark.parametrize(
    ("before", "after", "changed", "needs_restart"),
    [
        ("", GROUP + f'secret = "{LONG}"', [], ["group set to {"]),
        (GROUP + f'secret = "{LONG}"', "", [], ["group no longer set"]),
        (
            GROUP + f'secret = "{LONG}"',
            GROUP + f'secret = "x{LONG}"',
            ['group.secret "***" -> "***"'],
            [],
        ),
        (
            GROUP + f'secret = "{LONG}"',
            GROUP.replace("10.0.0.2", "10.0.0.9") + f'secret = "{LONG}"\nvoters = 5',
            [],
            ["group.members.b ", "group.voters 3 -> 5"],
        ),
        (
            GROUP + f'secret = "{LONG}"',
            '[group]\nlisten = "127.0.0.1:9901"\njoin = "127.0.0.1:2"',
            [],
            ["group.listen ", "group.members.a no", "group.members.b no", "group.members.c no",
             "group.join ", "group.secret "],
        ),
    ],
)  # fmt: skip
def test_what_a_changed_group_needs(
    folder: Folder, before: str, after: str, changed: list[str], needs_restart: list[str]
) -> None:
    old = folder.load(f"{SMALLEST}{NODE}{before}\n").config
    new = folder.load(f"{SMALLEST}{NODE}{after}\n").config

    got = diff(old, new)

    for have, want in ((got.changed, changed), (got.needs_restart, needs_restart)):
        assert len(have) == len(want)
        assert all(line.startswith(start) for line, start in zip(have, want, strict=True))
    assert LONG not in str(got)
    kept = keep_restart_keys(old, new)
    assert (kept.group is None) is (old.group is None)
    if kept.group is not None and old.group is not None:
        assert kept.group.listen == old.group.listen
        assert kept.group.members == old.group.members
        assert kept.group.security == old.group.security == "secret"
    if changed and new.group is not None:
        assert kept.group == new.group


def test_keys_of_a_group_say_what_needs_a_restart() -> None:
    assert "A change acts after a restart." in describe("group.members")
    assert "A change acts after a restart." not in describe("group.secret")
