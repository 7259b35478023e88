"""jwt: whose tokens are good, for how long, and where keys come from."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import importlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.errors import OperatorError
from lb.plugin import Plugin
from lb.testing import Bench, Outcome, call, call_async, make
from plugins.web_kit import serving

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


# --- Which tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("RSA", "RS256"), ("RSA", "RS512"), ("RSA", "PS384"), ("P-256", "ES256"),
        ("P-384", "ES384"), ("P-521", "ES512"), ("secp256k1", "ES256K"), ("Ed25519", "EdDSA"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("source", ["key_file", "jwks_file"])
def test_algorithms(kind: str, algorithm: str, source: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    content = {"key_file": pem(kind), "jwks_file": json.dumps({"keys": [jwk(kind, "1")]})}
    file.write_text(content[source])
    config: dict[str, Any] = {source: str(file), "algorithms": [algorithm]}
    plugin = made(**config)

    assert status(plugin, token(None, kind, algorithm, kid="1")) == 200
    other = "RSA" if kind != "RSA" else "P-256"
    assert status(plugin, token(None, other, "RS256" if kind != "RSA" else "ES256", kid="1")) == 401


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_secrets(algorithm: str) -> None:
    plugin = made(algorithms=[algorithm])

    assert status(plugin, secret_token(algorithm=algorithm)) == 200
    wrong = jwt.encode(dated({}), "t" * 64, algorithm)
    assert why(plugin, wrong) == "its signature is wrong"


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def unsigned(head: dict[str, Any], signature: bytes = b"") -> str:
    payload = json.dumps(dated({"sub": "admin"})).encode()
    return f"{part(json.dumps(head).encode())}.{part(payload)}.{part(signature)}"


@pytest.mark.parametrize("word", ["none", "None", "NONE", "", "HS256", "RS384", 5, ["RS256"], None])
def test_a_token_does_not_choose_its_algorithm(word: object, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(pem("RSA"))
    plugin = made(key_file=str(file))

    for signature in (b"", b"x" * 32):
        assert status(plugin, unsigned({"alg": word, "typ": "JWT"}, signature)) == 401


def test_a_public_key_is_nobodys_secret(tmp_path: Path) -> None:
    """Signed by HMAC with the PEM as its key: the oldest trick there is."""
    file = tmp_path / "key.pem"
    file.write_text(pem("RSA"))
    forged = unsigned({"alg": "HS256", "typ": "JWT"}).rstrip(".")
    mac = hmac.digest(pem("RSA").encode(), forged.encode(), hashlib.sha256)
    forged += "." + part(mac)

    assert why(made(key_file=str(file)), forged) == "its algorithm is not allowed"


@pytest.mark.parametrize(
    ("config", "claims", "expected"),
    [
        ({}, {"exp": From(-60)}, "it has expired"),
        ({"leeway": "60s"}, {"exp": From(-30)}, None),
        ({"leeway": "0s"}, {"exp": From(-5)}, "it has expired"),
        ({}, {"nbf": From(600)}, "it is not valid yet"),
        ({}, {"iat": From(600)}, "it is not valid yet"),
        ({}, {"exp": "soon"}, "it cannot be read"),
        ({"require": ["exp", "tenant"]}, {}, "a claim is missing"),
        ({"require": ["exp", "tenant"]}, {"tenant": "t"}, None),
        ({"issuer": ["a", "b"]}, {"iss": "b"}, None),
        ({"issuer": "a"}, {"iss": "b"}, "it is from another issuer"),
        ({"issuer": "a"}, {}, "it is from another issuer"),
        ({"issuer": "a"}, {"iss": ["a"]}, "it is from another issuer"),
        ({}, {"exp": 1e400}, "it cannot be read"),
        ({}, {"exp": [1]}, "it cannot be read"),
        ({"audience": "x"}, {"aud": {"x": 1}}, "it is for somebody else"),
        ({"audience": ["x", "y"]}, {"aud": "y"}, None),
        ({"audience": "x"}, {"aud": ["w", "x"]}, None),
        ({"audience": "x"}, {"aud": "y"}, "it is for somebody else"),
        ({"audience": "x"}, {}, "a claim is missing"),
        ({}, {"aud": "y"}, "it is for somebody else"),
        ({}, {"sub": 7}, "it cannot be read"),
    ],
)
def test_claims(config: dict[str, Any], claims: dict[str, Any], expected: str | None) -> None:
    plugin = made(**config)

    if expected is None:
        assert status(plugin, secret_token(claims)) == 200
    else:
        assert why(plugin, secret_token(claims)) == expected


def test_one_without_an_end_is_refused_unless_allowed() -> None:
    endless = jwt.encode({"sub": "alice"}, SECRET, "HS256")

    assert why(made(), endless) == "a claim is missing"
    assert status(made(require=[]), endless) == 200


@pytest.mark.parametrize(
    "odd",
    [
        "", ".", "..", "a.b", "a.b.c", "a.b.c.d", "x" * 10_000, "ä.ö.ü",
        unsigned({"alg": "HS256", "crit": ["x"]}, b"s"),
        unsigned({"alg": "HS256", "b64": False}, b"s"),
        unsigned({"alg": "HS256", "kid": ["x"]}, b"s"),
        f"{part(b'[' * 5000)}.e30.c2ln",
        f"{part(b'9' * 5000)}.e30.c2ln",
        f"{part(b'7')}.e30.c2ln",
    ],
    ids=range(14),
)  # fmt: skip
def test_what_is_no_token_is_refused_and_nothing_fails(odd: str) -> None:
    assert why(made(), odd) in ("that is no token", "it cannot be read", "its signature is wrong")


@settings(deadline=None)
@given(st.data())
def test_a_token_that_was_touched_is_refused(data: st.DataObject) -> None:
    good = secret_token()
    # The last character of a part may have bits that say nothing.
    at = data.draw(st.integers(0, len(good) - 2).filter(lambda at: good[at + 1] != "."))
    letter = data.draw(st.sampled_from("abcXYZ019-_").filter(lambda letter: letter != good[at]))

    assert status(made(), good[:at] + letter + good[at + 1 :]) == 401


# --- Where it is, and what goes on ------------------------------------------------------------


def test_without_a_token_it_asks_for_one() -> None:
    outcome = call(made(realm="a pi"))

    assert outcome.got.status == 401
    assert outcome.got.headers.get("WWW-Authenticate") == 'Bearer realm="a pi"'


@pytest.mark.parametrize(
    ("config", "head", "expected"),
    [
        ({}, "authorization: bearer {}", 200),
        ({}, "Authorization: {}", 401),
        ({}, "Authorization: Basic {}", 401),
        ({}, "Authorization: Bearer {}\nAuthorization: Bearer {}", 401),
        ({}, "Cookie: token={}", 401),
        ({"cookie": "token"}, "Cookie: a=b; token={}", 200),
        ({"cookie": "token"}, "Authorization: Basic YTpi\nCookie: token={}", 200),
        ({"cookie": "token"}, "Authorization: Bearer x\nCookie: token={}", 401),
        ({"header": "x-token"}, "X-Token: {}", 200),
        ({"header": "x-token"}, "X-Token: Bearer {}", 200),
        ({"header": "x-token"}, "Authorization: Bearer {}", 401),
    ],
)
def test_where_the_token_is(config: dict[str, Any], head: str, expected: int) -> None:
    plugin = made(**config)
    request = "GET /\n" + head.replace("{}", secret_token())

    assert [call(plugin, request).got.status for _ in range(2)] == [expected, expected]


def test_claims_become_headers_and_nobody_else_writes_them() -> None:
    names = {
        "sub": "x-user",
        "admin": "x-admin",
        "roles": "x-roles",
        "level": "x-level",
        "who": "x-who",
        "not": "x-not",
    }
    plugin = made(claims=names)
    good = secret_token(
        {"admin": True, "roles": ["a", "b"], "level": 3, "who": {"ä": 1}, "sub": "Zoë"}
    )
    forged = "".join(f"\n{name}: forged" for name in names.values())
    for _ in range(2):  # Judged, and remembered.
        sent = ask(plugin, good, forged).sent
        assert sent is not None
        assert {name: sent.headers.all(name) for name in names.values()} == {
            "x-user": ["Zoë".encode().decode("latin-1")],
            "x-admin": ["true"],
            "x-roles": ["a,b"],
            "x-level": ["3"],
            "x-who": ['{"\\u00e4":1}'],
            "x-not": [],
        }


@pytest.mark.parametrize("value", ["a\r\nx-admin: 1", "a\0", "x" * 5000, "\x7f"])
def test_a_claim_that_no_header_can_hold_refuses_the_token(value: str) -> None:
    assert why(made(claims={"sub": "x-user"}), secret_token({"sub": value})) == (
        "one of its claims cannot be passed on"
    )


def test_a_list_whose_commas_would_mislead_is_passed_as_json() -> None:
    sent = ask(made(claims={"roles": "x-roles"}), secret_token({"roles": ["a,b", "c"]})).sent

    assert sent is not None
    assert sent.headers.get("x-roles") == '["a,b","c"]'


@pytest.mark.parametrize("strip", [True, False])
def test_the_token_goes_on_or_not(strip: bool) -> None:
    sent = ask(made(strip=strip), secret_token()).sent

    assert sent is not None
    assert ("authorization" in sent.headers) is not strip


def test_a_good_token_is_remembered_until_it_ends() -> None:
    bench = Bench()
    plugin = made(bench)
    good = secret_token({"exp": From(600)})
    for _ in range(3):
        assert status(plugin, good) == 200
    assert bench.counts["verified"] == 1

    bench.time += 580
    assert status(plugin, good) == 200
    assert bench.counts["verified"] == 1
    bench.time += 40  # Its end and the leeway are past by this clock, so it is judged again.
    assert status(plugin, good) == 200
    assert bench.counts["verified"] == 2


def test_a_bad_one_is_not() -> None:
    bench = Bench()
    plugin = made(bench)
    for _ in range(2):
        assert status(plugin, secret_token({"exp": From(-60)})) == 401

    assert bench.counts["refused"] == 2


# --- Keys from files --------------------------------------------------------------------------


def looked(bench: Bench) -> None:
    for _, look in bench.periodic:
        look()


def write_keys(file: Path, *keys: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"keys": keys}))
    os.replace(new, file)


def test_keys_in_a_file_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "jwks.json"
    write_keys(file, jwk("RSA", "one"))
    bench = Bench()
    plugin = made(bench, jwks_file=str(file), algorithms=["RS256", "ES256"])
    old, new = token(kid="one"), token(None, "P-256", "ES256", kid="two")
    assert [status(plugin, old), status(plugin, new)] == [200, 401]
    assert why(plugin, new) == "its key is not known"

    write_keys(file, jwk("P-256", "two"))
    looked(bench)
    assert [status(plugin, old), status(plugin, new)] == [401, 200], "not even a remembered one"

    file.write_text("{")
    looked(bench)
    looked(bench)
    assert status(plugin, new) == 200
    assert sum("goes on with the keys it had" in text for text in caplog.messages) == 1


@pytest.mark.parametrize(
    ("key", "fine"),
    [
        (jwk("RSA", "1"), True),
        (jwk("RSA", None), True),
        (jwk("RSA", "1", alg="RS256"), True),
        (jwk("RSA", "1", use="sig"), True),
        (jwk("RSA", "1", key_ops=["verify"]), True),
        (jwk("RSA", "2"), False),
        (jwk("RSA", "1", alg="RS512"), False),
        (jwk("RSA", "1", use="enc"), False),
        (jwk("RSA", "1", key_ops=["encrypt"]), False),
        (jwk("short RSA", "1"), False),
        ({"kty": "oct", "k": "c2VjcmV0", "kid": "1"}, False),
        ({**jwk("RSA", "1"), "n": "!"}, False),
    ],
)
def test_which_keys_of_a_set_are_used(key: dict[str, Any], fine: bool, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    write_keys(file, key, jwk("P-256", "other"))
    plugin = made(jwks_file=str(file), algorithms=["RS256", "ES256"])

    assert (status(plugin, token(kid="1")) == 200) is fine


def test_a_token_that_names_no_key_is_tried_with_those_that_fit(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    write_keys(file, jwk("P-256'", "a"), jwk("P-256", "b"), jwk("RSA", "c"))
    plugin = made(jwks_file=str(file), algorithms=["ES256"])

    assert status(plugin, token(None, "P-256", "ES256")) == 200
    assert status(plugin, token(None, "P-256", "ES256", kid="a")) == 401, "the other has this name"


# --- Keys from a URL --------------------------------------------------------------------------


class Issuer:
    """Publishes keys, as long as it is well."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.status = 200
        self.body: bytes | None = None
        self.asked = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        headers = {"Location": "/elsewhere"} if 300 <= self.status < 400 else {}
        return web.Response(body=body, status=self.status, headers=headers)


