"""A fleet: traces found, replayed once each, kept by content, on real Dask workers, one of them killed."""

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
from threading import Thread
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tracekit.errors import FailedError, UsageError
from tracekit.replay import load_profile, read_scenarios, run
from tracekit.replay.fleet import load_curves
from tracekit.replay.fleet.cluster import connected, replay_fleet
from tracekit.replay.fleet.places import Place, find_traces
from tracekit.replay.fleet.store import UNFINISHED, Store
from tracekit.replay.fleet.summary import summary
from tracekit.replay.fleet.task import Outcome, Question, replay_trace
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace
from tracekit.trace.fingerprint import fingerprint


def make_trace(path: Path, pages: int, first_gfn: int = 0) -> Path:
    """A trace of `pages` first touches of 3 us each, 10 us apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ts = 1_000_000 + 10_000 * np.arange(1, pages + 1, dtype=np.uint64)
    meta = Meta(source="synthetic", vms=[{"pid": 1, "vcpus": 1}], start_ns=1_000_000, stop_ns=int(ts[-1]))
    with TraceWriter(path, meta) as writer:
        writer.append(
            events_batch(
                ts_ns=ts,
                kind=np.zeros(pages, np.uint8),  # ept_violation
                vm=np.zeros(pages, np.uint16),
                tid=np.full(pages, 7, np.uint32),
                vcpu=np.zeros(pages, np.int16),
                gfn=np.arange(first_gfn, first_gfn + pages, dtype=np.uint64),
                pages=np.ones(pages, np.uint32),
                level=np.ones(pages, np.uint8),
                access=np.full(pages, 2, np.uint8),
                flags=np.zeros(pages, np.uint32),
                latency_ns=np.full(pages, 3000, np.uint64),
            )
        )
    return path


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three web VMs, two db VMs, one without a class."""
    root = tmp_path_factory.mktemp("traces")
    for i in range(3):
        make_trace(root / "web" / f"host{i}.trace", 500 + 10 * i)
    for i in range(2):
        make_trace(root / "db" / f"host{i}.trace", 800 + 10 * i)
    make_trace(root / "alone.trace", 300)
    return root


def question(*scenarios: str, **more: Any) -> Question:
    return Question(tuple(read_scenarios(scenarios or ("prealloc", "hot_hint"))), load_profile(), **more)


def rows_of(results: Path) -> pl.DataFrame:
    found = pl.read_parquet(results / "rows", hive_partitioning=True)
    return found.sort("trace", "scenario", "metric", "mechanism")


def replay_all(traces: Path, results: Path, asked: Question) -> list[Outcome]:
    return [replay_trace(place, asked, str(results)) for place in find_traces([str(traces)])]


def test_traces_are_found_with_names_and_classes(traces: Path, tmp_path: Path) -> None:
    found = find_traces([str(traces)])
    assert [(place.name, place.vm_class) for place in found] == [
        ("alone", "default"),
        ("db/host0", "db"),
        ("db/host1", "db"),
        ("web/host0", "web"),
        ("web/host1", "web"),
        ("web/host2", "web"),
    ]
    (one,) = find_traces([str(traces / "web" / "host1.trace")])
    assert (one.name, one.vm_class) == ("host1", "default")
    with pytest.raises(UsageError, match="two traces are called host0"):
        find_traces([str(traces / "web"), str(traces / "db")])
    with pytest.raises(UsageError, match="no folder called"):
        find_traces([str(tmp_path)])
    with pytest.raises(UsageError, match="no such folder"):
        find_traces([str(tmp_path / "nowhere")])


