"""Durations and headers as words on a command line. Not pydantic's: this must start quickly."""

from __future__ import annotations

import re

import click

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType[float]):
    """Seconds, written with a unit, as in the config file."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read `250ms`, `20s`, `1m30s`."""
        if isinstance(value, float):
            return value
        text = str(value)
        parts = _PART.findall(text)
        if text == "0":
            return 0.0
        if not text or "".join(number + unit for number, unit in parts) != text:
            self.fail(f'"{text}" is not a duration; write it like 20s or 1m30s', param, ctx)
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)


class DurationOrAll(click.ParamType[float | str]):
    """Seconds, or the word `all`."""

    name = "duration or all"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Read `all`, or what a duration is."""
        return "all" if value == "all" else DURATION.convert(value, param, ctx)


class Header(click.ParamType[tuple[str, str]]):
    """A request header, written `Name: value`."""

    name = "header"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Read `Name: value`."""
        if isinstance(value, tuple):
            return value
        name, colon, rest = str(value).partition(":")
        if not colon or not name.strip():
            self.fail(f'"{value}" is not a header; write it like "Name: value"', param, ctx)
        return name.strip(), rest.strip()


class Label(click.ParamType[tuple[str, str | None]]):
    """A label, written `key=value`; `key=` takes it away."""

    name = "label"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str | None]:
        """Read `key=value`."""
        if isinstance(value, tuple):
            return value
        name, equals, rest = str(value).partition("=")
        if not equals or not name:
            self.fail(f'"{value}" is not a label; write it like key=value', param, ctx)
        return name, rest or None


DURATION = Duration()
DURATION_OR_ALL = DurationOrAll()
HEADER = Header()
LABEL = Label()
