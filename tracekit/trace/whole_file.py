"""Puts a file in place at once: whoever reads it finds the old one or all of the new one."""

from __future__ import annotations

import os
from pathlib import Path

from tracekit.errors import FailedError, UsageError

__all__ = ["write_file"]


def write_file(path: Path, content: bytes, *, force: bool) -> None:
    """Put a whole file in place at once; a link at `path` is replaced, never written through.

    A device or a named pipe is written to as it is. Raises UsageError when `path` exists (unless `force`),
    FailedError when the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if force and path.exists() and not path.is_file() and not path.is_symlink():
            path.write_bytes(content)
            return
        with draft.open("xb") as file:
            file.write(content)
        try:
            if force:
                draft.replace(path)
            else:
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{path} exists", hint="give another name, or -f to replace it") from error
    except OSError as error:
        raise FailedError(f"cannot write {path}: {error.strerror}", hint="-o FILE") from error
