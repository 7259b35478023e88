"""
What stands beside `use`: checked by the plugin's own Config, with the kinds of the whole file.

A Config is a plain dataclass, so that a worker needs nothing but the dataclass. Here it is made
into a section, which knows units, hints and what an operator is told.
"""

from __future__ import annotations

import dataclasses
import types
import typing
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import Field, create_model
from pydantic_core import ErrorDetails, ValidationError

from lb.config.kinds import Choice, Duration, Flag, Kind, OrOne, Share, Size, Text, Whole
from lb.config.requests import HeaderName, Network, Number, Rate, UrlPath
from lb.config.secrets import REVEALED, PlainSecret
from lb.config.section import Section
from lb.plugin import Plugin
from lb.plugin_code import PluginError, configure, described, hints_of
from lb.plugin_kinds import Marked

WHOLE_MAX: Final = 2**53
OURS: Final = ("use", "on_error")  # What stands beside the settings in the same table.
NO_KEYS: Final = ("_", "model_")  # Not ours to give away: see pydantic.
KINDS: Final[dict[str, Kind]] = {
    "duration": Duration(),
    "size": Size(),
    "share": Share(),
    "rate": Rate(),
    "secret": PlainSecret(),
    "header_name": HeaderName(),
    "network": Network(),
    "url_path": UrlPath(),
}

PLAIN: Final[dict[Any, Any]] = {
    str: Annotated[str, Text(lines=True, empty=True)],
    int: Annotated[int, Whole(-WHOLE_MAX, WHOLE_MAX)],
    float: Annotated[float, Number()],
    bool: Annotated[bool, Flag()],
}


class NoSettings(Section):
    """For a plugin without Config: nothing may stand beside `use`."""

    noun = "this plugin"


def section_for(cls: type[Plugin[Any]]) -> type[Section]:
    """Make the section that checks a plugin's settings. PluginError if its Config cannot be one."""
    if cls.Config is None:
        return NoSettings
    for each in dataclasses.fields(cls.Config):
        if each.name in OURS:
            raise PluginError(
                f"{cls.Config.__qualname__}.{each.name} cannot be written: "
                f"{each.name} is a key of every use",
                "call it otherwise",
            )
    return _section(cls.Config, f"plugin {cls.name}")


def check(
    cls: type[Plugin[Any]], written: Mapping[str, Any]
) -> dict[str, Any] | list[ErrorDetails]:
    """
    Return a plugin's settings as plain values, complete; or what is wrong with them.

    Secrets are in them. The plugin's own objections (ValueError of its `__post_init__`) are an
    error of the whole table.
    """
    section = section_for(cls)
    try:
        read = section.model_validate(dict(written))
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    values = read.model_dump(context=REVEALED)
    try:
        configure(cls, values)
    except ValueError as error:
        message = str(error) or described(error)
        context = {"message": message, "hint": "", "at": ()}
        return [{"type": "accord", "loc": (), "msg": message, "input": None, "ctx": context}]
    return values


def secrets_of(cls: type[Plugin[Any]]) -> list[str]:
    """Name the settings that are secrets, by their paths; `*` stands for all there are."""
    return [] if cls.Config is None else list(_secrets_in(cls.Config, ""))


def _secrets_in(sort: Any, path: str) -> Iterator[str]:
    origin, inner = typing.get_origin(sort), typing.get_args(sort)
    if origin is Annotated and Marked("secret") in inner:
        yield path
    elif isinstance(sort, type) and dataclasses.is_dataclass(sort):
        for name, hint in hints_of(sort).items():
            yield from _secrets_in(hint, f"{path}.{name}" if path else name)
    elif origin in (list, dict):
        yield from _secrets_in(inner[-1], f"{path}.*")
    else:
        for each in inner:
            yield from _secrets_in(each, path)


@lru_cache(maxsize=256)
def _section(config: type, noun: str) -> type[Section]:
    hints = hints_of(config)
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        if each.name.startswith(NO_KEYS):
            raise PluginError(
                f"{config.__qualname__}.{each.name} is not for a file to set",
                f"names of settings do not begin with {' or '.join(NO_KEYS)}",
            )
        sort = _kind_of(hints[each.name], f"{config.__qualname__}.{each.name}", noun)
        about = str(each.metadata.get("about", ""))
        if each.default_factory is not dataclasses.MISSING:
            fields[each.name] = (
                sort,
                Field(default_factory=each.default_factory, description=about),
            )
        elif each.default is not dataclasses.MISSING:
            fields[each.name] = (sort, Field(default=each.default, description=about))
        else:
            fields[each.name] = (sort, Field(description=about))
    with warnings.catch_warnings():
        # A setting may be called `copy` or `json`: of a section's methods nobody here uses those.
        warnings.simplefilter("ignore", UserWarning)
        made = create_model(config.__qualname__, __base__=Section, **fields)
    made.noun = noun
    return made


def _kind_of(sort: Any, where: str, noun: str) -> Any:
    """Return the type by which a section checks what an author declared."""
    inner = typing.get_args(sort)
    if typing.get_origin(sort) is Annotated:
        marks = [mark for mark in inner[1:] if isinstance(mark, Marked)]
        if marks:
            return Annotated[inner[0], KINDS[marks[0].sort]]
        return _kind_of(inner[0], where, noun)
    if isinstance(sort, type) and dataclasses.is_dataclass(sort):
        return _section(sort, noun)
    found = PLAIN.get(sort) or _kind_of_several(sort, where, noun)
    if found is None:
        raise PluginError(
            f"{where} is of a type that no file can hold",
            "str, int, float, bool, Literal of text, lists, dict[str, ...], dataclasses,"
            " and what lb.plugin has",
        )
    return found


def _kind_of_several(sort: Any, where: str, noun: str) -> Any:
    """The same for what is made of other types; None for what is not."""
    origin, inner = typing.get_origin(sort), typing.get_args(sort)
    if origin in (typing.Union, types.UnionType) and types.NoneType in inner and len(inner) == 2:
        known = next(each for each in inner if each is not types.NoneType)
        return _kind_of(known, where, noun) | None
    if origin is list:
        return Annotated[list[_kind_of(inner[0], where, noun)], OrOne()]  # type: ignore[misc]
    if origin is dict and inner[0] is str:
        return dict[str, _kind_of(inner[1], where, noun)]  # type: ignore[misc]
    if origin is Literal and all(isinstance(each, str) for each in inner):
        return Annotated[str, Choice(tuple(inner))]
    return None
