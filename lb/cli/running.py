"""`lb run` and `lb demo`: the commands that become an instance."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import click

from lb import demo as lb_demo
from lb import demo_group as lb_demo_group
from lb import supervisor
from lb.cli.client import admin_address
from lb.config.addresses import BadAddressError, backend_address, listen_address
from lb.config.find import find_config
from lb.errors import UsageError

PORT = click.IntRange(1, 65535)


@click.command()
@click.option("-c", "--config", metavar="FILE", help="The config file.")
@click.option("--listen", metavar="ADDRESS", multiple=True, help="No file: accept here.")
@click.option("--to", metavar="ADDRESS", multiple=True, help="No file: a backend; may be repeated.")
@click.option("--admin", metavar="ADDRESS", help="No file: where the admin API is.")
@click.option("--fd", type=int, hidden=True)  # An upgrade's: the way to who started us.
@click.argument("more", metavar="[ADDRESS]...", nargs=-1)
@click.pass_context
def run(
    ctx: click.Context,
    config: str | None,
    listen: tuple[str, ...],
    to: tuple[str, ...],
    admin: str | None,
    fd: int | None,
    more: tuple[str, ...],
) -> None:
    """Start this instance, in the foreground.

    \b
    lb run -c lb.toml
    lb run --listen :8080 --to 10.0.0.4:80 10.0.0.5:80
    """
    refuse_mixtures(config, listen, to, admin, more)
    if listen:
        ctx.exit(run_without_file(listen, (*to, *more), admin))
    ctx.exit(supervisor.run(find_config(config, os.environ), fd))


@click.command()
@click.option("--port", type=PORT, default=8080, show_default=True, help="The proxy's port.")
@click.option("--admin-port", type=PORT, default=9900, show_default=True, help="The admin's port.")
@click.option(
    "--backend-port",
    type=PORT,
    default=9001,
    show_default=True,
    help="Where to look for three free ports for the backends.",
)
@click.option("--group", is_flag=True, help="Three instances that agree, on three ports each.")
@click.pass_context
def demo(ctx: click.Context, port: int, admin_port: int, backend_port: int, group: bool) -> None:
    """Three toy backends, the proxy, the dashboard and a trickle of load, to try things out.

    \b
    lb demo
    lb demo --group
    """
    if port == admin_port:
        raise UsageError("--port and --admin-port must differ")
    if group:
        ctx.exit(lb_demo_group.run(port, admin_port, backend_port))
    stays = functools.partial(supervisor.run, stays=True)  # The demo's processes are ours.
    ctx.exit(lb_demo.run(port, admin_port, backend_port, stays))


def refuse_mixtures(
    config: str | None,
    listen: tuple[str, ...],
    to: tuple[str, ...],
    admin: str | None,
    more: tuple[str, ...],
) -> None:
    """Refuse words that make no sense together, each with what would."""
    if config and (listen or to or admin):
        raise UsageError(
            "-c names a file, --listen and --to do without one", "use one or the other"
        )
    if more and not to:
        raise UsageError(
            f'"{more[0]}" is not expected here',
            f"write -c {more[0]} to run that file, or --listen :8080 --to {more[0]}",
        )
    if listen and not to:
        raise UsageError("--listen needs a backend", "add --to HOST:PORT")
    if to and not listen:
        raise UsageError("--to needs an address to accept on", "add --listen :8080")
    if admin and not listen:
        raise UsageError("--admin goes with --listen and --to", "in a file it is admin.address")


def run_without_file(listen: tuple[str, ...], to: tuple[str, ...], admin: str | None) -> int:
    """Run from a config and a data_dir that last as long as the instance."""
    text = config_text(listen, to, admin)
    folder = tempfile.mkdtemp(prefix="lb-run-")
    try:
        path = Path(folder, "lb.toml")
        path.write_text(text.replace("{folder}", folder), encoding="utf-8")
        return supervisor.run(str(path), stays=True)
    except KeyboardInterrupt:
        return 0  # Before the supervisor had taken over.
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def config_text(listen: tuple[str, ...], to: tuple[str, ...], admin: str | None) -> str:
    """Return the file that these words stand for; `{folder}` is still to be filled in."""
    try:
        accept = [str(listen_address(text)) for text in listen]
        backends = [str(backend_address(text)) for text in dict.fromkeys(to)]
    except BadAddressError as error:
        raise UsageError(str(error), error.hint) from None
    lines = ["[node]", 'data_dir = "{folder}/state"', ""]
    if admin:
        lines += ["[admin]", f"address = {json.dumps(admin_address(admin))}", ""]
    lines += ["[listener.main]", f"address = {json.dumps(accept)}", ""]
    lines += ["[upstream.main]", f"backends = {json.dumps(backends)}", ""]
    return "\n".join(lines)
