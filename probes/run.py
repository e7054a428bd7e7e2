"""Runs a recording from start to end: permission, command, probes, trace, signals."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from tracekit.errors import UsageError
from tracekit.probes import host, target
from tracekit.probes.catalogue import HOST_PROBES, Probe
from tracekit.probes.constants import kernel_constants
from tracekit.probes.loader import LoadedProbes, require_permission
from tracekit.probes.plan import RecordPlan, RecordReport
from tracekit.probes.recorder import Recorder
from tracekit.probes.vms import redact
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.meta import Probes

__all__ = ["record"]

_DRAIN_S: Final = 0.05


def record(plan: RecordPlan) -> RecordReport:
    """Record as planned until the command ends, the time is over, or SIGINT or SIGTERM comes.

    A second signal aborts: KeyboardInterrupt, and the trace is left for `tracekit recover`. Only the
    main thread can take signals; called from another thread, it stops by time or with the command.

    Raises UsageError (trace exists, no such program or process), CapabilityError (permission, bcc,
    tracefs), FailedError (the disk, the kernel).
    """
    if plan.out.exists() and not plan.force:
        raise UsageError(f"{plan.out} exists", hint="add -f to replace it, or choose another name with -o")
    require_permission()
    target.require_processes(plan.pids)
    with ExitStack() as stack:
        child = None
        if plan.command:
            child = target.start_child(plan.command)
            stack.callback(child.end)
        described = host.describe()
        probes = stack.enter_context(
            LoadedProbes.load(
                _probes_for(described["mmu_mode"]),
                ring_bytes=plan.ring_bytes,
                defines=kernel_constants(described["mmu_mode"], described["kvm_module"]),
                required=("process",),
            )
        )
        meta = Meta(
            host=described,
            clock=host.clock(),
            probes=Probes(active=probes.active, refused=probes.refused),
            filters={"pids": list(plan.pids)} if plan.pids else {"command_and_its_children": True},
            command=redact(plan.command),
            start_ns=time.monotonic_ns(),
        )
        writer = stack.enter_context(TraceWriter(plan.out, meta, force=plan.force))
        recorder = Recorder(plan, probes, writer)
        target.attach(probes.bpf, [child.pid] if child else plan.pids, armed=child is not None)
        stop = stack.enter_context(_stop_signals())
        if child:
            child.release()
        recorder.report.stopped_by = _run(recorder, plan, [child.pid] if child else list(plan.pids), stop)
        running = child is not None and child.poll() is None
        report = recorder.finish()
        probes.close()
        if child:
            code = child.end()
            # What ends because we end it did not fail.
            report.exit_code = 0 if running else code
        return report


def _run(recorder: Recorder, plan: RecordPlan, pids: list[int], stop: Callable[[], str]) -> str:
    """Go on until there is a reason to stop; return it."""
    deadline = None if plan.seconds is None else time.monotonic() + plan.seconds
    with _ends_of(pids) as ended:
        while True:
            over = ended(_DRAIN_S)
            recorder.drain()
            recorder.tick()
            if reason := stop():
                return reason
            if over:
                return "exit"
            if deadline is not None and time.monotonic() >= deadline:
                return "time"


def _probes_for(mode: str) -> list[Probe]:
    """Return the probes of a host: a guest's faults are seen one way with nested paging, another without."""
    other = {"ept": "fault_shadow", "npt": "fault_shadow", "shadow": "fault_tdp"}
    left_out = (other[mode],) if mode in other else ("fault_shadow", "fault_tdp")
    return [probe for probe in HOST_PROBES if probe.name not in left_out]


@contextmanager
def _ends_of(pids: list[int]) -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits so many seconds at most and returns whether all processes have ended."""
    poller = select.poll()
    descriptors: dict[int, int] = {}
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        descriptors[descriptor] = pid
        poller.register(descriptor, select.POLLIN)

    def ended(seconds: float) -> bool:
        for descriptor, _ in poller.poll(seconds * 1000) if descriptors else ():
            poller.unregister(descriptor)
            os.close(descriptor)
            del descriptors[descriptor]
        return not descriptors

    try:
        yield ended
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], str]]:
    """Take SIGINT and SIGTERM: the first is remembered (the yielded function names it), the second raises."""
    seen: list[str] = []

    def on_signal(number: int, _: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield lambda: seen[0] if seen else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
