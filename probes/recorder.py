"""One recording: carries records from the ring to the trace, with memslots, samples and the loss ledger."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from tracekit.probes import decode
from tracekit.probes.attribution import Attribution
from tracekit.probes.filemap import fill_hvas
from tracekit.probes.loader import LoadedProbes
from tracekit.probes.memslots import MemslotTable
from tracekit.probes.plan import RecordPlan, RecordReport
from tracekit.probes.samples import sample_host, sample_process
from tracekit.probes.vmm import classify
from tracekit.probes.vms import VmList
from tracekit.trace import TraceWriter
from tracekit.trace.schema import KINDS

__all__ = ["Recorder"]

_FLUSH_NS: Final = 250_000_000
_SAMPLE_NS: Final = 1_000_000_000


class Recorder:
    """One recording, step by step: `drain` carries what is in the ring to the trace, `finish` closes it."""

    def __init__(self, plan: RecordPlan, probes: LoadedProbes, writer: TraceWriter) -> None:
        self._plan, self._probes, self._writer = plan, probes, writer
        self._meta = writer.meta
        self._mode = self._meta.host["mmu_mode"]
        self._memslots = MemslotTable(writer)
        self._losses = probes.loss_reader()
        self._vms = VmList(probes.bpf, self._meta.vms, plan.command)
        self._attribution = Attribution(self._memslots, lambda: self._vms.pids)
        self._kinds = np.zeros(len(KINDS), np.int64)
        self._start_ns = time.monotonic_ns()
        self._flushed_ns = self._sampled_ns = 0
        self.report = RecordReport(plan.out, active=probes.active, refused=probes.refused)

    def drain(self) -> int:
        """Carry all finished records from the ring to the trace; returns how many."""
        records = self._probes.ring.read()
        if len(records):
            out = decode.columns(records, self._mode)
            self._memslots.take_from(out)
            out = self._attribution.resolve(out)
            if len(out["vm"]) and int(out["vm"].max()) >= len(self._meta.vms):
                self._vms.refresh()
            hugetlb = fill_hvas(out, self._vms.pids)
            self._memslots.fill_gfns(out)
            classify(out, self._vms.signatures, hugetlb)
            self._writer.append(decode.to_batch(out))
            self._kinds += np.bincount(out["kind"], minlength=len(KINDS))
        return len(records)

    def tick(self) -> None:
        """Do what is due: flush four times a second, sample once a second."""
        now = time.monotonic_ns()
        if now - self._flushed_ns >= _FLUSH_NS:
            self._flushed_ns = now
            self._vms.refresh()
            self._attribution.note_cgroups()
            self._enter_losses()
            self._writer.flush()
        if now - self._sampled_ns >= _SAMPLE_NS:
            self._sampled_ns = now
            self._sample(now)

    def finish(self) -> RecordReport:
        """Carry over the rest, enter the last losses, finalise the trace."""
        while self.drain():
            pass
        self._vms.refresh()
        self._enter_losses()
        self._enter_misses()
        self._meta.stop_ns = time.monotonic_ns()
        self._writer.close()
        report = self.report
        report.rows = self._meta.rows or 0
        report.bytes_written = self._writer.bytes_written
        report.kinds = {KINDS[code]: int(count) for code, count in enumerate(self._kinds) if count}
        report.seconds = (self._meta.stop_ns - self._start_ns) / 1e9
        return report

    def _sample(self, now_ns: int) -> None:
        for metric, value in sample_host():
            self._writer.add_sample(now_ns, 0, metric, value)
        for vm, pid in enumerate(self._vms.pids):
            for metric, value in sample_process(pid):
                self._writer.add_sample(now_ns, vm, metric, value)

    def _enter_losses(self) -> None:
        for loss in self._losses.read():
            self._lose(loss.cpu, loss.t0_ns, loss.t1_ns, loss.lost, loss.reason)

    def _enter_misses(self) -> None:
        """Enter runs that the kernel left out because another BPF program was running on that CPU.

        They may have been anybody's, so how many of ours were among them is not known, only whether any.
        """
        missed = sum(stats.missed for stats in self._probes.program_stats())
        if missed:
            now = time.monotonic_ns()
            self._lose(None, self._start_ns, now, None, f"nested_bpf, at most {missed}")

    def _lose(self, cpu: int | None, t0_ns: int, t1_ns: int, lost: int | None, reason: str) -> None:
        self._writer.add_loss(cpu, t0_ns, t1_ns, lost, reason)
        report = self.report
        known = report.losses.get(reason, 0)
        report.losses[reason] = None if known is None or lost is None else known + lost
        report.lost = None if report.lost is None or lost is None else report.lost + lost
