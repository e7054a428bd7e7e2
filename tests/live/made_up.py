"""Programs of probes that the kernel runs on made-up arguments, in the calling thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np

from tracekit.probes import bcc_package, constants, source
from tracekit.probes.catalogue import HOST_PROBES
from tracekit.probes.program_run import run_program
from tracekit.probes.ring import RingReader
from tracekit.probes.tracefs import Field, Tracepoint
from tracekit.probes.wire import LOST

__all__ = ["MadeUp", "made_up_point"]

RING_BYTES = 1 << 20


def made_up_point(category: str, event: str, *names: str) -> Tracepoint:
    """A raw tracepoint with these arguments."""
    fields = tuple(Field(name, 8 * at, 8, signed=False) for at, name in enumerate(names))
    return Tracepoint(category, event, fields, raw=True)


class MadeUp:
    """Probes on a kernel as `lookup` has it; their programs at `events` are loaded, to be run by those names.

    `mmu` is the host's MMU mode and KVM module; `defines` and `more` (C text) go into what is compiled.
    """

    def __init__(
        self,
        lookup: Callable[[str, str], Tracepoint | None],
        probes: Sequence[str],
        events: Collection[str],
        *,
        mmu: tuple[str, str] = ("shadow", "kvm"),
        defines: Mapping[str, int] = {},
        more: str = "",
    ) -> None:
        chosen = [one for one in HOST_PROBES if one.name in ("process", *probes)]
        self.known = constants.kernel_constants(*mmu)
        known = {**self.known, **defines}
        text = source.build(chosen, lookup, ring_pages=RING_BYTES // 4096, defines=known)
        self.programs = bcc_package.compile_program(text.text + more)
        self.fds = {
            event: self.load(one.function)
            for one in text.programs
            if one.probe in probes and (event := one.tracepoint.partition(":")[2]) in events
        }
        self.ring = RingReader(self.programs[b"ring"].map_fd, RING_BYTES)

    @classmethod
    @contextmanager
    def loaded(cls, *arguments: object) -> Iterator[Self]:
        """Have it until the end of the block."""
        made = cls(*arguments)  # type: ignore[arg-type]
        try:
            yield made
        finally:
            made.ring.close()
            made.programs.cleanup()

    def load(self, function: str) -> int:
        """Return the descriptor of a program, loaded as that of a raw tracepoint."""
        raw = bcc_package.load_bcc().BPF.RAW_TRACEPOINT
        return int(self.programs.load_func(function.encode(), raw).fd)

    def trace_this_thread(self, **leaf: int) -> None:
        """Let this thread be a traced one, of VM 3 and vCPU 1 unless `leaf` says otherwise."""
        threads = self.programs[b"threads"]
        known = {"tgid": os.getpid(), "vm": 3, "vcpu": 1} | leaf
        threads[threads.Key(threading.get_native_id())] = threads.Leaf(**known)

    def run(self, event: str, *arguments: int) -> None:
        """Let an event happen in this thread."""
        run_program(self.fds[event], *arguments)

    def records(self) -> np.ndarray:
        """Return the records that have come since the last time."""
        records = self.ring.read().copy()
        self.ring.free()
        return records

    def lost(self, reason: str) -> int:
        """Return how many the programs have entered as lost for this reason."""
        return sum(cpu.count for cpu in self.programs[b"losses"][LOST.index(reason)])
