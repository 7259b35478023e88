"""Tokens, and keys of all kinds, for the tests of jwt."""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lb.plugin import Plugin
from lb.testing import Bench, Outcome, call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "jwt.py"
jwt = importlib.import_module("jwt")  # By an import, a type checker finds the plugin.
SECRET = "s" * 64


class From(int):
    """Seconds from the moment that a token is made."""


SOON = From(600)


def dated(claims: dict[str, Any] | None) -> dict[str, Any]:
    now = int(datetime.now(UTC).timestamp())
    whole = {"exp": SOON, "sub": "alice", **(claims or {})}
    return {
        name: now + value if isinstance(value, From) else value for name, value in whole.items()
    }


@cache
def private(kind: str) -> Any:
    match kind:
        case "RSA":
            return rsa.generate_private_key(65537, 2048)
        case "short RSA":
            return rsa.generate_private_key(65537, 1024)
        case "Ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return on_curve(kind.removesuffix("'"))


def on_curve(name: str) -> ec.EllipticCurvePrivateKey:
    curves: dict[str, Callable[[], ec.EllipticCurve]] = {
        "P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1,
        "secp256k1": ec.SECP256K1,
    }  # fmt: skip
    return ec.generate_private_key(curves[name]())


def pem(kind: str) -> str:
    public = private(kind).public_key()
    written = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return str(written.decode())


def jwk(kind: str, kid: str | None, **more: Any) -> dict[str, Any]:
    family = {"RSA": "RS256", "short RSA": "RS256", "Ed25519": "EdDSA"}.get(kind, "ES256")
    algorithm = jwt.get_algorithm_by_name(family)
    written = json.loads(algorithm.to_jwk(private(kind).public_key()))
    written.pop("key_ops", None)
    return {**written, **({} if kid is None else {"kid": kid}), **more}


def token(
    claims: dict[str, Any] | None = None,
    kind: str = "RSA",
    algorithm: str = "RS256",
    **head: Any,
) -> str:
    return str(jwt.encode(dated(claims), private(kind), algorithm, headers=head))


def secret_token(claims: dict[str, Any] | None = None, **how: Any) -> str:
    # Signed whatever it says: an issuer may be a fool.
    written = json.dumps(dated(claims)).encode()
    return str(jwt.PyJWS().encode(written, SECRET, **{"algorithm": "HS256", **how}))


def made(bench: Bench | None = None, **config: Any) -> Plugin[Any]:
    if not {"secret", "key_file", "jwks_file", "jwks_url"} & set(config):
        config["secret"] = SECRET
    if "secret" in config:
        config.setdefault("algorithms", ["HS256"])
    config.setdefault("algorithms", ["RS256"])
    return make(PLUGIN, config, bench or Bench())


def ask(plugin: Plugin[Any], bearer: str, more: str = "") -> Outcome:
    return call(plugin, f"GET /\nAuthorization: Bearer {bearer}{more}")


def status(plugin: Plugin[Any], bearer: str) -> int:
    return ask(plugin, bearer).got.status


def why(plugin: Plugin[Any], bearer: str) -> str:
    outcome = ask(plugin, bearer)
    assert outcome.got.status == 401
    said = outcome.got.headers.get("WWW-Authenticate") or ""
    assert 'error="invalid_token"' in said
    return said.rpartition('error_description="')[2].rstrip('"')


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def unsigned(head: dict[str, Any], signature: bytes = b"") -> str:
    payload = json.dumps(dated({"sub": "admin"})).encode()
    return f"{part(json.dumps(head).encode())}.{part(payload)}.{part(signature)}"
