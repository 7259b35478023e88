"""
The controller's process from its first line: `python -m lb.controller_process`.

It begins as what reads configurations, forks its parser off, and has it read the file while it
imports all that a controller is.
"""

from __future__ import annotations

import sys

from lb import child, daemonlog
from lb.config import parse


def main() -> int:
    """Run the controller."""
    words = child.parse_words(fd=int, config=str)
    parser = parse.forked()
    parse.ask(parser.stdin, words.config)
    # Only now: all this would be in the parser as well, and the parser would begin later.
    from lb.controller import work  # noqa: PLC0415

    daemonlog.start("controller")
    return child.main(lambda: work(words.config, words.fd, parser))


if __name__ == "__main__":
    sys.exit(main())
