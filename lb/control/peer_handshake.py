"""
How two members make sure of each other before either listens to what the other says.

    dialer -> answerer   HELLO    protocols, how it is secured, nonce, claim
    answerer -> dialer   WELCOME  the same of the other side
    dialer -> answerer   PROOF    I have the secret, and said and heard just that
    answerer -> dialer   PROOF    so have and did I; frames are sealed from here on
    both ways            READY    I take you for what you claim  (or REFUSED, and why)

A proof is an HMAC-SHA256 over all of HELLO and WELCOME, so it binds both nonces, both claims and
both ranges of protocols; its key comes from the secret and both nonces by HKDF, and is another
for each side. So nothing of it can be used a second time, sent back to where it came from, or
used between two others. The dialer proves first: who only connects learns nothing that a secret
could be guessed from. Between members by TLS, and on loopback without a secret, proofs are empty;
with TLS it is the certificate that proves the claimed name, and `peer_connection` looks at it.

Pure: bytes in, bytes out; nonces are arguments. Byte by byte: docs/group-wire.md.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import orjson

from lb.errors import AccordError

MAGIC: Final = b"accrdgrp"
PROTOCOL: Final = (1, 1)  # The oldest and the newest that this version speaks.
NONCE_BYTES: Final = 32
BOOT_BYTES: Final = 8
ID_MAX: Final = (1 << 63) - 1
GROUP_CHARS_MAX: Final = 64
NAME_CHARS_MAX: Final = 63
ADDRESS_CHARS_MAX: Final = 300
VERSION_CHARS_MAX: Final = 64
LEVEL_MAX: Final = 1 << 16
DETAIL_CHARS_MAX: Final = 500

# magic, oldest and newest protocol, how it is secured, what for, boot, nonce, length of the claim
_GREETING: Final = struct.Struct("<8sHHBB8s32sH")
_LABEL: Final = b"accord members 1: "


class Mode(IntEnum):
    """What guards a connection."""

    NONE = 0  # nothing: both ends are on this machine
    SECRET = 1
    TLS = 2


class Purpose(IntEnum):
    """What a dialer wants a connection for."""

    LINK = 1  # to keep it: messages of Raft, and calls
    CALLS = 2  # for a call or two


@dataclass(frozen=True, slots=True)
class Claim:
    """What an instance says of itself. Believed once the handshake is through."""

    group: str  # "": none yet
    member: int  # 0: none yet
    name: str
    address: str
    version: str
    build: str
    protocol: tuple[int, int]
    level: int

    @property
    def is_member(self) -> bool:
        """Whether it says it belongs to a group."""
        return bool(self.group) and self.member > 0

    def to_bytes(self) -> bytes:
        """Return all but the protocols, which stand before it in a greeting."""
        return orjson.dumps(
            {
                "group": self.group,
                "member": self.member,
                "name": self.name,
                "address": self.address,
                "version": self.version,
                "build": self.build,
                "level": self.level,
            }
        )


class Refusal(AccordError):  # noqa: N818  # It is an answer before it is an error.
    """This connection is not to be. `code` is one word for programs, `heard`: the peer said so."""

    def __init__(self, code: str, message: str, hint: str = "", *, heard: bool = False) -> None:
        super().__init__(message, hint)
        self.code = code
        self.heard = heard

    def to_bytes(self) -> bytes:
        """Return what goes into a REFUSED frame."""
        return orjson.dumps(
            {
                "code": self.code,
                "detail": self.message[:DETAIL_CHARS_MAX],
                "hint": self.hint[:DETAIL_CHARS_MAX],
            }
        )


def read_refusal(body: bytes) -> Refusal:
    """Read what came in a REFUSED frame. Its words are the peer's: shown, never obeyed."""
    plain = _mapping(body)
    code, detail, hint = (plain.get(key) for key in ("code", "detail", "hint"))
    if not isinstance(code, str) or not isinstance(detail, str):
        return Refusal("refused", "without a reason", heard=True)
    hint = hint if isinstance(hint, str) else ""
    return Refusal(code[:64], detail[:DETAIL_CHARS_MAX], hint[:DETAIL_CHARS_MAX], heard=True)


