"""How the lab host boots: an initramfs that mounts its disks, and the disk with tracekit and its init."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tracekit.lab.debian import Kernel, unpacked
from tracekit.lab.host.layers import make_image, tracekit_files
from tracekit.lab.initramfs import Initramfs
from tracekit.lab.kernel_modules import load_order
from tracekit.lab.linux_guest import make_kit
from tracekit.lab.qemu import guest_init

__all__ = ["boot_initramfs", "tracekit_image"]

_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4", "virtio_balloon", "lzo", "lzo_rle", "zram")
_HYPERVISORS: Final = ("kvm_amd", "kvm_intel")

_BOOT: Final = """#!/bin/sh
/bin/busybox mkdir -p /dev /proc /root
/bin/busybox mount -t devtmpfs dev /dev
while read -r module options; do
  /bin/busybox insmod /modules/$module.ko $options || true  # only one of kvm_amd and kvm_intel loads
done </modules/order
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mkdir -p /root/opt/python /root/opt/tracekit
/bin/busybox mount -t ext4 -o ro /dev/vdb /root/opt/python
/bin/busybox mount -t ext4 -o ro /dev/vdc /root/opt/tracekit
/bin/busybox umount /dev
exec /bin/busybox switch_root /root /opt/tracekit/init
"""

_SETUP: Final = """
export PATH=/opt/tracekit/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 TERM=dumb
export PYTHONPATH=/opt/tracekit:/opt/python PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export TRACEKIT_GUEST_KIT=/opt/tracekit/guest TRACEKIT_LAB_HOST=1
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -sf /proc/self/fd /dev/fd
busybox ip link set lo up
hostname lab-host
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
for disk in /dev/vde /dev/nullb0; do
  [ -b $disk ] && mkswap $disk >/dev/null && swapon $disk
done
mkdir -p /out
cd /out
"""


def boot_initramfs(kernel: Kernel, options: Mapping[str, str]) -> bytes:
    """Return the initramfs: load the modules, mount the disks, go over to the Debian system.

    `options` names further modules, with what each is loaded with.
    """
    image = Initramfs()
    busybox = unpacked("busybox-static") / "bin" / "busybox"
    image.add_file("bin/busybox", busybox.read_bytes(), executable=True)
    image.add_link("bin/sh", "busybox")
    image.add_device("dev/console", 5, 1)
    modules = load_order(kernel.modules, (*_MODULES, *_HYPERVISORS, *options))
    for name, content in modules:
        image.add_file(f"modules/{name}.ko", content)
    order = "".join(f"{name} {options.get(name, '')}\n" for name, _ in modules)
    image.add_file("modules/order", order.encode())
    image.add_file("init", _BOOT.encode(), executable=True)
    return image.to_bytes()


def tracekit_image(folder: Path, put: Iterable[Path]) -> Path:
    """Make the disk with the running tracekit, the files to put in, and the init; return its image."""
    root = folder / "tracekit"
    tracekit_files(root)
    (root / "bin").mkdir()
    _script(root / "bin" / "tracekit", '#!/bin/sh\nexec python3 -m tracekit "$@"\n')
    _script(root / "init", guest_init(_SETUP).decode())
    (root / "guest").mkdir()
    make_kit(root / "guest")
    (root / "in").mkdir()
    for path in put:
        if path.is_dir():
            shutil.copytree(path, root / "in" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, root / "in")
    make_image(root, folder / "tracekit.ext4", free_mib=1)
    return folder / "tracekit.ext4"


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
