"""Plugins in a whole daemon: the tutorial as written, reloads under load, and what may go wrong."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from journeys.conftest import Make, config_of
from journeys.kit import ROOT, Backend, Daemon, loaded, until
from journeys.programs import lb

PAGE = ROOT / "docs" / "plugins.md"
FILE = re.compile(r"^```(\w+) file=(\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RELOADS = 3

MARK = """
from lb.plugin import Plugin


class Mark(Plugin[None]):
    name = "mark"

    def on_response(self, req, res):
        res.headers.set("X-Mark", "{mark}")
"""
TROUBLE = """
import os

from lb.plugin import Plugin, reply


class Trouble(Plugin[None]):
    name = "trouble"

    def on_request(self, req):
        if req.path == "/raise":
            raise LookupError("nothing there")
        if req.path == "/exit":
            os._exit(3)
        while req.path == "/loop":
            pass
        return reply(200, body=str(os.getpid()))
"""


def write_plugin(daemon: Daemon, name: str, text: str) -> None:
    folder = daemon.folder / "plugins"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    (folder / f"{name}.py").chmod(0o644)


def with_plugins(backends: list[Backend], uses: str) -> str:
    return f'[plugins]\nfolders = ["plugins"]\nuse = [{uses}]\n' + config_of(backends)


def has_restarted(daemon: Daemon, times: int) -> bool:
    workers = daemon.admin("/v1/status").json()["workers"]
    return bool(sum(worker["restarts"] for worker in workers) == times)


def with_trouble(backends: list[Backend]) -> str:
    return (
        config_of(backends, listener='upstream = "app"') + '[plugins]\nfolders = ["plugins"]\n'
        '[route.bad]\npath = "/"\nheader = { x-bad = "1" }\nupstream = "app"\n'
        'plugins = ["trouble"]\n'
    )


def test_the_tutorial_as_it_is_written(daemon: Make, backends: list[Backend]) -> None:
    files = {name: text for _, name, text in FILE.findall(PAGE.read_text())}
    config = files.pop("lb.toml")
    made = daemon("")
    for name, text in files.items():
        write_plugin(made, Path(name).stem, text)
    more = (
        '[route.shout]\npath = "/loud"\nupstream = "app"\nplugins = ["shout", "patience"]\n'
        '[route.first]\npath = "/first"\nupstream = "checked"\n'
        '[upstream.checked]\nbalance = "first"\n'
        'health = { type = "greeting", interval = "100ms", timeout = "200ms" }\n'
        f'panic = "0%"\nbackends = ["{backends[1].address}", "{backends[0].address}"]\n'
    )
    written = re.sub(r"\[node\]\n.*\n", "", config)
    written = written.replace('"127.0.0.1:8080"', '"127.0.0.1:{port}"')
    written = written.replace("127.0.0.1:9001", backends[0].address)
    made.write(written + more)
    checked = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "plugins"],
        cwd=made.folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    assert "2 passed" in checked.stdout
    said = lb(made, "plugin", "check", "plugins/tea.py")
    assert "plugin tea: good" in said.out, said
    made.start()

    assert (made.ask("/shop/coffee").status, made.ask("/shop/coffee").text) == (
        418,
        "I am a teapot.\n",
    )
    assert made.ask("/shop/tea").text == "a"
    assert made.ask("/loud/x").text in ("a", "A")
    tea = made.folder / "plugins" / "tea.py"
    tea.write_text(tea.read_text().replace("I am a teapot", "Still a teapot"))
    made.admin("/v1/config/reload", "POST", body={})
    assert made.ask("/shop/coffee").text == "Still a teapot.\n"
    # These backends wait to be asked and greet nobody, so the check finds them unhealthy.
    until(lambda: made.ask("/first").status == 503, "the plugin's check has judged")
    listed = made.admin("/v1/plugins").json()["items"]
    assert {each["name"] for each in listed} == {"tea", "shout", "patience", "first", "greeting"}
    assert "Traceback" not in made.log()


def test_code_changes_under_load_and_nobody_notices(daemon: Make, backends: list[Backend]) -> None:
    made = daemon(with_plugins(backends, '"mark"'))
    write_plugin(made, "mark", MARK.format(mark="0"))
    made.start()
    with loaded(made.port) as load:
        for number in range(1, RELOADS + 1):
            write_plugin(made, "mark", MARK.format(mark=number))
            answer = made.admin("/v1/config/reload", "POST", body={})
            assert answer.status == 200, answer.text
            assert any("plugins.code" in line for line in answer.json()["changed"])
            assert made.ask().headers["X-Mark"] == str(number)
            load.more(20)
    assert not load.failures
    assert "Traceback" not in made.log()


BROKEN = {
    "def broken(:\n": "plugins/mark.py:1:1: error: not Python",
    "import not_there_at_all\n" + MARK: "plugins/mark.py:1:1: error: cannot be imported",
    MARK.replace('"mark"', '"other"'): 'there is no plugin "mark"',
}


def test_a_bad_file_is_refused_with_its_line_and_the_old_one_runs_on(
    daemon: Make, backends: list[Backend]
) -> None:
    made = daemon(with_plugins(backends, '"mark"'))
    write_plugin(made, "mark", MARK.format(mark="good"))
    made.start()
    for broken, says in BROKEN.items():
        write_plugin(made, "mark", broken)
        done = lb(made, "reload")
        assert done.status == 3, done
        assert says in done.err
        assert made.ask().headers["X-Mark"] == "good"
    os.kill(made.workers()[0], 9)
    until(lambda: len(made.workers()) == 2, "another worker")
    assert {made.ask().headers["X-Mark"] for _ in range(20)} == {"good"}


def test_what_a_plugin_does_wrong_costs_its_own_requests_alone(
    daemon: Make, backends: list[Backend]
) -> None:
    made = daemon(with_trouble(backends), workers=1)
    write_plugin(made, "trouble", TROUBLE)
    made.start()
    bad = {"X-Bad": "1"}
    with loaded(made.port) as load:
        for _ in range(6):
            assert made.ask("/raise", fields=bad).status == 500
        load.more(50)
    assert not load.failures
    assert re.search(r"plugin trouble \(route.bad\) failed in on_request at \S+trouble.py:12, "
                     r"request \S+: LookupError: nothing there", made.log())  # fmt: skip
    assert "is off" in made.log()
    (told,) = made.admin("/v1/plugins").json()["items"]
    assert told["errors"] >= 5
    assert told["uses"] == [{"at": "route.bad", "on_error": "closed"}]
    assert "Traceback" not in made.log()


@pytest.mark.long
def test_a_worker_that_a_plugin_holds_or_ends_is_replaced(
    daemon: Make, backends: list[Backend]
) -> None:
    made = daemon(with_trouble(backends))
    write_plugin(made, "trouble", TROUBLE)
    made.start()
    for restarts, path in enumerate(("/exit", "/loop"), 1):
        with pytest.raises((OSError, http.client.HTTPException)):
            made.ask(path, fields={"X-Bad": "1"}, timeout=1.0)
        until(partial(has_restarted, made, restarts), f"another worker after {path}", 30)
        until(lambda: len(made.children("worker")) == 2, "both workers", 30)
    assert {made.ask().status for _ in range(20)} == {200}
