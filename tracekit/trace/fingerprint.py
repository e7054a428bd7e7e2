"""The content hash of a trace: what two runs compare to know that they were given the same events."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from tracekit.trace.journal import SIDE_TABLES

__all__ = ["fingerprint"]

_FILES: Final = ("meta.json", "manifest.jsonl", *sorted(SIDE_TABLES))


def fingerprint(trace: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a trace's small files.

    The manifest among them holds the checksum of each part, so the events count without being read; readers
    compare them as they read. Files that are missing count as empty; OSError where one can't be read.

    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> empty = fingerprint(folder)
    >>> _ = (folder / "meta.json").write_text("{}")
    >>> fingerprint(folder) == empty
    False
    """
    digest = hashlib.sha256()
    for name in _FILES:
        file = trace / name
        content = file.read_bytes() if file.exists() else b""
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
