"""Miss-ratio curves: what more or less memory would do to a reference string.

Pure functions and small state machines on arrays of dense page numbers, in time order, batch by batch.
`StackDistances` gives LRU at all sizes exactly, `Shards` from a sample; `Lru`, `Fifo`, `Clock` and
`Belady` replay one size; `limit_curve` puts them together; `more_memory` reads fault traces; `IdleGaps`
and `accessed_bits` answer every delay after which a page could be taken away.
"""

from tracekit.replay.missratio.accessed import AccessedAnswers, accessed_bits
from tracekit.replay.missratio.belady import Belady
from tracekit.replay.missratio.curve import MissRatioCurve, mean_absolute_error
from tracekit.replay.missratio.evictions import POLICY_ERROR, more_memory
from tracekit.replay.missratio.idle import ENDS, STARTS, USE, DelayAnswers, IdleGaps, SortedGaps
from tracekit.replay.missratio.limits import limit_curve
from tracekit.replay.missratio.policies import FILLED, HIT, Clock, Fifo, Lru, Policy
from tracekit.replay.missratio.references import EVICT, FAULT, FORGET, TOUCH
from tracekit.replay.missratio.sampling import Shards
from tracekit.replay.missratio.stackdistance import StackDistances

__all__ = [
    "ENDS",
    "EVICT",
    "FAULT",
    "FILLED",
    "FORGET",
    "HIT",
    "POLICY_ERROR",
    "STARTS",
    "TOUCH",
    "USE",
    "AccessedAnswers",
    "Belady",
    "Clock",
    "DelayAnswers",
    "Fifo",
    "IdleGaps",
    "Lru",
    "MissRatioCurve",
    "Policy",
    "Shards",
    "SortedGaps",
    "StackDistances",
    "accessed_bits",
    "limit_curve",
    "mean_absolute_error",
    "more_memory",
]
