"""What is shipped: the wheel has everything inside the package, and runs where it is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from journeys.kit import ask, free_ports, until

ROOT = Path(__file__).resolve().parent.parent


def clean_environment() -> dict[str, str]:
    """Return an environment that leads to nothing of the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LB_")}
    environment.pop("PYTHONPATH", None)
    return environment


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout; return what it printed, fail with what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=clean_environment(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


def the_one(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return the_one(built, "accord_lb-*.whl")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Return the bin folder of a clean environment with nothing of ours but the wheel.

    What Accord depends on is lent by the environment of the tests, behind the wheel's own
    files: so this needs no network, and a file missing from the wheel is missed.
    """
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    site = the_one(folder, "lib/python*/site-packages")
    # addsitedir would run our own editable install's .pth too, after the wheel: no harm, but
    # a plain path entry leaves it out.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_package_plugins_and_sample(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    assert {"lb/__init__.py", "lb/py.typed", "lb/_conf/lb.toml", "lb/_plugins/README.md"} <= names
    assert any(name.startswith("lb/web/") and name.endswith(".html") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lb", next(top for top in tops if top.endswith(".dist-info"))}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_every_module_of_the_checkout_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    ours = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("lb/**/*.py")}
    assert ours <= names


def test_the_sdist_is_enough_to_build_from(built: Path, tmp_path: Path) -> None:
    with tarfile.open(the_one(built, "accord_lb-*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = the_one(tmp_path, "accord_lb-*")

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=unpacked)

    with (
        zipfile.ZipFile(the_one(tmp_path, "*.whl")) as again,
        zipfile.ZipFile(the_one(built, "*.whl")) as first,
    ):
        assert sorted(again.namelist()) == sorted(first.namelist())


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import lb; print(lb.__file__)", cwd=tmp_path)

    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_installed_command_writes_and_checks_a_file(installed: Path, tmp_path: Path) -> None:
    lb = installed / "lb"

    assert run(lb, "version", cwd=tmp_path).strip()
    run(lb, "init", cwd=tmp_path)
    assert (tmp_path / "lb.toml").exists()
    run(lb, "check", cwd=tmp_path)


@pytest.mark.parametrize("main", ["lb.supervisor", "lb.controller_process", "lb.worker", "lb.demo"])
def test_the_installed_processes_can_be_imported(
    installed: Path, tmp_path: Path, main: str
) -> None:
    run(installed / "python", "-c", f"import {main}", cwd=tmp_path)


def test_the_installed_demo_serves_and_stops_clean(installed: Path, tmp_path: Path) -> None:
    """Ctrl-C is a signal to the whole group; nothing is left of it, and it is no failure."""
    port, admin, toys = free_ports(3)
    words = ("--port", port, "--admin-port", admin, "--backend-port", toys)
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen(
            [str(installed / "lb"), "demo", *map(str, words)],
            cwd=tmp_path,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            until(lambda: ask(admin, "/readyz").status == 200, "the demo is ready")
            until(
                lambda: {ask(port).text.strip() for _ in range(6)} == {"a", "b", "c"},
                "all three toys answer",
            )
            assert "<html" in ask(admin, "/").text
            os.killpg(demo.pid, signal.SIGINT)
            assert demo.wait(20) == 0, (tmp_path / "said").read_text()
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGKILL)
                demo.wait()
            print((tmp_path / "said").read_text())  # Shown where this fails.
    until(lambda: not group_members(demo.pid), "nothing of it is left")
    assert "Traceback" not in (tmp_path / "said").read_text()


def group_members(group: int) -> list[int]:
    """Return processes of a process group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, of_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(of_group) == group and state != "Z":
                found.append(int(entry.name))
    return found
