"""Tables and damo's records: columns by SQL, numbers as damo writes them, bad rows with their lines."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.datasets.exporters import export_trace
from tracekit.datasets.importers import ImportOptions, import_trace, parse_options, tables
from tracekit.datasets.importers.blocks import line_blocks
from tracekit.datasets.importers.damo import duration_ns
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.errors import DamagedError, UsageError
from tracekit.trace import open_trace

FILES = Path(__file__).parent / "import_files"


def test_a_csv_gets_its_columns_by_sql(tmp_path: Path) -> None:
    table = tmp_path / "faults.csv"
    table.write_text("us,gpa,stall_us,cpu\n30,8192,1.5,1\n10,4097,2,0\n20,,3,0\n")
    columns = [
        "ts_ns=us*1000",
        "kind='ept_violation'",
        "gfn=floor(gpa/4096)",
        "latency_ns=stall_us*1000",
        "vcpu=cpu",
    ]
    report = import_trace(table, tmp_path / "x.trace", options=parse_options(columns=columns))
    assert report.format == "csv"
    events = open_trace(tmp_path / "x.trace").events.collect()
    assert events.select("ts_ns", "gfn", "latency_ns", "vcpu").rows() == [
        (10_000, 1, 2_000, 0),
        (20_000, None, 3_000, 0),
        (30_000, 2, 1_500, 1),
    ]
    assert set(events["kind"]) == {"ept_violation"}


def test_rows_that_do_not_fit_are_bad_lines_with_their_numbers(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("ts_ns,kind,gfn\n1,map,5\n2,mapp,6\nx,map,7\n4,unmap,-1\n5,age,9\n")
    report = import_trace(table, tmp_path / "x.trace")
    assert report.bad_lines == 3
    assert sorted(bad["line"] for bad in report.bad_examples) == [3, 4, 5]
    assert open_trace(tmp_path / "x.trace").events.collect()["gfn"].to_list() == [5, 9]
    with pytest.raises(DamagedError, match="line"):
        import_trace(table, tmp_path / "y.trace", options=ImportOptions(strict=True))


@pytest.mark.parametrize("row", [1, 15_000])
def test_a_cell_that_is_no_number_costs_its_row_and_not_the_import(tmp_path: Path, row: int) -> None:
    rows = [f"{i},{i * 4096}" for i in range(20_000)]
    rows[row] = f"{row},zz"
    table = tmp_path / "x.csv"
    table.write_text("us,gpa\n" + "\n".join(rows) + "\n")
    columns = ["ts_ns=us*1000", "kind='ept_violation'", "gfn=gpa/4096"]
    report = import_trace(table, tmp_path / "x.trace", options=parse_options(columns=columns))
    assert (report.lines, report.bad_lines) == (20_000, 1)
    assert report.bad_examples[0]["line"] == row + 2
    assert "gpa=zz" in report.bad_examples[0]["text"]
    gfns = open_trace(tmp_path / "x.trace").events.collect()["gfn"].to_list()
    assert gfns == [i for i in range(20_000) if i != row]
    strict = parse_options(columns=columns, strict=True)
    with pytest.raises(DamagedError, match=f"line {row + 2}:"):
        import_trace(table, tmp_path / "y.trace", options=strict)


def test_a_table_on_stdin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tracekit", "import", "-", "--format", "csv", "-o", "x.trace"]
    text = "ts_ns,kind,gfn\n1,map,5\n"
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert open_trace(tmp_path / "x.trace").events.collect()["gfn"].to_list() == [5]


def test_an_exported_trace_comes_back_the_same(tmp_path: Path) -> None:
    make_trace(GENERATORS["fork-bomb"](events=2_003, seed=5), tmp_path / "a.trace")
    before = open_trace(tmp_path / "a.trace").events.collect()
    for name in ("a.parquet", "a.csv"):
        export_trace(tmp_path / "a.trace", tmp_path / name)
        import_trace(tmp_path / name, tmp_path / "b.trace", force=True)
        assert open_trace(tmp_path / "b.trace").events.collect().equals(before)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["colour=3"], "no such event column: colour"),
        (["ts_ns=nothing*2", "kind='map'"], "cannot read"),
        (["ts_ns=(", "kind='map'"], "cannot read"),
        ([], "no column kind"),
        (["ts_ns"], "says no column"),
    ],
)
def test_bad_column_maps_are_usage_errors(tmp_path: Path, columns: list[str], words: str) -> None:
    table = tmp_path / "x.csv"
    table.write_text("ts_ns,gfn\n1,2\n")
    with pytest.raises(UsageError, match=words):
        import_trace(table, tmp_path / "x.trace", options=parse_options(columns=columns))
    assert not (tmp_path / "x.trace").exists()


def test_memslots_are_typed_with_units() -> None:
    slot = parse_options(memslots=["0x100000:2G:0x7f0000000000"]).memslots[0]
    assert (slot.gpa, slot.size_bytes, slot.hva) == (0x100000, 2 << 30, 0x7F0000000000)
    for text in ("1:2", "a:b:c", "0:2Q:0"):
        with pytest.raises(UsageError, match="is no memslot"):
            parse_options(memslots=[text])


@pytest.mark.parametrize(
    "name", ["damo.json", "damo-human.json", "damo.data", "damo-raw.txt", "damon-perf.txt"]
)
def test_all_forms_of_one_damon_recording_give_the_same_accesses(tmp_path: Path, name: str) -> None:
    """Made by damo 3.4.3 from damon_aggregated events of a real kernel, cut to 3 x 12 regions."""
    import_trace(FILES / name, tmp_path / "x.trace", options=ImportOptions(strict=True))
    events = open_trace(tmp_path / "x.trace").events.collect()
    assert set(events["kind"]) == {"access"}
    expected = []
    for line in (FILES / "damon-perf.txt").read_text().splitlines():
        fields = line.split()
        start, end = (int(x) for x in fields[-3].rstrip(":").split("-"))
        expected.append((start >> 12, (end - start + 4095) >> 12, int(fields[-2])))
    # One snapshot is one instant: sort inside it.
    assert sorted(events.select("gfn", "pages", "arg").rows()) == sorted(expected)
    if name != "damon-perf.txt":  # there each region has its own time
        assert events.group_by("ts_ns").len()["len"].to_list() == [12, 12, 12]
        ends = sorted(events["ts_ns"].unique())
        # The raw report rounds to a millisecond.
        slack = 10**6 if name == "damo-raw.txt" else 0
        assert ends[0] == pytest.approx(3_978_891_560_000, abs=2 * slack + 2_000_000)


def test_damo_files_that_are_something_else_are_said_to_be(tmp_path: Path) -> None:
    for content in (b"[1]", b'{"a": 1}', b"\x78\x9cxx", b'[{"target_id": 0, "snapshots": [{"regions": 1}]}]'):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(DamagedError, match="not a record of damo"):
            import_trace(tmp_path / "x.json", tmp_path / "x.trace", format="damo")
        assert not (tmp_path / "x.trace").exists()


def test_odd_lines_of_a_raw_report_are_counted(tmp_path: Path) -> None:
    text = (FILES / "damo-raw.txt").read_text().replace("monitoring_end:", "oops\nmonitoring_end:", 1)
    (tmp_path / "x.txt").write_text(text)
    report = import_trace(tmp_path / "x.txt", tmp_path / "x.trace", format="damo-raw")
    assert report.bad_lines == 1
    assert text.splitlines()[report.bad_examples[0]["line"] - 1] == "oops"
    assert report.rows.total() == 36


def test_durations_of_damo() -> None:
    assert duration_ns("8 m 59.809 s") == 539_809_000_000
    assert duration_ns("2 h") == 7_200_000_000_000
    for bad in ("soon", "5 parsecs", ""):
        with pytest.raises((ValueError, KeyError)):
            duration_ns(bad)


def test_the_command_tells_what_it_read(tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tracekit", "import", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)

    done = run(str(FILES / "odd.txt"), "--format", "perf", "--json")
    told = json.loads(done.stdout)
    assert told["path"] == "odd.trace"
    assert told["bad_lines"] == 2
    assert "line 5: not an event" in done.stderr
    assert "next: tracekit info odd.trace" in done.stderr
    assert run(str(FILES / "odd.txt"), "--format", "perf").returncode == 2  # exists
    strict = run(str(FILES / "odd.txt"), "--format", "perf", "--strict", "-o", "y.trace")
    assert strict.returncode == 4
    assert strict.stdout == ""
    info = pl.DataFrame(open_trace(tmp_path / "odd.trace").meta.extra["import"]["bad_examples"])
    assert info["line"].to_list() == [5, 6]


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("3,map,5,9", "4 fields instead of 3"),
        ("3,map", "2 fields instead of 3"),
        ('3,"map,5', "a misplaced quote"),
        ('3,m"a"p,5', "a misplaced quote"),
    ],
)
def test_a_line_with_a_wrong_number_of_fields_is_a_bad_line(
    tmp_path: Path, row: str, why: str, blank: bool
) -> None:
    table = tmp_path / "x.csv"
    lines = ["ts_ns,kind,gfn", "1,map,1", '2,"map",2', row, "", "4,map,4\r", "x,map,5", "6,map,6"]
    table.write_text("\n".join(line for line in lines if line or blank))
    report = import_trace(table, tmp_path / "x.trace")
    assert (report.lines, report.bad_lines) == (6, 2)
    assert report.bad_examples[0] == {"line": 4, "why": why, "text": row}
    assert report.bad_examples[1]["line"] == 6 + blank
    assert open_trace(tmp_path / "x.trace").events.collect()["gfn"].to_list() == [1, 2, 4, 6]
    with pytest.raises(DamagedError, match="line 4: " + why):
        import_trace(table, tmp_path / "y.trace", options=ImportOptions(strict=True))


def test_a_field_too_many_and_one_too_few_do_not_even_out(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("ts_ns,kind,gfn\n1,map,1,\n2,map\n3,map,3\n")
    report = import_trace(table, tmp_path / "x.trace")
    assert [bad["line"] for bad in report.bad_examples] == [2, 3]
    assert report.bad_lines == 2


def test_an_expression_over_many_rows_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("us,gfn\n" + "".join(f"{10 + i},{i}\n" for i in range(9)))
    for expression in ("us - min(us)", "sum(us) over ()", "row_number() over ()"):
        options = parse_options(columns=[f"ts_ns={expression}", "kind='map'"])
        with pytest.raises(UsageError, match="ts_ns depends on more than its own row"):
            import_trace(table, tmp_path / "x.trace", options=options)


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**64 - 1)), min_size=1, max_size=200),
    st.integers(1, 7),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_tables_in_any_order_come_out_in_time_order(
    rows: list[tuple[int, int]], piece: int, as_parquet: bool
) -> None:
    """Read in tiny pieces and runs: the same rows as the table has, in time order."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(tables, "_ROWS", piece)
        patch.setattr(tables, "_RUN_ROWS", 3 * piece)
        patch.setattr(
            "tracekit.datasets.importers.csv_lines.line_blocks", partial(line_blocks, block_bytes=40)
        )
        table = pl.DataFrame(rows, schema={"ts_ns": pl.UInt64, "arg": pl.UInt64}, orient="row")
        path = Path(folder) / ("x.parquet" if as_parquet else "x.csv")
        table.write_parquet(path) if as_parquet else table.write_csv(path)
        report = import_trace(path, Path(folder) / "x.trace", options=parse_options(columns=["kind='map'"]))
        assert (report.lines, report.bad_lines) == (len(rows), 0)
        got = open_trace(Path(folder) / "x.trace").events.select("ts_ns", "arg").collect().rows()
        assert [ts for ts, _ in got] == sorted(ts for ts, _ in rows)
        assert sorted(got) == sorted(rows)


def test_a_parquet_file_that_is_none_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DamagedError, match="is no Parquet file"):
        import_trace(tmp_path / "x.parquet", tmp_path / "x.trace")
