"""The main job in one go: record a real guest, replay what-ifs, write the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracekit.errors import CapabilityError, UsageError

if TYPE_CHECKING:
    from tracekit.replay import Result
    from tracekit.trace import Trace

__all__ = ["BUNDLED", "GUEST", "SCENARIOS", "Demo", "run_demo"]

GUEST: Final = ("lab", "guest", "--pages", "65537", "--zero-first", "--vcpus", "2")
"""The guest of the demo: two vCPUs zero a prime number of pages (256 MiB), then use them."""

BUNDLED: Final = "small-guest-zero-then-use"
"""The recorded trace that stands in where this host can't record one."""

SCENARIOS: Final = (
    "zeroing",
    "hot_hint,policy=oracle",
    "hot_hint,policy=stride",
    "hugepages",
    "prealloc",
)


@dataclass(frozen=True)
class Demo:
    """What the demo made; `instead` says why a bundled trace was replayed, and is empty for a live guest."""

    trace: Trace
    result: Result
    report: Path
    instead: str


def run_demo(folder: Path, *, say: Callable[[str], None]) -> Demo:
    """Record the demo's guest into `folder`, replay `SCENARIOS`, write result.json and report.html there.

    `say` is told what happens, a line at a time. Where the host has no KVM, BPF or permission, a bundled
    trace, recorded on a real host, takes the recording's place. Raises UsageError if `folder` is a file.
    """
    from tracekit.replay import run
    from tracekit.report.page import render
    from tracekit.report.study import Study
    from tracekit.trace import open_trace

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="tracekit demo -o FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    path, instead = _record(folder / "guest.trace", say)
    trace = open_trace(path)
    say(f"replaying {len(SCENARIOS)} scenarios (the first time, numba compiles the model: a few seconds)")
    result = run(trace, SCENARIOS)
    result.save(folder / "result.json", force=True)
    say("writing the report")
    report = folder / "report.html"
    report.write_text(render(Study.of(trace, result)), encoding="utf-8")
    return Demo(trace, result, report, instead)


def _record(out: Path, say: Callable[[str], None]) -> tuple[Path, str]:
    """Record the guest; return its trace, or a bundled one and why."""
    from tracekit.datasets.catalog import trace_path
    from tracekit.lab.kvm import Kvm
    from tracekit.probes.plan import RecordPlan
    from tracekit.probes.run import record

    command = (sys.executable, "-m", "tracekit", *GUEST)
    say("recording a real guest: tracekit record -- tracekit " + " ".join(GUEST))
    try:
        with Kvm():
            pass
        report = record(RecordPlan(out=out, command=command, force=True))
    except CapabilityError as error:
        instead = f"{error.message} ({error.hint})" if error.hint else error.message
    else:
        for line in report.lines():
            say(line)
        if report.exit_code == 0:
            return out, ""
        instead = f"the guest ended with exit code {report.exit_code}"
    return trace_path(BUNDLED), instead
