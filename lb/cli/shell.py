"""`lb version` and `lb completion`."""

from __future__ import annotations

import platform

import click
from click.shell_completion import get_completion_class

from lb import __version__
from lb.cli.output import output_option, print_json
from lb.errors import UsageError


@click.command()
@output_option
def version(output: str) -> None:
    """Print the version."""
    if output == "json":
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        click.echo(f"lb {__version__}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script: eval "$(lb completion bash)"."""
    made = get_completion_class(shell)
    if made is None:
        raise UsageError(f"there is no completion for {shell}")
    click.echo(made(ctx.find_root().command, {}, "lb", "_LB_COMPLETE").source())
