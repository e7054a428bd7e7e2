"""Both views of one VM, recorded at once and merged: this machine as the host, the lab host as its guest.

The guest is emulated (TCG), so its host sees first touches as faults of QEMU. The truth about the two clocks
is what the guest says the time is when asked, between two readings of the host's clock.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tracekit.errors import CapabilityError
from tracekit.lab.host.machine import KERNELS, HostMachine, HostPlan
from tracekit.probes.plan import RecordPlan
from tracekit.probes.run import record
from tracekit.trace import open_trace
from tracekit.trace.merge import merge

pytestmark = pytest.mark.live("bpf", "root", "qemu-system-x86_64")

PR_SET_THP_DISABLE = 41
NOW = "import time; print(time.monotonic_ns())"
# Fresh pages of both kinds: not zeroed by the allocation (a file) and zeroed by it (a process's memory).
WORK = f"""
dd if=/dev/zero of=/tmp/file bs=1M count=100 2>/dev/null
python3 -c 'x = bytearray(1) * (100 << 20)'
for turn in 1 2 3 4 5 6 7 8; do python3 -c '{NOW}'; echo; done
rm /tmp/file
"""


@pytest.fixture
def small_pages() -> Iterator[None]:
    """QEMU's memory in pages of 4 KiB: a huge page's first touch says little of the pages in it."""
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    yield
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_offset_of_a_real_guest_is_inside_what_asking_allows(tmp_path: Path, kernel: str) -> None:
    (tmp_path / "work.sh").write_text(WORK)
    try:
        machine = HostMachine(HostPlan(kernel=kernel, put=(tmp_path / "work.sh",)), say=print)
    except CapabilityError as error:
        pytest.skip(f"the lab host can't be made: {error} ({error.hint})")
    host, guest, both = (tmp_path / f"{name}.trace" for name in ("host", "guest", "both"))
    told: list[tuple[int, int]] = []  # (a time of the guest, when this host had read it)

    def hear(text: str) -> None:
        now = time.monotonic_ns()
        if text.strip().isdigit():
            told.append((int(text), now))

    asked: list[tuple[int, int]] = []  # (when this host asked, what the guest said)
    with machine:
        recorder = threading.Thread(
            target=record,
            args=(RecordPlan(out=host, pids=(machine.qemu.pid,)),),
        )
        recorder.start()
        deadline = time.monotonic() + 60
        while not (host / "meta.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(4):
            before = time.monotonic_ns()
            asked.append((before, int(machine.qemu.run(f"python3 -c '{NOW}'"))))
        code = machine.run(
            ["tracekit", "record", "--guest", "-o", "guest.trace", "--", "sh", "/opt/tracekit/in/work.sh"],
            tee=hear,
        )
        assert code == 0
        machine.fetch(tmp_path)
    recorder.join()  # QEMU's end ends it
    assert open_trace(host).lost == 0
    # An interrupt inside a BPF program may be left out there: the ledger says at most how many were.
    assert open_trace(guest).losses["reason"].str.starts_with("nested").all()
    # The guest read its clock after it was asked, and before we had read its answer.
    low = max(before - said for before, said in asked)
    high = min(after - said for said, after in told)
    assert low <= high
    trace, offset = merge(host, guest, both)
    print(f"asking: {low} to {high} ns; found: {offset}")
    assert offset.low_ns is not None
    assert offset.high_ns is not None
    assert low <= offset.offset_ns <= high
    assert offset.high_ns - offset.low_ns < high - low
    kinds = trace.events.group_by("kind").len().collect()
    assert {"host_fault", "page_alloc", "page_free"} <= set(kinds["kind"].cast(pl.String))
    assert trace.rows == open_trace(host).rows + open_trace(guest).rows
