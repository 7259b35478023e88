"""Style is a test, not a review remark: the rules of the house that a program can hold.

The order of layers is read from docs/architecture.md, so that the page and the test can't
drift apart. A rule that has exceptions names each of them here, with its reason, and an
exception that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
BOOLS_MAX = 3

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_BOOLS: dict[str, str] = {
    "lb/proxy/backend_connection.py BackendConnection": "its Phase is an Enum; these cut across it",
    "lb/http1/head.py ResponseFields": "facts read off one head, each of them final",
    "lb/proxy/client_connection.py ClientConnection": "its Phase is an Enum; these cut across it",
    "lb/proxy/exchange.py Exchange": "its Step is an Enum; these are facts of the two messages",
    "lb/proxy/trying.py Trying": "its Step is an Enum; these are facts of the present try",
}
AWAITED: dict[str, str] = {}  # Modules whose user comes with the next part.
BROAD_EXCEPTS: dict[str, str] = {
    "lb/balance/guarded.py Guarded.follow": "a plugin's balancer that fails is followed by ours",
    "lb/balance/guarded.py Guarded.pick": "likewise",
    "lb/balance/guarded.py Guarded._tell": "likewise",
    "lb/proxy/chain.py Chain.ask": "a hook that fails is counted, logged, and stood in for",
    "lb/proxy/chain.py Chain.respond": "likewise",
    "lb/proxy/chain.py Chain.finish": "likewise",
    "lb/proxy/hooked.py Hooked.request_data": "a body's transform that fails cuts the message",
    "lb/proxy/hooked.py Hooked._reworked": "likewise",
    "lb/proxy/hooked.py Hooked._passed_on": "likewise",
    "lb/proxy/hooked.py Hooked.response_continued": "likewise",
    "lb/proxy/hooked.py Hooked.response_ended": "likewise",
    "lb/proxy/live_plugins.py LiveContext._guard": "a plugin's task that fails is logged",
    "lb/proxy/live_plugins.py LivePlugins._make": "one that cannot be made is replaced",
    "lb/config/parse.py _answer_and_end": "a fork that fails says why, and ends",
    "lb/control/probe.py _ask_plugin": "what a plugin's check raises is its answer",
    "lb/control/replica.py Replica._do": "a member that failed half way stops, and says so",
    "lb/control/admin_guard.py answer_errors": "a bug becomes a logged 500, never a dead admin",
}

WORKERS_NEVER = {"pydantic", "aiohttp", "click", "rich"}
COROUTINES_ALLOWED = {"lb/proxy/listener.py", "lb/proxy/tls.py"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc", "core", "base"}
OTHER_WORDS = {  # docs/glossary.md has the right ones.
    "cluster": "group",
    "frontend": "listener",
    "vhost": "route",
    "origin_server": "backend",
}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")  # unfinished-words: this line may.

PURE = ("routing", "retry", "registry", "health", "outlier", "balance", "raft", "http1")
OUTSIDE_WORLD = {
    "asyncio", "os", "random", "secrets", "select", "selectors", "socket", "ssl", "subprocess",
    "tempfile", "threading", "time", "uuid",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "hash", "datetime.now"}  # hash() is salted in each process.


# --- Reading the tree -------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One import of ours or of somebody else's, as a dotted name."""

    name: str
    line: int
    typing_only: bool


@dataclass(frozen=True)
class Source:
    """One Python file, parsed."""

    path: str  # from the root, with slashes
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Return its dotted name; a package is named by its folder."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def where(self, line: int) -> str:
        """Return a place that editors jump to."""
        return f"{self.path}:{line}"


@cache
def sources(folder: str) -> tuple[Source, ...]:
    """Return all Python files below a folder of the project."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        found.append(Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    return tuple(found)


def everything() -> tuple[Source, ...]:
    """Return all of our Python."""
    return sources("lb") + sources("tests") + sources("bench") + sources("plugins")


@cache
def modules() -> dict[str, Source]:
    """Return the package's files by module name."""
    return {source.module: source for source in sources("lb")}