@dataclass(frozen=True, slots=True)
class Keys:
    """Seals of one connection: what we send with, and what we expect."""

    send: bytes
    receive: bytes


@dataclass(frozen=True, slots=True)
class Ourselves:
    """
    What our side of a handshake is made of.

    `secrets`: the first is the one that a dialer proves, all are accepted. `boot` is drawn once
    by each process: who hears its own has dialled itself.
    """

    claim: Claim
    mode: Mode
    secrets: tuple[bytes, ...]
    boot: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Greeting:
    """HELLO or WELCOME, read."""

    mode: int
    purpose: Purpose
    boot: bytes
    nonce: bytes
    claim: Claim

    @classmethod
    def read(cls, body: bytes) -> Greeting:
        """Read one. Refusal: it is none."""
        if body[: len(MAGIC)] != MAGIC[: len(body)] or len(body) < _GREETING.size:
            raise Refusal("garbage", "no greeting of a member")
        _, oldest, newest, mode, purpose, boot, nonce, size = _GREETING.unpack_from(body)
        text = body[_GREETING.size :]
        if len(text) != size or purpose not in tuple(Purpose) or oldest > newest:
            raise Refusal("garbage", "a greeting that makes no sense")
        claim = _read_claim(_mapping(text), (oldest, newest))
        return cls(mode, Purpose(purpose), boot, nonce, claim)


def _write_greeting(ours: Ourselves, purpose: Purpose) -> bytes:
    text = ours.claim.to_bytes()
    oldest, newest = ours.claim.protocol
    head = _GREETING.pack(
        MAGIC, oldest, newest, ours.mode, purpose, ours.boot, ours.nonce, len(text)
    )
    return head + text


class _Side:
    """What both sides of a handshake do alike."""

    def __init__(self, ours: Ourselves) -> None:
        self.ours = ours
        self.peer: Claim | None = None
        self.boot = b""  # The peer's: another one at each of its starts.
        self.purpose = Purpose.LINK
        self.protocol = 0
        self.keys: Keys | None = None
        self.secret: bytes | None = None  # The one that both proved.
        self._hello = b""
        self._welcome = b""
        self._nonces = b""

    def _meet(self, body: bytes) -> Greeting:
        """Judge what a greeting says before anything is proved."""
        greeting = Greeting.read(body)
        claim, ours = greeting.claim, self.ours
        self.peer, self.boot = claim, greeting.boot
        if greeting.mode != ours.mode:
            raise Refusal(
                "security",
                f"{_spoken(greeting.mode)} on one side, {_spoken(ours.mode)} on the other",
                "give all members the same `group.tls` or `group.secret`",
            )
        if greeting.boot == ours.boot:
            raise Refusal("ourselves", "that address is this instance's own")
        if claim.is_member and (claim.group, claim.member) == (ours.claim.group, ours.claim.member):
            raise Refusal(
                "same-member",
                f"{claim.name} has the member id of {ours.claim.name}",
                "one of the two data_dirs is a copy: wipe it, and let its instance join anew",
            )
        newest = min(claim.protocol[1], ours.claim.protocol[1])
        if newest < max(claim.protocol[0], ours.claim.protocol[0]):
            raise Refusal(
                "protocol",
                f"{claim.name} speaks protocol {_span(claim)}, {ours.claim.name} "
                f"{_span(ours.claim)}",
                "upgrade the older one; a version and the one before it run together",
            )
        self.protocol = newest
        return greeting

    def _derive(self, secret: bytes, purpose: bytes) -> bytes:
        """HKDF: extract by both nonces, expand for one purpose and this very handshake."""
        extracted = hmac.digest(self._nonces, secret, "sha256")
        return hmac.digest(extracted, _LABEL + purpose + self._transcript() + b"\x01", "sha256")

    def _transcript(self) -> bytes:
        sizes = struct.pack("<II", len(self._hello), len(self._welcome))
        return hashlib.sha256(sizes + self._hello + self._welcome).digest()

    def _proof(self, secret: bytes, who: bytes) -> bytes:
        key = self._derive(secret, who + b" proves")
        return hmac.digest(key, self._transcript(), "sha256")

    def _settle(self, secret: bytes, send: bytes, receive: bytes) -> None:
        self.secret = secret
        self.keys = Keys(self._derive(secret, send), self._derive(secret, receive))


