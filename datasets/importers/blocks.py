"""Bytes of a file, a pipe or a tool's output, in blocks of whole lines."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from tracekit.errors import CapabilityError, DamagedError, UsageError

__all__ = ["BLOCK_BYTES", "line_blocks", "open_bytes", "tool_output"]

BLOCK_BYTES = 8 << 20
"""Bytes read at a time: some 80,000 lines of trace text, which fit in a cache of this size."""


@contextlib.contextmanager
def open_bytes(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by its suffix (.gz .bz2 .lz4 .zst); `-` is stdin.

    Raises UsageError when it is not there or can't be read.
    """
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = pa.input_stream(str(path), compression="detect")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", hint=f"ls -l {path}") from None
    with stream:
        yield cast("IO[bytes]", stream)


@contextlib.contextmanager
def tool_output(command: list[str], package: str) -> Iterator[IO[bytes]]:
    """Run a tool and yield its stdout.

    Raises CapabilityError naming the Debian package when the tool is not installed, and DamagedError with the
    tool's last words when it cannot read its file.
    """
    if shutil.which(command[0]) is None:
        raise CapabilityError(f"{command[0]} is not installed", hint=f"apt-get install {package}")
    # What the tool says goes to a file: a full pipe of complaints would stop it.
    with (
        contextlib.ExitStack() as stack,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=(said := stack.enter_context(_scratch()))
        ) as run,
    ):
        assert run.stdout
        try:
            yield run.stdout
        except BaseException:
            run.kill()
            raise
        if run.wait():
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise DamagedError(
                f"{command[0]} failed: {lines[-1].strip() if lines else 'no message'}", hint=" ".join(command)
            )


def line_blocks(stream: IO[bytes], block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    r"""Yield blocks that end at a line's end (only the last may lack its newline).

    DamagedError at a line that is longer than eight blocks: then it is no text, and would fill the memory.

    >>> import io
    >>> list(line_blocks(io.BytesIO(b"a\n\nbcd\ne"), 3))
    [b'a\n\n', b'bcd\n', b'e']
    """
    rest = b""
    while chunk := bytes(stream.read(block_bytes)):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield rest + chunk[:cut]
            rest = chunk[cut:]
        else:
            rest += chunk
            if len(rest) > 8 * block_bytes:
                raise DamagedError(f"a line of more than {len(rest) >> 20} MiB", hint="is it a text file?")
    if rest:
        yield rest


def _scratch() -> contextlib.AbstractContextManager[IO[bytes]]:
    import tempfile

    return tempfile.TemporaryFile()
