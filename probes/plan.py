"""What to record, and how it went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tracekit.errors import UsageError

__all__ = ["RecordPlan", "RecordReport"]


@dataclass(frozen=True, kw_only=True)
class RecordPlan:
    """What to record: a command, or processes that already run; into which trace; for how long.

    `seconds` None = until the command or the processes end. `ring_bytes` is a power of two: at 88 bytes
    a record it is how far the recorder may fall behind before events are lost.
    """

    out: Path
    command: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    seconds: float | None = None
    force: bool = False
    ring_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        """Refuse what can't be (UsageError)."""
        if bool(self.command) == bool(self.pids):
            raise UsageError(
                "record needs a command or a running process, and not both",
                hint="tracekit record -- COMMAND…   or   tracekit record -p PID",
            )
        if self.ring_bytes < 4096 or self.ring_bytes & (self.ring_bytes - 1):
            raise UsageError("the ring's size must be a power of two, at least 4096", hint="--buffer 32M")
        if self.seconds is not None and self.seconds <= 0:
            raise UsageError("the duration must be more than 0 seconds", hint="-d 10")


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

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON-ready document."""
        return {**asdict(self), "path": str(self.path)}

    def lines(self) -> list[str]:
        """Return the report in lines for people: how much, and what was lost where and when."""
        size = self.bytes_written / 1e6
        lines = [f"{self.rows:,} events in {self.seconds:.1f} s, {size:.1f} MB, {self._lost_in_words()}"]
        lines += [
            f"  lost {'?' if lost is None else f'{lost:,}'}: {reason}" for reason, lost in self.losses.items()
        ]
        lines += [f"  without {probe}: {why}" for probe, why in self.refused.items()]
        return lines

    def _lost_in_words(self) -> str:
        return "an unknown number lost" if self.lost is None else f"{self.lost:,} lost"
