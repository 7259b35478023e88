"""jwt: where keys come from, and what becomes of bad ones."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lb.plugin import Plugin
from lb.testing import Bench, call_async
from plugins.jwt_kit import jwk, made, pem, status, token, why
from plugins.web_kit import serving

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
