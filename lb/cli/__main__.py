"""`python -m lb.cli` is `lb`, where no script is installed."""

from __future__ import annotations

from lb.cli import main

main()
