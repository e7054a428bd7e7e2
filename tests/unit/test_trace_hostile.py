"""Traces that a stranger made to harm the reader: checksums right, everything else not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.fuzz import seeds
from tests.fuzz.edits import resealed
from tests.fuzz.targets import TARGETS, refused
from tests.unit.replay_kit import Tiny
from tracekit.errors import DamagedError, TracekitError, UsageError
from tracekit.replay import run
from tracekit.trace import Meta, open_trace, recover
from tracekit.trace.framing import FrameReader
from tracekit.trace.room import require_memory
from tracekit.trace.schema import EVENTS, KINDS

FUZZ = Path(seeds.__file__).parent
INPUTS = sorted((FUZZ / "corpus").glob("*/*")) + sorted((FUZZ / "found").glob("*/*"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_input_kept_is_read_right_or_refused(path: Path) -> None:
    start = time.process_time()
    refused(TARGETS[path.parent.name], path.read_bytes())
    assert time.process_time() - start < 30  # compiling a kernel included


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "x.trace"
    (path / "events").mkdir(parents=True)
    for name, content in resealed(files).items():
        (path / name).write_bytes(content)
    return path


def read_all(path: Path) -> None:
    trace = open_trace(path)
    trace.losses, trace.memslots, trace.samples  # noqa: B018
    list(trace.batches())
    trace.events.collect()


def refuses(path: Path) -> TracekitError:
    with pytest.raises(TracekitError) as refusal:
        read_all(path)
    assert refusal.value.exit_code in (2, 4)
    return refusal.value


@pytest.mark.parametrize("what", ["fifo", "link", "device"])
def test_a_part_that_is_no_file_is_not_opened(tmp_path: Path, what: str) -> None:
    """A FIFO would hang whoever opens it, and /dev/zero has no end; both have the size 0 that is stated."""
    files = seeds.finished()
    line = json.loads(files["manifest.jsonl"])
    line |= {"bytes": 0, "rows": 0, "crc32": "00000000", "first_ts_ns": None, "last_ts_ns": None}
    meta = json.loads(files["meta.json"]) | {"rows": 0}
    files = {**files, "manifest.jsonl": json.dumps(line).encode(), "meta.json": json.dumps(meta).encode()}
    del files["events/00000.arrow"]
    path = laid_out(tmp_path, files)
    part = path / "events" / "00000.arrow"
    if what == "fifo":
        os.mkfifo(part)
    else:
        part.symlink_to("/dev/zero" if what == "device" else tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_bytes(b"")
    assert "cannot be read" in refuses(path).message


META: list[tuple[str, Any]] = [
    ("vms", [7]),
    ("vms", [{"argv": [None]}]),
    ("vms", [{"pid": True}]),
    ("marks", [{}]),
    ("marks", [{"name": 1, "ts_ns": 1}]),
    ("command", [1]),
    ("notes", [None]),
    ("probes", {"active": "all"}),
    ("probes", {"refused": []}),
    ("host", {"cpus": "2"}),
    ("clock", {"realtime_offset_ns": 10**40}),
    ("clock", {"uncertainty_ns": "1"}),
    ("clock", {"uncertainty_ns": -1}),
    ("start_ns", -1),
    ("stop_ns", 1 << 64),
    ("tables", {"losses.arrow": 3}),
    ("parts", -1),
    ("rows", 1 << 70),
    ("late_rows", None),
    ("notes", ["\ud800"]),
    ("colour", "\udfff"),
]


@pytest.mark.parametrize(("key", "value"), META)
def test_meta_of_another_shape_is_damage(key: str, value: Any) -> None:
    meta = json.loads(Meta().to_json()) | {key: value}
    with pytest.raises(DamagedError, match=r"meta\.json"):
        Meta.from_json(json.dumps(meta))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"schema_version": 1, "x": ' + "[" * 900]
)
def test_json_that_is_too_deep_or_too_long_is_damage(text: str) -> None:
    with pytest.raises(DamagedError):
        Meta.from_json(text)


def test_numbers_that_json_cannot_hold_become_null() -> None:
    assert Meta.from_json('{"schema_version": 1, "a": [NaN, Infinity, 1e999, 1]}').extra == {
        "a": [None, None, None, 1]
    }


LINES: list[dict[str, Any]] = [
    {"part": "../../../etc/passwd"},
    {"part": "99999999999999.arrow"},
    {"part": None},
    {"part": 3},
    {"rows": -5},
    {"rows": "5"},
    {"rows": 1.5},
    {"first_ts_ns": "x"},
    {"last_ts_ns": -1},
    {"crc32": "zz"},
    {"crc32": 5},
    {"bytes": True},
    {"batches": 1 << 70},
    {"first_ts_ns": 10**18, "last_ts_ns": 3},
]


@pytest.mark.parametrize("changes", LINES)
def test_a_manifest_line_with_a_right_checksum_and_wrong_values(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    files = seeds.finished()
    line = json.loads(files["manifest.jsonl"]) | changes
    content = json.dumps(line).encode()
    path = laid_out(tmp_path, {**files, "manifest.jsonl": content})
    if "crc32" in changes or "bytes" in changes:
        # These two are made right by resealing: put them back and seal the line alone.
        from tests.fuzz.edits import _sealed_line

        (path / "manifest.jsonl").write_bytes(_sealed_line(content, {}))
    assert refuses(path).exit_code == 4
    report = recover(path)
    assert report.rows == open_trace(path).rows == 84


def test_recover_makes_no_thousands_of_parts_because_a_number_is_large(tmp_path: Path) -> None:
    files = seeds.finished()
    files = {**files, "events/09999999.arrow": files["events/00000.arrow"]}
    path = laid_out(tmp_path, files)
    with pytest.raises(DamagedError, match="gap"):
        recover(path)
    assert len(list((path / "events").iterdir())) == 2


ROWS: list[list[Any]] = [
    ["sample", {}],
    ["sample", 3],
    ["nothing", {}],
    [],
    ["loss", {"cpu": 0}],
    [["sample"], {}],
    ["sample", {"ts_ns": -1, "vm": 0, "metric": "m", "value": 1.0}],
    ["sample", {"ts_ns": 1, "vm": 70000, "metric": "m", "value": 1}],
    ["mark", {"name": "\ud800", "ts_ns": 1}],
    ["end", {"reason": None}],
    ["sample", {"ts_ns": True, "vm": 0, "metric": "m", "value": 1}],
    [
        "memslot",
        {
            "vm": 0,
            "slot": 0,
            "gpa": (1 << 64) - 1,
            "size_bytes": 1 << 40,
            "hva": 0,
            "flags": 0,
            "from_ns": 0,
            "to_ns": None,
            "known_by": "ioctl",
        },
    ],
]


@pytest.mark.parametrize("row", ROWS)
def test_a_journal_row_with_a_right_checksum_and_wrong_values(tmp_path: Path, row: list[Any]) -> None:
    files = seeds.killed()
    journal = files["journal.ndjson"] + b"00000000 " + json.dumps(row).encode() + b"\n"
    path = laid_out(tmp_path, {**files, "journal.ndjson": journal})
    report = recover(path)
    assert report.rows == 84
    assert not report.whole
    assert "damaged journal" in " ".join(loss["reason"] for loss in report.missing)
    assert open_trace(path).lost is None


def frames_of(batch: pa.RecordBatch, *, schema: pa.Schema = EVENTS) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        metadata = {"seq": "0", "rows": str(batch.num_rows), "lost_so_far": "0", "crc32": "crc32:00000000"}
        writer.write_batch(batch, custom_metadata=metadata)
    from tests.fuzz.edits import sealed_part

    return sealed_part(sink.getvalue().to_pybytes())


def event_rows(n: int, **columns: Any) -> pa.RecordBatch:
    kinds = pa.DictionaryArray.from_arrays(
        columns.pop("kind", np.zeros(n, np.uint8)), pa.array(KINDS), safe=False
    )
    arrays = [
        kinds if f.name == "kind" else columns.get(f.name, pa.array(np.zeros(n), f.type)) for f in EVENTS
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENTS)


def trouble(content: bytes) -> str:
    reader = FrameReader(pa.py_buffer(content))
    assert not list(reader)
    return reader.trouble


def test_a_batch_larger_than_any_of_ours_is_not_decoded() -> None:
    """A million rows of zeros are some kilobytes on the disk: a bomb."""
    content = frames_of(event_rows(1 << 20))
    assert len(content) < 20_000
    assert "claims 1048576 rows" in trouble(content)


def test_a_buffer_that_claims_gigabytes_is_not_decoded() -> None:
    content = bytearray(frames_of(event_rows(64)))
    # The decoded size stands in front of each compressed buffer: make that of the largest one huge.
    at = bytes(content).index((512).to_bytes(8, "little") + b"\x28\xb5\x2f\xfd")
    content[at : at + 8] = (1 << 40).to_bytes(8, "little")
    from tests.fuzz.edits import sealed_part

    assert f"claims {1 << 40} bytes" in trouble(sealed_part(bytes(content)))


def test_a_kind_that_does_not_exist_is_found_before_anybody_looks_it_up() -> None:
    content = frames_of(event_rows(4, kind=np.array([0, 1, 255, 2], np.uint8)))
    assert "cannot be decoded" in trouble(content)


def test_a_footer_that_names_other_batches_is_refused(tmp_path: Path) -> None:
    """Checksummed frames stay as they are; only Arrow's own index of them lies, which polars goes by."""
    files = seeds.finished()
    content = files["events/00000.arrow"]
    footer = content[-10 - int.from_bytes(content[-10:-6], "little") :]
    (offset,) = [
        o for o in range(8, len(content)) if footer.count(o.to_bytes(8, "little")) == 1 and o == 1720
    ]
    other = footer.replace(offset.to_bytes(8, "little"), (3792).to_bytes(8, "little"))
    path = laid_out(tmp_path, {**files, "events/00000.arrow": content[: -len(footer)] + other})
    with pytest.raises(DamagedError, match="footer"):
        open_trace(path).events.collect()
    with pytest.raises(DamagedError):
        list(open_trace(path).batches())


