"""Which tests this host can run: live tests are skipped with a reason where it can't, never where it can."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Iterator
from functools import cache

import pytest

SYS_BPF = 321  # x86-64
BPF_MAP_CREATE = 0
BPF_MAP_TYPE_ARRAY = 2


@cache
def _kvm_missing() -> str:
    return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm is not there or not accessible"


@cache
def _bpf_missing() -> str:
    """Say why BPF can't be used, by really creating the smallest possible map."""
    attr = ctypes.create_string_buffer(struct.pack("IIII", BPF_MAP_TYPE_ARRAY, 4, 4, 1).ljust(128, b"\0"))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_BPF, BPF_MAP_CREATE, attr, ctypes.c_uint(128))
    if fd < 0:
        return f"bpf(BPF_MAP_CREATE): {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return ""


def _missing(needs: tuple[str, ...]) -> str:
    for need in needs:
        if need == "kvm":
            reason = _kvm_missing()
        elif need == "bpf":
            reason = _bpf_missing()
        elif need == "root":
            reason = "" if os.geteuid() == 0 else "not root"
        else:
            reason = "" if shutil.which(need) else f"{need} is not installed"
        if reason:
            return reason
    return ""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "live(*needs): needs 'kvm', 'bpf', 'root' or programs by name (default: kvm, bpf); "
        "skipped with its reason where one is missing",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("live")
    if marker is not None and (reason := _missing(marker.args or ("kvm", "bpf"))):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn a skipped live test into a failure where this host has /dev/kvm and BPF."""
    report = yield
    if (
        report.skipped
        and item.get_closest_marker("live") is not None
        and not (_kvm_missing() or _bpf_missing())
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped although /dev/kvm and BPF are here: {report.longrepr}"
    return report
