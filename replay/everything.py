"""Every mechanism that a trace can answer for, alone and combined: what to replay when nothing is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tracekit.errors import UsageError
from tracekit.replay.mechanisms import Mechanism, ParamValue, known_mechanisms
from tracekit.replay.running import Room
from tracekit.replay.scenarios import Scenario

__all__ = ["COMBINED", "every_scenario"]

COMBINED: Final = "combined"

RUNNABLE: Final = 1
"""Other threads per vCPU that could run during a wait: no trace of faults says, so the name does."""


def every_scenario(room: Room) -> tuple[list[Scenario], list[str]]:
    """Return a scenario per mechanism, then all of them combined; and why the others are left out.

    Each has its defaults, but for a policy that the trace lacks the events for (or the memory: a balloon that
    is to leave all of it free): then the first that it has them for. The limit of `swap` is half of the
    guest's memory.
    """
    found: list[Scenario] = []
    left_out: list[str] = []
    for mechanism in known_mechanisms().values():
        chosen, why = _first_that_runs(room, mechanism)
        if chosen is None:
            left_out.append(f"{mechanism.name} left out: {why}")
        else:
            found.append(chosen)
    if len(found) > 1:
        params = {name: of for one in found for name, of in one.params.items()}
        found.append(Scenario(COMBINED, tuple(m for one in found for m in one.mechanisms), params))
    return found, left_out


def _first_that_runs(room: Room, mechanism: Mechanism) -> tuple[Scenario | None, str]:
    given: dict[str, ParamValue] = {}
    if mechanism.name == "epf":
        given["runnable"] = RUNNABLE
    if mechanism.name == "swap" and room.timeline.memory_bytes:
        given["limit_mib"] = room.timeline.memory_bytes / 2 / (1 << 20)
    defaults = mechanism.defaults()
    default = defaults.get("policy")
    policies = next((p.choices for p in mechanism.params if p.name == "policy"), ())
    small = mechanism.name == "balloon" and _leaves_all_free(room, float(defaults["free_mib"]))
    why = ""
    for policy in sorted(policies, key=lambda one: (one == default) is small) or [""]:
        more = {**given, "policy": policy} if policy and policy != default else given
        scenario = Scenario(_name(mechanism, more), (mechanism,), {mechanism.name: more})
        try:
            mechanism.setup(room.context(scenario, mechanism))
        except UsageError as error:
            why = why or error.message
        else:
            return scenario, ""
    return None, why


def _leaves_all_free(room: Room, free_mib: float) -> bool:
    size = room.timeline.memory_bytes
    return size is not None and size <= free_mib * (1 << 20)


def _name(mechanism: Mechanism, params: Mapping[str, ParamValue]) -> str:
    settings = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
    ]
    return ",".join([mechanism.name, *settings])
