"""The lab host running: QEMU with nested paging, commands in it, results out of it."""

from __future__ import annotations

import contextlib
import shlex
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tracekit.errors import UsageError
from tracekit.lab import debian
from tracekit.lab.host.boot import boot_initramfs, tracekit_image
from tracekit.lab.host.layers import debian_layer, python_layer
from tracekit.lab.linux_guest import Accel, can_run_linux_under_kvm
from tracekit.lab.qemu import Qemu, Tee

__all__ = ["KERNELS", "HostMachine", "HostPlan", "build"]

KERNELS: Final[dict[str, str]] = {
    "6.12": "linux-image-6.12-cloud-amd64",
    "6.1": "linux-image-cloud-amd64",
}
"""Lab host kernels. 6.12 has KVM_PRE_FAULT_MEMORY and hands Hyper-V's extended calls to the VMM."""

_RESULT_BYTES: Final = 16 << 30  # a sparse file: takes what is written


@dataclass(frozen=True)
class HostPlan:
    """What a lab host is made of; sizes in bytes. `put` are files and folders it finds in /opt/tracekit/in.

    `swap_bytes` adds a virtio block device of that size, /dev/vde, which the host swaps to. With
    `swap_latency_ns` it is a device in the host's own memory instead, /dev/nullb0, that answers each request
    after that time: a wait that keeps no CPU busy.
    """

    kernel: str = "6.12"
    memory_bytes: int = 4 << 30
    vcpus: int = 1
    accel: Accel = "auto"
    swap_bytes: int = 0
    swap_latency_ns: int = 0
    put: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise UsageError(f"no kernel {self.kernel} here", hint=f"--kernel {' or '.join(KERNELS)}")
        if self.memory_bytes < 1 << 30:
            raise UsageError("a lab host needs 1 GiB: bcc's compiler takes 200 MB", hint="--memory 4G")
        if missing := [str(path) for path in self.put if not path.exists()]:
            raise UsageError(f"nothing at {', '.join(missing)}", hint="--put PATH that exists")
        if self.swap_latency_ns and not self.swap_bytes:
            raise UsageError("a swap that takes its time has a size", hint="--swap 1G")

    @property
    def modules(self) -> dict[str, str]:
        """Return the kernel modules of this host beside those of every one, and what they are loaded with."""
        if not self.swap_latency_ns:
            return {}
        # Its own timer (irqmode 2) ends each request. It has whole GiB, and takes memory as it is written.
        words = (
            f"gb={-(-self.swap_bytes >> 30)} memory_backed=1 irqmode=2 completion_nsec={self.swap_latency_ns}"
        )
        return {"null_blk": words}


def build(kernel: str, *, say: Callable[[str], None]) -> list[Path]:
    """Make sure of a lab host's kernel and disks, and return the disks (cached, so quick again)."""
    package = debian.kernel_package(KERNELS[kernel])
    debian.kernel(package)
    return [debian_layer(package, say=say), python_layer(say=say)]


class HostMachine:
    """A running lab host; ends with the with block.

    Raises `CapabilityError` where QEMU or a Debian package can't be had.
    """

    def __init__(self, plan: HostPlan, *, say: Callable[[str], None] = lambda _: None) -> None:
        layers = build(plan.kernel, say=say)
        kernel = debian.kernel(debian.kernel_package(KERNELS[plan.kernel]))
        accel = plan.accel
        if accel == "auto":
            accel = "kvm" if can_run_linux_under_kvm() else "tcg"
        # With a thread for each CPU, TCG (7.2) now and then runs a stale int3 after the kernel has patched
        # its own code, and tracing patches a lot: "Oops: int3". One thread for all CPUs can't; but it gives
        # each busy CPU turns of 100 ms, so that two CPUs that wait for each other are slower than one.
        how = "tcg,thread=single" if accel == "tcg" else accel
        say(f"starting the lab host: Linux {kernel.release} in QEMU with {accel}")
        with contextlib.ExitStack() as cleanup:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tracekit-host-")))
            (folder / "initramfs").write_bytes(boot_initramfs(kernel, plan.modules))
            self._results = folder / "results"
            disks = [*layers, tracekit_image(folder, plan.put), _sparse(self._results, _RESULT_BYTES)]
            if plan.swap_bytes and not plan.swap_latency_ns:
                disks.append(_sparse(folder / "swap", plan.swap_bytes))
            started = time.monotonic()
            self.qemu = cleanup.enter_context(
                Qemu(
                    [
                        *("-M", "q35,mem-merge=off", "-accel", how),
                        *("-cpu", "host" if accel == "kvm" else "max"),
                        *("-m", f"{plan.memory_bytes >> 20}M", "-smp", str(plan.vcpus)),
                        *("-kernel", kernel.image, "-initrd", folder / "initramfs"),
                        *("-append", "console=ttyS0 quiet panic=-1"),
                        *(word for disk in disks for word in ("-drive", _drive(disk, disk in layers))),
                    ]
                )
            )
            self.boot_s = time.monotonic() - started
            self._cleanup = cleanup.pop_all()

    def run(self, command: Sequence[str], *, timeout_s: float = 600.0, tee: Tee | None = None) -> int:
        """Run a command in /out and return its exit code; `timeout_s` bounds a silence, not the run."""
        return self.qemu.execute(shlex.join(command), timeout_s=timeout_s, tee=tee).code

    def fetch(self, target: Path) -> list[Path]:
        """Copy everything in the host's /out into a folder and return the top-level paths."""
        self.qemu.run("tar -C /out -cf /dev/vdd . && sync")
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(self._results, "r:") as archive:
            members = archive.getmembers()
            archive.extractall(target, members=members, filter="data")
        return sorted({target / Path(member.name).parts[0] for member in members if member.name != "."})

    def close(self) -> None:
        """Power the host off and remove its temporary disks."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._cleanup.__exit__(*failure)  # type: ignore[arg-type]


def _sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def _drive(disk: Path, is_layer: bool) -> str:
    """A layer is shared, so what the host writes to it goes to QEMU's own temporary overlay."""
    return f"file={disk},if=virtio,format=raw,cache=unsafe,snapshot={'on' if is_layer else 'off'}"