def slots(n: int, **columns: Any) -> list[dict[str, Any]]:
    row = {
        "vm": 0,
        "slot": 0,
        "gpa": 0,
        "size_bytes": 4096,
        "hva": 0,
        "flags": 0,
        "from_ns": 0,
        "to_ns": None,
        "known_by": "x",
    }
    return [{**row, **columns}] * n


def test_a_footer_that_only_polars_refuses_is_damage(tmp_path: Path) -> None:
    """Zeroes in the footer's last tables: Arrow reads past some of them, polars past others."""
    files, name = seeds.finished(), "events/00000.arrow"
    content, by_polars = files[name], 0
    for at in range(len(content) - 100, len(content) - 60):
        changed = content[:at] + bytes(4) + content[at + 4 :]
        path = laid_out(tmp_path / str(at), {**files, name: changed})
        try:
            open_trace(path).events.collect()
        except DamagedError as error:
            by_polars += "polars" in error.message
    assert by_polars


def test_a_memslot_beyond_all_addresses_is_damage(tmp_path: Path) -> None:
    files = seeds.finished()
    from tracekit.trace.schema import MEMSLOTS

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, MEMSLOTS) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(slots(1, gpa=(1 << 64) - 1), schema=MEMSLOTS))
    path = laid_out(tmp_path, {**files, "memslots.arrow": sink.getvalue().to_pybytes()})
    assert "memslot" in refuses(path).message


