"""Plugins that read and write heads, in a whole daemon: what clients and backends get of them."""

from __future__ import annotations

import time

import pytest

from journeys.conftest import Make
from journeys.kit import Backend, Daemon, free_ports, until
from journeys.test_plugins_included import Recorder, clean, recording

ASKED = "Access-Control-Request-Method"


def config_with(address: str, routes: dict[str, str], everywhere: str = "") -> str:
    """Write a config with a route for each of these paths, and the plugins of each."""
    text = f"[plugins]\nuse = [{everywhere}]\n" if everywhere else ""
    text += '[listener.web]\naddress = "127.0.0.1:{port}"\n[upstream.app]\n'
    text += f'backends = ["{address}"]\n'
    for path, plugins in routes.items():
        text += f'[route.{path.strip("/") or "rest"}]\npath = "{path}"\nupstream = "app"\n'
        text += f"plugins = [{plugins}]\n"
    return text


def test_paths_fields_and_ids(daemon: Make) -> None:
    with recording(Recorder(headers={"Server": "app"}, body=b"in")) as app:
        made = daemon(
            config_with(
                app.address,
                {
                    "/api": '{ use = "rewrite", strip = "/api", add = "/v2" }',
                    "/old": '{ use = "redirect", match = "^/old(.*)", to = "/new\\\\1" }',
                    "/plain": '{ use = "redirect", https = true }',
                    "/fields": '{ use = "headers", request = { set = { X-Who = "{client}" } },'
                    ' response = { remove = "server", set = { X-Id = "{id}" } } }',
                },
                '{ use = "request_id", accept = true, form = "uuid" }',
            )
        ).start()

        assert made.ask("/%61pi/x?y=1").status == 200
        assert app.asked[-1].path == "/v2/x?y=1"
        assert made.ask("/old/1").headers["Location"] == "/new/1"
        assert made.ask("/old//evil.example").headers["Location"] == "/new/evil.example"
        assert made.ask("/plain/a?b").headers["Location"] == "https://127.0.0.1/plain/a?b"
        answer = made.ask("/fields", fields={"X-Request-ID": "mine-mine-mine", "X-Who": "me"})
        assert answer.headers["X-Id"] == answer.headers["X-Request-ID"] == "mine-mine-mine"
        assert "Server" not in answer.headers
        assert app.asked[-1].headers.get_all("X-Who") == ["127.0.0.1"]
        assert app.asked[-1].headers.get_all("X-Request-ID") == ["mine-mine-mine"]
        assert len(made.ask("/nowhere").headers["X-Request-ID"]) == 36, "of a 404 too"
        clean(made)


def test_browsers_are_told_of_errors_too(daemon: Make) -> None:
    (nobody,) = free_ports(1)
    with recording(Recorder(headers={"Access-Control-Allow-Origin": "*"}, body=b"in")) as app:
        cors = '{ use = "cors", origins = "https://a.example", credentials = true }'
        text = config_with(app.address, {"/": cors})
        text += f'[upstream.gone]\nbackends = ["127.0.0.1:{nobody}"]\n'
        text += f'[route.gone]\npath = "/gone"\nupstream = "gone"\nplugins = [{cors}]\n'
        made = daemon(text).start()
        friend, stranger = {"Origin": "https://a.example"}, {"Origin": "https://b.example"}

        preflight = made.ask("/", "OPTIONS", fields={**friend, ASKED: "PUT"})
        assert (preflight.status, app.asked) == (204, [])
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert made.ask("/", "OPTIONS", fields={**stranger, ASKED: "PUT"}).status == 403
        for path, status in (("/", 200), ("/gone", 502)):
            answer = made.ask(path, fields=friend)
            assert answer.status == status
            assert answer.headers.get_all("Access-Control-Allow-Origin") == ["https://a.example"]
            assert answer.headers.get_all("Vary") == ["Origin"]
        answer = made.ask("/", fields=stranger)
        assert answer.headers.get_all("Access-Control-Allow-Origin") is None
        assert answer.headers.get_all("Vary") == ["Origin"]
        clean(made)


