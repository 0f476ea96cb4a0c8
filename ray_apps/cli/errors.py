"""Errors of the commands: each ends `toque` with its message on standard error and its exit code."""

from http import HTTPStatus

FAILED, WRONG, INTERRUPTED = 1, 2, 130  # exit codes; the last after Ctrl-C


class CommandError(Exception):
    """A command that did not do what was asked; the message says why."""

    exit_code = FAILED


class Failed(CommandError):  # noqa: N818  # what came of a command
    """A command that did not reach its end."""


class UsageError(CommandError):
    """A command line that asks for something that cannot be."""

    exit_code = WRONG


class Unreachable(CommandError):  # noqa: N818  # an answer, not an error of ours, as the next
    """Nothing answers at the platform's address, or none is known."""


class Refused(CommandError):  # noqa: N818
    """The platform answered with a problem; exit code 2 if the request cannot be, whatever is stored there."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
            self.exit_code = WRONG
