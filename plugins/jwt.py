"""
Lets in who bears a token that somebody we trust has signed (RFC 7519, RFC 6750).

Which algorithms may sign is said in the config, and never by the token. Keys come from a secret,
a file, or a URL, which is asked again now and then; while it cannot be asked, the last good keys
stay. A token that was right is remembered until it expires, so that the usual request costs a
lookup and no arithmetic.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import secrets
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, Literal

from lb.plugin import Duration, HeaderName, Headers, Plugin, Reply, Request, Secret, reply
from lb.plugin_outside import check_url, library, read_file, stamp_of

LOOKED_EVERY_S: Final = 1.0  # At a file.
UNKNOWN_EVERY_S: Final = 30.0  # Between two fetches because of a key that nobody knows.
FIRST_EVERY_S: Final = 2.0  # While there are no keys at all.
FETCH_S: Final = 5.0
FILE_BYTES_MAX: Final = 1024 * 1024  # Of keys, in a file or from a URL.
KEYS_MAX: Final = 100
TRIED_MAX: Final = 8  # Keys that a token without a kid is tried with.
TOKEN_CHARS_MAX: Final = 8_192
VALUE_CHARS_MAX: Final = 4_096  # Of a claim that goes into a header.
REMEMBERED_MAX: Final = 10_000  # Tokens that were right, a worker.
REMEMBERED_S: Final = 300.0  # Those that never expire.
RSA_BITS_MIN: Final = 2_048
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+")
_REALM: Final = re.compile(r"[ -~]{0,255}")
_HEADER_VALUE: Final = re.compile(r"[ -~\x80-\xff]*")
_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 3.2
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {
    "P-256": "ES256",
    "P-384": "ES384",
    "P-521": "ES512",
    "secp256k1": "ES256K",
    "Ed25519": "EdDSA",
    "Ed448": "EdDSA",
}
_CURVE_OF: Final = {  # As the library names it.
    "ES256": "secp256r1",
    "ES384": "secp384r1",
    "ES512": "secp521r1",
    "ES256K": "secp256k1",
}

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "ES256K", "EdDSA",
]  # fmt: skip


class TokenError(Exception):
    """A token that is not good, and why, in words for its bearer."""


class UnknownKeyError(TokenError):
    """A token by a key that we have not: there may be a new one."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, by the algorithms that it may be used with; `kid` is None if it goes by no name."""

    kid: str | None
    by_algorithm: dict[str, Any]


