"""From a generator to a trace on disk, marked synthetic, with its truth in meta.json."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracekit.datasets.synthetic.generator import HVA_BASE, Columns, Generator
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace import Meta, TraceWriter, events_batch
from tracekit.trace.schema import PAGE_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["batches", "make_trace"]


def batches(generator: Generator, truth: Truth) -> Iterator[pa.RecordBatch]:
    """Yield the generator's events as batches of the event table, in time order.

    >>> from tracekit.datasets.synthetic import GENERATORS
    >>> sum(batch.num_rows for batch in batches(GENERATORS["boot-linux"](events=1000), Truth()))
    1000
    """
    for block in generator.blocks(truth):
        yield _batch(block)


def make_trace(generator: Generator, path: Path, *, force: bool = False) -> Meta:
    """Write the trace folder `path` and return its meta; meta.extra["truth"] holds what is known.

    Raises UsageError if `path` exists and not `force`.
    """
    truth = Truth()
    parameters = generator.parameters()
    meta = Meta(
        tool_version=version("tracekit"),
        source="synthetic",
        host={"mmu_mode": "none"},
        vms=[{"vcpus": generator.vcpus, "page_bytes": PAGE_BYTES} for _ in generator.vm_pages],
        clock={"name": "synthetic"},
        command=["tracekit", "datasets", "make", f"synthetic:{generator.NAME}"]
        + [f"{name}={value}" for name, value in parameters.items()],
        notes=[f"synthetic: {generator.ABOUT}"],
    )
    with TraceWriter(path, meta, force=force) as writer:
        for vm, pages in enumerate(generator.vm_pages):
            writer.add_memslot(
                vm=vm,
                slot=0,
                gpa=0,
                size_bytes=pages * PAGE_BYTES,
                hva=HVA_BASE,
                from_ns=0,
                known_by="synthetic",
            )
        marked = 0
        for batch in _ahead(batches(generator, truth)):
            for name, ts_ns in truth.phases[marked:]:
                writer.mark(name, ts_ns)
            marked = len(truth.phases)
            writer.append(batch)
        meta.extra["truth"] = {"generator": generator.NAME, "parameters": parameters, **truth.to_json()}
    return meta


def _ahead(items: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Make the next batch while the last one is compressed and written (both leave the interpreter free)."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


def _batch(block: Columns) -> pa.RecordBatch:
    values = {name: np.ma.getdata(column) for name, column in block.items()}
    valid = {name: ~np.ma.getmaskarray(column) for name, column in block.items() if np.ma.is_masked(column)}
    return events_batch(valid=valid, **values)
