"""`lb plugin check` tries every plugin that comes with us, those with connections too."""

from __future__ import annotations

from pathlib import Path

import bcrypt
import pytest
from click.testing import CliRunner

from lb.cli.tree import lb

FOLDER = Path(__file__).parents[2] / "plugins"
HASH = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()
NOBODY = 'url = "http://127.0.0.1:1/"'
RAISES = """
from lb.plugin import Plugin


class Raises(Plugin[None]):
    name = "raises"

    def on_request(self, req):
        raise RuntimeError("no such luck")
"""


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("basic_auth", f'users = {{ a = "{HASH}" }}'),
        ("compress", ""),
        ("cors", 'origins = "https://a.example"'),
        ("fault", 'abort = "50%"\ndelay = "50%"\nwait = "1ms"'),
        ("forward_auth", NOBODY),
        ("headers", 'response = { set = { x-a = "{id} {backend}" } }'),
        ("ip_filter", 'deny = "10.0.0.0/8"'),
        ("jwt", 'algorithms = "RS256"\njwks_url = "http://127.0.0.1:1/"'),
        ("maintenance", ""),
        ("mirror", NOBODY),
        ("rate_limit", 'rate = "10/s"'),
        ("redirect", "https = true"),
        ("request_id", 'accept = true\nform = "uuid"'),
        ("rewrite", 'strip = "/a"\nadd = "/b"'),
        ("sticky", 'secret = "a secret of some length"'),
    ],
)
def test_those_that_come_with_us_are_good(name: str, settings: str) -> None:
    command = ["plugin", "check", str(FOLDER / f"{name}.py"), "--settings", settings]

    done = CliRunner().invoke(lb, command)

    assert done.exit_code == 0, done.output
    assert f"plugin {name}: good" in done.output


def test_whatever_one_raises_is_said_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)

    done = CliRunner().invoke(lb, ["plugin", "check", str(file)])

    assert done.exit_code == 3, done.output
    assert "no such luck" in done.output
    assert f"{file}:9" in done.output
    assert "Traceback" not in done.output
