"""What to record, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tracekit.errors import UsageError
from tracekit.trace.sampling import Sampler

__all__ = ["RecordPlan", "RecordReport", "Status"]


@dataclass(frozen=True, kw_only=True)
class RecordPlan:
    """What to record, into which trace, for how long.

    A command, or processes that already run (`pids`), or with `guest` the machine this is, from inside.
    `seconds` None = until the command or the processes end, or a signal. `ring_bytes` is a power of two: at
    80 bytes a record it is how far the recorder may fall behind before events are lost. `max_bytes` ends
    the recording at that size; `rotate_seconds` begins a new trace that often and keeps the last
    `rotate_keep` (0 = all); `keep_last_seconds` keeps events in memory and writes the last ones at the end
    and on SIGUSR1. `user` and `group` own the trace and run the command. `monitor` is a QEMU monitor
    socket (QMP) to ask for memory ranges. `least_privilege`: once the probes are attached, this process
    becomes `user` for good and gives up what it needs no more (see `privileges.give_up`). `sample` writes
    only that share of the guest's memory (see `tracekit.trace.sampling`).
    """

    out: Path
    command: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    guest: bool = False
    seconds: float | None = None
    force: bool = False
    ring_bytes: int = 32 << 20
    max_bytes: int | None = None
    rotate_seconds: float | None = None
    rotate_keep: int = 0
    keep_last_seconds: float | None = None
    user: int | None = None
    group: int | None = None
    monitor: Path | None = None
    least_privilege: bool = False
    sample: float | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be (UsageError); who is named twice is one."""
        object.__setattr__(self, "pids", tuple(dict.fromkeys(self.pids)))
        if self.pids and (self.command or self.guest):
            raise UsageError("-p is for VMs that run already: no command and no --guest with it", hint=_WAYS)
        if not (self.command or self.pids or self.guest):
            raise UsageError("record needs a COMMAND, a running process or --guest", hint=_WAYS)
        self._refuse_amounts()
        if self.sample is not None:
            Sampler(self.sample)
        if self.rotate_seconds and self.keep_last_seconds:
            raise UsageError("--rotate and --keep-last exclude each other", hint=_HELP)
        if self.max_bytes is not None and self.keep_last_seconds:
            raise UsageError("--max-size and --keep-last exclude each other", hint=_HELP)
        if self.rotate_keep and self.rotate_seconds is None:
            raise UsageError("--keep says how many traces of a series stay: it needs --rotate", hint=_HELP)
        if self.out.name in ("", ".."):
            raise UsageError(f"{self.out} is no name for a trace", hint="-o NAME.trace")
        if self.monitor is not None and self.guest:
            raise UsageError("--monitor is for a VM that is recorded from its host", hint=_HELP)

    def _refuse_amounts(self) -> None:
        if self.ring_bytes < 4096 or self.ring_bytes & (self.ring_bytes - 1):
            raise UsageError("the ring's size must be a power of two, at least 4096", hint="--buffer 32M")
        if self.ring_bytes > _LARGEST_RING:
            raise UsageError("the ring may have 1 GiB at most", hint="--buffer 1G")
        for name, value in (
            ("duration", self.seconds),
            ("time between traces", self.rotate_seconds),
            ("time to keep", self.keep_last_seconds),
        ):
            if value is not None and not 0 < value < _LONGEST_S:
                raise UsageError(f"the {name} must be a number of seconds, more than 0", hint=_HELP)
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise UsageError("the largest size must be more than 0", hint=_HELP)


_HELP: Final = "tracekit record --help"
_LARGEST_RING: Final = 1 << 30
_LONGEST_S: Final = 1e9  # 31 years: in ns it is a 64-bit number
_WAYS: Final = "tracekit record -- COMMAND…   or   tracekit record -p PID   or   tracekit record --guest"


@dataclass(frozen=True)
class Status:
    """How a recording stands: rows of each kind so far, the newest samples, what was lost and written.

    `start_ns` is when it began; `newest` are the last few rows with a latency, as dicts of the event table's
    columns, oldest first.
    """

    seconds: float
    kinds: dict[str, int]
    samples: dict[str, float]
    lost: int | None
    bytes_written: int
    held_bytes: int
    ring_share: float
    start_ns: int = 0
    newest: Sequence[Mapping[str, Any]] = ()


@dataclass
class RecordReport:
    """How a recording went; `lost` None = an unknown number; `exit_code` is the command's."""

    path: Path
    rows: int = 0
    lost: int | None = 0
    losses: dict[str, int | None] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    seconds: float = 0.0
    exit_code: int = 0
    stopped_by: str = ""
    active: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON-ready document."""
        return {**asdict(self), "path": str(self.path)}

    def lines(self) -> list[str]:
        """Return the report in lines for people: how much, and what was lost where and when."""
        size = self.bytes_written / 1e6
        lost = "an unknown number lost" if self.lost is None else f"{self.lost:,} lost"
        lines = [f"{self.rows:,} events in {self.seconds:.1f} s, {size:.1f} MB, {lost}"]
        lines += [f"  lost {line}" for line in self.where]
        lines += [f"  without {probe}: {why}" for probe, why in self.refused.items()]
        lines += [f"  {note}" for note in self.notes]
        return lines
