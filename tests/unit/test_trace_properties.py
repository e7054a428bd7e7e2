"""Any rows survive writing, reading and compacting; any damage is refused, never misread."""

import random
import shutil
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracekit.errors import TracekitError
from tracekit.trace import Meta, TraceWriter, compact, events_batch, open_trace, recover
from tracekit.trace.framing import FrameReader
from tracekit.trace.schema import EVENTS, KINDS

U16, U32, U64 = 2**16 - 1, 2**32 - 1, 2**64 - 1
ROW = st.fixed_dictionaries(
    {
        "ts_ns": st.integers(0, 2**40) | st.integers(0, 200) | st.integers(U64 - 100, U64),
        "kind": st.sampled_from(KINDS),
        "vm": st.integers(0, U16),
        "tid": st.integers(0, U32),
        "vcpu": st.none() | st.integers(-(2**15), 2**15 - 1),
        "gfn": st.none() | st.integers(0, 2**52),
        "hva": st.none() | st.integers(0, U64),
        "gva": st.none() | st.integers(0, U64),
        "pages": st.integers(0, U32),
        "level": st.none() | st.integers(0, 255),
        "access": st.integers(0, 7),
        "flags": st.integers(0, U32),
        "latency_ns": st.none() | st.integers(0, U64),
        "rip": st.none() | st.integers(0, U64),
        "arg": st.none() | st.integers(0, U64),
    }
)
BATCHES = st.lists(st.lists(ROW, max_size=12), max_size=4)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Durability is not what these tests look at."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    monkeypatch.setattr("os.fdatasync", lambda fd: None)


def as_batch(rows):
    columns = {name: [row[name] for row in rows] for name in EVENTS.names}
    valid = {
        name: np.array([v is not None for v in values], bool)
        for name, values in columns.items()
        if EVENTS.field(name).nullable
    }
    filled = {name: [0 if v is None else v for v in values] for name, values in columns.items()}
    return events_batch(valid=valid, **filled)


def write(path, batches, *, flush_after=()):
    with TraceWriter(path, Meta(source="synthetic"), force=path.exists()) as writer:
        for at, rows in enumerate(batches):
            writer.append(as_batch(rows))
            if at in flush_after:
                writer.flush(everything=True)
    return open_trace(path)


def key(row):
    return [(row[name] is not None, row[name]) for name in EVENTS.names]


@QUICK
@given(batches=BATCHES, flush_after=st.sets(st.integers(0, 3)), batch_rows=st.integers(1, 40))
def test_any_rows_in_any_order_come_back_once_and_sorted(tmp_path, batches, flush_after, batch_rows):
    trace = write(tmp_path / "x.trace", batches, flush_after=flush_after)
    rows = [row for batch in trace.batches(batch_rows=batch_rows) for row in batch.to_pylist()]
    assert [row["ts_ns"] for row in rows] == sorted(row["ts_ns"] for row in rows)
    assert sorted(rows, key=key) == sorted((row for part in batches for row in part), key=key)
    assert trace.events.collect().to_dicts() == rows
    if not flush_after:
        # Without late rows the order of arrival decides between rows of equal time.
        assert rows == sorted((row for part in batches for row in part), key=lambda row: row["ts_ns"])


