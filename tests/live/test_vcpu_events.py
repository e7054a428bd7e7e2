"""Halts and KVM's own hypercalls: the programs run by the kernel on made-up ones, and a vCPU that halts."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.live.made_up import MadeUp, made_up_point
from tests.live.recording import of_kind, record_command
from tracekit.probes import tracefs
from tracekit.probes.wire import VALID
from tracekit.trace.schema import KIND_CODE

POINTS = {
    "kvm_vcpu_wakeup": ("ns", "waited", "valid"),
    "kvm_hypercall": ("nr", "a0", "a1", "a2", "a3"),
}
KVM_HC_VAPIC_POLL_IRQ, KVM_HC_KICK_CPU, KVM_HC_MAP_GPA_RANGE = 1, 5, 12


class Vcpu(MadeUp):
    """The programs loaded, and this thread traced as vCPU 1 of VM 3."""

    def __init__(self) -> None:
        def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
            names = POINTS.get(event)
            return made_up_point(category, event, *names) if names else tracefs.tracepoint(category, event)

        super().__init__(lookup, ("kvm_ioctl", "hypercall", "halt"), POINTS, mmu=("npt", "kvm_amd"))
        self.trace_this_thread()

    def see(self, event: str, *arguments: int) -> np.ndarray:
        """Let the event happen in this thread; return the records that come of it."""
        self.run(event, *arguments)
        records = self.records()
        assert (records["vm"] == 3).all()
        assert (records["vcpu"] == 1).all()
        assert (records["valid"] & VALID["vcpu"]).all()
        return records


@pytest.fixture(scope="module")
def vcpu() -> Iterator[Vcpu]:
    with Vcpu.loaded() as made:
        yield made


@pytest.mark.live("bpf", "root")
@pytest.mark.parametrize(("waited", "kind"), [(1, "vcpu_block"), (0, "vcpu_wake")])
def test_a_halt_is_a_block_when_it_slept_and_a_wake_when_polling_was_enough(
    vcpu: Vcpu, waited: int, kind: str
) -> None:
    (record,) = vcpu.see("kvm_vcpu_wakeup", 123_456, waited, 1)
    assert (record["kind"], record["latency_ns"]) == (KIND_CODE[kind], 123_456)
    assert record["valid"] & VALID["latency_ns"]


@pytest.mark.live("bpf", "root")
@pytest.mark.parametrize("number", [KVM_HC_VAPIC_POLL_IRQ, KVM_HC_KICK_CPU, KVM_HC_MAP_GPA_RANGE])
def test_a_hypercall_has_its_number_and_only_a_range_of_memory_its_place(vcpu: Vcpu, number: int) -> None:
    (record,) = vcpu.see("kvm_hypercall", number, 0x1234_5000, 7, 0x10, 0)
    assert (record["kind"], record["arg"]) == (KIND_CODE["hypercall"], number)
    has_place = bool(record["valid"] & VALID["gfn"])
    assert has_place == (number == KVM_HC_MAP_GPA_RANGE)
    assert (record["gfn"], record["pages"]) == ((0x12345, 7) if has_place else (0, 0))


@pytest.mark.live("bpf", "root")
def test_who_is_not_traced_halts_and_calls_unseen(vcpu: Vcpu) -> None:
    threads = vcpu.programs[b"threads"]
    tid = threads.Key(threading.get_native_id())
    traced = threads[tid]
    del threads[tid]
    try:
        assert not len(vcpu.see("kvm_vcpu_wakeup", 1, 1, 1))
        assert not len(vcpu.see("kvm_hypercall", 1, 0, 0, 0, 0))
    finally:
        threads[tid] = traced


HALTS = """
import fcntl, json, signal, struct, sys
from tracekit.lab.kvm import EXIT_INTR, Kvm
CREATE_IRQCHIP, SET_MP_STATE, HALTED = 0xAE60, 0x4004AE99, 3
signal.signal(signal.SIGALRM, lambda *_: None)
with Kvm() as kvm, kvm.create_vm() as vm:
    fcntl.ioctl(vm.fd, CREATE_IRQCHIP, 0)
    with vm.create_vcpu(2) as vcpu:
        waits = [0]
        for halt in range(13):
            fcntl.ioctl(vcpu.fd, SET_MP_STATE, struct.pack("<I", HALTED))
            signal.setitimer(signal.ITIMER_REAL, 0.005 * (1 + halt % 3))
            assert vcpu.run() == EXIT_INTR
            waits.append(vcpu.counters()["halt_wait_ns"])
json.dump(waits, open(sys.argv[1], "w"))
"""


@pytest.mark.live("kvm", "bpf", "root")
def test_each_halt_of_a_vcpu_is_a_row_as_long_as_kvm_waited(tmp_path: Path) -> None:
    account = tmp_path / "waits.json"
    trace, _ = record_command(tmp_path / "halts.trace", sys.executable, "-c", HALTS, str(account))
    total = json.loads(account.read_text())
    waits = [after - before for before, after in pairwise(total)]
    rows = of_kind(trace, "vcpu_block")
    assert len(waits) == rows.height == 13
    assert rows["vcpu"].to_list() == [2] * 13
    # The row's wait begins a little before that of KVM's counter, and ends with it.
    for latency, wait in zip(rows["latency_ns"].to_list(), waits, strict=True):
        assert 0 <= latency - wait < 4_000_000
    assert of_kind(trace, "vcpu_wake").is_empty()
