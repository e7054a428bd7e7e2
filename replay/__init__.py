"""The enlightened-memory model: timeline, page states, mechanisms, costs, scenarios, uncertainty."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.replay.costs import Profile, load_profile
    from tracekit.replay.mechanisms import Mechanism, known_mechanisms
    from tracekit.replay.result import Result
    from tracekit.replay.running import run
    from tracekit.replay.scenarios import Scenario, load_scenarios, parse_scenario, read_scenarios

__all__ = [
    "Mechanism",
    "Profile",
    "Result",
    "Scenario",
    "known_mechanisms",
    "load_profile",
    "load_scenarios",
    "parse_scenario",
    "read_scenarios",
    "run",
]

_HOMES = {
    "Mechanism": "mechanisms",
    "Profile": "costs",
    "Result": "result",
    "Scenario": "scenarios",
    "load_profile": "costs",
    "load_scenarios": "scenarios",
    "known_mechanisms": "mechanisms",
    "parse_scenario": "scenarios",
    "read_scenarios": "scenarios",
    "run": "running",
}


def __getattr__(name: str) -> object:
    """Import what is asked for on first use: numba and polars are not paid for by `import tracekit`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