@QUICK
@given(batches=BATCHES, flush_after=st.sets(st.integers(0, 3)))
def test_compacting_changes_nothing_but_the_bytes(tmp_path, batches, flush_after):
    trace = write(tmp_path / "x.trace", batches, flush_after=flush_after)
    compact(trace.path, tmp_path / "y.trace", force=(tmp_path / "y.trace").exists())
    small = open_trace(tmp_path / "y.trace")
    assert pa.Table.from_batches(small.batches(), EVENTS).equals(
        pa.Table.from_batches(trace.batches(), EVENTS)
    )
    assert small.events.collect().equals(trace.events.collect())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small finished trace with every kind of file in it, an unfinished copy, and its rows."""
    path = tmp_path_factory.mktemp("fuzz") / "x.trace"
    writer = TraceWriter(path, Meta(source="recorded", notes=["n"], command=["qemu"]))
    for at in range(4):
        writer.append(events_batch(ts_ns=np.arange(9) + at * 100, kind="map", gfn=np.arange(9), vcpu=at))
        writer.add_sample(at, 0, "rss_bytes", at)
        writer.add_memslot(vm=0, slot=at, gpa=at << 12, size_bytes=4096, hva=at, from_ns=0, known_by="ioctl")
        writer.flush(everything=True)
    writer.add_loss(0, 1, 2, 3, "ring full")
    writer.flush()
    shutil.copytree(path, path.with_name("unfinished.trace"))
    writer.close()
    compact(path, path.with_name("small.trace"))
    return path.parent


@contextmanager
def refusals():
    """Whatever is refused is refused with a usage (2) or damage (4) error."""
    try:
        yield
    except TracekitError as error:
        if error.exit_code not in (2, 4):
            raise


def contents(trace):
    return pa.Table.from_batches(trace.batches(), EVENTS).to_pylist()


def mutate(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(content) + 1)
        length = rng.choice([1, 2, 4, 8, 64, 500])
        how = rng.randrange(6)
        if how == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            del content[at : at + length]
        elif how == 2:
            content[at:at] = rng.randbytes(length)
        elif how == 3:
            content[at : at + length] = bytes(length)
        elif how == 4:
            content[at : at + length] = rng.choice([b"\xff", b"\x7f", b"\x00"]) * length
        else:
            source = rng.randrange(len(content) + 1)
            content[at : at + length] = content[source : source + length]
    return bytes(content)


@settings(QUICK, max_examples=250)
@given(seed=st.integers(0, 2**32))
def test_damage_anywhere_is_refused_or_harmless_and_recover_never_invents(whole, tmp_path, seed):
    rng = random.Random(seed)
    copy = tmp_path / "fuzzed.trace"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole / rng.choice(["x.trace", "unfinished.trace", "small.trace"]), copy)
    truth = contents(open_trace(whole / "x.trace"))
    files = sorted(item for item in copy.rglob("*") if item.is_file() and item.name != "meta.json")
    for file in rng.sample(files, rng.choice([1, 1, 2])):
        file.write_bytes(mutate(file.read_bytes(), rng))
    with refusals():
        assert contents(open_trace(copy)) == truth
    with refusals():
        assert open_trace(copy).events.collect().to_dicts() == truth
    with refusals():
        _ = open_trace(copy).lost
    report = recover(copy)
    rows = contents(open_trace(copy))
    assert report.rows == len(rows)
    assert rows == [row for row in truth if row in rows]
    missing = len(truth) - len(rows)
    assert report.lost is None or report.lost >= missing
    assert recover(copy).changed is False


@settings(QUICK, max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_a_ruined_meta_is_refused_or_read_never_a_traceback(whole, tmp_path, seed):
    rng = random.Random(seed)
    copy = tmp_path / "fuzzed.trace"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole / "x.trace", copy)
    (copy / "meta.json").write_bytes(mutate((copy / "meta.json").read_bytes(), rng))
    for use in (open_trace, recover, open_trace):
        with refusals():
            use(copy)


@settings(QUICK, max_examples=1000)
@given(seed=st.integers(0, 2**32))
def test_no_mutation_of_a_part_yields_a_row_that_was_not_written(whole, seed):
    rng = random.Random(seed)
    content = (whole / "x.trace" / "events" / "00000.arrow").read_bytes()
    truth = [frame.batch for frame in FrameReader(pa.py_buffer(content))]
    reader = FrameReader(pa.py_buffer(mutate(content, rng)))
    found = [frame.batch for frame in reader]
    assert found == truth[: len(found)]
    assert len(found) == len(truth) or reader.trouble or not reader.closed
