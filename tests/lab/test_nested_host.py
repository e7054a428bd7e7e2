"""The recorder on a KVM host with nested paging: `make lab` (minutes; not part of `make test`).

Everything runs inside the lab host, a QEMU machine with AMD's SVM and NPT, on an unmodified kernel with the
kvm-amd module. What a trace must hold is known from the guest's own count, from KVM's counters, from another
tracer's count or from the plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tracekit.errors import CapabilityError
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.host.machine import KERNELS, HostMachine, HostPlan
from tracekit.trace import Trace, open_trace

pytestmark = pytest.mark.live("qemu-system-x86_64")

MIB = 1 << 20

SWAPPED_OUT = "sed -n 's/^pswpout //p' /proc/vmstat"


class Lab:
    """A lab host and the folder its results are brought to."""

    def __init__(self, machine: HostMachine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder

    def shell(self, script: str) -> str:
        outcome = self.machine.qemu.execute(script, timeout_s=600)
        assert outcome.code == 0, outcome.output[-2000:]
        return outcome.output

    def record(self, name: str, command: str, *options: str) -> tuple[Trace, dict[str, Any]]:
        """Record a command that prints JSON; returns the trace and what it printed."""
        recorded = f"sh -c '{command} >/out/{name}.json'"
        self.shell(f"cd /out && tracekit record -o {name}.trace {' '.join(options)} -- {recorded}")
        self.machine.fetch(self.folder)
        trace = open_trace(self.folder / f"{name}.trace")
        assert trace.lost == 0
        assert trace.meta.finalised
        assert trace.meta.host["mmu_mode"] == "npt"
        return trace, json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture(scope="module", params=list(KERNELS))
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    plan = HostPlan(kernel=request.param, swap_bytes=1 << 30)  # one CPU: see docs/lab.md
    try:
        machine = HostMachine(plan, say=print)
    except CapabilityError as error:
        pytest.skip(f"the lab host can't be made: {error} ({error.hint})")
    with machine:
        yield Lab(machine, tmp_path_factory.mktemp("lab"))


def events(trace: Trace, kind: str) -> pl.DataFrame:
    return trace.events.filter(pl.col("kind") == kind).collect()


def counts(trace: Trace) -> dict[str, int]:
    rows = trace.events.group_by("kind").len().collect()
    return dict(zip(rows["kind"].cast(str), rows["len"], strict=True))


@pytest.mark.parametrize(
    "options", ["--pages 4099 --vcpus 2 --order random --seed 5", "--pages 11 --page-size 2m"]
)
def test_every_first_touch_of_a_small_guest(lab: Lab, options: str):
    level = 2 if "2m" in options else 1
    trace, guest = lab.record(f"small{level}", f"tracekit lab guest --json {options}")
    plan = GuestPlan(**guest["plan"])
    faults = events(trace, "ept_violation")
    touched = faults.filter(pl.col("gfn") >= guest["first_gfn"])
    for vcpu in range(plan.vcpus):
        mine = touched.filter(pl.col("vcpu") == vcpu)
        assert mine["gfn"].to_list() == plan.gfns(vcpu).tolist()
    assert touched["level"].unique().to_list() == [level]
    assert touched["latency_ns"].null_count() == 0
    # KVM counts a fault fixed where it made a mapping; the other faults found it made by the other vCPU.
    assert len(faults) == guest["kvm_counters"]["pf_taken"]
    assert guest["kvm_counters"][f"pages_{'4k' if level == 1 else '2m'}"] >= plan.pages
    # A large page begins at another gfn than the one touched, which `arg` tells.
    low = faults.filter(pl.col("gfn") < guest["first_gfn"]).select(pl.coalesce("arg", "gfn"))
    assert set(low["arg"]) <= set(guest["low_gfns"])


def test_an_unmodified_linux_guest_with_balloon_and_page_reporting(lab: Lab):
    trace, account = lab.record(
        "linux", "tracekit lab linux --json --accel kvm --memory 256M --alloc 64M --balloon 224M"
    )
    assert account["accel"] == "kvm"
    assert events(trace, "balloon_inflate")["pages"].sum() == 32 * MIB // 4096
    assert events(trace, "balloon_deflate")["pages"].sum() == 32 * MIB // 4096
    assert events(trace, "free_page_report")["pages"].sum() * 4096 > 40 * MIB
    faults = events(trace, "ept_violation")
    assert faults["gfn"].n_unique() > 1000
    assert faults["latency_ns"].null_count() == 0


@pytest.mark.parametrize("async_faults", ["on", "off"])
def test_asynchronous_page_faults_of_a_guest_that_swaps(lab: Lab, async_faults: str):
    """Less host memory than the guest touches, swap on a block device: the faults that wait are async."""
    events_of = "cd /sys/kernel/tracing; for event in not_present ready completed; do {}; done; true"
    switch = "echo {} >events/kvm/kvm_async_pf_$event/enable"
    lab.shell(f"echo >/sys/kernel/tracing/trace; {events_of.format(switch.format(1))}")
    before = int(lab.shell(SWAPPED_OUT))
    name, swapping = f"apf-{async_faults}", "tracekit lab swap --json --siblings 2 --touch 80M"
    trace, account = lab.record(name, f"{swapping} --async-faults {async_faults}")
    lab.shell(events_of.format(switch.format(0)))
    seen = lab.shell(events_of.format("grep -c kvm_async_pf_$event: trace"))
    recorded = counts(trace)
    theirs = dict(zip(("apf_not_present", "apf_ready", "apf_completed"), map(int, seen.split()), strict=True))
    assert {kind: recorded.get(kind, 0) for kind in theirs} == theirs
    assert 50 < theirs["apf_completed"] < account["major_faults"]
    # A guest that takes part is interrupted for pages that are ready; for one that declines, KVM still reads
    # them in a worker, but halts the vCPU meanwhile.
    heard = sum(int(line.split()[1]) for line in account["interrupts"] if "HYP" in line)
    least, most = (2, theirs["apf_ready"]) if async_faults == "on" else (0, 0)
    assert least <= heard <= most, account
    assert events(trace, "apf_completed")["latency_ns"].null_count() == 0
    # Neither lab kernel has the tracepoint that counts swapping, and the trace says so. Swap-outs are then
    # what reclaim writes of guest memory: never more than the kernel counts, which has QEMU's own pages too.
    missing = trace.meta.probes["refused"].get("memcg", "")
    assert ("swap_in" in recorded) != ("memcg:count_memcg_events" in missing)
    written = events(trace, "swap_out")
    assert written["gfn"].null_count() == 0
    swapped_out = int(lab.shell(SWAPPED_OUT)) - before
    assert 0.7 * swapped_out <= written["pages"].sum() <= swapped_out


@pytest.mark.parametrize("lab", ["6.12"], indirect=True)
def test_hyperv_hints_of_an_enlightened_guest(lab: Lab):
    trace, guest = lab.record(
        "hyperv",
        "tracekit lab guest --json --pages 4099 --enlightened hyperv --hint discard --hint-batch 64"
        " --hint-lead -2 --zero-first --hot-add 1009",
    )
    calls = events(trace, "hv_hypercall")
    plain = calls.filter(pl.col("level").is_null())["arg"]
    assert {f"call_{code:#x}": count for code, count in plain.value_counts().iter_rows()} == {
        name: count for name, count in guest["calls"].items() if name.startswith("call_")
    }
    ranges = calls.filter(pl.col("level").is_not_null())
    assert set(ranges["arg"]) == {0x8003 | 3 << 16}  # 1 + heat type (2: discard) above the code
    assert ranges["pages"].sum() == guest["calls"]["discard_pages"]
    assert ranges["gfn"].to_list()[:63] == [512 + 64 * batch for batch in range(63)]
    # The VMM drops what a hint discards: of a VMM that is not known, that is a page report (docs/probes.md).
    dropped = events(trace, "free_page_report")
    assert dropped.select("gfn", "pages").equals(ranges.select("gfn", "pages"))
