"""Secrets that stand in files of their own: read into the configuration, or what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import PydanticCustomError

from lb.config.admin import Token
from lb.config.checks import Finding
from lb.config.positions import Path
from lb.config.schema import Config
from lb.config.secrets import SharedSecrets, TokenText, read_file, weak


@dataclass(slots=True)
class SecretsRead:
    """`config` with all secrets in it; it can be used where `findings` is empty."""

    config: Config
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_secrets(config: Config, tree: Mapping[str, Any]) -> SecretsRead:
    """Read all `*_file`s, whose names are absolute by now; `tree` is the config as written."""
    reading = _Reading(config, tree)
    update: dict[str, Any] = {"admin": reading.admin()}
    if config.group is not None:
        update["group"] = reading.group()
    read = config.model_copy(update=update)
    told = reading.odd + list(weak(tree, reading.texts))
    return SecretsRead(read, reading.findings, told if not reading.findings else [])


class _Reading:
    def __init__(self, config: Config, tree: Mapping[str, Any]) -> None:
        self._config = config
        self._tree = tree
        self.findings: list[Finding] = []
        self.odd: list[str] = []
        self.texts: dict[str, str] = {}

    def group(self) -> Any:
        group = self._config.group
        assert group is not None
        if group.secret_file is None:
            return group
        path: Path = ("group", "secret_file")
        if group.secret:
            self._found(path, "a secret stands here or in a file, not both", "leave one out")
            return group
        text = self._read(path, group.secret_file, "group.secret_file")
        try:
            return group.model_copy(update={"secret": SharedSecrets().read(text)})
        except PydanticCustomError as error:
            self._found(path, f"{group.secret_file}: {error.message()}")
            return group

    def admin(self) -> Any:
        admin = self._config.admin
        written = self._tree.get("admin", {}).get("tokens")
        seen: dict[str, str] = {}
        tokens = []
        for index, token in enumerate(admin.tokens):
            path: Path = ("admin", "tokens", *([index] if isinstance(written, list) else []))
            read = self._token(token, path)
            if read.token and read.token in seen:
                self._found(path, f'"{token.name}" has the same token as "{seen[read.token]}"')
            seen[read.token] = token.name
            tokens.append(read)
        return admin.model_copy(update={"tokens": tokens})

    def _token(self, token: Token, path: Path) -> Token:
        if token.token_file is None:
            if not token.token:
                hint = f'add token_file = "{token.name}.token"'
                self._found(path, f'there is no token for "{token.name}"', hint)
            return token
        path = (*path, "token_file")
        if token.token:
            self._found(path, "a token stands here or in a file, not both", "leave one out")
            return token
        text = self._read(path, token.token_file, f"admin.tokens {token.name}").strip()
        try:
            return token.model_copy(update={"token": TokenText().read(text)})
        except PydanticCustomError as error:
            self._found(path, f"{token.token_file}: {error.message()}")
            return token

    def _read(self, path: Path, name: str, what: str) -> str:
        """Return what a file holds; empty where that has been complained of."""
        reason = ""
        try:
            text = self.texts[what] = read_file(name)
        except FileNotFoundError:
            reason = "no such file"
        except PermissionError:
            reason = "the user that runs lb may not read it"
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            reason = "not UTF-8"
        except ValueError as error:
            reason = str(error)
        else:
            if os.stat(name).st_mode & 0o007:
                self.odd.append(f"{name} may be read by everybody on this machine")
            if text.strip():
                return text
            reason = "it is empty"
        self._found(path, f"{name}: {reason}")
        return ""

    def _found(self, path: Path, message: str, hint: str = "") -> None:
        self.findings.append(Finding(path, message, hint))
