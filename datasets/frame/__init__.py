"""Traces as polars frames: `scan` joins many traces into one LazyFrame, `.tk` asks it the usual questions."""

from tracekit.datasets.frame.namespace import EventsNamespace, EventsPlots
from tracekit.datasets.frame.scanning import scan

__all__ = ["EventsNamespace", "EventsPlots", "scan"]
