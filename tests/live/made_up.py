"""BPF programs run by the kernel on made-up arguments, in the calling thread."""

from __future__ import annotations

import ctypes
import struct

from tracekit.probes.tracefs import Field, Tracepoint

__all__ = ["made_up_point", "run_program"]

BPF, PROG_TEST_RUN = 321, 10


def made_up_point(category: str, event: str, *names: str) -> Tracepoint:
    """A raw tracepoint with these arguments."""
    fields = tuple(Field(name, 8 * at, 8, signed=False) for at, name in enumerate(names))
    return Tracepoint(category, event, fields, raw=True)


def run_program(fd: int, *arguments: int) -> None:
    """Let the kernel run a raw tracepoint's program once on these arguments."""
    context = (ctypes.c_uint64 * 12)(*arguments)
    attributes = struct.pack(
        "<IIIIQQIIIIQQIIII",
        *(fd, 0, 0, 0, 0, 0, 0, 0),
        *(ctypes.sizeof(context), 0, ctypes.addressof(context), 0, 0, 0, 0, 0),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(BPF, PROG_TEST_RUN, attributes, len(attributes)):
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
