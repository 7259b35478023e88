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
CREATED, BOOKMARK, CLOSED = "created", "bookmark", "closed"  # All other events are revisions.


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
    place = Place(first)
    tries = 0
    while True:
        before = place.next
        why = _until_it_ends(instance, place, output)
        tries = 0 if place.next != before else tries + 1
        if tries <= 1:
            say(f"{why}; going on{place.in_words()}")
        time.sleep(AGAIN_SECONDS[min(tries, len(AGAIN_SECONDS) - 1)])


def _until_it_ends(instance: Admin, place: Place, output: str) -> str:
    """Print one stream's events; return why it ended, where another may go on."""
    try:
        for event in _stream(instance, place):
            print_event(event, output)
    except StreamEndedError as error:
        return f"the stream ended: {error}"
    except UnreachableError as error:
        if place.next is None:
            raise  # There was no stream yet: more likely a wrong address than an outage.
        return error.message
    except RefusedError as error:
        if error.status != 503:
            raise
        return error.message
    raise AssertionError("a stream ends by saying so")


def _show(instance: Admin, first: int | None, output: str) -> None:
    """Print what is remembered, up to the revision that is the newest now."""
    newest = newest_revision(instance)
    try:
        _show_until(instance, Place(first or 0), newest, output)
    except RefusedError as error:
        oldest = error.problem.get("oldest")
        if first is not None or error.status != 410 or not isinstance(oldest, int):
            raise
        _show_until(instance, Place(oldest), newest, output)


def _show_until(instance: Admin, place: Place, newest: int, output: str) -> None:
    if place.is_past(newest):
        return
    try:
        for event in _stream(instance, place):
            if event.number is not None and event.number > newest:
                return
            print_event(event, output)
            if place.is_past(newest):
                return
    except StreamEndedError as error:
        raise UnreachableError(
            f"the stream ended before revision {newest}: {error}",
            f"go on with --from {place.next}",
        ) from None


class Place:
    """How far a reader is: `next` is the first revision that it has not seen, None any to come."""

    def __init__(self, first: int | None) -> None:
        self.next = first
        self.last: int | None = None  # What Last-Event-ID says, once there was one.

    def note(self, event: Event) -> None:
        """Take from an event how far all has been seen."""
        if event.kind == CREATED and self.next is None:
            self.next = event.plain.get("from")
        elif event.number is not None:
            self.next, self.last = event.number + 1, event.number

    def is_past(self, revision: int) -> bool:
        """Whether all up to a revision has been seen."""
        return self.next is not None and self.next > revision

    def in_words(self) -> str:
        """Say where it goes on."""
        return "" if self.next is None else f" from revision {self.next}"


def _stream(instance: Admin, place: Place) -> Iterator[Event]:
    """Yield one connection's revisions, and keep the place."""
    headers = {} if place.last is None else {"Last-Event-ID": str(place.last)}
    query = {} if place.next is None else {"from": str(place.next)}
    with instance.stream("/v1/events", query, headers, SILENCE_SECONDS_MAX) as response:
        for event in events_of(response):
            place.note(event)
            if event.kind == CLOSED:
                plain = event.plain
                raise StreamEndedError(str(plain.get("detail") or plain.get("reason")))
            if event.kind not in (CREATED, BOOKMARK):
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
    said = [_change(each) for each in plain.get("changes") or []] or [_kind(plain)]
    for what in said:
        yield f"{event.number or '-':>6}  {when}  {what}  {by}".rstrip()


def _change(plain: dict[str, Any]) -> str:
    backend = plain.get("backend") or {}
    now = [f"{field} {_shown(backend.get(field))}" for field in plain.get("fields") or []]
    if plain["what"] == "added" and backend.get("weight", 1) != 1:
        now.append(f"weight {backend['weight']}")
    said = f"{plain['upstream']}: {plain['key']} {plain['what']}"
    return f"{said}: {', '.join(now)}" if now else said


def _kind(plain: dict[str, Any]) -> str:
    """Say what an event is about that changed no backend: a member, an upstream, a level."""
    about = plain.get("member") or plain.get("upstream") or ""
    return f"{plain.get('kind') or 'changed'} {about}".rstrip()


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def whose(by: dict[str, Any]) -> str:
    """Return who made a write, in words: `(ops through a: more load)`."""
    who = by.get("token") or by.get("source") or ""
    through = f" through {by['member']}" if by.get("member") else ""
    note = f": {by['note']}" if by.get("note") else ""
    return f"({who}{through}{note})" if who or through or note else ""
