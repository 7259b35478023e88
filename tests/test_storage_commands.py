"""`lb storage`: what it says of a log, whole, torn and damaged; and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lb.cli.tree import lb
from lb.control.filesystem import RealFileSystem
from lb.control.storage import Storage
from lb.raft.messages import SnapMeta, Snapshot
from raft.log_kit import CONF, GROUP, SMALL, entry, persist


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    storage = Storage.create(RealFileSystem(), str(tmp_path / "raft"), GROUP, CONF, SMALL)
    for index in range(1, 11):
        storage.write([persist(entry(index, data=b"secret" * 100), hard=(2, 7, index - 1))])
        storage.tend()
    storage.save_snapshot(Snapshot(SnapMeta(4, 1, CONF), b"state"))
    storage.close()
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(lb, ["storage", *words], prog_name="lb")


def contents(data_dir: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (data_dir / "raft").iterdir()}


def flip(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def test_verify_a_whole_log(data_dir: Path) -> None:
    before = contents(data_dir)

    done = run("verify", str(data_dir))

    assert (done.exit_code, done.stderr) == (0, "")
    assert "term 2, vote 7, commit 9\n" in done.stdout
    assert "entries 1 to 10, snapshot 4, 2 segments" in done.stdout
    assert done.stdout.endswith("whole\n")
    assert contents(data_dir) == before
    assert run("verify", str(data_dir / "raft")).stdout == done.stdout


def test_verify_says_it_in_json_too(data_dir: Path) -> None:
    plain = json.loads(run("verify", str(data_dir), "-o", "json").stdout)

    assert plain["ok"] is True
    assert (plain["member"], plain["term"], plain["commit"], plain["last"]) == (7, 2, 9, 10)
    assert plain["damage"] == []


def test_verify_names_file_and_offset(data_dir: Path) -> None:
    file = data_dir / "raft" / "wal-0000000001"
    flip(file, 1100)

    done = run("verify", str(data_dir))
    plain = json.loads(run("verify", str(data_dir), "-o", "json").stdout)

    assert done.exit_code == 1
    assert f"{file}, byte 1024:" in done.stderr
    assert "whole" not in done.stdout
    assert plain["damage"][0]["file"] == str(file)
    assert plain["damage"][0]["offset"] == 1024


def test_verify_looks_at_all_snapshots(data_dir: Path) -> None:
    file = data_dir / "raft" / "snap-0000000000000001-0000000000000003"
    file.write_bytes(b"damaged" * 20)

    done = run("verify", str(data_dir))

    assert done.exit_code == 1
    assert str(file) in done.stderr


def test_verify_takes_a_torn_tail_for_what_it_is(data_dir: Path) -> None:
    file = data_dir / "raft" / "wal-0000000002"
    file.write_bytes(file.read_bytes()[:2000])

    done = run("verify", str(data_dir))

    assert done.exit_code == 0
    assert "torn" in done.stderr
    assert done.stdout.endswith("whole\n")


def test_dump_shows_every_record_and_no_secret_unless_asked(data_dir: Path) -> None:
    done = run("dump", str(data_dir))

    assert done.exit_code == 0
    assert "record=hard term=2 vote=7 commit=9" in done.stdout
    assert "record=entry index=10 term=1 kind=normal bytes=600" in done.stdout
    assert "record=snapshot index=4 term=1 voters=[1, 2, 7] learners=[9]" in done.stdout
    assert "secret" not in done.stdout
    assert "secretsecret" in run("dump", str(data_dir), "--data").stdout
    plain = json.loads(run("dump", str(data_dir), "-o", "json").stdout)
    records = [r for s in plain["segments"] for f in s["frames"] for r in f["records"]]
    assert sum(record["record"] == "entry" for record in records) == 10


def test_dump_shows_what_stands_before_damage(data_dir: Path) -> None:
    flip(data_dir / "raft" / "wal-0000000001", 3000)

    done = run("dump", str(data_dir))
    plain = json.loads(run("dump", str(data_dir), "-o", "json").stdout)

    assert done.exit_code == 1
    assert "index=1 " in done.stdout
    assert "index=5 " not in done.stdout
    assert "byte" in done.stderr
    assert plain["damage"]["file"].endswith("wal-0000000001")


@pytest.mark.parametrize("command", ["verify", "dump"])
def test_where_there_is_no_log(command: str, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        done = run(command, str(place))
        assert done.exit_code == 1
        assert "there is no" in done.stderr
