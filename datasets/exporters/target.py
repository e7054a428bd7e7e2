"""Where an export goes: a new file, or stdout for `-`; a file that was not finished is not left behind."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tracekit.errors import FailedError, UsageError

__all__ = ["output_bytes"]


@contextlib.contextmanager
def output_bytes(out: Path | str, *, binary: bool, force: bool = False) -> Iterator[IO[bytes]]:
    """Open the target for writing.

    Raises UsageError if the file exists (unless `force`), its folder does not, or binary data would go to a
    terminal; FailedError when the disk refuses.
    """
    if str(out) == "-":
        if binary and sys.stdout.isatty():
            raise UsageError("this format is binary and stdout is a terminal", hint="-o FILE, or a pipe")
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except OSError as error:
            # polars tells it by text only.
            if error.errno == errno.EPIPE or "Broken pipe" in str(error):
                raise BrokenPipeError from None
            raise
        return
    path = Path(out)
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint=f"-f to replace it, or another name than {path}")
    # Written beside and renamed: the old file is there until the new one is whole.
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("wb") as file:
            yield file
        scratch.replace(path)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FailedError(
            f"cannot write {path}: {error.strerror or error}", hint=f"ls -ld {path.parent}"
        ) from None
    finally:
        scratch.unlink(missing_ok=True)
