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

    A device or a pipe is written to as it is; a file is replaced when the new one is whole.
    Raises UsageError if the file exists (unless `force`), its folder does not, or binary data would go to a
    terminal; FailedError when the disk refuses.
    """
    if str(out) == "-":
        if binary and sys.stdout.isatty():
            raise UsageError("this format is binary and stdout is a terminal", hint="-o FILE, or a pipe")
        with _our_words("stdout", "df -h, and what reads the other end"):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    path = Path(out)
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}", hint=f"mkdir -p {path.parent}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"-o {path}/NAME")
    if path.exists() and not path.is_file():
        with _our_words(path, f"ls -l {path}"), path.open("wb") as device:
            yield device
        return
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint=f"-f to replace it, or another name than {path}")
    # Written beside and renamed: the old file is there until the new one is whole.
    scratch = path.with_name(f".{path.name}.part")
    try:
        with _our_words(path, f"ls -ld {path.parent}"):
            with scratch.open("wb") as file:
                yield file
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def _our_words(where: Path | str, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # polars tells it by text only.
        if error.errno == errno.EPIPE or "Broken pipe" in str(error):
            raise BrokenPipeError from None
        raise FailedError(f"cannot write to {where}: {error.strerror or error}", hint=hint) from None
