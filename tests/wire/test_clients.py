"""Real clients: curl in its many ways, requests, httpx, OpenSSL's, WebSockets, a browser."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import requests
import websockets
from playwright.sync_api import expect, sync_playwright
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from lb.model import Endpoint
from wire.clients_kit import DATA, everything
from wire.kit import DEADLINE_S, LISTENER, Proxy, until
from wire.tls_kit import CLIENT, MATERIAL, REQUIRE, TLS

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
SIZE: Final = len(DATA)


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: it comes with `make test`")
    return path


def curl(proxy: Proxy, *words: str, data: bytes = b"", scheme: str = "http") -> bytes:
    """Run curl; `{url}` in its words is where the proxy is."""
    url = f"{scheme}://127.0.0.1:{proxy.port}"
    command = [
        program("curl"),
        "-sS",
        "--max-time",
        "10",
        *(word.replace("{url}", url) for word in words),
    ]
    done = subprocess.run(
        command, input=data, capture_output=True, check=False, timeout=DEADLINE_S * 2
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


Verdict = Callable[[bytes], Any]


def status(code: int) -> Verdict:
    return lambda out: out.startswith(b"HTTP/1.1 %d " % code)


def report(**wanted: object) -> Verdict:
    """Judge what the backend says that it was asked."""

    def judge(out: bytes) -> bool:
        said = json.loads(out)
        fields = {name.lower(): value for name, value in said["fields"].items()}
        return all(
            (said | fields).get(name.replace("_", "-"), said.get(name)) == value
            for name, value in wanted.items()
        )

    return judge


def exactly(octets: bytes) -> Verdict:
    return lambda out: out == octets


@pytest.fixture(scope="module")
def plain() -> Iterator[Proxy]:
    with everything() as proxy:
        yield proxy


CURL: Final[dict[str, tuple[list[str], bytes, Verdict]]] = {
    "GET": (["{url}/x?y=%20#z"], b"", report(method="GET", target="/x?y=%20")),
    "-I": (["-I", "{url}/bytes"], b"", lambda out: b"\r\nContent-Length: %d\r\n" % SIZE in out),
    "-i": (["-i", "{url}/"], b"", status(200)),
    "-X DELETE": (["-X", "DELETE", "{url}/x"], b"", report(method="DELETE")),
    "-X OPTIONS *": (["-X", "OPTIONS", "--request-target", "*", "{url}"], b"",
                     report(method="OPTIONS", target="*")),
    "--request-target": (["--request-target", "http://b.example/q", "{url}"], b"",
                         report(target="/q", host="b.example")),
    "--path-as-is": (["--path-as-is", "{url}/a/../b"], b"", report(target="/a/../b")),
    "-d": (["-d", "a=b", "{url}/post"], b"", report(method="POST", size=3)),
    "-d --get": (["-G", "-d", "a=b", "{url}/get"], b"", report(method="GET", target="/get?a=b")),
    "--data-binary @-": (["--data-binary", "@-", "{url}/echo"], DATA, exactly(DATA)),
    "--json PATCH": (["-X", "PATCH", "--json", "{}", "{url}/p"], b"",
                     report(method="PATCH", size=2, content_type="application/json")),
    "-F": (["-F", "file=@-;filename=a", "{url}/p"], b"some", report(method="POST")),
    "-T -": (["-T", "-", "{url}/echo"], DATA, exactly(DATA)),
    "-T - Expect": (["-T", "-", "-H", "Expect: 100-continue", "{url}/echo"], DATA, exactly(DATA)),
    "-d Expect": (["-d", "a", "-H", "Expect: 100-continue", "{url}/echo"], b"", exactly(b"a")),
    "-T . (unbuffered)": (["-T", ".", "{url}/echo"], b"piece", exactly(b"piece")),
    "-H chunked": (["-H", "Transfer-Encoding: chunked", "-d", "abc", "{url}/echo"],
                   b"", exactly(b"abc")),
    "-r first": (["-r", "0-99", "{url}/bytes"], b"", exactly(DATA[:100])),
    "-r last": (["-r", "-10", "{url}/bytes"], b"", exactly(DATA[-10:])),
    "-r many": (["-r", "0-1,3-4", "{url}/bytes"], b"", exactly(DATA)),
    "-C": (["-C", "1000", "{url}/bytes"], b"", exactly(DATA[1000:])),
    "-L": (["-L", "{url}/redirect"], b"", exactly(DATA)),
    "--compressed": (["--compressed", "{url}/gzip"], b"", exactly(DATA)),
    "--tr-encoding": (["--tr-encoding", "{url}/chunks"], b"", exactly(DATA)),
    "--raw": (["--raw", "{url}/chunks"], b"", lambda out: out.endswith(b"\r\n0\r\n\r\n")),
    "chunks": (["{url}/chunks"], b"", exactly(DATA)),
    "to the end": (["{url}/to_the_end"], b"", exactly(DATA)),
    "-0": (["-0", "{url}/chunks"], b"", exactly(DATA)),
    "-0 -i": (["-0", "-i", "{url}/"], b"", lambda out: b"\r\nConnection: close\r\n" in out),
    "--http2": (["--http2", "-i", "{url}/"], b"", status(200)),
    "--no-keepalive": (["-H", "Connection: close", "-i", "{url}/"], b"",
                       lambda out: b"\r\nConnection: close\r\n" in out),
    "keep-alive": (["-w", "%{num_connects}", *["-o", "/dev/null", "{url}/"] * 2],
                   b"", exactly(b"10")),
    "-Z": (["-Z", "-o", "/dev/null", "-w", "%{http_code} ", *["{url}/bytes", "-o", "/dev/null"] * 8,
            "{url}/bytes"], b"", exactly(b"200 " * 9)),
    "--next": (["{url}/bytes", "-r", "0-0", "--next", "-d", "b", "{url}/echo"],
               b"", exactly(b"\0b")),
    "-u": (["-u", "me:secret", "{url}/basic"], b"", report(target="/basic")),
    "--anyauth": (["--anyauth", "-u", "me:secret", "{url}/basic"], b"", report(target="/basic")),
    "-b": (["-b", "a=b", "{url}/cookie"], b"", exactly(b"a=b")),
    "-c": (["-c", "-", "-o", "/dev/null", "{url}/cookie"], b"", lambda out: b"taste\tsweet" in out),
    "-z": (["-z", "1 Jan 2025", "-i", "{url}/etag"], b"", status(304)),
    "If-None-Match": (["-H", 'If-None-Match: "1"', "-i", "{url}/etag"], b"", status(304)),
    "-A -e": (["-A", "me", "-e", "http://x/", "{url}/"], b"", report(user_agent="me", referer="http://x/")),
    "-H empty": (["-H", "X-Empty;", "{url}/"], b"", report(x_empty="")),
    "--limit-rate": (["--limit-rate", "4M", "{url}/bytes"], b"", exactly(DATA)),
    "--ignore-content-length": (
        ["--ignore-content-length", "-H", "Connection: close", "{url}/bytes"], b"", exactly(DATA)),
    "--tcp-fastopen": (["--tcp-nodelay", "--tcp-fastopen", "{url}/bytes"], b"", exactly(DATA)),
}  # fmt: skip


@pytest.mark.parametrize("name", CURL)
def test_curl(plain: Proxy, name: str) -> None:
    words, data, verdict = CURL[name]
    out = curl(plain, *words, data=data)
    assert verdict(out), out[:300]


def test_curl_with_a_proxy_header() -> None:
    listener = replace(LISTENER, proxy_protocol=True, trusted_proxies=("127.0.0.0/8",))
    with everything(listener) as proxy:
        out = curl(proxy, "--haproxy-protocol", "{url}/")
        assert report(x_forwarded_for="127.0.0.1")(out)


@pytest.mark.parametrize(
    "words",
    [[], ["--tlsv1.3"], ["--tls-max", "1.2"], ["--http2"], ["--http1.1"], ["--no-alpn"],
     ["--no-sessionid"], ["--haproxy-protocol"]],
)  # fmt: skip
def test_curl_over_tls(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(MATERIAL["ca"])
    listener = replace(LISTENER, tls=TLS)
    if "--haproxy-protocol" in words:
        listener = replace(listener, proxy_protocol=True, trusted_proxies=("127.0.0.0/8",))
    with everything(listener) as proxy:
        name = f"a.example:{proxy.port}"
        out = curl(proxy, *words, "--cacert", str(tmp_path / "ca.pem"),
                   "--resolve", f"{name}:127.0.0.1", "-w", "%{http_version}",
                   f"https://{name}/bytes")  # fmt: skip
        assert out == DATA + b"1.1"


def test_curl_with_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(MATERIAL["ca"])
    (tmp_path / "me.pem").write_bytes(CLIENT.private_key_and_cert_chain_pem.bytes())
    with everything(replace(LISTENER, tls=REQUIRE)) as proxy:
        name = f"a.example:{proxy.port}"
        out = curl(proxy, "--cacert", str(tmp_path / "ca.pem"), "--cert", str(tmp_path / "me.pem"),
                   "--resolve", f"{name}:127.0.0.1", f"https://{name}/")  # fmt: skip
        assert report(x_forwarded_proto="https")(out)
        assert b"X-Client-Cert-Subject" in out


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client_resumes(version: str, tmp_path: Path) -> None:
    """It shakes hands, asks, and comes back with the session that it was given."""
    (tmp_path / "ca.pem").write_bytes(MATERIAL["ca"])
    session = str(tmp_path / "session")
    asked = b"GET /etag HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"

    def s_client(*words: str) -> bytes:
        command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{proxy.port}", "-quiet",
                   "-servername", "a.example", "-verify_return_error", "-verify_hostname",
                   "a.example", "-CAfile", str(tmp_path / "ca.pem"), version, "-ign_eof",
                   "-alpn", "h2,http/1.1", *words]  # fmt: skip
        done = subprocess.run(
            command, input=asked, capture_output=True, check=True, timeout=DEADLINE_S
        )
        return done.stdout

    with everything(replace(LISTENER, tls=TLS)) as proxy:
        assert s_client("-sess_out", session).endswith(b"\r\n\r\nnew")
        assert s_client("-sess_in", session).endswith(b"\r\n\r\nnew")
        counted = proxy.reading.refresh().by("lb_tls_handshakes_total", "result")
        assert counted == {("ok",): 1, ("resumed",): 1}


def test_requests(plain: Proxy) -> None:
    url = f"http://127.0.0.1:{plain.port}"
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(f"{url}/redirect", timeout=DEADLINE_S).content == DATA
        assert session.get(f"{url}/gzip", timeout=DEADLINE_S).content == DATA
        assert session.post(f"{url}/echo", data=DATA, timeout=DEADLINE_S).content == DATA
        pieces = (DATA[at : at + 5000] for at in range(0, SIZE, 5000))
        assert session.post(f"{url}/echo", data=pieces, timeout=DEADLINE_S).content == DATA
        sent = session.post(f"{url}/p", files={"file": ("a", DATA)}, timeout=DEADLINE_S).json()
        assert sent["size"] > SIZE
        with session.get(f"{url}/chunks", stream=True, timeout=DEADLINE_S) as response:
            assert b"".join(response.iter_content(1000)) == DATA
        session.get(f"{url}/cookie", timeout=DEADLINE_S)
        assert session.get(f"{url}/cookie", timeout=DEADLINE_S).text == "taste=sweet"
        assert session.get(f"{url}/basic", auth=("me", "secret"), timeout=DEADLINE_S).ok


def test_httpx(plain: Proxy) -> None:
    url = f"http://127.0.0.1:{plain.port}"

    async def ask() -> list[bytes]:
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S, base_url=url) as client:
            paths = ["/bytes", "/gzip", "/chunks", "/to_the_end"] * 5
            return [each.content for each in await asyncio.gather(*map(client.get, paths))]

    assert asyncio.run(ask()) == [DATA] * 20
    with httpx.Client(trust_env=False, timeout=DEADLINE_S, base_url=url) as client:
        assert client.put("/echo", content=iter([DATA, b"more"])).content == DATA + b"more"
        with client.stream("GET", "/chunks") as response:
            assert b"".join(response.iter_bytes()) == DATA


# --- WebSockets -----------------------------------------------------------------------------------

PAGE: Final = b"""<!doctype html><title>waiting</title><p id=out></p><script>
const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws");
const got = [];
socket.onopen = () => { socket.send("hello"); socket.send(new Uint8Array([1, 2, 3])); };
socket.onmessage = event => {
  got.push(event.data instanceof Blob ? event.data.size : event.data);
  if (got.length === 2) socket.close(1000, "done");
};
socket.onclose = async event => {
  const answer = await (await fetch("/text")).text();
  document.getElementById("out").textContent =
    [...got, event.code, event.reason, event.wasClean, answer].join(" ");
};
</script>"""


def page_or_upgrade(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == "/ws":
        return None
    body = PAGE if request.path == "/" else b"some text"
    kind = "text/html" if request.path == "/" else "text/plain"
    headers = Headers(
        {"Content-Length": str(len(body)), "Content-Type": kind, "Connection": "close"}
    )
    return Response(HTTPStatus.OK, "OK", headers, body)


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextmanager
def sockets() -> Iterator[Proxy]:
    with serve(echo, "127.0.0.1", 0, process_request=page_or_upgrade) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"127.0.0.1:{server.socket.getsockname()[1]}"
        try:
            with Proxy([Endpoint(address, address)]) as proxy:
                yield proxy
                until(lambda: proxy.clients == 0, "every client gone")
                assert (proxy.running, proxy.busy) == (0, 0)
        finally:
            server.shutdown()
            thread.join(DEADLINE_S)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_websockets(compression: str | None) -> None:
    with sockets() as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws"
        with connect(url, compression=compression, max_size=None, proxy=None) as socket:
            for message in ("hello", b"\0\1\2", "x" * 1_000_000, b""):
                socket.send(message)
                assert socket.recv(DEADLINE_S) == message
            socket.send(iter(["in ", "frag", "ments"]))
            assert socket.recv(DEADLINE_S) == "in fragments"
            assert socket.ping(b"p").wait(DEADLINE_S)
            socket.close(4321, "as you like")
        assert socket.close_code == 4321


def test_websockets_closed_by_a_stop() -> None:
    with sockets() as proxy:
        with connect(f"ws://127.0.0.1:{proxy.port}/ws", proxy=None) as socket:
            socket.send("hello")
            socket.recv(DEADLINE_S)
            proxy.call(lambda: proxy.listeners.drain(0.0))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                socket.recv(DEADLINE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_a_page_with_a_websocket_in_a_browser() -> None:
    with sockets() as proxy, sync_playwright() as playwright:
        alone = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=alone)
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{proxy.port}/")
        shown = "hello 3 1000 done true some text"
        expect(page.locator("#out")).to_have_text(shown, timeout=DEADLINE_S * 2000)
        browser.close()
        assert not errors
