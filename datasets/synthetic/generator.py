"""What every synthetic generator is: parameters and a seed in, blocks of numpy columns and truth out."""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tracekit.datasets.synthetic.clocks import VMM_TID, VcpuClocks
from tracekit.datasets.synthetic.truth import Truth
from tracekit.errors import UsageError
from tracekit.trace.schema import KIND_CODE, PAGE_BYTES

__all__ = ["HVA_BASE", "Columns", "Generator", "parameter"]

Columns = dict[str, npt.NDArray[Any]]
"""Column name -> values, all of one length; `kind` holds codes. A masked array's masked values are nulls."""

HVA_BASE = 0x7F00_0000_0000
"""Where guest memory is mapped in the VMM of a synthetic trace: hva = HVA_BASE + gfn * 4096."""


def parameter(default: Any, about: str, *, low: float, high: float = float("inf")) -> Any:
    """Declare one parameter of a generator: its default, what it means with its unit, and its range."""
    return dataclasses.field(default=default, metadata={"about": about, "low": low, "high": high})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator(ABC):
    """A workload whose memory behaviour is known by construction.

    Sub-classes are frozen dataclasses: their fields are the parameters of `tracekit datasets make
    synthetic:NAME k=v`. They are streamed in blocks, so no size needs more memory than its state.
    """

    NAME: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""

    events: int = parameter(100_000, "events to make (each generator says what it counts)", low=1)
    seed: int = parameter(0, "same seed and parameters: same events", low=0)
    vcpus: int = parameter(4, "virtual CPUs", low=1, high=1024)
    block_rows: int = parameter(1 << 18, "rows made at a time: sets memory use", low=1024)

    @abstractmethod
    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield blocks of event columns in time order; fill `truth` on the way."""

    @property
    @abstractmethod
    def memory_pages(self) -> int:
        """Memory of the (largest) VM in 4 KiB pages: one memslot at gfn 0."""

    @property
    def vm_pages(self) -> list[int]:
        """Memory of each VM in 4 KiB pages: one VM, unless a sub-class has more."""
        return [self.memory_pages]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low, high = field.metadata["low"], field.metadata["high"]
            if not low <= value <= high:
                raise UsageError(
                    f"{self.NAME}: {field.name}={value} is outside {low:g}..{high:g}",
                    hint=f"tracekit datasets show synthetic:{self.NAME}",
                )

    @classmethod
    def from_text(cls, values: dict[str, str]) -> Generator:
        """Build one from `k=v` texts; unknown names and malformed numbers are usage errors."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        parsed: dict[str, Any] = {}
        for key, text in values.items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, 1)
                raise UsageError(
                    f"{cls.NAME} has no parameter {key!r}",
                    hint=f"{near[0]}=..." if near else f"tracekit datasets show synthetic:{cls.NAME}",
                )
            number = int if isinstance(fields[key].default, int) else float
            try:
                value = float(text) if number is float or "e" in text.lower() else int(text)
                parsed[key] = value if number is float else int(value)
                if parsed[key] != value:
                    raise ValueError
            except (ValueError, OverflowError):
                raise UsageError(
                    f"{cls.NAME}: {key}={text} is not a {'whole number' if number is int else 'number'}",
                    hint=f"{key}={fields[key].default}",
                ) from None
        return cls(**parsed)

    def rng(self, *path: int) -> np.random.Generator:
        """Return a random generator of its own for each purpose, all set by the seed."""
        return np.random.default_rng([self.seed, *path])

    def parameters(self) -> dict[str, Any]:
        """Return every parameter's value, as written to meta.truth."""
        return dataclasses.asdict(self)

    def counts(self, total: int) -> Iterator[int]:
        """Cut `total` into blocks of at most `block_rows`."""
        for at in range(0, total, self.block_rows):
            yield min(self.block_rows, total - at)

    def faults(
        self,
        truth: Truth,
        clocks: VcpuClocks,
        gfn: npt.NDArray[Any],
        *,
        think_ns: npt.NDArray[Any],
        latency_ns: npt.NDArray[Any],
        access: npt.NDArray[Any],
        kind: str | npt.NDArray[np.uint8] = "ept_violation",
        shares: npt.NDArray[Any] | None = None,
    ) -> Columns:
        """Play events on single 4 KiB pages on the vCPUs' clocks; returns a block in time order.

        Rows that are no fault (kind `access`) get neither level nor latency but are counted: arg = 1.
        """
        codes = np.full(gfn.size, KIND_CODE[kind], np.uint8) if isinstance(kind, str) else kind
        ts, vcpu, order = clocks.run(think_ns, latency_ns, shares)
        codes, gfn, latency_ns = codes[order], gfn.astype(np.uint64)[order], latency_ns[order]
        columns: Columns = {
            "ts_ns": ts,
            "kind": codes,
            "tid": vcpu.astype(np.uint32) + np.uint32(VMM_TID + 1),
            "vcpu": vcpu,
            "gfn": gfn,
            "hva": gfn * np.uint64(PAGE_BYTES) + np.uint64(HVA_BASE),
            "pages": np.ones(ts.size, np.uint32),
            "level": np.ones(ts.size, np.uint8),
            "access": access.astype(np.uint8)[order],
            "latency_ns": latency_ns,
        }
        truth.tally(codes, latency_ns)
        accesses = codes == KIND_CODE["access"]
        if accesses.any():
            columns["level"] = np.ma.array(columns["level"], mask=accesses)
            columns["latency_ns"] = np.ma.array(latency_ns, mask=accesses)
            columns["arg"] = np.ma.array(np.ones(ts.size, np.uint64), mask=~accesses)
        return columns

    def calls(
        self,
        truth: Truth,
        clocks: VcpuClocks,
        kind: str,
        gfn: npt.NDArray[Any],
        *,
        think_ns: npt.NDArray[Any],
        latency_ns: npt.NDArray[Any],
        arg: int,
    ) -> Columns:
        """Play calls of the VMM's thread on single 4 KiB pages, one row each; vcpu and level are unknown."""
        ts = clocks.alone(think_ns, latency_ns)
        gfn = gfn.astype(np.uint64)
        columns: Columns = {
            "ts_ns": ts,
            "kind": np.full(ts.size, KIND_CODE[kind], np.uint8),
            "tid": np.full(ts.size, VMM_TID, np.uint32),
            "gfn": gfn,
            "hva": gfn * np.uint64(PAGE_BYTES) + np.uint64(HVA_BASE),
            "pages": np.ones(ts.size, np.uint32),
            "latency_ns": latency_ns,
            "arg": np.full(ts.size, arg, np.uint64),
        }
        truth.tally(columns["kind"], latency_ns)
        return columns
