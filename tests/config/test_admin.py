"""`[admin]`: tokens, TLS, and which addresses need them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import trustme

from config.kit import SMALLEST, Folder
from lb.config.diff import diff
from lb.config.doc import show
from lb.config.parse import loaded_from_plain, loaded_to_plain
from lb.config.schema import Config
from lb.config.secrets import HIDDEN_TOO
from lb.control.reloader import keep_restart_keys

TOKEN = "0123456789abcdef0123456789abcdef"
DIGEST = "sha256:" + sha256(TOKEN.encode()).hexdigest()
OPS = f'tokens = [{{ name = "ops", token = "{TOKEN}", role = "admin" }}]\n'
TLS = 'tls = { cert = "a.pem", key = "a.key", client_ca = "ca.pem" }\n'


def certificate(folder: Path) -> None:
    ca = trustme.CA()
    cert = ca.issue_cert("lb.example")
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    cert.private_key_pem.write_to_path(str(folder / "a.key"))
    (folder / "a.key").chmod(0o600)
    (folder / "a.pem").write_bytes(b"".join(each.bytes() for each in cert.cert_chain_pems))


def test_of_a_token_only_the_digest_is_kept(folder: Folder) -> None:
    (token,) = folder.load(f"{SMALLEST}[admin]\n{OPS}").config.admin.tokens

    assert (token.name, token.role, token.token) == ("ops", "admin", DIGEST)
    assert DIGEST not in repr(token)


def test_a_digest_may_stand_for_the_token(folder: Folder) -> None:
    text = f'{SMALLEST}[admin]\ntokens = {{ name = "ops", token = "{DIGEST}", role = "read" }}'

    loaded = folder.load(text)

    assert loaded.config.admin.tokens[0].token == DIGEST
    assert loaded.warnings == ()


def test_a_token_of_a_file_and_of_the_environment(folder: Folder) -> None:
    folder.write(f"{TOKEN}\n", "conf.d/ops.token")
    text = f"""{SMALLEST}
    [admin]
    tokens = [
      {{ name = "ops", token_file = "conf.d/ops.token", role = "admin" }},
      {{ name = "agent", token = "${{AGENT}}", role = "register", upstreams = "app" }},
    ]
    """
    loaded = folder.load(text, {"AGENT": "agent-0123456789"})
    ops, agent = loaded.config.admin.tokens

    assert ops.token == DIGEST
    assert agent.upstreams == ["app"]
    assert loaded.warnings == (
        f"{folder.path}/conf.d/ops.token may be read by everybody on this machine",
    )


@pytest.mark.parametrize(
    ("tokens", "messages"),
    [
        ('{ token = "x", role = "read" }', ["2:1 a token needs name"]),
        ('{ name = "o", token = "x" }', ["2:1 a token needs role"]),
        ('{ name = "o", role = "read" }', ['2:10 there is no token for "o"']),
        ('{ name = "o", token = "", role = "read" }', ['2:10 there is no token for "o"']),
        (
            '{ name = "o", token = "x", role = "root" }',
            ['2:44 "root" is not one of read, register, write, admin'],
        ),
        (
            '{ name = "o", token = "x", role = "register" }',
            ["2:44 a register token that names no upstreams may do nothing"],
        ),
        (
            '{ name = "o", token = "x", role = "read", upstreams = ["app"] }',
            ["2:64 a read token is for all upstreams"],
        ),
        (
            '[{ name = "o", token = "x", role = "read" },'
            ' { name = "o", token = "y", role = "read" }]',
            ['2:64 "o" is here twice'],
        ),
        (
            '[{ name = "o", token = "x", role = "read" },'
            ' { name = "p", token = "x", role = "read" }]',
            ['2:55 "p" has the same token as "o"'],
        ),
        (
            '{ name = "o", token = "a b", role = "read" }',
            ["2:32 a token is of ASCII, without spaces"],
        ),
        ('{ name = "o", token = "sha256:12", role = "read" }', ["2:32 this is no SHA-256"]),
        (
            '{ name = "o", token = "***", role = "read" }',
            ["2:32 *** stands for a secret that was left out"],
        ),
        (
            '{ name = "o", token = "x", token_file = "y", role = "read" }',
            ["2:50 a token stands here or in a file, not both"],
        ),
        (
            '{ name = "o", token_file = "none", role = "read" }',
            ["2:37 {folder}/none: no such file"],
        ),
        ('"x"', ['2:10 "x" is not a table']),
    ],
)
def test_tokens_that_cannot_be(folder: Folder, tokens: str, messages: list[str]) -> None:
    found = folder.messages(f"[admin]\ntokens = {tokens}\n{SMALLEST}")

    assert found == [each.replace("{folder}", str(folder.path)) for each in messages]


def test_what_is_odd_of_tokens(folder: Folder) -> None:
    text = f"""{SMALLEST}
    [admin]
    tokens = [{{ name = "o", token = "short", role = "register", upstreams = ["elsewhere"] }}]
    """
    assert folder.load(text).warnings == (
        "admin.tokens: o may register in elsewhere, which is not here",
        "admin.tokens o has less than 16 characters: it could be guessed",
    )


@pytest.mark.parametrize(
    "address", ["0.0.0.0:9900", ":9900", "10.0.0.1:9900", "[2001:db8::1]:9900"]
)
def test_an_address_that_others_reach_needs_tls_and_tokens(folder: Folder, address: str) -> None:
    certificate(folder.path)
    head = f'[admin]\naddress = "{address}"\n'
    for missing, rest in (("tls", OPS), ("tokens", TLS), ("tls", "")):
        (problem,) = folder.errors(f"{head}{rest}{SMALLEST}")
        assert problem.message == "others could reach this: it needs TLS and tokens"
        assert (problem.line, missing in problem.hint) == (2, True)
    assert folder.load(f"{head}{OPS}{TLS}{SMALLEST}").config.admin.tls is not None


def test_a_wrong_token_is_not_a_missing_one(folder: Folder) -> None:
    """All errors in one run, and none that only follows from another."""
    certificate(folder.path)
    text = f'[admin]\naddress = ":9900"\ntokens = [{{ name = "o" }}]\n{TLS}{SMALLEST}'

    assert folder.messages(text) == ["3:11 a token needs role"]


def test_a_unix_socket_speaks_no_tls(folder: Folder) -> None:
    certificate(folder.path)
    found = folder.messages(f'[admin]\naddress = "unix:/run/a.sock"\n{TLS}{SMALLEST}')

    assert found == ["3:7 a unix socket speaks no TLS"]


def test_certificates_are_looked_at(folder: Folder) -> None:
    certificate(folder.path)
    (folder.path / "a.key").write_text("none")
    (folder.path / "ca.pem").write_text("none")

    messages = folder.messages(f"[admin]\n{TLS}{SMALLEST}")

    assert messages == [f"2:31 {folder.path}/a.key holds no private key in PEM"]


def test_tokens_are_shown_as_stars_and_passed_on_as_digests(folder: Folder) -> None:
    loaded = folder.load(f"{SMALLEST}[admin]\n{OPS}")

    shown = show(loaded.config) + loaded.config.model_dump_json()
    assert TOKEN not in shown
    assert DIGEST not in shown
    assert 'token = "***"' in shown
    assert TOKEN not in str(loaded_to_plain(loaded))
    assert loaded_from_plain(loaded_to_plain(loaded)).config == loaded.config


def test_what_an_instance_shows_can_be_compared(folder: Folder) -> None:
    """`lb config diff` has the file's tokens, and of the running ones only stars."""
    config = folder.load(f"{SMALLEST}[admin]\n{OPS}").config
    shown = [config.model_dump(mode="json") for _ in range(2)]

    running, wanted = (Config.model_validate(each, context=HIDDEN_TOO) for each in shown)

    assert not diff(running, wanted)


