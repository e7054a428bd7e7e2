"""Small synthetic events for the examples of the documentation: made in memory, in milliseconds."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import batches
from tracekit.datasets.synthetic.truth import Truth

__all__ = ["example"]

_SMALL = {"scan": {"pages": 200, "limit": 100}, "working-set": {"pages": 1024}}


def example(name: str, events: int = 1009) -> pl.LazyFrame:
    """Return the events of a small run of a generator as a LazyFrame.

    >>> example("boot-linux").collect().height
    1009
    """
    generator = GENERATORS[name](events=events, **_SMALL.get(name, {}))
    frame = pl.from_arrow(pa.Table.from_batches(batches(generator, Truth())))
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
