"""`lb group backup` and `restore`: all that the registry holds, in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from lb.cli.client import ANSWER_BYTES_MAX, admin_options, find_admin
from lb.cli.output import confirm, output_option, print_json, say, yes_option
from lb.cli.saving import save
from lb.errors import OperatorError, UsageError

RESTORE_SECONDS_MAX = 60.0  # 10,000 backends in one revision, on every disk.
UNTOLD = ("changed", "revision", "lease")  # What a restore does not bring back.


@click.command()
@admin_options
@output_option
@click.argument("file")
def backup(admin: str | None, config: str | None, output: str, file: str) -> None:
    """Write all that the registry holds to FILE, as this instance knows it; "-" prints it.

    Needs no quorum. FILE is replaced in one step, and only its owner may read it.

    \b
    lb group backup registry-$(date +%F).json
    """
    plain = find_admin(admin, config).get("/v1/group/backup").plain
    if file == "-":
        print_json(plain)
        return
    save(file, json.dumps(plain, indent=1, ensure_ascii=False).encode() + b"\n")
    told = {"file": file, "group": plain["id"], "revision": plain["revision"]}
    if output == "json":
        print_json(told)
        return
    say(f"wrote {file}: {_count(plain)}, revision {plain['revision']} of group {plain['id']}")


@click.command()
@admin_options
@output_option
@yes_option
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--note", default="", metavar="TEXT", help="Why, for those who look later.")
@click.argument("file")
def restore(file: str, dry_run: bool, yes: bool, note: str, **words: Any) -> None:
    """Make the registry's upstreams and backends what FILE says, in one new revision.

    An ordinary write: the group, its members and their configs stay. Says what changes first.

    \b
    lb group restore registry-2026-11-24.json --dry-run
    """
    kept = _read(file)
    instance = find_admin(words["admin"], words["config"])
    changes = list(differences(instance.get("/v1/group/backup").plain, kept))
    if words["output"] == "text":
        for line in changes:
            click.echo(line)
    if dry_run or not changes:
        if words["output"] == "json":
            print_json({"changes": changes, "dry_run": dry_run})
        else:
            say("nothing was changed: this was a dry run" if changes else "nothing differs")
        return
    confirm(f"The registry becomes what {file} says: {_count(kept)}.", yes)
    query = {"note": note} if note else {}
    plain = instance.ask(
        "POST", "/v1/group/restore", kept, query=query, seconds=RESTORE_SECONDS_MAX
    ).plain
    if words["output"] == "json":
        print_json({**plain, "changes": changes})
        return
    say(f"restored (revision {plain['revision']})")


def differences(now: dict[str, Any], kept: dict[str, Any]) -> Iterator[str]:
    """Yield, a line each, what changes in upstreams and backends when `kept` replaces `now`."""
    old, new = now["upstreams"], kept["upstreams"]
    for name in sorted({*old, *new}):
        if name not in new:
            yield f"- {name}: the whole upstream"
            continue
        if name not in old:
            yield f"+ {name}: a new upstream"
        yield from _of_backends(name, _backends(old.get(name)), _backends(new[name]))


def _of_backends(
    upstream: str, old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]
) -> Iterator[str]:
    for key in sorted({*old, *new}):
        if key not in new:
            yield f"- {upstream}: {key}"
        elif key not in old:
            yield f"+ {upstream}: {key}"
        else:
            before, after = old[key], new[key]
            fields = sorted({*before, *after} - set(UNTOLD))
            said = [
                f"{field} {_shown(before.get(field))} -> {_shown(after.get(field))}"
                for field in fields
                if before.get(field) != after.get(field)
            ]
            if said:
                yield f"~ {upstream}: {key}: {', '.join(said)}"


def _backends(upstream: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return an upstream's backends by name or address, however they are listed."""
    backends = (upstream or {}).get("backends") or []
    entries = backends.values() if isinstance(backends, dict) else backends
    return {each.get("name") or each["address"]: each for each in entries}


def _read(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            raw = opened.read(ANSWER_BYTES_MAX + 1)
    except OSError as error:
        raise OperatorError(f"{file} cannot be read: {error.strerror}") from None
    if len(raw) > ANSWER_BYTES_MAX:
        raise UsageError(f"{file} is too large for a backup")
    try:
        plain = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no backup: {error}", "see lb group backup") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("upstreams"), dict):
        raise UsageError(f"{file} is no backup: it has no upstreams", "see lb group backup")
    return plain


def _count(plain: dict[str, Any]) -> str:
    upstreams = plain["upstreams"]
    backends = sum(len(each.get("backends") or ()) for each in upstreams.values())
    return f"{len(upstreams)} upstreams with {backends} backends"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
