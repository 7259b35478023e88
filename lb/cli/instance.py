"""Commands about the running instance: `status`, `reload`, `stop`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import click

from lb.cli.client import Admin, RefusedError, UnreachableError, admin_options, find_admin
from lb.cli.group_words import alarms, in_short
from lb.cli.output import colour, milliseconds, output_option, print_json, say, span
from lb.cli.units import DURATION
from lb.errors import OperatorError, UsageError

LOOK_SECONDS = 0.1  # Between two looks while waiting.
STOP_MARGIN = 10.0  # Past grace and drain, what a stop may still take.
READY_SECONDS = 60.0
RELOAD_SECONDS_MAX = 60.0  # Parsing, binding, names, and workers: each has its own bound.
BACKENDS_NAMED_MAX = 10  # Of those that are not well; the rest is counted.


@click.command()
@admin_options
@output_option
@click.option("--wait", metavar="ready", type=click.Choice(["ready"]), help="Wait until it is.")
@click.argument("within", metavar="[DURATION]", type=DURATION, required=False)
@click.pass_context
def status(
    ctx: click.Context,
    admin: str | None,
    config: str | None,
    output: str,
    wait: str | None,
    within: float | None,
) -> None:
    """How the instance is. Exit status 1 if it is not ready.

    \b
    lb status
    lb status --wait ready 60s
    """
    if within is not None and wait is None:
        raise UsageError("a duration goes with --wait ready", "lb status --wait ready 60s")
    instance = find_admin(admin, config)
    if wait:
        wait_until_ready(instance, READY_SECONDS if within is None else within)
    plain = instance.get("/v1/status").plain
    if output == "json":
        print_json(plain)
    else:
        _print_status(plain, instance.get("/v1/upstreams").plain["upstreams"])
    ctx.exit(0 if plain["ready"] else 1)


@click.command()
@admin_options
@output_option
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--force", is_flag=True, help="Even if an upstream keeps no active backend.")
@click.option("--note", default="", metavar="TEXT", help="Why, for those who look later.")
@click.pass_context
def reload(
    ctx: click.Context,
    admin: str | None,
    config: str | None,
    output: str,
    dry_run: bool,
    force: bool,
    note: str,
) -> None:
    """Reload the instance's config file. A bad one changes nothing and is explained."""
    query = {"note": note} if note else {}
    query |= {name: "true" for name, on in (("dry_run", dry_run), ("force", force)) if on}
    try:
        plain = (
            find_admin(admin, config)
            .ask("POST", "/v1/config/reload", query=query, seconds=RELOAD_SECONDS_MAX)
            .plain
        )
    except RefusedError as error:
        if output == "json" and error.status == 422:
            print_json(error.problem)
        raise
    if output == "json":
        print_json(plain)
    else:
        print_reload(plain, dry_run)
    ctx.exit(5 if plain.get("refused") else 0)


