"""`lb group`: who the members are, how the group is, and what is to be done about it."""

from __future__ import annotations

from typing import Any, ClassVar

import click

from lb.cli.client import admin_options, find_admin, path_of
from lb.cli.group_words import in_words
from lb.cli.output import colour, confirm, output_option, print_json, print_table, say, yes_option
from lb.cli.tree import LazyGroup

GROUP_SECONDS_MAX = 30.0  # For an answer that waits for others: to be caught up, to be elected.
HEADERS = ("NAME", "ROLE", "ADDRESS", "MATCH", "LAG", "LAST CONTACT", "VERSION", "CONFIG")
HASH_SHOWN = 8  # Letters of a config's hash: enough to see which ones differ.


class GroupCommands(LazyGroup):
    """`lb group`."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {
        "status": ("group:status", "The members, how far they are, and what is going on."),
        "add": ("group:add", "Invite an instance that waits to join."),
        "remove": ("group:remove", "Take a member out for good."),
        "transfer": ("group:transfer", "Hand leadership to another member."),
        "ok-to-stop": ("group:ok_to_stop", "Whether the group can do without this instance."),
        "backup": ("group_files:backup", "Write all that the registry holds to a file."),
        "restore": ("group_files:restore", "Make the registry what a backup says."),
        "cert": ("group_cert:cert", "Make a member's certificate, and the group's authority."),
        "found": ("group:found", "Found the group though not all of its members are here."),
        "recover": ("group:recover", "After a disaster: go on from this instance alone."),
    }


@click.group(cls=GroupCommands)
def group() -> None:
    """The instances that agree: show, add, remove, hand over, back up, recover."""


@click.command()
@admin_options
@output_option
@click.pass_context
def status(ctx: click.Context, admin: str | None, config: str | None, output: str) -> None:
    """The members, how far they are, and what is going on. Exit status 1 if it is not well.

    \b
    lb group status
    lb group status -o json | jq -r .leader
    """
    plain = find_admin(admin, config).get("/v1/group").plain
    if output == "json":
        print_json(plain)
    else:
        _print_group(plain)
    ctx.exit(0 if is_well(plain) else 1)


@click.command()
@admin_options
@output_option
@click.option("--note", default="", metavar="TEXT", help="Why, for those who look later.")
@click.argument("name")
@click.argument("address")
def add(name: str, address: str, note: str, **words: Any) -> None:
    """Invite an instance called NAME that waits at ADDRESS, where the others reach it.

    One that has the group's addresses in group.join comes in by itself. It learns what the
    others know, and votes once it is caught up and a voter is missing.

    \b
    lb group add d 10.0.0.4:9901
    """
    instance = find_admin(words["admin"], words["config"])
    plain = instance.ask(
        "PUT",
        path_of("v1", "group", "members", name),
        {"address": address},
        query=_query(note),
        seconds=GROUP_SECONDS_MAX,
    ).plain
    if words["output"] == "json":
        print_json(plain)
        return
    if plain.get("state") == "member":
        say(f"{name} is a member already")
    else:
        say(f"invited {name}, at {address}; lb group status shows how far it is")


@click.command()
@admin_options
@output_option
@click.option("--note", default="", metavar="TEXT", help="Why, for those who look later.")
@click.option("--force", is_flag=True, help="Even if it is alive, or the rest is thin without it.")
@click.argument("name")
def remove(name: str, note: str, force: bool, **words: Any) -> None:
    """Take a member out for good. Its address may be given to another afterwards.

    \b
    lb group remove c
    """
    instance = find_admin(words["admin"], words["config"])
    plain = instance.ask(
        "DELETE",
        path_of("v1", "group", "members", name),
        query=_query(note) | ({"force": "true"} if force else {}),
        seconds=GROUP_SECONDS_MAX,
    ).plain
    if words["output"] == "json":
        print_json(plain)
        return
    say(f"removed {name}; to let it join again, remove raft/ in its data_dir")


@click.command()
@admin_options
@output_option
@click.option("--note", default="", metavar="TEXT", help="Why, for those who look later.")
@click.argument("name", required=False)
def transfer(name: str | None, note: str, **words: Any) -> None:
    """Hand leadership to NAME, or to the member that is furthest.

    \b
    lb group transfer b
    """
    instance = find_admin(words["admin"], words["config"])
    plain = instance.ask(
        "POST",
        "/v1/group/transfer",
        {"to": name} if name else {},
        query=_query(note),
        seconds=GROUP_SECONDS_MAX,
    ).plain
    if words["output"] == "json":
        print_json(plain)
        return
    say(f"{plain['leader']} leads now")


@click.command("ok-to-stop")
@admin_options
@output_option
@click.pass_context
def ok_to_stop(ctx: click.Context, admin: str | None, config: str | None, output: str) -> None:
    """Whether the group keeps its quorum without this instance: exit status 0 if it does.

    For a rolling restart, one instance after another:

    \b
    lb group ok-to-stop && systemctl restart lb && lb status --wait ready 60s
    """
    plain = find_admin(admin, config).get("/v1/group/ok-to-stop").plain
    if output == "json":
        print_json(plain)
    elif plain["ok"]:
        say(plain.get("reason") or "it may be stopped")
    else:
        say(f"do not stop it now: {plain.get('reason') or 'the group would lose its quorum'}")
    ctx.exit(0 if plain["ok"] else 1)


@click.command()
@admin_options
@output_option
@yes_option
@click.option("--note", default="", metavar="TEXT", help="Why, for those who look later.")
def found(note: str, yes: bool, **words: Any) -> None:
    """Found the group now, of this instance alone, though not every listed member answered.

    Only for a first start: where any of the others ever was in a group, two groups would serve
    the same traffic by two registries.

    \b
    lb group found
    """
    instance = find_admin(words["admin"], words["config"])
    missing = _named(instance.get("/v1/group").plain.get("waiting_for") or [])
    confirm(
        f"This founds a new group without {missing or 'those that have not answered'}."
        " If one of them holds a group already, there will be two.",
        yes,
    )
    plain = instance.ask(
        "POST", "/v1/group/found", {}, query=_query(note), seconds=GROUP_SECONDS_MAX
    ).plain
    if words["output"] == "json":
        print_json(plain)
        return
    say("founded; those that are still to come will join it by themselves")


@click.command()
@admin_options
@output_option
@yes_option
@click.option("--note", default="", metavar="TEXT", help="Why, for those who look later.")
@click.option("--lost", required=True, metavar="b,c", help="Every other voter, each of them lost.")
def recover(lost: str, note: str, yes: bool, **words: Any) -> None:
    """After a disaster: make what this instance knows a new group of one.

    Every other voter must be named, and must not answer. Traffic is not touched. Choose the
    survivor that is furthest (lb group status: applied): what only the lost ones knew is lost.

    \b
    lb group recover --lost b,c
    """
    names = [name.strip() for name in lost.split(",") if name.strip()]
    confirm(
        f"This gives up {_named(names)} for good and makes what this instance knows a new group,"
        " with a new id and its revision raised by 1,000,000. What only they knew is lost;"
        " none of them may join before raft/ in its data_dir is removed.",
        yes,
    )
    instance = find_admin(words["admin"], words["config"])
    plain = instance.ask(
        "POST",
        "/v1/group/recover",
        {"lost": names},
        query=_query(note),
        seconds=GROUP_SECONDS_MAX,
    ).plain
    if words["output"] == "json":
        print_json(plain)
        return
    say(f"a group of one now; {_named(names)} may join once raft/ in their data_dir is removed")


def is_well(plain: dict[str, Any]) -> bool:
    """Whether nothing has to be done about a group."""
    fine = plain["state"] in ("ok", "alone") and not plain.get("detail")
    return bool(fine and plain.get("quorum", True))


def _print_group(plain: dict[str, Any]) -> None:
    state = "ok" if is_well(plain) else plain["state"]
    click.echo(
        f"group {plain['id'] or '(none yet)'}  {colour(state)}"
        f"  leader {plain['leader'] or 'none'}, term {plain['term']}, revision {plain['revision']}"
    )
    for line in in_words(plain):
        click.echo(f"  {line}")
    members = plain.get("members") or []
    if members:
        print_table(HEADERS, [_row(each, plain["leader"]) for each in members])


def _row(each: dict[str, Any], leader: str) -> tuple[str, ...]:
    contact = each.get("last_contact_ms")
    role = "leader" if each["name"] == leader else each["role"]
    return (
        each["name"],
        role,
        each["address"],
        _or_dash(each.get("match")),
        _or_dash(each.get("lag")),
        "-" if contact is None else f"{contact} ms ago",
        each.get("version") or "-",
        (each.get("config_hash") or "-")[:HASH_SHOWN],
    )


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _named(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _query(note: str) -> dict[str, str]:
    return {"note": note} if note else {}
