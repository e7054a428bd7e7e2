"""Transparent huge pages, forbidden or granted to what is started meanwhile."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tracekit.errors import CapabilityError, FailedError

__all__ = ["backed_by"]

_PR_SET_THP_DISABLE: Final = 41
_ENABLED: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@contextmanager
def backed_by(page_bytes: int) -> Iterator[None]:
    """Start processes in the block whose memory has pages of 4096 bytes only, or of 2 MiB where they ask.

    0: whatever this host gives. QEMU asks for huge pages for guest memory (MADV_HUGEPAGE). Raises
    `CapabilityError` where this host has none to give.
    """
    if page_bytes > 4096 and (not _ENABLED.exists() or "[never]" in _ENABLED.read_text()):
        raise CapabilityError("this host gives no transparent huge pages", hint=f"echo madvise >{_ENABLED}")
    if page_bytes != 4096:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise FailedError("huge pages can't be switched off")
    try:
        yield
    finally:
        libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)
