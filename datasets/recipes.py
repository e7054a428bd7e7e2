"""How each bundled trace is recorded: the command that is traced, what it needs, what it can tell."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tracekit.datasets.memory_limit import join_when_started, memory_limit
from tracekit.errors import FailedError
from tracekit.trace.merge import merge

__all__ = ["RECIPES", "Recipe", "record"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recording: `tracekit record -o OUT -- COMMAND`, and what its data card says.

    `command` is traced with its children; a first word `tracekit` is run by this very interpreter.
    `options` go to `tracekit record`; `limit_bytes` is the memory limit of `limited_program`, which the
    command starts. Without `huge_pages` the kernel gives the command's processes 4 KiB pages only. The
    command writes what its guest saw as `guest_trace` in its folder; that is merged with what the host saw.
    """

    name: str
    title: str
    about: str
    command: tuple[str, ...]
    can_tell: tuple[str, ...]
    cannot_tell: tuple[str, ...]
    options: tuple[str, ...] = ()
    limit_bytes: int = 0
    limited_program: str = ""
    huge_pages: bool = True
    guest_trace: str = ""
    licence: str = "CC0-1.0"

    @property
    def record_again(self) -> str:
        """What a user types to record it anew."""
        return f"tracekit datasets make {self.name}"


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="small-guest-zero-then-use",
            title="a KVM guest that zeroes 256 MiB, then uses a quarter of it",
            about=(
                "A small 64-bit guest under KVM, one vCPU, 4 KiB backing. It clears all of its 65,644 pages"
                " in order, then writes one word in every fourth page in random order: a Windows-like boot in"
                " miniature. Host faults of the VMM's own memory (a Python interpreter) are in it too."
            ),
            command=(
                *("tracekit", "lab", "guest", "--pages", "16411", "--step", "16k"),
                *("--order", "random", "--seed", "7", "--zero-first"),
            ),
            can_tell=(
                "each first touch of guest memory: page, time, service time",
                "what skipping the guest's zeroing saves: faults, stall, resident memory",
                "what prefaulting, huge pages and preallocation would have changed",
            ),
            cannot_tell=(
                "which pages were used after the zeroing: they were mapped by then"
                " (the command says: every fourth, in random order)",
                "costs of EPT or NPT hardware: this host shadows page tables (PVM)",
            ),
        ),
        Recipe(
            name="linux-boot",
            title="Debian's cloud kernel boots in QEMU with 256 MiB",
            about=(
                "QEMU without KVM (TCG) boots Debian 12's cloud kernel and a busybox initramfs, one vCPU, no"
                " free page reporting, on 4 KiB pages. Faults are those of QEMU's threads: those on guest"
                " memory have a gfn, the others are on QEMU's own memory."
            ),
            huge_pages=False,
            command=(
                *("tracekit", "lab", "linux", "--memory", "256M"),
                *("--free-page-reporting", "off", "--settle", "0"),
            ),
            can_tell=(
                "which pages a Linux boot touches, in which order, and how much of its memory that is",
                "what prefaulting that order or larger pages would save in faults",
            ),
            cannot_tell=(
                "times under KVM: emulated code runs 10 to 100 times slower, so think times are too long",
                "which instruction touched a page: QEMU's own thread did",
            ),
        ),
        Recipe(
            name="linux-balloon-reporting",
            title="a Linux guest frees 64 MiB, reports it, and is ballooned by 64 MiB: host and guest",
            about=(
                "The same boot with free page reporting on: the guest fills and frees 64 MiB, the reports"
                " come (QEMU discards those pages), then the balloon takes 64 MiB page by page and gives it"
                " back. The guest's kernel tells of each page that it gives out or takes back, from early in"
                " its boot on; that is merged with what the host saw."
            ),
            huge_pages=False,
            command=(
                *("tracekit", "lab", "linux", "--memory", "256M", "--free-page-reporting", "on"),
                *("--alloc", "64M", "--balloon", "192M", "--settle", "5", "--guest-trace", "guest.trace"),
            ),
            guest_trace="guest.trace",
            can_tell=(
                "each page that was free in the guest, when, and which of them the host had",
                "which pages the guest zeroed that had come zeroed: at boot, and after they were given back",
                "each range that the host dropped: by report, by balloon, and what came back",
                "how long a freed page stayed resident before its report, and how large reports are",
                "what the balloon costs per 4 KiB page on the side of the VMM",
            ),
            cannot_tell=(
                "times under KVM: see linux-boot",
                "which pages were free before the guest's kernel could tell: the first steps of its boot",
                "a guest that keeps no account of its pages: 16 MiB of this one's hold its kernel's trace",
            ),
        ),
        Recipe(
            name="limit-zram",
            title="a Linux guest grows past a 192 MiB memory limit with zram, then idles",
            about=(
                "QEMU without KVM (TCG), on 4 KiB pages, in a memory cgroup of 192 MiB with zram to swap to:"
                " the guest (of 256 MiB) boots, fills 96 MiB, frees them and idles for three seconds. The"
                " limit holds for all of QEMU: its own memory (without a gfn) swaps too."
            ),
            huge_pages=False,
            command=(
                *("tracekit", "lab", "linux", "--memory", "256M", "--free-page-reporting", "off"),
                *("--alloc", "96M", "--settle", "3"),
            ),
            limit_bytes=192 << 20,
            limited_program="qemu-system",
            can_tell=(
                "which pages came back from swap, when, and how long each fault took",
                "how many pages went out, and when",
            ),
            cannot_tell=(
                "which pages went out: the kernel counts them by cgroup",
                "swap on a disk: zram answers at once, so no fault waits for I/O and no asynchronous page"
                " fault can help",
            ),
        ),
        Recipe(
            name="guest-side",
            title="a Linux machine from inside: allocations, frees and faults for three processes' lives",
            about=(
                "Recorded in a guest (itself a VM with two vCPUs): every page the kernel gave and took back,"
                " zeroed or not, and the faults of all processes, while a shell ran three small programs."
            ),
            command=("sh", "-c", "for i in 1 2 3; do seq 20000 | sort -rn | tail -n 1; done"),
            options=("--guest",),
            can_tell=(
                "which pages the guest zeroed itself when it allocated them: what a host that hands out"
                " zeroed pages would save there",
                "how long pages live, and how soon a freed one is used again",
            ),
            cannot_tell=("which of these pages the host had to provide: that is only seen on the host",),
        ),
    )
}
"""Every recipe by the name of its trace."""