def imports_of(source: Source) -> Iterator[Import]:
    """Return what a file imports anywhere, and whether only the type checker sees it."""

    def walk(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, typing_only)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    name = whole if whole in modules() else child.module
                    yield Import(name, child.lineno, typing_only)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), True)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), typing_only)
            else:
                yield from walk(child, typing_only)

    yield from walk(source.tree, False)


Node = TypeVar("Node", bound=ast.AST)


def nodes(source: Source, kind: type[Node]) -> Iterator[Node]:
    """Return a file's syntax nodes of one kind."""
    return (node for node in ast.walk(source.tree) if isinstance(node, kind))


def functions(source: Source) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Return a file's functions with their names in it, methods as Class.method."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child  # type: ignore[misc]  # Either kind will do.
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(source.tree, "")


def agree(found: dict[str, str], excepted: dict[str, str]) -> None:
    """Fail on what was found and is not excepted, and on exceptions nobody needs."""
    too_much = [text for key, text in found.items() if key not in excepted]
    assert not too_much, "\n".join(too_much)
    unneeded = sorted(set(excepted) - set(found))
    assert not unneeded, f"exceptions that are no longer needed: {unneeded}"


# --- Layers -----------------------------------------------------------------------------------


def architecture() -> str:
    """Return the page that this file holds the code to."""
    return (ROOT / "docs/architecture.md").read_text()


@cache
def layers() -> tuple[str, ...]:
    """Return the list of docs/architecture.md, left to right."""
    block = re.search(r"^```layers\n(.*?)^```", architecture(), re.MULTILINE | re.DOTALL)
    assert block, "docs/architecture.md has the list of layers in a block named `layers`"
    return tuple(block[1].replace("|", " ").split())


def layer_of(module: str) -> str:
    """Return the word of the list that a module stands under: `lb.http1.head` under `http1`."""
    return module.split(".")[1]


def test_every_module_has_its_place_in_the_list() -> None:
    words = {layer_of(name) for name in modules() if name != "lb"}

    assert words <= set(layers()), f"give a place in docs/architecture.md: {words - set(layers())}"
    assert set(layers()) <= words, f"in the list, but not there: {set(layers()) - words}"


def test_a_module_imports_only_what_stands_to_its_right() -> None:
    order = {word: place for place, word in enumerate(layers())}
    wrong = []
    for source in sources("lb"):
        for imported in imports_of(source):
            if not imported.name.startswith("lb.") or source.module == "lb":
                continue
            mine, theirs = layer_of(source.module), layer_of(imported.name)
            sideways = {mine, theirs} == {"control", "proxy"}
            if order[theirs] < order[mine] or sideways:
                wrong.append(f"{source.where(imported.line)}: {mine} imports {imported.name}")

    assert not wrong, "\n".join(wrong)


