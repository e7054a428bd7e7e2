"""A small KVM guest: real vCPUs that touch exactly the pages they were told to, and nothing else.

Guest physical memory: slot 0 is the low area of 2 MiB (page tables, code); slot 1 begins at 2 MiB and holds
the touched pages. The guest runs in 64-bit mode on an identity map of 2 MiB guest pages. Segments have DPL 3
and pages the user bit, because a KVM that shadows page tables from user mode (PVM) runs those natively and
emulates ring 0; I/O privilege level 3 lets `out` pass. vCPU v of n owns pages v, v + n, v + 2n, …
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from tracekit.errors import FailedError, UsageError
from tracekit.lab import guest_code
from tracekit.lab.guest_memory import HUGE_BYTES, MADV_POPULATE_WRITE, GuestMemory
from tracekit.lab.kvm import EXIT_INTR, EXIT_IO, Kvm, Regs, Segment, Vcpu

__all__ = ["GuestPlan", "GuestRun", "Phase", "SmallGuest", "VcpuRun"]

_LOW_BYTES: Final = HUGE_BYTES
_PML4: Final = 0x1000
_PDPT: Final = 0x2000
_CODE: Final = 0x3000
_PDS: Final = 0x4000  # one page directory for each GiB
_GIB: Final = 1 << 30
_RANGE_GPA: Final = _LOW_BYTES

# Page-table bits: present, writable, user, accessed, dirty, and "large" in a page directory entry.
# Accessed and dirty are set beforehand, so that no walk has to write them.
_TABLE: Final = 0x27
_LARGE: Final = 0xE7


@dataclass(frozen=True)
class GuestPlan:
    """What a small guest does; every field has the meaning of `tracekit lab guest`'s option of that name.

    `pages` are touched, `step_bytes` apart (default: `page_bytes`), in `order`, by `vcpus` on interleaved
    shares. `page_bytes` is the host's backing: 4096 or 2 MiB. Raises `UsageError` for what can't be.

    >>> GuestPlan(pages=7, vcpus=2).share(1), GuestPlan(pages=7).gfns(0)[:2].tolist()
    (3, [512, 513])
    """

    pages: int = 4096
    memory_bytes: int = 0
    order: guest_code.Order = "seq"
    stride: int = 2
    seed: int = 0
    access: guest_code.Access = "write"
    zero_first: bool = False
    vcpus: int = 1
    page_bytes: int = 4096
    step_bytes: int = 0
    prealloc: bool = False

    def __post_init__(self) -> None:
        if self.page_bytes not in (4096, HUGE_BYTES):
            raise UsageError(f"no page size {self.page_bytes}", hint="--page-size 4k or --page-size 2m")
        object.__setattr__(self, "step_bytes", self.step_bytes or self.page_bytes)
        if self.step_bytes % 4096 or not 4096 <= self.step_bytes <= _GIB:
            raise UsageError("--step must be a multiple of 4 KiB, at most 1 GiB", hint="--step 4k")
        if not 1 <= self.vcpus <= min(self.pages, 64):
            raise UsageError("each vCPU needs a page to touch, and 64 vCPUs is the most", hint="--vcpus 1")
        if self.stride < 1:
            raise UsageError("--stride must be at least 1 page", hint="--stride 7")
        needed = _RANGE_GPA + self.pages * self.step_bytes
        memory = self.memory_bytes or -(-needed // HUGE_BYTES) * HUGE_BYTES
        object.__setattr__(self, "memory_bytes", memory)
        if memory < needed or memory % HUGE_BYTES:
            raise UsageError(
                f"--memory must be whole 2 MiB and hold the low area and the pages: {needed} bytes at least",
                hint="leave --memory out to get just enough",
            )
        if memory > 256 * _GIB:
            raise UsageError("a small guest has at most 256 GiB", hint="fewer --pages or a smaller --step")

    def share(self, vcpu: int) -> int:
        """Return how many pages a vCPU touches."""
        return (self.pages - vcpu + self.vcpus - 1) // self.vcpus

    def gfns(self, vcpu: int) -> npt.NDArray[np.int64]:
        """Return the gfns a vCPU touches in the order it touches them (computed, not observed)."""
        bits = guest_code.random_bits(self.share(0))
        indices = np.fromiter(
            guest_code.order_indices(
                self.order, self.share(vcpu), seed=self.seed, stride=self.stride, bits=bits
            ),
            dtype=np.int64,
        )
        return (_RANGE_GPA + (indices * self.vcpus + vcpu) * self.step_bytes) >> 12

    def phases(self) -> dict[str, tuple[guest_code.Order, guest_code.Access]]:
        """Return the phases in their order, name -> (order, access)."""
        zero: dict[str, tuple[guest_code.Order, guest_code.Access]] = {"zero": ("seq", "zero")}
        return {**(zero if self.zero_first else {}), "touch": (self.order, self.access)}


@dataclass(frozen=True)
class Phase:
    """One phase of one vCPU, timed by its VMM around KVM_RUN on CLOCK_MONOTONIC."""

    start_ns: int
    elapsed_ns: int
    touches: int


@dataclass
class VcpuRun:
    """What one vCPU did: its thread and its phases by name."""

    index: int
    tid: int
    phases: dict[str, Phase] = field(default_factory=dict)


@dataclass(frozen=True)
class GuestRun:
    """What a small guest did: counts are the guest's own, `resident_pages` is the kernel's (4 KiB units)."""

    plan: GuestPlan
    pid: int
    first_gfn: int
    low_gfns: tuple[int, ...]
    memslots: tuple[tuple[int, int, int, int], ...]
    vcpus: tuple[VcpuRun, ...]
    resident_pages: int
    kvm_counters: dict[str, int]

    def summary(self) -> str:
        """Return the run in one line of words."""
        slowest = {
            name: max(vcpu.phases[name].elapsed_ns for vcpu in self.vcpus) / 1e6
            for name in self.plan.phases()
        }
        touched = sum(vcpu.phases["touch"].touches for vcpu in self.vcpus)
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in slowest.items())
        return (
            f"touched {touched} pages from gfn {self.first_gfn} on {self.plan.vcpus} vCPU"
            f"{'s' if self.plan.vcpus > 1 else ''}: {times}; resident {self.resident_pages * 4} KiB"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the run as one JSON-ready document."""
        return {
            "plan": asdict(self.plan),
            "pid": self.pid,
            "first_gfn": self.first_gfn,
            "touched_pages": sum(vcpu.phases["touch"].touches for vcpu in self.vcpus),
            "low_gfns": list(self.low_gfns),
            "resident_pages": self.resident_pages,
            "memslots": [
                dict(zip(("slot", "gpa", "size_bytes", "hva"), slot, strict=True)) for slot in self.memslots
            ],
            "vcpus": [
                {
                    "vcpu": v.index,
                    "tid": v.tid,
                    "phases": {name: vars(phase) for name, phase in v.phases.items()},
                }
                for v in self.vcpus
            ],
            "kvm_counters": self.kvm_counters,
        }