_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42


@contextlib.contextmanager
def _small_pages() -> Iterator[None]:
    """Have processes that start here get 4 KiB pages only, whatever they advise: they inherit it from us."""
    libc = ctypes.CDLL(None)
    before = libc.prctl(_PR_GET_THP_DISABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_THP_DISABLE, max(before, 0), 0, 0, 0)


def record(recipe: Recipe, path: Path, *, force: bool = False) -> None:
    """Record a recipe's trace to `path`.

    Raises FailedError (with what the recorder said) if it did not come to an end; needs what
    `tracekit record` needs: root, eBPF, and for guests under KVM /dev/kvm.
    """
    if not recipe.guest_trace:
        _record(recipe, path, force=force)
        return
    with tempfile.TemporaryDirectory(prefix="tracekit-sides-") as folder:
        host = Path(folder) / "host.trace"
        _record(recipe, host, folder=folder)
        merge(host, Path(folder) / recipe.guest_trace, path, force=force)


def _record(recipe: Recipe, path: Path, *, folder: str | None = None, force: bool = False) -> None:
    tracekit = [sys.executable, "-m", "tracekit"]
    words = [*tracekit, *recipe.command[1:]] if recipe.command[0] == "tracekit" else list(recipe.command)
    options = [*(["-f"] if force else []), *recipe.options, "-o", str(path)]
    command = [*tracekit, "record", *options, "--", *words]
    with contextlib.ExitStack() as setting:
        if not recipe.huge_pages:
            setting.enter_context(_small_pages())
        group = None
        if recipe.limit_bytes:
            group = setting.enter_context(memory_limit(recipe.limit_bytes, 4 * recipe.limit_bytes))
        run = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if group:
            join_when_started(group, recipe.limited_program, run)
        errors = run.communicate()[1]
    if run.returncode:
        said = errors.strip().splitlines()
        raise FailedError(
            f"recording {recipe.name} failed: {said[0] if said else 'no message'}", hint="tracekit doctor"
        )