def test_rows_are_those_of_a_single_replay(traces: Path, tmp_path: Path) -> None:
    outcomes = replay_all(traces, tmp_path, question())
    assert [(one.replayed, one.kept, one.error) for one in outcomes] == [(2, 0, "")] * 6
    assert outcomes[0].events == 300
    everything = rows_of(tmp_path)
    assert everything["source"].unique().to_list() == ["synthetic"]
    alone = run(open_trace(traces / "web" / "host1.trace"), ["prealloc", "hot_hint"])
    mine = everything.filter(pl.col("trace") == "web/host1")
    order = ["scenario", "metric", "mechanism"]
    assert_frame_equal(mine.select(alone.rows.columns).sort(order), alone.rows.sort(order))
    assert mine["vm_class"].unique().to_list() == ["web"]
    curves = load_curves([str(tmp_path)])
    assert set(curves.grids) == {"baseline", "prealloc", "hot_hint"}
    assert curves.grids["baseline"].values.max() == 810 * 4096  # db/host1 touches the most pages


def test_curves_hold_what_the_trace_leaves_open(traces: Path, tmp_path: Path) -> None:
    replay_all(traces / "web", tmp_path, question("zeroing"))
    curves = pl.read_parquet(tmp_path / "curves", hive_partitioning=True)
    recorded, replayed = curves.partition_by("scenario", maintain_order=True)
    assert recorded["scenario"][0] == "baseline"
    assert (recorded["low_bytes"] == recorded["high_bytes"]).all()  # recorded from the start, nothing lost
    # A host cannot tell which first writes were zeroing: between none of them and all.
    last = replayed.filter(pl.col("trace") == "host0")[-2]
    assert last["resident_bytes"].item() == last["low_bytes"].item() == 0
    assert last["high_bytes"].item() == 500 * 4096


def test_what_is_done_is_kept_and_what_changed_is_done_again(traces: Path, tmp_path: Path) -> None:
    mine, results = tmp_path / "traces", tmp_path / "results"
    shutil.copytree(traces / "web", mine / "web")

    def once(*scenarios: str, **more: Any) -> list[tuple[int, int]]:
        return [(one.replayed, one.kept) for one in replay_all(mine, results, question(*scenarios, **more))]

    assert once("prealloc") == [(1, 0)] * 3
    before = {file: file.stat().st_mtime_ns for file in results.rglob("*.parquet")}
    assert once("prealloc") == [(0, 1)] * 3
    assert {file: file.stat().st_mtime_ns for file in results.rglob("*.parquet")} == before
    assert once("prealloc", "hot_hint") == [(1, 1)] * 3
    assert once("hot_hint") == [(0, 1)] * 3
    assert set(rows_of(results)["scenario"]) == {"prealloc", "hot_hint"}  # what wasn't asked again stays

    shutil.rmtree(mine / "web" / "host2.trace")
    make_trace(mine / "web" / "host2.trace", 77)
    assert once("prealloc", "hot_hint") == [(0, 2), (0, 2), (2, 0)]
    faults = rows_of(results).filter(metric="faults", trace="web/host2")
    assert faults["baseline"].to_list() == [77, 77]

    file = tmp_path / "mine.toml"
    for lead_ms in (1, 2):  # the same name with other parameters replaces what the name meant
        file.write_text(f'[[scenario]]\nname = "mine"\n[scenario.hot_hint]\nlead_ms = {lead_ms}\n')
        assert once(str(file)) == [(1, 0)] * 3
    pairs = rows_of(results).select("trace", "scenario", "pair").unique()
    assert pairs.height == 3 * 3
    assert pairs["pair"].n_unique() == 3 * 3

    assert once("prealloc", seed=5) == [(1, 0)] * 3  # other terms: nothing of before belongs beside it
    assert set(rows_of(results)["scenario"]) == {"prealloc"}


def test_a_bad_trace_is_an_outcome(traces: Path, tmp_path: Path) -> None:
    mine = tmp_path / "traces"
    shutil.copytree(traces / "web", mine)
    part = next((mine / "host0.trace" / "events").iterdir())
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    part.write_bytes(damaged)
    (mine / "host1.trace" / "meta.json").unlink()
    (mine / "empty.trace").mkdir()
    outcomes = {one.place.name: one for one in replay_all(mine, tmp_path / "results", question("prealloc"))}
    assert {name for name, one in outcomes.items() if one.error} == {"host0", "host1", "empty"}
    assert "damaged" in outcomes["host0"].error
    assert outcomes["host2"].replayed == 1
    assert rows_of(tmp_path / "results")["trace"].unique().to_list() == ["host2"]


