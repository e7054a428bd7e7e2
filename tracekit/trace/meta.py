"""What a trace says about itself: who recorded what, on which host, by which clock, with which probes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any, Final, TypedDict

from tracekit.errors import DamagedError, UsageError
from tracekit.trace.schema import SCHEMA_VERSION

__all__ = ["ADDRESS_KINDS", "SOURCES", "Clock", "Host", "Mark", "Meta", "Probes", "Vm", "tool_version"]

SOURCES: Final = ("recorded", "synthetic", "imported")
ADDRESS_KINDS: Final = ("gpa", "gva")


class Host(TypedDict, total=False):
    """The machine the trace was made on; `mmu_mode` is ept, npt, shadow, none or tcg."""

    kernel: str
    cpu: str
    cpus: int
    memory_bytes: int
    hostname: str
    kvm_module: str
    mmu_mode: str


class Vm(TypedDict, total=False):
    """One traced VM (the `vm` column indexes the list of these); more keys are allowed and kept."""

    pid: int
    argv: list[str]
    vcpus: int
    page_bytes: int


class Probes(TypedDict, total=False):
    """Probes that ran, those that could not with the reason, and what functions of the kernel they hooked."""

    active: list[str]
    refused: dict[str, str]
    functions: dict[str, list[str]]


class Clock(TypedDict, total=False):
    """The clock of `ts_ns`, and what to add to it for CLOCK_REALTIME and CLOCK_BOOTTIME.

    `uncertainty_ns`: the trace is a guest's, its times were made the host's, and may be so far off.
    """

    name: str
    realtime_offset_ns: int
    boot_offset_ns: int
    uncertainty_ns: int


class Mark(TypedDict):
    """A point the user named; a `mark` event's `arg` is the index into the list of these."""

    name: str
    ts_ns: int


@dataclass(kw_only=True)
class Meta:
    """The content of `meta.json`; times are nanoseconds of `clock`, sizes are bytes.

    Keys that this version does not know are kept in `extra` and written back. `rows` and `parts` are
    what the trace held when it was finalised, `tables` the size and crc32 of each side table: the reader
    checks the files against them. `late_rows` counts rows that came too late for the time order of a part.

    >>> meta = Meta(source="synthetic", notes=["two vCPUs, 1 GiB"])
    >>> Meta.from_json(meta.to_json()) == meta
    True
    >>> Meta.from_json('{"schema_version": 1, "source": "recorded", "colour": 3}').extra
    {'colour': 3}
    """

    schema_version: int = SCHEMA_VERSION
    tool_version: str = ""
    source: str = "recorded"
    host: Host = field(default_factory=Host)
    vms: list[Vm] = field(default_factory=list)
    address_kind: str = "gpa"
    probes: Probes = field(default_factory=Probes)
    clock: Clock = field(default_factory=lambda: Clock(name="CLOCK_MONOTONIC"))
    filters: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    start_ns: int | None = None
    stop_ns: int | None = None
    finalised: bool = False
    recovered: bool = False
    marks: list[Mark] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int | None = None
    parts: int | None = None
    late_rows: int = 0
    tables: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a source or address kind that no reader would know (UsageError)."""
        if self.source not in SOURCES:
            raise UsageError(f"source must be one of {', '.join(SOURCES)}, not {self.source!r}")
        if self.address_kind not in ADDRESS_KINDS:
            raise UsageError(
                f"address_kind must be one of {', '.join(ADDRESS_KINDS)}, not {self.address_kind!r}"
            )

    def to_json(self) -> str:
        """Return the text of `meta.json`; numbers that JSON cannot hold (NaN, infinity) become null."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return json.dumps(_finite({**self.extra, **known}), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Meta:
        """Read the text of a `meta.json`.

        Raises DamagedError when it is not what a tracekit wrote, UsageError when a newer one wrote it.
        """
        try:
            text.encode()
            raw = _finite(json.loads(text))
            json.dumps(
                raw, ensure_ascii=False
            ).encode()  # half a surrogate pair could not be shown or written
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"meta.json is not JSON: {error}") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("schema_version"), int):
            raise DamagedError("meta.json has no schema_version")
        if raw["schema_version"] > SCHEMA_VERSION:
            raise UsageError(
                f"made by a newer tracekit (schema {raw['schema_version']}; this one: {SCHEMA_VERSION})",
                hint="pip install --upgrade tracekit",
            )
        known = {f.name for f in fields(cls)} - {"extra"}
        for name in known & raw.keys():
            if not _fits(raw[name], _SHAPES[name]):
                raise DamagedError(f"meta.json: {name} is not what tracekit writes")
        try:
            return cls(
                **{name: value for name, value in raw.items() if name in known},
                extra={name: value for name, value in raw.items() if name not in known},
            )
        except UsageError as error:
            raise DamagedError(f"meta.json: {error.message}") from None


