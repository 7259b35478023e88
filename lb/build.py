"""Which program this process runs: a digest of the package's own text, taken once at start.

A package replaced on disk makes the next child that starts another program than the
processes that run. They say `BUILD` to each other before anything else.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from lb import __version__


def build_of(folder: Path) -> str:
    """Digest every Python file below `folder`, names included."""
    digest = sha256(__version__.encode())
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_on_disk() -> str:
    """Digest the package as it lies on disk now, which may be another than runs."""
    return build_of(Path(__file__).parent)


BUILD = build_on_disk()
