"""The BPF ring buffer as numpy sees it: mapped pages, no call per record.

The kernel maps the data area twice in a row, so that records that wrap round the end are contiguous. Each
record has an 8-byte header whose busy bit is set until its writer has submitted it.
"""

from __future__ import annotations

import mmap
from types import TracebackType
from typing import Final, Self

import numpy as np

from tracekit.errors import FailedError
from tracekit.probes.wire import RECORD, RECORD_BYTES

__all__ = ["MOST_RECORDS", "RingReader"]

MOST_RECORDS: Final = 65_536
"""Records read at once, a frame of the trace: whoever falls behind pays least for each of them then."""

_BUSY: Final = np.uint32(1 << 31)
_DISCARDED: Final = np.uint32(1 << 30)


class RingReader:
    """Reads the records of a BPF ring buffer map; a context manager.

    `fd` is the map's, `size_bytes` its size. The reader is the ring's only consumer.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._stride = RECORD.itemsize
        self._read_bytes = 0
        # The kernel's layout: a page with the consumer's position, which we write; a page with the
        # producers' position; the data, twice. The last two are read-only for us.
        self._consumer_map = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(
            fd, mmap.PAGESIZE + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
        )
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_map, np.uint64, 1)
        self._data = np.frombuffer(self._producer_map, np.uint8, 2 * size_bytes, offset=mmap.PAGESIZE)

    @property
    def pending_bytes(self) -> int:
        """How much of the ring is taken."""
        return self.begun_bytes - self.freed_bytes

    @property
    def begun_bytes(self) -> int:
        """How much has been begun to be written, since the ring was made."""
        return int(self._producer[0])

    @property
    def freed_bytes(self) -> int:
        """How much of that was read and given back."""
        return int(self._consumer[0])

    def read(self) -> np.ndarray:
        """Return the next submitted records in order (dtype RECORD), where they lie; `free` gives them back.

        Stops before the first record that is still being written, and at MOST_RECORDS.
        """
        position = int(self._consumer[0])
        count = min((int(self._producer[0]) - position) // self._stride, MOST_RECORDS)
        start = position % self.size_bytes
        records = self._data[start : start + count * self._stride].view(RECORD)
        # Copied, because the kernel goes on changing it.
        length = records["length"].copy()
        if (length != RECORD_BYTES).any():
            busy = np.flatnonzero(length & _BUSY)
            if len(busy):
                records, length = records[: int(busy[0])], length[: int(busy[0])]
            if ((length & ~_DISCARDED) != RECORD_BYTES).any():
                raise FailedError("the ring holds records of another size than this tracekit's")
        self._read_bytes = len(records) * self._stride
        discarded = (length & _DISCARDED) != 0
        return records[~discarded] if discarded.any() else records

    def free(self) -> None:
        """Give the room of what was read last back to the kernel."""
        self._consumer[0] += np.uint64(self._read_bytes)
        self._read_bytes = 0

    def close(self) -> None:
        """Unmap the ring, as soon as nobody holds records of it any more.

        Whoever carried them when the disk was full does: an error's traceback keeps its frames.
        """
        del self._consumer, self._producer, self._data, self._consumer_map, self._producer_map

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Unmap the ring."""
        self.close()
