"""`lb storage`: what a member's log on disk holds, and whether it is all there. Changes nothing."""

from __future__ import annotations

from typing import Any, ClassVar

import click

from lb.cli.output import output_option, print_json, say
from lb.cli.tree import LazyGroup
from lb.control.filesystem import FileSystem, RealFileSystem
from lb.control.recovery import (
    LOG_DIRECTORY,
    Found,
    NoLogError,
    read_file,
    read_log,
    segment_files,
)
from lb.control.snapshot_file import decode_snapshot, snapshot_position
from lb.control.wal import (
    DamagedLog,
    Frame,
    Mark,
    Record,
    Segment,
    open_segment,
    read_frames,
)
from lb.errors import OperatorError
from lb.raft.messages import ConfState, Entry, HardState


class StorageGroup(LazyGroup):
    """`lb storage`."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {
        "verify": ("storage:verify", "Whether all that was promised is there; exit 1 if not."),
        "dump": ("storage:dump", "Print every record of the log."),
    }


@click.group(cls=StorageGroup)
def storage() -> None:
    """What a member's log on disk holds. DIR is a data_dir, or the log's directory in it."""


@storage.command()
@click.argument("directory", metavar="DIR")
@output_option
@click.pass_context
def verify(ctx: click.Context, directory: str, output: str) -> None:
    """Read all of a log and its snapshots, and say whether every byte is as it was written.

    A torn tail is what a power cut leaves of a write that nobody was told of: no damage. While
    the daemon runs, its newest write may look like one.
    """
    files, path = RealFileSystem(), _log_directory(directory)
    problems: list[DamagedLog] = []
    found: Found | None = None
    try:
        found = read_log(files, path)
    except NoLogError as error:
        raise OperatorError(error.message) from None
    except DamagedLog as error:
        problems.append(error)
    if found is not None:
        problems += _bad_snapshots(files, found)
    if output == "json":
        print_json(_verdict(found, problems))
    else:
        _tell_verdict(found, problems)
    ctx.exit(1 if problems else 0)


@storage.command()
@click.argument("directory", metavar="DIR")
@click.option("--data", is_flag=True, help="The entries' data too; it may hold secrets.")
@output_option
@click.pass_context
def dump(ctx: click.Context, directory: str, data: bool, output: str) -> None:
    """Print every record of a log in order, up to the first damage if there is any."""
    files, path = RealFileSystem(), _log_directory(directory)
    segments, damage = _read_what_can_be_read(files, path)
    if output == "json":
        plain: dict[str, Any] = {"segments": [_plain_segment(one, data) for one in segments]}
        if damage is not None:
            plain["damage"] = _plain_damage(damage)
        print_json(plain)
    else:
        for segment in segments:
            _print_segment(segment, data)
        if damage is not None:
            say(f"lb: {damage.message}")
    ctx.exit(1 if damage else 0)


def _log_directory(given: str) -> str:
    inner = f"{given.rstrip('/')}/{LOG_DIRECTORY}"
    files = RealFileSystem()
    if files.exists(inner):
        return inner
    if not files.exists(given):
        raise OperatorError(f"there is no {given}", "name a data_dir")
    return given.rstrip("/") or "/"


# --- Verify -----------------------------------------------------------------------------------


def _bad_snapshots(files: FileSystem, found: Found) -> list[DamagedLog]:
    """Look at all snapshots, also those that a start would not need."""
    bad = []
    for name in files.list_directory(found.path):
        file = f"{found.path}/{name}"
        if snapshot_position(name) is not None:
            try:
                decode_snapshot(file, read_file(files, file), found.recovered.identity)
            except DamagedLog as error:
                bad.append(error)
    return bad


def _verdict(found: Found | None, problems: list[DamagedLog]) -> dict[str, Any]:
    plain: dict[str, Any] = {"ok": not problems, "damage": [_plain_damage(p) for p in problems]}
    if found is not None:
        known = found.recovered
        plain |= {
            "group": known.identity.group.hex(),
            "member": known.identity.member,
            "term": known.hard.term,
            "vote": known.hard.vote,
            "commit": known.hard.commit,
            "first": known.base_index + 1,
            "last": known.base_index + len(known.entries),
            "snapshot": found.mark.index,
            "segments": len(found.segments),
            "frames": sum(len(segment.frames) for segment in found.segments),
            "notes": list(known.notes),
        }
    return plain


def _tell_verdict(found: Found | None, problems: list[DamagedLog]) -> None:
    plain = _verdict(found, problems)
    if found is not None:
        click.echo(f"group {plain['group']}, member {plain['member']}")
        click.echo(f"term {plain['term']}, vote {plain['vote']}, commit {plain['commit']}")
        click.echo(
            f"entries {plain['first']} to {plain['last']}, snapshot {plain['snapshot']}, "
            f"{plain['segments']} segments, {plain['frames']} frames"
        )
        for note in found.recovered.notes:
            say(f"note: {note}")
    for problem in problems:
        say(f"lb: damaged: {problem.message}")
    if not problems:
        click.echo("whole")


def _plain_damage(error: DamagedLog) -> dict[str, Any]:
    return {"file": error.file, "offset": error.offset, "why": error.why}


# --- Dump -------------------------------------------------------------------------------------


def _read_what_can_be_read(files: FileSystem, path: str) -> tuple[list[Segment], DamagedLog | None]:
    names = segment_files(files.list_directory(path))
    if not names:
        raise OperatorError(f"there is no log in {path}")
    segments: list[Segment] = []
    for name in names:
        file = f"{path}/{name}"
        try:
            data = read_file(files, file)
            segments.append(open_segment(file, data, segments[-1] if segments else None))
            read_frames(segments[-1], data, last=name == names[-1])
        except DamagedLog as error:
            return segments, error
    return segments, None


def _print_segment(segment: Segment, data: bool) -> None:
    header = segment.header
    click.echo(
        f"{segment.name} group={header.identity.group.hex()} member={header.identity.member} "
        f"size={header.size} first={header.first_index}"
    )
    for frame in segment.frames:
        click.echo(f"  frame {frame.seq} at={frame.offset} crc={frame.crc:08x}")
        for record in frame.records:
            words = " ".join(f"{key}={value}" for key, value in _plain(record, data).items())
            click.echo(f"    {words}")
    if segment.torn is not None:
        click.echo(f"  torn at={segment.torn.offset}: {segment.torn.why}")


def _plain_segment(segment: Segment, data: bool) -> dict[str, Any]:
    header = segment.header
    return {
        "file": segment.name,
        "group": header.identity.group.hex(),
        "member": header.identity.member,
        "size": header.size,
        "first": header.first_index,
        "frames": [_plain_frame(frame, data) for frame in segment.frames],
        "torn": None
        if segment.torn is None
        else {"offset": segment.torn.offset, "why": segment.torn.why},
    }


def _plain_frame(frame: Frame, data: bool) -> dict[str, Any]:
    return {
        "seq": frame.seq,
        "offset": frame.offset,
        "crc": f"{frame.crc:08x}",
        "records": [_plain(record, data) for record in frame.records],
    }


def _plain(record: Record, data: bool) -> dict[str, Any]:
    match record:
        case HardState(term=term, vote=vote, commit=commit):
            return {"record": "hard", "term": term, "vote": vote, "commit": commit}
        case Entry(index=index, term=term, kind=kind, data=body):
            plain = {"record": "entry", "index": index, "term": term, "kind": kind.name.lower()}
            return plain | (
                {"data": body.decode(errors="backslashreplace")} if data else {"bytes": len(body)}
            )
        case Mark(meta=meta, restart=restart):
            plain = {"record": "snapshot", "index": meta.index, "term": meta.term}
            return plain | _plain_conf(meta.conf) | {"restart": restart}


def _plain_conf(conf: ConfState) -> dict[str, Any]:
    return {"voters": sorted(conf.voters), "learners": sorted(conf.learners)}
