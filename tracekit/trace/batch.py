"""From numpy columns to rows of the event table, and the check that a batch is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tracekit.errors import UsageError
from tracekit.trace.schema import EVENTS, KIND_CODE, KINDS

__all__ = ["KIND_DICTIONARY", "check_batch", "events_batch", "newer_kinds"]

KIND_DICTIONARY: Final[pa.Array] = pa.array(KINDS, pa.string())
"""The values of every `kind` column: one constant, so that all batches of a part share it."""

_DEFAULTS: Final[dict[str, int]] = {"vm": 0, "tid": 0, "pages": 1, "access": 0, "flags": 0}
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    f.name: np.dtype(np.uint8 if f.name == "kind" else f.type.to_pandas_dtype()) for f in EVENTS
}
# Asking a schema for its fields takes microseconds each, and a recorder makes a batch many times a second.
_TYPES: Final[dict[str, pa.DataType]] = {f.name: f.type for f in EVENTS}
_NULL_ROWS: Final = 1 << 16
_NULLS: Final[dict[str, pa.Array]] = {f.name: pa.nulls(_NULL_ROWS, f.type) for f in EVENTS if f.nullable}
_NULLABLE: Final = {f.name for f in EVENTS if f.nullable}
_NEVER_NULL: Final = [(index, f.name) for index, f in enumerate(EVENTS) if not f.nullable]
_KIND: Final = EVENTS.get_field_index("kind")


def events_batch(*, valid: Mapping[str, np.ndarray] | None = None, **columns: Any) -> pa.RecordBatch:
    """Build rows of the event table from numpy columns.

    Each keyword is a column of `EVENTS`: an array of n values or one value for all rows; `kind` is a
    name, names, or codes (positions in `KINDS`). `valid` maps a nullable column to a bool mask of n
    (False = null). Nullable columns left out, or given as None, are null in every row; of the others
    only `ts_ns` and `kind` must be given (`pages` is 1, the rest 0).

    Raises UsageError when a column is unknown, has another length, or holds values that don't fit.

    >>> batch = events_batch(ts_ns=[10, 20], kind="ept_violation", gfn=[7, 0], valid={"gfn": [True, False]})
    >>> batch.column("gfn").to_pylist(), batch.column("kind").to_pylist()
    ([7, None], ['ept_violation', 'ept_violation'])
    >>> batch.column("latency_ns").null_count
    2
    """
    masks = dict(valid or {})
    if unknown := (columns.keys() | masks.keys()) - _DTYPES.keys():
        raise UsageError(f"no such event column: {', '.join(sorted(unknown))}", hint=", ".join(_DTYPES))
    for name in ("ts_ns", "kind"):
        if columns.get(name) is None:
            raise UsageError(f"events need a {name}")
    if np.ndim(columns["ts_ns"]) != 1:
        raise UsageError("ts_ns must be one-dimensional: one time per row")
    rows = len(columns["ts_ns"])
    arrays = [_column(name, columns.get(name), masks.get(name), rows) for name in _DTYPES]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENTS)


def check_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch if it has exactly the schema and kinds of `EVENTS`, else raise UsageError."""
    if not batch.schema.equals(EVENTS):
        raise UsageError(
            "a batch of events must have the schema EVENTS", hint="build it with events_batch(...)"
        )
    columns = batch.columns
    kind = columns[_KIND]
    if not kind.dictionary.equals(KIND_DICTIONARY):
        raise UsageError(
            "the kinds of a batch must be those of KINDS", hint="build it with events_batch(...)"
        )
    for index, name in _NEVER_NULL:
        if columns[index].null_count:
            raise UsageError(f"{name} has nulls; only nullable columns may")
    codes = kind.indices.to_numpy(zero_copy_only=True)
    if len(codes) and codes.max() >= len(KINDS):
        raise UsageError(f"kind code {codes.max()} is not in KINDS")
    return batch


def newer_kinds() -> UsageError:
    """Return the error for events of kinds that are not in KINDS."""
    hint = "pip install --upgrade tracekit"
    return UsageError("the trace has event kinds of a newer tracekit", hint=hint)


def _column(name: str, values: Any, mask: Any, rows: int) -> pa.Array:
    dtype = _DTYPES[name]
    if values is None and name in _DEFAULTS:
        values = _DEFAULTS[name]
    if values is None:
        return _NULLS[name].slice(0, rows) if rows <= _NULL_ROWS else pa.nulls(rows, _TYPES[name])
    if name == "kind":
        values = _kind_codes(values)
    data = _exact(name, values, dtype)
    if data.ndim == 0:
        data = np.full(rows, data, dtype)
    if data.shape != (rows,):
        raise UsageError(f"{name} has shape {data.shape}, ts_ns has ({rows},)")
    validity = None
    if mask is not None:
        present = np.asarray(mask, bool)
        if name not in _NULLABLE:
            raise UsageError(f"{name} cannot be null")
        if present.shape != (rows,):
            raise UsageError(f"valid[{name!r}] has shape {present.shape}, ts_ns has ({rows},)")
        if not present.all():
            # Zeros in the null slots: equal rows are equal bytes, and they compress. np.where takes 4 to 25
            # times as long.
            data = data * present
            validity = pa.py_buffer(np.packbits(present, bitorder="little"))
    data = np.ascontiguousarray(data)
    if name == "kind":
        # The codes were checked above.
        return pa.DictionaryArray.from_arrays(pa.array(data), KIND_DICTIONARY, safe=False)
    return pa.Array.from_buffers(_TYPES[name], rows, [validity, pa.py_buffer(data)])


def _kind_codes(values: Any) -> Any:
    if isinstance(values, str):
        values = np.array(values)
    values = np.asarray(values)
    if values.dtype.kind not in "UO":
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < len(KINDS):
            raise UsageError(f"kind codes are 0 to {len(KINDS) - 1}")
        return values
    names, inverse = np.unique(values.astype(str), return_inverse=True)
    if unknown := [str(name) for name in names if name not in KIND_CODE]:
        raise UsageError(f"no such event kind: {', '.join(unknown)}", hint=", ".join(KINDS))
    codes = np.array([KIND_CODE[str(name)] for name in names], np.uint8)
    return codes[inverse].reshape(values.shape)


def _exact(name: str, values: Any, dtype: np.dtype[Any]) -> np.ndarray:
    data = np.asarray(values)
    if data.dtype == dtype:
        return data
    if data.size == 0:
        return data.astype(dtype)
    try:
        if not isinstance(values, np.ndarray) and data.dtype.kind in "fO" and _all_int(values):
            # numpy makes floats of a list that mixes small integers with ones above 2**63.
            return np.array(values, dtype)
        if data.dtype.kind not in "iub":
            raise UsageError(f"{name} must be whole numbers, not {data.dtype}")
        bounds = np.iinfo(dtype)
        if int(data.min()) < bounds.min or int(data.max()) > bounds.max:
            raise OverflowError
    except OverflowError:
        bounds = np.iinfo(dtype)
        raise UsageError(f"{name} must be {bounds.min} to {bounds.max}") from None
    return data.astype(dtype)


def _all_int(values: Any) -> bool:
    return isinstance(values, int) or all(isinstance(value, int) for value in values)
