"""Puts a file in place at once: whoever reads it finds the old one or all of the new one."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tracekit.errors import FailedError, UsageError

__all__ = ["write_file"]


def write_file(path: Path, content: bytes, *, force: bool) -> None:
    """Put a whole file in place at once; a link at `path` is replaced, never written through.

    A device or a named pipe is written to as it is, and so is what stands in /dev (/dev/stdout is a link). A
    file that is replaced leaves its permissions. Raises UsageError when `path` exists (unless `force`),
    FailedError when the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if force and path.exists() and (_in_dev(path) or not path.is_file()):
            path.write_bytes(content)
            return
        with draft.open("xb") as file, contextlib.ExitStack() as at_last:
            at_last.callback(draft.unlink, missing_ok=True)
            file.write(content)
            file.flush()
            if force:
                if path.is_file() and not path.is_symlink():
                    os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
                draft.replace(path)
            else:
                os.link(draft, path)
    except FileExistsError as error:
        raise UsageError(f"{path} exists", hint="give another name, or -f to replace it") from error
    except OSError as error:
        raise FailedError(f"cannot write {path}: {error.strerror}", hint="-o FILE") from error


def _in_dev(path: Path) -> bool:
    """Say whether a path is in /dev, or in /dev/fd (which is in /proc): no place for files of ours."""
    folder = path.parent.resolve()
    return folder == Path("/dev") or folder.is_relative_to("/proc")