@functools.cache
def tool_version() -> str:
    """Return the version of the tracekit that is running."""
    return version("tracekit")


def _fits(value: object, shape: Any) -> bool:
    """Tell whether a JSON value has a shape: a type, (low, high) for whole numbers, or a container of shapes.

    A dict of shapes allows other keys, and any of its own to be missing; `{str: shape}` is for any key.

    >>> _fits({"pid": 7, "argv": ["vmm"], "colour": 3}, {"pid": (0, 99), "argv": [str]})
    True
    >>> _fits({"pid": True}, {"pid": (0, 99)})
    False
    """
    if shape is Any:
        fit = True
    elif isinstance(shape, tuple):
        fit = isinstance(value, int) and not isinstance(value, bool) and shape[0] <= value <= shape[1]
    elif isinstance(shape, list):
        fit = isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    elif isinstance(shape, dict) and isinstance(value, dict):
        parts = dict.fromkeys(value, shape[str]) if str in shape else shape
        fit = all(_fits(value[name], part) for name, part in parts.items() if name in value)
    elif isinstance(shape, _Share):
        fit = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    elif isinstance(shape, _Optional):
        fit = value is None or _fits(value, shape.shape)
    elif isinstance(shape, _Whole):
        fit = isinstance(value, dict) and value.keys() >= shape.shape.keys() and _fits(value, shape.shape)
    else:
        fit = isinstance(shape, type) and isinstance(value, shape)
    return fit


class _Optional:
    """A shape or null."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


class _Share:
    """A number above 0 and up to 1."""


class _Whole:
    """A dict of shapes of which none may be missing."""

    def __init__(self, shape: dict[str, Any]) -> None:
        self.shape = shape


_COUNT: Final = (0, (1 << 63) - 1)
_TIME: Final = (0, (1 << 64) - 1)
_OFFSET: Final = (-(1 << 63), (1 << 63) - 1)
_SHAPES: Final[dict[str, Any]] = {
    "schema_version": _COUNT,
    "tool_version": str,
    "source": str,
    "host": {
        **dict.fromkeys(("kernel", "cpu", "hostname", "kvm_module", "mmu_mode"), str),
        "cpus": _COUNT,
        "memory_bytes": _COUNT,
    },
    "vms": [{"pid": (-1, 1 << 32), "argv": [str], "vcpus": _COUNT, "page_bytes": _COUNT}],
    "address_kind": str,
    "probes": {"active": [str], "refused": {str: str}, "functions": {str: [str]}},
    "clock": {
        "name": str,
        "realtime_offset_ns": _OFFSET,
        "boot_offset_ns": _OFFSET,
        "uncertainty_ns": _COUNT,
    },
    "filters": dict,
    "sampling": {"gfn_hash": _Share()},
    "start_ns": _Optional(_TIME),
    "stop_ns": _Optional(_TIME),
    "finalised": bool,
    "recovered": bool,
    "marks": [_Whole({"name": str, "ts_ns": _TIME})],
    "command": [str],
    "notes": [str],
    "rows": _Optional(_COUNT),
    "parts": _Optional(_COUNT),
    "late_rows": _COUNT,
    "tables": {str: {"rows": _COUNT, "bytes": _COUNT, "crc32": str}},
}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
