"""Runs a recording from start to end: permission, command, probes, trace, until something ends it."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tracekit.errors import CapabilityError, FailedError, UsageError
from tracekit.probes import constants, host, target, tracefs
from tracekit.probes.attach import attach, holds_vm, only_vm
from tracekit.probes.bcc_package import release_compiler
from tracekit.probes.catalogue import GUEST_PROBES, Probe, host_probes
from tracekit.probes.cost import StatsSwitch
from tracekit.probes.loader import LoadedProbes, require_permission
from tracekit.probes.marks import ENVIRONMENT, MarkPipe, pipe_of
from tracekit.probes.memslot_walk import WalkedSlot, walked_memslots
from tracekit.probes.plan import RecordPlan, RecordReport, Status
from tracekit.probes.privileges import give_up
from tracekit.probes.qemu_monitor import ask_monitor, memory_ranges
from tracekit.probes.recorder import Recorder
from tracekit.probes.redaction import redact
from tracekit.probes.signals import stop_signals, triggers, until_end
from tracekit.probes.slots import Told
from tracekit.probes.vms import ThisGuest, VmList
from tracekit.probes.writers import FlightWriter, RotatingWriter, Writer, numbered, taken_numbers
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.loops import quicken
from tracekit.trace.meta import Host, Probes
from tracekit.trace.sampling import Sampler

__all__ = ["record"]

_DRAIN_S: Final = 0.05
_WATCH_S: Final = 0.25


def record(
    plan: RecordPlan,
    watch: Callable[[Status | None], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> RecordReport:
    """Record as planned until the command ends, the time is over, or SIGINT or SIGTERM comes.

    A second signal aborts: KeyboardInterrupt, and the trace is left for `tracekit recover`. Only the
    main thread can take signals; called from another thread, it stops by time or with the command.
    `watch` is called four times a second with how the recording stands, and with None when it has stopped and
    the command goes on; `tell` with what cannot wait for the report (a dump, a recording that has stopped).

    When the recording itself fails (a full disk), the command goes on: this function waits for its end, for
    the end of the planned time or for a signal, and raises then.

    Raises UsageError (trace exists, no such program or process), CapabilityError (permission, bcc,
    tracefs), FailedError (the disk, the kernel).
    """
    with ExitStack() as outer:
        triggered = outer.enter_context(triggers())  # first: SIGUSR1 would end this process
        _require(plan)
        child = None
        if plan.command:
            told_marks = {ENVIRONMENT: str(pipe_of(plan.out).absolute())}
            child = target.start_child(plan.command, user=plan.user, group=plan.group, told=told_marks)
            outer.callback(child.end)
        stop = outer.enter_context(stop_signals())
        link = _Link(stop, triggered, watch, tell, notes=[])
        try:
            with ExitStack() as stack:
                return _record(plan, child, link, stack)
        except Exception as error:
            if child is not None:
                _let_go_on(child, plan, link, error)
            raise


class _Link(NamedTuple):
    """What reaches a recording from outside, and how it speaks: `say` does it at once and for the report."""

    stop: Callable[[], str]
    triggered: Callable[[], int]
    watch: Callable[[Status | None], None] | None
    tell: Callable[[str], None] | None
    notes: list[str]

    def say(self, text: str) -> None:
        self.notes.append(text)
        if self.tell is not None:
            self.tell(text)


def _require(plan: RecordPlan) -> None:
    """Raise what stands in the way of this recording, before anything is started."""
    _refuse_taken_names(plan)
    require_permission()
    if not host.in_first_pid_namespace():
        raise CapabilityError(
            "in this container, process ids are not those that the kernel's programs see",
            hint="docker run --pid=host --privileged …, or record on the host",
        )
    target.require_processes(plan.pids)
    if plan.pids and plan.monitor is not None and not plan.monitor.exists():
        raise UsageError(f"no monitor socket {plan.monitor}", hint="qemu … -qmp unix:SOCKET,server,nowait")
    tracefs.mount_missing()
    tracefs.tracefs_root()  # may we read it?


def _refuse_taken_names(plan: RecordPlan) -> None:
    if plan.force:
        return
    if plan.rotate_seconds:
        taken = [numbered(plan.out, number) for number in taken_numbers(plan.out)]
    else:  # a flight recorder's dumps take the numbers that are free
        taken = [plan.out] if os.path.lexists(plan.out) else []
    if taken:
        raise UsageError(f"{taken[0]} exists", hint="add -f to replace it, or choose another name with -o")


def _record(plan: RecordPlan, child: target.Child | None, link: _Link, stack: ExitStack) -> RecordReport:
    pids = [child.pid] if child else list(plan.pids)
    described = host.describe()
    if plan.guest:
        described["mmu_mode"] = "none"
    catalogue = GUEST_PROBES if plan.guest else host_probes(described["mmu_mode"])
    probes = stack.enter_context(_load(plan, described, catalogue))
    meta = _meta(plan, described, probes)
    vms = ThisGuest(meta.vms) if plan.guest else VmList(probes.bpf, meta.vms, plan.command)
    if not plan.guest:
        attach(probes.bpf, pids, armed=child is not None)
    for pid in plan.pids:
        if not holds_vm(pid):
            link.say(f"process {pid} has no KVM virtual machine: only its own faults and calls are recorded")
    meta.notes.extend(link.notes)
    vms.refresh()
    told = _told_slots(plan)
    switch = stack.enter_context(StatsSwitch())
    if plan.least_privilege:
        give_up(plan.user, plan.group, ends_command=child is not None)
    if name := link.stop():  # while all this was made ready: nothing has begun
        raise SystemExit(128 + signal.Signals[name])
    try:
        writer = _writer(plan, meta, link, stack)
    except FailedError as error:
        if plan.least_privilege and plan.user is not None:
            error.hint = f"{error.hint}; --as-root writes as root"
        raise
    marks = stack.enter_context(MarkPipe(pipe_of(plan.out), owner=_owner(plan)))
    recorder = Recorder(plan, probes, writer, vms, catalogue=catalogue, switch=switch, told=told, marks=marks)
    link.notes.extend(recorder.report.notes)
    recorder.report.notes = link.notes
    try:
        if child and not link.stop():
            child.release()
        recorder.report.stopped_by = _run(recorder, plan, pids, link)
        running = child is not None and child.poll() is None
        report = recorder.finish()
    except KeyboardInterrupt:
        kept = "the last seconds are lost" if plan.keep_last_seconds else f"tracekit recover {writer.path}"
        link.say(f"stopped at once: {kept}")
        raise
    probes.close()
    if child:
        code = child.end()
        # What ends because we end it did not fail.
        report.exit_code = 0 if running else code
    return report


def _run(recorder: Recorder, plan: RecordPlan, pids: Sequence[int], link: _Link) -> str:
    """Go on until there is a reason to stop; return it."""
    start = watched = time.monotonic()
    with until_end(pids) as ended:
        while True:
            over = ended(_DRAIN_S)
            recorder.drain()
            recorder.tick()
            now = time.monotonic()
            if link.watch and now - watched >= _WATCH_S:
                watched = now
                link.watch(recorder.status())
            if reason := link.stop():
                return reason
            if over:
                return "exit"
            if plan.seconds is not None and now - start >= plan.seconds:
                return "time"
            if plan.max_bytes is not None and recorder.bytes_written >= plan.max_bytes:
                return "size"


def _let_go_on(child: target.Child, plan: RecordPlan, link: _Link, error: Exception) -> None:
    """Wait for the end of a command whose recording has failed: a VM is not to end with its recorder.

    It ends, as it would have when recorded, by a signal to us and when the planned time is over.
    """
    if child.released_s is None or child.poll() is not None or link.stop():
        return
    end = None if plan.seconds is None else child.released_s + plan.seconds
    if end is None or time.monotonic() < end:
        if link.watch is not None:
            link.watch(None)
        what = str(error) or type(error).__name__
        link.say(f"recording has stopped, the command goes on (Ctrl-C ends it): {what}")
    with until_end([child.pid]) as ended:
        while not (ended(_DRAIN_S) or link.stop() or (end is not None and time.monotonic() >= end)):
            pass


def _told_slots(plan: RecordPlan) -> dict[int, Told]:
    """Return what is known for sure of the memslots of VMs that run already, by their pids.

    Asked as long as we may: reading KVM's takes privileges, and a monitor's socket may be root's.
    """
    told = {pid: Told("btf", slots) for pid in plan.pids if (slots := walked_memslots(pid))}
    if plan.pids and plan.monitor is not None:
        ranges = memory_ranges(ask_monitor(plan.monitor))
        vm_fd = only_vm(plan.pids[0])
        slots = [WalkedSlot(vm_fd, n, *where, flags=0) for n, where in enumerate(ranges)]
        told[plan.pids[0]] = Told("monitor", slots)
    return told


def _load(plan: RecordPlan, described: Host, catalogue: Sequence[Probe]) -> LoadedProbes:
    if quicken():  # before anything is traced: events do not wait while it links
        release_compiler()
    if plan.guest:
        return LoadedProbes.load(catalogue, ring_bytes=plan.ring_bytes, defines=constants.guest_constants())
    known = constants.kernel_constants(described["mmu_mode"], described["kvm_module"])
    return LoadedProbes.load(catalogue, ring_bytes=plan.ring_bytes, defines=known, required=("process",))


def _meta(plan: RecordPlan, described: Host, probes: LoadedProbes) -> Meta:
    filters: dict[str, object] = {}
    if plan.guest:
        filters["whole_guest_but_the_recorder"] = True
    elif plan.pids:
        filters["pids"] = list(plan.pids)
    else:
        filters["command_and_its_children"] = True
    if plan.keep_last_seconds:
        filters["keep_last_s"] = plan.keep_last_seconds
    return Meta(
        host=described,
        clock=host.clock(),
        probes=Probes(active=probes.active, refused=probes.refused, functions=probes.functions),
        filters=filters,
        sampling={} if plan.sample is None else Sampler(plan.sample).planned(),
        command=redact(plan.command),
        start_ns=time.monotonic_ns(),
        extra={"side": "guest" if plan.guest else "host"},
    )


def _owner(plan: RecordPlan) -> tuple[int, int] | None:
    return None if plan.user is None or plan.group is None else (plan.user, plan.group)


def _writer(plan: RecordPlan, meta: Meta, link: _Link, stack: ExitStack) -> Writer:
    owner = _owner(plan)

    def open_trace(path: Path) -> TraceWriter:
        return TraceWriter(path, copy.deepcopy(meta), force=plan.force, owner=owner, live=True)

    if plan.keep_last_seconds:
        seconds = plan.keep_last_seconds
        return FlightWriter(
            plan.out, meta, open_trace, seconds=seconds, triggered=link.triggered, say=link.say
        )
    if plan.rotate_seconds:
        every, keep = plan.rotate_seconds, plan.rotate_keep
        return stack.enter_context(RotatingWriter(plan.out, meta, open_trace, seconds=every, keep=keep))
    return stack.enter_context(TraceWriter(plan.out, meta, force=plan.force, owner=owner, live=True))
