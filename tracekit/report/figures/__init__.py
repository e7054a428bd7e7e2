"""Turns a study into figures: the rows of each chart, its one sentence, its words for screen readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tracekit.report.figure import Figure
from tracekit.report.figures import of_result, of_trace
from tracekit.report.study import Study

__all__ = ["draw"]

_ALL: Final[tuple[Callable[[Study], Figure | None], ...]] = (
    of_result.draw_savings,
    of_result.draw_waterfall,
    of_result.draw_resident,
    of_trace.draw_stall,
    of_trace.draw_latency,
    of_trace.draw_heat,
    of_trace.draw_balloon,
    of_result.draw_tornado,
    of_result.draw_miss_ratio,
    of_result.draw_zeroing,
)


def draw(study: Study) -> list[Figure]:
    """Return every figure that the study has data for, in the order a reader wants them."""
    return [figure for figure in (make(study) for make in _ALL) if figure is not None]
