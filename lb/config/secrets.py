"""
Secrets in the file: read, kept out of everything that is printed, and taken from `*_file`s.

A secret is written as `***` wherever a configuration is dumped, unless who dumps it says
`REVEALED`: only the way to our own next process may. Of a token nothing is kept but its
SHA-256, so that neither memory nor an edition gives one away.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from lb.config.kinds import Kind, wrong

HIDDEN: Final = "***"
REVEALED: Final = {"secrets": "plain"}  # A context for `model_dump`.
MARKED: Final = {"secrets": "marked"}  # Another: what differs stays different, and secret.
HIDDEN_TOO: Final = {"secrets": "hidden"}  # A context for `model_validate` of such a dump.
SECRETS_MAX: Final = 2  # Lines of one secret: the one in use, and the one before or after.
SECRET_LENGTH_MAX: Final = 1024
SHORT: Final = 16  # A secret with fewer characters is spoken of.
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

_MARK = re.compile(re.escape(HIDDEN) + r"[0-9a-f]{16}")
_MARK_KEY = secrets.token_bytes(16)
_IN_A_LINE = re.compile(
    r"""(?<![\w-])((?:secret|token)["']?\s*=\s*)"""
    r"""(\"{3}.*|'{3}.*|"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,}\]]+)"""
)


@dataclass(frozen=True, slots=True)
class Secret(Kind):
    """What nobody else may know."""

    def hidden(self, value: Any) -> str:
        """Write what may be seen of it."""
        return HIDDEN if value else ""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._loaded,
            serialization=core_schema.plain_serializer_function_ser_schema(
                self._dumped, info_arg=True
            ),
        )

    def _loaded(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if (info.context or {}) == HIDDEN_TOO and value == HIDDEN:
            return self.unknown()
        return self.read(value)

    def unknown(self) -> Any:
        """Return what stands for a secret that only the other side knows."""
        return HIDDEN

    def _dumped(self, value: Any, info: core_schema.SerializationInfo) -> Any:
        how = (info.context or {}).get("secrets")
        if how == "plain":
            return self.write(value)
        if how == "marked" and value:
            return self.mark(value)
        return self.hidden(value)

    @staticmethod
    def mark(value: Any) -> str:
        """Write what tells one secret from another, and nothing else."""
        digest = blake2b(repr(value).encode(), key=_MARK_KEY, digest_size=8)
        return HIDDEN + digest.hexdigest()

    def one(self, value: object) -> str:
        """Take one secret."""
        text = self.text(value).strip()
        if text == HIDDEN:
            raise wrong(f"{HIDDEN} stands for a secret that was left out", "write the secret")
        if not text.isprintable():
            raise wrong("a secret has no control characters")
        if len(text) > SECRET_LENGTH_MAX:
            raise wrong(f"a secret has at most {SECRET_LENGTH_MAX} characters")
        return text


@dataclass(frozen=True, slots=True)
class SharedSecrets(Secret):
    """What members of a group share: a line each, the first is the one that is sent."""

    words = "text; several lines while rotating: the first is sent, all are accepted"

    def read(self, value: object) -> tuple[str, ...]:
        """Take lines of text, or a list of them."""
        lines = value if isinstance(value, list | tuple) else self.text(value).splitlines()
        found = tuple(text for each in lines if (text := self.one(each)))
        if not found and value not in ([], (), ""):
            raise wrong("there is no secret in it")
        if len(found) > SECRETS_MAX:
            raise wrong(f"these are {len(found)} secrets", f"at most {SECRETS_MAX}")
        return found

    def unknown(self) -> tuple[str, ...]:
        """Return what stands for secrets that only the other side knows."""
        return (HIDDEN,)

    def write(self, value: tuple[str, ...]) -> list[str]:
        """Turn them back into what `read` takes."""
        return list(value)

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


@dataclass(frozen=True, slots=True)
class PlainSecret(Secret):
    """One secret, kept as it is: who holds it needs it so."""

    words = "text that is never shown"

    def read(self, value: object) -> str:
        """Take it; none is one that is empty."""
        return self.one(value)


@dataclass(frozen=True, slots=True)
class TokenText(Secret):
    """A bearer token; its digest is all that is kept of it."""

    words = 'text without spaces, or "sha256:" and its digest in hexadecimal'

    def read(self, value: object) -> str:
        """Take a token, or the digest of one."""
        text = self.one(value)
        if not text:
            return ""
        if text.startswith("sha256:"):
            if DIGEST.fullmatch(text) is None:
                raise wrong(
                    "this is no SHA-256", 'write "sha256:" and 64 hexadecimal digits, in lower case'
                )
            return text
        if not text.isascii() or " " in text:
            raise wrong(
                "a token is of ASCII, without spaces", "like what openssl rand -hex 32 says"
            )
        return digest_of(text)


def digest_of(token: str) -> str:
    """Return what is kept of a token."""
    # What is shown to us may be anything: surrogates, for one, that no encoding takes.
    return f"sha256:{sha256(token.encode(errors='surrogatepass')).hexdigest()}"


def unmarked(text: str) -> str:
    """Take the marks of `MARKED` out of a text."""
    return _MARK.sub(HIDDEN, text)


def blanked(line: str) -> str:
    """Put stars over what a line of a file gives away; its length stays, as carets point at it."""
    return _IN_A_LINE.sub(lambda found: found[1] + "*" * len(found[2]), line)


def weak(tree: Mapping[str, Any], texts: Mapping[str, str]) -> Iterator[str]:
    """Name secrets that could be guessed; `texts` are those that were read from files."""
    group, admin = tree.get("group"), tree.get("admin")
    written = dict(texts)
    if isinstance(group, dict) and isinstance(group.get("secret"), str):
        written["group.secret"] = group["secret"]
    tokens = admin.get("tokens") if isinstance(admin, dict) else None
    for each in tokens if isinstance(tokens, list) else [tokens]:
        if isinstance(each, dict) and isinstance(each.get("token"), str):
            written[f"admin.tokens {each.get('name', '')}"] = each["token"]
    for what, text in written.items():
        if any(0 < len(line.strip()) < SHORT for line in text.splitlines()):
            yield f"{what} has less than {SHORT} characters: it could be guessed"


def read_file(name: str) -> str:
    """Read a file that holds a secret. OSError, UnicodeDecodeError or ValueError if it cannot."""
    with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        content = file.read(SECRETS_MAX * (SECRET_LENGTH_MAX + 2) + 1)
    if len(content) > SECRETS_MAX * (SECRET_LENGTH_MAX + 2):
        raise ValueError("it is too large for a secret")
    return content.decode()