def test_damaged_results_are_done_again(traces: Path, tmp_path: Path) -> None:
    place, asked = find_traces([str(traces)])[0], question("prealloc")
    replay_trace(place, asked, str(tmp_path))
    (file,) = (tmp_path / "rows").rglob("*.parquet")
    whole = rows_of(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    assert replay_trace(place, asked, str(tmp_path)).replayed == 1
    assert_frame_equal(rows_of(tmp_path), whole)


def test_provenance_is_kept_with_the_results(traces: Path, tmp_path: Path) -> None:
    place = find_traces([str(traces / "db" / "host0.trace")])[0]
    replay_trace(place, question("prealloc", seed=3), str(tmp_path))
    (about,) = Store(str(tmp_path)).read(place).about
    assert about["seed"] == 3
    assert about["versions"]["tracekit"]
    assert about["trace"]["events"] == 800


def test_the_fingerprint_is_that_of_the_content(traces: Path, tmp_path: Path) -> None:
    one, other = traces / "web" / "host0.trace", traces / "web" / "host1.trace"
    copy = shutil.copytree(one, tmp_path / "elsewhere.trace")
    assert fingerprint(copy) == fingerprint(one) != fingerprint(other)


def test_traces_and_results_may_be_urls(traces: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    store = MemoryFileSystem()
    try:
        store.put(str(traces / "web"), "/bucket/web", recursive=True)
        found = find_traces(["memory://bucket"])
        assert [(p.url, p.name) for p in found][:1] == [("memory:///bucket/web/host0.trace", "web/host0")]
        for place in found:
            assert replay_trace(place, question("prealloc"), "memory://results").replayed == 1
            assert replay_trace(place, question("prealloc"), "memory://results").kept == 1
        assert {one.vms for one in summary("memory://results")} == {3}
        assert len(load_curves(["memory://results"]).traces) == 3
    finally:
        store.rm("/", recursive=True)


def test_the_summary_is_the_mean_per_vm_by_hand(traces: Path, tmp_path: Path) -> None:
    replay_all(traces, tmp_path, question("prealloc,via=pre_fault", "zeroing+hot_hint"))
    found = {(s.vm_class, s.scenario, s.metric): s for s in summary(str(tmp_path), by_class=True)}
    web = found["web", "prealloc,via=pre_fault", "faults"]
    assert (web.vms, web.synthetic, web.unknown) == (3, 3, 0)
    assert (web.baseline, web.saved) == (510, 510)  # 500, 510, 520 faults, all gone
    assert (web.band.low, web.band.high) == (510, 510)
    assert web.interval.low is None  # three VMs
    everyone = {(s.scenario, s.metric): s for s in summary(str(tmp_path))}
    alone = everyone["prealloc,via=pre_fault", "faults"]
    assert alone.saved == pytest.approx((500 + 510 + 520 + 800 + 810 + 300) / 6)
    both = everyone["zeroing+hot_hint", "faults"]  # the total, not a step of the waterfall
    assert both.vms == 6
    with pytest.raises(UsageError, match="no Parquet files"):
        summary(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connected(jobs=2) as found:
        yield found


def test_dask_gives_what_one_process_gives(traces: Path, tmp_path: Path, client: Any) -> None:
    outcomes = list(replay_fleet(find_traces([str(traces)]), question(), str(tmp_path / "dask"), client))
    assert sorted(one.replayed for one in outcomes) == [2] * 6
    replay_all(traces, tmp_path / "alone", question())
    assert_frame_equal(rows_of(tmp_path / "dask"), rows_of(tmp_path / "alone"))
    account = json.loads((tmp_path / "dask" / "last_run.json").read_text())
    assert (account["traces"], account["replayed"], account["failed"]) == (6, 12, [])
    again = list(replay_fleet(find_traces([str(traces)]), question(), str(tmp_path / "dask"), client))
    assert sum(one.replayed for one in again) == 0


def test_two_runs_may_not_write_into_one_folder(traces: Path, tmp_path: Path, client: Any) -> None:
    places = find_traces([str(traces)])
    first = replay_fleet(places, question(), str(tmp_path), client)
    next(first)
    with pytest.raises(UsageError, match="another fleet run"):
        next(replay_fleet(places, question(), str(tmp_path), client))
    assert len(list(first)) == len(places) - 1


def test_no_scheduler_is_said() -> None:
    with (
        pytest.raises(FailedError, match="no Dask scheduler answers"),
        connected(address="tcp://127.0.0.1:1", timeout_s=1),
    ):
        pass


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    """Kill -9 the worker that has a task, while it has it; every trace must be counted exactly once."""
    traces, results = tmp_path / "traces", tmp_path / "results"
    for i in range(4):
        make_trace(traces / f"host{i}.trace", 4_000 + i, first_gfn=i)
    places = find_traces([str(traces)])
    asked = question()
    with connected(jobs=2) as client:
        pids = client.run(os.getpid)
        outcomes = replay_fleet(places, asked, str(results), client)
        busy: list[Any] = []
        victim = next(iter(pids))

        def kill_a_busy_worker() -> None:
            limit = time.monotonic() + 60
            while not busy and time.monotonic() < limit:
                tasks = next((t for w, t in client.processing().items() if w == victim), ())
                if tasks:
                    os.kill(pids[victim], signal.SIGKILL)
                    busy.extend(tasks)
                time.sleep(0.005)

        # The generator submits all tasks at its first step, which then waits for the first outcome.
        killer = Thread(target=kill_a_busy_worker)
        killer.start()
        done = list(outcomes)
        killer.join()
        after = client.run(os.getpid)
    assert busy
    assert set(after.values()) != set(pids.values())  # a worker really died
    assert [one.error for one in done] == [""] * 4
    assert len({one.place.name for one in done}) == 4
    replay_all(traces, tmp_path / "alone", asked)
    assert_frame_equal(rows_of(results), rows_of(tmp_path / "alone"))
    faults = rows_of(results).filter(metric="faults", scenario="prealloc")
    assert faults["baseline"].sum() == sum(4_000 + i for i in range(4))


def test_leftovers_of_a_killed_worker_are_not_results(traces: Path, tmp_path: Path, client: Any) -> None:
    place = Place(str(traces / "alone.trace"), "alone", "default")
    list(replay_fleet([place], question("prealloc"), str(tmp_path), client))
    assert list((tmp_path / UNFINISHED).iterdir()) == []
    leftover = tmp_path / UNFINISHED / "0123"
    leftover.write_bytes(b"PAR1 and no more")
    before = rows_of(tmp_path)
    list(replay_fleet([place], question("prealloc"), str(tmp_path), client))
    assert not leftover.exists()
    assert_frame_equal(rows_of(tmp_path), before)


def test_the_command_goes_on_past_a_bad_trace_and_names_it(traces: Path, tmp_path: Path) -> None:
    mine = tmp_path / "traces"
    shutil.copytree(traces / "web", mine / "web")
    (mine / "web" / "bad.trace").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tracekit", "fleet", str(mine), "-s", "prealloc,via=pre_fault",
         "-o", str(tmp_path / "out"),
         "--jobs", "1", "--json"],
        capture_output=True, text=True, check=False, timeout=180,
        env={"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "80", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["traces"], answer["replayed"]) == (4, 3)
    assert [bad["trace"] for bad in answer["failed"]] == ["web/bad"]
    faults = [one for one in answer["summary"] if one["metric"] == "faults"]
    assert [(one["vms"], one["saved"]) for one in faults] == [(3, 510)]
    assert "web/bad" in done.stderr
    assert "1 of 4 traces could not be replayed" in done.stderr
    assert "Traceback" not in done.stderr
