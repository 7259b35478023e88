"""
From a tree of plain values to a `Config`, or to what is wrong with it in an operator's words.

Where values are wrong the checks across tables still run on the rest, so that one run finds
everything: the wrong values are taken out first, and what only follows from that is not said.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lb.config.checks import Finding, check, dangling
from lb.config.files import Files, Order
from lb.config.kinds import nearest, shown
from lb.config.positions import Path
from lb.config.problem import PROBLEMS_MAX, ConfigErrors, Problem
from lb.config.schema import Config, Section
from lb.config.section import keys_of

FINDINGS_MAX = 1000  # Of a file with more errors than these the rest is only counted.
SALVAGE_ROUNDS_MAX = 4


def judge(files: Files) -> Config:
    """Make a `Config` of what was read, or raise all errors, those of the files included."""
    findings = list(dangling(files.tree))
    config: Config | None = None
    rest: Config | None = None
    unread = 0
    try:
        rest = config = Config.model_validate(files.tree)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        findings += [_finding(files.tree, each) for each in details[:FINDINGS_MAX]]
        unread = max(0, len(details) - FINDINGS_MAX)
        if not unread:
            rest = _salvage(files.tree)
    sound = config is not None and not files.problems and not findings
    if rest is not None:
        findings += check(rest, files.tree, sound=sound)
    if findings or files.problems:
        raise errors_of(files, findings, unread)
    assert config is not None, "no Config, yet nothing wrong with it"
    return config


def errors_of(files: Files, findings: list[Finding], unread: int = 0) -> ConfigErrors:
    """Sort what was found as the files are read, and give the first ones their place."""
    found: dict[tuple[Order, str], Problem | Finding] = {
        (files.order_of(problem), problem.message): problem for problem in files.problems
    }
    for each in findings:
        if each.path not in files.unresolved:  # Else it comes of a variable that is not set.
            found.setdefault((files.order(each.path, at_key=each.at_key), each.message), each)
    first = sorted(found.items(), key=lambda item: item[0])[:PROBLEMS_MAX]
    problems = [
        each
        if isinstance(each, Problem)
        else files.problem(each.path, each.message, each.hint, at_key=each.at_key)
        for _, each in first
    ]
    return ConfigErrors(problems, len(found) + unread)


def section_at(path: Sequence[str | int]) -> type[Section]:
    """Return the section that a path leads to, or the innermost on the way."""
    section: type[Section] = Config
    steps = iter(path)
    for part in steps:
        found = section.model_fields.get(str(part))
        inner = found and section_in(found.annotation)
        if not found or not inner:
            continue
        section = inner
        if get_origin(found.annotation) is dict:
            next(steps, None)  # The name in `listener.NAME`, which is nobody's key.
    return section


def section_in(annotation: Any) -> type[Section] | None:
    """Find the section in `dict[str, Listener]`, `Health | None`, `list[Backend] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (section_in(each) for each in get_args(annotation))
    return next((section for section in inner if section is not None), None)


def _finding(tree: dict[str, Any], error: ErrorDetails) -> Finding:
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    at = tuple(int(part) if part.isdigit() else part for part in context.get("at", ()))
    path, value = _resolve(tree, (*location, *at))
    section = section_at(path[:-1] if kind == "extra_forbidden" else path)
    match kind:
        case "accord":
            on_key = location[-1] == "[key]"
            return Finding(path, context["message"], context["hint"], at_key=on_key)
        case "extra_forbidden":
            return _unknown_key(path, section, value)
        case "missing":
            needed = location[-1]
            example = section.model_fields[str(needed)].examples or [""]
            hint = f"add {needed} = {shown(example[0])}"
            return Finding(path, f"{section.noun} needs {needed}", hint, at_key=True)
        case "too_short":
            return Finding(path, f"{section.noun} needs at least one {location[-1]}", "add one")
        case "model_type" | "dict_type" | "model_attributes_type":
            return Finding(path, f"{shown(value)} is not a table", _table_hint(path))
        case _:
            return Finding(path, f"{error['msg'][:1].lower()}{error['msg'][1:]}")


def _unknown_key(path: Path, section: type[Section], value: object) -> Finding:
    key = str(path[-1])
    if key in section.later:
        return Finding(path, f'"{key}" is not yet supported', "leave it out", at_key=True)
    hint = nearest(key, [*keys_of(section), *section.later])
    if not hint:
        # It may be right, one table too high: header_bytes outside of limits.
        for name, field in section.model_fields.items():
            inner = section_in(field.annotation)
            if inner and key in inner.model_fields and get_origin(field.annotation) is not dict:
                hint = f'did you mean "{name}.{key}"?'
    if not hint and isinstance(value, dict) and len(path) == 3:
        hint = f'a name with a dot goes in quotes: [{path[0]}."{path[1]}.{key}"]'
    return Finding(path, f'"{key}" is not a key of {section.noun}', hint, at_key=True)


def _table_hint(path: Path) -> str:
    if len(path) == 1 and path[0] in {"listener", "route", "upstream"}:
        return f"write [{path[0]}.NAME]"
    return f"write {path[-1]} = {{ ... }}"


def _resolve(tree: Any, location: Sequence[str | int]) -> tuple[Path, Any]:
    """
    Follow pydantic's location through the tree as written.

    It has parts that the file does not have: the tags of unions, the index of a single value
    that stands for a list, the `address` of a backend that is plain text. These lead nowhere.
    """
    path: Path = ()
    for part in location:
        match tree, part:
            case dict(), _ if part in tree:
                tree = tree[part]
            case list(), int() if part < len(tree):
                tree = tree[part]
            case _:
                continue
        path = (*path, part)
    return path, tree


def _salvage(tree: dict[str, Any]) -> Config | None:
    """Make a `Config` of what is right, or give up."""
    rest = copy.deepcopy(tree)
    for _ in range(SALVAGE_ROUNDS_MAX):
        try:
            return Config.model_validate(rest)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                at = each.get("ctx", {}).get("at", ())
                _remove(rest, _resolve(rest, (*each["loc"], *at))[0])
    return None


def _remove(tree: dict[str, Any], path: Path) -> None:
    """Take out a value; of a list all of it, or indexes would no longer say where things are."""
    holder: Any = tree
    for index, part in enumerate(path):
        inner = holder.get(part) if isinstance(holder, dict) else None
        if index == len(path) - 1 or not isinstance(inner, dict):
            holder.pop(part, None)
            return
        holder = inner
