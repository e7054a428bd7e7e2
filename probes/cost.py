"""What recording costs, measured while it runs: time in the BPF programs per row, CPU time of the recorder.

The kernel times BPF programs only while asked to, and that itself costs some 50 ns a run. So it is asked for
a tenth of each second, through a descriptor whose closing, even by a crash, ends it: no setting is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tracekit.probes.catalogue import Probe
from tracekit.probes.loader import LoadedProbes

__all__ = ["CostMeter"]

_EVERY_NS: Final = 1_000_000_000
_FOR_NS: Final = 100_000_000
_RUN_TIME: Final = 0  # BPF_STATS_RUN_TIME


class CostMeter:
    """Measures in windows; call `step` after each drain with the rows of each kind so far."""

    def __init__(self, probes: LoadedProbes, catalogue: Sequence[Probe]) -> None:
        self._probes = probes
        self._kinds = {probe.name: probe.kinds for probe in catalogue}
        self._window: int | None = None
        self._opened_ns = 0
        self._before: tuple[dict[str, tuple[int, int]], dict[str, int]] = ({}, {})
        self._runs: Counter[str] = Counter()
        self._run_ns: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._measured_ns = 0
        self._cpu_before = _cpu_seconds()
        self._enable: Callable[[int], int] | None = None
        # Without libbpf there is no cost in the trace.
        with contextlib.suppress(OSError, AttributeError):
            self._enable = ctypes.CDLL("libbpf.so.1").bpf_enable_stats

    def step(self, now_ns: int, rows: Mapping[str, int]) -> None:
        """Open a window once a second, and close it after a tenth."""
        if self._window is None:
            if self._enable is not None and now_ns - self._opened_ns >= _EVERY_NS:
                self._open(now_ns, rows)
        elif now_ns - self._opened_ns >= _FOR_NS:
            self._close(now_ns, rows)

    def finish(self, now_ns: int, rows: Mapping[str, int]) -> dict[str, Any]:
        """Return what was measured, for `meta.extra["cost"]`.

        `probes` maps a probe to `runs` and `run_ns` of its programs and `rows` of its kinds inside the
        windows (`measured_s` in all), and `ns_per_row`: the time in BPF programs for a row of that probe,
        of which a part lies inside the row's latency. The kernel's own cost of a tracepoint comes on top.
        """
        if self._window is not None:
            self._close(now_ns, rows)
        probes = {}
        for name, kinds in self._kinds.items():
            found = sum(self._rows[kind] for kind in kinds)
            if self._runs[name]:
                per_row = self._run_ns[name] / found if found else None
                probes[name] = {
                    "runs": self._runs[name],
                    "run_ns": self._run_ns[name],
                    "rows": found,
                    "ns_per_row": per_row,
                }
        return {
            "probes": probes,
            "measured_s": self._measured_ns / 1e9,
            "recorder_cpu_s": _cpu_seconds() - self._cpu_before,
        }

    def _open(self, now_ns: int, rows: Mapping[str, int]) -> None:
        descriptor = -1 if self._enable is None else self._enable(_RUN_TIME)
        if descriptor < 0:
            self._enable = None
            return
        self._window, self._opened_ns = descriptor, now_ns
        self._before = self._by_probe(), dict(rows)

    def _close(self, now_ns: int, rows: Mapping[str, int]) -> None:
        assert self._window is not None
        stats_before, rows_before = self._before
        for probe, (runs, run_ns) in self._by_probe().items():
            runs_before, run_ns_before = stats_before.get(probe, (0, 0))
            self._runs[probe] += runs - runs_before
            self._run_ns[probe] += run_ns - run_ns_before
        self._rows.update({kind: count - rows_before.get(kind, 0) for kind, count in rows.items()})
        self._measured_ns += now_ns - self._opened_ns
        os.close(self._window)
        self._window = None

    def _by_probe(self) -> dict[str, tuple[int, int]]:
        totals: dict[str, tuple[int, int]] = {}
        for stats in self._probes.program_stats():
            runs, run_ns = totals.get(stats.probe, (0, 0))
            totals[stats.probe] = runs + stats.runs, run_ns + stats.run_ns
        return totals


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
