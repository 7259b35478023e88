"""
Finds plugins, runs their code once, and judges what the file says of them.

What is right comes back in the config itself: the code that was judged and each use's complete
settings. A worker runs that, and never looks at the folders: whatever happens to them meanwhile,
all workers of all times run the code that was checked.

A file is named after nobody: which plugin it has is read from the `name` in its class, without
running it. Only what the file of the configuration uses is run.
"""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from pydantic_core import ErrorDetails

from lb.config.checks import Finding
from lb.config.kinds import NAME, NAME_MAX, nearest, shown
from lb.config.plugin_settings import check, secrets_of, section_for
from lb.config.positions import Path as Place
from lb.config.problem import Problem, excerpt
from lb.config.schema import Config
from lb.config.uses import OWN, Use, uses_in
from lb.plugin import Plugin
from lb.plugin_code import (
    SOURCE_BYTES_MAX,
    PluginError,
    class_of,
    digest_of,
    rehearsed,
)

FILES_MAX: Final = 1000  # In all folders together.
GROUP: Final = "accord_lb.plugins"  # Of entry points.
_PACKAGE = Path(__file__).parent.parent
_OWN_FOLDERS = (_PACKAGE / "_plugins", _PACKAGE.parent / "plugins")
_DECORATORS: Final = {"balancer", "health_check"}


@dataclass(frozen=True, slots=True)
class Found:
    """A file, what it has by its own words, and its code as it was read."""

    file: str
    source: bytes
    names: tuple[tuple[str, str], ...]  # Sort and name: plugin, balancer, health_check.
    line: int = 0

    @property
    def stem(self) -> str:
        """What its module is called after."""
        return "".join(each if each.isalnum() else "_" for each in Path(self.file).stem)

    def as_plain(self) -> dict[str, str]:
        """What goes on to workers."""
        return {
            "stem": self.stem,
            "file": self.file,
            "digest": digest_of(self.source),
            "source": self.source.decode(),
        }


@dataclass(slots=True)
class Catalogue:
    """All plugins that could be used, by sort and name; and what is wrong with the folders."""

    files: dict[tuple[str, str], Found] = field(default_factory=dict)
    entries: dict[str, EntryPoint] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def names(self, sort: str) -> list[str]:
        """The names of one sort."""
        entries = list(self.entries) if sort == "plugin" else []
        return sorted([*(name for known, name in self.files if known == sort), *entries])

    def may_have(self, name: str) -> bool:
        """Whether a file with something wrong with it may be the one of that name."""
        return any(Path(each.file).stem.replace("-", "_") == name.replace("-", "_")
                   for each in self.problems)  # fmt: skip

    def code(self, sort: str, name: str) -> dict[str, str] | None:
        """What a worker needs to have it, None if it is not there."""
        if sort == "plugin" and name in self.entries:
            entry = self.entries[name]
            version = entry.dist.version if entry.dist else ""
            return {"entry": entry.value, "digest": version, "file": entry.value}
        found = self.files.get((sort, name))
        return None if found is None else found.as_plain()


@dataclass(frozen=True, slots=True)
class Judged:
    """`config` has code and settings in it if there is nothing wrong."""

    config: Config
    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # Those in folders of the operator's.
    sources: list[bytes] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def catalogue(folders: list[str], enable: list[str]) -> Catalogue:
    """Look through our own folder and these, and for these entry points."""
    known = Catalogue()
    for folder in _OWN_FOLDERS:
        if folder.is_dir():
            _look_through(folder, known, own=True)
            break
    for index, name in enumerate(folders):
        at: Place = ("plugins", "folders", index)
        try:
            _refuse_if_open(name, "folder")
            _look_through(Path(name), known, own=False)
        except PluginError as error:
            known.findings.append(Finding(at, error.message, error.hint))
    _enable(enable, known)
    return known


def judge_plugins(config: Config, tree: Mapping[str, Any]) -> Judged:
    """Check every use in a config that is right otherwise; `tree` is what was written."""
    uses = list(uses_in(config.plugins, config.listener, config.route))
    others = _others_in(config)
    if not uses and not others and not config.plugins.folders and not config.plugins.enable:
        return Judged(config)
    known = catalogue(config.plugins.folders, config.plugins.enable)
    findings, problems = list(known.findings), list(known.problems)
    code: dict[str, dict[str, str]] = {}
    checked: dict[Place, Use] = {}
    for place, use in uses:
        entry = known.code("plugin", use.use)
        if entry is None:
            if not known.may_have(use.use):
                findings.append(_unknown((*place, "use"), use.use, known.names("plugin"), "plugin"))
            continue
        code[use.use] = entry
        judged = _judge_use(place, use, entry, tree, problems)
        if isinstance(judged, Use):
            checked[place] = judged
        else:
            findings += judged
    for place, sort, name in others:
        entry = known.code(sort, name)
        if entry is None:
            what = sort.replace("_", " ")
            findings.append(_unknown(place, name, known.names(sort), what))
        else:
            code[f"{sort}:{name}"] = entry
    if not findings and not problems:
        config = _with_checked(config, checked, code)
    sources = [found.source for found in known.files.values()]
    return Judged(config, findings, problems, known.read, sources, known.warnings)


