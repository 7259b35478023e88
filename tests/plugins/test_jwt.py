"""jwt: whose tokens are good, for how long, and what the backend gets of them."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.errors import OperatorError
from lb.testing import Bench, call, make
from plugins.jwt_kit import (
    PLUGIN,
    SECRET,
    From,
    ask,
    dated,
    jwk,
    jwt,
    made,
    part,
    pem,
    secret_token,
    status,
    token,
    unsigned,
    why,
)

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