def test_closed_kept_out_and_harmed(daemon: Make, backends: list[Backend]) -> None:
    made = daemon("")
    switch = made.folder / "closed"
    made.write(
        config_with(
            backends[0].address,
            {
                "/shop": f'{{ use = "maintenance", switch = "{switch}", open = "/shop/ok" }}',
                "/inside": '{ use = "ip_filter", deny = "127.0.0.0/8", status = 404 }',
                "/slow": '{ use = "fault", delay = "100%", wait = "300ms", abort = "100%" }',
                "/asked": '{ use = "fault", header = "x-fault" }',
            },
        )
    )
    made.start()

    assert made.ask("/shop").status == 200
    switch.touch()
    until(lambda: [made.ask("/shop").status for _ in range(8)] == [503] * 8, "both to close")
    answer = made.ask("/shop")
    assert (answer.headers["Retry-After"], answer.headers["Cache-Control"]) == ("60", "no-store")
    assert made.ask("/shop/ok").status == 200
    switch.unlink()
    until(lambda: [made.ask("/shop").status for _ in range(8)] == [200] * 8, "both to open")

    assert made.ask("/inside").status == 404
    began = time.monotonic()
    assert made.ask("/slow").status == 503
    assert time.monotonic() - began >= 0.3
    statuses = [made.ask("/asked", fields={"X-Fault": word}).status for word in ("abort", "no")]
    assert statuses == [503, 200]
    assert "maintenance: closed" in made.log()
    clean(made)


def cookie_from(made: Daemon) -> tuple[str, str]:
    answer = made.ask("/")
    return answer.text, answer.headers["Set-Cookie"].partition(";")[0]


def test_a_client_stays_where_it_is(daemon: Make, backends: list[Backend]) -> None:
    addresses = ", ".join(f'"{backend.address}"' for backend in backends)
    text = (
        '[listener.web]\naddress = "127.0.0.1:{port}"\nupstream = "app"\n'
        f"[upstream.app]\nbackends = [{addresses}]\n"
        '[route.all]\nupstream = "app"\n'
        'plugins = [{ use = "sticky", secret = "a secret of some length" }]\n'
    )
    made = daemon(text).start()
    cookies = dict(cookie_from(made) for _ in range(8))
    assert set(cookies) == {"a", "b"}
    for name, cookie in cookies.items():
        answers = [made.ask("/", fields={"Cookie": cookie}) for _ in range(12)]
        assert {answer.text for answer in answers} == {name}
        assert not any("Set-Cookie" in answer.headers for answer in answers)

    leaving = f"/v1/upstreams/app/backends/{backends[0].address}"
    done = made.admin(leaving, "PATCH", body={"state": "draining"})
    assert done.status == 200, done.text

    def moved() -> bool:
        answer = made.ask("/", fields={"Cookie": cookies["a"]})
        return answer.text == "b" and answer.headers["Set-Cookie"].startswith(cookies["b"])

    until(moved, "another backend, and its cookie")
    clean(made)


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        ('{ use = "maintenance", page = "/no/such/page" }', "page /no/such/page cannot be read"),
        ('{ use = "redirect", to = "https://a.example{query}" }', "choose the host"),
        ('{ use = "headers", request = { set = { Host = "a" } } }', "written by the load balancer"),
    ],
)
def test_settings_that_cannot_be_refuse_a_reload(
    daemon: Make, backends: list[Backend], plugin: str, says: str
) -> None:
    made = daemon(config_with(backends[0].address, {"/": ""})).start()

    made.write(config_with(backends[0].address, {"/": plugin}))
    answer = made.admin("/v1/config/reload", "POST", body={})

    assert answer.status in (400, 409, 422)
    assert says in answer.text
    assert "Traceback" not in answer.text
    assert made.ask("/").status == 200, "the old one runs on"
    clean(made)
