"""Reads a hive-partitioned Parquet dataset from a folder or an fsspec URL."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.dataset as pds

from tracekit.errors import UsageError
from tracekit.replay.fleet.places import file_system

__all__ = ["read_dataset"]


def read_dataset(folder: str, where: pds.Expression | None = None) -> pl.DataFrame:
    """Return all rows of the Parquet files below a folder, with `vm_class` from the folders' names.

    `where` is applied while reading. Raises UsageError where there is nothing to read.
    """
    fs, root = file_system(folder)
    hint = "tracekit fleet TRACES… --scenario NAME -o RESULTS"
    files = [path for path in fs.find(root) if str(path).endswith(".parquet")] if fs.isdir(root) else []
    if not files:
        raise UsageError(f"{folder} holds no Parquet files", hint=hint)
    classes = pds.partitioning(pa.schema([("vm_class", pa.string())]), flavor="hive")
    try:
        found = pds.dataset(
            files, filesystem=fs, format="parquet", partitioning=classes, partition_base_dir=root
        ).to_table(filter=where)
        frame = pl.from_arrow(found)
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise UsageError(f"cannot read {folder}: {str(error).splitlines()[0]}", hint=hint) from None
    assert isinstance(frame, pl.DataFrame)
    return frame
