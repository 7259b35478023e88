"""Whose fault it is: the client's, a backend's, the operator's, or ours.

Every error that may reach a person derives from `AccordError`, says what happened in one
line, and where there is a cure says that too. `retry` and the replies read the classes here
and nothing else.
"""

from __future__ import annotations


class AccordError(Exception):
    """Anything foreseeable. `hint` is the cure, in the imperative, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def brief(self) -> str:
        """The message where one line is all there is: in the log, in a table."""
        return self.message.partition("\n")[0]


class ClientError(AccordError):
    """The client sent what we cannot or will not pass on; `status` is the answer it gets."""

    def __init__(self, status: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


class BackendError(AccordError):
    """A backend refused, died, stalled or sent what cannot be passed on."""


class OperatorError(AccordError):
    """What was asked for cannot be done as things stand; `exit_status` is what `lb` returns."""

    exit_status = 1


class UsageError(OperatorError):
    """The words on the command line make no sense together."""

    exit_status = 2


class StartError(OperatorError):
    """This instance cannot start: a port, a data_dir or a permission is in the way."""

    exit_status = 7


class OurError(AccordError):
    """A broken promise inside Accord: a bug, logged with its traceback, never blamed on others."""
