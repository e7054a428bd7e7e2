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

from tracekit.errors import FailedError
from tracekit.lab import guest_code, small_guest
from tracekit.lab.guest_memory import HUGE_BYTES
from tracekit.lab.small_guest import GuestPlan, SmallGuest


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
    if run.kvm_counters:
        mapped = run.kvm_counters["pages_4k"] + run.kvm_counters["pages_2m"]
        # Tables count as pages of their own where KVM maps guest memory directly (EPT, NPT).
        assert backed < mapped <= backed + len(run.low_gfns)


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
    assert phases["touch"].elapsed_ns < phases["zero"].elapsed_ns


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
    before = open_fds()
    monkeypatch.setattr(small_guest, "_enter_long_mode", lambda _: (_ for _ in ()).throw(FailedError("no")))
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