def _judge_use(
    place: Place,
    use: Use,
    entry: Mapping[str, str],
    tree: Mapping[str, Any],
    problems: list[Problem],
) -> Use | list[Finding]:
    """Return a use with its settings complete, or what is wrong with it."""
    odd = [key for key in _written_at(tree, place) if str(key).startswith(OWN)]
    if odd:
        return [Finding((*place, odd[0]), f"{shown(odd[0])} is no key", at_key=True)]
    try:
        cls = class_of(entry, use.use)
        values = check(cls, use.settings)
    except PluginError as error:
        error.file = error.file or entry["file"]
        problem = problem_of(error)
        if problem not in problems:
            problems.append(problem)
        return []
    if isinstance(values, list):
        return [_finding(place, cls, each) for each in values]
    try:
        rehearsed(cls, values, entry["file"])
    except PluginError as error:
        where = f" ({error.where})" if error.line else ""
        return [Finding((*place, "use"), f"{error.message}{where}", error.hint)]
    return use.model_copy(update={"values": values, "secrets": secrets_of(cls)})


def _finding(place: Place, cls: type[Plugin[Any]], error: ErrorDetails) -> Finding:
    """Say what is wrong with a setting, as `judge` does for the rest of the file."""
    context = error.get("ctx", {})
    location = tuple(part for part in error["loc"] if part != "[key]")
    path = (*place, *location, *context.get("at", ()))
    match error["type"]:
        case "accord":
            at_key = not location or error["loc"][-1] == "[key]"
            return Finding(path, context["message"], context["hint"], at_key=at_key)
        case "extra_forbidden":
            key = str(location[-1])
            hint = nearest(key, [*section_for(cls).model_fields, "use", "on_error"])
            return Finding(path, f'"{key}" is not a key of plugin {cls.name}', hint, at_key=True)
        case "missing":
            return Finding(place, f"plugin {cls.name} needs {location[-1]}", "add it", at_key=True)
        case "model_type" | "dict_type" | "model_attributes_type":
            return Finding(path, "this is not a table", f"write {location[-1]} = {{ ... }}")
        case _:
            return Finding(path, f"{error['msg'][:1].lower()}{error['msg'][1:]}")


def _unknown(place: Place, name: str, names: list[str], what: str) -> Finding:
    hint = nearest(name, names) or f"there are {', '.join(names)}"
    return Finding(place, f"there is no {what} {shown(name)}", hint)


def _others_in(config: Config) -> list[tuple[Place, str, str]]:
    """Return the balancers and checks of plugins that upstreams name."""
    found: list[tuple[Place, str, str]] = []
    for name, upstream in config.upstream.items():
        if upstream.balance_plugin:
            found.append((("upstream", name, "balance"), "balancer", upstream.balance_plugin))
        if upstream.health is not None and upstream.health.type_plugin:
            place = ("upstream", name, "health", "type")
            found.append((place, "health_check", upstream.health.type_plugin))
    return found


def _with_checked(
    config: Config, checked: Mapping[Place, Use], code: dict[str, dict[str, str]]
) -> Config:
    def uses(place: Place, before: list[Use]) -> list[Use]:
        return [checked[(*place, index)] for index in range(len(before))]

    plugins = config.plugins
    return config.model_copy(
        update={
            "plugins": plugins.model_copy(
                update={"code": code, "use": uses(("plugins", "use"), plugins.use)}
            ),
            "listener": {
                name: each.model_copy(
                    update={"plugins": uses(("listener", name, "plugins"), each.plugins)}
                )
                for name, each in config.listener.items()
            },
            "route": {
                name: each.model_copy(
                    update={"plugins": uses(("route", name, "plugins"), each.plugins)}
                )
                for name, each in config.route.items()
            },
        }
    )


def _written_at(tree: Any, place: Place) -> Mapping[str, Any]:
    """Return the table at a place, as it was written; empty where it was no table."""
    for part in place:
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
    return tree if isinstance(tree, dict) else {}


# --- Folders ----------------------------------------------------------------------------------


def _look_through(folder: Path, known: Catalogue, *, own: bool) -> None:
    try:
        names = sorted(each.name for each in os.scandir(folder) if each.name.endswith(".py"))
    except OSError as error:
        raise PluginError(f"{folder} cannot be read: {error.strerror}") from None
    for name in names:
        if name.startswith(("_", ".", "test_")):
            continue
        if len(known.read) >= FILES_MAX:
            raise PluginError(f"there are more than {FILES_MAX} plugins")
        file = str(folder / name)
        if not own:
            known.read.append(file)
        try:
            found = read(file, own=own)
        except PluginError as error:
            known.problems.append(problem_of(error))
            continue
        if not found.names:
            known.warnings.append(f"{file} has no plugin in it")
        for each in found.names:
            if each in known.files:
                first = known.files[each]
                sort, called = each
                message = f"{sort.replace('_', ' ')} {called} is there twice"
                again = PluginError(message, f"first in {first.file}", file, found.line)
                known.problems.append(problem_of(again))
            else:
                known.files[each] = found


