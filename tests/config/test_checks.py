"""What shows only across tables, and what is allowed yet probably not meant."""

from __future__ import annotations

import pytest

from config.kit import SMALLEST, Folder

TWO = "[upstream.a]\n[upstream.b]\n"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["0:0 there is nothing in it to serve"]),
        ("# emptied", ["0:0 there is nothing in it to serve"]),
        (
            '[listener.web]\naddress = ":80"\n' + TWO,
            ['1:11 listener "web" has several upstreams to choose from, and no route'],
        ),
        ('[listener.web]\naddress = ":80"\nupstream = "a"\n' + TWO, []),
        ('[listener.web]\naddress = ":80"\n[route.x]\nupstream = "a"\n' + TWO, []),
        # Addresses taken twice.
        (
            '[listener.a]\naddress = ":80"\n[listener.b]\naddress = [":81", "0.0.0.0:80"]',
            ["4:19 0.0.0.0:80 is taken by [listener.a]"],
        ),
        ('[listener.a]\naddress = ["0.0.0.0:80", "[::]:80", "127.0.0.1:80"]', []),
        (
            '[listener.a]\naddress = ["[::1]:80", "[0::1]:80"]',
            ["2:24 [::1]:80 is taken by [listener.a]"],
        ),
        (
            '[listener.a]\naddress = "127.0.0.1:9900"',
            ["2:11 127.0.0.1:9900 is taken by [admin]"],
        ),
        (
            '[admin]\nprobe = ":81"\n[listener.a]\naddress = "[::]:81"',
            ["4:11 [::]:81 is taken by [admin] probe"],
        ),
        # Where operators come in.
        ('[admin]\naddress = "unix:/run/a.sock"\n' + TWO, []),
        ('[admin]\naddress = "[::1]:99"\n' + TWO, []),
        ('[admin]\nprobe = "0.0.0.0:99"\n' + TWO, []),
        (
            '[admin]\naddress = ":99"\n' + TWO,
            ["2:11 others could reach this: it needs TLS and tokens"],
        ),
        # Routes that nothing but their names could tell apart.
        (
            TWO + '[route.x]\npath = "/v1"\nupstream = "a"\n'
            '[route.y]\npath = "/v1/"\nupstream = "b"\nlistener = []',
            ['6:8 routes "x" and "y" match the same requests'],
        ),
        (
            TWO + '[route.x]\nhost = "a.de"\nupstream = "a"\n'
            '[route.y]\nhost = "A.de"\nupstream = "b"\nmethod = "GET"',
            [],
        ),
        # Inside one upstream.
        ('[upstream.a]\nbackends = ["a:1", "A:1"]', ['2:20 "a:1" is here twice']),
        (
            '[upstream.a]\nbackends = ["a:1", { address = "b:1", name = "a:1" }]',
            ['2:46 "a:1" is not a name'],
        ),
        (
            '[upstream.a]\nbackends = [{ address = "a:1", name = "x" },'
            ' { address = "b:1", name = "x" }]',
            ['2:46 "x" is here twice'],
        ),
        ('[upstream.a]\ndrain = { soft = "10m" }', ["2:9 force comes before soft"]),
        ("[upstream.a]\ndrain.force = '1s'", ["2:15 force comes before soft"]),
        (
            '[route.a]\nheader = { X-A = "1", x-a = "2" }\nupstream = "a"\n' + TWO,
            ['2:29 "x-a" is here twice'],
        ),
        # Answers of our own.
        ('[route.a]\nrespond = { status = 204, body = "x" }', ["2:34 a 204 has no body"]),
        ("[route.a]\nrespond = { status = 199 }", ["2:22 199 is out of range"]),
        ("[route.a]\nrespond = {}", ["2:1 an answer needs status"]),
        (
            '[route.a]\nrespond = { status = 200 }\nupstream = "a"\n' + TWO,
            ["2:11 a route has an upstream or an answer, not both"],
        ),
        ("[route.a]\nupstream = {}", ["2:12 these shares make 0%"]),
        ('[route.a]\nupstream = { a = "100%" }\n' + TWO, []),
    ],
)
def test_across_tables(folder: Folder, text: str, messages: list[str]) -> None:
    if messages:
        assert folder.messages(text) == messages
    else:
        folder.load(text)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (TWO, "there is no listener: no client is served"),
        (SMALLEST + TWO + "[route.x]\nupstream = 'a'", "upstream.b is used by no listener"),
        ('[listener.web]\naddress = ":80"', "listener.web has no upstream to go to"),
        (SMALLEST + "health = {}", "upstream.app.health has neither path nor type"),
        (
            SMALLEST.replace("[upstream", "limits.connections = 3\n[upstream")
            + "[node]\nworkers = 4",
            "listener.web.limits.connections is 3, less than the 4 workers",
        ),
    ],
)
def test_warnings(folder: Folder, text: str, warning: str) -> None:
    assert any(each.startswith(warning) for each in folder.load(text).warnings)
