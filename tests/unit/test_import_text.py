"""Trace text of perf, trace-cmd and ftrace: real outputs and hand-written layouts, decoded by hand."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.datasets.importers import ImportOptions, ImportReport, Memslot, import_trace
from tracekit.datasets.importers import blocks as blocks_module
from tracekit.datasets.importers.scan import scan
from tracekit.errors import CapabilityError, DamagedError, UsageError
from tracekit.trace import open_trace
from tracekit.trace.loops import plain, quicken
from tracekit.trace.schema import FLAG_GUEST_WALK, FLAG_MAJOR, FLAG_PRESENT, FLAG_ZEROED

FILES = Path(__file__).parent / "import_files"
GUEST_PAGES = set(range(512, 512 + 101)) | {3}


def load(
    name: str | Path, tmp_path: Path, kind: str = "", **options: Any
) -> tuple[pl.DataFrame, ImportReport, pl.DataFrame]:
    out = tmp_path / "out.trace"
    report = import_trace(FILES / name, out, format=kind, options=ImportOptions(**options), force=True)
    trace = open_trace(out)
    assert trace.meta.source == "imported"
    assert sum(report.rows.values()) == trace.rows
    return trace.events.collect(), report, trace.losses


@pytest.fixture(params=["numpy", "machine code"])
def decoded_by(request: pytest.FixtureRequest) -> Iterator[str]:
    """Decode by either: machine code shares columns that stay the same, and they are not to be written to."""
    assert quicken(build_first=True)
    with plain() if request.param == "numpy" else nullcontext():
        yield request.param


def guest_faults(events: pl.DataFrame) -> pl.DataFrame:
    return events.filter(pl.col("kind") == "ept_violation")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("perf-shadow.txt", "perf"),
        ("perf-pid-ns.txt", "perf"),
        ("trace-cmd-shadow.txt", "trace-cmd"),
        ("ftrace-shadow.txt", "ftrace"),
    ],
)
def test_a_real_guest_of_101_pages_has_102_faults(tmp_path: Path, name: str, kind: str) -> None:
    """Recorded with these tools from `tracekit lab guest --pages 101 --order random --zero-first`."""
    events, report, losses = load(name, tmp_path)
    assert report.format == kind
    assert report.mmu_mode == "shadow"
    faults = guest_faults(events)
    assert faults.height == 102
    assert set(faults["gfn"]) == GUEST_PAGES
    assert faults["latency_ns"].null_count() == 0
    assert faults["latency_ns"].min() > 0
    assert set(faults["vcpu"]) == {0}
    assert (faults["gva"] // 4096 == faults["gfn"]).all()
    assert faults.filter(pl.col("gfn") >= 512)["access"].unique().to_list() == [2]
    assert report.bad_lines == 0
    assert losses.height == 0


def test_the_faults_are_those_that_a_plain_reading_of_the_lines_gives(tmp_path: Path) -> None:
    events, _, _ = load("perf-pid-ns.txt", tmp_path)
    expected = []
    walk = requested = None
    for line in (FILES / "perf-pid-ns.txt").read_text().splitlines():
        match = re.match(r"\s*(.+?)\s+\d+/(\d+)\s+\[\d+\]\s+(\d+)\.(\d{9}):\s+(\S+): (.*)", line)
        assert match
        ts, name, text = int(match[3]) * 10**9 + int(match[4]), match[5], match[6].split()
        if name.endswith("pagetable_walk"):
            walk = (ts, int(text[1], 16), int(text[3], 16))
        elif name.endswith("spte_requested"):
            requested = int(text[1], 16)
        elif name.endswith("set_spte"):
            assert walk
            assert int(text[1], 16) == requested
            access = 4 if walk[2] & 16 else 2 if walk[2] & 2 else 1
            expected.append((ts, int(match[2]), requested, walk[1], ts - walk[0], access))
    got = guest_faults(events).select("ts_ns", "tid", "gfn", "gva", "latency_ns", "access")
    assert list(got.iter_rows()) == expected
    calls = events.filter(pl.col("kind") == "madvise")
    assert calls["pages"].to_list() == [512, 512, 2043, 2043]
    assert calls["arg"].to_list() == [15, 15, 4, 4]
    assert calls["latency_ns"].min() > 0


def test_processes_become_vms_where_the_file_names_them(tmp_path: Path) -> None:
    load("perf-pid-ns.txt", tmp_path)
    vms = open_trace(tmp_path / "out.trace").meta.vms
    assert [vm["pid"] for vm in vms] == [18819]
    assert vms[0]["vcpus"] == 1


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_real_guest_under_nested_paging(tmp_path: Path, kernel: str) -> None:
    """Read from tracefs of `tracekit lab host --kernel …` (SVM with NPT) while the same guest ran on it."""
    events, report, _ = load(f"ftrace-npt-{kernel}.txt.gz", tmp_path, "ftrace", strict=True)
    assert report.mmu_mode == "npt"
    faults = guest_faults(events)
    # Besides the 101 pages and the code: three pages of the guest's page tables, which the walk touches.
    walks = faults.filter(pl.col("flags") & FLAG_GUEST_WALK != 0)
    assert set(faults["gfn"]) - set(walks["gfn"]) == GUEST_PAGES
    assert faults.height == 101 + 1 + walks.height
    assert walks.height == 3
    assert set(faults["level"]) == {1}
    assert faults["latency_ns"].null_count() == faults["vcpu"].null_count() == faults["rip"].null_count() == 0
    touched = faults.filter(pl.col("gfn") >= 512)
    assert set(touched["access"]) == {2}
    assert set(touched["flags"]) == {0}
    assert events.filter(pl.col("kind") == "map").height == 0


def test_ept_violations_of_a_new_kernel(tmp_path: Path) -> None:
    events, report, _ = load("ept-6.12.txt", tmp_path, strict=True)
    assert report.mmu_mode == "ept"
    assert open_trace(tmp_path / "out.trace").meta.host["mmu_mode"] == "ept"
    columns = ("ts_ns", "vcpu", "tid", "gfn", "pages", "level", "access", "flags", "latency_ns", "rip", "arg")
    assert list(events.select(columns).iter_rows()) == [
        (100_000_105_000, 0, 4711, 0xA3C5, 1, 1, 2, 0, 5_000, 0xFFFFFFFF81C00B2A, None),
        (100_000_310_000, 1, 4712, 0x140200, 512, 2, 1, FLAG_GUEST_WALK, 200_000, 0x401000, 0x140203),
        (100_000_402_000, 0, 4711, 0xA3C5, 1, None, 3, FLAG_PRESENT, 2_000, 0x403000, None),
    ]


def test_ept_violations_of_an_old_kernel_and_what_its_ring_overwrote(tmp_path: Path) -> None:
    events, report, losses = load("ept-5.10.txt", tmp_path, strict=True)
    assert report.mmu_mode == "ept"
    fault, age, unmap = events.iter_rows(named=True)
    assert (fault["gfn"], fault["level"], fault["access"], fault["latency_ns"]) == (7, 1, 4, 4_000)
    assert (fault["vcpu"], fault["rip"]) == (0, 0x7C00)
    assert (age["kind"], age["hva"], age["gfn"], age["pages"]) == ("age", 0x7F12A0007000, 7, 1)
    assert (unmap["kind"], unmap["hva"], unmap["pages"]) == ("unmap", 0x7F12A0007000, 2)
    assert losses.rows() == [(None, 0, 5_017_100_104_000 - 4_000, 7, "overwritten in the ring")]


def test_nested_page_faults_of_a_new_kernel(tmp_path: Path) -> None:
    events, report, _ = load("npt-6.1.txt", tmp_path, strict=True)
    assert report.mmu_mode == "npt"
    columns = ("ts_ns", "vcpu", "gfn", "level", "access", "flags", "latency_ns", "rip")
    assert list(events.select(columns).iter_rows()) == [
        (5_017_100_105_000, 0, 0xFC, 1, 4, 0, 5_000, 0xFC95A),
        (5_017_100_203_000, 0, 0xFD, None, 2, FLAG_GUEST_WALK, 3_000, 0xFC95C),
    ]


def test_nested_page_faults_of_an_old_kernel(tmp_path: Path) -> None:
    events, report, _ = load("npt-5.10.txt", tmp_path, strict=True)
    assert report.mmu_mode == "npt"
    columns = ("ts_ns", "vcpu", "gfn", "level", "access", "flags", "latency_ns")
    assert list(events.select(columns).iter_rows()) == [(5_017_100_104_000, 0, 0xFC, None, 4, 0, 4_000)]


def test_faults_without_exits_and_entries_have_no_latency_and_no_guessed_access(tmp_path: Path) -> None:
    lines = [line for line in (FILES / "ept-6.12.txt").read_text().splitlines() if "page_fault" in line]
    bare = tmp_path / "bare.txt"
    bare.write_text("\n".join(lines))
    events, report, _ = load(bare, tmp_path, "perf")
    assert events["gfn"].to_list() == [0xA3C5, 0x140203, 0xA3C5]
    assert events["ts_ns"].to_list() == [100_000_101_000, 100_000_111_000, 100_000_401_000]
    assert events["latency_ns"].null_count() == 3
    assert events["access"].to_list() == [0, 0, 0]
    assert any("--mmu" in line for line in report.text())
    told, _, _ = load(bare, tmp_path, "perf", mmu="ept")
    assert told["access"].to_list() == [2, 1, 3]


def test_lost_lines_become_losses_with_their_bounds(tmp_path: Path) -> None:
    _, report, losses = load("perf-lost.txt", tmp_path, "perf")
    assert losses.select("cpu", "lost").rows() == [(0, 912)]
    assert report.lost == 912
    _, _, losses = load("trace-pipe-lost.txt", tmp_path, "ftrace")
    assert losses.select("cpu", "lost").rows() == [(0, 2599)]
    text = (FILES / "trace-pipe-lost.txt").read_text().splitlines()
    at = next(i for i, line in enumerate(text) if "LOST" in line)
    around = [round(float(re.search(r"\s(\d+\.\d+):", text[i])[1]) * 1e9) for i in (at - 1, at + 1)]  # type: ignore[index]
    assert [losses["t0_ns"][0], losses["t1_ns"][0]] == around
    _, report, losses = load("trace-cmd-dropped.txt", tmp_path)
    assert losses.select("cpu", "lost").rows() == [(0, None)]
    assert report.unknown_losses == 1
    assert open_trace(tmp_path / "out.trace").lost is None


def test_no_latency_is_measured_across_a_loss(tmp_path: Path) -> None:
    file = tmp_path / "gap.txt"
    file.write_text(
        "  CPU 0/KVM-1  [000] 1.000000: kvm_mmu_pagetable_walk: addr 5000 pferr 6 W|U\n"
        "CPU:0 [LOST 3 EVENTS]\n"
        "  CPU 0/KVM-1  [000] 2.000000: kvm_mmu_spte_requested: gfn 9 pfn 1 level 1\n"
        "  CPU 0/KVM-1  [000] 2.000001: kvm_mmu_set_spte: gfn 9 spte 1e67 (rwxu) level 1 at 0\n"
    )
    events, _, _ = load(file, tmp_path, "ftrace")
    assert events.select("gfn", "latency_ns", "gva").rows() == [(9, None, None)]


def test_odd_lines_are_read_or_counted_with_their_numbers(tmp_path: Path) -> None:
    events, report, _ = load("odd.txt", tmp_path, "perf")
    rows = {row["kind"]: row for row in events.iter_rows(named=True)}
    assert rows["madvise"]["pages"] == 3
    assert rows["madvise"]["latency_ns"] == 2_000
    assert (rows["host_fault"]["hva"], rows["host_fault"]["access"]) == (0x7F0000003ABC, 2)
    assert rows["host_fault"]["flags"] & FLAG_MAJOR == 0
    assert (rows["fallocate"]["pages"], rows["fallocate"]["arg"], rows["fallocate"]["hva"]) == (512, 3, None)
    assert rows["hypercall"]["arg"] == 5
    assert rows["hv_hypercall"]["arg"] == 0x8003
    assert (rows["apf_not_present"]["gfn"], rows["apf_not_present"]["arg"]) == (0x1234, 0x10007)
    assert rows["apf_not_present"]["vcpu"] == 7
    assert rows["apf_completed"]["hva"] == 0x7F0001234000
    assert rows["apf_ready"]["gva"] == 0x7FFF0000
    assert rows["vcpu_block"]["latency_ns"] == 51_234  # slept, as in a recording
    assert rows["vcpu_wake"]["latency_ns"] == 702  # polling was enough
    assert (rows["page_free"]["gfn"], rows["page_free"]["pages"]) == (0x1234, 8)
    allocs = events.filter(pl.col("kind") == "page_alloc")
    assert allocs.select("gfn", "pages", "flags").rows() == [(0x1234, 8, FLAG_ZEROED), (4661, 1, 0)]
    assert (rows["age"]["hva"], rows["age"]["pages"]) == (0x7F0000000000, 512)
    assert (rows["access"]["gfn"], rows["access"]["pages"], rows["access"]["arg"]) == (1 << 20, 2120, 3)
    # The madvise that failed is no row, as in a recording.
    assert events.filter(pl.col("kind") == "madvise").height == 1
    assert dict(report.other_events) == {"sched_switch": 1}
    assert [(bad["line"], bad["why"]) for bad in report.bad_examples] == [
        (5, "not an event"),
        (6, "kvm_mmu_spte_requested in a form not known"),
    ]
    assert report.lines == 24


def test_strict_stops_at_the_first_bad_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="line 5: not an event: this line is not an event"):
        load("odd.txt", tmp_path, "perf", strict=True)
    assert not (tmp_path / "out.trace").exists()


@pytest.mark.usefixtures("decoded_by")
def test_memslots_that_the_user_knows_give_gfns(tmp_path: Path) -> None:
    slot = Memslot(gpa=0x100000, size_bytes=0x10000, hva=0x7F12A0000000)
    events, _, _ = load("ept-5.10.txt", tmp_path, memslots=(slot,))
    assert events["gfn"].to_list() == [7, 7, 0x107]
    assert open_trace(tmp_path / "out.trace").memslots["known_by"].to_list() == ["assumed"]


@pytest.mark.usefixtures("decoded_by")
def test_accesses_of_a_process_are_virtual_addresses(tmp_path: Path) -> None:
    events, _, _ = load("damon-perf.txt", tmp_path, "perf", addresses="gva")
    assert events["gfn"].null_count() == events.height == 36
    physical, _, _ = load("damon-perf.txt", tmp_path, "perf")
    assert (events["gva"] // 4096 == physical["gfn"]).all()


def test_call_chains_are_passed_over(tmp_path: Path) -> None:
    lines = (FILES / "perf-pid-ns.txt").read_text().splitlines()
    chained = tmp_path / "chains.txt"
    chain = "\tffffffff8104f45a set_spte+0x1a ([kernel.kallsyms])\n\t    7f0501ad4b70 [unknown] (/x.so)\n\n"
    chained.write_text("".join(f"{line}\n{chain}" for line in lines))
    events, report, _ = load(chained, tmp_path, "perf", strict=True)
    assert guest_faults(events).height == 102
    assert report.lines == 4 * len(lines)


@pytest.mark.parametrize("size", [500, 1000])
def test_the_size_of_blocks_changes_nothing(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracekit.datasets.importers import text_trace

    whole, report, losses = load("perf-lost.txt", tmp_path, "perf")
    monkeypatch.setattr(text_trace, "line_blocks", lambda s: blocks_module.line_blocks(s, size))
    again, report_again, losses_again = load("perf-lost.txt", tmp_path, "perf")
    assert whole.equals(again)
    assert losses.equals(losses_again)
    assert report == report_again


@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")), max_size=20), st.booleans())
@settings(max_examples=150, deadline=None)
def test_garbage_is_scanned_line_by_line(lines: list[bytes], ends: bool) -> None:
    block = b"\n".join(lines) + (b"\n" if ends else b"")
    scanned = scan(block)
    assert scanned.status.size == len(block.split(b"\n")) - (not block or block.endswith(b"\n"))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_line_is_no_crash_and_counts_as_one_line(data: st.DataObject) -> None:
    line = data.draw(st.sampled_from((FILES / "odd.txt").read_bytes().splitlines()))
    at = data.draw(st.integers(0, max(0, len(line) - 1)))
    bits = data.draw(st.integers(1, 255))
    damaged = bytes([*line[:at], line[at] ^ bits, *line[at + 1 :]]) if line else b""
    assert scan(damaged.replace(b"\n", b"?")).status.size == (1 if line else 0)


def test_a_compressed_file_and_a_pipe_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    packed = tmp_path / "x.txt.gz"
    packed.write_bytes(gzip.compress((FILES / "npt-6.1.txt").read_bytes()))
    whole, _, _ = load("npt-6.1.txt", tmp_path)
    assert load(packed, tmp_path, "trace-cmd")[0].equals(whole)

    class Stdin:
        buffer = io.BytesIO((FILES / "npt-6.1.txt").read_bytes())

    monkeypatch.setattr("sys.stdin", Stdin)
    report = import_trace("-", tmp_path / "pipe.trace", format="trace-cmd")
    assert report.rows.total() == whole.height


def test_a_file_without_events_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello\n")
    with pytest.raises(UsageError, match="no event that belongs in a trace"):
        import_trace(tmp_path / "x.txt", tmp_path / "out.trace", format="perf")
    assert not (tmp_path / "out.trace").exists()
    (tmp_path / "nothing.txt").touch()
    for file, words in (("missing.txt", "no file at"), ("nothing.txt", "is empty"), (".", "is a folder")):
        for name in ("", "perf", "perf-data", "trace-dat", "damo", "csv"):
            with pytest.raises(UsageError, match=words):
                import_trace(tmp_path / file, tmp_path / "out.trace", format=name)
    with pytest.raises(UsageError, match="cannot tell the format"):
        import_trace(tmp_path / "x.txt", tmp_path / "out.trace")
    with pytest.raises(UsageError, match="no format is called"):
        import_trace(tmp_path / "x.txt", tmp_path / "out.trace", format="pref")


def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    program = tmp_path / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_binary_files_go_through_their_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the tools check what they are asked, and answer with real output."""
    binary = tmp_path / "trace.dat"
    binary.write_bytes(b"\x17\x08\x44tracing6\0")
    answer = f'[ "$*" = "report -t -i {binary}" ] || exit 9\ncat {FILES}/trace-cmd-shadow.txt'
    tool(tmp_path, monkeypatch, "trace-cmd", answer)
    assert guest_faults(load(binary, tmp_path)[0]).height == 102
    perf_data = tmp_path / "perf.data"
    perf_data.write_bytes(b"PERFILE2....")
    tool(tmp_path, monkeypatch, "perf", f"cat {FILES}/perf-pid-ns.txt")
    assert guest_faults(load(perf_data, tmp_path)[0]).height == 102
    tool(tmp_path, monkeypatch, "perf", "echo 'incompatible file format' >&2; exit 3")
    with pytest.raises(DamagedError, match="perf failed: incompatible file format"):
        load(perf_data, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityError, match="perf is not installed") as caught:
        load(perf_data, tmp_path)
    assert caught.value.hint == "apt-get install linux-perf"
