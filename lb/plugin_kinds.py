"""
What a plugin's Config may hold, besides str, int, float, bool, lists, dicts and dataclasses.

Names of kinds that the config knows: here they are words, so that a worker needs nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Marked:
    """What sort of value it is, by the name that the config knows."""

    sort: str


Duration = Annotated[float, Marked("duration")]
"""Seconds; the file says "1.5s", "10m"."""
Size = Annotated[int, Marked("size")]
"""Bytes; the file says "64KiB"."""
Share = Annotated[float, Marked("share")]
"""0 to 1; the file says "20%"."""
Rate = Annotated[float, Marked("rate")]
"""Times a second; the file says "100/s", "30/m", "5000/h"."""
Secret = Annotated[str, Marked("secret")]
"""What is never shown: not by `lb config show`, not in a log."""
HeaderName = Annotated[str, Marked("header_name")]
"""The name of a header, in lower case."""
Network = Annotated[str, Marked("network")]
"""An address or a network of them, like "10.0.0.0/8"."""
UrlPath = Annotated[str, Marked("url_path")]
"""A path, like "/healthz"."""
