"""`lb upgrade`: have what is installed now take the running program's place."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from lb.cli.client import Admin, RefusedError, UnreachableError, admin_options, find_admin
from lb.cli.instance import wait_for
from lb.cli.output import output_option, print_json, say
from lb.config.find import find_config
from lb.errors import AccordError, OperatorError, UsageError

ANSWER_SECONDS = 75.0  # The new program's import and its workers' start, each with its bound.
READY_SECONDS = 30.0  # From then on to the new controller's answer, or the old one's return.


@click.command()
@admin_options
@output_option
@click.pass_context
def upgrade(ctx: click.Context, admin: str | None, config: str | None, output: str) -> None:
    """Run what is installed now in place of what runs. No request is lost.

    Where the new program cannot be started the old one goes on, and this says why.
    """
    instance = find_admin(admin, config)
    before = None
    try:
        before = instance.get("/v1/status").plain.get("upgrade")
        pid = int(instance.ask("POST", "/v1/upgrade", {}, seconds=ANSWER_SECONDS).plain["pid"])
    except UnreachableError:
        pid = 0
        _signal_supervisor(config)
    plain = _outcome(instance, pid, before)
    if output == "json":
        print_json({"pid": plain["pid"], "version": plain["version"], "build": plain["build"]})
    say(f"upgraded: process {plain['pid']}, version {plain['version']}, build {plain['build']}")
    ctx.exit(0)


def _outcome(instance: Admin, pid: int, before: object) -> dict[str, object]:
    """
    Wait until one of the two programs answers, and see which.

    `pid` is the new one's, if known; `before` is the failure that was known already.
    """
    found: list[dict[str, object]] = []

    def answered() -> bool:
        try:
            plain = instance.get("/v1/status").plain
        except (UnreachableError, RefusedError):
            return False
        failed = plain.get("upgrade")
        if failed and failed["state"] != "failed":
            return False
        if failed and failed != before:
            raise OperatorError(failed["error"], "the old program goes on; see its log")
        if pid and plain["pid"] != pid:
            return False  # The old controller's last answer.
        found.append(plain)
        return True

    if not wait_for(answered, READY_SECONDS):
        raise OperatorError("it is not known how it went: nobody answers", "look into the log")
    return found[0]


def _signal_supervisor(config: str | None) -> None:
    """Ask by signal, where no controller answers: one of another build is refused."""
    pid = _supervisor(config)
    if pid is None:
        raise UnreachableError(
            "the instance does not answer, and its process is not known",
            "send USR2 to the process of `lb run`",
        )
    os.kill(pid, signal.SIGUSR2)
    say(f"no controller answers: sent USR2 to process {pid}")


def _supervisor(config: str | None) -> int | None:
    """Find the supervisor by the label of its data_dir's lock."""
    from lb.config.load import load  # noqa: PLC0415 - a second of imports that few need

    try:
        folder = load(find_config(config, os.environ), dict(os.environ)).config.node.data_dir
        pid = int((Path(folder) / "lock").read_text().split()[1])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (AccordError, UsageError, OSError, ValueError, IndexError):
        return None
    return pid if b"run" in words else None
