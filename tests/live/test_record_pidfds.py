"""What process_madvise advises is a row of the process that was behind the pidfd, whatever becomes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

from tests.live.recording import of_kind, record_command
from tracekit.probes.plan import RecordPlan
from tracekit.probes.run import record
from tracekit.trace import open_trace

pytestmark = pytest.mark.live("bpf", "root")

COLD = 20  # MADV_COLD
CALLER = """
import ctypes, mmap, os, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
class Range(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]
def own(pages):
    global m  # it stays
    m = mmap.mmap(-1, 8192 * pages)
    for page in range(pages): m[8192 * page] = 1
    return ctypes.addressof(ctypes.c_char.from_buffer(m))
def cool(pidfd, first, pages):
    ranges = [(first + 8192 * page, 4096) for page in range(pages)]
    assert libc.syscall(440, pidfd, (Range * pages)(*ranges), pages, 20, 0) == 4096 * pages
"""


def recorded_caller(path: Path, script: str) -> pl.DataFrame:
    """The `process_madvise` rows of a script in which `cool` advises, with the `pid` that they are of."""
    trace, _ = record_command(path, sys.executable, "-c", CALLER + script)
    pids = pl.DataFrame({"pid": [vm["pid"] for vm in trace.meta.vms]}).with_row_index("vm")
    rows = of_kind(trace, "process_madvise").join(pids.with_columns(pl.col("vm").cast(pl.UInt16)), on="vm")
    assert (rows["arg"] == COLD).all()
    return rows


def test_a_caller_that_closes_its_pidfds_and_ends_leaves_all_its_rows(tmp_path: Path) -> None:
    rows = recorded_caller(
        tmp_path / "closed.trace",
        """
first = own(1009)
for page in range(1009):
    pidfd = os.pidfd_open(os.getpid())
    cool(pidfd, first + 8192 * page, 1)
    os.close(pidfd)
""",
    )
    assert rows.height == 1009
    assert (rows["hva"].diff().drop_nulls() == 8192).all()
    assert rows["tid"].equals(rows["pid"].cast(pl.UInt32).rename("tid"))


def test_a_pidfd_that_is_another_process_by_now_is_not_the_one_advised(tmp_path: Path) -> None:
    rows = recorded_caller(
        tmp_path / "reused.trace",
        """
first = own(101)
other = subprocess.Popen(["sleep", "9"])
for page in range(101):
    pidfd = os.pidfd_open(os.getpid())
    cool(pidfd, first + 8192 * page, 1)
    os.close(pidfd)
assert os.pidfd_open(other.pid) == pidfd
time.sleep(0.5)  # the recorder has looked at them
other.kill()
""",
    )
    assert rows.height == 101
    assert (rows["tid"] == rows["pid"]).all()


def test_another_process_is_the_one_advised_and_who_is_not_traced_is_nobodys(tmp_path: Path) -> None:
    rows = recorded_caller(
        tmp_path / "other.trace",
        """
first = own(13)  # a child has its parent's memory at the same place
ready, done = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.close(done[1])  # else it would wait for itself, should its parent fail
    os.read(done[0], 1)
    os._exit(0)
pidfd = os.pidfd_open(child)
cool(pidfd, first, 13)
os.close(pidfd)
os.write(done[1], b".")
os.waitpid(child, 0)
""",
    )
    assert rows.height == 13
    assert rows["pid"].n_unique() == 1
    assert (rows["tid"] != rows["pid"]).all()


@pytest.mark.parametrize(("ranges", "cut"), [(256, 0), (300, 44)])
def test_ranges_beyond_what_a_program_can_walk_are_in_the_ledger(
    tmp_path: Path, ranges: int, cut: int
) -> None:
    script = f"first = own({ranges}); cool(os.pidfd_open(os.getpid()), first, {ranges})"
    out = tmp_path / "many.trace"
    report = record(RecordPlan(out=out, command=(sys.executable, "-c", CALLER + script)))
    assert report.exit_code == 0
    assert report.losses.get("ranges_cut", 0) == cut
    assert of_kind(open_trace(out), "process_madvise").height + cut == ranges


def test_a_hole_is_in_the_file_that_was_behind_the_descriptor(tmp_path: Path) -> None:
    trace, _ = record_command(
        tmp_path / "hole.trace",
        sys.executable,
        "-c",
        """
import ctypes, mmap, os, time
libc = ctypes.CDLL(None, use_errno=True)
ram, other = os.memfd_create("ram"), os.memfd_create("other")
for fd in (ram, other): os.truncate(fd, 1 << 20)
mapped, elsewhere = mmap.mmap(ram, 1 << 20), mmap.mmap(other, 1 << 20)
spare = os.dup(ram)
for page in range(17):
    assert not libc.fallocate(spare, 3, ctypes.c_long(4096 * page), ctypes.c_long(4096))
os.dup2(other, spare)
print(ctypes.addressof(ctypes.c_char.from_buffer(mapped)), file=open(os.environ["TELL"], "w"))
time.sleep(1)  # the recorder looks up the mapping while it is there
""".replace('os.environ["TELL"]', repr(str(tmp_path / "at"))),
    )
    at = int((tmp_path / "at").read_text())
    assert of_kind(trace, "fallocate")["hva"].to_list() == [at + 4096 * page for page in range(17)]
