"""Loads the BPF programs and attaches them to their tracepoints; says which ran and which were refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tracekit.errors import CapabilityError, FailedError
from tracekit.probes import source
from tracekit.probes.bcc_package import compile_program, load_bcc, release_compiler
from tracekit.probes.catalogue import Probe
from tracekit.probes.constants import why_unknown
from tracekit.probes.functions import lookup, plain
from tracekit.probes.losses import LossReader
from tracekit.probes.privileges import capabilities
from tracekit.probes.ring import RingReader

__all__ = ["LoadedProbes", "ProgramStats", "require_permission"]

_CAP_PERFMON: Final = 38
_CAP_BPF: Final = 39
_CAP_SYS_ADMIN: Final = 21
_PERF_EVENT_IOC_DISABLE: Final = 0x2401


@dataclass(frozen=True)
class ProgramStats:
    """What the kernel says of one BPF program: runs and time where statistics are on, misses always."""

    probe: str
    function: str
    runs: int
    run_ns: int
    missed: int


def require_permission() -> None:
    """Raise CapabilityError unless this process may load BPF programs and trace with them."""
    has = capabilities()
    if _CAP_SYS_ADMIN not in has and not {_CAP_PERFMON, _CAP_BPF} <= has:
        raise CapabilityError(
            "no permission to load eBPF programs (root, or CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH)",
            hint="run it as root: sudo $(command -v tracekit) record …",
        )


@dataclass
class LoadedProbes:
    """The probes in the kernel; closing it detaches and unloads them.

    `active` names the probes that run; `refused` says of the others why they don't. `functions` says which
    functions of the kernel stand for a tracepoint, by probe.
    """

    active: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)
    _bpf: Any = None
    _ring: RingReader | None = None
    _programs: dict[str, tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        probes: Iterable[Probe],
        *,
        ring_bytes: int,
        defines: Mapping[str, int],
        required: Iterable[str] = (),
    ) -> Self:
        """Compile, load and attach the probes.

        `ring_bytes` is a power of two. A probe whose tracepoints this kernel lacks is refused; one of
        `required` (names) raises CapabilityError instead. Raises CapabilityError without permission or
        bcc, FailedError when the kernel takes no program at all.
        """
        require_permission()
        bcc = load_bcc()
        loaded = cls()
        chosen = []
        for probe in source.needed(probes, plain, defines):
            if missing := source.missing(probe, plain):
                loaded._refuse(probe.name, f"this kernel has no {', '.join(missing)}", required)
            elif unknown := [name for name in probe.constants if name not in defines]:
                loaded._refuse(probe.name, why_unknown(unknown[0]), required)
            else:
                chosen.append(probe)
        text = source.build(chosen, lookup, ring_pages=ring_bytes // 4096, defines=dict(defines))
        bpf = loaded._bpf = compile_program(text.text)
        try:
            for probe in chosen:
                functions: list[str] = []
                try:
                    for program in text.programs:
                        if program.probe != probe.name:
                            continue
                        spare = program.tracepoint in probe.spare
                        with contextlib.suppress(Exception) if spare else contextlib.nullcontext():
                            loaded._attach(bcc, program)
                            functions += [program.hook.partition("__")[2]] if program.hook else []
                    if probe.faults:
                        loaded._attach_fault_ends(bcc, probe.name)
                except Exception as error:
                    # bcc raises bare Exceptions for whatever the kernel refuses.
                    loaded._refuse(probe.name, str(error), required)
                else:
                    loaded.active.append(probe.name)
                    if functions:
                        loaded.functions[probe.name] = list(dict.fromkeys(functions))
            loaded._ring = RingReader(bpf[b"ring"].map_fd, ring_bytes)
            release_compiler()
        except BaseException:
            loaded.close()
            raise
        return loaded

    @property
    def ring(self) -> RingReader:
        """The reader of the records."""
        if self._ring is None:
            raise FailedError("the probes are not loaded")
        return self._ring

    @property
    def bpf(self) -> Any:
        """The maps of the programs, by the names they have in the C files."""
        return self._bpf

    def loss_reader(self) -> LossReader:
        """Return a reader of the loss counters."""
        return LossReader(self._bpf[b"losses"], self._bpf[b"epoch"])

    def program_stats(self) -> list[ProgramStats]:
        """Return what the kernel counted for each program (`missed`: another BPF program was running)."""
        stats = []
        for function, (probe, fd) in self._programs.items():
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
            values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            runs, run_ns, missed = (
                int(values.get(name, "0")) for name in ("run_cnt", "run_time_ns", "recursion_misses")
            )
            stats.append(ProgramStats(probe, function, runs, run_ns, missed))
        return stats

    def close(self) -> None:
        """Detach and unload everything."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._bpf is not None:
            bpf = self._bpf
            opened = (bpf.tracepoint_fds, bpf.raw_tracepoint_fds, bpf.kfunc_entry_fds, bpf.kfunc_exit_fds)
            _share_until_later([descriptor for by_name in opened for descriptor in by_name.values()])
            self._bpf.cleanup()
            self._bpf = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Detach and unload everything."""
        self.close()

    def _load(self, probe: str, function: str, kind: int, hook: str = "") -> None:
        self._programs[function] = probe, self._bpf.load_func((hook or function).encode(), kind).fd

    def _refuse(self, probe: str, reason: str, required: Iterable[str]) -> None:
        if probe in required:
            raise CapabilityError(f"the probe {probe} cannot run: {reason}", hint="tracekit doctor")
        self.refused[probe] = reason

    def _attach(self, bcc: Any, program: source.Program) -> None:
        name = program.function.encode()
        if program.hook:
            self._load(program.probe, program.function, bcc.BPF.TRACING, program.hook)
            at_return = program.hook.startswith("kretfunc__")
            (self._bpf.attach_kretfunc if at_return else self._bpf.attach_kfunc)(
                fn_name=program.hook.encode()
            )
            return
        self._load(
            program.probe, program.function, bcc.BPF.RAW_TRACEPOINT if program.raw else bcc.BPF.TRACEPOINT
        )
        if program.raw:
            self._bpf.attach_raw_tracepoint(tp=program.tracepoint.partition(":")[2].encode(), fn_name=name)
            return
        self._bpf.attach_tracepoint(tp=program.tracepoint.encode(), fn_name=name)
        # bcc enables the event on one CPU, where a sample of it would be made for nobody. The program runs
        # as long as the event is there.
        fcntl.ioctl(self._bpf.tracepoint_fds[program.tracepoint.encode()], _PERF_EVENT_IOC_DISABLE)

    def _attach_fault_ends(self, bcc: Any, probe: str) -> None:
        """Hook the kernel's page-fault counts: software events, on each CPU, at every single event."""
        kinds = {
            f"on_{probe}_minor": bcc.PerfSWConfig.PAGE_FAULTS_MIN,
            f"on_{probe}_major": bcc.PerfSWConfig.PAGE_FAULTS_MAJ,
        }
        for function, config in kinds.items():
            self._load(probe, function, bcc.BPF.PERF_EVENT)
            self._bpf.attach_perf_event(
                ev_type=bcc.PerfType.SOFTWARE, ev_config=config, fn_name=function.encode(), sample_period=1
            )


def _share_until_later(descriptors: Sequence[int]) -> None:
    """Let a short-lived process hold these descriptors too, so that closing ours does not take seconds.

    The kernel detaches a tracepoint at the last close of its descriptor, and waits 50-80 ms at each for
    every CPU to have passed a quiet point. That other process ends by itself, and waits in our place.
    """
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    with contextlib.suppress(OSError):
        pid = os.posix_spawnp("sleep", ["sleep", "0.1"], os.environ)
        threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
