"""A memory cgroup with a limit, and zram to swap to: made for one recording, gone afterwards. Needs root.

Reclaim decides by the cgroup's statistics which pages to look at, and the kernel brings those up to date only
every 2 s, or when someone reads them. In a cgroup that reaches its limit sooner they say that nothing is
active: what KVM maps is active from the start, so reclaim finds nothing and the process is killed with its
memory all reclaimable and the swap empty (seen on Linux 6.18, without MGLRU: 6 of 6 guests in 24 MiB). So
they are read all the while.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tracekit.errors import CapabilityError

__all__ = [
    "charged_anonymous_bytes",
    "charged_bytes",
    "charged_file_bytes",
    "file_swap",
    "join_when_started",
    "memory_limit",
    "remove_group",
    "zram_swap",
]

_CONTROL = Path("/sys/class/zram-control")
_CGROUPS = Path("/sys/fs/cgroup")
_NAME = f"tracekit-limit-{os.getpid()}"
_REFRESH_S = 0.002


@contextlib.contextmanager
def memory_limit(limit_bytes: int, swap_bytes: int) -> Iterator[Path]:
    """Yield the cgroup's folder; a process joins by its number in the file cgroup.procs.

    Raises CapabilityError where zram or the memory controller of cgroups (v1 or v2) is missing, or without
    root.
    """
    with contextlib.ExitStack() as cleanup:
        group, limit = cleanup.enter_context(_group())
        cleanup.enter_context(zram_swap(swap_bytes))
        try:
            group.mkdir()
            cleanup.callback(remove_group, group)
            (group / limit).write_text(str(limit_bytes))
        except PermissionError as error:
            raise CapabilityError(f"cannot write {error.filename}: not root", hint="run it as root") from None
        except OSError as error:
            raise CapabilityError(f"cannot set up a memory limit: {error}", hint="tracekit doctor") from None
        with _fresh_statistics(group / "memory.stat"):
            yield group


def remove_group(group: Path, *, within_s: float = 10.0) -> None:
    """Remove a cgroup; a VMM that was killed (Ctrl-C) is in it until its memory is freed."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def charged_bytes(group: Path) -> int:
    """Return what a cgroup is charged with: its processes' memory and the kernel's for them."""
    names = ("memory.current", "memory.usage_in_bytes")
    return next(int((group / name).read_text()) for name in names if (group / name).exists())


def charged_file_bytes(group: Path) -> int:
    """Return what of a cgroup's charge is cached files: what goes first when memory is short."""
    return _charged(group, "file", "cache")


def charged_anonymous_bytes(group: Path) -> int:
    """Return what of a cgroup's charge is its processes' own memory, a VM's with it: what swap can take."""
    return _charged(group, "anon", "rss")


def _charged(group: Path, *names: str) -> int:
    """Return an entry of a cgroup's statistics, by its name in version 2 and in version 1."""
    lines = (group / "memory.stat").read_text().splitlines()
    return next(int(value) for name, value in map(str.split, lines) if name in names)


@contextlib.contextmanager
def _fresh_statistics(statistics: Path) -> Iterator[None]:
    """Read a cgroup's statistics again and again while the block runs."""
    done = threading.Event()

    def read() -> None:
        with statistics.open("rb", buffering=0) as file:
            while not done.wait(_REFRESH_S):
                file.seek(0)
                file.read(1 << 16)

    thread = threading.Thread(target=read, name="memory.stat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def zram_swap(size_bytes: int) -> Iterator[None]:
    """Swap to a zram device of our own while the block runs, before any other swap there is.

    Raises CapabilityError where zram is missing, or without root.
    """
    if not _CONTROL.exists():
        raise CapabilityError("zram is not there", hint="modprobe zram")
    with contextlib.ExitStack() as cleanup:
        try:
            number = int((_CONTROL / "hot_add").read_text())
            cleanup.callback((_CONTROL / "hot_remove").write_text, str(number))
            block, device = Path(f"/sys/block/zram{number}"), Path(f"/dev/zram{number}")
            (block / "disksize").write_text(str(size_bytes))
            cleanup.callback((block / "reset").write_text, "1")
            cleanup.enter_context(_swapping_to(device))
        except PermissionError as error:
            raise CapabilityError(f"cannot write {error.filename}: not root", hint="run it as root") from None
        except (OSError, subprocess.CalledProcessError) as error:
            raise CapabilityError(f"cannot swap to zram: {error}", hint="tracekit doctor") from None
        yield


@contextlib.contextmanager
def file_swap(size_bytes: int, folder: Path) -> Iterator[None]:
    """Swap to a file of our own in `folder` while the block runs, before any other swap there is.

    Raises CapabilityError without root, or where that file system can't hold swap.
    """
    with contextlib.ExitStack() as cleanup:
        path = folder / "tracekit.swap"
        cleanup.callback(path.unlink, missing_ok=True)
        try:
            with path.open("xb") as file:
                path.chmod(0o600)
                for _ in range(0, size_bytes, 1 << 20):  # no holes
                    file.write(bytes(1 << 20))
                file.flush()
                os.fsync(file.fileno())
            cleanup.enter_context(_swapping_to(path))
        except (OSError, subprocess.CalledProcessError) as error:
            raise CapabilityError(f"cannot swap to {path}: {error}", hint="run it as root") from None
        yield


@contextlib.contextmanager
def _swapping_to(path: Path) -> Iterator[None]:
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    try:  # from here on, for who is asked to end while this runs must not leave it swapping
        subprocess.run(["swapon", "--priority", "32767", path], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["swapoff", path], check=False, capture_output=True)


def join_when_started(
    group: Path, program: str, ancestor: subprocess.Popen[str], patience_s: float = 60.0
) -> bool:
    """Put the first descendant of `ancestor` that runs `program` into the cgroup, as soon as it is there.

    Only that process: whoever else shared the cgroup would make its swap-outs nobody's in particular.
    Returns whether it came before the ancestor ended or patience did.
    """
    deadline = time.monotonic() + patience_s
    while ancestor.poll() is None and time.monotonic() < deadline:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if f"({program[:15]}" in stat.read_text() and _descends(int(stat.parent.name), ancestor.pid):
                    (group / "cgroup.procs").write_text(stat.parent.name)
                    return True
        time.sleep(0.01)
    return False


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@contextlib.contextmanager
def _group() -> Iterator[tuple[Path, str]]:
    """Yield the folder of our cgroup, and the name of the file that limits it.

    Where cgroups (v2) have the memory controller and it is not handed down to the root's children, it is for
    the block.
    """
    if (_CGROUPS / "memory" / "memory.limit_in_bytes").exists():
        yield _CGROUPS / "memory" / _NAME, "memory.limit_in_bytes"
        return
    there, handed_down = _CGROUPS / "cgroup.controllers", _CGROUPS / "cgroup.subtree_control"
    if not there.exists() or "memory" not in there.read_text().split():
        raise CapabilityError(
            "no memory controller of cgroups is there", hint="mount -t cgroup2 none /sys/fs/cgroup"
        )
    switch = "memory" not in handed_down.read_text().split()
    if switch:
        try:
            handed_down.write_text("+memory")
        except OSError as error:
            raise CapabilityError(f"cannot set up a memory limit: {error}", hint="run it as root") from None
    try:
        yield _CGROUPS / _NAME, "memory.max"
    finally:
        if switch:
            with contextlib.suppress(OSError):  # others have made groups meanwhile that need it
                handed_down.write_text("-memory")