HUGE = (1 << 32) - 1


@pytest.mark.parametrize(
    "kind", ["ept_violation", "unmap", "madvise", "access", "page_free", "balloon_inflate"]
)
@pytest.mark.parametrize("memory", [4096, None])
def test_absurd_page_counts_do_not_keep_replay_busy(kind: str, memory: int | None) -> None:
    """16 TiB in one event, 20 times: without memslots so much memory is refused, with them it is cut off."""
    rows = [{"us": n, "kind": kind, "gfn": n, "pages": HUGE, "arg": 4, "vcpu": 0} for n in range(20)]
    trace: Any = Tiny(rows, memory_pages=memory)
    start = time.process_time()
    if memory is None and kind == "ept_violation":
        with pytest.raises(UsageError, match="of memory"):
            run(trace, ["zeroing"])
    else:
        run(trace, ["zeroing"])
    assert time.process_time() - start < 60


def test_pages_scattered_over_all_addresses_are_refused_before_memory_runs_out() -> None:
    rng = np.random.default_rng(5)
    gfns = rng.integers(0, 1 << 40, 4000)
    rows = [
        {"us": n, "kind": "ept_violation", "gfn": int(g), "vcpu": 0, "level": 1} for n, g in enumerate(gfns)
    ]
    trace: Any = Tiny(rows, memory_pages=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracekit.trace.room._available_bytes", lambda: 256 << 20)
        with pytest.raises(UsageError, match="of memory"):
            run(trace, ["zeroing"])


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("us", "latency"), [(1 << 52, 4_000), (100, 1 << 62), (100, (1 << 63) + 5)])
def test_times_that_do_not_fit_into_64_bits_are_refused(us: int, latency: int) -> None:
    """After 142 years; a stall of 146 years, beside one that is no number of a signed column."""
    row = {"kind": "ept_violation", "vcpu": 0, "level": 1, "access": 2, "latency_ns": 1 << 61}
    rows = [row | {"us": 1, "gfn": 1, "latency_ns": latency}, row | {"us": us, "gfn": 2}]
    trace: Any = Tiny([*rows, row | {"us": us + 1, "gfn": 3}])
    with pytest.raises(DamagedError, match="73 years"):
        run(trace, ["zeroing"])


def test_memory_is_asked_for_only_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracekit.trace.room._available_bytes", lambda: 1 << 30)
    require_memory(700 << 20, "this")
    with pytest.raises(UsageError, match=r"this needs 1\.0 GiB"):
        require_memory(1 << 30, "this")


def test_what_a_file_says_cannot_drive_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracekit.cli.app import _tell

    _tell(DamagedError("a\x1b[2Jb", hint="c\x07"))
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\x07" not in said


def test_an_undisturbed_trace_still_reads(tmp_path: Path) -> None:
    """The seeds themselves are good, or the tests above would prove nothing."""
    for number, make in enumerate((seeds.finished, seeds.smaller)):
        trace = open_trace(laid_out(tmp_path / str(number), make()))
        assert isinstance(trace.events.collect(), pl.DataFrame)
        assert sum(batch.num_rows for batch in trace.batches()) == trace.rows == 84


def test_a_hostile_name_of_a_file_stays_a_name(tmp_path: Path) -> None:
    path = laid_out(tmp_path, {**seeds.finished(), "meta.json": b"{}"})
    with pytest.raises(DamagedError, match="schema_version"):
        open_trace(path)
