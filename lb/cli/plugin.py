"""`lb plugin`: which there are, whether one works, and a new one to start from."""

from __future__ import annotations

import asyncio
import os
import tomllib
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import click

from lb.cli.output import output_option, print_json, print_table, say
from lb.cli.tree import LazyGroup
from lb.config.find import find_config
from lb.config.kinds import NAME
from lb.config.load import load
from lb.config.plugin_settings import check as check_settings
from lb.config.plugins import catalogue, problem_of, read
from lb.config.problem import ConfigErrors
from lb.config.uses import uses_in
from lb.errors import OperatorError
from lb.plugin import HOOKS, Plugin, waits
from lb.plugin_code import PluginError, class_of, described, line_in, module_of, registered_in

SLOW_S = 0.005
TRIED = (
    "GET /",
    "GET /a/b?c=d&e=%20\nAccept: text/html\nAccept-Encoding: gzip, br\nCookie: a=b; c=d",
    "HEAD /index.html\nUser-Agent: curl/8.0",
    "POST /form\nContent-Type: application/x-www-form-urlencoded\nOrigin: https://example.com",
    "OPTIONS /x\nOrigin: https://example.com\nAccess-Control-Request-Method: PUT",
    "PUT /upload\nAuthorization: Bearer x.y.z\nTransfer-Encoding: chunked",
    "GET /ws\nConnection: Upgrade\nUpgrade: websocket",
    "DELETE /v1/items/1\nX-Forwarded-For: 198.51.100.7\nAuthorization: Basic dTpw",
)
ANSWERS = (
    ('200 OK\nContent-Type: text/html; charset=utf-8\nETag: "1"', b"<p>" + b"x" * 4096),
    ("204 No Content", b""),
    ("404 Not Found\nContent-Type: text/plain", b"no"),
    ('304 Not Modified\nETag: "1"', b""),
)


class PluginGroup(LazyGroup):
    """`lb plugin`."""

    PLACES: ClassVar[dict[str, tuple[str, str]]] = {
        "list": ("plugin:list_", "All plugins that could be used, and where they are."),
        "check": ("plugin:check", "Try a plugin's file on recorded requests."),
        "new": ("plugin:new", "Write a plugin to start from, with a test."),
    }


@click.group(cls=PluginGroup)
def plugin() -> None:
    """List, check and begin plugins."""


@click.command(name="list")
@click.option("-c", "--config", "path", metavar="FILE", help="The config file.")
@output_option
def list_(path: str | None, output: str) -> None:
    """All plugins that could be used: those that come with Accord, of folders, of packages."""
    folders: list[str] = []
    enable: list[str] = []
    used: dict[str, list[str]] = {}
    if path is not None or os.environ.get("LB_CONFIG") or Path("lb.toml").exists():
        config = load(find_config(path, os.environ), os.environ).config
        folders, enable = config.plugins.folders, config.plugins.enable
        for place, use in uses_in(config.plugins, config.listener, config.route):
            used.setdefault(use.use, []).append(".".join(map(str, place[:2])))
    known = catalogue(folders, enable)
    if known.problems:
        raise ConfigErrors(known.problems)
    if known.findings:
        raise OperatorError(known.findings[0].message, known.findings[0].hint)
    rows: list[dict[str, Any]] = []
    for sort in ("plugin", "balancer", "health_check"):
        for name in known.names(sort):
            code = known.code(sort, name)
            assert code is not None, "it was named"
            own = "entry" not in code and code["file"] not in known.read
            rows.append(
                {
                    "name": name,
                    "kind": sort.replace("_", " "),
                    "from": "comes with Accord" if own else code["file"],
                    "used": sorted(set(used.get(name, []))) if sort == "plugin" else [],
                    "about": _about(code, sort, name),
                }
            )
    if output == "json":
        print_json({"items": rows})
        return
    print_table(
        ("NAME", "KIND", "FROM", "USED", "ABOUT"),
        [(r["name"], r["kind"], r["from"], ", ".join(r["used"]), r["about"]) for r in rows],
    )


@click.command()
@click.argument("file")
@click.option("--settings", metavar="TOML", default="", help="What is to stand beside `use`.")
@output_option
def check(file: str, settings: str, output: str) -> None:
    """Load FILE, make its plugin, and send recorded requests through it."""
    try:
        found = read(file, own=True)
        module = module_of(found.as_plain())
        names = [name for sort, name in found.names if sort == "plugin"]
        others = [each for each in found.names if each[0] != "plugin"]
        if not names and not others:
            raise PluginError("there is no plugin in it", "write a class with Plugin as base", file)
        for sort, name in others:
            if name not in registered_in(module, sort):
                raise PluginError(f"{name} is not what it is said to be", file=file)
        cls = class_of(found.as_plain(), names[0]) if names else None
        said = None if cls is None else _tried(cls, _settings(settings), file)
    except PluginError as error:
        raise ConfigErrors([problem_of(error)]) from None
    if output == "json":
        print_json({"ok": True, "file": file, "names": list(found.names), "hooks": said or {}})
        return
    for sort, name in found.names:
        click.echo(f"{file}: {sort.replace('_', ' ')} {name}: good")
    for hook, (calls, seconds) in (said or {}).items():
        click.echo(f"  {hook}: {calls} calls, {seconds / calls * 1e6:.1f} us each")
        if seconds / calls > SLOW_S:
            say(f"warning: {hook} keeps all other requests waiting; make it async, or faster")


