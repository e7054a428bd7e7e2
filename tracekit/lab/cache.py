"""The lab's cache: folders below the user's cache folder, each there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cache_folder", "new_folder"]


def cache_folder(name: str) -> Path:
    """Return (and make) a folder of the user's cache: $XDG_CACHE_HOME/tracekit/lab/NAME or ~/.cache/…"""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tracekit" / "lab" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a new folder that becomes `target` only when the block succeeds, so the cache never holds a half.

    If another process was quicker, its folder stays.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