class Jwt(Plugin["Jwt.Config"]):
    """Knows keys, and which tokens were right of late."""

    name = "jwt"

    @dataclass
    class Config:
        """What stands beside `use`."""

        algorithms: list[Algorithm] = field(
            metadata={"about": "What may have signed a token: RS256, ES256, EdDSA, HS256, ..."}
        )
        secret: Secret = field(
            default="", metadata={"about": "The key of HS256 and its like, which signs as well."}
        )
        key_file: str = field(default="", metadata={"about": "A file with one public key as PEM."})
        jwks_file: str = field(default="", metadata={"about": "A file with a set of keys."})
        jwks_url: str = field(default="", metadata={"about": "Where a set of keys is fetched."})
        refresh: Duration = field(
            default=600.0, metadata={"about": "How often the URL is asked for keys."}
        )
        issuer: list[str] = field(
            default_factory=list, metadata={"about": "Who may have issued it (iss); [] is anybody."}
        )
        audience: list[str] = field(
            default_factory=list,
            metadata={"about": "For whom it may be (aud); [] refuses tokens that name somebody."},
        )
        leeway: Duration = field(
            default=10.0, metadata={"about": "How far the clocks of issuer and us may differ."}
        )
        require: list[str] = field(
            default_factory=lambda: ["exp"], metadata={"about": "Claims that have to be there."}
        )
        claims: dict[str, HeaderName] = field(
            default_factory=dict,
            metadata={"about": "Which claim the backend gets in which header."},
        )
        header: HeaderName = field(
            default="authorization", metadata={"about": "The header that has the token."}
        )
        cookie: str = field(
            default="", metadata={"about": "The cookie that has it, where the header has none."}
        )
        strip: bool = field(
            default=False, metadata={"about": "Take the token's header off what the backend gets."}
        )
        realm: str = field(default="", metadata={"about": "What WWW-Authenticate calls us."})

        def __post_init__(self) -> None:
            sources = {
                "secret": self.secret,
                "key_file": self.key_file,
                "jwks_file": self.jwks_file,
                "jwks_url": self.jwks_url,
            }
            given = [name for name, value in sources.items() if value]
            if len(given) != 1:
                raise ValueError(f"give exactly one of {', '.join(sources)}")
            if not self.algorithms:
                raise ValueError("algorithms has to name at least one")
            self._check_algorithms(given[0])
            for file in (self.key_file, self.jwks_file):
                if file and not os.path.isabs(file):
                    raise ValueError(f"write the whole path of {file}, from the root")
            if self.jwks_url:
                check_url(self.jwks_url, "https://login.example.com/jwks.json")
            if self.refresh < UNKNOWN_EVERY_S:
                raise ValueError(f"refresh is at least {UNKNOWN_EVERY_S:g}s")
            for name in self.claims.values():
                Headers(b"", b"").set(name, "")
            if _REALM.fullmatch(self.realm) is None:
                raise ValueError("realm is at most 255 visible ASCII characters")
            library("jwt", "PyJWT")

        def _check_algorithms(self, source: str) -> None:
            for algorithm in self.algorithms:
                least = _SECRET_BYTES.get(algorithm)
                if (least is not None) != (source == "secret"):
                    raise ValueError(f"{algorithm} cannot be checked with {source}")
                if least is not None and len(self.secret.encode()) < least:
                    raise ValueError(f"{algorithm} wants a secret of at least {least} octets")

    def start(self) -> None:
        """Get the keys, or begin to."""
        config = self.config
        self._jwt = library("jwt", "PyJWT")
        self._mark_key = secrets.token_bytes(32)
        self._good: dict[bytes, tuple[float, tuple[str | None, ...]]] = {}
        self._headers = tuple(config.claims.values())
        self._issuers = tuple(config.issuer)  # A claim may be anything, a list too.
        self._refused = self.ctx.count("refused")
        self._verified = self.ctx.count("verified")
        self._fetch_failed = self.ctx.count("fetch_failed")
        realm = config.realm.replace("\\", "\\\\").replace('"', '\\"')
        self._scheme = f'Bearer realm="{realm}"'
        self._missing = reply(401, {"WWW-Authenticate": self._scheme})
        self._no_keys = reply(503, {"Retry-After": f"{FIRST_EVERY_S:g}"})
        self._lock = asyncio.Lock()
        self._asked = float("-inf")  # When keys were last fetched, or it was last tried.
        self._keys: tuple[Key, ...] | None = None
        file = config.key_file or config.jwks_file
        if config.secret:
            by_algorithm = {str(each): config.secret.encode() for each in config.algorithms}
            self._keys = (Key(None, by_algorithm),)
        elif file:
            self._stamp = stamp_of(file)
            self._keys = self._keys_of_file()
            self.ctx.every(LOOKED_EVERY_S, self._look)
        else:
            self.ctx.spawn(self._refresh(FIRST_EVERY_S))
            self.ctx.every(
                config.refresh, lambda: self.ctx.spawn(self._refresh(config.refresh / 2))
            )

    def on_request(self, req: Request) -> Reply | Awaitable[Reply | None] | None:
        """Let in who bears a good token."""
        token = self._token_of(req)
        if token is None:
            return self._missing
        mark = blake2b(token.encode("latin-1"), digest_size=16, key=self._mark_key).digest()
        known = self._good.get(mark)
        if known is not None:
            if self.ctx.now() < known[0]:
                self._let_in(req, known[1])
                return None
            del self._good[mark]
        if self._keys is None:
            return self._after_fetch(req, token, mark, FIRST_EVERY_S)
        try:
            return self._judge(req, token, mark)
        except UnknownKeyError as error:
            if self.config.jwks_url and self.ctx.now() >= self._asked + UNKNOWN_EVERY_S:
                return self._after_fetch(req, token, mark, UNKNOWN_EVERY_S)
            return self._refuse(str(error))

    # Tokens.

    def _token_of(self, req: Request) -> str | None:
        """Return what may be a token, None where none was sent."""
        config = self.config
        values = req.headers.all(config.header)
        if len(values) == 1:
            first, _, rest = values[0].partition(" ")
            if first.lower() == "bearer":
                return rest.strip(" ")
            if config.header != "authorization":
                return values[0]
        elif values:
            return ""  # Two of them: whichever we took, somebody else may take the other.
        return req.cookie(config.cookie) if config.cookie else None

    def _judge(self, req: Request, token: str, mark: bytes) -> Reply | None:
        try:
            claims = self._claims_of(token)
            values = tuple(_as_header(claims.get(name)) for name in self.config.claims)
        except UnknownKeyError:
            raise
        except TokenError as error:
            return self._refuse(str(error))
        self._remember(mark, claims, values)
        self._let_in(req, values)
        return None

    def _claims_of(self, token: str) -> dict[str, Any]:
        """Return what a good token says. TokenError."""
        jwt = self._jwt
        if len(token) > TOKEN_CHARS_MAX or _TOKEN.fullmatch(token) is None:
            raise TokenError("that is no token")
        try:
            head = jwt.get_unverified_header(token)
            claims = self._verified_claims(token, head)
        except jwt.ExpiredSignatureError:
            raise TokenError("it has expired") from None
        except jwt.ImmatureSignatureError:
            raise TokenError("it is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise TokenError("it is for somebody else") from None
        except jwt.MissingRequiredClaimError:
            raise TokenError("a claim is missing") from None
        except jwt.InvalidSignatureError:
            raise TokenError("its signature is wrong") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise TokenError("it cannot be read") from None
        if self._issuers and claims.get("iss") not in self._issuers:
            raise TokenError("it is from another issuer")
        return claims

    def _verified_claims(self, token: str, head: dict[str, Any]) -> dict[str, Any]:
        config, jwt = self.config, self._jwt
        algorithm, kid = head.get("alg"), head.get("kid")
        if not isinstance(algorithm, str) or algorithm not in config.algorithms:
            raise TokenError("its algorithm is not allowed")
        keys = [
            key.by_algorithm[algorithm]
            for key in self._keys or ()
            if algorithm in key.by_algorithm and (None in (kid, key.kid) or kid == key.kid)
        ]
        if not keys:
            raise UnknownKeyError("its key is not known")
        for key in keys[:TRIED_MAX]:
            self._verified()
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=config.audience or None,
                    leeway=config.leeway,
                    options={"require": config.require, "verify_iss": False},
                )
            except jwt.InvalidSignatureError:
                continue
            return claims
        raise jwt.InvalidSignatureError

    def _remember(
        self, mark: bytes, claims: dict[str, Any], values: tuple[str | None, ...]
    ) -> None:
        left = REMEMBERED_S
        if "exp" in claims:
            left = int(claims["exp"]) + self.config.leeway - datetime.now(UTC).timestamp()
        if len(self._good) >= REMEMBERED_MAX:
            del self._good[next(iter(self._good))]
        self._good[mark] = (self.ctx.now() + left, values)

    def _let_in(self, req: Request, values: tuple[str | None, ...]) -> None:
        """Tell the backend what was claimed; what the client wrote into these headers goes."""
        for name, value in zip(self._headers, values, strict=True):
            if value is None:
                req.headers.remove(name)
            else:
                req.headers.set(name, value)
        if self.config.strip:
            req.headers.remove(self.config.header)

    def _refuse(self, why: str) -> Reply:
        self._refused()
        said = f'{self._scheme}, error="invalid_token", error_description="{why}"'
        return reply(401, {"WWW-Authenticate": said})

    # Keys.

    async def _after_fetch(
        self, req: Request, token: str, mark: bytes, since: float
    ) -> Reply | None:
        """Judge by the keys that there are then."""
        await self._refresh(since)
        if self._keys is None:
            return self._no_keys
        try:
            return self._judge(req, token, mark)
        except UnknownKeyError as error:
            return self._refuse(str(error))

    async def _refresh(self, since: float) -> None:
        """Fetch keys, unless somebody did within so many seconds; one at a time."""
        async with self._lock:
            if self.ctx.now() < self._asked + since:
                return
            try:
                keys = await _fetched(self.config.jwks_url, self.config.algorithms)
            except ValueError as error:
                self._fetch_failed()
                kept = "the keys of before stay" if self._keys else "there are none yet"
                self.ctx.log.error("jwt got no keys, %s: %s", kept, error)
            else:
                self._take(keys)
            self._asked = self.ctx.now()

    def _look(self) -> None:
        """Read the file again if it is another one; a bad one leaves what there is."""
        stamp = stamp_of(self.config.key_file or self.config.jwks_file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(self._keys_of_file())
        except ValueError as error:
            self.ctx.log.error("jwt goes on with the keys it had: %s", error)

    def _keys_of_file(self) -> tuple[Key, ...]:
        config = self.config
        file = config.key_file or config.jwks_file
        content = read_file(file, FILE_BYTES_MAX)
        try:
            if config.jwks_file:
                return _key_set(content, config.algorithms)
            return (_pem_key(content, config.algorithms),)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def _take(self, keys: tuple[Key, ...]) -> None:
        """Judge by these from now on; who was right by others is judged again."""
        self._keys = keys
        self._good.clear()


def _as_header(value: object) -> str | None:
    """Return a claim as a header has it, None if there is none. TokenError if it cannot be one."""
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(each, str) and "," not in each for each in value):
        text = ",".join(value)
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode("latin-1")
    if _HEADER_VALUE.fullmatch(text) is None or len(text) > VALUE_CHARS_MAX:
        raise TokenError("one of its claims cannot be passed on")
    return text


