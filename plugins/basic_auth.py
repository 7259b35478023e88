"""
Lets in who knows a name and its password (RFC 7617).

Hashes of passwords are made to be slow, 50 to 250 ms of a core. They are worked out in threads of
their own, few at once, and what was right is remembered for a while: the usual request costs one
lookup. Nobody learns from the time that an answer takes whether a name is known.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from lb.plugin import Duration, HeaderName, Headers, Plugin, Reply, Request, Secret, reply
from lb.plugin_outside import library, read_file, stamp_of

LOOKED_EVERY_S: Final = 1.0
REMEMBERED_MAX: Final = 10_000  # Credentials that were right, a worker.
WAITING_MAX: Final = 32  # That wait for a thread; beyond, 503.
RETRY_AFTER_S: Final = 2
CREDENTIALS_MAX: Final = 2_048  # Characters of the field; longer ones are wrong.
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
BCRYPT_BYTES: Final = 72  # What of a password bcrypt looks at.
COST_MAX: Final = 16  # Of bcrypt: some five seconds.
WORK_KIB_MAX: Final = 8 * 1024 * 1024  # Of argon2, memory times passes: likewise.
_BCRYPT: Final = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_ARGON2: Final = re.compile(r"\$argon2(?:id|i|d)\$")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f:]{1,255}")
_REALM: Final = re.compile(r"[ -~]{1,255}")

Users = dict[bytes, str]


class BasicAuth(Plugin["BasicAuth.Config"]):
    """Knows users, and whose credentials were right of late."""

    name = "basic_auth"

    @dataclass
    class Config:
        """What stands beside `use`."""

        file: str = field(
            default="",
            metadata={"about": "A file of lines NAME:HASH, as `htpasswd -B` writes it."},
        )
        users: dict[str, Secret] = field(
            default_factory=dict, metadata={"about": "Names and hashes, instead of a file."}
        )
        realm: str = field(
            default="restricted", metadata={"about": "What a browser asks a password for."}
        )
        user_header: HeaderName | None = field(
            default=None, metadata={"about": "A header in which the backend gets the name."}
        )
        strip: bool = field(
            default=False, metadata={"about": "Take Authorization off what the backend gets."}
        )
        remember: Duration = field(
            default=300.0, metadata={"about": "How long right credentials need no new look."}
        )
        at_once: int = field(
            default=2, metadata={"about": "How many hashes are worked out at once, a worker."}
        )

        def __post_init__(self) -> None:
            if bool(self.file) == bool(self.users):
                raise ValueError("give either file or users")
            if self.file and not os.path.isabs(self.file):
                raise ValueError(f"write the whole path of {self.file}, from the root")
            if _REALM.fullmatch(self.realm) is None:
                raise ValueError("realm is 1 to 255 visible ASCII characters")
            if not 1 <= self.at_once <= 64:
                raise ValueError("at_once is from 1 to 64")
            if self.user_header is not None:
                Headers(b"", b"").set(self.user_header, "")
            for name, hash_ in self.users.items():
                _judge(name, hash_, f"users.{name}")

    def start(self) -> None:
        """Read the users."""
        config = self.config
        self._key = secrets.token_bytes(32)
        self._good: dict[bytes, tuple[str, float]] = {}
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._pool = ThreadPoolExecutor(config.at_once, "lb-basic-auth")
        self._verified = self.ctx.count("verified")
        self._refused = self.ctx.count("refused")
        self._busy = self.ctx.count("busy")
        realm = config.realm.replace("\\", "\\\\").replace('"', '\\"')
        fields = {"WWW-Authenticate": f'Basic realm="{realm}", charset="UTF-8"'}
        self._challenge = reply(401, fields)
        self._too_many = reply(503, {"Retry-After": str(RETRY_AFTER_S)}, cause="limited")
        self._stamp: object = None
        if config.file:
            self._stamp = stamp_of(config.file)
            self._users = _users_in(config.file)
            self.ctx.every(LOOKED_EVERY_S, self._look)
        else:
            self._users = {name.encode(): hash_ for name, hash_ in config.users.items()}

    def stop(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> None:
        """Read the file again if it is another one; a bad one leaves what there is."""
        stamp = stamp_of(self.config.file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            users = _users_in(self.config.file)
        except ValueError as error:
            self.ctx.log.error("basic_auth goes on with the users it had: %s", error)
            return
        self._users = users
        self._good.clear()
        self._running = {}
        self.ctx.log.info("basic_auth read %s: %d users", self.config.file, len(users))

    def on_request(self, req: Request) -> Reply | Awaitable[Reply | None] | None:
        """Let in who is known; ask for credentials; or have them looked at, which takes time."""
        given = req.headers.all("authorization")
        if len(given) != 1 or len(given[0]) > CREDENTIALS_MAX:
            return self._challenge
        mark = blake2b(given[0].encode("latin-1"), digest_size=16, key=self._key).digest()
        known = self._good.get(mark)
        if known is not None:
            name, until = known
            if self.ctx.now() < until:
                self._let_in(req, name)
                return None
            del self._good[mark]
        return self._look_into(req, given[0], mark)

    def _let_in(self, req: Request, name: str) -> None:
        if self.config.user_header is not None:
            req.headers.set(self.config.user_header, name)
        if self.config.strip:
            req.headers.remove("authorization")

    def _look_into(self, req: Request, given: str, mark: bytes) -> Reply | Awaitable[Reply | None]:
        found = _credentials_in(given)
        users = self._users
        if found is None or not users:
            self._refused()
            return self._challenge
        name, password = found
        future = self._running.get(mark)
        if future is None:
            if len(self._running) >= self.config.at_once + WAITING_MAX:
                self._busy()
                return self._too_many
            future = self._begin(users, name, password, mark)
        return self._verdict(req, future, mark, name, users)

    def _begin(
        self, users: Users, name: bytes, password: bytes, mark: bytes
    ) -> asyncio.Future[bool]:
        """Have a hash worked out; who comes with the same credentials meanwhile waits with us."""
        hash_ = users.get(name)
        known = hash_ is not None
        if hash_ is None:
            # One of the others', always the same for a name: it takes as long as theirs.
            drawn = int.from_bytes(blake2b(name, digest_size=8, key=self._key).digest(), "little")
            hash_ = list(users.values())[drawn % len(users)]
        self._verified()
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, _matches, hash_, password, known)
        running = self._running
        running[mark] = future

        def over(done: asyncio.Future[bool]) -> None:
            running.pop(mark, None)
            if not done.cancelled():
                done.exception()  # Whoever still waits gets it; nobody may.

        future.add_done_callback(over)
        return future

    async def _verdict(
        self, req: Request, future: asyncio.Future[bool], mark: bytes, name: bytes, users: Users
    ) -> Reply | None:
        if not await asyncio.shield(future):
            self._refused()
            return self._challenge
        text = name.decode("latin-1")  # Octets as they came: a header has no characters.
        if users is self._users:
            if len(self._good) >= REMEMBERED_MAX:
                del self._good[next(iter(self._good))]
            self._good[mark] = (text, self.ctx.now() + self.config.remember)
        self._let_in(req, text)
        return None


def _credentials_in(given: str) -> tuple[bytes, bytes] | None:
    """Return name and password, None if it is no such thing."""
    scheme, _, rest = given.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        octets = base64.b64decode(rest.strip(" "), validate=True)
    except ValueError:
        return None
    name, colon, password = octets.partition(b":")
    fine = colon and _NAME.fullmatch(name.decode("latin-1")) and b"\0" not in password
    return (name, password) if fine else None


def _matches(hash_: str, password: bytes, known: bool) -> bool:
    """Whether it is the password; takes as long for an unknown name, and says no."""
    if hash_.startswith("$2"):
        right = library("bcrypt").checkpw(password[:BCRYPT_BYTES], hash_.encode())
    else:
        argon2 = library("argon2")
        try:
            right = argon2.PasswordHasher().verify(hash_, password)
        except argon2.exceptions.VerifyMismatchError:
            right = False
    return bool(right) and known


def _users_in(file: str) -> Users:
    """Read lines of NAME:HASH. ValueError with the line that is wrong."""
    content = read_file(file, FILE_BYTES_MAX)
    users: Users = {}
    for number, line in enumerate(map(bytes.strip, content.split(b"\n")), 1):
        if not line or line.startswith(b"#"):
            continue
        name, _, hash_ = line.partition(b":")
        where = f"{file}:{number}"
        _judge(name.decode("latin-1"), hash_.decode("latin-1"), where)
        if name in users:
            raise ValueError(f"{where}: this name stands further up too")
        users[name] = hash_.decode()
    return users


def _judge(name: str, hash_: str, where: str) -> None:
    """Refuse what is no name or no hash, or one that would take for ever. ValueError."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{where}: a name has 1 to 255 characters, no colon and no control")
    bcrypt = _BCRYPT.fullmatch(hash_)
    if bcrypt is not None:
        library("bcrypt")
        if not 4 <= int(bcrypt[1]) <= COST_MAX:
            raise ValueError(f"{where}: the cost of bcrypt is from 4 to {COST_MAX}")
        return
    if _ARGON2.match(hash_) is None:
        raise ValueError(f"{where}: neither bcrypt nor argon2; `htpasswd -B` writes bcrypt")
    argon2 = library("argon2")
    try:
        cost = argon2.extract_parameters(hash_)
    except (argon2.exceptions.InvalidHash, ValueError):
        raise ValueError(f"{where}: this argon2 hash is not whole") from None
    if cost.memory_cost * cost.time_cost > WORK_KIB_MAX:
        raise ValueError(f"{where}: this argon2 hash takes too much memory or time")