def test_no_two_modules_need_each_other() -> None:
    graph = {
        source.module: {imported.name for imported in imports_of(source)} & set(modules())
        for source in sources("lb")
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def closure(start: str) -> dict[str, str]:
    """Return all that importing `start` brings in, each with the module that asked for it."""
    found, left = {start: "the start"}, [start]
    while left:
        source = modules()[left.pop()]
        for imported in imports_of(source):
            if imported.typing_only:
                continue
            parts = imported.name.split(".")
            names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
            for name in names if parts[0] == "lb" else names[:1]:
                if name not in found:
                    found[name] = source.module
                    if name in modules():
                        left.append(name)
    return found


def test_workers_carry_nothing_they_do_not_need() -> None:
    brought = closure("lb.worker")

    heavy = {name: brought[name] for name in WORKERS_NEVER & set(brought)}
    assert not heavy, f"imported on the way to lb.worker: {heavy}"
    control = [name for name in brought if name.startswith("lb.control")]
    assert not control, f"a worker has no control plane in it: {control}"


def test_the_mains_do_not_meet() -> None:
    assert not [name for name in closure("lb.controller") if name.startswith("lb.proxy")]


def test_a_worker_in_fact_imports_none_of_it() -> None:
    code = "import sys, lb.worker; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == 0, done.stderr
    assert not WORKERS_NEVER & set(done.stdout.split())


def test_every_module_is_reached_from_a_main() -> None:
    """A main is what `python -m` starts, or what a package loads late by a name it makes up."""
    texts = [source.text for source in sources("lb")]
    mains = [
        name
        for name, source in modules().items()
        if name.endswith(".__main__")
        or '__name__ == "__main__"' in source.text
        or any(f'import_module(f"{name.rpartition(".")[0]}.' in text for text in texts)
    ]
    reached: set[str] = set()
    for main in mains:
        reached |= set(closure(main))

    unneeded = sorted(set(AWAITED) & reached)
    assert not unneeded, f"exceptions that are no longer needed: {unneeded}"
    for module in AWAITED:
        reached |= set(closure(module))
    dead = [name for name in modules() if name not in reached]
    assert not dead, f"nothing imports {dead}"


def test_pure_modules_do_not_touch_the_outside_world() -> None:
    wrong = []
    for source in sources("lb"):
        if source.module == "lb" or layer_of(source.module) not in PURE:
            continue
        wrong += [
            f"{source.where(imported.line)}: imports {imported.name}"
            for imported in imports_of(source)
            if not imported.typing_only and imported.name.split(".")[0] in OUTSIDE_WORLD
        ]
        wrong += [
            f"{source.where(node.lineno)}: calls {ast.unparse(node.func)}"
            for node in nodes(source, ast.Call)
            if ast.unparse(node.func) in IMPURE_CALLS
        ]

    assert not wrong, "\n".join(wrong)


# --- Size and shape ---------------------------------------------------------------------------


def test_files_fit_into_one_head() -> None:
    long = {
        source.path: f"{source.path}: {lines} lines"
        for source in everything()
        if (lines := source.text.count("\n")) > FILE_LINES_MAX
    }

    agree(long, LONG_FILES)


def test_functions_fit_on_one_screen() -> None:
    long = {}
    for source in everything():
        for name, node in functions(source):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                key = f"{source.path} {name}"
                long[key] = f"{source.where(node.lineno)}: {name} has {lines} lines"

    agree(long, LONG_FUNCTIONS)


def bools_of(node: ast.ClassDef) -> set[str]:
    """Return names of attributes that hold True or False, by annotation or by assignment."""
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.AnnAssign) and ast.unparse(child.annotation) == "bool":
            found.add(ast.unparse(child.target).removeprefix("self."))
        elif isinstance(child, ast.Assign) and ast.unparse(child.value) in {"True", "False"}:
            targets = map(ast.unparse, child.targets)
            found |= {name[5:] for name in targets if name.startswith("self.")}
    return found


def test_state_is_not_kept_in_booleans() -> None:
    many = {}
    for source in sources("lb"):
        for node in nodes(source, ast.ClassDef):
            if len(names := bools_of(node)) > BOOLS_MAX:
                key = f"{source.path} {node.name}"
                many[key] = f"{source.where(node.lineno)}: {sorted(names)}: an Enum says it better"

    agree(many, MANY_BOOLS)


def test_names_say_what_is_inside() -> None:
    vague = [source.path for source in everything() if Path(source.path).stem in VAGUE_NAMES]
    assert not vague

    wrong = []
    for source in sources("lb"):
        for node in ast.walk(source.tree):
            name = getattr(node, "name", None) or getattr(node, "id", None)
            line = getattr(node, "lineno", 0)
            wrong += [
                f"{source.where(line)}: {name}: say {better}"
                for word, better in OTHER_WORDS.items()
                if isinstance(name, str) and word in name.lower()
            ]
    assert not wrong, "\n".join(wrong)


# --- Habits -----------------------------------------------------------------------------------


def test_the_data_path_awaits_nothing() -> None:
    wrong = [
        source.where(node.lineno)
        for source in sources("lb/proxy")
        if source.path not in COROUTINES_ALLOWED
        for node in ast.walk(source.tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await)
    ]

    assert not wrong, f"callbacks, not coroutines: {wrong}"


def test_every_queue_has_a_bound_with_a_name() -> None:
    wrong = []
    for source in sources("lb"):
        for node in nodes(source, ast.Call):
            made = ast.unparse(node.func).rpartition(".")[2].partition("[")[0]
            if made in {"deque", "Queue", "SimpleQueue", "LifoQueue"} and "_MAX" not in source.text:
                wrong.append(f"{source.where(node.lineno)}: {made} without a _MAX in the file")

    assert not wrong, "\n".join(wrong)


