"""Points in time that the user names while a recording runs: a pipe beside the trace takes them.

`tracekit mark NAME` writes one line into it, the recorder reads it and enters the mark into the trace. A
line is shorter than PIPE_BUF, so several writers never mix theirs. The name of the pipe is in the
environment of the recorded command (TRACEKIT_MARKS), and is that of the trace with `.marks` added.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from tracekit.errors import FailedError, UsageError

__all__ = ["ENVIRONMENT", "MarkPipe", "pipe_of", "put_mark", "put_mark_if_recorded", "remove_left_pipe"]

ENVIRONMENT: Final = "TRACEKIT_MARKS"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MOST_BYTES: Final = 1 << 16  # what a pipe holds


def pipe_of(trace: Path) -> Path:
    """Return the pipe of a trace that is being recorded.

    >>> pipe_of(Path("vm.trace")).name
    'vm.trace.marks'
    """
    return trace.with_name(f"{trace.name}.marks")


class MarkPipe:
    """The recorder's end of the pipe; leaving the context removes it.

    `off` says why there is none ("" = there is): not every file system has pipes (FAT, many shared folders),
    and a recording is worth having without marks.
    """

    def __init__(self, path: Path, *, owner: tuple[int, int] | None = None) -> None:
        """Make the pipe, for `owner` (user, group) alone; UsageError where another file has its name."""
        self._path, self._rest, self.off = path, b"", ""
        self._fd = -1
        try:
            if path.is_fifo() and not path.is_symlink():
                path.unlink()  # of a recorder that was killed
            os.mkfifo(path, 0o600)
            if owner is not None:
                os.chown(path, *owner, follow_symlinks=False)
            # Also open for writing, by us: the pipe then never ends between two marks.
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileExistsError:
            raise UsageError(f"{path} exists", hint="move it away, or choose another name with -o") from None
        except OSError as error:
            if path.is_fifo():
                path.unlink(missing_ok=True)
            self.off = f"marks are off: no pipe can be made beside the trace ({error.strerror})"

    def read(self) -> Iterator[tuple[str, int]]:
        """Yield the marks (name, CLOCK_MONOTONIC ns) since the last time; other lines are left out."""
        if self.off:
            return
        try:
            self._rest += os.read(self._fd, _MOST_BYTES)
        except BlockingIOError:
            return
        *lines, self._rest = self._rest.split(b"\n")
        self._rest = self._rest[-_MOST_BYTES:]
        now = time.monotonic_ns()
        for line in lines:
            stamp, _, name = line.decode(errors="replace").partition(" ")
            if stamp.isdecimal() and _NAME.fullmatch(name):
                yield name, min(int(stamp), now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.off:
            os.close(self._fd)
            self._path.unlink(missing_ok=True)


def remove_left_pipe(trace: Path) -> None:
    """Remove the pipe of a trace whose recorder was killed; one that somebody still reads stays."""
    path = pipe_of(trace)
    if path.is_symlink() or not path.is_fifo():
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ENXIO:  # nobody has it open for reading
            with suppress(OSError):
                path.unlink()


def put_mark(name: str, trace: Path | None = None) -> None:
    """Name this moment in the recording of `trace`, or in the one that this process was started by.

    Raises UsageError for a name that is none, and where nothing is being recorded.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a mark: a letter, then letters, digits, - . _",
            hint="tracekit mark ready",
        )
    told = os.environ.get(ENVIRONMENT)
    if trace is None and not told:
        raise UsageError(
            "no recording to mark", hint="tracekit mark NAME -t TRACE, or as part of the recorded command"
        )
    path = pipe_of(trace) if trace is not None else Path(told or "")
    line = f"{time.monotonic_ns()} {name}\n".encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise UsageError(
            f"no recording takes marks at {path}: {error.strerror}", hint="tracekit record -o TRACE …"
        ) from error
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise UsageError(f"{path} is no pipe of a recording", hint="tracekit record -o TRACE …")
        os.write(fd, line)
    except BlockingIOError:
        raise FailedError("the recorder does not take marks now", hint="try again") from None
    finally:
        os.close(fd)


def put_mark_if_recorded(name: str) -> None:
    """Name this moment where this process is part of a recorded command; else do nothing."""
    if os.environ.get(ENVIRONMENT):
        with suppress(UsageError):  # the recorder has ended before us
            put_mark(name)