@click.command()
@admin_options
@output_option
@click.option("--drain", type=DURATION, help="How long what runs may take; as configured if unset.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
@click.pass_context
def stop(
    ctx: click.Context,
    admin: str | None,
    config: str | None,
    output: str,
    drain: float | None,
    no_wait: bool,
) -> None:
    """Stop the instance: not ready, then no new connections, then what runs, then the end."""
    instance = find_admin(admin, config)
    body = {} if drain is None else {"drain": f"{drain * 1000:.0f}ms"}
    plain = instance.ask("POST", "/v1/stop", body).plain
    if output == "json":
        print_json(plain)
    if no_wait:
        return
    seconds = plain["grace_s"] + plain["drain_s"] + STOP_MARGIN
    if not wait_for(lambda: _is_gone(instance, plain["pid"]), seconds):
        raise OperatorError(f"it is still running after {seconds:.0f} s", "look into its log")
    say("stopped")
    ctx.exit(0)


def wait_until_ready(instance: Admin, seconds: float) -> None:
    """Return once the instance is ready; while it does not answer, it may be starting."""
    last = ["it does not answer"]
    unreachable: list[UnreachableError] = []

    def ready() -> bool:
        try:
            is_ready, last[0] = instance.readiness(max(1.0, min(5.0, seconds)))
        except UnreachableError as error:
            unreachable[:] = [error]
            return False
        unreachable.clear()
        return is_ready

    if not wait_for(ready, seconds):
        if unreachable:
            raise unreachable[0]
        raise OperatorError(f"not ready after {seconds:g} s: {last[0]}")


def wait_for(reached: Callable[[], bool], seconds: float) -> bool:
    """Look again and again; False if it was not so in time."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def print_reload(plain: dict[str, Any], dry_run: bool) -> None:
    """Print what a reload or sync did, or would do."""
    changed = plain.get("changed", [])
    for line in changed:
        click.echo(line)
    for line in plain.get("needs_restart", []):
        click.echo(f"{line} (needs a restart)")
    for line in plain.get("warnings", []):
        say(f"warning: {line}")
    for each in plain.get("stale", []):
        say(f"{each['upstream']}: {each['backend']} was skipped, the file is behind (stale-file)")
    for each in plain.get("differs", []):
        say(
            f"{each['upstream']}: {each['backend']} differs from the registry,"
            " and this file is new here; see lb config sync"
        )
    for each in plain.get("refused", []):
        say(f"refused: {each['upstream']} keeps its backends: {each.get('detail', each['reason'])}")
    if pending := plain.get("pending"):
        say(f"pending: backends of {', '.join(pending['upstreams'])}: {pending['reason']}")
    done = "done" if changed else "done, nothing changed"
    if plain.get("refused"):
        done = "done, except for what was refused"
    say("nothing was changed: this was a dry run" if dry_run else done)


def _is_gone(instance: Admin, pid: int) -> bool:
    """Whether the daemon has ended: its process, and for one elsewhere its address."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    else:
        return _is_zombie(pid)
    try:
        instance.readiness(1.0)
    except UnreachableError:
        return True
    return False


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended, and nobody has asked how: a container's first may never."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[:1] == ["Z"]
    except OSError:
        return False  # Gone in between, which the next look sees; or no /proc.


def _print_status(plain: dict[str, Any], upstreams: list[dict[str, Any]]) -> None:
    state = "stopping" if plain["stopping"] else "ready" if plain["ready"] else "not ready"
    click.echo(
        f"{plain['name']}  {colour(state)}  version {plain['version']}"
        f"  up {span(plain['uptime_s'])}"
    )
    if plain["unready"]:
        click.echo(f"  not ready: {plain['unready']}")
    config, group, traffic = plain["config"], plain["group"], plain["traffic"]
    click.echo(
        f"config     generation {config['generation']}, {config['source']}"
        f", on disk: {config['on_disk']}"
    )
    if plain.get("upgrade") and plain["upgrade"]["error"]:
        click.echo(f"upgrade    the last one failed: {plain['upgrade']['error']}")
    if config["error"]:
        click.echo("  the last reload failed:")
        for line in config["error"].splitlines():
            click.echo(f"    {line}")
    up = sum(worker["up"] for worker in plain["workers"])
    restarts = sum(worker["restarts"] for worker in plain["workers"])
    click.echo(
        f"workers    {up} of {len(plain['workers'])} up"
        + (f", {restarts} restarts" if restarts else "")
    )
    click.echo(f"group      {in_short(group)}")
    for line in alarms(group):
        click.echo(f"  {line}")
    latency = traffic["latency_ms"]
    click.echo(
        f"traffic    {traffic['requests']} requests, {traffic['errors']} errors,"
        f" {traffic['connections']} connections,"
        f" p50 {milliseconds(latency['p50'])}, p99 {milliseconds(latency['p99'])}"
    )
    for each in plain["forced"]:
        click.echo(
            f"  {each['upstream']}/{each['backend']} is forced {each['to']} on this instance alone"
        )
    for upstream in upstreams:
        _print_upstream(upstream)


def _print_upstream(upstream: dict[str, Any]) -> None:
    backends = upstream["backends"]
    usable = [b for b in backends if b["state"] == "active" and b["health"] != "unhealthy"]
    usable = [b for b in usable if not b.get("ejected") and b.get("forced") != "down"]
    line = f"upstream   {upstream['name']}: {len(usable)} of {len(backends)} backends usable"
    click.echo(line + (", in panic: health is ignored" if upstream["panic"] else ""))
    bad = [backend for backend in backends if backend not in usable]
    for backend in bad[:BACKENDS_NAMED_MAX]:
        check = backend["last_check"] or {}
        reason = f": {check['reason']}" if check.get("reason") and not check.get("ok") else ""
        shown = backend["name"] or backend["address"]
        state, health = colour(backend["state"]), colour(backend["health"])
        out = ", ejected" if backend.get("ejected") else ""
        click.echo(f"  {shown}  {state}, {health}{out}{reason}")
    if len(bad) > BACKENDS_NAMED_MAX:
        click.echo(f"  and {len(bad) - BACKENDS_NAMED_MAX} more")
