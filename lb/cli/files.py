"""Commands about config files: `init`, `check` and `config`."""

from __future__ import annotations

import os
from typing import ClassVar

import click

from lb.cli.client import admin_options, find_admin
from lb.cli.instance import print_reload
from lb.cli.output import output_option, print_json, say
from lb.cli.tree import LazyGroup
from lb.config.diff import diff as compare
from lb.config.doc import describe, json_schema, without_secrets
from lb.config.doc import show as as_toml
from lb.config.load import ConfigErrors, Loaded, find_config, load
from lb.config.sample import sample
from lb.config.schema import Config
from lb.config.secrets import HIDDEN_TOO
from lb.errors import OperatorError


class ExistsError(OperatorError):
    """`lb init` never writes over a file."""


@click.command()
@click.argument("file", default="lb.toml")
def init(file: str) -> None:
    """Write an annotated config file, FILE or ./lb.toml; "-" prints it."""
    if file == "-":
        click.echo(sample(), nl=False)
        return
    try:
        with open(file, "x", encoding="utf-8") as out:
            out.write(sample())
    except FileExistsError:
        raise ExistsError(
            f"{file} is there already", "name another file, or move it away"
        ) from None
    except OSError as error:
        raise OperatorError(f"{file} cannot be written: {error.strerror}") from None
    say(f"wrote {file}; next: lb check -c {file}, then lb run -c {file}")


@click.command()
@click.option("-c", "--config", metavar="FILE", help="The config file.")
@click.argument("file", required=False)
@output_option
@click.pass_context
def check(ctx: click.Context, config: str | None, file: str | None, output: str) -> None:
    """Check a config file; all errors at once, each with its place."""
    path = find_config(config or file, os.environ)
    try:
        loaded = load(path, os.environ)
    except ConfigErrors as error:
        if output == "json":
            print_json({"ok": False, **error.as_plain()})
            ctx.exit(error.exit_status)
        raise
    if output == "json":
        plain = {"ok": True, "files": list(loaded.files), "warnings": list(loaded.warnings)}
        print_json(plain)
        return
    _say_warnings(loaded)
    click.echo(f"{path}: {_summary(loaded.config)}")


class ConfigGroup(LazyGroup):
    """`lb config`."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {
        "show": ("files:show", "The config with every default filled in."),
        "diff": ("files:diff", "What the file would change in the running instance."),
        "schema": ("files:schema", "The JSON Schema of the config file."),
        "doc": ("files:doc", "What a key means, its default, an example."),
        "sync": ("files:sync", "Make the group's view of the file what this file says."),
    }


@click.group(cls=ConfigGroup)
def config() -> None:
    """Show, compare and explain configuration."""


@click.command()
@click.option("-c", "--config", "path", metavar="FILE", help="The config file.")
@output_option
def show(path: str | None, output: str) -> None:
    """The config with every default filled in; secrets as ***."""
    loaded = load(find_config(path, os.environ), os.environ)
    _say_warnings(loaded)
    if output == "json":
        print_json(without_secrets(loaded.config))
    else:
        click.echo(as_toml(loaded.config), nl=False)


@click.command()
@admin_options
@output_option
@click.pass_context
def diff(ctx: click.Context, admin: str | None, config: str | None, output: str) -> None:
    """What the file would change in the running instance, secrets aside; exit status 1 if any."""
    loaded = load(find_config(config, os.environ), os.environ)
    plain = find_admin(admin, config).get("/v1/config").plain["config"]
    running, wanted = (
        Config.model_validate(each, context=HIDDEN_TOO)  # Its secrets are not shown to anyone.
        for each in (plain, loaded.config.model_dump(mode="json"))
    )
    changes = compare(running, wanted)
    if output == "json":
        print_json(changes.as_plain())
    else:
        for line in changes.changed:
            click.echo(line)
        for line in changes.needs_restart:
            click.echo(f"{line} (needs a restart)")
        if not changes:
            say("the running config and the file are the same")
    ctx.exit(1 if changes else 0)


@click.command()
@output_option
def schema(output: str) -> None:
    """The JSON Schema of the config file, for editors; JSON in any case."""
    print_json(json_schema())


@click.command()
@click.argument("key", required=False, default="")
@output_option
def doc(key: str, output: str) -> None:
    """What KEY means: lb config doc listener.timeouts.idle."""
    text = describe(key).rstrip("\n")
    if output == "json":
        print_json({"key": key, "text": text})
    else:
        click.echo(text)


@click.command()
@admin_options
@output_option
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.pass_context
def sync(
    ctx: click.Context, admin: str | None, config: str | None, output: str, dry_run: bool
) -> None:
    """Make the group's view of the file what this instance's file says."""
    query = {"dry_run": "true"} if dry_run else {}
    plain = find_admin(admin, config).ask("POST", "/v1/config/sync", query=query).plain
    if output == "json":
        print_json(plain)
    else:
        print_reload(plain, dry_run)
    ctx.exit(5 if plain.get("refused") else 0)


def _say_warnings(loaded: Loaded) -> None:
    for line in loaded.warnings:
        say(f"warning: {line}")


def _summary(loaded: Config) -> str:
    counts = (
        (len(loaded.listener), "listener"),
        (len(loaded.route), "route"),
        (len(loaded.upstream), "upstream"),
    )
    return "good: " + ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)
