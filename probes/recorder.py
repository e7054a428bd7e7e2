"""One recording: carries records from the ring to the trace, with memslots, samples and the loss ledger."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tracekit.probes import decode
from tracekit.probes.attach import vm_descriptors
from tracekit.probes.attribution import Attribution
from tracekit.probes.catalogue import Probe
from tracekit.probes.cost import CostMeter, StatsSwitch
from tracekit.probes.filemap import fill_hvas
from tracekit.probes.ledger import LossLedger
from tracekit.probes.loader import LoadedProbes
from tracekit.probes.losses import Loss
from tracekit.probes.marks import MarkPipe
from tracekit.probes.memslots import MemslotTable
from tracekit.probes.plan import RecordPlan, RecordReport, Status
from tracekit.probes.ring import MOST_RECORDS
from tracekit.probes.samples import sample_host, sample_process
from tracekit.probes.slots import SlotFinder, Told, is_emulated
from tracekit.probes.vmm import classify
from tracekit.probes.vms import Vms
from tracekit.probes.wire import RECORD
from tracekit.probes.writers import FlightWriter, RotatingWriter, Writer
from tracekit.trace.loops import prepare
from tracekit.trace.loss_reasons import with_most
from tracekit.trace.sampling import Sampler
from tracekit.trace.schema import KINDS

__all__ = ["Recorder"]

_FLUSH_NS: Final = 250_000_000
_SAMPLE_NS: Final = 1_000_000_000
_SAVE_NS: Final = 10_000_000_000
_PATIENCE_NS: Final = 1_000_000_000
_NEWEST: Final = 16
_MUCH: Final = 1 << 20  # rows after which machine code for the next recording is worth compiling
_LOOKED_AT: Final = 4096  # rows at the end of a batch that are searched for those with a latency


class Recorder:
    """One recording, step by step: `drain` carries what is in the ring to the trace, `finish` closes it."""

    def __init__(
        self,
        plan: RecordPlan,
        probes: LoadedProbes,
        writer: Writer,
        vms: Vms,
        *,
        catalogue: Sequence[Probe],
        switch: StatsSwitch,
        told: Mapping[int, Told],
        marks: MarkPipe,
    ) -> None:
        self._marks = marks
        self._plan, self._probes, self._writer, self._vms = plan, probes, writer, vms
        self._meta = writer.meta
        self._mode = self._meta.host["mmu_mode"]
        self._memslots = MemslotTable(writer, self._open_vms)
        start_ns = self._meta.start_ns or time.monotonic_ns()
        self._finder = SlotFinder(
            self._memslots, probes.bpf, self._meta.vms, plan.monitor, start_ns, told=told
        )
        self._losses = probes.loss_reader()
        self._ledger = LossLedger()
        self._attribution = Attribution(self._memslots, lambda: vms.pids)
        self._sampler = None if plan.sample is None else Sampler(plan.sample)
        self._cost = CostMeter(probes, catalogue, switch)
        self._kinds = np.zeros(len(KINDS), np.int64)
        self._samples: dict[str, float] = {}
        self._saved_vms = repr(self._meta.vms)  # the writer saved its meta when it began
        self._batch: pa.RecordBatch | None = None
        self._start_ns = self._saved_ns = start_ns
        self._flushed_ns = self._sampled_ns = self._newest_ns = 0
        self._complete_ns = self._missed_ns = start_ns
        self._missed = 0
        self.report = RecordReport(plan.out, active=probes.active, refused=probes.refused)
        if marks.off:
            self._meta.notes.append(marks.off)
            self.report.notes.append(marks.off)

    def _open_vms(self, vm: int) -> set[int]:
        pids = self._vms.pids
        return vm_descriptors(pids[vm]) if vm < len(pids) else set()

    def drain(self) -> int:
        """Carry all records that are finished now from the ring to the trace; returns how many."""
        if not self._plan.guest:
            self._finder.look(running=bool(self._plan.pids))
        total, ring, now = 0, self._probes.ring, time.monotonic_ns()
        begun = ring.begun_bytes
        # What comes meanwhile is for the next time: a flood must not keep us from flushing and stopping.
        for _ in range(ring.pending_bytes // (RECORD.itemsize * MOST_RECORDS) + 1):
            records = ring.read()
            total += len(records)
            out = decode.columns(records, self._mode)
            ring.free()
            if len(records):
                self._carry(out)
        # One that is still being written holds back those behind it.
        self._complete_ns = max(self._complete_ns, now if ring.freed_bytes >= begun else 0, self._newest_ns)
        return total

    def _carry(self, out: dict[str, np.ndarray]) -> None:
        self._newest_ns = int(out["ts_ns"][-1])
        self._memslots.take_from(out)
        out = self._attribution.resolve(out)
        if not len(out["vm"]):
            return
        self._vms.know(int(out["vm"].max()))
        hugetlb = fill_hvas(out, self._vms.pids)
        self._memslots.fill_gfns(out)
        classify(out, self._vms.signatures, hugetlb)
        self._batch = decode.to_batch(out)
        self._writer.append(self._batch if self._sampler is None else self._sampler.thin(self._batch))
        self._kinds += np.bincount(out["kind"], minlength=len(KINDS))

    def tick(self) -> None:
        """Do what is due: flush four times a second, sample once a second."""
        now = time.monotonic_ns()
        if self._cost.step(now, self.kinds):
            self._meta.extra["cost"] = self._cost.so_far()
        if self._kinds.sum() > _MUCH:
            prepare()
        if now - self._flushed_ns >= _FLUSH_NS:
            self._flushed_ns = now
            self._vms.refresh()
            for vm in self._vms.ended & self._memslots.there:
                self._memslots.end(vm, now)
            self._save_meta(now)
            self._attribution.note_cgroups()
            self._enter_losses()
            self._enter_marks()
            # One of several traces may be about to be finalised: it needs what belongs to its time.
            if isinstance(self._writer, FlightWriter | RotatingWriter):
                self._enter_misses()
                self._writer.complete_until(self._complete_ns)
            self._writer.flush()
        if now - self._sampled_ns >= _SAMPLE_NS:
            self._sampled_ns = now
            self._sample(now)

    @property
    def kinds(self) -> dict[str, int]:
        """How many rows of each kind there are so far."""
        return {KINDS[code]: int(self._kinds[code]) for code in np.flatnonzero(self._kinds)}

    @property
    def bytes_written(self) -> int:
        """How much has been written."""
        return self._writer.bytes_written

    def status(self) -> Status:
        """Return how the recording stands."""
        held = self._writer.held_bytes if isinstance(self._writer, FlightWriter) else 0
        return Status(
            seconds=(time.monotonic_ns() - self._start_ns) / 1e9,
            kinds=self.kinds,
            samples=dict(self._samples),
            lost=self._ledger.lost,
            bytes_written=self._writer.bytes_written,
            held_bytes=held,
            ring_share=self._probes.ring.pending_bytes / self._probes.ring.size_bytes,
            start_ns=self._start_ns,
            newest=_newest(self._batch),
        )

    def finish(self) -> RecordReport:
        """Carry over what happened until now, enter the last losses, finalise the trace."""
        stop_ns = time.monotonic_ns()
        self._drain_until(stop_ns)
        self._vms.refresh()
        self._enter_losses()
        self._enter_marks()
        self._enter_misses()
        meta, report = self._meta, self.report
        meta.stop_ns = stop_ns
        meta.notes.extend(self._finder.notes)
        report.notes.extend(self._finder.notes)
        if foreign := self._attribution.foreign:
            meta.notes.append(f"left out: {foreign} events on no traced VM's memory")
        if uncertain := self._attribution.uncertain:
            said = f"{uncertain} events may be another VM's: it has memory at the same addresses"
            meta.notes.append(said)
            report.notes.append(said)
        if any(is_emulated(vm["argv"]) for vm in meta.vms) and not any(vm["vcpus"] for vm in meta.vms):
            meta.host["mmu_mode"] = "tcg"
        report.cost = meta.extra["cost"] = self._cost.finish(stop_ns, self.kinds)
        if self._sampler is not None:
            meta.sampling = self._sampler.facts()
        self._writer.close()
        report.path = self._writer.path
        report.rows = meta.rows or 0
        report.bytes_written = self._writer.bytes_written
        report.kinds = self.kinds
        report.seconds = (stop_ns - self._start_ns) / 1e9
        report.lost, report.losses = self._ledger.lost, self._ledger.by_reason
        report.where = self._ledger.lines(self._start_ns)
        return report

    def _drain_until(self, stop_ns: int) -> None:
        """Carry all that was before; what is still traced goes on filling the ring.

        A record that is being written holds back those behind it, and its CPU may be taken away from it for
        a while.
        """
        while self._complete_ns < stop_ns:
            if self.drain():
                continue
            if time.monotonic_ns() - stop_ns > _PATIENCE_NS:
                self._enter(Loss(None, self._complete_ns, stop_ns, None, "behind a record never finished"))
                return
            time.sleep(0.001)

    def _save_meta(self, now_ns: int) -> None:
        """Have a crash find the VMs that are known by now, and what recording has cost until lately."""
        known = repr(self._meta.vms)
        if known != self._saved_vms or now_ns - self._saved_ns >= _SAVE_NS:
            self._saved_vms, self._saved_ns = known, now_ns
            self._writer.save_meta()

    def _sample(self, now_ns: int) -> None:
        for metric, value in sample_host():
            self._samples[metric] = value
            self._writer.add_sample(now_ns, 0, metric, value)
        for vm, pid in enumerate(self._vms.pids):
            if vm in self._vms.ended:
                continue
            for metric, value in sample_process(pid):
                self._samples[metric] = value
                self._writer.add_sample(now_ns, vm, metric, value)

    def _enter_marks(self) -> None:
        for name, ts_ns in self._marks.read():
            self._writer.mark(name, max(ts_ns, self._start_ns))

    def _enter_losses(self) -> None:
        for loss in (*self._losses.read(), *self._attribution.take_losses()):
            self._enter(loss)

    def _enter_misses(self) -> None:
        """Enter runs that the kernel left out because another BPF program was running on that CPU.

        They may have been anybody's, so how many of ours were among them is not known, only whether any.
        """
        missed, now = sum(stats.missed for stats in self._probes.program_stats()), time.monotonic_ns()
        if more := missed - self._missed:
            self._enter(Loss(None, self._missed_ns, now, None, "nested BPF programs", at_most=more))
        self._missed, self._missed_ns = missed, now

    def _enter(self, loss: Loss) -> None:
        self._ledger.add(loss)
        reason = with_most(loss.reason, loss.at_most)
        self._writer.add_loss(loss.cpu, loss.t0_ns, loss.t1_ns, loss.lost, reason)


def _newest(batch: pa.RecordBatch | None) -> Sequence[Mapping[str, Any]]:
    """Return the last rows of a batch that somebody waited for."""
    if batch is None:
        return ()
    tail = batch.slice(max(0, batch.num_rows - _LOOKED_AT))
    waited = tail.filter(tail.column("latency_ns").is_valid())
    rows: list[dict[str, Any]] = waited.slice(max(0, waited.num_rows - _NEWEST)).to_pylist()
    return rows
