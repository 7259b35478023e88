"""basic_auth: who gets in, what it costs, and what cannot be taken for a user."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import argon2
import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.errors import OperatorError
from lb.plugin import Plugin
from lb.testing import Bench, Outcome, call, call_async, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "basic_auth.py"
THREADS, WAITING = 1, 32


def bcrypted(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(cost)).decode()


def argoned(password: str) -> str:
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(password)


USERS = {"alice": bcrypted("wonder:land"), "Zoë": argoned("pä$$")}


def made(bench: Bench | None = None, **config: Any) -> Plugin[Any]:
    if "file" not in config:
        config.setdefault("users", USERS)
    return make(PLUGIN, config, bench or Bench())


def field(name: str, password: str, scheme: str = "Basic") -> str:
    return f"{scheme} {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def ask(plugin: Plugin[Any], authorization: str, more: str = "") -> Outcome:
    return call(plugin, f"GET /\nAuthorization: {authorization}{more}")


def status(plugin: Plugin[Any], name: str, password: str) -> int:
    return ask(plugin, field(name, password)).got.status


# --- Who gets in ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "password", "expected"),
    [
        ("alice", "wonder:land", 200),
        ("Zoë", "pä$$", 200),
        ("alice", "wonder", 401),
        ("alice", "", 401),
        ("Alice", "wonder:land", 401),
        ("bob", "wonder:land", 401),
        ("", "wonder:land", 401),
        ("Zoë", "wonder:land", 401),
    ],
)
def test_names_and_passwords(name: str, password: str, expected: int) -> None:
    assert status(made(), name, password) == expected


@pytest.mark.parametrize(
    "given",
    [
        "Basic",
        "Basic !!!",
        "Basic YWxpY2U",
        "Bearer " + base64.b64encode(b"alice:wonder:land").decode(),
        "Basic " + base64.b64encode(b"alice").decode(),
        "Basic " + base64.b64encode(b"alice\x00:wonder:land").decode(),
        "Basic " + base64.b64encode(b"alice:wonder:land\x00").decode(),
        "Basic " + base64.b64encode(b"alice:" + b"x" * 3000).decode(),
        field("alice", "wonder:land") + "\nAuthorization: " + field("alice", "wonder:land"),
    ],
    ids=["empty", "odd", "cut", "bearer", "no colon", "control", "zero", "long", "twice"],
)
def test_what_are_no_credentials(given: str) -> None:
    assert ask(made(), given).got.status == 401


@settings(deadline=None)
@given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])))
def test_nothing_makes_it_fail(given: str) -> None:
    outcome = call(PLUGIN, "GET /\nAuthorization: Basic " + given, config={"users": USERS})

    assert outcome.got.status == 401


def test_the_scheme_is_written_in_any_case() -> None:
    assert ask(made(), field("alice", "wonder:land", "bAsIc")).got.status == 200


def test_of_a_long_password_bcrypt_takes_what_it_looks_at() -> None:
    plugin = made(users={"a": bcrypted("x" * 72)})

    assert status(plugin, "a", "x" * 100) == 200
    assert status(plugin, "a", "x" * 71) == 401


def test_without_credentials_it_asks() -> None:
    outcome = call(made(realm='the "back" door'))

    assert outcome.got.status == 401
    expected = 'Basic realm="the \\"back\\" door", charset="UTF-8"'
    assert outcome.got.headers.get("WWW-Authenticate") == expected
    assert outcome.sent is None


def test_the_backend_is_told_the_name_and_nobody_else_tells_it() -> None:
    plugin = made(user_header="x-user", strip=True)
    for _ in range(2):  # Judged, and remembered.
        outcome = ask(plugin, field("Zoë", "pä$$"), "\nX-User: admin")
        assert outcome.sent is not None
        assert outcome.sent.headers.all("x-user") == ["Zoë".encode().decode("latin-1")]
        assert "authorization" not in outcome.sent.headers


def test_by_default_the_backend_gets_what_came() -> None:
    outcome = ask(made(), field("alice", "wonder:land"))

    assert outcome.sent is not None
    assert outcome.sent.headers.get("authorization") == field("alice", "wonder:land")


# --- What it costs ----------------------------------------------------------------------------


def test_right_credentials_are_remembered_for_a_while() -> None:
    bench = Bench()
    plugin = made(bench, remember="60s")
    for _ in range(3):
        assert status(plugin, "alice", "wonder:land") == 200
    assert bench.counts["verified"] == 1

    bench.time += 61
    assert status(plugin, "alice", "wonder:land") == 200
    assert bench.counts["verified"] == 2


def test_wrong_ones_are_not() -> None:
    bench = Bench()
    plugin = made(bench)
    for _ in range(2):
        assert status(plugin, "alice", "wonderland") == 401

    assert (bench.counts["verified"], bench.counts["refused"]) == (2, 2)


def test_an_unknown_name_costs_a_hash_too() -> None:
    bench = Bench()
    plugin = made(bench)

    assert status(plugin, "bob", "wonder:land") == 401
    assert bench.counts["verified"] == 1


def test_another_users_password_lets_no_unknown_name_in() -> None:
    plugin = made(users={"alice": bcrypted("x")})

    assert [status(plugin, f"bob{number}", "x") for number in range(5)] == [401] * 5


def test_others_are_served_while_a_hash_is_worked_out() -> None:
    plugin = made(users={"alice": bcrypted("x", 10)})

    async def turns() -> int:
        asked = asyncio.ensure_future(
            call_async(plugin, f"GET /\nAuthorization: {field('alice', 'x')}")
        )
        count = 0
        while not asked.done():
            await asyncio.sleep(0)
            count += 1
        assert asked.result().got.status == 200
        return count

    assert asyncio.run(turns()) > 100


def test_who_comes_with_the_same_credentials_waits_for_the_same_hash() -> None:
    bench = Bench()
    plugin = made(bench, users={"alice": bcrypted("x", 8)})

    async def all_at_once() -> list[Outcome]:
        request = f"GET /\nAuthorization: {field('alice', 'x')}"
        return await asyncio.gather(*(call_async(plugin, request) for _ in range(10)))

    assert {outcome.got.status for outcome in asyncio.run(all_at_once())} == {200}
    assert bench.counts["verified"] == 1


def test_one_who_leaves_does_not_take_the_others_with_him() -> None:
    plugin = made(users={"alice": bcrypted("x", 8)})

    async def leave() -> Outcome:
        request = f"GET /\nAuthorization: {field('alice', 'x')}"
        first, second = (asyncio.ensure_future(call_async(plugin, request)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(leave()).got.status == 200


def test_too_many_hashes_at_once_are_put_off() -> None:
    bench = Bench()
    plugin = made(bench, users={"alice": bcrypted("x", 6)}, at_once=THREADS)

    async def all_at_once() -> list[Outcome]:
        requests = [f"GET /\nAuthorization: {field('alice', str(n))}" for n in range(50)]
        return await asyncio.gather(*(call_async(plugin, request) for request in requests))

    outcomes = asyncio.run(all_at_once())

    statuses = [outcome.got.status for outcome in outcomes]
    assert statuses.count(401) == THREADS + WAITING
    assert statuses.count(503) == 50 - THREADS - WAITING == bench.counts["busy"]
    assert all(
        outcome.got.headers.get("Retry-After") for outcome in outcomes if outcome.got.status == 503
    )
    assert status(plugin, "alice", "x") == 200, "those that waited are through"


# --- The file ---------------------------------------------------------------------------------


def looked(bench: Bench) -> None:
    for seconds, look in bench.periodic:
        assert seconds == 1.0
        look()


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"# ours\n\nalice:{bcrypted('one')}\r\nZoë:{argoned('two')}\n")
    bench = Bench()
    plugin = made(bench, file=str(file))
    assert status(plugin, "alice", "one") == 200
    assert status(plugin, "Zoë", "two") == 200

    replace(file, f"alice:{bcrypted('other')}\n")
    assert status(plugin, "alice", "one") == 200, "not looked at yet"
    looked(bench)
    assert status(plugin, "alice", "one") == 401, "nor remembered"
    assert status(plugin, "alice", "other") == 200
    assert status(plugin, "Zoë", "two") == 401


@pytest.mark.parametrize("text", [None, "alice\n", "alice:secret\n", "a:\x00\n"])
def test_a_file_that_went_bad_changes_nothing(
    tmp_path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "users"
    file.write_text(f"alice:{bcrypted('one')}\n")
    bench = Bench()
    plugin = made(bench, file=str(file))
    if text is None:
        file.unlink()
    else:
        replace(file, text)

    looked(bench)
    looked(bench)

    assert status(plugin, "alice", "one") == 200
    said = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1, "once"
    assert str(file) in said[0].getMessage()
    replace(file, f"alice:{bcrypted('two')}\n")
    looked(bench)
    assert status(plugin, "alice", "two") == 200


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("")

    assert status(made(file=str(file)), "alice", "one") == 401


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "either file or users"),
        ({"users": {}}, "either file or users"),
        ({"users": USERS, "file": "/x"}, "either file or users"),
        ({"file": "users"}, "whole path"),
        ({"users": {"a": "secret"}}, "users.a: neither bcrypt nor argon2"),
        ({"users": {"a": "$apr1$x$y"}}, "htpasswd -B"),
        ({"users": {"a": bcrypted("x").replace("$04$", "$20$")}}, "cost"),
        ({"users": {"a": "$argon2id$v=19$m=8"}}, "not whole"),
        ({"users": {"a": argoned("x").replace("m=8", "m=99999999")}}, "too much"),
        ({"users": {"a:b": bcrypted("x")}}, "colon"),
        ({"users": USERS, "realm": "ä"}, "realm"),
        ({"users": USERS, "at_once": 0}, "at_once"),
        ({"users": USERS, "user_header": "x-forwarded-for"}, "load balancer itself"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file"),
        ("a:b\n", ":1: neither"),
        (f"a:{bcrypted('x')}\na:{bcrypted('x')}\n", ":2: this name"),
        (":x\n", ":1: a name"),
    ],
)
def test_a_bad_file_refuses_the_reload(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "users"
    if text is not None:
        file.write_text(text)

    with pytest.raises(ValueError, match=says):
        made(file=str(file))


def test_no_message_shows_a_hash(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        make(PLUGIN, {"users": {"a": "very-secret"}})

    assert "very-secret" not in str(caught.value.message)
