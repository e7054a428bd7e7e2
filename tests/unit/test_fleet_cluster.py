"""The fleet command against a cluster of its own: a scheduler and a worker started here, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.unit import fleet_bucket
from tests.unit.test_fleet_run import make_trace, question, replay_all, rows_of

SCENARIO = "prealloc,via=pre_fault"
HERE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four web VMs, of which one is no trace, and one db VM."""
    root = tmp_path_factory.mktemp("traces")
    for i in range(3):
        make_trace(root / "web" / f"host{i}.trace", 500 + 10 * i)
    make_trace(root / "db" / "host0.trace", 800)
    (root / "web" / "bad.trace").mkdir()
    return root


def environment(root: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "NUMBA_CACHE_DIR") if name in os.environ}
    return {**kept, "HOME": str(root), "NO_COLOR": "1", "COLUMNS": "80", fleet_bucket.ROOT: str(root)}


def fleet(root: Path, *args: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run `tracekit fleet` in a process that knows `bucket://` URLs below `root`."""
    code = "import tests.unit.fleet_bucket, sys; from tracekit.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "fleet", *args],
        capture_output=True, text=True, check=False, timeout=timeout, env=environment(root), cwd=HERE,
    )  # fmt: skip


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A scheduler and one worker, as an operator starts them; both end with the test."""
    about = tmp_path / "scheduler.json"
    loopback = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = [
        ["scheduler", *loopback, "--port", "0", "--scheduler-file", str(about)],
        ["worker", "--scheduler-file", str(about), *loopback, "--nthreads", "1", "--no-nanny",
         "--local-directory", str(tmp_path / "scratch"), "--preload", str(fleet_bucket.__file__)],
    ]  # fmt: skip
    started = []
    try:
        for command in commands:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *command],
                    env=environment(tmp_path),
                    cwd=HERE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            until = time.monotonic() + 60
            while not about.exists() and time.monotonic() < until:
                time.sleep(0.05)
        found = str(json.loads(about.read_text())["address"])
        assert found.startswith("tcp://127.0.0.1:")
        yield found
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)


def test_a_cluster_by_address_reads_and_writes_an_object_store(
    traces: Path, tmp_path: Path, address: str
) -> None:
    shutil.copytree(traces, tmp_path / "traces")
    asked = ["bucket://traces", "-s", SCENARIO, "-o", "bucket://results", "--dask", address, "--json"]
    first = fleet(tmp_path, *asked)
    assert first.returncode == 1, first.stderr  # one of them is bad, and the others are done all the same
    answer = json.loads(first.stdout)
    assert (answer["traces"], answer["replayed"], answer["kept"]) == (5, 4, 0)
    assert [bad["url"] for bad in answer["failed"]] == ["bucket://traces/web/bad.trace"]
    assert "web/bad" in first.stderr
    assert "5/5" in first.stderr  # the progress bar's last state
    assert "1 bad" in first.stderr
    assert "Traceback" not in first.stderr

    replay_all(traces, tmp_path / "alone", question(SCENARIO))
    assert_frame_equal(rows_of(tmp_path / "results"), rows_of(tmp_path / "alone"))

    again = fleet(tmp_path, *asked)
    assert (json.loads(again.stdout)["replayed"], json.loads(again.stdout)["kept"]) == (0, 4)


def test_a_file_url_is_a_place_too(traces: Path, tmp_path: Path, address: str) -> None:
    results = (tmp_path / "results").as_uri()
    done = fleet(
        tmp_path, (traces / "db").as_uri(), "-s", SCENARIO, "-o", results, "--dask", address, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert f"next: tracekit density {results} " in done.stderr  # a URL as it was given
    assert json.loads(done.stdout)["replayed"] == 1
    assert rows_of(tmp_path / "results")["trace"].unique().to_list() == ["host0"]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """SIGKILL everything at once, workers too, after the first trace is done; then the same command again."""
    for i in range(6):
        make_trace(tmp_path / "traces" / f"host{i}.trace", 4000 + i)
    results = tmp_path / "results"
    asked = [str(tmp_path / "traces"), "-s", SCENARIO, "-o", str(results), "--jobs", "1", "--json"]
    run = subprocess.Popen(
        [sys.executable, "-m", "tracekit", "fleet", *asked],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(tmp_path),
        start_new_session=True,  # so that its workers die with it
    )  # fmt: skip
    until = time.monotonic() + 120
    while not list(results.glob("rows/**/*.parquet")) and time.monotonic() < until and run.poll() is None:
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(timeout=30)
    there = len(list(results.glob("rows/**/*.parquet")))
    assert there >= 1
    again = json.loads(fleet(tmp_path, *asked).stdout)
    assert again["kept"] >= there
    assert again["kept"] + again["replayed"] == 6
    replay_all(tmp_path / "traces", tmp_path / "alone", question(SCENARIO))
    assert_frame_equal(rows_of(results), rows_of(tmp_path / "alone"))


def test_duckdb_reads_the_results(traces: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    replay_all(traces, tmp_path, question(SCENARIO))
    found = duckdb.sql(
        "select vm_class, count(*), sum(baseline)"
        f" from read_parquet('{tmp_path}/rows/**/*.parquet', hive_partitioning = true)"
        " where metric = 'faults' group by vm_class order by vm_class"
    ).fetchall()
    assert found == [("db", 1, 800.0), ("web", 3, 1530.0)]
    mine = rows_of(tmp_path).filter(pl.col("metric") == "faults")
    assert mine["baseline"].sum() == 2330
