"""A Linux guest whose host has less memory for it than it touches: its faults wait for the host's swap.

KVM turns such a wait into an asynchronous page fault: the guest hears that the page is not there, and may
run another thread until it is. Only a fault that would sleep can become one: not a first touch, not one from
zram, and not a page that the kernel reads without its neighbours (vm.page-cluster 0, or touches in random
order), since it reads that synchronously. So the touches here go in order, and in user mode: a guest's kernel
is halted instead.
"""

from __future__ import annotations

import base64
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tracekit.errors import CapabilityError, FailedError, UsageError
from tracekit.lab.linux_guest import LinuxGuest, LinuxPlan
from tracekit.lab.memory_limit import MemoryLimit
from tracekit.lab.thread_times import process_ran_ns
from tracekit.lab.user_program import toucher

__all__ = ["SwapPlan", "run_swap_plan"]

_PAGE_BYTES: Final = 4096
_TURN: Final = 10_000
"""What a sibling computes between two looks at its counter, in loop turns."""

_WORK: Final = """
mkfifo /fill/passes
read begin _ </proc/uptime
/fill/touch >/fill/passes &
touch=$!
exec 3</fill/passes
dd bs=1 count=1 <&3 >/dev/null 2>&1
read start _ </proc/uptime
i=0; while [ $i -lt {siblings} ]; do /fill/compute & i=$((i + 1)); done
wait $touch || exit
read touched _ </proc/uptime
left=$(pidof compute | wc -w)
wait
read end _ </proc/uptime
echo "$begin $start $touched $end $left"
grep -i -e HYP: -e APF /proc/interrupts || true
"""


@dataclass(frozen=True)
class SwapPlan:
    """What the guest has, what it touches and what its host leaves it; sizes in bytes.

    Once it has booted, `limit_bytes` are left to QEMU and guest together; then one thread writes each page of
    `touch_bytes` once a pass, in order. After the first pass, which needs no swap-in, `siblings` others
    begin, and compute `sibling_turns` loop turns each.
    `async_faults` False is the counterpart: the guest declines them (parameter `no-kvmapf`) and KVM halts the
    vCPU for each. The siblings' work is the same in both, and so are the touches: compare the walls.
    """

    memory_bytes: int = 256 << 20
    limit_bytes: int = 120 << 20
    touch_bytes: int = 100 << 20
    passes: int = 2
    think: int = 0
    siblings: int = 0
    sibling_turns: int = 20_000_000
    async_faults: bool = True
    kernel_arguments: str = ""
    kit: Path | None = None

    def __post_init__(self) -> None:
        if self.touch_bytes > self.memory_bytes - (96 << 20):
            raise UsageError("the guest can't touch that much of its memory", hint="a smaller --touch")
        if self.siblings < 0 or self.sibling_turns < _TURN:
            raise UsageError(f"siblings compute {_TURN} turns or more", hint="--siblings 2")


def run_swap_plan(plan: SwapPlan, *, timeout_s: float = 600.0) -> dict[str, Any]:
    """Boot the guest, limit its memory, let it work; return a JSON-ready account.

    Of the guest's own seconds (hundredths, /proc/uptime) `fill_s` are the first pass, `touch_s` and `wall_s`
    from then until the touches and until all threads were done. `siblings_left` were still computing when the
    touches were done. The host counts, of all of it, `ran_s` (how long QEMU had a CPU) and `major_faults`.
    `interrupts` are the guest's lines of its hypervisor callback. `timeout_s` bounds the guest's silence.
    Raises `CapabilityError` where there is no swap, cgroup v2 or KVM for Linux; `FailedError` when it dies.
    """
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        raise CapabilityError("this host has no swap", hint="tracekit lab host run --swap 1G -- …")
    if Path("/proc/sys/vm/page-cluster").read_text().strip() == "0":
        raise CapabilityError("this host reads swap synchronously", hint="sudo sysctl vm.page-cluster=3")
    with MemoryLimit() as limit:
        declined = "" if plan.async_faults else "no-kvmapf"
        with limit.joined():
            guest = LinuxGuest(
                LinuxPlan(
                    memory_bytes=plan.memory_bytes,
                    accel="kvm",
                    free_page_reporting=False,
                    kernel_arguments=f"{declined} {plan.kernel_arguments}",
                    kit=plan.kit,
                )
            )
        with guest:
            pages = plan.touch_bytes // _PAGE_BYTES
            _put(guest, "touch", toucher(pages, passes=plan.passes, think=plan.think, tell=True))
            _put(guest, "compute", toucher(1, passes=plan.sibling_turns // _TURN, think=_TURN))
            limit.set(plan.limit_bytes)
            before, ran = limit.count("pgmajfault"), process_ran_ns(guest.qemu.pid)
            said = guest.qemu.run(_WORK.format(siblings=plan.siblings), timeout_s=timeout_s)
            major, ran = limit.count("pgmajfault") - before, process_ran_ns(guest.qemu.pid) - ran
            # What is left of the guest's life needs no swapping.
            limit.set(None)
            release, pid = guest.qemu.run("uname -r").strip(), guest.qemu.pid
    if not (times := re.match(r"([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+) (\d+)\n", said)):
        raise FailedError(f"the guest did not tell its times: {said[:200]!r}")
    begin, start, touched, end, left = map(float, times.groups())
    return {
        "plan": {**asdict(plan), "kit": str(plan.kit or "")},
        "pid": pid,
        "kernel": release,
        "fill_s": round(start - begin, 2),
        "touch_s": round(touched - start, 2),
        "wall_s": round(end - start, 2),
        "ran_s": round(ran / 1e9, 2),
        "siblings_left": int(left),
        "major_faults": major,
        "interrupts": said[times.end() :].strip().splitlines(),
    }


def _put(guest: LinuxGuest, name: str, program: bytes) -> None:
    text = base64.b64encode(program).decode()
    guest.qemu.run(f"echo {text} | base64 -d >/fill/{name} && chmod +x /fill/{name}")