def _key_set(content: bytes, algorithms: Iterable[str]) -> tuple[Key, ...]:
    """Read a set of keys (RFC 7517), without those that are of no use. ValueError if none is."""
    try:
        written = json.loads(content)["keys"]
        found = [_key_in(each, algorithms) for each in written[:KEYS_MAX]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("that is no set of keys") from None
    keys = tuple(key for key in found if key.by_algorithm)
    if not keys:
        raise ValueError(f"it has no key for {', '.join(algorithms)}")
    return keys


def _key_in(written: dict[str, Any], algorithms: Iterable[str]) -> Key:
    jwt = library("jwt", "PyJWT")
    kid, kind, curve = written.get("kid"), written["kty"], written.get("crv")
    fitting = _RSA if kind == "RSA" else {_CURVES.get(str(curve))} if kind in ("EC", "OKP") else ()
    if written.get("use", "sig") != "sig" or "verify" not in written.get("key_ops", ["verify"]):
        fitting = ()  # It is for something else, like encrypting.
    by_algorithm = {}
    for algorithm in algorithms:
        if algorithm in fitting and written.get("alg", algorithm) == algorithm:
            try:
                key = jwt.PyJWK(written, algorithm).key
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue  # One bad key does not spoil the others.
            if kind != "RSA" or key.key_size >= RSA_BITS_MIN:
                by_algorithm[algorithm] = key
    return Key(kid if isinstance(kid, str) else None, by_algorithm)


def _pem_key(content: bytes, algorithms: Iterable[str]) -> Key:
    jwt = library("jwt", "PyJWT")
    if b"PRIVATE KEY" in content:
        raise ValueError("this is a private key: `openssl pkey -pubout` makes the public one")
    if b"BEGIN CERTIFICATE" in content:
        raise ValueError("this is a certificate: `openssl x509 -pubkey -noout` shows its key")
    by_algorithm = {}
    for algorithm in algorithms:
        try:
            key = jwt.get_algorithm_by_name(algorithm).prepare_key(content)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise ValueError(f"it has no public key for {algorithm}") from None
        curve = getattr(getattr(key, "curve", None), "name", None)
        if _CURVE_OF.get(algorithm) != curve:
            raise ValueError(f"its key is on curve {curve}, which {algorithm} is not")
        if algorithm in _RSA and key.key_size < RSA_BITS_MIN:
            raise ValueError(f"an RSA key has at least {RSA_BITS_MIN} bits")
        by_algorithm[algorithm] = key
    return Key(None, by_algorithm)


async def _fetched(url: str, algorithms: Iterable[str]) -> tuple[Key, ...]:
    """Fetch a set of keys. ValueError says what is wrong."""
    content = await _body_of(url)
    try:
        return _key_set(content, algorithms)
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from None


async def _body_of(url: str) -> bytes:
    # Importing it takes a quarter of a second, in which others want to be served.
    aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
    timeout = aiohttp.ClientTimeout(total=FETCH_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"{url} answers {response.status}")
            content = b""
            while piece := await response.content.readany():
                content += piece
                if len(content) > FILE_BYTES_MAX:
                    raise ValueError(f"{url} has more than {FILE_BYTES_MAX} bytes")
            return content
    except TimeoutError:
        raise ValueError(f"{url} did not answer within {FETCH_S:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise ValueError(f"{url}: {error}") from None
