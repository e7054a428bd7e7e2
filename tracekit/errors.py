"""Every error tracekit raises on purpose; `cli` prints them in one place and exits with their code.

Exit codes: 0 ok, 1 failed, 2 usage, 3 events lost (with --fail-on-loss), 4 damaged or partly
recovered, 5 missing capability.
"""

from __future__ import annotations

__all__ = [
    "CapabilityError",
    "DamagedError",
    "EventsLostError",
    "FailedError",
    "TracekitError",
    "UsageError",
]


class TracekitError(Exception):
    """What went wrong, and what the user can do about it.

    `message` says what happened in one sentence; `hint` says what to type or change.

    >>> error = UsageError("no trace at x.trace", hint="tracekit datasets list")
    >>> error.exit_code, str(error), error.hint
    (2, 'no trace at x.trace', 'tracekit datasets list')
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class FailedError(TracekitError):
    """The work was possible but did not succeed (exit code 1)."""

    exit_code = 1


class UsageError(TracekitError):
    """The command, a path or a parameter is wrong (exit code 2)."""

    exit_code = 2


class EventsLostError(TracekitError):
    """Events were lost and the caller asked for that to be a failure (exit code 3)."""

    exit_code = 3


class DamagedError(TracekitError):
    """A trace is damaged, unfinished or only partly recovered (exit code 4)."""

    exit_code = 4


class CapabilityError(TracekitError):
    """This host or user lacks something that the command needs (exit code 5)."""

    exit_code = 5
