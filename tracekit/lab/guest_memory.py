"""The memory behind a guest: anonymous, aligned to 2 MiB, advised without the interpreter lock."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from tracekit.errors import CapabilityError, FailedError

__all__ = [
    "HUGE_BYTES",
    "MADV_COLD",
    "MADV_DONTNEED",
    "MADV_HUGEPAGE",
    "MADV_MERGEABLE",
    "MADV_NOHUGEPAGE",
    "MADV_PAGEOUT",
    "MADV_POPULATE_WRITE",
    "GuestMemory",
]

HUGE_BYTES: Final = 2 << 20

# Advice numbers of <asm-generic/mman-common.h>; Python's mmap module lacks the newer ones.
MADV_DONTNEED: Final = 4
MADV_MERGEABLE: Final = 12
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_POPULATE_WRITE: Final = 23

_MAP_NORESERVE: Final = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class GuestMemory:
    """`size_bytes` of private anonymous memory at a 2 MiB boundary; unmapped by `close`.

    `page_bytes` 4096 forbids transparent huge pages for it, 2 MiB asks for them.

    >>> with GuestMemory(1 << 21, page_bytes=4096) as memory:
    ...     memory.view()[5 * 4096] = 1
    ...     memory.resident_pages()
    1
    """

    def __init__(self, size_bytes: int, *, page_bytes: int) -> None:
        try:
            self._mapping = mmap.mmap(
                -1, size_bytes + HUGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            )
        except OSError as error:
            raise FailedError(
                f"can't map {size_bytes >> 20} MiB of memory: {error.strerror}",
                hint="use a smaller --memory",
            ) from error
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._offset = -start % HUGE_BYTES
        self.address = start + self._offset
        self.size_bytes = size_bytes
        self.advise(MADV_HUGEPAGE if page_bytes == HUGE_BYTES else MADV_NOHUGEPAGE)

    def advise(self, advice: int, offset: int = 0, length: int | None = None) -> None:
        """Call madvise(2) on offset .. offset + length (default: all of it)."""
        length = self.size_bytes - offset if length is None else length
        while _libc.madvise(self.address + offset, length, advice):
            code = ctypes.get_errno()
            if code == errno.EINTR:
                continue
            message = f"madvise({advice}) of {length} bytes failed: {os.strerror(code)}"
            if code == errno.EINVAL:
                raise CapabilityError(
                    message, hint="this kernel lacks that advice; MADV_POPULATE_WRITE needs 5.14"
                )
            raise FailedError(
                message, hint="use a smaller --memory" if code == errno.ENOMEM else "tracekit doctor"
            )

    def resident_pages(self) -> int:
        """Return how many 4 KiB pages the kernel says are present (mincore): an independent count."""
        return int(self.resident().sum())

    def resident(self) -> npt.NDArray[np.bool_]:
        """Return of each 4 KiB page whether it is present; one that waits in the swap cache is."""
        present = np.zeros(self.size_bytes >> 12, dtype=np.uint8)
        if _libc.mincore(self.address, self.size_bytes, present.ctypes.data):
            raise FailedError(f"mincore failed: {os.strerror(ctypes.get_errno())}")
        return (present & 1).astype(bool)

    def view(self) -> npt.NDArray[np.uint8]:
        """Return the memory as bytes; an access through the view touches it like any other.

        Drop the view before `close`: memory that something still looks at can't be unmapped.
        """
        return np.frombuffer(self._mapping, dtype=np.uint8, count=self.size_bytes, offset=self._offset)

    def close(self) -> None:
        """Unmap the memory."""
        self._mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