@click.command()
@click.argument("name")
@click.option("--folder", default="plugins", help="Where to write it.")
def new(name: str, folder: str) -> None:
    """Write plugins/NAME.py, a plugin that works, and a test of it."""
    if NAME.fullmatch(name) is None or not name.replace("-", "_").isidentifier():
        raise OperatorError(f'"{name}" is not a name for a plugin', "letters, digits and _")
    stem = name.replace("-", "_")
    cls = "".join(part.capitalize() for part in stem.split("_"))
    place = Path(folder)
    files = {place / f"{stem}.py": SKELETON, place / f"test_{stem}.py": TEST}
    there = [str(each) for each in files if each.exists()]
    if there:
        raise OperatorError(f"{there[0]} is there already", "choose another name")
    try:
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        for each, text in files.items():
            words = text.replace("NAME", name).replace("STEM", stem).replace("CLASS", cls)
            each.write_text(words, encoding="utf-8")
            each.chmod(0o644)
    except OSError as error:
        raise OperatorError(f"{place} cannot be written: {error.strerror}") from None
    say(f"wrote {', '.join(map(str, files))}")
    say(f"next: lb plugin check {place / f'{stem}.py'}; python -m pytest {place}")
    say(f'then in lb.toml: [plugins] folders = ["{folder}"], and plugins = ["{name}"] in a route')


def _about(code: dict[str, str], sort: str, name: str) -> str:
    """The first line of what a file says of itself; what cannot be loaded says why."""
    try:
        module = module_of(code)
    except PluginError as error:
        return error.message
    found = registered_in(module, sort).get(name) if sort != "plugin" else None
    text = (found.__doc__ if found is not None else module.__doc__) or ""
    return text.strip().partition("\n")[0]


def _settings(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text.replace(";", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise OperatorError(f"--settings is not TOML: {error}", "like 'rate = \"1/s\"'") from None


def _tried(
    cls: type[Plugin[Any]], settings: dict[str, Any], file: str
) -> dict[str, tuple[int, float]]:
    """Send requests through a plugin; return calls and seconds by hook. PluginError."""
    from lb.testing import Bench, call_async, make  # noqa: PLC0415 - what only this command needs

    values = check_settings(cls, settings)
    if isinstance(values, list):
        first = values[0]
        key = ".".join(map(str, first["loc"]))
        said = f"{key}: {first['msg']}" if key else first["msg"]
        raise PluginError(f"settings: {said}", "say them: --settings 'key = \"value\"'", file)
    took: dict[str, tuple[int, float]] = {}
    head = TRIED[0]

    async def tried() -> None:
        nonlocal head
        made = make(cls, settings, Bench())
        for hook in HOOKS:
            if hasattr(made, hook) and not waits(getattr(made, hook)):
                setattr(made, hook, _timed(getattr(made, hook), hook, took))
        for head in TRIED:
            for response, body in ANSWERS:
                await call_async(
                    made, head, body=b"abc" if "POST" in head else b"", response=response,
                    response_body=body,
                )  # fmt: skip
        made.stop()

    try:
        asyncio.run(tried())  # In one loop: a plugin may keep connections from call to call.
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, RuntimeError,
    ) as error:  # fmt: skip
        first_line = head.partition("\n")[0]
        raise PluginError(
            f'it failed on "{first_line}": {described(error)}', "", file, line_in(error, file)
        ) from None
    return took


def _timed(hook: Any, name: str, took: dict[str, tuple[int, float]]) -> Any:
    def timed(*arguments: Any) -> Any:
        start = perf_counter()
        try:
            return hook(*arguments)
        finally:
            calls, seconds = took.get(name, (0, 0.0))
            took[name] = (calls + 1, seconds + perf_counter() - start)

    return timed


SKELETON = '''"""Say here in one line what NAME does: `lb plugin list` shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lb.plugin import Plugin, Reply, Request, Response, reply


class CLASS(Plugin["CLASS.Config"]):
    """What it is for, and for whom."""

    name = "NAME"

    @dataclass
    class Config:
        """What may stand beside `use = "NAME"`."""

        blocked: list[str] = field(default_factory=list, metadata={"about": "Paths to refuse."})
        header: str = field(default="X-CLASS", metadata={"about": "What responses carry."})

    def on_request(self, req: Request) -> Reply | None:
        """Refuse some; the rest goes on."""
        if req.path in self.config.blocked:
            return reply(403)
        return None

    def on_response(self, req: Request, res: Response) -> None:
        """Mark what comes back."""
        res.headers.set(self.config.header, "seen")
'''

TEST = '''"""Run it with: python -m pytest."""

from pathlib import Path

from lb.testing import call

PLUGIN = Path(__file__).with_name("STEM.py")


def test_what_is_blocked_is_refused() -> None:
    outcome = call(PLUGIN, "GET /secret", config={"blocked": ["/secret"]})

    assert outcome.got.status == 403
    assert outcome.sent is None


def test_the_rest_goes_on_and_is_marked() -> None:
    outcome = call(PLUGIN, "GET /", response="200 OK", response_body=b"hello")

    assert outcome.reply is None
    assert outcome.got.body == b"hello"
    assert outcome.got.headers.get("X-CLASS") == "seen"
'''