class Dialer(_Side):
    """The side that connects. Call in this order: `hello`, `welcomed`, `proved`."""

    def hello(self, purpose: Purpose) -> bytes:
        """Return the body of HELLO."""
        self.purpose = purpose
        self._hello = _write_greeting(self.ours, purpose)
        return self._hello

    def welcomed(self, body: bytes) -> bytes:
        """Take in WELCOME and return the body of our PROOF."""
        greeting = self._meet(body)
        self._welcome = body
        self._nonces = self.ours.nonce + greeting.nonce
        if self.ours.mode is not Mode.SECRET:
            return b""
        return self._proof(self.ours.secrets[0], b"dialer")

    def proved(self, body: bytes) -> None:
        """Take in the other side's PROOF; `keys` are there afterwards."""
        if self.ours.mode is not Mode.SECRET:
            _refuse_proof(body != b"")
            return
        secret = self.ours.secrets[0]
        _refuse_proof(not hmac.compare_digest(body, self._proof(secret, b"answerer")))
        self._settle(secret, b"dialer to answerer", b"answerer to dialer")


class Answerer(_Side):
    """The side that was connected to. Call in this order: `greeted`, `proved`."""

    def greeted(self, body: bytes) -> bytes:
        """Take in HELLO and return the body of WELCOME."""
        greeting = self._meet(body)
        self.purpose = greeting.purpose
        self._hello = body
        self._welcome = _write_greeting(self.ours, greeting.purpose)
        self._nonces = greeting.nonce + self.ours.nonce
        return self._welcome

    def proved(self, body: bytes) -> bytes:
        """Take in the dialer's PROOF and return the body of ours; `keys` are there then."""
        if self.ours.mode is not Mode.SECRET:
            _refuse_proof(body != b"")
            return b""
        # All are tried, whichever fits: how long it takes says nothing.
        fits = [
            secret
            for secret in self.ours.secrets
            if hmac.compare_digest(body, self._proof(secret, b"dialer"))
        ]
        _refuse_proof(not fits)
        self._settle(fits[0], b"answerer to dialer", b"dialer to answerer")
        return self._proof(fits[0], b"answerer")


def peek(data: bytes) -> Claim | None:
    """Read the claim in the first bytes that a dialer sends; None if it is not all there."""
    if len(data) < 5 + _GREETING.size:
        return None
    (length,) = struct.unpack_from("<I", data)
    if len(data) < 4 + length:
        return None
    try:
        return Greeting.read(data[5 : 4 + length]).claim
    except Refusal:
        return None


def _refuse_proof(wrong: bool) -> None:
    if wrong:
        raise Refusal(
            "wrong-secret",
            "the proof does not fit: another secret, or somebody in between",
            "give all members the same `group.secret`; while it changes, both",
        )


def _read_claim(plain: Mapping[str, Any], protocol: tuple[int, int]) -> Claim:
    claim = Claim(
        _text(plain, "group", GROUP_CHARS_MAX),
        _number(plain, "member", ID_MAX),
        _text(plain, "name", NAME_CHARS_MAX),
        _text(plain, "address", ADDRESS_CHARS_MAX),
        _text(plain, "version", VERSION_CHARS_MAX),
        _text(plain, "build", VERSION_CHARS_MAX),
        protocol,
        _number(plain, "level", LEVEL_MAX),
    )
    if not claim.name:
        raise Refusal("garbage", "a claim without a name")
    return claim


def _text(plain: Mapping[str, Any], key: str, longest: int) -> str:
    value = plain.get(key)
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        raise Refusal("garbage", f"a claim whose {key} makes no sense")
    return value


def _number(plain: Mapping[str, Any], key: str, largest: int) -> int:
    value = plain.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise Refusal("garbage", f"a claim whose {key} makes no sense")
    return value


def _mapping(text: bytes) -> Mapping[str, Any]:
    try:
        plain = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return plain if isinstance(plain, dict) else {}


def _spoken(mode: int) -> str:
    words: Sequence[str] = ("neither TLS nor a secret", "a secret", "TLS")
    return words[mode] if mode < len(words) else "something unknown"


def _span(claim: Claim) -> str:
    oldest, newest = claim.protocol
    return f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