def read(file: str, *, own: bool = False) -> Found:
    """Read a plugin's file, and what it says it has. PluginError."""
    if not own:
        _refuse_if_open(file, "file")
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            source = stream.read(SOURCE_BYTES_MAX + 1)
        tree = ast.parse(source, file)
        source.decode()
    except OSError as error:
        raise PluginError(f"cannot be read: {error.strerror}", file=file) from None
    except UnicodeDecodeError:
        raise PluginError("not UTF-8", "save it as UTF-8", file) from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        said = getattr(error, "msg", None) or str(error)
        raise PluginError(f"not Python: {said}", file=file, line=line) from None
    if len(source) > SOURCE_BYTES_MAX:
        raise PluginError(f"larger than {SOURCE_BYTES_MAX // 1024} KiB", file=file)
    names = list(_names_in(tree))
    plugins = [each for each in names if each[0] == "plugin"]
    _refuse_names(tree, names, file)
    if len(plugins) > 1:
        raise PluginError(
            f"two plugins, {plugins[0][1]} and {plugins[1][1]}",
            "one file, one plugin",
            file,
            plugins[1][2],
        )
    line = plugins[0][2] if plugins else 0
    return Found(file, source, tuple((sort, name) for sort, name, _ in names), line)


def _names_in(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Yield sort, name and line of what a file has, by its own words."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.bases:
            for statement in node.body:
                name, line = _name_in(statement)
                if name:
                    yield "plugin", name, line
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and mark.args:
                    called = ast.unparse(mark.func).rpartition(".")[2]
                    if called in _DECORATORS and isinstance(mark.args[0], ast.Constant):
                        yield called, str(mark.args[0].value), mark.lineno


def _refuse_names(tree: ast.Module, names: list[tuple[str, str, int]], file: str) -> None:
    """Refuse names that nobody could write in a config, and a plugin without one. PluginError."""
    for sort, name, line in names:
        if not NAME.fullmatch(name):
            raise PluginError(
                f"{shown(name)} is no name of a {sort.replace('_', ' ')}",
                f"letters, digits, _, - and . make names of at most {NAME_MAX}",
                file,
                line,
            )
    for node in () if names else tree.body:
        # A class that others derive from may go without; alone in its file it is the plugin.
        if isinstance(node, ast.ClassDef) and "Plugin" in map(_base_name, node.bases):
            raise PluginError(
                f"plugin {node.name} has no name", 'write name = "..." in it', file, node.lineno
            )


def _base_name(base: ast.expr) -> str:
    """Return what a base class is called, without its module and what stands in brackets."""
    if isinstance(base, ast.Subscript):
        base = base.value
    return ast.unparse(base).rpartition(".")[2]


def _name_in(statement: ast.stmt) -> tuple[str, int]:
    """Return what `name = "..."` says, with or without a type; "" for any other statement."""
    targets: list[ast.expr] = []
    value: ast.expr | None = None
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, ast.AnnAssign):
        targets, value = [statement.target], statement.value
    names = [each.id for each in targets if isinstance(each, ast.Name)]
    if "name" in names and isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value, statement.lineno
    return "", 0


def _refuse_if_open(name: str, what: str) -> None:
    """Refuse code that somebody else could have written: it runs with our rights."""
    try:
        status = os.stat(name)
    except OSError as error:
        which = f"{name} " if what == "folder" else ""
        raise PluginError(f"{which}cannot be read: {error.strerror}", file=name) from None
    if what == "folder" and not stat.S_ISDIR(status.st_mode):
        raise PluginError(f"{name} is no folder", file=name)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PluginError(
            f"others may write into this {what}, and what is in it runs as we do",
            f"chmod go-w {name}",
            name,
        )
    if status.st_uid not in (0, os.geteuid()):
        raise PluginError(
            f"this {what} belongs to another user, and what is in it runs as we do",
            f"chown it to root, or to who runs lb: {name}",
            name,
        )


def _enable(names: list[str], known: Catalogue) -> None:
    there = {each.name: each for each in entry_points(group=GROUP)} if names else {}
    for index, name in enumerate(names):
        at: Place = ("plugins", "enable", index)
        if name not in there:
            hint = nearest(name, list(there)) or "install the package that has it"
            known.findings.append(Finding(at, f"no package has a plugin {shown(name)}", hint))
        elif ("plugin", name) in known.files:
            where = known.files["plugin", name].file
            known.findings.append(Finding(at, f"plugin {name} is there twice", f"also in {where}"))
        else:
            known.entries[name] = there[name]


def problem_of(error: PluginError) -> Problem:
    """Say what is wrong with a plugin's file as with any other file."""
    source = ""
    if error.line:
        try:
            text = Path(error.file).read_text(errors="replace")
            source = text.split("\n")[error.line - 1]
        except (OSError, IndexError):
            source = ""
    start = len(source) - len(source.lstrip()) + 1
    line, at = excerpt(source, start)
    width = max(1, len(source.strip()))
    column = start if error.line else 0
    return Problem(error.file, error.line, column, error.message, line, width, error.hint, at)
