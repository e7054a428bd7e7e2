"""The recorder's own time inside the latencies it recorded, taken off again: without it they were shorter."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.replay.reduction import Raw
from tracekit.trace.schema import KIND_CODE

__all__ = ["own_time", "without_own_time"]


def own_time(meta: Any) -> dict[str, int]:
    """Return what a trace says of it: kind -> whole ns inside each latency (empty if nothing was measured).

    >>> from types import SimpleNamespace
    >>> own_time(SimpleNamespace(extra={"cost": {"inside_latency_ns": {"ept_violation": 83.7}}}))
    {'ept_violation': 83}
    """
    cost = getattr(meta, "extra", {}).get("cost")
    inside = cost.get("inside_latency_ns") if isinstance(cost, dict) else None
    if not isinstance(inside, dict):
        return {}
    known = {kind: ns for kind, ns in inside.items() if kind in KIND_CODE and isinstance(ns, int | float)}
    return {kind: int(ns) for kind, ns in known.items() if ns >= 1}


def without_own_time(raw: Raw, own_ns: dict[str, int]) -> Raw:
    """Take the time off the latencies of its kinds; none goes below zero, and unknown ones (-1) stay so."""
    if not own_ns:
        return raw
    off = np.zeros(256, np.int64)
    for kind, ns in own_ns.items():
        off[KIND_CODE[kind]] = ns
    latency = np.where(raw.latency < 0, raw.latency, np.maximum(raw.latency - off[raw.kind], 0))
    return raw._replace(latency=latency)
