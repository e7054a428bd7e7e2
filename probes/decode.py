"""From the records of the ring to rows of the event table, whole columns at a time.

What hardware and kernel encode (EPT exit qualifications, NPT and #PF error codes) becomes `access` and
`flags` here, so that recorded bytes of any host can be decoded, and tested, on any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from tracekit.probes.record_loops import overtaken, transpose
from tracekit.probes.wire import HEADER_BYTES, NULLABLE, RECORD, VALID
from tracekit.trace.batch import events_batch
from tracekit.trace.repeated import repeated, writable
from tracekit.trace.schema import (
    ACCESS_EXECUTE,
    ACCESS_READ,
    ACCESS_WRITE,
    FLAG_GUEST_WALK,
    FLAG_KERNEL,
    FLAG_PRESENT,
    KIND_CODE,
    PAGE_BYTES,
)
from tracekit.trace.zstd_rows import is_constant

__all__ = ["access_and_flags", "columns", "to_batch"]

_WIDE: Final = ("ts_ns", "gfn", "hva", "gva", "latency_ns", "rip", "arg")
_NARROW: Final = (("tid", "pages"), ("vm", "vcpu", "kind", "level", "flags", "valid"))
"""The fields of a record behind the ring's header: words of 8 bytes, and words that several share."""

_WORDS: Final[tuple[tuple[str, ...], ...]] = (*((name,) for name in _WIDE), *_NARROW)

_OF_AN_ERROR: Final = ("flags", "valid", "arg", "kind")
"""What changes as an error code is decoded, and what says whose it is."""

_TRANSPOSED: Final = 2048
"""Records transposed at once: so many stay in the nearest cache while their words are taken in turn."""

_GUEST_FAULT_KIND: Final = KIND_CODE["ept_violation"]
_MAP_KIND: Final = KIND_CODE["map"]
_HOST_FAULT_KIND: Final = KIND_CODE["host_fault"]
_OWN_FAULT_KIND: Final = KIND_CODE["guest_fault"]

# x86 #PF error code, which SVM's NPT fault code extends (AMD APM vol. 2, 15.25.6; Intel SDM vol. 3, 4.7)
_PF_PRESENT: Final = 1 << 0
_PF_WRITE: Final = 1 << 1
_PF_USER: Final = 1 << 2
_PF_FETCH: Final = 1 << 4
_NPF_GUEST_WALK: Final = np.uint64(1 << 33)
# VMX exit qualification of an EPT violation (Intel SDM vol. 3, table 28-7): bits 0-2 are the access, 3-5
# what the entry allowed, 7 that the linear address is valid, 8 that it was the final access, not the walk.
_EPT_ACCESS: Final = 0x7
_EPT_ALLOWED: Final = 0x38
_EPT_LINEAR: Final = 1 << 7
_EPT_FINAL: Final = 1 << 8


def _table(bits: int, access_of: Callable[[int], int], flags_of: Callable[[int], int]) -> _Tables:
    codes = range(1 << bits)
    access = np.array([access_of(code) for code in codes], np.uint8)
    return access, np.array([flags_of(code) for code in codes], np.uint32)


def _page_fault_access(code: int) -> int:
    if code & _PF_FETCH:
        return ACCESS_EXECUTE
    return ACCESS_WRITE if code & _PF_WRITE else ACCESS_READ


def _page_fault_flags(code: int) -> int:
    return FLAG_PRESENT * bool(code & _PF_PRESENT) | FLAG_KERNEL * (not code & _PF_USER)


def _ept_flags(code: int) -> int:
    walk = (code & (_EPT_LINEAR | _EPT_FINAL)) == _EPT_LINEAR
    return FLAG_PRESENT * bool(code & _EPT_ALLOWED) | FLAG_GUEST_WALK * walk


_Tables: TypeAlias = tuple[np.ndarray, np.ndarray]
_OWN: Final = _table(5, _page_fault_access, _page_fault_flags)
# The low bits of an error code index its decoding. NPT: its user bit says nothing of the guest, since every
# access of a nested walk is a user access, and bit 33 is beyond the table.
_TABLES: Final[dict[str, _Tables]] = {
    "ept": _table(9, lambda code: code & _EPT_ACCESS, _ept_flags),
    "npt": _table(5, _page_fault_access, lambda code: FLAG_PRESENT * bool(code & _PF_PRESENT)),
    "shadow": _OWN,
    "host": _OWN,
}
_NPF_TO_FLAG: Final = np.uint64(33 - FLAG_GUEST_WALK.bit_length() + 1)


