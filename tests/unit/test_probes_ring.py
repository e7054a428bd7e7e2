"""The ring reader on a ring laid out in memory as the kernel lays it out."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from tracekit.errors import FailedError
from tracekit.probes.ring import RingReader
from tracekit.probes.wire import HEADER_BYTES, RECORD, RECORD_BYTES

SIZE = 8192
BUSY, DISCARD = 1 << 31, 1 << 30


def taken(ring: RingReader) -> list[int]:
    """Read what is there, free it, and return its times."""
    seen: list[int] = ring.read()["ts_ns"].tolist()
    ring.free()
    return seen


class Kernel:
    """Plays the kernel's part. A file can't be mapped twice in a row, so the data is copied."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.truncate(self.fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.position = 0

    def put(self, ts: int, *, flags: int = 0, length: int = RECORD_BYTES) -> int:
        """Write one record and move the producer's position on; returns where its header is."""
        record = np.zeros(1, RECORD)
        record["length"] = length | flags
        record["ts_ns"] = ts
        at = self.position % SIZE
        for byte, value in enumerate(record.tobytes()):
            place = (at + byte) % SIZE
            for copy in (place, place + SIZE):
                os.pwrite(self.fd, bytes([value]), 2 * mmap.PAGESIZE + copy)
        self.position += RECORD.itemsize
        os.pwrite(self.fd, struct.pack("<Q", self.position), mmap.PAGESIZE)
        return at

    def submit(self, at: int) -> None:
        for copy in (at, at + SIZE):
            os.pwrite(self.fd, struct.pack("<I", RECORD_BYTES), 2 * mmap.PAGESIZE + copy)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    os.close(kernel.fd)


def test_a_record_with_its_header_is_80_bytes() -> None:
    assert RECORD.itemsize == 80
    assert RECORD_BYTES == 72
    assert RECORD.itemsize == HEADER_BYTES + RECORD_BYTES


def test_records_come_once_in_order_across_many_wraps(kernel: Kernel) -> None:
    with RingReader(kernel.fd, SIZE) as ring:
        seen: list[int] = []
        for start in range(0, 1009, 37):
            for ts in range(start, min(start + 37, 1009)):
                kernel.put(ts)
            assert ring.pending_bytes == kernel.position - kernel.consumed
            seen += taken(ring)
            assert kernel.consumed == kernel.position
        assert seen == list(range(1009))
        assert taken(ring) == []


def test_reading_stops_before_a_record_that_is_still_being_written(kernel: Kernel) -> None:
    with RingReader(kernel.fd, SIZE) as ring:
        kernel.put(1)
        unfinished = kernel.put(2, flags=BUSY)
        kernel.put(3)
        assert taken(ring) == [1]
        assert kernel.consumed == RECORD.itemsize
        assert taken(ring) == []
        kernel.submit(unfinished)
        assert taken(ring)[1:] == [3]


def test_discarded_records_are_left_out_and_their_room_is_freed(kernel: Kernel) -> None:
    with RingReader(kernel.fd, SIZE) as ring:
        kernel.put(1)
        kernel.put(2, flags=DISCARD)
        kernel.put(3)
        assert taken(ring) == [1, 3]
        assert kernel.consumed == kernel.position


def test_the_room_of_what_was_read_is_the_readers_until_it_is_freed(kernel: Kernel) -> None:
    with RingReader(kernel.fd, SIZE) as ring:
        kernel.put(7)
        records = ring.read()
        kernel.put(8)
        assert kernel.consumed == 0
        assert records["ts_ns"].tolist() == [7]
        ring.free()
        ring.free()  # once is enough
        assert kernel.consumed == RECORD.itemsize
        del records  # a view of the ring, which closes now
        assert taken(ring) == [8]


def test_records_of_another_size_are_refused(kernel: Kernel) -> None:
    with RingReader(kernel.fd, SIZE) as ring:
        kernel.put(1, length=64)
        with pytest.raises(FailedError, match="another size"):
            ring.read()


def test_records_that_an_error_still_holds_do_not_keep_the_ring_from_closing(kernel: Kernel) -> None:
    kernel.put(7)
    ring = RingReader(kernel.fd, SIZE)
    held = ring.read()
    ring.close()
    assert held["ts_ns"].tolist() == [7]
