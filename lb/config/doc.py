"""What a key means, for `lb config doc`; the JSON Schema; and the configuration in force."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from textwrap import wrap
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lb.config import toml
from lb.config.judge import section_in
from lb.config.kinds import Kind
from lb.config.schema import Config, Section
from lb.config.section import keys_of
from lb.errors import OperatorError

WIDTH = 88
INCLUDE = 'More files, relative to this one: "conf.d/*.toml". A table stands in one file only.'


def describe(key: str) -> str:
    """
    Say what a key means: `listener.timeouts.idle`, or with a name, `listener.web.timeouts.idle`.

    Of a table it lists the keys; the empty key lists the tables.
    """
    if key == "include":
        return f"include\n  {INCLUDE}\n  type: list of text"
    section: type[Section] = Config
    field: FieldInfo | None = None
    seen: list[str] = []
    parts = [part for part in key.split(".") if part]
    while parts:
        part = parts.pop(0)
        if part in section.later:
            return f"{key}\n  Not yet supported."
        field = keys_of(section).get(part)
        if field is None:
            raise _unknown(key, part, section)
        seen.append(part)
        inner = section_in(field.annotation)
        if inner is None:
            if parts:
                raise _unknown(key, parts[0], section)
            return "\n".join(_key_lines(".".join(seen), field))
        known = {*keys_of(inner), *inner.later}
        if get_origin(field.annotation) is dict and parts and parts[0] not in known:
            del parts[0]  # The name of one listener, route or upstream.
        section = inner
    return "\n".join(_section_lines(".".join(seen), section, field))


def keys() -> list[str]:
    """List every key, as `describe` takes them; for completion and for the tests."""
    return [*_keys("", Config), "include"]


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema of the file, for editors."""
    schema = Config.model_json_schema()
    schema["title"] = "lb.toml"
    for section in _sections(Config):
        place = schema if section is Config else schema["$defs"][section.__name__]
        for field in section.model_fields.values():
            if field.alias:
                place["properties"].pop(field.alias, None)
        for name, field in keys_of(section).items():
            kind = _kind(field)
            if kind is not None and "default" in place["properties"][name]:
                # pydantic writes seconds and bytes here; the file has units.
                place["properties"][name]["default"] = kind.written(field.default)
    schema["properties"]["include"] = {
        "description": INCLUDE,
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return schema


def show(config: Config) -> str:
    """Write a configuration as TOML, defaults included. Loaded again it wants its secrets."""
    return toml.write(without_secrets(config))


def without_secrets(config: Config) -> dict[str, Any]:
    """Return a configuration as plain values; where a secret has a file, the file says it all."""
    plain = config.model_dump(mode="json")
    for table in (plain["group"] or {}, *plain["admin"]["tokens"]):
        for key in ("secret", "token"):
            if key in table and (table.get(f"{key}_file") or not table[key]):
                del table[key]
    return plain


def _keys(prefix: str, section: type[Section]) -> Iterator[str]:
    for name, field in keys_of(section).items():
        yield prefix + name
        inner = section_in(field.annotation)
        if inner is not None:
            yield from _keys(f"{prefix}{name}.", inner)


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from _sections(inner)


def _key_lines(key: str, field: FieldInfo) -> Iterator[str]:
    yield key
    yield from _wrapped(field.description or "")
    yield f"  type: {_type_words(field)}"
    default = _default(field)
    yield f"  default: {default}" if default else "  default: none"
    for example in field.examples or ():
        yield f"  example: {key.rpartition('.')[2]} = {toml.value(example)}"
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("restart"):
        yield "  A change acts after a restart."


def _section_lines(key: str, section: type[Section], field: FieldInfo | None) -> Iterator[str]:
    named = field is not None and get_origin(field.annotation) is dict
    yield f"[{key}.NAME]" if named else key or "lb.toml"
    yield from _wrapped((field and field.description) or (section.__doc__ or "").strip())
    for example in (field and field.examples) or ():
        yield f"  example: {key.rpartition('.')[2]} = {toml.value(example)}"
    yield "  keys:"
    width = max(len(name) for name in keys_of(section))
    for name, inner in keys_of(section).items():
        yield f"    {name:<{width}}  {inner.description}"


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _default(field: FieldInfo) -> str:
    """Write the default as the file would have it; empty if there is none."""
    if field.is_required() or field.default is None:
        return ""
    if field.default is PydanticUndefined:
        return "this machine's name"
    if isinstance(field.default, Section):
        return toml.value(field.default.model_dump(mode="json"))
    kind = _kind(field)
    plain = field.default if kind is None else kind.write(field.default)
    return toml.value(plain)


def _type_words(field: FieldInfo) -> str:
    kind = _kind(field)
    if kind is not None:
        return kind.describe()
    for annotation in (field.annotation, *get_args(field.annotation)):
        arguments = get_args(annotation)
        if get_origin(annotation) is list:
            return f"list of: {_words_in(arguments[0])}"
        if get_origin(annotation) is dict:
            return f"table of: {_words_in(arguments[0])} = {_words_in(arguments[1])}"
    return _words_in(field.annotation)


def _words_in(annotation: Any) -> str:
    found = [each.describe() for each in _kinds_in(annotation)]
    return " or ".join(dict.fromkeys(found)) or "table"


def _kind(field: FieldInfo) -> Kind | None:
    """Find the kind of a single value: pydantic keeps it apart, or inside of `... | None`."""
    direct = [each for each in field.metadata if isinstance(each, Kind)]
    for argument in get_args(field.annotation):
        direct += [each for each in getattr(argument, "__metadata__", ()) if isinstance(each, Kind)]
    return direct[0] if direct and get_origin(field.annotation) not in {list, dict} else None


def _kinds_in(annotation: Any) -> Iterator[Kind]:
    yield from (each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Kind))
    for argument in get_args(annotation):
        yield from _kinds_in(argument)


def _unknown(key: str, part: str, section: type[Section]) -> OperatorError:
    known = keys()
    near = get_close_matches(part, [each.rpartition(".")[2] for each in known], n=1)
    here = get_close_matches(part, list(keys_of(section)), n=1)
    whole = [each for each in known if near and each.rpartition(".")[2] == near[0]]
    hint = 'see "lb config doc" for all'
    if here:
        hint = f'did you mean "{here[0]}"?'
    elif whole:
        hint = f"did you mean {' or '.join(whole[:3])}?"
    return OperatorError(f'"{key}" is not a key', hint)
