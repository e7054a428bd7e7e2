"""Where a command talks: data on stdout, everything else on stderr, colour only where it is wanted."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["inert", "next_command", "print_json", "quoted", "refuse_output", "stderr", "stdout"]


def stdout() -> Console:
    """Return the console for data (rich honours NO_COLOR and drops colour when it is not a terminal)."""
    from rich.console import Console

    # Without emoji: a range 1:100:log is not to become a picture.
    return Console(file=sys.stdout, soft_wrap=False, emoji=False)


def stderr() -> Console:
    """Return the console for talk: progress, warnings, the next command to type."""
    from rich.console import Console

    # In a file or pipe a line is whatever its reader makes of it: paths are not to be broken.
    return Console(file=sys.stderr, emoji=False, soft_wrap=not sys.stderr.isatty())


def inert(text: str) -> str:
    """Return text from outside (a path, a command line) so that a terminal only shows it.

    >>> inert("a\\x1b[2Jb\\n")
    'a\\\\x1b[2Jb\\\\n'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quoted(path: Path | str) -> str:
    """Return a path (or URL) as one types it in a shell, for the next command to type.

    >>> quoted(Path("my x.trace"))
    "'my x.trace'"
    """
    return shlex.quote(inert(str(path)))


def refuse_output(path: Path | None, *, force: bool) -> None:
    """Raise UsageError for a file that is there already or has no folder, before any work is done for it."""
    from tracekit.errors import UsageError

    if path is None:
        return
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", hint="-f to overwrite (--force), or another name")
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}", hint=f"mkdir -p {quoted(path.parent)}")


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; NaN and infinity are refused because JSON has neither."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def next_command(text: str) -> None:
    """Name the next command to type, on stderr.

    >>> next_command("tracekit info x.trace")
    """
    stderr().print(f"next: {text}", markup=False, highlight=False, soft_wrap=True)
