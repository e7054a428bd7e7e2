"""What a small guest shall do, checked before anything starts, and what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from tracekit.errors import UsageError
from tracekit.lab import guest_code
from tracekit.lab.guest_memory import HUGE_BYTES
from tracekit.lab.hyperv import MOST_UNITS_OF_A_RANGE, Heat
from tracekit.lab.visit_order import Mixer, Order, order_indices, random_bits

__all__ = ["LOW_BYTES", "RANGE_GPA", "GuestPlan", "GuestRun", "Phase", "PhaseRun", "VcpuRun"]

LOW_BYTES: Final = HUGE_BYTES
"""The low area: page tables, code, call pages; its own memslot."""
RANGE_GPA: Final = LOW_BYTES
"""Where the touched pages begin."""

_GIB: Final = 1 << 30


@dataclass(frozen=True)
class Phase:
    """One run of a loop over a range: `name` in the results, `loop` in the machine code."""

    name: str
    loop: str
    gpa: int
    pages: int
    adds_memory: bool = False


@dataclass(frozen=True)
class GuestPlan:
    """What a small guest does; every field has the meaning of `tracekit lab guest`'s option of that name.

    `pages`, `step_bytes` apart (default: `page_bytes`), are zeroed if asked; `use_pages` of them (default:
    all) are touched in `order`, by `vcpus` on interleaved shares, `passes` times ("read-first": read, then
    written); `hot_add_pages` more are added behind them at run time. `page_bytes` is the host's backing: 4096
    or 2 MiB. With `twins` the VMM gives the second half of the pages the content of the first beforehand. A
    `mergeable` guest's memory is open to KSM, and where that runs its VMM waits for ksmd after each pass.
    What was `prealloc`ated is also mapped into the guest with `pre_fault`. With `warm_up` the VMM first
    touches and frees as much host memory as the guest has.
    `think` is a count of loop turns between touches. An `enlightened` guest
    asks which memory is zeroed and skips zeroing it, where its VMM `answered`; it hints `hint_batch` pages at
    a time, `hint_lead` batches ahead (negative: behind). The memory it touches is charged
    to `cgroup`, a folder (default: the caller's). Raises `UsageError` for what can't be.

    >>> GuestPlan(pages=7, vcpus=2).share(1), GuestPlan(pages=7).gfns(0)[:2].tolist()
    (3, [512, 513])
    """

    pages: int = 4096
    use_pages: int = 0
    memory_bytes: int = 0
    order: Order = "seq"
    stride: int = 2
    seed: int = 0
    access: Literal["write", "read", "read-first"] = "write"
    zero_first: bool = False
    vcpus: int = 1
    page_bytes: int = 4096
    step_bytes: int = 0
    prealloc: bool = False
    pre_fault: bool = False
    warm_up: bool = False
    passes: int = 1
    think: int = 0
    hot_add_pages: int = 0
    enlightened: Literal["off", "port", "hyperv"] = "off"
    answered: bool = True
    hint: Heat | None = None
    hint_batch: int = 512
    hint_lead: int = 1
    cgroup: str = ""
    twins: bool = False
    mergeable: bool = False

    def __post_init__(self) -> None:
        if self.page_bytes not in (4096, HUGE_BYTES):
            raise UsageError(f"no page size {self.page_bytes}", hint="--page-size 4k or --page-size 2m")
        object.__setattr__(self, "step_bytes", self.step_bytes or self.page_bytes)
        if self.step_bytes % 4096 or not 4096 <= self.step_bytes <= _GIB:
            raise UsageError("--step must be a multiple of 4 KiB, at most 1 GiB", hint="--step 4k")
        object.__setattr__(self, "use_pages", self.use_pages or self.pages)
        if self.use_pages > self.pages:
            raise UsageError("--use can't be more than --pages", hint="leave --use out to touch them all")
        if not 1 <= self.vcpus <= min(self.use_pages, self.hot_add_pages or self.use_pages, 64):
            raise UsageError("each vCPU needs a page to touch, and 64 vCPUs is the most", hint="--vcpus 1")
        if self.stride < 1 or self.passes < 1 or not 0 <= self.think < 1 << 31:
            raise UsageError("--stride and --passes are at least 1, --think at most 2^31", hint="--stride 7")
        needed = RANGE_GPA + self.pages * self.step_bytes
        memory = self.memory_bytes or -(-needed // HUGE_BYTES) * HUGE_BYTES
        object.__setattr__(self, "memory_bytes", memory)
        if memory < needed or memory % HUGE_BYTES:
            raise UsageError(
                f"--memory must be whole 2 MiB and hold the low area and the pages: {needed} bytes at least",
                hint="leave --memory out to get just enough",
            )
        if memory + self.added_bytes > 256 * _GIB:
            raise UsageError("a small guest has at most 256 GiB", hint="fewer --pages or a smaller --step")
        if self.pre_fault and not self.prealloc:
            raise UsageError(
                "KVM can map ahead only what the host has populated", hint="--prealloc --pre-fault"
            )
        if self.hint:
            self._check_hint()

    def _check_hint(self) -> None:
        if self.enlightened == "off":
            raise UsageError("only an enlightened guest can hint", hint="--enlightened port")
        if self.order != "seq" or self.vcpus > 1 or self.step_bytes not in (4096, HUGE_BYTES):
            raise UsageError(
                "hints are ranges: they need --order seq, one vCPU, and a step of 4k or 2m",
                hint="--order seq",
            )
        if self.hint_batch.bit_count() != 1 or self.hint_batch > MOST_UNITS_OF_A_RANGE:
            raise UsageError(
                f"--hint-batch must be a power of 2 up to {MOST_UNITS_OF_A_RANGE}", hint="--hint-batch 512"
            )

    @property
    def added_bytes(self) -> int:
        """Size of the memslot that is hot-added, in whole 2 MiB."""
        return -(-self.hot_add_pages * self.step_bytes // HUGE_BYTES) * HUGE_BYTES

    def share(self, vcpu: int, pages: int | None = None) -> int:
        """Return how many pages a vCPU touches, of `pages` (default: those of the range that it uses)."""
        return ((self.use_pages if pages is None else pages) - vcpu + self.vcpus - 1) // self.vcpus

    def mixer(self) -> Mixer:
        """Return the bijection of the random order, wide enough for every share."""
        most = max(self.share(0, self.pages), self.share(0, self.hot_add_pages))
        return Mixer.from_seed(self.seed, bits=random_bits(most))

    def gfns(self, vcpu: int, *, added: bool = False) -> npt.NDArray[np.int64]:
        """Return the gfns a vCPU touches in the order it touches them (computed, not observed).

        `added`: those of the memory that is hot-added.
        """
        share = self.share(vcpu, self.hot_add_pages if added else None)
        indices = np.fromiter(
            order_indices(self.order, share, seed=self.seed, stride=self.stride, bits=self.mixer().bits),
            dtype=np.int64,
        )
        first_gpa = self.memory_bytes if added else RANGE_GPA
        return (first_gpa + (indices * self.vcpus + vcpu) * self.step_bytes) >> 12

    def loops(self) -> dict[str, guest_code.Loop]:
        """Return the loops of the machine code by name."""
        hint = guest_code.Hint(self.hint, self.hint_batch, self.hint_lead) if self.hint else None
        zero = guest_code.Loop("seq", "zero", skip_zeroed=self.enlightened != "off")
        first: guest_code.Access = "write" if self.access == "write" else "read"
        loops = {"zero": zero} if self.zero_first else {}
        loops["touch"] = guest_code.Loop(self.order, first, hint=hint, think=self.think)
        if self.access == "read-first":
            loops["rewrite"] = guest_code.Loop(self.order, "write", think=self.think)
        return loops

    def phases(self) -> Iterator[Phase]:
        """Yield what each vCPU does: ask, zero, touch (each pass), then the same for added memory."""
        ranges = [("", RANGE_GPA, self.pages, self.use_pages, self.passes)]
        if self.hot_add_pages:
            ranges.append(("_added", self.memory_bytes, self.hot_add_pages, self.hot_add_pages, 1))
        for suffix, gpa, pages, used, passes in ranges:
            names = {"ask": "ask"} if self.enlightened != "off" else {}
            names |= {"zero": "zero"} if self.zero_first else {}
            again = "rewrite" if self.access == "read-first" else "touch"
            names |= {"touch": "touch"} | {f"touch{turn}": again for turn in range(2, passes + 1)}
            for position, (name, loop) in enumerate(names.items()):
                touched = used if name.startswith("touch") else pages
                yield Phase(name + suffix, loop, gpa, touched, adds_memory=bool(suffix) and position == 0)


@dataclass(frozen=True)
class PhaseRun:
    """One phase of one vCPU, timed by its VMM around KVM_RUN on CLOCK_MONOTONIC; calls included.

    `cpu_ns` is the vCPU thread's own CPU time, guest and host; `waited_ns` of `elapsed_ns` it could have run
    and had no CPU, for others had them (/proc/thread-self/schedstat).
    """

    start_ns: int
    elapsed_ns: int
    cpu_ns: int
    waited_ns: int
    touches: int


@dataclass
class VcpuRun:
    """What one vCPU did: its thread and its phases by name."""

    index: int
    tid: int
    phases: dict[str, PhaseRun] = field(default_factory=dict)


@dataclass(frozen=True)
class GuestRun:
    """What a small guest did: counts are the guest's own, `resident_pages` is the kernel's (4 KiB units).

    `calls` counts what an enlightened guest asked of its VMM and what that did; `hint_waits_ns` is how long
    each hot hint waited for its VMM's thread; `maps_ahead`: whether that also maps what it prefaults
    (KVM_PRE_FAULT_MEMORY); `prealloc_ns` is how long the host took to populate memory before, `pre_fault_ns`
    how long KVM then took to map it; `charged_bytes` is what `cgroup` was charged with at the end;
    `shared` is, after each phase, when ksmd was through and how many bytes of guest memory it saved.
    """

    plan: GuestPlan
    pid: int
    first_gfn: int
    low_gfns: tuple[int, ...]
    memslots: tuple[tuple[int, int, int, int], ...]
    vcpus: tuple[VcpuRun, ...]
    resident_pages: int
    kvm_counters: dict[str, int]
    calls: dict[str, int]
    hint_waits_ns: tuple[int, ...]
    maps_ahead: bool
    prealloc_ns: int
    pre_fault_ns: int
    charged_bytes: int
    shared: dict[str, dict[str, int]]

    @property
    def touched_pages(self) -> int:
        """Pages touched at least once."""
        return sum(
            run.touches
            for vcpu in self.vcpus
            for name, run in vcpu.phases.items()
            if name in ("touch", "touch_added")
        )

    def summary(self) -> str:
        """Return the run in one line of words."""
        slowest = {
            phase.name: max(vcpu.phases[phase.name].elapsed_ns for vcpu in self.vcpus) / 1e6
            for phase in self.plan.phases()
        }
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in slowest.items())
        return (
            f"touched {self.touched_pages} pages from gfn {self.first_gfn} on {self.plan.vcpus} vCPU"
            f"{'s' if self.plan.vcpus > 1 else ''}: {times}; resident {self.resident_pages * 4} KiB"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the run as one JSON-ready document."""
        return {
            "plan": asdict(self.plan),
            "pid": self.pid,
            "first_gfn": self.first_gfn,
            "touched_pages": self.touched_pages,
            "low_gfns": list(self.low_gfns),
            "resident_pages": self.resident_pages,
            "memslots": [
                dict(zip(("slot", "gpa", "size_bytes", "hva"), slot, strict=True)) for slot in self.memslots
            ],
            "vcpus": [
                {
                    "vcpu": v.index,
                    "tid": v.tid,
                    "phases": {name: vars(run) for name, run in v.phases.items()},
                }
                for v in self.vcpus
            ],
            "kvm_counters": self.kvm_counters,
            "calls": self.calls,
            "hint_waits_ns": list(self.hint_waits_ns),
            "maps_ahead": self.maps_ahead,
            "prealloc_ns": self.prealloc_ns,
            "pre_fault_ns": self.pre_fault_ns,
            "charged_bytes": self.charged_bytes,
            "shared": self.shared,
        }
