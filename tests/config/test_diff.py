"""What changed, in words."""

from __future__ import annotations

import pytest

from config.kit import SMALLEST, Folder
from lb.config.diff import diff

ROUTE = '[route.a]\nupstream = "app"\n'


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("", "", []),
        ("", ROUTE, ["route.a added"]),
        (ROUTE, "", ["route.a removed"]),
        (ROUTE, ROUTE + 'path = "/v1"\n', ['route.a.path set to "/v1"']),
        (ROUTE + 'path = "/v1"\n', ROUTE, ["route.a.path no longer set"]),
        (
            ROUTE,
            "[route.a]\nupstream = { app = '100%' }",
            ['route.a.upstream "app" -> { app = "100%" }'],
        ),
        ("[upstream.b]\n", "[upstream.b]\npanic = '50%'", ['upstream.b.panic "30%" -> "50%"']),
        (
            "[upstream.b]\n",
            "[upstream.b]\nhealth = { path = '/h' }\nretries.attempts = 3",
            [None, "upstream.b.retries.attempts 2 -> 3"],
        ),
        (
            "[upstream.b]\nbackends = ['a:1', 'b:1', { address = 'c:1', name = 'n' }]",
            "[upstream.b]\nbackends = ['a:1', { address = 'c:2', name = 'n', weight = 3 }, 'd:1']",
            [
                "upstream.b.backends - b:1",
                'upstream.b.backends n: address "c:1" -> "c:2"',
                "upstream.b.backends n: weight 1 -> 3",
                "upstream.b.backends + d:1",
            ],
        ),
        (
            "[upstream.b]\nbackends = ['a:1']",
            "[upstream.b]",
            ["upstream.b.backends no longer set: the file says nothing of them"],
        ),
        ("[upstream.b]", "[upstream.b]\nbackends = []", ["upstream.b.backends set: 0 of them"]),
        ("", "[node]\ngrace = '1s'", ['node.grace "5s" -> "1s"']),
    ],
)
def test_changes(folder: Folder, before: str, after: str, changed: list[str | None]) -> None:
    old = folder.load(f"{SMALLEST}{before}").config
    new = folder.load(f"{SMALLEST}{after}").config
    got = diff(old, new)

    assert got.needs_restart == []
    assert len(got.changed) == len(changed)
    assert all(want in (None, have) for want, have in zip(changed, got.changed, strict=True))
    assert bool(got) == bool(changed)


def test_a_version(folder: Folder) -> None:
    new = folder.load("version = 2\n" + SMALLEST).config

    assert diff(folder.load(SMALLEST).config, new).changed == ["version set to 2"]


def test_what_needs_a_restart(folder: Folder) -> None:
    old = folder.load("[node]\nname = 'a'\n" + SMALLEST).config
    new = folder.load(
        "[node]\nname = 'b'\nworkers = 2\ndata_dir = '/x'\ndrain = '1s'\n"
        "[admin]\naddress = '127.0.0.1:99'\n" + SMALLEST
    ).config
    changes = diff(old, new)

    assert changes.as_plain() == {
        "changed": ['node.drain "30s" -> "1s"'],
        "needs_restart": [
            'node.name "a" -> "b"',
            f'node.data_dir "{folder.path}/lb-data" -> "/x"',
            'node.workers "auto" -> 2',
            'admin.address "127.0.0.1:9900" -> "127.0.0.1:99"',
        ],
    }
