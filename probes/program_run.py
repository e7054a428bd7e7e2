"""Runs a loaded BPF program once, in the calling thread, with arguments of our own."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

__all__ = ["run_program"]

_BPF: Final = 321  # the system call, x86-64
_PROG_TEST_RUN: Final = 10
_ARGUMENTS: Final = 12


def run_program(fd: int, *arguments: int) -> None:
    """Let the kernel run a raw tracepoint's program once on these arguments (Linux 5.10).

    Raises OSError where the kernel does not.
    """
    context = (ctypes.c_uint64 * _ARGUMENTS)(*arguments)
    attributes = struct.pack(
        "<IIIIQQIIIIQQIIII",
        *(fd, 0, 0, 0, 0, 0, 0, 0),
        *(ctypes.sizeof(context), 0, ctypes.addressof(context), 0, 0, 0, 0, 0),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_BPF, _PROG_TEST_RUN, attributes, len(attributes)):
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
