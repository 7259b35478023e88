"""
From a plugin's source to its class, and from plain values to its Config.

Each version of a file becomes a module under a name of its own, so that the old code runs on
beside the new for as long as something uses it. What its code may do wrong while it is loaded
becomes a `PluginError` with the line.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import random
import sys
import traceback
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from hashlib import blake2b
from types import ModuleType, UnionType
from typing import Any, Final

from lb.errors import OperatorError
from lb.plugin import API, HOOKS, REGISTERED, Count, Plugin, Table, waits

PREFIX: Final = "_lbp_"
SOURCE_BYTES_MAX: Final = 512 * 1024
FAILURES: Final = (Exception, SystemExit, GeneratorExit)
"""What a plugin may raise that is its own failure: anything at all, sys.exit() included."""


class PluginError(OperatorError):
    """A plugin that cannot be used; `file` and `line` say where, line 0 for all of it."""

    exit_status = 3

    def __init__(self, message: str, hint: str = "", file: str = "", line: int = 0) -> None:
        super().__init__(message, hint)
        self.file = file
        self.line = line

    @property
    def where(self) -> str:
        """`file:line`, as editors jump to it."""
        return f"{self.file}:{self.line}" if self.line else self.file


def digest_of(source: bytes) -> str:
    """What stands for one version of a plugin's code."""
    return blake2b(source, digest_size=8).hexdigest()


def load(stem: str, source: bytes, file: str) -> ModuleType:
    """
    Run a plugin's source as a module of its own; the one there is, if this version was run before.

    PluginError with the line that failed. `file` is for messages and tracebacks.
    """
    name = f"{PREFIX}{stem}_{digest_of(source)}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module  # A dataclass looks its own module up while it is made.
    loaded = False
    try:
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
        loaded = True
    except SyntaxError as error:
        raise PluginError(
            f"not Python: {error.msg}", file=error.filename or file, line=error.lineno or 0
        ) from None
    except FAILURES as error:
        raise PluginError(
            f"cannot be imported: {described(error)}", file=file, line=line_in(error, file)
        ) from None
    finally:
        if not loaded:
            del sys.modules[name]
    return module


def forget(keep: set[str]) -> bool:
    """
    Let go of modules of ours that are not among these names; return whether there were any.

    Who still runs them keeps them.
    """
    gone = [name for name in sys.modules if name.startswith(PREFIX) and name not in keep]
    for name in gone:
        del sys.modules[name]
    return bool(gone)


def plugin_in(module: ModuleType) -> type[Plugin[Any]] | None:
    """The plugin that a module defines, None if none; PluginError if it cannot be one."""
    file = module.__file__ or module.__name__
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Plugin)
        and value.__module__ == module.__name__
        and "name" in vars(value)
    ]
    if len(found) > 1:
        names = " and ".join(cls.__name__ for cls in found)
        raise PluginError(f"{names} are two plugins: one file, one plugin", file=file)
    if not found:
        return None
    check(found[0], file)
    return found[0]


def check(cls: type[Plugin[Any]], file: str) -> None:
    """Refuse what cannot be a plugin of ours. PluginError."""
    if cls.api != API:
        raise PluginError(
            f"{cls.__name__} is written for API {cls.api}, and this is API {API}",
            "see docs/plugins.md for what changed",
            file,
        )
    if cls.Config is not None and not dataclasses.is_dataclass(cls.Config):
        raise PluginError(f"{cls.__name__}.Config is not a dataclass", "write @dataclass", file)
    for hook, names in HOOKS.items():
        _check_hook(cls, hook, names, file)
    for hook in ("on_finish", "start", "stop"):
        if waits(getattr(cls, hook, None)):
            raise PluginError(
                f"{cls.__name__}.{hook} cannot be async",
                "use ctx.spawn for what waits",
                file,
                _line_of(getattr(cls, hook)),
            )
    unknown = [name for name in vars(cls) if name.startswith("on_") and name not in HOOKS]
    if unknown:
        raise PluginError(
            f"{cls.__name__}.{unknown[0]} is no hook",
            f"hooks are {', '.join(HOOKS)}",
            file,
            _line_of(getattr(cls, unknown[0])),
        )


def _check_hook(cls: type[Plugin[Any]], hook: str, names: tuple[str, ...], file: str) -> None:
    """Refuse a hook that could not be called. PluginError."""
    if not hasattr(cls, hook):
        return
    found = inspect.getattr_static(cls, hook)
    if not callable(getattr(cls, hook)):
        raise PluginError(f"{cls.__name__}.{hook} is not a function", file=file)
    if inspect.isfunction(found):
        taken = ("self", *names)
        try:
            inspect.signature(found).bind(*taken)
        except TypeError:
            raise PluginError(
                f"{cls.__name__}.{hook} cannot be called with what there is",
                f"write {hook}({', '.join(taken)})",
                file,
                _line_of(found),
            ) from None


