"""What `tracekit record` shows while it records: it fits 80 columns and the window, and scrolls."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tracekit.cli.live import LiveView
from tracekit.probes.plan import Status
from tracekit.probes.recorder import _newest
from tracekit.trace import events_batch


def console(height: int = 40) -> Console:
    return Console(file=io.StringIO(), width=80, height=height, force_terminal=True, color_system=None)


def status(seconds: float, newest: list[dict[str, Any]], kinds: int = 2) -> Status:
    names = ["ept_violation", "host_fault", "madvise", "balloon_inflate", "swap_in", "unmap"][:kinds]
    return Status(
        seconds=seconds,
        kinds=dict.fromkeys(names, round(1e9 * seconds)),
        samples={"rss_bytes": 2.0**30},
        lost=None,
        bytes_written=1 << 20,
        held_bytes=0,
        ring_share=0.25,
        start_ns=10**12,
        newest=newest,
    )


def fault(at_s: float, **values: Any) -> dict[str, Any]:
    row = {"kind": "ept_violation", "vm": 0, "vcpu": 1, "gfn": (1 << 40) - 1, "level": 2, "latency_ns": 3_580}
    return {"ts_ns": 10**12 + round(at_s * 1e9), **row, **values}


def shown(view: LiveView) -> list[str]:
    assert view._live is not None
    paper = Console(file=io.StringIO(), width=80, color_system=None)
    with paper.capture() as caught:
        paper.print(view._live.get_renderable())
    return caught.get().splitlines()


def test_the_newest_faults_scroll_by_with_all_that_is_known_of_them() -> None:
    out = console()
    with LiveView(out, shown=True) as view:
        view.update(status(1, [fault(0.5)]))
        view.update(
            status(2, [fault(0.5), fault(1.5, gfn=None, vcpu=None, level=None, latency_ns=2_500_000)])
        )
        lines = shown(view)
        assert max(map(len, lines)) <= 80
        first, second = (line.split() for line in lines[-2:])
        assert first[:9] == ["0.500", "s", "ept_violation", "0", "1", "0xffffffffff", "2M", "3.58", "us"]
        assert second[:6] == ["1.500", "s", "ept_violation", "0", "2.50", "ms"]
        assert len(second[6]) > len(first[9])  # the longer wait has the longer bar
        view.update(status(3, [fault(2 + n / 100) for n in range(16)]))
        last = shown(view)[-10:]
        assert [line.split()[0] for line in last] == [f"{2 + n / 100:.3f}" for n in range(6, 16)]


@pytest.mark.parametrize("height", [24, 18])
def test_a_small_window_gets_fewer_faults(height: int) -> None:
    out = console(height)
    with LiveView(out, shown=True) as view:
        view.update(status(1e4, [fault(n / 100) for n in range(16)], kinds=6))
        lines = shown(view)
    assert len(lines) <= height
    assert any("newest faults" in line for line in lines)


def test_a_recording_that_has_stopped_is_shown_no_more() -> None:
    out = console()
    with LiveView(out, shown=True) as view:
        view.update(status(1, [fault(0.5)]))
        view.update(None)
        assert view._live is None
        view.update(None)


def test_only_rows_that_somebody_waited_for_are_newest() -> None:
    valid = {"latency_ns": [n % 3 == 0 for n in range(99)]}
    batch = events_batch(ts_ns=list(range(99)), kind="map", gfn=7, latency_ns=[5] * 99, valid=valid)
    rows = _newest(batch)
    assert [row["ts_ns"] for row in rows] == list(range(99))[::3][-16:]
    assert {row["kind"] for row in rows} == {"map"}
    assert _newest(None) == ()
