"""Error codes and records of every MMU, decoded: against the layouts and real samples of their manuals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.probes.decode import access_and_flags, columns, to_batch
from tracekit.probes.record_loops import transpose
from tracekit.probes.wire import NULLABLE, RECORD, RECORD_BYTES, VALID
from tracekit.trace.loops import plain, quicken
from tracekit.trace.repeated import is_shared, repeated, writable
from tracekit.trace.schema import (
    ACCESS_EXECUTE,
    ACCESS_READ,
    ACCESS_WRITE,
    EVENTS,
    FLAG_GUEST_WALK,
    FLAG_KERNEL,
    FLAG_MAJOR,
    FLAG_PRESENT,
    KIND_CODE,
    KINDS,
)
from tracekit.trace.splice import compress


def records(*rows: dict[str, Any]) -> np.ndarray:
    """Records from the named fields; `valid` is a set of column names."""
    out = np.zeros(len(rows), RECORD)
    out["length"] = RECORD_BYTES
    out["pages"] = 1
    for index, row in enumerate(rows):
        plain = {**row, "kind": KIND_CODE[row["kind"]], "valid": sum(VALID[name] for name in row["valid"])}
        for name, value in plain.items():
            out[index][name] = value
    return out


def fault(error: int, mode: str, **fields: Any) -> dict[str, Any]:
    row = {"kind": "ept_violation", "ts_ns": 9, "gfn": 5, "level": 1, "arg": error}
    row |= {"valid": ("gfn", "level", "arg"), **fields}
    return to_batch(columns(records(row), mode)).to_pylist()[0]


# EPT: Intel SDM vol. 3, exit qualification; NPT: AMD APM vol. 2, 15.25.6; the two NPT samples are real.
@pytest.mark.parametrize(
    ("mode", "error", "access", "flags"),
    [
        ("ept", 0x181, ACCESS_READ, 0),
        ("ept", 0x182, ACCESS_WRITE, 0),
        ("ept", 0x184, ACCESS_EXECUTE, 0),
        ("ept", 0x183, ACCESS_READ | ACCESS_WRITE, 0),
        ("ept", 0x1AA, ACCESS_WRITE, FLAG_PRESENT),  # entry readable and executable: write protection
        ("ept", 0x082, ACCESS_WRITE, FLAG_GUEST_WALK),  # the walk that sets an accessed bit
        ("ept", 0x002, ACCESS_WRITE, 0),  # no linear address: not known to be a walk
        ("npt", 0x100000014, ACCESS_EXECUTE, 0),
        ("npt", 0x100000006, ACCESS_WRITE, 0),
        ("npt", 0x200000006, ACCESS_WRITE, FLAG_GUEST_WALK),
        ("npt", 0x100000004, ACCESS_READ, 0),
        ("npt", 0x100000007, ACCESS_WRITE, FLAG_PRESENT),
        ("npt", 0x14, ACCESS_EXECUTE, 0),  # before 6.1 the field had 32 bits: nothing known of the walk
        ("shadow", 0x6, ACCESS_WRITE, 0),
        ("shadow", 0x2, ACCESS_WRITE, FLAG_KERNEL),
        ("shadow", 0x14, ACCESS_EXECUTE, 0),
    ],
)
def test_error_codes_of_guest_faults(mode: str, error: int, access: int, flags: int) -> None:
    row = fault(error, mode)
    assert (row["access"], row["flags"]) == (access, flags)
    assert row["arg"] is None


@pytest.mark.parametrize(
    ("error", "access", "flags"),
    [
        (0x6, ACCESS_WRITE, 0),
        (0x4, ACCESS_READ, 0),
        (0x2, ACCESS_WRITE, FLAG_KERNEL),
        (0x7, ACCESS_WRITE, FLAG_PRESENT),
    ],
)
@pytest.mark.parametrize("mode", ["ept", "npt", "shadow", "none"])
def test_a_host_fault_has_the_hosts_own_code_on_every_host(
    mode: str, error: int, access: int, flags: int
) -> None:
    row = fault(error, mode, kind="host_fault", flags=FLAG_MAJOR)
    assert (row["access"], row["flags"]) == (access, flags | FLAG_MAJOR)


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.sampled_from(["ept", "npt", "shadow"])
)
def test_decoding_whole_columns_is_decoding_each(codes: list[int], mode: str) -> None:
    access, flags = access_and_flags(np.array(codes, np.uint64), mode)
    for index, code in enumerate(codes):
        one_access, one_flags = access_and_flags(np.array([code], np.uint64), mode)
        assert (access[index], flags[index]) == (one_access[0], one_flags[0])
    assert not (access & ~np.uint8(ACCESS_READ | ACCESS_WRITE | ACCESS_EXECUTE)).any()


@pytest.mark.parametrize(("level", "pages"), [(1, 1), (2, 512), (3, 262_144)])
def test_a_fault_covers_its_whole_page_and_keeps_the_exact_gfn(level: int, pages: int) -> None:
    exact = 5 * 262_144 + 1000
    row = fault(0, "npt", gfn=exact, level=level)
    assert row["gfn"] == exact // pages * pages
    assert row["pages"] == pages
    assert row["arg"] == (exact if level > 1 else None)


def test_a_huge_page_of_the_host_is_one_row_at_its_first_address() -> None:
    touched = 0x7F0000212345
    row = fault(0x6, "shadow", kind="host_fault", hva=touched, level=2, valid=("hva", "level", "arg"))
    assert (row["hva"], row["pages"], row["level"], row["arg"]) == (0x7F0000200000, 512, 2, touched)


def test_rows_of_all_kinds_keep_their_values_and_nulls() -> None:
    rows = [
        {
            "kind": kind,
            "ts_ns": index,
            "tid": 7,
            "vm": 3,
            "pages": 2,
            "valid": NULLABLE[: index % 9],
        }
        for index, kind in enumerate(KINDS)
        if kind not in ("ept_violation", "host_fault")
    ]
    for row in rows:
        row |= {name: 11 for name in row["valid"] if name != "level"}
    batch = to_batch(columns(records(*rows), "ept"))
    assert batch.schema.equals(EVENTS)
    for row, out in zip(rows, batch.to_pylist(), strict=True):
        assert out["kind"] == row["kind"]
        assert (out["ts_ns"], out["tid"], out["vm"], out["pages"]) == (row["ts_ns"], 7, 3, 2)
        for name in NULLABLE:
            if name not in row["valid"]:
                assert out[name] is None
            elif name != "level":
                assert out[name] == 11


@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 255, 256, 257, 1000]),
    st.sampled_from(["ept", "npt", "shadow", "none"]),
)
@settings(max_examples=60, deadline=None)
def test_the_loop_decodes_as_numpy_does(seed: int, count: int, mode: str) -> None:
    """Whatever is in the records: fields that stay the same, change at once, or change half-way."""
    assert quicken(build_first=True)
    assert transpose.compiled is not None
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, (count, RECORD.itemsize), np.uint8).view(RECORD)[:, 0].copy()
    for name in RECORD.names or ():
        how = rng.integers(0, 3)
        made[name][: (0, count // 2, count)[how]] = made[name][0]
    faults = [KIND_CODE[kind] for kind in ("ept_violation", "host_fault", "guest_fault")]
    made["kind"] = (made["kind"] % len(KINDS), *faults)[rng.integers(0, 4)]
    made["level"] %= 4
    made["ts_ns"] += np.cumsum(rng.integers(0, 2, count)).astype(np.uint64) << np.uint64(rng.integers(50, 63))
    by_loop = columns(made.copy(), mode)
    with plain():
        by_numpy = columns(made.copy(), mode)
    assert by_loop.keys() == by_numpy.keys()
    for name, column in by_numpy.items():
        assert by_loop[name].dtype == column.dtype, name
        assert by_loop[name].tolist() == column.tolist(), name


@pytest.mark.parametrize("count", [300, 5000])
@pytest.mark.parametrize("kind", ["ept_violation", "unmap"])
def test_what_stays_the_same_is_shared_and_compressed_to_the_same_bytes(count: int, kind: str) -> None:
    assert quicken(build_first=True)
    made = records(*[{"kind": kind, "vcpu": -1, "tid": 7, "arg": 6, "valid": ("gfn", "arg")}] * count)
    made["ts_ns"], made["gfn"] = np.arange(count) * 1000, np.arange(count) // 2
    out = columns(made, "shadow")
    assert [name for name in out if out[name].flags.writeable] == ["ts_ns", "gfn"]
    assert is_shared(out["hva"].ctypes.data) == (count > 2048)
    with plain():
        expected = compress([to_batch(columns(made, "shadow"))])
    assert compress([to_batch(out)]) == expected
    before = out["pages"]
    writable(out, "pages")[3] = 2
    assert (before.sum(), out["pages"].sum()) == (count, count + 1)
    assert columns(made, "shadow")["pages"].tolist() == [1] * count


def test_shared_memory_is_bounded_and_known_only_while_it_is_kept() -> None:
    first = repeated(1 << 40, np.dtype(np.uint64), 5000)
    others = [repeated(value, np.dtype(np.uint16), 5000) for value in range(1000, 1100)]
    assert not is_shared(first.ctypes.data)
    assert first.tolist() == [1 << 40] * 5000
    assert sum(is_shared(other.ctypes.data) for other in others) < 30


def test_an_empty_reading_is_an_empty_batch() -> None:
    assert to_batch(columns(records(), "npt")).num_rows == 0