def test_the_bounds_of_the_architecture_page_exist() -> None:
    rows = re.findall(r"`(\w+_MAX)` \| `([\w/.]+)`", architecture())
    named = {
        (target.id, source.path)
        for source in sources("lb")
        for node in ast.walk(source.tree)
        for target in (node.targets if isinstance(node, ast.Assign) else [])
        + ([node.target] if isinstance(node, ast.AnnAssign) else [])
        if isinstance(target, ast.Name)
    }

    assert rows
    assert set(rows) <= named, set(rows) - named


def test_imports_are_absolute() -> None:
    wrong = [
        source.where(node.lineno)
        for source in everything()
        for node in nodes(source, ast.ImportFrom)
        if node.level
    ]

    assert not wrong


def test_no_error_is_swallowed() -> None:
    broad = {}
    for source in sources("lb"):
        for name, function in functions(source):
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and catches_all(node):
                    key = f"{source.path} {name}"
                    broad[key] = f"{source.where(node.lineno)}: {name} catches everything"

    agree(broad, BROAD_EXCEPTS)


def catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes any error at all and does not pass it on."""
    caught = re.findall(r"\w+", ast.unparse(handler.type)) if handler.type else ["Exception"]
    passes_on = any(isinstance(node, ast.Raise) for node in ast.walk(handler))
    # FAILURES is the same under another name: all that a plugin may raise.
    return not passes_on and bool({"Exception", "BaseException", "FAILURES"} & set(caught))


def polls(function: ast.AST) -> set[int]:
    """Return the lines inside loops that go round until a deadline."""
    lines: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.While) and "deadline" in ast.unparse(function):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def test_tests_wait_for_something_and_never_just_wait() -> None:
    """A sleep is a guess; only a loop that looks again until a deadline may pause in between."""
    wrong = []
    for source in sources("tests"):
        allowed = set().union(*(polls(function) for _, function in functions(source)))
        for node in nodes(source, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            just_a_turn = bool(node.args) and ast.unparse(node.args[0]) == "0"
            if called == "sleep" and not just_a_turn and node.lineno not in allowed:
                wrong.append(f"{source.where(node.lineno)}: sleeps")
            if called in {"Mock", "MagicMock", "AsyncMock"}:
                wrong.append(f"{source.where(node.lineno)}: a mock; a small real thing is better")

    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later() -> None:
    names = [source.path for source in everything()]
    names += [path.relative_to(ROOT).as_posix() for path in documents()]
    wrong = []
    for name in names:
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if UNFINISHED.search(line) and "unfinished-words" not in line:
                wrong.append(f"{name}:{number}: {line.strip()}")

    assert not wrong, "\n".join(wrong)


def documents() -> list[Path]:
    """Return the project's pages."""
    return [
        *ROOT.glob("*.md"),
        *(
            path
            for folder in ("docs", "bench", "plugins")
            for path in (ROOT / folder).rglob("*.md")
        ),
    ]


# --- The rules themselves ---------------------------------------------------------------------


def example(text: str) -> Source:
    """Return a file that nobody wrote."""
    return Source("lb/example.py", text, ast.parse(text))


@pytest.mark.parametrize(
    ("text", "typing_only"),
    [
        ("import lb.cli", False),
        ("def f():\n    import lb.cli", False),
        ("if TYPE_CHECKING:\n    import lb.cli", True),
        ("if not here:\n    pass\nelse:\n    from lb.cli import main", False),
    ],
)
def test_an_import_is_seen_wherever_it_stands(text: str, typing_only: bool) -> None:
    assert [(found.name, found.typing_only) for found in imports_of(example(text))] == [
        ("lb.cli", typing_only)
    ]


def test_methods_and_booleans_are_seen() -> None:
    source = example("class A:\n    x: bool\n    async def f(self):\n        self.y = True\n")

    assert [name for name, _ in functions(source)] == ["A.f"]
    assert [bools_of(node) for node in nodes(source, ast.ClassDef)] == [{"x", "y"}]
