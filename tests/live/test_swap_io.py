"""The programs that see swaps without a tracepoint for them, run by the kernel on made-up calls.

Not every kernel's functions can be hooked: here the programs at them are those of raw tracepoints.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.made_up import MadeUp, made_up_point
from tracekit.probes import btf, tracefs
from tracekit.trace.schema import FLAG_UNWRITTEN, KIND_CODE, KINDS

pytestmark = pytest.mark.live("bpf", "root")

DEVICE_FULL = -95 & 0xFFFFFFFF  # -EOPNOTSUPP as an int: this device takes no page without a request
REQUEST = tracefs.Tracepoint(
    "block",
    "block_bio_queue",
    (tracefs.Field("nr_sector", 0, 8, signed=False), tracefs.Field("rwbs", 8, 10, signed=False)),
)
EVENTS = {"count_memcg_events", REQUEST.event, "page_read_returns", "page_write_returns"} | {
    f"swap_{direction}{end}" for direction in ("read", "write") for end in ("", "_returns")
}


class SwapIo(MadeUp):
    """The programs of the probe, each run by the name of its event."""

    def __init__(self) -> None:
        def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
            if event == "count_memcg_events":
                return made_up_point(category, event, "memcg", "item", "val")
            if category == "function":
                return (
                    made_up_point(category, event, "page", "ret")
                    if event.startswith(("swap_", "page_"))
                    else None
                )
            return REQUEST if event == REQUEST.event else tracefs.tracepoint(category, event)

        super().__init__(lookup, ("notifier", "swap_io", "memcg_function"), EVENTS)

    def see(self, *events: str | tuple[str, int]) -> list[tuple[str, int]]:
        """Let the events happen in this thread; return (kind, pages) of the rows that come of them.

        An event is a function's, with what it returns, a request ("R" or "W") of so many pages, or an item of
        which the kernel counts so many.
        """
        return [(kind, pages) for kind, pages, _ in self.see_all(*events)]

    def see_all(self, *events: str | tuple[str, int]) -> list[tuple[str, int, int]]:
        """Do what `see` does; return the flags as well."""
        for event in events:
            name, value = event if isinstance(event, tuple) else (event, 0)
            if name.isupper() and len(name) > 1:
                item = btf.enum_value("vm_event_item", name)
                assert item is not None
                self.run("count_memcg_events", 0, item, value)
            elif name in ("R", "W"):
                self.run(REQUEST.event, 8 * value, ord(name))
            else:
                self.run(name, 0, value)
        records = self.records()
        assert set(records["kind"]) <= {KIND_CODE["swap_in"], KIND_CODE["swap_out"]}
        columns = (records[name].tolist() for name in ("kind", "pages", "flags"))
        return [(KINDS[kind], pages, flags) for kind, pages, flags in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def swap_io() -> Iterator[SwapIo]:
    with SwapIo.loaded() as made:
        yield made


def test_a_request_is_a_swap_only_inside_the_function_that_swaps(swap_io: SwapIo) -> None:
    assert swap_io.see(("R", 1), ("W", 1)) == []
    assert swap_io.see("swap_read", ("R", 1), "swap_read_returns") == [("swap_in", 1)]
    assert swap_io.see("swap_write", ("W", 16), "swap_write_returns") == [("swap_out", 16)]
    assert swap_io.see(("R", 1), ("W", 1)) == []
    # The other direction is somebody else's request.
    assert swap_io.see("swap_read", ("W", 1), "swap_read_returns") == []


def test_what_makes_no_request_is_told_by_the_function_that_counts(swap_io: SwapIo) -> None:
    # zswap had the page, or it is one of zeros.
    assert swap_io.see("swap_read", "swap_read_returns", "swap_write", "swap_write_returns", ("R", 1)) == []
    for went, came in (("SWPOUT_ZERO", "SWPIN_ZERO"), ("ZSWPOUT", "ZSWPIN")):
        rows = swap_io.see_all("swap_write", (went, 3), "swap_write_returns", (came, 1))
        assert rows == [("swap_out", 3, FLAG_UNWRITTEN), ("swap_in", 1, FLAG_UNWRITTEN)]
    # What a device has is told by its request, and not counted twice.
    assert swap_io.see(("PSWPOUT", 1), ("PSWPIN", 1)) == []
    assert swap_io.see_all("swap_write", ("W", 1), "swap_write_returns") == [("swap_out", 1, 0)]


def test_reclaim_in_the_middle_of_a_read_loses_neither(swap_io: SwapIo) -> None:
    inner = ("swap_write", ("W", 1), "swap_write_returns")
    rows = swap_io.see("swap_read", *inner, ("R", 1), "swap_read_returns")
    assert rows == [("swap_out", 1), ("swap_in", 1)]


def test_a_device_made_of_others_makes_one_swap_of_several_requests(swap_io: SwapIo) -> None:
    assert swap_io.see("swap_read", ("R", 1), ("R", 1), "swap_read_returns") == [("swap_in", 1)]


@pytest.mark.parametrize(("direction", "kind"), [("read", "swap_in"), ("write", "swap_out")])
def test_a_device_that_takes_pages_at_once_counts_where_it_took_it(
    swap_io: SwapIo, direction: str, kind: str
) -> None:
    begin, at_once, end = f"swap_{direction}", f"page_{direction}_returns", f"swap_{direction}_returns"
    assert swap_io.see(begin, (at_once, 0), end) == [(kind, 1)]
    request = (direction[0].upper(), 1)
    assert swap_io.see(begin, (at_once, DEVICE_FULL), request, end) == [(kind, 1)]
    # A file system reads so too.
    assert swap_io.see((at_once, 0)) == []
