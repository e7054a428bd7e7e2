"""How sure a figure is: identification band, confidence interval and sensitivity, never merged.

Pure functions on arrays and callables; scipy.stats is imported inside the functions that use it.
"""

from tracekit.replay.uncertainty.answers import Figure, Identification, Sensitivity, Statistical
from tracekit.replay.uncertainty.blocks import Blocks, by_group, by_time, by_window
from tracekit.replay.uncertainty.bootstrap import interval, point
from tracekit.replay.uncertainty.breakeven import BreakEven, Crossing, break_even
from tracekit.replay.uncertainty.costs import Empirical, Fit, fits, split
from tracekit.replay.uncertainty.gaps import Gaps, gaps_of, returned_within
from tracekit.replay.uncertainty.new_run import UNKNOWN, Scatter, new_run_factor, scatter
from tracekit.replay.uncertainty.parameters import Evaluate, Parameter
from tracekit.replay.uncertainty.ranges import Variation, parse_variation, parse_variations, points
from tracekit.replay.uncertainty.seeding import generator
from tracekit.replay.uncertainty.sobol import Share, sobol, sobol_evaluations
from tracekit.replay.uncertainty.tails import Tail, tail
from tracekit.replay.uncertainty.tornado import swing_rows, tornado

__all__ = [
    "UNKNOWN",
    "Blocks",
    "BreakEven",
    "Crossing",
    "Empirical",
    "Evaluate",
    "Figure",
    "Fit",
    "Gaps",
    "Identification",
    "Parameter",
    "Scatter",
    "Sensitivity",
    "Share",
    "Statistical",
    "Tail",
    "Variation",
    "break_even",
    "by_group",
    "by_time",
    "by_window",
    "fits",
    "gaps_of",
    "generator",
    "interval",
    "new_run_factor",
    "parse_variation",
    "parse_variations",
    "point",
    "points",
    "returned_within",
    "scatter",
    "sobol",
    "sobol_evaluations",
    "split",
    "swing_rows",
    "tail",
    "tornado",
]
