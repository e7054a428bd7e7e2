"""Where a command talks: data on stdout, everything else on stderr, colour only where it is wanted."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["next_command", "print_json", "stderr", "stdout"]


def stdout() -> Console:
    """Return the console for data (rich honours NO_COLOR and drops colour when it is not a terminal)."""
    from rich.console import Console

    return Console(file=sys.stdout, soft_wrap=False)


def stderr() -> Console:
    """Return the console for talk: progress, warnings, the next command to type."""
    from rich.console import Console

    return Console(file=sys.stderr)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; NaN and infinity are refused because JSON has neither."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def next_command(text: str) -> None:
    """Name the next command to type, on stderr.

    >>> next_command("tracekit info x.trace")
    """
    stderr().print(f"next: {text}", markup=False, highlight=False)
