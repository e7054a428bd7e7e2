"""A fleet: many VMs of different kinds in one trace, each with its own truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tracekit.datasets.synthetic.balloon_storm import BalloonStorm
from tracekit.datasets.synthetic.boot_linux import BootLinux
from tracekit.datasets.synthetic.boot_windows import BootWindows
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.merge import merge_streams
from tracekit.datasets.synthetic.swap_thrash import SwapThrash
from tracekit.datasets.synthetic.truth import Truth
from tracekit.datasets.synthetic.working_set import WorkingSet

__all__ = ["Fleet"]

MIX: tuple[type[Generator], ...] = (BootLinux, BootWindows, WorkingSet, BalloonStorm, SwapThrash)
MIN_BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet(Generator):
    """`size` VMs, in turn boot-linux, boot-windows, working-set, balloon-storm and swap-thrash.

    `events` is shared out equally; VMs start at random within `spread_s`. Truth: one entry per VM, as
    its own generator gives it.
    """

    NAME: ClassVar[str] = "fleet"
    ABOUT: ClassVar[str] = "many VMs of five kinds in one trace, started at random"

    size: int = parameter(10, "VMs", low=1, high=60_000)
    spread_s: float = parameter(1.0, "VMs start within so many seconds", low=0)

    @property
    def members(self) -> list[Generator]:
        """The generator of each VM."""
        rows = max(MIN_BLOCK_ROWS, self.block_rows // self.size)
        return [
            MIX[vm % len(MIX)](
                events=max(64, self.events // self.size),
                seed=self.seed * 100_003 + vm,
                vcpus=self.vcpus,
                block_rows=rows,
            )
            for vm in range(self.size)
        ]

    @property
    def memory_pages(self) -> int:
        """Memory of the largest VM in 4 KiB pages."""
        return max(member.memory_pages for member in self.members)

    @property
    def vm_pages(self) -> list[int]:
        """Memory of each VM in 4 KiB pages."""
        return [member.memory_pages for member in self.members]

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield all VMs' events merged in time."""
        rng = self.rng(9)
        offsets = np.sort((rng.random(self.size) * self.spread_s * 1e9).astype(np.uint64))
        truths = [Truth() for _ in range(self.size)]
        streams = [
            self._shifted(vm, member.blocks(truths[vm]), offsets[vm], truth)
            for vm, member in enumerate(self.members)
        ]
        yield from merge_streams(streams)
        truth.facts["vms"] = [
            {"generator": member.NAME, "offset_ns": int(offset), **own.to_json()}
            for member, offset, own in zip(self.members, offsets, truths, strict=True)
        ]

    @staticmethod
    def _shifted(vm: int, blocks: Iterator[Columns], offset_ns: np.uint64, truth: Truth) -> Iterator[Columns]:
        for block in blocks:
            block["ts_ns"] = block["ts_ns"] + offset_ns
            block["vm"] = np.full(block["ts_ns"].size, vm, np.uint16)
            block["tid"] = block["tid"] + np.uint32(vm * 2000)
            latency = block.get("latency_ns")
            truth.tally(block["kind"], None if latency is None else np.ma.getdata(latency))
            yield block