def _line_of(function: Any) -> int:
    code = getattr(function, "__code__", None)
    return code.co_firstlineno if code is not None else 0


def class_of(code: Mapping[str, str], name: str) -> type[Plugin[Any]]:
    """The plugin that goes by a name, from what a config carries of it. PluginError."""
    file = code["file"]
    module = module_of(code)
    if "entry" in code:
        cls = getattr(module, code["entry"].partition(":")[2] or name, None)
        if not (isinstance(cls, type) and issubclass(cls, Plugin)):
            raise PluginError(f"{code['entry']} is no plugin", "it has to be a subclass", file)
        check(cls, file)
    else:
        cls = plugin_in(module)
        if cls is None:
            raise PluginError("there is no plugin in it", "write a class with Plugin as base", file)
    if "entry" not in code and cls.name != name:
        raise PluginError(f'its name is "{cls.name}", and was "{name}" a moment ago', file=file)
    return cls


def module_of(code: Mapping[str, str]) -> ModuleType:
    """The module that a config carries: its source, or the name of an installed one."""
    if "entry" not in code:
        return load(code["stem"], code["source"].encode(), code["file"])
    try:
        return importlib.import_module(code["entry"].partition(":")[0])
    except FAILURES as error:
        raise PluginError(
            f"{code['entry']} cannot be imported: {described(error)}", file=code["file"]
        ) from None


def rehearsed(cls: type[Plugin[Any]], values: dict[str, Any], file: str) -> None:
    """Make a plugin and start it, as a worker will, and throw it away. PluginError."""

    def rehearse() -> None:
        plugin = cls(configure(cls, values), Rehearsal())
        plugin.start()
        plugin.stop()

    guarded(rehearse, f"plugin {cls.name}", file)


class Rehearsal:
    """A `Context` in which nothing comes of anything."""

    node = "rehearsal"
    place = "rehearsal"
    instances = 1

    def __init__(self) -> None:
        self.log = logging.getLogger("lb.plugin")
        self.rng = random.Random(0)

    def now(self) -> float:
        """No time."""
        return 0.0

    def count(self, event: str) -> Count:
        """Return what counts nothing."""
        return lambda by=1: None

    def table(self, name: str) -> Table:
        """Return a table that is empty."""
        return _NoTable()

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Never do it."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Never do it either."""
        work.close()


class _NoTable:
    def get(self, key: bytes) -> float:
        return 0.0

    def put(self, key: bytes, value: float) -> None:
        pass


def registered_in(module: ModuleType, sort: str) -> dict[str, Any]:
    """The balancers, or the checks, that a module makes known, by name."""
    found = {}
    for value in vars(module).values():
        mark = getattr(value, REGISTERED, None)
        if mark is not None and mark[0] == sort:
            found[mark[1]] = value
    return found


def described(error: BaseException) -> str:
    """An exception in one line."""
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def line_in(error: BaseException, file: str) -> int:
    """The innermost line of a file that an exception came through; 0 if it came from elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((each.lineno or 0 for each in reversed(frames) if each.filename == file), 0)


async def contained(work: Awaitable[Any]) -> Any:
    """Await what a plugin does; no exit() of its gets into the loop, which would end for all."""
    try:
        return await work
    except (SystemExit, GeneratorExit) as error:
        raise RuntimeError(described(error)) from error


# --- Configs ----------------------------------------------------------------------------------


def hints_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with what is `Annotated`."""
    return typing.get_type_hints(cls, include_extras=True)


def configure(cls: type[Plugin[Any]], values: dict[str, Any]) -> Any:
    """Make a plugin's Config of plain, checked values; None if it has none."""
    return None if cls.Config is None else _revive(cls.Config, values)


def _revive(sort: Any, value: Any) -> Any:
    """Turn tables back into the dataclasses that they were, wherever they stand."""
    origin, inner = typing.get_origin(sort), typing.get_args(sort)
    if origin is typing.Annotated:
        return _revive(inner[0], value)
    if isinstance(sort, type) and dataclasses.is_dataclass(sort):
        hints = hints_of(sort)
        return sort(**{key: _revive(hints[key], each) for key, each in value.items()})
    if origin in (typing.Union, UnionType) and value is not None:
        return _revive(next(each for each in inner if each is not type(None)), value)
    if origin is list:
        return [_revive(inner[0], each) for each in value]
    if origin is dict:
        return {key: _revive(inner[1], each) for key, each in value.items()}
    return value


def guarded(call: Callable[[], None], what: str, file: str) -> None:
    """Call what a plugin's author wrote; PluginError if it raises."""
    try:
        call()
    except FAILURES as error:
        raise PluginError(
            f"{what} failed: {described(error)}", file=file, line=line_in(error, file)
        ) from None
