"""The command `lb`: words to calls.

`tree` names all commands and loads only the one that is asked for, so that `lb status` is not
slowed by what `lb check` needs. Commands that talk to an instance use `client`; what they print
goes through `output`.
"""

from __future__ import annotations

from lb.cli.tree import lb


def main() -> None:
    """Run `lb` with the words on the command line, and exit as the contract says."""
    lb(prog_name="lb")
