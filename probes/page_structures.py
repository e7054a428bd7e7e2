"""Where the kernel's page structures lie: what makes a page number of the `struct page *` that it passes.

Their begin is chosen at boot and exported nowhere. But the text of an allocation names both, the structure
and the page, once an ftrace instance of our own is told not to hide addresses (`hash-ptr`, Linux 5.12).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from tracekit.probes import tracefs

__all__ = ["PageStructures", "fitted", "page_structures"]

_BOTH: Final = re.compile(r"mm_page_alloc: page=(?:0x)?([0-9a-f]+) pfn=0x([0-9a-f]+) ")
_PAGES: Final = 64
"""Pages touched to have allocations to look at."""


class PageStructures(NamedTuple):
    """The address of page 0's structure and the size of one, in bytes."""

    base: int
    size: int


@cache
def page_structures() -> PageStructures | None:
    """Return where they lie on this kernel; None where it does not tell (no permission, an older kernel)."""
    instance = tracefs.tracefs_root() / "instances" / f"tracekit-pages-{os.getpid()}"
    with contextlib.suppress(OSError):
        instance.mkdir()
        try:
            return fitted(_allocations(instance))
        finally:
            with contextlib.suppress(OSError):
                (instance / "events" / "enable").write_text("0")
            instance.rmdir()
    return None


def fitted(lines: Iterable[str]) -> PageStructures | None:
    """Return the one line through all (page, structure) pairs of ftrace's text, if there is one.

    >>> text = "mm_page_alloc: page={:x} pfn=0x{:x} order=0"
    >>> begin = 0xFFFFEA0000000000
    >>> fitted(text.format(begin + 64 * page, page) for page in (7, 9, 4096)).size
    64
    """
    pairs = {(int(m[2], 16), int(m[1], 16)) for m in map(_BOTH.search, lines) if m}
    if len(pairs) < 3:
        return None
    (first, there), *_, (last, end) = sorted(pairs)
    size = (end - there) // max(last - first, 1)
    found = PageStructures(there - first * size, size)
    right = size > 0 and all(found.base + page * size == at for page, at in pairs)
    return found if right else None


def _allocations(instance: Path) -> list[str]:
    (instance / "options" / "hash-ptr").write_text("0")
    (instance / "set_event_pid").write_text(str(os.getpid()))
    (instance / "events" / "kmem" / "mm_page_alloc" / "enable").write_text("1")
    with mmap.mmap(-1, _PAGES * mmap.PAGESIZE) as pages:
        pages.write(bytes(len(pages)))
    (instance / "tracing_on").write_text("0")
    return (instance / "trace").read_text(errors="replace").splitlines()
