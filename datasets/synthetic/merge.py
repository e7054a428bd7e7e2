"""Many streams of blocks, each in time order, into one: a VM each for fleets and for clones of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.datasets.synthetic.generator import Columns
from tracekit.trace.schema import EVENTS

__all__ = ["merge_streams"]

_REQUIRED = frozenset(f.name for f in EVENTS if not f.nullable)


def merge_streams(streams: list[Iterator[Columns]]) -> Iterator[Columns]:
    """Yield blocks in time order over all streams; holds one block of each stream.

    Rows up to the earliest end of all held blocks are complete, so they can go; then the stream whose block
    ended there gives its next one.

    >>> import numpy as np
    >>> def stream(*times):
    ...     for t in times:
    ...         yield {"ts_ns": np.array(t, np.uint64), "kind": np.zeros(len(t), np.uint8)}
    >>> blocks = list(merge_streams([stream([1, 5], [9]), stream([2, 3, 7])]))
    >>> [b["ts_ns"].tolist() for b in blocks]
    [[1, 2, 3, 5], [7], [9]]
    """
    held: dict[int, Columns] = {}
    live = dict(enumerate(streams))
    while True:
        for key in [k for k in live if k not in held]:
            block = next((b for b in live[key] if b["ts_ns"].size), None)
            if block is None:
                del live[key]
            else:
                held[key] = block
        if not held:
            return
        horizon = min(block["ts_ns"][-1] for block in held.values())
        ready = []
        for key, block in list(held.items()):
            cut = int(np.searchsorted(block["ts_ns"], horizon, "right"))
            if cut:
                ready.append({name: values[:cut] for name, values in block.items()})
            if cut == block["ts_ns"].size:
                del held[key]
            else:
                held[key] = {name: values[cut:] for name, values in block.items()}
        yield _interleave(ready)


def _interleave(blocks: list[Columns]) -> Columns:
    if len(blocks) == 1:
        return blocks[0]
    rows = [block["ts_ns"].size for block in blocks]
    order = np.argsort(np.concatenate([block["ts_ns"] for block in blocks]), kind="stable")
    out: Columns = {}
    for name in dict.fromkeys(name for block in blocks for name in block):
        dtype = next(block[name].dtype for block in blocks if name in block)
        missing = 1 if name == "pages" else 0
        data = np.concatenate(
            [
                np.ma.getdata(block[name]) if name in block else np.full(n, missing, dtype)
                for block, n in zip(blocks, rows, strict=True)
            ]
        )[order]
        full = all(name in block and np.ma.getmask(block[name]) is np.ma.nomask for block in blocks)
        if full or name in _REQUIRED:
            out[name] = data
            continue
        mask = np.concatenate(
            [
                np.ma.getmaskarray(block[name]) if name in block else np.ones(n, bool)
                for block, n in zip(blocks, rows, strict=True)
            ]
        )
        out[name] = np.ma.array(data, mask=mask[order])
    return out
