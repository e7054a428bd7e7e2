"""What a guest's kernel said of its pages, as the guest side of a trace."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import numpy as np
import pytest

from tracekit.errors import FailedError
from tracekit.lab.guest_pages import GuestPages, as_trace

BUDDY = 1 << 10
EVENTS = """# tracer: nop
              sh-1       [000] .....     5.000010: tracing_mark_write: tracekit
              dd-70      [000] .....     5.000020: mm_page_alloc: page=0x1 pfn=0x7 order=2 migratetype=1
              dd-70      [000] .....     5.000030: mm_page_alloc: page=0x0 pfn=0x0 order=0 migratetype=1
              rm-71      [000] .....     6.000000: mm_page_free: page=0x1 pfn=0x8 order=0
"""


def packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content)).decode()


def pages(events: str) -> GuestPages:
    flags = np.array([0, 0, 0, BUDDY, BUDDY | 1, 0, BUDDY, BUDDY], np.uint64)
    return GuestPages(packed(flags.tobytes()), packed(events.encode()), (10_000_000_000, 10_000_020_000))


def test_pages_free_at_the_start_and_each_one_given_and_freed_on_the_hosts_clock(tmp_path: Path) -> None:
    rows = as_trace(pages(EVENTS), tmp_path / "guest.trace").events.collect()
    # The mark was made between 10 s and 10.00002 s of the host: in the middle.
    mark_ns = 10_000_010_000
    assert rows.select("ts_ns", "kind", "gfn", "pages").rows() == [
        (mark_ns + 9_999, "page_free", 3, 2),
        (mark_ns + 9_999, "page_free", 6, 2),
        (mark_ns + 10_000, "page_alloc", 7, 4),
        (mark_ns + 999_990_000, "page_free", 8, 1),
    ]


def test_events_without_the_mark_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="no mark"):
        as_trace(pages(EVENTS.replace("tracekit", "other")), tmp_path / "guest.trace")
