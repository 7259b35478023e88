"""`lb explain METHOD URL`: why a request goes where it goes."""

from __future__ import annotations

from typing import Any

import click

from lb.cli.client import admin_options, find_admin
from lb.cli.output import output_option, print_json, print_table, say
from lb.cli.units import HEADER


@click.command()
@admin_options
@output_option
@click.option("-H", "--header", "headers", type=HEADER, multiple=True, help="A request header.")
@click.option("--listener", metavar="NAME", help="Through which listener; else by the URL's port.")
@click.argument("method")
@click.argument("url")
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    method: str,
    url: str,
    headers: tuple[tuple[str, str], ...],
    listener: str | None,
    **words: Any,
) -> None:
    """Why a request would go where it goes; nothing is sent to any backend.

    \b
    lb explain GET http://api.example.com/v1/users -H 'x-canary: 1'
    """
    body: dict[str, Any] = {"method": method, "url": url, "headers": [list(h) for h in headers]}
    if listener:
        body["listener"] = listener
    plain = find_admin(words["admin"], words["config"]).ask("POST", "/v1/explain", body).plain
    if words["output"] == "json":
        print_json(plain)
    else:
        _print(plain)
    ctx.exit(0 if plain["answer"] in ("forward", "respond") else 1)


def _print(plain: dict[str, Any]) -> None:
    click.echo(f"{plain['method']} {plain['host'] or '(no host)'}{plain['path']}")
    click.echo(f"listener  {plain['listener']}")
    for route in plain["routes"]:
        click.echo(f"route     {route['name']}: {route['why']}")
    if plain.get("plugins"):
        passed = ", ".join(each["name"] for each in plain["plugins"])
        click.echo(f"plugins   {passed}: they are asked first, and may decide otherwise")
    status = f"{plain['status']}: " if plain["status"] else ""
    click.echo(f"so        {status}{plain['because']}")
    if plain["upstream"] is None:
        return
    if plain["split"]:
        shares = ", ".join(f"{name} {share:.4g}" for name, share in plain["split"].items())
        click.echo(f"split     {shares}: this request goes to {plain['upstream']}")
    click.echo(f"upstream  {plain['upstream']}, {plain['balance']}, revision {plain['revision']}")
    if plain["panic"]:
        say("too few backends are healthy: health is ignored (panic)")
    rows = [
        (
            each["backend"],
            each["address"],
            str(each["weight"]),
            each["state"],
            each["health"],
            each["why"],
        )
        for each in plain["candidates"]
    ]
    if rows:
        print_table(("BACKEND", "ADDRESS", "WEIGHT", "STATE", "HEALTH", "MAY BE CHOSEN"), rows)
    else:
        say("it has no backends")
