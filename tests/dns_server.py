"""A DNS server on the loopback: what it says is changed at will, and what it was asked is kept."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

SERVFAIL, NXDOMAIN = "SERVFAIL", "NXDOMAIN"


class DnsServer:
    """
    Answers over UDP from `records`, by name and type: `{("app.test.", "A"): ["127.0.0.1"]}`.

    A name without any record is NXDOMAIN, one of another type an empty answer. `trouble`: an
    rcode for every question, or "silence". `ttl` is every record's.
    """

    def __init__(self, ttl: int = 1) -> None:
        self.ttl = ttl
        self.records: dict[tuple[str, str], list[str]] = {}
        self.trouble = ""
        self.asked: Counter[tuple[str, str]] = Counter()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self._sock.getsockname())  # The last one, see `_serve`.
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        while True:
            data, sender = self._sock.recvfrom(4096)
            if not data:
                return
            reply = self._reply(dns.message.from_wire(data))
            if reply is not None:
                self._sock.sendto(reply.to_wire(), sender)

    def _reply(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        name, kind = question.name.to_text().lower(), question.rdtype.name
        self.asked[name, kind] += 1
        if self.trouble == "silence":
            return None
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if self.trouble:
            reply.set_rcode(dns.rcode.from_text(self.trouble))
        elif records := self.records.get((name, kind)):
            reply.answer.append(dns.rrset.from_text(name, self.ttl, "IN", kind, *records))
        elif not any(each == name for each, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply
