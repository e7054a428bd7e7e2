"""Synthetic traces with known truth: one generator per file, each streamed, seeded and marked synthetic."""

from __future__ import annotations

from tracekit.datasets.synthetic.balloon_storm import BalloonStorm
from tracekit.datasets.synthetic.boot_linux import BootLinux
from tracekit.datasets.synthetic.boot_windows import BootWindows
from tracekit.datasets.synthetic.fleet import Fleet
from tracekit.datasets.synthetic.fork_bomb import ForkBomb
from tracekit.datasets.synthetic.generator import Generator
from tracekit.datasets.synthetic.scan import Scan
from tracekit.datasets.synthetic.serverless_restore import ServerlessRestore
from tracekit.datasets.synthetic.swap_thrash import SwapThrash
from tracekit.datasets.synthetic.working_set import WorkingSet

__all__ = ["GENERATORS"]

GENERATORS: dict[str, type[Generator]] = {
    generator.NAME: generator
    for generator in (
        BootLinux,
        BootWindows,
        WorkingSet,
        Scan,
        ForkBomb,
        BalloonStorm,
        SwapThrash,
        ServerlessRestore,
        Fleet,
    )
}
"""Every generator by its name, in the order they are listed."""