def test_tokens_change_at_a_reload_and_tls_at_a_restart(folder: Folder) -> None:
    certificate(folder.path)
    old = folder.load(f"{SMALLEST}[admin]\n{OPS}").config
    new = folder.load(f"{SMALLEST}[admin]\n{OPS.replace(TOKEN, f'x{TOKEN}')}{TLS}").config

    changes = diff(old, new)
    kept = keep_restart_keys(old, new)

    assert changes.changed == ["admin.tokens ops: another token"]
    assert [each.partition(" ")[0] for each in changes.needs_restart] == ["admin.tls"]
    assert (kept.admin.tls, kept.admin.tokens) == (None, new.admin.tokens)
    assert TOKEN not in str(changes)
    assert "sha256" not in str(changes)


def test_tokens_that_come_and_go_are_named(folder: Folder) -> None:
    def tokens(*roles: str) -> Config:
        listed = ", ".join(
            f'{{ name = "t{index}", token = "{TOKEN}{index}", role = "{role}" }}'
            for index, role in enumerate(roles)
        )
        return folder.load(f"{SMALLEST}[admin]\ntokens = [{listed}]\n").config

    assert diff(tokens("read"), tokens("read", "admin")).changed == ["admin.tokens + t1"]
    assert diff(tokens("read", "admin"), tokens("read")).changed == ["admin.tokens - t1"]
    assert diff(tokens("read"), tokens("write")).changed == [
        'admin.tokens t0.role "read" -> "write"'
    ]
    assert diff(tokens("read"), tokens("read")).changed == []