async def asked(plugin: Plugin[Any], bearer: str) -> int:
    return (await call_async(plugin, f"GET /\nAuthorization: Bearer {bearer}")).got.status


async def periodically(bench: Bench) -> None:
    looked(bench)
    await bench.settle()


def test_keys_are_fetched_and_fetched_again() -> None:
    async def scenario() -> None:
        issuer, bench = Issuer(jwk("RSA", "one")), Bench()
        async with serving(issuer.answer) as url:
            plugin = made(bench, jwks_url=f"{url}/jwks", refresh="10m")
            assert [await asked(plugin, token(kid="one")) for _ in range(2)] == [200, 200]
            issuer.keys = [jwk("RSA", "two")]
            bench.time += 600
            await periodically(bench)
            assert await asked(plugin, token(kid="one")) == 401, "its key is gone"
            assert issuer.asked == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("bad", [500, 302, b"{", b'{"keys": []}', b"x" * 2_000_000, b"[" * 9999])
def test_the_last_good_keys_are_kept(bad: int | bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        issuer, bench = Issuer(jwk("RSA", "one")), Bench()
        async with serving(issuer.answer) as url:
            plugin = made(bench, jwks_url=url)
            assert await asked(plugin, token(kid="one")) == 200
            if isinstance(bad, int):
                issuer.status = bad
            else:
                issuer.body = bad
            bench.time += 600
            await periodically(bench)
            assert await asked(plugin, token({"sub": "bob"}, kid="one")) == 200
        assert bench.counts["fetch_failed"] == 1

    asyncio.run(scenario())
    assert any("the keys of before stay" in text and "http://" in text for text in caplog.messages)


def test_a_new_key_is_asked_for_at_once_and_not_again_and_again() -> None:
    async def scenario() -> None:
        issuer, bench = Issuer(jwk("RSA", "one")), Bench()
        async with serving(issuer.answer) as url:
            plugin = made(bench, jwks_url=url)
            new = token(None, "P-256", "ES256", kid="two")
            plugin = made(bench, jwks_url=url, algorithms=["RS256", "ES256"])
            assert await asked(plugin, token(kid="one")) == 200
            issuer.keys.append(jwk("P-256", "two"))
            before = issuer.asked
            bench.time += 31
            many = await asyncio.gather(*(asked(plugin, new) for _ in range(10)))
            assert set(many) == {200}
            assert issuer.asked == before + 1, "all waited for the same answer"
            for number in range(20):
                unknown = token({"jti": str(number)}, kid="three")
                assert await asked(plugin, unknown) == 401
            assert issuer.asked == before + 1
            bench.time += 31
            assert await asked(plugin, token(kid="three")) == 401
            assert issuer.asked == before + 2

    asyncio.run(scenario())


def test_without_any_keys_it_is_our_fault() -> None:
    async def scenario() -> None:
        issuer, bench = Issuer(jwk("RSA", "one")), Bench()
        issuer.status = 503
        async with serving(issuer.answer) as url:
            plugin = made(bench, jwks_url=url)
            outcome = await call_async(plugin, f"GET /\nAuthorization: Bearer {token(kid='one')}")
            assert outcome.got.status == 503
            assert outcome.got.headers.get("Retry-After") == "2"
            for _ in range(5):
                assert await asked(plugin, token(kid="one")) == 503
            assert issuer.asked == 1, "it is not asked for every request"
            issuer.status = 200
            bench.time += 2
            assert await asked(plugin, token(kid="one")) == 200

    asyncio.run(scenario())


def test_whoever_leaves_while_keys_are_fetched_leaves_them_to_others() -> None:
    async def scenario() -> None:
        issuer, bench = Issuer(jwk("RSA", "one")), Bench()
        there, gate = asyncio.Event(), asyncio.Event()

        async def slowly(request: web.Request) -> web.Response:
            if not there.is_set():
                there.set()
                await gate.wait()
            return await issuer.answer(request)

        async with serving(slowly) as url:
            plugin = made(bench, jwks_url=url)
            first = asyncio.ensure_future(asked(plugin, token(kid="one")))
            second = asyncio.ensure_future(asked(plugin, token(kid="one")))
            await there.wait()
            first.cancel()
            assert await second == 200
            gate.set()
            plugin.stop()

    asyncio.run(scenario())


# --- Settings ---------------------------------------------------------------------------------

HS: dict[str, Any] = {"algorithms": ["HS256"], "secret": SECRET}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"secret": SECRET}, "algorithms"),
        ({"algorithms": [], "secret": SECRET}, "at least one"),
        ({"algorithms": ["none"], "secret": SECRET}, "none"),
        ({"algorithms": ["HS256"]}, "exactly one"),
        ({**HS, "jwks_file": "/x"}, "exactly one"),
        ({"algorithms": ["HS256"], "secret": "short"}, "at least 32"),
        ({"algorithms": ["HS512"], "secret": "s" * 63}, "at least 64"),
        ({"algorithms": ["RS256"], "secret": SECRET}, "RS256 cannot be checked with secret"),
        ({"algorithms": ["RS256", "HS256"], "key_file": "/x"}, "HS256 cannot be"),
        ({"algorithms": ["RS256"], "key_file": "x.pem"}, "whole path"),
        ({"algorithms": ["RS256"], "jwks_url": "login.example.com"}, "is no URL"),
        ({"algorithms": ["RS256"], "jwks_url": "ftp://a/b"}, "is no URL"),
        ({"algorithms": ["RS256"], "jwks_url": "http://[::1"}, "is no URL"),
        ({"algorithms": ["RS256"], "jwks_url": "https://a/", "refresh": "1s"}, "at least 30s"),
        ({**HS, "claims": {"sub": "host"}}, "load balancer itself"),
        ({**HS, "realm": "\n"}, "realm"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file"),
        ("", "no public key for RS256"),
        (lambda: pem("P-256"), "no public key for RS256|is on curve"),
        (lambda: pem("short RSA"), "at least 2048 bits"),
        ("-----BEGIN PRIVATE KEY-----", "private key"),
        ("-----BEGIN CERTIFICATE-----", "x509 -pubkey"),
    ],
)
def test_a_bad_key_refuses_the_reload(text: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    if text is not None:
        file.write_text(text if isinstance(text, str) else text())

    with pytest.raises(ValueError, match=says):
        made(key_file=str(file))


def test_a_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(pem("P-384"))

    with pytest.raises(ValueError, match="ES256"):
        made(key_file=str(file), algorithms=["ES256"])
