"""
Who calls the admin API: by token, by the dashboard's cookie, or as somebody on this machine.

Only digests of tokens are here, and each is compared, in constant time, whichever matches: how
long an answer takes tells nothing. Whoever shows many different wrong tokens is guessing, and
gets no more answers for a while; a script with one that is out of date is not.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from lb.config.admin import Token
from lb.config.secrets import SECRET_LENGTH_MAX, digest_of

WRONG_TOKENS_MAX: Final = 20  # Different ones, from one address, within
WRONG_SECONDS: Final = 60.0  # so long from the first.
ADDRESSES_MAX: Final = 1024  # Whose wrong tokens are remembered; the oldest are forgotten.
TOLD_SECONDS: Final = 60.0  # From one line about wrong tokens to the next.
SUBJECT_MAX: Final = 200  # Characters of a certificate's subject that are kept.

log = logging.getLogger("lb.admin")


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Who makes a request. `token` is the token's name, empty for somebody on this machine.

    `subject` is that of the client's certificate, where one had to be shown.
    """

    role: str
    token: str = ""
    subject: str = ""
    upstreams: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        """As `by.token` names them: `ops`, `CN=alice,O=Example`, or both."""
        if self.token and self.subject:
            return f"{self.token} ({self.subject})"
        return self.token or self.subject


LOCAL: Final = Caller("admin")


def find_token(tokens: Sequence[Token], shown: str) -> Token | None:
    """Find the token that was shown; every one is compared."""
    if len(shown) > SECRET_LENGTH_MAX:
        return None
    digest, found = digest_of(shown), None
    for token in tokens:
        if hmac.compare_digest(token.token, digest):
            found = token
    return found


@dataclass(slots=True)
class _Wrong:
    since: float
    digests: set[bytes] = field(default_factory=set)


class WrongTokens:
    """Counts wrong tokens by address, and tells of them once a minute. `now` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._by_address: OrderedDict[str, _Wrong] = OrderedDict()
        self._untold = 0
        self._told = float("-inf")

    def too_many(self, address: str) -> float:
        """Return for how many seconds nobody is let in from there; 0 if anybody may try."""
        wrong = self._by_address.get(_neighbourhood(address))
        if wrong is None or len(wrong.digests) < WRONG_TOKENS_MAX:
            return 0.0
        return max(0.0, wrong.since + WRONG_SECONDS - self._now())

    def add(self, address: str, shown: str) -> None:
        """Take down a token that is none of ours."""
        now, key = self._now(), _neighbourhood(address)
        wrong = self._by_address.get(key)
        if wrong is None or now - wrong.since >= WRONG_SECONDS:
            self._by_address.pop(key, None)
            wrong = self._by_address[key] = _Wrong(now)
            if len(self._by_address) > ADDRESSES_MAX:
                self._by_address.popitem(last=False)
        if len(wrong.digests) < WRONG_TOKENS_MAX:
            wrong.digests.add(digest_of(shown[:SECRET_LENGTH_MAX]).encode()[-16:])
        self._tell(address, now)

    def _tell(self, address: str, now: float) -> None:
        self._untold += 1
        if now - self._told < TOLD_SECONDS:
            return
        log.warning(
            "admin: %s wrong token%s since the last such line, the latest from %s",
            *(self._untold, "" if self._untold == 1 else "s", address or "a unix socket"),
        )
        self._told, self._untold = now, 0


def _neighbourhood(address: str) -> str:
    """Return what stands for one caller: of IPv6 a whole /64, as one machine has as much."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), 64), strict=False).network_address)