def access_and_flags(error: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode error codes (uint64[n]) as `mode` encodes them: ept, npt, shadow or host (a host's own #PF).

    Returns (access: uint8[n] of ACCESS_* bits, flags: uint32[n] of FLAG_* bits).

    >>> access, flags = access_and_flags(np.array([0x182, 0x1A9], np.uint64), "ept")
    >>> access.tolist(), (flags & FLAG_PRESENT).tolist()
    ([2, 1], [0, 4])
    >>> access_and_flags(np.array([0x200000014], np.uint64), "npt")[1].tolist() == [FLAG_GUEST_WALK]
    True
    """
    tables = _TABLES.get(mode, _OWN)
    low = (error & np.uint64(len(tables[0]) - 1)).astype(np.intp)
    access, flags = tables[0][low], tables[1][low]
    if mode == "npt":
        flags |= ((error & _NPF_GUEST_WALK) >> _NPF_TO_FLAG).astype(np.uint32)
    return access, flags


def columns(records: np.ndarray, mmu_mode: str) -> dict[str, np.ndarray]:
    """Turn records (dtype RECORD, n) into contiguous columns of n; `valid` has their validity bits.

    Faults get `access` and `flags` from their error code; `gfn` (of a host_fault `hva`) and `pages` become
    those of the whole page that was mapped, and of a large one `arg` says which gfn (hva) was touched. Rows
    come in the order of time. Columns that stay the same may be shared (trace/repeated.py): whoever alters
    one takes it by `writable`.
    """
    in_order = False
    if transpose.compiled is not None and len(records):
        out, in_order = _transposed(records, mmu_mode)
    else:
        out = _split(records)
        _explain_all(out, mmu_mode)
    _whole_pages(out)
    if not in_order:
        _order(out)
    return out


def _explain_all(out: dict[str, np.ndarray], mmu_mode: str) -> None:
    kind = out["kind"]
    for code, mode in (
        (_GUEST_FAULT_KIND, mmu_mode),
        (_HOST_FAULT_KIND, "host"),
        (_OWN_FAULT_KIND, "host"),
    ):
        rows = _rows(kind == code)
        if rows is not None:
            _explain(out, rows, mode)


def _order(out: dict[str, np.ndarray]) -> None:
    """Put rows that other CPUs' have overtaken on their way to the ring into the order of time; few move."""
    ts = out["ts_ns"]
    if (ts[1:] >= ts[:-1]).all():
        return
    rows = _overtaken(ts)
    order = rows[np.argsort(ts[rows], kind="stable")]
    for column in out.values():
        if column.flags.writeable:  # else all its values are the same
            column[rows] = column[order]


def _overtaken(ts: np.ndarray) -> np.ndarray:
    """Return the rows that are not where they belong in the order of time, in order."""
    if overtaken.compiled is not None:
        places = np.empty(len(ts), np.int64)
        count = overtaken.compiled(ts, len(ts), np.empty(len(ts), np.uint64), places)
        return places[:count][::-1]
    # Between two rows nothing moves if all before are no later than all behind.
    apart = np.maximum.accumulate(ts)[:-1] <= np.minimum.accumulate(ts[::-1])[::-1][1:]
    moving = np.ones(len(ts), bool)
    moving[1:-1] = ~(apart[1:] & apart[:-1])
    moving[0], moving[-1] = not apart[0], not apart[-1]
    return np.flatnonzero(moving)


def _transposed(records: np.ndarray, mmu_mode: str) -> tuple[dict[str, np.ndarray], bool]:
    """Do what `columns` does for small pages, in one go; returns whether the rows are in time order, too."""
    rows = len(records)
    assert transpose.compiled is not None
    assert records.dtype == RECORD
    assert records.flags.c_contiguous
    wide, narrow32 = np.empty((len(_WIDE), rows), np.uint64), np.empty((3, rows), np.uint32)
    narrow16, narrow8 = np.empty((2, rows), np.uint16), np.empty((4, rows), np.uint8)
    same = np.empty(RECORD.itemsize // 8, np.uint64)
    transpose.compiled(
        records.view(np.uint64), rows, wide, narrow32, narrow16, narrow8, *_decodings(mmu_mode), same
    )
    out = dict(zip(_WIDE, wide, strict=True))
    out |= zip(("tid", "pages", "flags"), narrow32, strict=True)
    out["vm"], out["vcpu"] = narrow16[0], narrow16[1].view(np.int16)
    out |= zip(("kind", "level", "valid", "access"), narrow8, strict=True)
    in_order, *alike = same.tolist()
    for names, is_alike in zip(_WORDS, alike, strict=True):
        for name in names if is_alike else ():
            out[name] = repeated(int(records[name][0]), out[name].dtype, rows)
    if alike[-1]:
        codes = (int(out[name][0]) for name in _OF_AN_ERROR) if alike[_WORDS.index(("arg",))] else ()
        for name, value in zip(("access", *_OF_AN_ERROR), _explained(mmu_mode, *codes), strict=False):
            out[name] = repeated(value, out[name].dtype, rows)
    return out, bool(in_order)


@lru_cache(maxsize=64)
def _explained(mmu_mode: str, *codes: int) -> tuple[int, ...]:
    """Return `access` of a row and its _OF_AN_ERROR as `columns` has them, from the latter in a record."""
    if not codes:
        return (0,)
    row = {name: np.array([value], np.uint64) for name, value in zip(_OF_AN_ERROR, codes, strict=True)}
    row |= {"valid": row["valid"].astype(np.uint8), "access": np.zeros(1, np.uint8)}
    row["flags"] = row["flags"].astype(np.uint32)
    _explain_all(row, mmu_mode)
    return tuple(int(row[name][0]) for name in ("access", *_OF_AN_ERROR))


@cache
def _decodings(mmu_mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what the loop needs to know of error codes: those of guest faults are 1, of a host's own 2."""
    by_kind, numbers = np.zeros(256, np.uint8), np.zeros(16, np.uint64)
    access_of, flags_of = np.zeros(3 * 512, np.uint8), np.zeros(3 * 512, np.uint32)
    by_kind[_GUEST_FAULT_KIND] = 1
    by_kind[[_HOST_FAULT_KIND, _OWN_FAULT_KIND]] = 2
    for how, mode in ((1, mmu_mode), (2, "host")):
        access, flags = _TABLES.get(mode, _OWN)
        numbers[how], numbers[8 + how] = len(access) - 1, FLAG_GUEST_WALK if mode == "npt" else 0
        access_of[512 * how : 512 * how + len(access)] = access
        flags_of[512 * how : 512 * how + len(flags)] = flags
    return by_kind, numbers, access_of, flags_of


def _explain(out: dict[str, np.ndarray], rows: slice | np.ndarray, mode: str) -> None:
    """Give rows of faults their `access` and `flags`; their `arg`, the error code, has had its use then."""
    error, valid = out["arg"][rows], out["valid"][rows]
    if is_constant(error) and is_constant(valid):
        error, valid = error[:1], valid[:1]  # mostly, neighbours are faults of one sort
    access, flags = access_and_flags(error, mode)
    known = (valid & VALID["arg"]) != 0
    if not known.all():
        access, flags = access * known, flags * known
    out["access"][rows] = access
    out["flags"][rows] |= flags
    out["arg"][rows] = 0
    out["valid"][rows] &= ~np.uint8(VALID["arg"])


def _split(records: np.ndarray) -> dict[str, np.ndarray]:
    """Copy records to one contiguous column a field; there are `access` and wider `flags` too.

    All words of 8 bytes are transposed at once, and smaller fields taken out of theirs: copying field by
    field would read all records again for each. Where a word stays the same, so do its fields.
    """
    count = len(records)
    rows = records.view(np.uint64).reshape(count, RECORD.itemsize // 8)[:, HEADER_BYTES // 8 :]
    words = np.empty((rows.shape[1], count), np.uint64)
    for start in range(0, count, _TRANSPOSED):
        words[:, start : start + _TRANSPOSED] = rows[start : start + _TRANSPOSED].T
    out = dict(zip(_WIDE, words, strict=False))
    for names, word in zip(_NARROW, words[len(_WIDE) :], strict=True):
        same = is_constant(word)
        at = 0
        for name in names:
            kind = RECORD[name]
            field = word.view(kind)[at // kind.itemsize :: 8 // kind.itemsize]
            out[name] = np.full(count, field[0], kind) if same else np.ascontiguousarray(field)
            at += kind.itemsize
    out["flags"] = out["flags"].astype(np.uint32)
    out["access"] = np.zeros(count, np.uint8)
    return out


def to_batch(out: dict[str, np.ndarray]) -> pa.RecordBatch:
    """Make rows of the event table from `columns`."""
    valid: dict[str, np.ndarray] = {}
    given: dict[str, Any] = {
        name: out[name] for name in ("ts_ns", "kind", "vm", "tid", "pages", "access", "flags")
    }
    some, every = np.bitwise_or.reduce(out["valid"]), np.bitwise_and.reduce(out["valid"])
    for name in NULLABLE:
        if not some & VALID[name]:
            continue
        given[name] = out[name]
        if not every & VALID[name]:
            valid[name] = (out["valid"] & VALID[name]) != 0
    return events_batch(valid=valid, **given)


def _whole_pages(out: dict[str, np.ndarray]) -> None:
    """Let gfn, hva and pages of rows with a large page be those of the page; `arg` keeps what was touched."""
    kind, above = out["kind"], out["level"] > 1
    if not above.any():
        return
    for code, column in ((_GUEST_FAULT_KIND, "gfn"), (_MAP_KIND, "gfn"), (_HOST_FAULT_KIND, "hva")):
        large = np.flatnonzero(above & (kind == code))
        if not len(large):
            continue
        level = out["level"][large].astype(np.uint64)
        pages = np.uint64(1) << (np.uint64(9) * (level - np.uint64(1)))
        unit = pages if column == "gfn" else pages * np.uint64(PAGE_BYTES)
        exact = out[column][large]
        writable(out, column)[large] = exact & ~(unit - np.uint64(1))
        writable(out, "pages")[large] = pages
        if code != _MAP_KIND:
            writable(out, "arg")[large] = exact
            writable(out, "valid")[large] |= np.uint8(VALID["arg"])


def _rows(mask: np.ndarray) -> slice | np.ndarray | None:
    """Return an index of the rows: a slice when all are meant, which costs no copies; None for none."""
    count = int(np.count_nonzero(mask))
    if not count:
        return None
    return slice(None) if count == len(mask) else np.flatnonzero(mask)
