"""`lb events`: what changes in the registry, as it changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from lb.cli.client import Admin, RefusedError, UnreachableError, admin_options, find_admin
from lb.cli.output import output_option, say
from lb.cli.stream import Event, StreamEndedError, events_of

SILENCE_SECONDS_MAX = 60.0  # The server has something to say more often, if only a bookmark.
AGAIN_SECONDS = (0.2, 1.0, 2.0, 5.0)  # Between tries to go on after a stream has ended.
BOOKMARK, CLOSED = "bookmark", "closed"


@click.command()
@admin_options
@output_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is to come, until Ctrl-C.")
@click.option("--from", "first", type=click.IntRange(0), metavar="N", help="From this revision on.")
def events(
    admin: str | None, config: str | None, output: str, follow: bool, first: int | None
) -> None:
    """What changed in the registry: all that is remembered, or with -f what is to come.

    With -o json one object a line. A stream that ends is taken up where it ended.

    \b
    lb events
    lb events -f
    lb events -f --from 17 -o json | while read -r line; do ...; done
    """
    instance = find_admin(admin, config)
    try:
        if follow:
            _follow(instance, first, output)
        else:
            _show(instance, first, output)
    except KeyboardInterrupt:
        say("")


def _follow(instance: Admin, first: int | None, output: str) -> None:
    """Print events for ever; one that was printed is not asked for again."""
    if first is None:
        first = newest_revision(instance) + 1
    place = Place(first)
    tries = 0
    while True:
        try:
            for event in _stream(instance, place):
                tries = 0
                print_event(event, output)
        except (StreamEndedError, UnreachableError) as error:
            if tries == 0:
                say(f"the stream ended: {error}; going on from revision {place.next}")
        except RefusedError as error:
            if error.status != 503 or error.code == "not-supported":
                raise
            if tries == 0:
                say(f"{error.message}; trying again")
        time.sleep(AGAIN_SECONDS[min(tries, len(AGAIN_SECONDS) - 1)])
        tries += 1


def _show(instance: Admin, first: int | None, output: str) -> None:
    """Print what is remembered, up to the revision that is the newest now."""
    newest = newest_revision(instance)
    place = Place(0 if first is None else first)
    try:
        _show_until(instance, place, newest, output)
    except RefusedError as error:
        oldest = error.problem.get("oldest")
        if first is not None or error.status != 410 or not isinstance(oldest, int):
            raise
        _show_until(instance, Place(oldest), newest, output)


def _show_until(instance: Admin, place: Place, newest: int, output: str) -> None:
    if place.next > newest:
        return
    try:
        for event in _stream(instance, place):
            if event.number is not None and event.number > newest:
                return
            print_event(event, output)
            if place.next > newest:
                return
    except StreamEndedError as error:
        raise UnreachableError(
            f"the stream ended before revision {newest}: {error}",
            f"go on with --from {place.next}",
        ) from None


class Place:
    """How far a reader is: `next` is the first revision that it has not seen."""

    def __init__(self, first: int) -> None:
        self.next = first
        self.last: int | None = None  # What Last-Event-ID says, once there was one.

    def passed(self, number: int) -> None:
        """Note an event, or a bookmark, up to which all has been seen."""
        self.next, self.last = number + 1, number


def _stream(instance: Admin, place: Place) -> Iterator[Event]:
    """Yield one connection's events, bookmarks left out, and keep the place."""
    headers = {} if place.last is None else {"Last-Event-ID": str(place.last)}
    query = {"from": str(place.next)}
    with instance.stream("/v1/events", query, headers, SILENCE_SECONDS_MAX) as response:
        for event in events_of(response):
            if event.kind == CLOSED:
                raise StreamEndedError(str(event.plain.get("reason") or "the instance closed it"))
            if event.number is not None:
                place.passed(event.number)
            if event.kind != BOOKMARK:
                yield event


def newest_revision(instance: Admin) -> int:
    """Return the revision that the instance is at."""
    return int(instance.get("/v1/status").plain["group"]["revision"])


def print_event(event: Event, output: str) -> None:
    """Print one event: an object, or a line for each thing that it changed."""
    if output == "json":
        click.echo(json.dumps(event.plain, ensure_ascii=False))
        return
    for line in lines_of(event):
        click.echo(line)


def lines_of(event: Event) -> Iterator[str]:
    """Yield an event in words."""
    plain = event.plain
    at = plain.get("at")
    when = "-" if not at else datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
    by = whose(plain.get("by") or {})
    for what in plain.get("changes") or [plain.get("command") or event.kind]:
        said = what if isinstance(what, str) else json.dumps(what, ensure_ascii=False)
        yield f"{event.number or '-':>6}  {when}  {said}  {by}".rstrip()


def whose(by: dict[str, Any]) -> str:
    """Return who made a write, in words: `(ops through a: more load)`."""
    who = by.get("token") or by.get("source") or ""
    through = f" through {by['member']}" if by.get("member") else ""
    note = f": {by['note']}" if by.get("note") else ""
    return f"({who}{through}{note})" if who or through or note else ""
