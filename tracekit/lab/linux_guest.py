"""A real Linux guest: Debian's cloud kernel, a busybox initramfs made here, virtio-balloon, a monitor."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tracekit.datasets.memory_limit import charged_anonymous_bytes, charged_bytes, charged_file_bytes
from tracekit.errors import FailedError, UsageError
from tracekit.lab.debian import Kernel, kernel, unpacked
from tracekit.lab.guest_pages import KERNEL_ARGUMENTS, follow_pages, followed_pages
from tracekit.lab.huge_pages import backed_by
from tracekit.lab.initramfs import Initramfs
from tracekit.lab.kernel_modules import load_order
from tracekit.lab.ksm import Sharing
from tracekit.lab.qemu import Qemu, guest_init
from tracekit.probes.marks import put_mark_if_recorded

__all__ = ["Accel", "LinuxGuest", "LinuxPlan", "Step", "can_run_linux_under_kvm", "make_kit", "run_plan"]

Accel = Literal["auto", "tcg", "kvm"]

_COUNT_PCP = "awk '$1 == \"count:\" { n += $2 } END { print n + 0 }' /proc/zoneinfo"


@dataclass(frozen=True)
class LinuxPlan:
    """What a Linux guest has and does; sizes in bytes, `settle_s` is the time given to page reporting.

    After boot it runs `commands` (shell), writes and deletes a file of `alloc_bytes` in its memory, then its
    balloon is inflated until `balloon_bytes` of guest memory are left (0: neither), then deflated. With
    `page_events` the guest's kernel tells which pages it gives out and takes back, from early in its boot on.
    `kit` is a folder of `make_kit` to boot from; without one, the guest is made of `kernel_package` and
    busybox. The host populates all guest memory first (`prealloc`); QEMU's memory has pages of `page_bytes`
    (4096, or 2 MiB where transparent huge pages fit; 0: whatever the host gives) and is charged to `cgroup`,
    a folder (default: the caller's). A `mergeable` guest's memory is open to KSM, and where that runs,
    `run_plan` waits for ksmd after each command. `qemu_arguments` come after QEMU's others.
    """

    memory_bytes: int = 1 << 30
    vcpus: int = 1
    accel: Accel = "auto"
    free_page_reporting: bool = True
    alloc_bytes: int = 0
    balloon_bytes: int = 0
    commands: tuple[str, ...] = ()
    settle_s: float = 5.0
    page_events: bool = False
    prealloc: bool = False
    page_bytes: int = 0
    cgroup: str = ""
    mergeable: bool = False
    kernel_arguments: str = ""
    kernel_package: str = "linux-image-cloud-amd64"
    kit: Path | None = None
    qemu_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.memory_bytes < 128 << 20:
            raise UsageError("a Linux guest needs 128 MiB to boot", hint="--memory 256M")
        if self.page_bytes not in (0, 4096, 2 << 20):
            raise UsageError(f"no page size {self.page_bytes}", hint="--page-size 4k or --page-size 2m")
        if self.alloc_bytes > self.memory_bytes - (96 << 20):
            raise UsageError(
                "the guest can't allocate that much of its memory",
                hint="a smaller --alloc",
            )
        if self.balloon_bytes and not 64 << 20 <= self.balloon_bytes <= self.memory_bytes:
            raise UsageError("the balloon must leave the guest 64 MiB", hint="--balloon 512M")


@dataclass(frozen=True)
class Step:
    """One step of a guest's life on CLOCK_MONOTONIC, and QEMU's resident memory at its end."""

    name: str
    start_ns: int
    elapsed_ns: int
    rss_bytes: int


def can_run_linux_under_kvm() -> bool:
    """Return whether KVM here uses the hardware's virtualisation.

    A KVM that shadows page tables in software (PVM) runs small user-mode guests natively, but would emulate
    an unmodified Linux kernel instruction by instruction.
    """
    modules = Path("/sys/module")
    return Path("/dev/kvm").exists() and any((modules / name).is_dir() for name in ("kvm_intel", "kvm_amd"))


class LinuxGuest:
    """A booted Linux guest; `qemu` runs commands in it and speaks to its monitor. Ends with the with block.

    Raises `CapabilityError` where QEMU, busybox or the kernel package can't be had.
    """

    def __init__(self, plan: LinuxPlan) -> None:
        self.plan = plan
        self.accel = plan.accel
        if plan.accel == "auto":
            self.accel = "kvm" if can_run_linux_under_kvm() else "tcg"
        with tempfile.TemporaryDirectory(prefix="tracekit-kit-") as folder:
            kit = plan.kit or make_kit(Path(folder), plan.kernel_package)
            self.start_ns = time.monotonic_ns()
            with backed_by(plan.page_bytes):
                self.qemu = Qemu(self._arguments(kit), cgroup=plan.cgroup, outlet=plan.page_events)
        self.ready_ns = time.monotonic_ns()

    def balloon(self, target_bytes: int, *, timeout_s: float = 600.0) -> None:
        """Move the balloon until the guest has `target_bytes`, and wait until it has.

        Raises `FailedError` where the guest does not get there in time.
        """
        self.qemu.qmp.execute("balloon", value=target_bytes)
        deadline = time.monotonic() + timeout_s
        while (actual := int(self.qemu.qmp.execute("query-balloon")["actual"])) != target_bytes:
            if time.monotonic() > deadline:
                raise FailedError(f"the balloon stopped at {actual} bytes on its way to {target_bytes}")
            time.sleep(0.02)

    def allocate(self, size_bytes: int) -> None:
        """Fill `size_bytes` of guest memory (a file in a RAM file system)."""
        self.qemu.run(
            f"dd if=/dev/zero of=/fill/file bs=1M count={size_bytes >> 20} 2>/dev/null", timeout_s=600
        )

    def free(self) -> None:
        """Free what `allocate` filled."""
        self.qemu.run("rm /fill/file")

    def close(self) -> None:
        """Shut the guest down."""
        self.qemu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self.qemu.__exit__(failed)

    def _arguments(self, kit: Path) -> list[str | Path]:
        plan = self.plan
        reporting = "on" if plan.free_page_reporting else "off"
        told = KERNEL_ARGUMENTS if plan.page_events else ""
        machine = f"q35,mem-merge={'on' if plan.mergeable else 'off'}"
        backend: list[str] = []
        if plan.prealloc:
            machine += ",memory-backend=ram"
            backend = ["-object", f"memory-backend-ram,id=ram,size={plan.memory_bytes >> 20}M,prealloc=on"]
        return [
            *(
                *backend,
                "-M",
                machine,
                "-accel",
                self.accel,
                "-cpu",
                "host" if self.accel == "kvm" else "max",
            ),
            *("-m", f"{plan.memory_bytes >> 20}M", "-smp", str(plan.vcpus)),
            *("-kernel", kit / "vmlinuz", "-initrd", kit / "initramfs"),
            *("-append", f"console=ttyS0 quiet panic=-1 {plan.kernel_arguments} {told}".strip()),
            *("-device", f"virtio-balloon-pci,free-page-reporting={reporting}"),
            *plan.qemu_arguments,
        ]


def run_plan(plan: LinuxPlan) -> dict[str, Any]:
    """Boot the guest, do what the plan says, shut it down; return a JSON-ready account of its steps."""
    steps: list[Step] = []
    outputs: list[str] = []
    pcp_pages: int | None = None
    with LinuxGuest(plan) as guest:
        started = guest.start_ns

        def step(name: str) -> None:
            nonlocal started
            now = time.monotonic_ns()
            steps.append(Step(name, started, now - started, guest.qemu.rss_bytes()))
            started = now

        step("boot")
        put_mark_if_recorded("ready")
        sharing = Sharing(guest.qemu.pid) if plan.mergeable else None
        begun = follow_pages(guest.qemu) if plan.page_events else None
        for turn, command in enumerate(plan.commands, 1):
            outputs.append(guest.qemu.run(command))
            step("run")
            if sharing:
                sharing.sample(f"run{turn}")
        if plan.alloc_bytes:
            guest.allocate(plan.alloc_bytes)
            step("allocate")
            guest.free()
            step("free")
            time.sleep(plan.settle_s)
            step("settle")
            # On the CPUs' own lists: free, and kept out of the blocks that are reported or ballooned.
            pcp_pages = int(guest.qemu.run(_COUNT_PCP)) if begun else None
        if plan.balloon_bytes:
            guest.balloon(plan.balloon_bytes)
            step("inflate")
            guest.balloon(plan.memory_bytes)
            step("deflate")
        pages = followed_pages(guest.qemu, begun) if begun else None
        group = Path(plan.cgroup) if plan.cgroup else None
        charged = charged_bytes(group) if group else 0
        of_files = charged_file_bytes(group) if group else 0
        anonymous = charged_anonymous_bytes(group) if group else 0
        pid, accel, release = guest.qemu.pid, guest.accel, guest.qemu.run("uname -r").strip()
    return {
        "plan": {**asdict(plan), "kit": str(plan.kit or "")},
        "pid": pid,
        "accel": accel,
        "kernel": release,
        "outputs": outputs,
        "steps": [asdict(one) for one in steps],
        "shared": sharing.samples if sharing else {},
        "charged_bytes": charged,
        "charged_file_bytes": of_files,
        "charged_anonymous_bytes": anonymous,
        "guest_pages": asdict(pages) if pages else None,
        "pcp_pages": pcp_pages,
    }


def make_kit(folder: Path, kernel_package: str = "linux-image-cloud-amd64") -> Path:
    """Put all that a Linux guest boots from (vmlinuz, initramfs) in a folder and return it."""
    guest_kernel = kernel(kernel_package)
    shutil.copy(guest_kernel.image, folder / "vmlinuz")
    (folder / "initramfs").write_bytes(_initramfs(guest_kernel))
    return folder


def _initramfs(kernel: Kernel) -> bytes:
    busybox = unpacked("busybox-static") / "bin" / "busybox"
    image = Initramfs()
    image.add_file("bin/busybox", busybox.read_bytes(), executable=True)
    image.add_link("bin/sh", "busybox")
    image.add_device("dev/console", 5, 1)
    modules = load_order(kernel.modules, ("virtio_pci", "virtio_balloon", "virtio_console"))
    for name, content in modules:
        image.add_file(f"modules/{name}.ko", content)
    setup = "\n".join(
        [
            "/bin/busybox --install -s /bin",
            *(f"insmod /modules/{name}.ko" for name, _ in modules),
            "mkdir /fill && mount -t tmpfs -o size=100% fill /fill",
        ]
    )
    image.add_file("init", guest_init(setup), executable=True)
    return image.to_bytes()
