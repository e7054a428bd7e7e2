import numpy as np
import pyarrow as pa
import pytest

from tracekit.errors import UsageError
from tracekit.trace import events_batch
from tracekit.trace.batch import check_batch
from tracekit.trace.schema import EVENTS, KINDS


def test_every_column_arrives_as_given():
    n = 3
    big = np.array([0, 2**52, 2**64 - 1], np.uint64)
    batch = events_batch(
        ts_ns=big,
        kind=["map", "mark", "ept_violation"],
        vm=1,
        tid=[1, 2, 3],
        vcpu=np.array([-1, 0, 5]),
        gfn=big,
        hva=big,
        gva=None,
        pages=512,
        level=2,
        access=3,
        flags=1,
        latency_ns=[1, 2, 3],
        rip=big,
        arg=big,
        valid={"gfn": [True, False, True]},
    )
    assert batch.schema.equals(EVENTS)
    assert batch.column("ts_ns").to_pylist() == big.tolist()
    assert batch.column("kind").to_pylist() == ["map", "mark", "ept_violation"]
    assert batch.column("gfn").to_pylist() == [0, None, 2**64 - 1]
    assert batch.column("vcpu").to_pylist() == [-1, 0, 5]
    assert batch.column("gva").null_count == n
    assert batch.column("pages").to_pylist() == [512] * n
    check_batch(batch)


def test_codes_and_names_are_the_same_kinds():
    by_name = events_batch(ts_ns=np.arange(len(KINDS)), kind=list(KINDS))
    by_code = events_batch(ts_ns=np.arange(len(KINDS)), kind=np.arange(len(KINDS)))
    assert by_name.equals(by_code)


def test_a_list_that_numpy_would_turn_into_floats_stays_exact():
    batch = events_batch(ts_ns=[1, 2**63 + 1], kind="map")
    assert batch.column("ts_ns").to_pylist() == [1, 2**63 + 1]


@pytest.mark.parametrize(
    "columns",
    [
        {"ts_ns": [1], "kind": "page_allok"},
        {"ts_ns": [1], "kind": [len(KINDS)]},
        {"ts_ns": [1], "kind": "map", "gfm": [1]},
        {"ts_ns": [1, 2], "kind": "map", "gfn": [1]},
        {"ts_ns": [1], "kind": "map", "vm": [1 << 16]},
        {"ts_ns": [-1], "kind": "map"},
        {"ts_ns": [1], "kind": "map", "gfn": [1.5]},
        {"ts_ns": [1]},
        {"kind": "map"},
        {"ts_ns": 5, "kind": "map"},
        {"ts_ns": [1], "kind": "map", "valid": {"pages": [False]}},
        {"ts_ns": [1], "kind": "map", "gfn": [1], "valid": {"gfn": [True, True]}},
    ],
)
def test_what_does_not_fit_is_refused(columns):
    with pytest.raises(UsageError):
        events_batch(**columns)


def test_a_batch_of_another_shape_is_refused():
    good = events_batch(ts_ns=[1], kind="map")
    with pytest.raises(UsageError):
        check_batch(good.drop_columns(["gfn"]))
    strange = pa.DictionaryArray.from_arrays(pa.array([0], pa.uint8()), pa.array(["other"]))
    with pytest.raises(UsageError):
        check_batch(good.set_column(1, EVENTS.field("kind"), strange))
    missing = pa.array([None], pa.uint64())
    with pytest.raises(UsageError):
        check_batch(good.set_column(0, EVENTS.field("ts_ns"), missing))
