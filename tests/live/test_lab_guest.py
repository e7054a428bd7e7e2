"""The small guest really runs: counts, orders and content, checked against the kernel's counts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tracekit.errors import CapabilityError, FailedError
from tracekit.lab import guest_code, small_guest
from tracekit.lab.guest_memory import HUGE_BYTES, MADV_POPULATE_WRITE, GuestMemory
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.small_guest import SmallGuest
from tracekit.trace.schema import PAGE_BYTES


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


pytestmark = pytest.mark.live("kvm")


@pytest.mark.parametrize(
    "plan",
    [
        GuestPlan(pages=65537),
        GuestPlan(pages=65537, order="random", seed=3, vcpus=2),
        GuestPlan(pages=10007, order="stride", stride=7, vcpus=3, zero_first=True),
        GuestPlan(pages=31, page_bytes=HUGE_BYTES, order="random", vcpus=2),
        GuestPlan(pages=10007, page_bytes=HUGE_BYTES, step_bytes=4096),
        GuestPlan(pages=101, step_bytes=1 << 20, memory_bytes=1 << 30),
        GuestPlan(pages=10009, warm_up=True),
    ],
    ids=lambda plan: (
        f"{plan.pages}-{plan.order}-{plan.vcpus}vcpu-{plan.page_bytes >> 10}k-{plan.step_bytes >> 10}k"
    ),
)
def test_every_page_is_touched_once_in_order_and_no_other(plan: GuestPlan):
    with SmallGuest(plan) as guest:
        run = guest.run()
        words = guest.memory.view().view("<u8")
        for vcpu in run.vcpus:
            gfns = plan.gfns(vcpu.index)
            first_words = ((gfns - run.first_gfn) << 12) // 8
            assert np.array_equal(words[first_words], gfns << 12)
            assert np.array_equal(words[first_words + 1], np.arange(len(gfns)))
            assert vcpu.phases["touch"].touches == len(gfns)
        assert np.count_nonzero(words) <= 2 * plan.pages
        del words
    backing = max(plan.page_bytes, 4096)
    backed = len(np.unique(np.arange(plan.pages, dtype=np.int64) * plan.step_bytes // backing))
    assert run.resident_pages == backed * backing >> 12
    # The touched pages and the low area (tables too where KVM maps guest memory directly).
    mapped = run.kvm_counters["pages_4k"] + run.kvm_counters["pages_2m"]
    # A low area in one huge page is resident as a whole, and a KVM that shadows page tables then maps up to
    # 8 neighbours in one fault.
    low = len(run.low_gfns)
    around = 8 * len({gfn // 8 for gfn in run.low_gfns}) - low if plan.page_bytes > PAGE_BYTES else 0
    assert backed < mapped <= backed + low + around
    # vCPUs may meet in a large page, or in a table that both need: those faults find their work done.
    fixed = run.kvm_counters["pf_fixed"]
    assert mapped - around <= fixed <= mapped + (plan.vcpus - 1) * (low + plan.share(1 % plan.vcpus))


def test_a_warm_up_touches_as_much_memory_as_the_guest_has_and_none_of_the_guest_s(
    monkeypatch: pytest.MonkeyPatch,
):
    touched: list[GuestMemory] = []
    advise = GuestMemory.advise

    def spy(memory: GuestMemory, advice: int, *rest: int) -> None:
        advise(memory, advice, *rest)
        if advice == MADV_POPULATE_WRITE:
            touched.append(memory)

    monkeypatch.setattr(GuestMemory, "advise", spy)
    plan = GuestPlan(pages=101, hot_add_pages=103, warm_up=True)
    with SmallGuest(plan) as guest:
        (warmed,) = touched
        assert warmed.size_bytes == plan.memory_bytes + plan.added_bytes
        mine = guest.memory.address, guest.memory.address + guest.memory.size_bytes
        assert not mine[0] < warmed.address + warmed.size_bytes or not warmed.address < mine[1]
        assert guest.run().resident_pages == 101 + 103


def test_reading_maps_and_preallocating_backs_everything():
    with SmallGuest(GuestPlan(pages=1009, access="read")) as guest:
        assert guest.run().to_json()["touched_pages"] == 1009
    plan = GuestPlan(pages=1009, prealloc=True)
    with SmallGuest(plan) as guest:
        assert guest.run().resident_pages == (plan.memory_bytes - HUGE_BYTES) >> 12


def test_zeroing_first_leaves_nothing_to_fault_on():
    with SmallGuest(GuestPlan(pages=4099, zero_first=True, order="random")) as guest:
        phases = guest.run().vcpus[0].phases
    assert list(phases) == ["zero", "touch"]
    assert phases["touch"].cpu_ns < phases["zero"].cpu_ns


def test_vcpu_threads_run_side_by_side_under_qemus_names():
    names: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for comm in Path("/proc/self/task").glob("*/comm"):
                try:
                    names.add(comm.read_text().strip())
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with SmallGuest(GuestPlan(pages=65537, vcpus=2)) as guest:
            touches = [vcpu.phases["touch"] for vcpu in guest.run().vcpus]
    finally:
        stop.set()
        watcher.join()
    assert {"CPU 0/KVM", "CPU 1/KVM"} <= names
    latest_start = max(phase.start_ns for phase in touches)
    assert all(phase.start_ns + phase.elapsed_ns > latest_start for phase in touches)


def test_a_failing_guest_is_an_error_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    build = guest_code.build

    def broken(*args, **kwargs):
        code, labels, listing = build(*args, **kwargs)
        return b"\x0f\x0b" + code[2:], labels, listing  # ud2 without a handler: a triple fault

    monkeypatch.setattr(small_guest.guest_code, "build", broken)
    before = open_fds(), threading.active_count()
    with pytest.raises(FailedError, match="left phase touch"), SmallGuest(GuestPlan(vcpus=2)) as guest:
        guest.run()
    assert (open_fds(), threading.active_count()) == before


def test_the_constructor_closes_what_it_opened_when_it_fails(monkeypatch: pytest.MonkeyPatch):
    def broken(*_):
        raise FailedError("no")

    before = open_fds()
    monkeypatch.setattr(small_guest, "_enter_long_mode", broken)
    with pytest.raises(FailedError):
        SmallGuest(GuestPlan(vcpus=2))
    assert open_fds() == before


def test_the_command_waits_holds_and_ends_on_ctrl_c():
    command = [
        sys.executable,
        "-m",
        "tracekit",
        "lab",
        "guest",
        "--pages",
        "101",
        "--wait",
        "--hold",
        "60",
        "--json",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stderr.readline().startswith("ready")
        process.stdin.write("\n")
        process.stdin.flush()
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        document = json.loads("".join(lines))
        assert document["touched_pages"] == 101
        assert Path(f"/proc/{document['pid']}").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_an_endless_guest_is_interrupted(monkeypatch: pytest.MonkeyPatch):
    build = guest_code.build

    def endless(*args, **kwargs):
        code, labels, listing = build(*args, **kwargs)
        return b"\xeb\xfe" + code[2:], labels, listing  # jmp to itself

    monkeypatch.setattr(small_guest.guest_code, "build", endless)
    main_thread = threading.main_thread().ident
    assert main_thread
    timer = threading.Timer(0.5, signal.pthread_kill, (main_thread, signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), SmallGuest(GuestPlan(vcpus=2)) as guest:
        guest.run()
    assert time.monotonic() - started < 5
    deadline = time.monotonic() + 2
    while vcpus := [path for path in Path("/proc/self/task").glob("*/comm") if "KVM" in path.read_text()]:
        assert time.monotonic() < deadline, vcpus


def run(plan: GuestPlan):
    with SmallGuest(plan) as guest:
        return guest.run()


def cpu_ns(result, phase: str) -> int:
    return result.vcpus[0].phases[phase].cpu_ns


def test_an_enlightened_guest_skips_zeroing_boot_and_added_memory():
    plan = {"pages": 4099, "zero_first": True, "hot_add_pages": 1009, "vcpus": 2}
    plain, enlightened = run(GuestPlan(**plan)), run(GuestPlan(**plan, enlightened="port"))
    for result in (plain, enlightened):
        assert result.touched_pages == 4099 + 1009
        assert result.resident_pages == 4099 + 1009
        assert [slot[:2] for slot in result.memslots] == [(0, 0), (1, 2 << 20), (2, plain.plan.memory_bytes)]
    assert enlightened.calls == {"call_0x8001": 4, "call_0x8002": 4}
    names = list(enlightened.vcpus[0].phases)
    assert names == ["ask", "zero", "touch", "ask_added", "zero_added", "touch_added"]
    for suffix in ("", "_added"):
        # Where zeroing is skipped, the first touch is the write that follows.
        assert cpu_ns(plain, "zero" + suffix) > cpu_ns(plain, "touch" + suffix)
        assert cpu_ns(enlightened, "zero" + suffix) < cpu_ns(enlightened, "touch" + suffix)


def test_memory_that_was_used_is_zeroed_although_the_guest_asks():
    with SmallGuest(GuestPlan(pages=101, zero_first=True, enlightened="port")) as guest:
        guest.memory.view()[4000] = 7
        guest.run()
        assert guest.memory.view()[4000] == 7  # the VMM says it is zeroed, and the guest believes it
        guest.run()
        assert guest.memory.view()[4000] == 0


def test_discarded_pages_leave_exactly_and_fault_again():
    plan = GuestPlan(pages=4099, enlightened="port", hint="discard", hint_batch=64, hint_lead=-2, passes=2)
    result = run(plan)
    # At the start of batch b, batch b - 2 goes: b runs from 2 to 64, so the last two whole batches and the
    # 3 pages of batch 64 stay, of 4099 = 64 * 64 + 3.
    assert result.calls["call_0x8003"] == 2 * 63
    assert result.calls["discard_pages"] == 2 * 63 * 64
    assert result.resident_pages == 4099 - 63 * 64
    with SmallGuest(plan) as guest:
        guest.run()
        view = guest.memory.view().view("<u8")
        assert np.flatnonzero(view[::512]).min() == 63 * 64
        del view


def test_hot_hints_prefault_what_is_ahead():
    plan = GuestPlan(pages=4099, enlightened="port", hint="hot", hint_batch=256, hint_lead=3, think=5000)
    result = run(plan)
    assert result.calls["hot_pages"] == 4099 - 3 * 256
    assert 0 < result.calls["prefaulted_pages"] <= result.calls["hot_pages"]
    assert result.resident_pages == 4099


def test_hyperv_calls_are_made_or_refused_with_the_way_out():
    plan = GuestPlan(pages=101, enlightened="hyperv")
    if can_run_linux_under_kvm():
        assert run(plan).calls == {"call_0x8001": 1, "call_0x8002": 1}
    else:
        with pytest.raises(CapabilityError) as caught:
            SmallGuest(plan)
        assert "--enlightened port" in caught.value.hint
