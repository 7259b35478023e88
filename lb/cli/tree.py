"""All commands by name, each loaded when it is called and not before."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Any, ClassVar

import click

from lb import __version__
from lb.cli.output import say_error
from lb.errors import AccordError, OperatorError

NOWHERE_TO_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class LazyGroup(click.Group):
    """A group whose commands are known by name, place and one line; the rest is loaded late."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which a newcomer needs them."""
        return list(self.PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        if cmd_name not in self.PLACES:
            return None
        module, _, attribute = self.PLACES[cmd_name][0].partition(":")
        command = getattr(import_module(f"lb.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Load the command that the words name, or say which one was probably meant."""
        name = args[0]
        if name not in self.PLACES and not name.startswith("-"):
            from difflib import get_close_matches  # noqa: PLC0415 - 10 ms that no good word needs

            close = get_close_matches(name, self.PLACES, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else f"; see {ctx.command_path} --help"
            ctx.fail(f'there is no command "{name}"{hint}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.PLACES.items()])


class Lb(LazyGroup):
    """The command itself: foreseeable errors become one line and an exit status."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {
        "demo": ("running:demo", "Three toy backends, the proxy and the dashboard, to try out."),
        "run": ("running:run", "Start this instance, in the foreground."),
        "init": ("files:init", "Write an annotated config file."),
        "check": ("files:check", "Check a config file, all errors at once."),
        "config": ("files:config", "Show, compare and explain configuration."),
        "status": ("instance:status", "How the instance is; wait until it is ready."),
        "reload": ("instance:reload", "Reload the config file without dropping anything."),
        "stop": ("instance:stop", "Stop the instance: finish what runs, then end."),
        "upgrade": ("upgrading:upgrade", "Run what is installed now, without dropping anything."),
        "explain": ("explaining:explain", "Why a request goes where it goes."),
        "upstream": ("members:upstream", "List, show, export or remove upstreams."),
        "backend": ("members:backend", "Add, change, drain or remove backends, live."),
        "group": ("group:group", "The instances that agree: show, add, remove, recover."),
        "events": ("events:events", "What changes, as it changes."),
        "plugin": ("plugin:plugin", "List, check and begin plugins."),
        "storage": ("storage:storage", "Verify or print what a member's log on disk holds."),
        "completion": ("shell:completion", "Print the shell's completion script."),
        "version": ("shell:version", "Print the version."),
    }

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that was foreseen says so in its own words."""
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            say_error(error)
            ctx.exit(error.exit_status)
        except AccordError as error:
            say_error(error)
            ctx.exit(1)
        except OSError as error:
            if error.errno not in NOWHERE_TO_WRITE:
                raise
            # What is left to write would fail once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            say_error(OperatorError(f"the output cannot be written: {error.strerror}"))
            ctx.exit(1)


@click.group(cls=Lb, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lb", message="%(prog)s %(version)s")
def lb() -> None:
    """Accord: an HTTP load balancer whose instances agree on their backends.

    Which instance a command talks to: --admin, $LB_ADMIN, admin.address of the config file
    (-c, $LB_CONFIG, ./lb.toml, /etc/lb/lb.toml), 127.0.0.1:9900. Where it wants a token:
    $LB_TOKEN or $LB_TOKEN_FILE. Over https://: $LB_CA names a file with its authority, $LB_CERT
    and $LB_KEY what is shown to one that demands it.
    """
    for stream in (sys.stdout, sys.stderr):
        # An address or a note may hold what the terminal's encoding lacks.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
