"""The command line: words to calls, answers to exit statuses, data on stdout and no more."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from office import PATIENCE, Office, office_in

from lb import __version__
from lb.cli.client import admin_address, exit_status_of, find_admin
from lb.cli.instance import print_reload
from lb.cli.output import span
from lb.cli.peek import Named, named_in
from lb.cli.tree import LazyGroup, lb
from lb.cli.units import DURATION
from lb.model import Health

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from finding an instance or a file of the person who runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("LB_ADMIN", "LB_CONFIG", "LB_TOKEN", "LB_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with office_in(tmp_path) as opened:
        yield opened


def run(*words: str, office: Office | None = None, **env: str) -> Result:
    if office is not None:
        env["LB_ADMIN"] = office.address
    return CliRunner().invoke(lb, list(words), env=env, prog_name="lb")


def json_of(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def all_commands(group: LazyGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, LazyGroup):
            yield from all_commands(command, (*path, name))


# --- The tree ---------------------------------------------------------------------------------

assert isinstance(lb, LazyGroup)
COMMANDS = list(all_commands(lb))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")

    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: lb {' '.join(words)}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stauts"], 'did you mean "status"?'),
        (["backend", "drian", "app", "x"], 'did you mean "drain"?'),
        (["backend", "zzz"], "see lb backend --help"),
        (["backend", "add", "app"], "Missing argument 'ADDRESS'"),
        (["status", "--wait", "happy"], "'happy' is not"),
        (["status", "60s"], "goes with --wait ready"),
        (["status", "--wait", "ready", "60"], '"60" is not a duration'),
        (["explain", "GET", "/", "-H", "x"], '"x" is not a header'),
        (["backend", "add", "app", "x:1", "--weight", "1001"], "1001 is not in the range"),
        (["backend", "set", "app", "x:1"], "nothing to set"),
        (["run", "--listen", ":8080"], "--listen needs a backend"),
        (["run", "--to", "127.0.0.1:80"], "--to needs an address"),
        (["run", "-c", "x.toml", "--listen", ":1", "--to", "a:1"], "one or the other"),
        (["run", "x.toml"], "-c x.toml"),
        (["run", "--admin", ":9900"], "--admin goes with"),
        (["run", "--listen", "web:80", "--to", "a:1"], "not an IP address"),
        (["run", "--listen", ":80", "--to", "9001"], "127.0.0.1:9001"),
        (["demo", "--port", "9900"], "must differ"),
        (["demo", "--port", "0"], "0 is not in the range"),
        (["status", "--admin", "ftp://x"], "no admin address"),
        (["status", "--admin", "x:y"], "no admin address"),
        (["status", "-c", "missing.toml"], "missing.toml"),
        (["check"], "no configuration"),
        (["run"], "no configuration"),
        (["--nonsense"], "No such option"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_words_that_make_no_sense_are_exit_status_2(words: list[str], says: str) -> None:
    result = run(*words)

    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_a_status_is_told_quickly() -> None:
    """What makes a start slow is what it loads; the budget of 150 ms is kept by loading little."""
    text = "import sys; from lb.cli import instance; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()

    assert "click" in loaded
    slow = {"pydantic", "aiohttp", "rich", "uvloop", "asyncio", "prometheus_client", "orjson"}
    assert slow.isdisjoint(loaded)


def test_a_supervisor_loads_no_pydantic() -> None:
    text = "import sys; from lb.cli import running; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()

    assert "lb.supervisor" in loaded
    assert {"pydantic", "aiohttp", "rich", "prometheus_client"}.isdisjoint(loaded)


def test_the_version_is_told() -> None:
    assert run("version").stdout == f"lb {__version__}\n"
    assert run("--version").stdout == f"lb {__version__}\n"
    assert json_of(run("version", "-o", "json"))["version"] == __version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(shell: str) -> None:
    assert "_LB_COMPLETE" in run("completion", shell).stdout


# --- Which instance ---------------------------------------------------------------------------


def test_the_option_comes_before_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_admin(None, None).address == "127.0.0.1:9900"
    tmp_path.joinpath("lb.toml").write_text('[admin]\naddress = "127.0.0.1:1"\n')
    assert find_admin(None, None).address == "127.0.0.1:1"
    other = tmp_path / "other.toml"
    other.write_text('[admin]\naddress = "unix:/run/other.sock"\n')
    monkeypatch.setenv("LB_CONFIG", str(other))
    assert find_admin(None, None).address == "unix:/run/other.sock"
    assert find_admin(None, "lb.toml").address == "127.0.0.1:1"
    monkeypatch.setenv("LB_ADMIN", "http://127.0.0.1:2")
    assert find_admin(None, "lb.toml").address == "127.0.0.1:2"
    assert find_admin("127.0.0.1:3", "lb.toml").address == "127.0.0.1:3"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('[admin]\naddress = "127.0.0.1:1"', "127.0.0.1:1"),
        ('admin = { address = "127.0.0.1:1" }', "127.0.0.1:1"),
        ('admin.address = "127.0.0.1:1"', "127.0.0.1:1"),
        ('[admin]\naddress = "127.0.0.1:${PORT:-7}"', "127.0.0.1:7"),
        ('[listener.a]\naddress = "127.0.0.1:1"', None),
        ("", None),
        # A file that is broken at present must not keep anyone from asking.
        ('[admin]\naddress = "127.0.0.1:1"\n[upstream\n', "127.0.0.1:1"),
        ('x = = y\n[listener.a]\naddress = "127.0.0.1:2"\n', None),
    ],
)
def test_the_admin_s_address_is_found_in_a_file(
    tmp_path: Path, text: str, address: str | None
) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)

    assert named_in(str(path)) == (Named(address) if address else None)


def test_a_file_that_speaks_of_tls_names_the_certificate_to_expect(tmp_path: Path) -> None:
    path = tmp_path / "lb.toml"
    path.write_text('[admin]\ntls = { cert = "a.pem", key = "a.key" }\n')

    assert named_in(str(path)) == Named("127.0.0.1:9900", str(tmp_path / "a.pem"))


def test_the_admin_s_address_is_found_in_what_is_included(tmp_path: Path) -> None:
    tmp_path.joinpath("conf.d").mkdir()
    tmp_path.joinpath("conf.d/a.toml").write_text('[admin]\naddress = "127.0.0.1:5"')
    main = tmp_path / "lb.toml"
    main.write_text('include = ["lb.toml", "conf.d/*.toml"]')

    assert named_in(str(main)) == Named("127.0.0.1:5")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:9900", "127.0.0.1:9900"),
        ("https://lb.example:1", "lb.example:1"),
        ("http://localhost:1/", "localhost:1"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("localhost", "localhost:9900"),
        ("[::1]:1", "[::1]:1"),
        ("[::1]", "[::1]:9900"),
        (":1", "127.0.0.1:1"),
        ("unix:/run/lb.sock", "unix:/run/lb.sock"),
        ("unix:///run/lb.sock", "unix:/run/lb.sock"),
    ],
)
def test_an_instance_is_named_by_url_or_address(text: str, address: str) -> None:
    assert admin_address(text) == address


def test_nobody_there_is_exit_status_4(tmp_path: Path) -> None:
    for admin in ("127.0.0.1:1", f"unix:{tmp_path}/no.sock"):
        result = run("status", "--admin", admin)

        assert result.exit_code == 4
        assert "no instance answers" in result.stderr
        assert "Traceback" not in result.output


def test_a_unix_socket_is_asked_alike(tmp_path: Path) -> None:
    with office_in(tmp_path, unix=True) as office:
        assert json_of(run("status", "-o", "json", office=office))["name"] == "a"
        assert run("backend", "drain", "app", "127.0.0.1:9001", office=office).exit_code == 0


@pytest.mark.parametrize(
    ("status", "exit_status"),
    [
        (400, 2),
        (401, 4),
        (403, 4),
        (404, 1),
        (409, 5),
        (412, 5),
        (415, 2),
        (422, 3),
        (500, 1),
        (501, 1),
        (503, 5),
        (504, 6),
    ],
)
def test_an_answer_s_status_has_an_exit_status(status: int, exit_status: int) -> None:
    assert exit_status_of(status) == exit_status


# --- The instance -----------------------------------------------------------------------------


def test_status_tells_how_it_is(office: Office) -> None:
    office.judge("app", "127.0.0.1:9002", Health.UNHEALTHY, "connection refused")

    result = run("status", office=office)

    assert result.exit_code == 0
    assert result.stdout.startswith("a  ready  version ")
    assert "workers    1 of 1 up" in result.stdout
    assert "app: 1 of 2 backends usable" in result.stdout
    assert "127.0.0.1:9002  active, unhealthy: connection refused" in result.stdout
    assert "\x1b" not in result.stdout


def test_not_ready_is_exit_status_1(office: Office) -> None:
    office.desk.why_unready = "first verdicts are not in"
    office.desk.error = "lb.toml:1:1: error: no"

    result = run("status", office=office)

    assert result.exit_code == 1
    assert "not ready: first verdicts are not in" in result.stdout
    assert "lb.toml:1:1: error: no" in result.stdout
    waited = run("status", "--wait", "ready", "50ms", office=office)
    assert waited.exit_code == 1
    assert "not ready after 0.05 s: first verdicts are not in" in waited.stderr


def test_waiting_ends_with_readiness(office: Office) -> None:
    assert run("status", "--wait", "ready", "5s", office=office).exit_code == 0
    nobody = run("status", "--wait", "ready", "50ms", "--admin", "127.0.0.1:1")
    assert nobody.exit_code == 4


def test_reload_prints_what_changed(office: Office) -> None:
    path = office.desk.path
    path.write_text(path.read_text().replace("weight = 3", "weight = 4"))

    dry = run("reload", "--dry-run", office=office)
    wet = run("reload", office=office)

    assert dry.exit_code == wet.exit_code == 0
    assert dry.stdout == wet.stdout
    assert "weight" in wet.stdout
    assert "dry run" in dry.stderr


def test_a_bad_file_is_exit_status_3(office: Office) -> None:
    office.desk.path.write_text(office.desk.path.read_text().replace("weight", "wieght"))

    for words in (["reload"], ["check", str(office.desk.path)]):
        result = run(*words, office=office)
        assert result.exit_code == 3
        assert "lb.toml:" in result.stderr
        assert 'did you mean "weight"?' in result.stderr
        assert result.stderr.endswith("nothing was changed\n")
        assert result.stdout == ""
    result = run("check", "-o", "json", str(office.desk.path))
    assert result.exit_code == 3
    assert json.loads(result.stdout)["ok"] is False


def test_stop_waits_for_the_end(office: Office) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(PATIENCE)
    office.desk.pid = ended.pid

    result = run("stop", "--drain", "2s", office=office)

    assert result.exit_code == 0
    assert result.stderr == "stopped\n"
    assert office.desk.stopped_with == [2.0]


def test_upgrade_waits_for_the_new_process(office: Office) -> None:
    office.desk.pid = 4711

    result = run("upgrade", "-o", "json", office=office)

    assert result.exit_code == 0
    assert json_of(result)["pid"] == 4711
    assert result.stderr.startswith("upgraded: process 4711, version ")


def test_upgrade_says_why_not(office: Office) -> None:
    office.desk.upgrade_fails = "what is installed cannot be started: ImportError: no"

    result = run("upgrade", office=office)

    assert result.exit_code == 5
    assert "ImportError: no" in result.stderr
    assert "goes on as before" in result.stderr


def test_explain_says_what_is_answered_and_how_a_split_falls(office: Office) -> None:
    office.desk.path.write_text(
        office.desk.path.read_text()
        + '[route.split]\npath = "/split"\nsplit_by = "header:x-user"\n'
        + 'upstream = { app = "90%", images = "10%" }\n'
    )
    office.ask("POST", "/v1/config/reload")

    split = run("explain", "GET", "/split", "-H", "x-user: 1", office=office).stdout
    wrong = run("explain", "GET", "/posts", office=office).stdout
    moved = run("explain", "GET", "http://old.example/", office=office).stdout

    assert "split     app 0.9, images 0.1: this request goes to " in split
    assert "so        405: a route matches but for its method; allowed: POST" in wrong
    assert "so        308: route old answers by itself" in moved


def test_explain_says_where_and_why(office: Office) -> None:
    office.ask("PATCH", "/v1/upstreams/app/backends/127.0.0.1:9001", {"state": "disabled"})

    result = run("explain", "GET", "http://x/a", "-H", "x: y", office=office)

    assert result.exit_code == 0
    assert "so        no route matches, and upstream is the default of web" in result.stdout
    assert "no: disabled" in result.stdout
    assert run("explain", "GET", "/posts", office=office).exit_code == 1
    plain = json_of(run("explain", "GET", "/images/x", "-o", "json", office=office))
    assert plain["route"] == "images"


def test_a_reload_that_was_refused_in_part_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"upstream": "app", "reason": "would-empty", "detail": "nobody would be left"}

    print_reload({"changed": ["route.x added"], "refused": [refused]}, dry_run=False)

    assert capsys.readouterr().err.splitlines() == [
        "refused: app keeps its backends: nobody would be left",
        "done, except for what was refused",
    ]


def test_output_that_cannot_be_written_is_one_line(office: Office) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lb.cli", "status", "--admin", office.address],
            stdout=full,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(ROOT)},
            check=False,
            timeout=PATIENCE,
        )

    assert done.returncode == 1
    assert done.stderr == b"lb: the output cannot be written: No space left on device\n"


# --- Who serves -------------------------------------------------------------------------------


def test_upstreams_are_listed_and_shown(office: Office) -> None:
    listed = run("upstream", "list", office=office).stdout.splitlines()
    shown = run("upstream", "show", "app", office=office).stdout.splitlines()

    assert listed[0].split()[0] == "UPSTREAM"
    assert [line.split()[0] for line in listed[1:]] == ["app", "images"]
    assert [line.split()[0] for line in shown[1:]] == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert run("backend", "list", "app", office=office).stdout.splitlines() == shown
    assert json_of(run("upstream", "show", "app", "-o", "json", office=office))["name"] == "app"


def test_what_is_not_there_is_exit_status_1(office: Office) -> None:
    for words in (["upstream", "show", "no"], ["backend", "drain", "app", "10.0.0.1:1"]):
        result = run(*words, office=office)
        assert result.exit_code == 1
        assert result.stdout == ""


def test_an_export_is_what_a_file_may_hold(office: Office) -> None:
    run("backend", "add", "images", "unix:/run/x.sock", "--weight", "3", "--backup", office=office)
    run("backend", "drain", "images", "one", office=office)

    result = run("upstream", "export", "images", office=office)

    assert tomllib.loads(result.stdout)["upstream"]["images"]["backends"] == [
        {"address": "127.0.0.1:9003", "name": "one", "weight": 3},
        {"address": "unix:/run/x.sock", "weight": 3, "backup": True},
    ]
    assert "one is draining" in result.stderr


def test_a_backend_lives_its_life(office: Office) -> None:
    address = "127.0.0.1:9009"

    def backend(word: str, *words: str) -> Result:
        return run("backend", word, "app", address, *words, office=office)

    added = backend("add", "--weight", "3", "--label", "zone=b", "--note", "more load")
    assert added.exit_code == 0
    assert added.stderr == f"added {address} (revision 3)\n"
    now = office.backend(address)
    assert (now["weight"], now["labels"]) == (3, {"zone": "b"})
    assert now["changed"]["by"]["note"] == "more load"
    assert "it is there already" in backend("add", "--weight", "4").stderr
    assert backend("add", "--new").exit_code == 5
    assert backend("set", "--weight", "5", "--label", "zone=").exit_code == 0
    assert office.backend(address)["labels"] == {}
    for word, state in (("drain", "draining"), ("disable", "disabled"), ("enable", "active")):
        assert backend(word).exit_code == 0
        assert office.backend(address)["state"] == state
    assert json_of(backend("remove", "-o", "json"))["routed"] is True
    assert backend("remove").exit_code == 1


def test_a_named_backend_can_move(office: Office) -> None:
    run("backend", "add", "app", "127.0.0.1:9009", "--name", "two", office=office)
    run("backend", "set", "app", "two", "--address", "127.0.0.1:9010", office=office)

    assert office.backend("two")["address"] == "127.0.0.1:9010"


def test_the_last_backend_is_kept_unless_forced(office: Office) -> None:
    run("backend", "remove", "app", "127.0.0.1:9001", office=office)

    refused = run("backend", "drain", "app", "127.0.0.1:9002", office=office)

    assert refused.exit_code == 5
    assert "without an active backend" in refused.stderr
    forced = run("backend", "drain", "app", "127.0.0.1:9002", "--force", office=office)
    assert forced.exit_code == 0


def test_a_write_can_be_conditional_and_repeated(office: Office) -> None:
    words = ("backend", "set", "app", "127.0.0.1:9001", "--weight", "3")
    assert run(*words, "--if-match", "99", office=office).exit_code == 5
    assert run(*words, "--if-match", "1", "--idempotency-key", "k", office=office).exit_code == 0
    assert run(*words, "--if-match", "1", "--idempotency-key", "k", office=office).exit_code == 0
    reused = run(*words[:-1], "4", "--idempotency-key", "k", office=office)
    assert reused.exit_code == 3


def test_a_drain_waits_for_the_last_request(office: Office) -> None:
    meters = office.desk.meters
    labels = {"upstream": "app", "backend": "127.0.0.1:9001"}
    slot = meters.gauge("lb_backend_active_requests", **labels)
    meters.view[slot] = 2
    words = ("backend", "drain", "app", "127.0.0.1:9001", "--wait")

    late = run(*words, "50ms", office=office)
    meters.view[slot] = 0
    done = run(*words, "5s", office=office)

    assert late.exit_code == 1
    assert "still has 2 requests" in late.stderr
    assert done.exit_code == 0


def test_a_write_that_workers_do_not_route_by_yet_says_so(office: Office) -> None:
    office.desk.routes_by_newest = False

    result = run("backend", "drain", "app", "127.0.0.1:9001", office=office)

    assert result.exit_code == 0
    assert "not every worker routes by it" in result.stderr


# --- Files ------------------------------------------------------------------------------------


def test_init_writes_a_file_that_is_good(tmp_path: Path) -> None:
    assert run("init").exit_code == 0
    assert run("check").exit_code == 0
    assert run("check").stdout.startswith("lb.toml: good")
    again = run("init")
    assert again.exit_code == 1
    assert "there already" in again.stderr
    assert run("init", "-").stdout == tmp_path.joinpath("lb.toml").read_text()
    assert run("init", "no/such/folder.toml").exit_code == 1


def test_a_missing_file_is_one_clear_line() -> None:
    result = run("check", "-c", "nowhere.toml")

    assert result.exit_code == 3
    assert "no such file" in result.stderr


def test_config_can_be_shown_and_explained(office: Office) -> None:
    path = str(office.desk.path)

    shown = run("config", "show", "-c", path).stdout

    assert tomllib.loads(shown)["upstream"]["app"]["panic"] == "30%"
    assert json_of(run("config", "show", "-c", path, "-o", "json"))["node"]["name"] == "a"
    assert "60s" in run("config", "doc", "listener.timeouts.idle").stdout
    assert "60s" in json_of(run("config", "doc", "listener.timeouts.idle", "-o", "json"))["text"]
    assert "folders" in run("config", "doc", "plugins").stdout
    assert json_of(run("config", "schema"))["properties"]["upstream"]
    assert json_of(run("config", "schema", "-o", "json")) == json_of(run("config", "schema"))
    assert run("config", "doc", "listener.timeouts.idel").exit_code != 0


def test_diff_compares_the_file_with_what_runs(office: Office) -> None:
    path = office.desk.path
    assert run("config", "diff", "-c", str(path), office=office).exit_code == 0
    path.write_text(path.read_text().replace("weight = 3", "weight = 4"))

    result = run("config", "diff", "-c", str(path), office=office)

    assert result.exit_code == 1
    assert "weight" in result.stdout


def test_sync_is_asked_for(office: Office) -> None:
    assert run("config", "sync", "--dry-run", office=office).exit_code == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (61, "1m 1s"), (90061, "1d 1h")]
)
def test_spans_are_written_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("2s", 2), ("1m30s", 90), ("0", 0), ("1.5h", 5400)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds
