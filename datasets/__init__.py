"""Bundled real traces, synthetic generators, importers and exporters, and traces as polars frames.

`scan` joins many traces into one LazyFrame, and events answer questions as `events.tk.QUESTION()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.datasets.exporters import export_trace
    from tracekit.datasets.frame import scan
    from tracekit.datasets.importers import import_trace

__all__ = ["export_trace", "import_trace", "scan"]

_HOME = {"export_trace": "exporters", "import_trace": "importers", "scan": "frame"}


def __getattr__(name: str) -> object:
    """Import on first use: the CLI must not pay for polars and numba before it needs them."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tracekit.datasets.{_HOME[name]}"), name)
