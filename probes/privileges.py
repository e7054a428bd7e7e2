"""Gives up what root may do, once the probes are attached: only what the rest of a recording needs is kept.

Attaching needs root or CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH (tracefs is root's). Writing the trace
needs nothing, so under sudo that is done as the user who called it: no path can lead where that user could
not have written, and no file is made that is not theirs.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["KEPT", "capabilities", "give_up"]

_DAC_OVERRIDE: Final = 1
_KILL: Final = 5

KEPT: Final[dict[str, int]] = {
    "CAP_DAC_READ_SEARCH": 2,  # /sys/kernel/debug/kvm (KVM's counters) and root's /proc/PID/fd
    "CAP_SYS_PTRACE": 19,  # /proc/PID/maps, smaps_rollup and fdinfo of VMMs that are other users'
    "CAP_PERFMON": 38,  # the kernel asks it of whoever uses tracing programs' maps, on kernels before 5.19
    "CAP_BPF": 39,  # as above
}
"""What stays after the probes are attached, name -> number, each with its reason."""

# uapi/linux/prctl.h, uapi/linux/capability.h
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc: Final = ctypes.CDLL(None, use_errno=True)


def capabilities() -> set[int]:
    """Return the numbers of the capabilities that this thread may use now."""
    status = Path("/proc/thread-self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    mask = int(line.split()[1], 16)
    return {number for number in range(64) if mask >> number & 1}


def give_up(user: int | None, group: int | None, *, ends_command: bool = False) -> None:
    """Become `user` and `group` (None = stay who one is) and keep of root's powers only `KEPT`.

    For good: neither this process nor what it starts can have them back. `ends_command`: may still end a
    command that has become another user's. Who stays root keeps access to all files, as root owns those
    that matter anyway. Other threads of this process lose everything with the change of user, and keep
    what they had without one. Raises OSError when the kernel refuses.
    """
    keep = set(KEPT.values()) | ({_KILL} if ends_command else set())
    if user is None and os.geteuid() == 0:
        keep |= {_DAC_OVERRIDE}
    keep &= capabilities()
    for number in range(_last_capability() + 1):
        # Without CAP_SETPCAP the bounding set stays; no_new_privs makes it useless all the same.
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if user is not None:
        _prctl(_PR_SET_KEEPCAPS, 1)
        entry = pwd.getpwuid(user)
        group = entry.pw_gid if group is None else group
        os.setgroups(os.getgrouplist(entry.pw_name, group))
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    _set_capabilities(keep)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")


def _set_capabilities(numbers: Iterable[int]) -> None:
    """Make these the thread's effective and permitted capabilities, and none inheritable."""
    mask = sum(1 << number for number in numbers)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if _libc.capset(header, data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capset")
