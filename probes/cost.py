"""What recording costs, measured while it runs: time in the BPF programs per row, CPU time of the recorder.

The kernel times BPF programs only while asked to, and that itself costs some 50 ns a run. So it is asked for
a tenth of each second, through a descriptor whose closing, even by a crash, ends it: no setting is left.
Asking needs CAP_SYS_ADMIN, which the recorder gives up; a small process of its own keeps it for that.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from tracekit.probes.catalogue import Probe
from tracekit.probes.loader import LoadedProbes, ProgramStats

__all__ = ["CostMeter", "StatsSwitch"]

_EVERY_NS: Final = 1_000_000_000
_FOR_NS: Final = 100_000_000
_WINDOWS: Final = 600  # the newest, of which a program's time a run is the median: ten minutes

# Keeps CAP_SYS_ADMIN (21) and nothing else. A byte in turns the statistics on and is answered by + or -; the
# next turns them off; the end of its input ends it. 0 = BPF_STATS_RUN_TIME, 24 = PR_CAPBSET_DROP.
_SWITCH: Final = """
import ctypes, os
enable, libc = ctypes.CDLL("libbpf.so.1").bpf_enable_stats, ctypes.CDLL(None)
for number in range(64):
    libc.prctl(24, number, 0, 0, 0)
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(1 << 21, 1 << 21, 0, 0, 0, 0))
while os.read(0, 1):
    held = enable(0)
    os.write(1, b"+" if held >= 0 else b"-")
    if held < 0 or not os.read(0, 1):
        break
    os.close(held)
"""


class StatsSwitch:
    """Turns the kernel's timing of BPF programs on and off; a context manager.

    Without permission or libbpf, `on` says False and there is no cost in the trace.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SWITCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # Ctrl-C is for the recorder
        )

    def on(self) -> bool:
        """Turn the timing on; returns whether the kernel does it."""
        if self._process is None:
            return False
        if not (self._send() and self._process.stdout and self._process.stdout.read(1) == b"+"):
            self.close()
        return self._process is not None

    def off(self) -> None:
        """Turn it off."""
        self._send()

    def close(self) -> None:
        """End the process; whatever was on is off then."""
        if self._process is not None:
            # By the end of its input: who has become another user may not end it by a signal.
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        """Return the switch."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    def _send(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._process and self._process.stdin and self._process.stdin.write(b"!"))
        return False


class ProgramName(NamedTuple):
    """A BPF program: the probe it belongs to, and its C function."""

    probe: str
    function: str


class CostMeter:
    """Measures in windows; call `step` after each drain with the rows of each kind so far."""

    def __init__(self, probes: LoadedProbes, catalogue: Sequence[Probe], switch: StatsSwitch) -> None:
        self._probes, self._switch = probes, switch
        self._catalogue = catalogue
        self._on = False
        self._opened_ns = 0
        self._before: tuple[list[ProgramStats], dict[str, int]] = ([], {})
        self._runs: Counter[ProgramName] = Counter()
        self._run_ns: Counter[ProgramName] = Counter()
        self._windows: defaultdict[ProgramName, deque[tuple[float, int]]] = defaultdict(
            lambda: deque(maxlen=_WINDOWS)
        )
        self._rows: Counter[str] = Counter()
        self._measured_ns = 0
        self._cpu_before = _cpu_seconds()

    def step(self, now_ns: int, rows: Mapping[str, int]) -> bool:
        """Open a window once a second, and close it after a tenth; returns whether one was closed now."""
        if not self._on:
            if now_ns - self._opened_ns >= _EVERY_NS:
                self._open(now_ns, rows)
        elif now_ns - self._opened_ns >= _FOR_NS:
            self._close(now_ns, rows)
            return True
        return False

    def finish(self, now_ns: int, rows: Mapping[str, int]) -> dict[str, Any]:
        """Close the window that is open and return what was measured (see `so_far`)."""
        if self._on:
            self._close(now_ns, rows)
        return self.so_far()

    def so_far(self) -> dict[str, Any]:
        """Return what was measured until the last window was closed, for `meta.extra["cost"]`.

        `probes` maps a probe to `runs` and `run_ns` of its programs and `rows` of its kinds inside the
        windows (`measured_s` in all), and `ns_per_row`: the time in BPF programs for a row of that probe,
        of which a part lies inside the row's latency. The kernel's own cost of a tracepoint comes on top.
        `inside_latency_ns` maps kinds to the part that certainly does: that of the programs between the two
        time stamps (a mean over all their runs in a window, those for untraced tasks, which end at once,
        included; of the windows the median run's, for where the host of this machine takes the CPU away in
        the midst of a program, that window's mean is many times too large).
        """
        probes = {}
        inside: dict[str, float] = {}
        for probe in self._catalogue:
            own = [name for name in self._runs if name.probe == probe.name]
            if not (runs := sum(self._runs[name] for name in own)):
                continue
            found = sum(self._rows[kind] for kind in probe.kinds)
            run_ns = sum(self._run_ns[name] for name in own)
            per_row = run_ns / found if found else None
            probes[probe.name] = {"runs": runs, "run_ns": run_ns, "rows": found, "ns_per_row": per_row}
            if found and probe.inside:
                inside[probe.kinds[0]] = sum(self._mean_ns(point) for point in probe.inside)
        return {
            "probes": probes,
            "inside_latency_ns": inside,
            "measured_s": self._measured_ns / 1e9,
            "recorder_cpu_s": _cpu_seconds() - self._cpu_before,
        }

    def _mean_ns(self, tracepoint: str) -> float:
        """Return the time of a tracepoint's program a run; the least one's, where several probes have one."""
        ending = "_" + tracepoint.replace(":", "__")
        found = (_of_median_run(w) for name, w in self._windows.items() if name.function.endswith(ending))
        return min(found, default=0.0)

    def _open(self, now_ns: int, rows: Mapping[str, int]) -> None:
        self._on, self._opened_ns = self._switch.on(), now_ns
        if not self._on:
            return
        self._before = self._probes.program_stats(), dict(rows)

    def _close(self, now_ns: int, rows: Mapping[str, int]) -> None:
        stats_before, rows_before = self._before
        for before, after in zip(stats_before, self._probes.program_stats(), strict=True):
            name = ProgramName(after.probe, after.function)
            runs, run_ns = after.runs - before.runs, after.run_ns - before.run_ns
            self._runs[name] += runs
            self._run_ns[name] += run_ns
            if runs:
                self._windows[name].append((run_ns / runs, runs))
        self._rows.update({kind: count - rows_before.get(kind, 0) for kind, count in rows.items()})
        self._measured_ns += now_ns - self._opened_ns
        self._switch.off()
        self._on = False


def _of_median_run(windows: Iterable[tuple[float, int]]) -> float:
    """Return of windows (mean, runs) the mean of the one that holds the median run.

    >>> _of_median_run([(180.0, 1000), (9000.0, 900), (170.0, 50)])
    180.0
    """
    ranked = sorted(windows)
    half = sum(runs for _, runs in ranked) / 2
    so_far = 0
    for mean, runs in ranked:
        so_far += runs
        if so_far >= half:
            return mean
    return 0.0


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
