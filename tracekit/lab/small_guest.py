"""A small KVM guest: real vCPUs that touch exactly the pages they were told to, and nothing else.

Guest physical memory: slot 0 is the low area of 2 MiB (page tables, code); slot 1 begins at 2 MiB and holds
the touched pages; slot 2, behind it, is added at run time. The guest runs in 64-bit mode on an identity map
of 2 MiB guest pages. Segments have DPL 3 and pages the user bit, because a KVM that shadows page tables from
user mode (PVM) runs those natively and emulates ring 0; I/O privilege level 3 lets `out` pass. Only Hyper-V's
MSRs and hypercalls need ring 0. vCPU v of n owns pages v, v + n, v + 2n, …
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import numpy as np

from tracekit.datasets.memory_limit import charged_bytes
from tracekit.errors import CapabilityError, FailedError
from tracekit.lab import guest_code
from tracekit.lab.enlightenment import Backing, Enlightenment
from tracekit.lab.guest_memory import HUGE_BYTES, MADV_MERGEABLE, MADV_POPULATE_WRITE, GuestMemory
from tracekit.lab.guest_plan import LOW_BYTES, RANGE_GPA, GuestPlan, GuestRun, Phase, PhaseRun, VcpuRun
from tracekit.lab.hyperv import with_hyperv_leaves
from tracekit.lab.ksm import Sharing
from tracekit.lab.kvm import (
    CAP_HYPERV,
    CAP_PRE_FAULT_MEMORY,
    EXIT_HYPERV,
    EXIT_INTR,
    EXIT_IO,
    Kvm,
    Regs,
    Segment,
    Vcpu,
)
from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.thread_times import waited_ns

__all__ = ["SmallGuest"]

_PML4: Final = 0x1000
_PDPT: Final = 0x2000
_CODE: Final = 0x3000
_CODE_BYTES: Final = 0x1000
_HYPERCALL: Final = 0x4000  # Hyper-V's hypercall page, filled by KVM
_CALLS: Final = 0x10000  # each vCPU's call pages: input, output, stack
_CALLS_BYTES: Final = guest_code.CALL_STACK
_PDS: Final = 0x100000  # one page directory for each GiB
_GIB: Final = 1 << 30

# Page-table bits: present, writable, user, accessed, dirty, and "large" in a page directory entry.
# Accessed and dirty are set beforehand, so that no walk has to write them.
_TABLE: Final = 0x27
_LARGE: Final = 0xE7


class SmallGuest:
    """A VM built after a plan; `run` runs its phases, `close` (or the with block) ends it.

    Raises `CapabilityError` where KVM or something the plan needs is missing, `FailedError` where the guest
    misbehaves.
    """

    def __init__(self, plan: GuestPlan) -> None:
        self.plan = plan
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as cleanup:
            self.kvm = cleanup.enter_context(Kvm())
            if plan.enlightened == "hyperv":
                self._need_hyperv()
            self.low = cleanup.enter_context(GuestMemory(LOW_BYTES, page_bytes=plan.page_bytes))
            self.memory = cleanup.enter_context(
                GuestMemory(plan.memory_bytes - RANGE_GPA, page_bytes=plan.page_bytes)
            )
            self._backings = [Backing(RANGE_GPA, self.memory)]
            if plan.hot_add_pages:
                added = cleanup.enter_context(GuestMemory(plan.added_bytes, page_bytes=plan.page_bytes))
                self._added = Backing(plan.memory_bytes, added)
            if plan.warm_up:
                self._warm_up()
            self._prealloc_ns = self._populate() if plan.prealloc else 0
            self.vm = cleanup.enter_context(self.kvm.create_vm())
            self._memslots: list[tuple[int, int, int, int]] = []
            cleanup.callback(self._remove_memslots)
            self._add_memslot(0, self.low)
            self._add_memslot(RANGE_GPA, self.memory)
            self._sharing = Sharing() if plan.mergeable else None
            if plan.mergeable:
                self.memory.advise(MADV_MERGEABLE)
            if plan.twins:
                self._fill_with_twins()
            self._labels = self._fill_low_area()
            self._vcpus = [self._create_vcpu(index, cleanup) for index in range(plan.vcpus)]
            self._started: set[int] = set()
            self._pre_fault_ns = self._map_ahead(cleanup) if plan.pre_fault else 0
            self._enlightenment: Enlightenment | None = None
            if plan.enlightened != "off":
                self._enlightenment = cleanup.enter_context(self._enlighten(cleanup))
            self._stack = cleanup.pop_all()

    def run(self) -> GuestRun:
        """Run every phase on every vCPU, side by side, and return what happened."""
        if self.plan.cgroup:  # what was touched until now stays charged to the caller's
            Path(self.plan.cgroup, "cgroup.procs").write_text(str(os.getpid()))
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
            finally:
                left[index].set()

        left = [threading.Event() for _ in runs]
        threads = [threading.Thread(target=vcpu_thread, args=(index,)) for index in range(self.plan.vcpus)]
        with self._kicked_out(threads, left):
            for thread in threads:
                thread.start()
            for event in left:
                # In short waits: once polars is loaded, SIGINT restarts system calls, and in one long wait
                # Python would never get to raise KeyboardInterrupt.
                while not event.wait(0.1):
                    pass
        if failures:
            raise failures[0]
        return GuestRun(
            plan=self.plan,
            pid=os.getpid(),
            first_gfn=RANGE_GPA >> 12,
            low_gfns=self._low_gfns(),
            memslots=tuple(self._memslots),
            vcpus=tuple(runs),
            resident_pages=sum(backing.memory.resident_pages() for backing in self._backings),
            kvm_counters=self._counters(),
            calls=self._enlightenment.counts() if self._enlightenment else {},
            hint_waits_ns=tuple(self._enlightenment.waits_ns) if self._enlightenment else (),
            maps_ahead=self.kvm.extension(CAP_PRE_FAULT_MEMORY) > 0,
            prealloc_ns=self._prealloc_ns,
            pre_fault_ns=self._pre_fault_ns,
            charged_bytes=charged_bytes(Path(self.plan.cgroup)) if self.plan.cgroup else 0,
            shared=self._sharing.samples if self._sharing else {},
        )

    def close(self) -> None:
        """End the VM and free its memory."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _warm_up(self) -> None:
        """Touch and free as much memory of this host as the guest has, in huge pages.

        Where the host is a VM whose own host backs memory lazily and takes back what has been free for 2 s
        (free page reporting), the first touch of a huge page takes milliseconds. The guest's own memory is
        mapped already, so that none of it gets the addresses that are given back here.
        """
        with GuestMemory(self.plan.memory_bytes + self.plan.added_bytes, page_bytes=HUGE_BYTES) as memory:
            memory.advise(MADV_POPULATE_WRITE)

    def _populate(self) -> int:
        """Back all memory, before there is a VM (as QEMU's -mem-prealloc does); return the ns it took.

        Without what it waited for a CPU.
        """
        started = time.monotonic_ns() - waited_ns()
        for memory in (self.low, self.memory):
            memory.advise(MADV_POPULATE_WRITE)
        return time.monotonic_ns() - waited_ns() - started

    def _map_ahead(self, cleanup: contextlib.ExitStack) -> int:
        """Map the populated memory into the guest, through a vCPU that never runs; return the ns it took."""
        if not self.kvm.extension(CAP_PRE_FAULT_MEMORY):
            raise CapabilityError(
                "this KVM can't map memory ahead of its use (Linux 6.11 with nested paging can)",
                hint="--prealloc alone; tracekit lab host run -- … has such a KVM",
            )
        mapper = self._create_vcpu(self.plan.vcpus, cleanup)
        started = time.monotonic_ns() - waited_ns()
        mapper.pre_fault(0, LOW_BYTES)
        mapper.pre_fault(RANGE_GPA, self.memory.size_bytes)
        return time.monotonic_ns() - waited_ns() - started

    def _fill_with_twins(self) -> None:
        """Give each page of the first half a content of its own, and the second half the same."""
        half, step = self.plan.pages // 2, self.plan.step_bytes
        content = np.random.default_rng(self.plan.seed).integers(0, 256, (half, 4096), dtype=np.uint8)
        pages = self.memory.view()[: 2 * half * step].reshape(2, half, step)
        pages[:, :, :4096] = content

    def _need_hyperv(self) -> None:
        if not self.kvm.extension(CAP_HYPERV) or not can_run_linux_under_kvm():
            raise CapabilityError(
                "this KVM gives guests no Hyper-V hypercalls (it needs hardware virtualisation)",
                hint="--enlightened port makes the same calls; tracekit lab host run -- … has Hyper-V's",
            )

    def _add_memslot(self, gpa: int, memory: GuestMemory) -> None:
        slot = len(self._memslots)
        self.vm.set_memslot(slot, gpa, memory.size_bytes, memory.address)
        self._memslots.append((slot, gpa, memory.size_bytes, memory.address))

    def _remove_memslots(self) -> None:
        """Say that the VM is over before its addresses become other memory of this process."""
        for slot, gpa, _, address in self._memslots:
            self.vm.set_memslot(slot, gpa, 0, address)

    def _create_vcpu(self, index: int, cleanup: contextlib.ExitStack) -> Vcpu:
        vcpu = cleanup.enter_context(self.vm.create_vcpu(index))
        cpuid = self.kvm.supported_cpuid()
        ring = 3
        if self.plan.enlightened == "hyperv":
            cpuid, ring = with_hyperv_leaves(cpuid), 0
        vcpu.set_cpuid(cpuid)
        _enter_long_mode(vcpu, ring)
        return vcpu

    def _enlighten(self, cleanup: contextlib.ExitStack) -> Enlightenment:
        """Prefaulting maps into the guest through a vCPU of its own: the others are busy running."""
        mapper = None
        if self.kvm.extension(CAP_PRE_FAULT_MEMORY):
            mapper = self._create_vcpu(self.plan.vcpus + 1, cleanup).pre_fault
        return Enlightenment(self._backings, answers=self.plan.answered, map_pages=mapper)

    @contextlib.contextmanager
    def _kicked_out(self, threads: list[threading.Thread], left: list[threading.Event]) -> Iterator[None]:
        """Make an exception in the block (Ctrl-C) end the vCPU threads: only a signal ends KVM_RUN.

        Waits for events, not for threads: an interrupted Thread.join takes a running thread for a dead one
        (Python 3.11), and a vCPU that ran on would write to memory that is no longer the guest's.
        """
        kick = signal.SIGRTMIN
        in_main = threading.current_thread() is threading.main_thread()
        previous = signal.signal(kick, lambda *_: None) if in_main else None
        try:
            yield
        except BaseException:
            for vcpu in self._vcpus:
                vcpu.stop()
            for thread, event in zip(threads, left, strict=True):
                while thread.ident and not event.wait(0.05):
                    if in_main:
                        with contextlib.suppress(ProcessLookupError):
                            signal.pthread_kill(thread.ident, kick)
            raise
        finally:
            if in_main:
                signal.signal(kick, previous)

    def _low_gfns(self) -> tuple[int, ...]:
        """The low area's gfns that a running guest needs: tables, code, call pages."""
        gfns = [_PML4 >> 12, _PDPT >> 12, _CODE >> 12]
        gfns += range(_PDS >> 12, (_PDS >> 12) + self._directories())
        if self.plan.enlightened == "hyperv":
            gfns.append(_HYPERCALL >> 12)
        if self.plan.enlightened != "off":
            gfns += range(_CALLS >> 12, (_CALLS + self.plan.vcpus * _CALLS_BYTES) >> 12)
        return tuple(sorted(gfns))

    def _counters(self) -> dict[str, int]:
        """KVM's counters of the VM and, summed, of its vCPUs."""
        total = Counter(self.vm.counters())
        for vcpu in self._vcpus:
            total.update(vcpu.counters())
        return dict(total)

    def _directories(self) -> int:
        return -(-(self.plan.memory_bytes + self.plan.added_bytes) // _GIB)

    def _fill_low_area(self) -> dict[str, int]:
        """Write page tables and code; return each loop's address."""
        plan = self.plan
        low = self.low.view()
        table = low.view("<u8")
        directories = self._directories()
        table[_PML4 // 8] = _PDPT | _TABLE
        table[_PDPT // 8 : _PDPT // 8 + directories] = _PDS + np.arange(directories) * 4096 | _TABLE
        entries = (plan.memory_bytes + plan.added_bytes) // HUGE_BYTES
        table[_PDS // 8 : _PDS // 8 + entries] = np.arange(entries) * HUGE_BYTES | _LARGE
        code, labels, _ = guest_code.build(
            plan.loops(),
            mixer=plan.mixer(),
            step_bytes=plan.step_bytes,
            transport=None if plan.enlightened == "off" else plan.enlightened,
            hypercall_page=_HYPERCALL,
        )
        if len(code) > _CODE_BYTES:
            raise FailedError(f"the guest's code is {len(code)} bytes long, its page {_CODE_BYTES}")
        low[_CODE : _CODE + len(code)] = np.frombuffer(code, dtype=np.uint8)
        return {name: _CODE + offset for name, offset in labels.items()}

    def _run_vcpu(self, vcpu: Vcpu, run: VcpuRun, barrier: threading.Barrier) -> None:
        run.tid = threading.get_native_id()
        # QEMU's name for a vCPU thread: tools that look for vCPUs look for this.
        Path("/proc/thread-self/comm").write_text(f"CPU {run.index}/KVM")
        for phase in self.plan.phases():
            # KVM finishes the `out` of the phase before when the guest runs on, so rip must stay where it is.
            rip = vcpu.regs().rip if run.index in self._started else 0
            self._started.add(run.index)
            vcpu.set_regs(self._phase_regs(run.index, phase, rip=rip))
            barrier.wait()
            if phase.adds_memory:
                if run.index == 0:
                    self._add_memslot(self._added.gpa, self._added.memory)
                    self._backings.append(self._added)
                barrier.wait()
            start_waited_ns = waited_ns()
            start_ns, start_cpu_ns = time.monotonic_ns(), time.thread_time_ns()
            self._run_phase(vcpu, run.index, phase)
            cpu_ns = time.thread_time_ns() - start_cpu_ns
            elapsed_ns = time.monotonic_ns() - start_ns
            waited = min(waited_ns() - start_waited_ns, elapsed_ns)
            if self._enlightenment and phase.loop != "ask":
                self._enlightenment.used()
            touches = 0 if phase.loop == "ask" else vcpu.regs().rsi
            run.phases[phase.name] = PhaseRun(start_ns, elapsed_ns, cpu_ns, waited, touches)
            if self._sharing and run.index == 0:
                self._sharing.sample(phase.name)

    def _run_phase(self, vcpu: Vcpu, index: int, phase: Phase) -> None:
        """Run the guest, answering its calls, until it says that the phase is done."""
        while True:
            reason = vcpu.run()
            if reason == EXIT_IO and vcpu.io_port() == guest_code.DONE_PORT:
                return
            if reason == EXIT_IO and vcpu.io_port() == guest_code.CALL_PORT:
                regs = vcpu.regs()
                regs.rax = self._answer(regs.rcx, regs.rdx, regs.r8)
                vcpu.set_regs(regs)
            elif reason == EXIT_HYPERV and (call := vcpu.hypercall()):
                vcpu.answer_hypercall(self._answer(*call))
            elif reason == EXIT_INTR:
                raise FailedError("the guest was interrupted before it was done")
            else:
                raise FailedError(
                    f"vCPU {index} left phase {phase.name} with {vcpu.describe_exit(reason)}",
                    hint="tracekit doctor",
                )

    def _answer(self, control: int, input_gpa: int, output_gpa: int) -> int:
        """Answer a call whose pages the guest named; they must lie in the low area."""
        if not self._enlightenment or max(input_gpa, output_gpa) > LOW_BYTES - 4096:
            raise FailedError(f"call {control:#x} names pages at {input_gpa:#x} and {output_gpa:#x}")
        low = self.low.view()
        status, output = self._enlightenment.call(control, low[input_gpa : input_gpa + 4096].tobytes())
        if output:
            low[output_gpa : output_gpa + 4096] = np.frombuffer(output, dtype=np.uint8)
        return status

    def _phase_regs(self, index: int, phase: Phase, *, rip: int) -> Regs:
        plan = self.plan
        calls = _CALLS + index * _CALLS_BYTES
        return Regs(
            rip=rip or self._labels[phase.loop],
            rbp=self._labels[phase.loop],
            rsp=calls + guest_code.CALL_STACK,
            rflags=0x3002,  # bit 1 is always set; I/O privilege level 3
            r9=plan.vcpus * plan.step_bytes,
            r10=plan.share(index, phase.pages),
            r11=(1 << plan.mixer().bits) - 1,
            r13=plan.stride,
            r14=phase.gpa + index * plan.step_bytes,
            r15=calls,
        )


def _enter_long_mode(vcpu: Vcpu, ring: int) -> None:
    """Put a vCPU in 64-bit mode on the low area's page tables, in ring 0 or 3."""
    sregs = vcpu.sregs()
    code = Segment(limit=0xFFFFFFFF, selector=0x30 | ring, type=11, present=1, dpl=ring, s=1, l=1, g=1)
    data = Segment(limit=0xFFFFFFFF, selector=0x28 | ring, type=3, present=1, dpl=ring, db=1, s=1, g=1)
    sregs.cs = code
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, data)
    sregs.cr3 = _PML4
    sregs.cr4 = 1 << 5  # physical address extension
    sregs.efer = 1 << 8 | 1 << 10  # long mode enabled and active
    sregs.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1  # paging, write protect, NE, ET, protected mode
    vcpu.set_sregs(sregs)