class SmallGuest:
    """A VM built after a plan; `run` runs its phases, `close` (or the with block) ends it.

    Raises `CapabilityError` where KVM or an advice is missing, `FailedError` where the guest misbehaves.
    """

    def __init__(self, plan: GuestPlan) -> None:
        self.plan = plan
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as cleanup:
            self.kvm = cleanup.enter_context(Kvm())
            self.low = cleanup.enter_context(GuestMemory(_LOW_BYTES, page_bytes=4096))
            self.memory = cleanup.enter_context(
                GuestMemory(plan.memory_bytes - _RANGE_GPA, page_bytes=plan.page_bytes)
            )
            self.vm = cleanup.enter_context(self.kvm.create_vm())
            self.memslots = (
                (0, 0, _LOW_BYTES, self.low.address),
                (1, _RANGE_GPA, self.memory.size_bytes, self.memory.address),
            )
            for slot, gpa, size_bytes, hva in self.memslots:
                self.vm.set_memslot(slot, gpa, size_bytes, hva)
            self._phase_offsets = self._fill_low_area()
            cpuid = self.kvm.supported_cpuid()
            self._vcpus = [cleanup.enter_context(self.vm.create_vcpu(index)) for index in range(plan.vcpus)]
            for vcpu in self._vcpus:
                vcpu.set_cpuid(cpuid)
                _enter_long_mode(vcpu)
            self._stack = cleanup.pop_all()

    def run(self) -> GuestRun:
        """Run every phase on every vCPU, side by side, and return what happened."""
        if self.plan.prealloc:
            self.memory.advise(MADV_POPULATE_WRITE)
        runs = [VcpuRun(index, 0) for index in range(self.plan.vcpus)]
        failures: list[BaseException] = []
        barrier = threading.Barrier(self.plan.vcpus)

        def vcpu_thread(index: int) -> None:
            try:
                self._run_vcpu(self._vcpus[index], runs[index], barrier)
            except threading.BrokenBarrierError:
                pass  # a sibling failed, and says why
            except BaseException as error:  # carried to the caller's thread
                failures.append(error)
                barrier.abort()

        threads = [threading.Thread(target=vcpu_thread, args=(index,)) for index in range(self.plan.vcpus)]
        with _kick_on_exit(threads, self._vcpus):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        return GuestRun(
            plan=self.plan,
            pid=os.getpid(),
            first_gfn=_RANGE_GPA >> 12,
            low_gfns=self._low_gfns(),
            memslots=self.memslots,
            vcpus=tuple(runs),
            resident_pages=self.memory.resident_pages(),
            kvm_counters=self.vm.counters(),
        )

    def close(self) -> None:
        """End the VM and free its memory."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _low_gfns(self) -> tuple[int, ...]:
        """The low area's gfns that a running guest needs: tables and code."""
        directories = -(-self.plan.memory_bytes // _GIB)
        return tuple(range(_PML4 >> 12, (_PDS >> 12) + directories))

    def _fill_low_area(self) -> dict[str, int]:
        """Write page tables and code; return each phase's address."""
        plan = self.plan
        low = self.low.view()
        table = low.view("<u8")
        directories = -(-plan.memory_bytes // _GIB)
        table[_PML4 // 8] = _PDPT | _TABLE
        table[_PDPT // 8 : _PDPT // 8 + directories] = _PDS + np.arange(directories) * 4096 | _TABLE
        entries = plan.memory_bytes // HUGE_BYTES
        table[_PDS // 8 : _PDS // 8 + entries] = np.arange(entries) * HUGE_BYTES | _LARGE
        code, labels, _ = guest_code.build(
            plan.phases(),
            seed=plan.seed,
            bits=guest_code.random_bits(plan.share(0)),
            step_bytes=plan.step_bytes,
        )
        low[_CODE : _CODE + len(code)] = np.frombuffer(code, dtype=np.uint8)
        return {name: _CODE + labels[name] for name in plan.phases()}

    def _run_vcpu(self, vcpu: Vcpu, run: VcpuRun, barrier: threading.Barrier) -> None:
        run.tid = threading.get_native_id()
        # QEMU's name for a vCPU thread: tools that look for vCPUs look for this.
        Path("/proc/thread-self/comm").write_text(f"CPU {run.index}/KVM")
        first = True
        for name, address in self._phase_offsets.items():
            vcpu.set_regs(self._phase_regs(run.index, address, rip=address if first else vcpu.regs().rip))
            first = False
            barrier.wait()
            start_ns = time.monotonic_ns()
            reason = vcpu.run()
            elapsed_ns = time.monotonic_ns() - start_ns
            if reason == EXIT_INTR:
                raise FailedError("the guest was interrupted before it was done")
            if reason != EXIT_IO or vcpu.io_port() != guest_code.DONE_PORT:
                raise FailedError(
                    f"vCPU {run.index} left phase {name} with {vcpu.describe_exit(reason)}",
                    hint="tracekit doctor",
                )
            run.phases[name] = Phase(start_ns, elapsed_ns, vcpu.regs().rsi)

    def _phase_regs(self, index: int, address: int, *, rip: int) -> Regs:
        plan = self.plan
        return Regs(
            rip=rip,
            rbp=address,
            rflags=0x3002,  # bit 1 is always set; I/O privilege level 3
            r8=_RANGE_GPA + index * plan.step_bytes,
            r9=plan.vcpus * plan.step_bytes,
            r10=plan.share(index),
            r11=(1 << guest_code.random_bits(plan.share(0))) - 1,
            r13=plan.stride,
        )


def _enter_long_mode(vcpu: Vcpu) -> None:
    """Put a vCPU in 64-bit user mode on the low area's page tables."""
    sregs = vcpu.sregs()
    code = Segment(limit=0xFFFFFFFF, selector=0x33, type=11, present=1, dpl=3, s=1, l=1, g=1)
    data = Segment(limit=0xFFFFFFFF, selector=0x2B, type=3, present=1, dpl=3, db=1, s=1, g=1)
    sregs.cs = code
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, data)
    sregs.cr3 = _PML4
    sregs.cr4 = 1 << 5  # physical address extension
    sregs.efer = 1 << 8 | 1 << 10  # long mode enabled and active
    sregs.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1  # paging, write protect, NE, ET, protected mode
    vcpu.set_sregs(sregs)


@contextlib.contextmanager
def _kick_on_exit(threads: list[threading.Thread], vcpus: list[Vcpu]) -> Iterator[None]:
    """Make an exception in the block (Ctrl-C) end the vCPU threads: only a signal ends KVM_RUN."""
    kick = signal.SIGRTMIN
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(kick, lambda *_: None) if in_main else None
    try:
        yield
    except BaseException:
        for vcpu in vcpus:
            vcpu.stop()
        for thread in threads:
            while thread.is_alive():
                if in_main and thread.ident:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pthread_kill(thread.ident, kick)
                thread.join(0.05)
        raise
    finally:
        if in_main:
            signal.signal(kick, previous)
