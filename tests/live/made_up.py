"""Tracepoints made up for programs that `probes.program_run` runs."""

from __future__ import annotations

from tracekit.probes.tracefs import Field, Tracepoint

__all__ = ["made_up_point"]


def made_up_point(category: str, event: str, *names: str) -> Tracepoint:
    """A raw tracepoint with these arguments."""
    fields = tuple(Field(name, 8 * at, 8, signed=False) for at, name in enumerate(names))
    return Tracepoint(category, event, fields, raw=True)
