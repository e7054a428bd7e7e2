"""From one VM to a fleet: every trace through every scenario, and how many VMs then fit on a host."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.replay.fleet.capacity import Density, density
    from tracekit.replay.fleet.curves import Curves, load_curves

__all__ = ["Curves", "Density", "density", "load_curves"]

_HOMES = {"Curves": "curves", "Density": "capacity", "density": "capacity", "load_curves": "curves"}


def __getattr__(name: str) -> object:
    """Import what is asked for on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
