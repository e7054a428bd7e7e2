"""Real writers that are killed, or whose disk fills up or vanishes."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.torn_traces import PART, contents, rows, write_frames
from tracekit.errors import DamagedError, FailedError
from tracekit.trace import open_trace, recover

WRITER = """
import sys, numpy as np
from tracekit.trace import Meta, TraceWriter, events_batch
writer = TraceWriter(sys.argv[1], Meta(source="synthetic"), max_part_bytes=200_000)
start, acknowledged = 0, 0
while True:
    ts = np.arange(start, start + 5000) * 1000
    writer.append(events_batch(ts_ns=ts, kind="ept_violation", gfn=ts * 7 % 1_000_003, latency_ns=ts % 977))
    start += 5000
    writer.add_sample(int(ts[-1]), 0, "rss_bytes", float(start))
    if start % 20_000 == 0:
        print(writer.flush(), flush=True)
"""


def test_sigkill_of_a_real_writer_loses_no_acknowledged_row(tmp_path):
    rng = random.Random(11)
    for attempt in range(5):
        path = tmp_path / f"{attempt}.trace"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 60)):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        later = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        acknowledged = int(later[-1]) if later and len(later[-1]) >= len(str(acknowledged)) else acknowledged
        report = recover(path)
        trace = open_trace(path)
        assert trace.rows == report.rows >= acknowledged > 0
        table = pa.Table.from_batches(trace.batches())
        ts = np.arange(trace.rows) * 1000
        assert np.array_equal(table["ts_ns"].to_numpy(), ts)
        assert np.array_equal(table["gfn"].to_numpy(), ts * 7 % 1_000_003)
        assert np.array_equal(table["latency_ns"].to_numpy(), ts % 977)
        assert trace.lost is None


FILLS_THE_DISK = """
import sys, resource, numpy as np
from tracekit.trace import Meta, TraceWriter, events_batch
from tracekit.errors import FailedError
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
random, start = np.random.default_rng(0), 0
try:
    with TraceWriter(sys.argv[1], Meta(source="synthetic")) as writer:
        while start < 10_000_000:
            ts = np.arange(start, start + 20_000) * 1000
            writer.append(events_batch(ts_ns=ts, kind="access", gfn=random.integers(0, 2**50, 20_000)))
            start += 20_000
except FailedError as error:
    print(start + 20_000, error.message, "|", error.hint)
"""


def fill(path, *arguments):
    ran = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(path), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    emitted, message = ran.stdout.split(" ", 1)
    return int(emitted), message


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk to fill")
def test_a_full_disk_keeps_what_fits_and_counts_the_rest_exactly(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "none", str(tmp_path)], check=True)
    try:
        path = tmp_path / "x.trace"
        emitted, message = fill(path)
        assert "the disk is full" in message
        assert "events are safe" in message
        assert f"tracekit recover {path}" in message
        moved = shutil.copytree(path, f"{tmp_path}-moved.trace")
        try:
            report = recover(moved)
            trace = open_trace(moved)
            assert report.rows > 100_000
            assert report.rows + trace.lost == emitted
            assert np.array_equal(contents(trace).column("ts_ns").to_numpy(), np.arange(trace.rows) * 1000)
        finally:
            shutil.rmtree(moved)
        with pytest.raises(DamagedError, match="nothing was removed"):
            recover(path)  # there is no room for it here
        assert (path / PART).exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_that_may_not_grow_leaves_a_recoverable_trace(tmp_path):
    emitted, message = fill(tmp_path / "x.trace", str(1 << 20))
    assert "File too large" in message
    report = recover(tmp_path / "x.trace")
    trace = open_trace(tmp_path / "x.trace")
    assert 0 < report.rows < emitted
    assert np.array_equal(contents(trace).column("ts_ns").to_numpy(), np.arange(trace.rows) * 1000)


def test_a_folder_that_is_removed_while_recording(tmp_path):
    writer, _ = write_frames(tmp_path / "x.trace")
    shutil.rmtree(tmp_path / "x.trace")
    writer.append(rows(1000))
    with pytest.raises(FailedError, match="removed"):
        writer.flush()
    assert list(Path(tmp_path).iterdir()) == []
