"""Commands about who serves: `upstream` and `backend`. All of it live, none of it a reload."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import click

from lb.cli.client import Admin, Answer, admin_options, find_admin, path_of
from lb.cli.instance import wait_for
from lb.cli.output import milliseconds, output_option, print_json, print_table, say
from lb.cli.tree import LazyGroup
from lb.cli.units import DURATION, DURATION_OR_ALL, LABEL
from lb.errors import OperatorError, UsageError

HEADERS = (
    "BACKEND",
    "ADDRESS",
    "WEIGHT",
    "STATE",
    "HEALTH",
    "ACTIVE",
    "REQUESTS",
    "ERRORS",
    "P50",
    "P99",
    "SOURCE",
)


class UpstreamGroup(LazyGroup):
    """`lb upstream`."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {
        "list": ("members:list_upstreams", "All upstreams, one a line."),
        "show": ("members:show", "One upstream with its backends."),
        "export": ("members:export", "The backends as they stand, as TOML for the file."),
        "remove": ("members:remove_upstream", "Forget an upstream that no config names."),
    }


class BackendGroup(LazyGroup):
    """`lb backend`."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {
        "list": ("members:show", "The backends of an upstream."),
        "add": ("members:add", "Add a backend, or replace what is said of it."),
        "set": ("members:set_", "Change weight, labels or address, and nothing else."),
        "drain": ("members:drain", "No new requests; what runs is finished."),
        "enable": ("members:enable", "Let it take requests again."),
        "disable": ("members:disable", "Take it out: no requests at all."),
        "remove": ("members:remove", "Take it out of the registry."),
        "force": ("members:force", "Up or down on this instance alone; needs no quorum."),
    }


@click.group(cls=UpstreamGroup)
def upstream() -> None:
    """List, show, export or remove upstreams."""


@click.group(cls=BackendGroup)
def backend() -> None:
    """Add, change, drain or remove backends, live, on all instances of the group."""


def read_options(command: Any) -> Any:
    """Give a command what every look at an upstream takes."""
    for option in (
        click.option("--consistent", is_flag=True, help="As of now in the whole group: ask it."),
        click.option("--view", type=click.Choice(["group"]), help="As each member sees it."),
        output_option,
        admin_options,
    ):
        command = option(command)
    return command


def wait_option(command: Any) -> Any:
    """Give a command `--wait all`."""
    return click.option(
        "--wait",
        type=click.Choice(["all"]),
        help="Until all live members route by it, or say who does not.",
    )(command)


def write_options(command: Any) -> Any:
    """Give a command what every write takes."""
    for option in (
        click.option("--note", default="", metavar="TEXT", help="Why, for those who look later."),
        click.option("--if-match", metavar="REVISION", help="Only if it has not changed since."),
        click.option("--idempotency-key", metavar="KEY", help="Repeated with it, acts once."),
        click.option("--force", is_flag=True, help="Even if no active backend is left."),
        output_option,
        admin_options,
    ):
        command = option(command)
    return command


@click.command("list")
@admin_options
@output_option
def list_upstreams(admin: str | None, config: str | None, output: str) -> None:
    """All upstreams, one a line."""
    plain = find_admin(admin, config).get("/v1/upstreams").plain
    if output == "json":
        print_json(plain)
        return
    rows = []
    for each in plain["upstreams"]:
        backends = each["backends"]
        active = sum(b["state"] == "active" for b in backends)
        unhealthy = sum(b["health"] == "unhealthy" for b in backends)
        requests = sum(b["requests"] for b in backends)
        counts = (len(backends), active, unhealthy, each["revision"], requests)
        rows.append((each["name"], each["balance"] or "-", *map(str, counts)))
    print_table(
        ("UPSTREAM", "BALANCE", "BACKENDS", "ACTIVE", "UNHEALTHY", "REVISION", "REQUESTS"), rows
    )


@click.command()
@read_options
@click.argument("upstream")
def show(upstream: str, consistent: bool, view: str | None, output: str, **words: Any) -> None:
    """One upstream with its backends.

    \b
    lb backend list app
    lb backend list app --view group
    """
    query = {"consistent": "true"} if consistent else {}
    query |= {"view": view} if view else {}
    instance = find_admin(words["admin"], words["config"])
    plain = instance.get(path_of("v1", "upstreams", upstream), **query).plain
    if output == "json":
        print_json(plain)
        return
    if plain["panic"]:
        say("too few backends are healthy: health is ignored (panic)")
    if view:
        _print_members(plain)
    else:
        print_table(HEADERS, [_row(each) for each in plain["backends"]])
    for each in plain["leaving"]:
        say(f"leaving: {each['address']}, {each['in_flight']} requests left")


@click.command()
@admin_options
@output_option
@click.argument("upstream")
def export(admin: str | None, config: str | None, output: str, upstream: str) -> None:
    """The backends as they stand, as TOML to put into the file."""
    plain = find_admin(admin, config).get(path_of("v1", "upstreams", upstream)).plain
    entries = []
    for each in plain["backends"]:
        said: dict[str, Any] = {"address": each["address"]}
        said |= {"name": each["name"]} if each["name"] else {}
        said |= {"weight": each["weight"]} if each["weight"] != 1 else {}
        said |= {"backup": True} if each["backup"] else {}
        entries.append(said)
    if output == "json":
        print_json({"upstream": upstream, "backends": entries})
        return
    click.echo(f"[upstream.{_toml_key(upstream)}]\nbackends = [")
    for said in entries:
        fields = ", ".join(f"{key} = {json.dumps(value)}" for key, value in said.items())
        click.echo(f"  {{ {fields} }},")
    click.echo("]")
    for each in plain["backends"]:
        if each["state"] != "active":
            say(f"{each['name'] or each['address']} is {each['state']}; a file holds no state")


@click.command("remove")
@write_options
@click.argument("upstream")
def remove_upstream(upstream: str, **words: Any) -> None:
    """Forget an upstream that no config names any more."""
    answer = _write("DELETE", path_of("v1", "upstreams", upstream), None, words)
    _tell(answer, words, f"removed upstream {upstream}")


@click.command()
@write_options
@wait_option
@click.option("--ttl", metavar="15s", type=DURATION, help="Gone by itself unless renewed so often.")
@click.option("--weight", type=click.IntRange(0, 1000), help="Its share; 1 if unset.")
@click.option("--backup", is_flag=True, default=None, help="Used only when no other is left.")
@click.option("--name", help="A stable identity: the key in URLs, metrics and hashing.")
@click.option("--state", type=click.Choice(["active", "draining", "disabled"]))
@click.option("--label", "labels", type=LABEL, multiple=True, help="key=value; may be repeated.")
@click.option("--new", is_flag=True, help="Refuse if it is there already.")
@click.argument("upstream")
@click.argument("address")
def add(upstream: str, address: str, name: str | None, new: bool, **words: Any) -> None:
    """Add a backend; for one that is there, replace what is said of it."""
    body = _said(words)
    if name:
        body["address"] = address
    headers = {"If-None-Match": "*"} if new else {}
    answer = _write("PUT", _path(upstream, name or address), body, words, headers)
    done = "added" if answer.status == 201 else "it is there already, now as said:"
    _tell(answer, words, f"{done} {name or address}")


@click.command("set")
@write_options
@wait_option
@click.option("--ttl", metavar="15s", type=DURATION, help="Gone by itself unless renewed so often.")
@click.option("--weight", type=click.IntRange(0, 1000), help="Its share of the traffic.")
@click.option("--backup/--no-backup", default=None, help="Used only when no other is left.")
@click.option("--address", "moved", metavar="ADDRESS", help="Where the named backend now is.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="key=value; key= takes away.")
@click.argument("upstream")
@click.argument("address")
def set_(upstream: str, address: str, moved: str | None, **words: Any) -> None:
    """Change what is named, and nothing else."""
    body = _said(words) | ({"address": moved} if moved else {})
    if not body:
        raise UsageError("nothing to set", "add --weight, --backup, --address, --ttl or --label")
    answer = _write("PATCH", _path(upstream, address), body, words)
    _tell(answer, words, f"changed {address}")


@click.command()
@write_options
@click.option(
    "--wait",
    type=DURATION_OR_ALL,
    help="Until its last request here is done, at most so long; all: until all members drain it.",
)
@click.argument("upstream")
@click.argument("address")
def drain(upstream: str, address: str, wait: float | str | None, **words: Any) -> None:
    """No new requests; what runs is finished."""
    answer = _set_state(upstream, address, "draining", words | {"wait": wait})
    _tell(answer, words, f"draining {address}")
    if isinstance(wait, float):
        _wait_drained(find_admin(words["admin"], words["config"]), upstream, address, wait)


@click.command()
@write_options
@wait_option
@click.argument("upstream")
@click.argument("address")
def enable(upstream: str, address: str, **words: Any) -> None:
    """Let it take requests again."""
    _tell(_set_state(upstream, address, "active", words), words, f"enabled {address}")


@click.command()
@write_options
@wait_option
@click.argument("upstream")
@click.argument("address")
def disable(upstream: str, address: str, **words: Any) -> None:
    """Take it out without removing it: no requests at all."""
    _tell(_set_state(upstream, address, "disabled", words), words, f"disabled {address}")


@click.command()
@write_options
@wait_option
@click.option("--now", is_flag=True, help="Cut what runs there.")
@click.argument("upstream")
@click.argument("address")
def remove(upstream: str, address: str, now: bool, **words: Any) -> None:
    """Take it out of the registry; what runs is finished, or cut with --now."""
    query = {"now": "true"} if now else {}
    answer = _write("DELETE", _path(upstream, address), None, words, query=query)
    _tell(answer, words, f"removed {address}")


@click.command()
@admin_options
@output_option
@click.option("--note", default="", metavar="TEXT", help="Why, for the log.")
@click.argument("to", metavar="up|down|auto", type=click.Choice(["up", "down", "auto"]))
@click.argument("upstream")
@click.argument("address")
def force(
    to: str, upstream: str, address: str, note: str, admin: str | None, config: str | None,
    output: str,
) -> None:  # fmt: skip
    """Have a backend up or down on this instance alone, whatever group and checks say.

    It needs no quorum, no other instance learns of it, and it is gone after a restart.
    `auto` ends it.
    """
    instance = find_admin(admin, config)
    query = {"note": note} if note else {}
    answer = instance.ask("POST", f"{_path(upstream, address)}/force", {"to": to}, query=query)
    if output == "json":
        print_json(answer.plain)
        return
    where = f"on instance {answer.plain['member']} alone"
    if to == "auto":
        say(f"{address} is as the group sees it again, {where}")
    else:
        say(f"{address} is forced {to}, {where}; lb backend force auto ends it")


def _set_state(upstream: str, address: str, state: str, words: dict[str, Any]) -> Answer:
    return _write("PATCH", _path(upstream, address), {"state": state}, words)


def _write(
    method: str,
    path: str,
    body: dict[str, Any] | None,
    words: dict[str, Any],
    headers: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
) -> Answer:
    headers = dict(headers or {})
    if words["if_match"]:
        headers["If-Match"] = f'"{words["if_match"].strip(chr(34))}"'
    if words["idempotency_key"]:
        headers["Idempotency-Key"] = words["idempotency_key"]
    query = dict(query or {}) | ({"note": words["note"]} if words["note"] else {})
    query |= {"force": "true"} if words["force"] else {}
    query |= {"wait": "all"} if words.get("wait") == "all" else {}
    instance = find_admin(words["admin"], words["config"])
    return instance.ask(method, path, body, query=query, headers=headers)


def _tell(answer: Answer, words: dict[str, Any], done: str) -> None:
    if words["output"] == "json":
        print_json(answer.plain)
        return
    say(f"{done} (revision {answer.plain['revision']})")
    if behind := answer.plain.get("behind"):
        say(f"committed, but not every worker of these routes by it yet: {', '.join(behind)}")
    if unreachable := answer.plain.get("unreachable"):
        say(f"committed; these could not be asked: {', '.join(unreachable)}")
    if behind or unreachable:
        return
    if not answer.plain["routed"]:
        say("committed, but not every worker routes by it yet; lb status shows why")


def _wait_drained(instance: Admin, upstream: str, address: str, seconds: float) -> None:
    shown: dict[str, int] = {}

    def drained() -> bool:
        left = _left(instance, upstream, address)
        for member, count in left.items():
            if shown.get(member) != count:
                say(f"{address}: {_requests(count)} left on {member}")
        shown.clear()
        shown.update(left)
        return not any(left.values())

    if not wait_for(drained, seconds):
        places = ", ".join(f"{_requests(n)} on {member}" for member, n in shown.items() if n)
        raise OperatorError(
            f"{address} still has {places} after {seconds:g} s",
            "wait longer, or cut them: lb backend remove --now",
        )
    say(f"{address} has no requests left")


def _left(instance: Admin, upstream: str, address: str) -> dict[str, int]:
    """Return how many requests run on a backend, by instance."""
    plain = instance.get(_path(upstream, address), view="group").plain
    members = plain.get("members") or {}
    left = {name: int(each["in_flight"]) for name, each in members.items() if "in_flight" in each}
    return left or {"this instance": plain["in_flight"]}


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _path(upstream: str, address: str) -> str:
    return path_of("v1", "upstreams", upstream, "backends", address)


def _said(words: dict[str, Any]) -> dict[str, Any]:
    """Return what the options say of a backend; what was not given stays unsaid."""
    fields = ("weight", "backup", "state")
    said = {name: words[name] for name in fields if words.get(name) is not None}
    said |= {"ttl": f"{words['ttl'] * 1000:.0f}ms"} if words.get("ttl") is not None else {}
    return said | ({"labels": dict(words["labels"])} if words["labels"] else {})


def how_it_is(each: dict[str, Any]) -> str:
    """Say in words whether a backend is well, and what goes before that."""
    if each.get("forced"):
        return f"forced {each['forced']}"
    return "ejected" if each.get("ejected") else str(each["health"])


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    latency = each["latency_ms"]
    return (
        each["name"] or each["address"],
        each["address"],
        f"{each['weight']}{' backup' if each['backup'] else ''}",
        each["state"],
        how_it_is(each),
        str(each["in_flight"]),
        str(each["requests"]),
        str(each["errors"]),
        milliseconds(latency["p50"]),
        milliseconds(latency["p99"]),
        each["source"],
    )


def _print_members(plain: dict[str, Any]) -> None:
    """Print how each member finds each backend, and who says nothing or is behind."""
    members: dict[str, dict[str, Any]] = plain["members"]
    headers = ("BACKEND", "WEIGHT", "STATE", *members)
    rows = []
    for each in plain["backends"]:
        key = each["name"] or each["address"]
        seen = [_seen(said.get("backends", {}).get(key)) for said in members.values()]
        rows.append((key, str(each["weight"]), each["state"], *seen))
    print_table(headers, rows)
    for name, said in members.items():
        if "error" in said:
            say(f"{name}: {said['error']}")
        elif said["revision"] < plain["revision"]:
            say(f"{name} routes by revision {said['revision']}, this is of {plain['revision']}")


def _seen(said: dict[str, Any] | None) -> str:
    if not said or not said.get("health"):
        return "-"
    return f"{said['health']}, {said['in_flight']} active" if said["in_flight"] else said["health"]


def _toml_key(name: str) -> str:
    bare = all(letter.isalnum() or letter in "_-" for letter in name)
    return name if bare else json.dumps(name)
