"""TLS connections one after the other, as compare.py counts them; README.md says how to read that.

Each is made, asks once, and ends: a full handshake each time, or one that resumes the session of
the connection before. A few at a time, so that the server never waits for us.

    python bench/handshakes.py PORT full|resumed SECONDS
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time

THREADS = 8
REQUEST = b"GET /1k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
TIMEOUT_S = 10.0


class Asker(threading.Thread):
    """Makes connections until a point in time."""

    def __init__(self, port: int, until: float, *, resume: bool) -> None:
        super().__init__()
        self.done = 0
        self.resumed = 0
        self.errors = 0
        self._port = port
        self._until = until
        self._resume = resume
        self._session: ssl.SSLSession | None = None
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3

    def run(self) -> None:
        """Ask, and ask again."""
        while time.monotonic() < self._until:
            try:
                self._ask()
                self.done += 1
            except OSError:
                self.errors += 1

    def _ask(self) -> None:
        with (
            socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S) as raw,
            self._context.wrap_socket(
                raw, server_hostname="localhost", session=self._session
            ) as sock,
        ):
            self.resumed += bool(sock.session_reused)
            sock.sendall(REQUEST)
            while sock.recv(65536):
                pass
            if self._resume:
                self._session = sock.session  # A ticket comes after the handshake.


def main() -> None:
    """Run them, and print what they did as a line of JSON."""
    port, kind, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    start = time.monotonic()
    askers = [Asker(port, start + seconds, resume=kind == "resumed") for _ in range(THREADS)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    said = {
        "requests": sum(asker.done for asker in askers),
        "resumed": sum(asker.resumed for asker in askers),
        "errors": sum(asker.errors for asker in askers),
        "us": int((time.monotonic() - start) * 1e6),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
