"""Files that are written whole or not at all, for their owner's eyes."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from lb.errors import OperatorError

OWNER_ONLY = 0o600


class ExistsError(OperatorError):
    """A file that nobody asked to replace is there already."""


def save(path: str | Path, content: bytes, mode: int = OWNER_ONLY) -> None:
    """Write a file, replacing it in one step: nobody ever finds half of it."""
    target = Path(path)
    try:
        number, beside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(number, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except OSError:
            with suppress(OSError):
                os.unlink(beside)
            raise
    except OSError as error:
        raise OperatorError(f"{target} cannot be written: {error.strerror}") from None
