"""Runs every trace on Dask: a local cluster by default, or any cluster by its address."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tracekit.errors import CapabilityError, FailedError, UsageError
from tracekit.replay.fleet.places import Place, file_system
from tracekit.replay.fleet.store import clear_unfinished
from tracekit.replay.fleet.task import Outcome, Question, replay_trace, summarised

__all__ = ["connected", "replay_fleet"]

_WORKER: Final = {
    f"distributed.nanny.pre-spawn-environ.{name}": value
    for name, value in {
        # A worker has one core; more threads would take turns with the other workers'. (For pyarrow's pool
        # Dask says so itself.)
        "POLARS_MAX_THREADS": "1",
        # Dask lets glibc give every freed array back at once, and each batch then pays for fresh pages, which
        # the kernel zeroes: a tenth of the CPU time. 32 MiB is the most that glibc takes for the second.
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    }.items()
}
"""The environment of a local worker."""


def replay_fleet(places: Sequence[Place], question: Question, results: str, client: Any) -> Iterator[Outcome]:
    """Replay every trace through every scenario, yielding each outcome as it is ready.

    A task is one trace with all its scenarios. `client` is a Dask client (see `connected`); `results` a
    folder or URL (see `store`). Pairs of trace and scenario that are there already, with equal content, are
    kept. A trace that is bad, or whose worker is killed again and again, gives an outcome with an `error`.
    """
    with _owned(results):
        futures = client.map(
            replay_trace,
            list(places),
            question=question,
            results=results,
            key=[f"replay-{place.name}" for place in places],
            pure=False,
        )
        names = {future.key: place for future, place in zip(futures, places, strict=True)}
        distributed: Any = import_module("distributed")
        outcomes = []
        for future in distributed.as_completed(futures):
            if future.status == "finished":
                outcome = future.result()
            else:
                outcome = Outcome(names[future.key], error=_why(future))
            future.release()
            outcomes.append(outcome)
            yield outcome
        _write_account(results, outcomes)


@contextmanager
def connected(jobs: int | None = None, address: str | None = None, *, timeout_s: float = 10) -> Iterator[Any]:
    """Yield a Dask client of a cluster by address, or of a local cluster with `jobs` processes.

    The local one (default: a process per CPU) listens on loopback only. Raises CapabilityError when Dask is
    not installed or a worker lacks this version of tracekit, FailedError when nobody answers.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise CapabilityError(
            "a fleet needs Dask, which is not installed", hint="pip install 'tracekit[fleet]'"
        ) from None
    if address is not None:
        try:
            client = distributed.Client(address, timeout=timeout_s)
        except (OSError, ValueError) as error:
            raise FailedError(
                f"no Dask scheduler answers at {address}: {error}", hint="--dask tcp://HOST:8786"
            ) from None
        with client:
            _same_everywhere(client)
            yield client
        return
    with (
        tempfile.TemporaryDirectory(prefix="tracekit-fleet-") as scratch,
        import_module("dask").config.set(_WORKER),
        distributed.LocalCluster(
            n_workers=jobs or len(os.sched_getaffinity(0)),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _version() -> str:
    from importlib.metadata import version

    return version("tracekit")


def _same_everywhere(client: Any) -> None:
    """Check that every worker has this version of tracekit: another one could count differently."""
    here = _version()
    try:
        there = client.run(_version)
    except Exception as error:
        raise CapabilityError(
            f"the cluster's workers can't run tracekit: {error}", hint="pip install tracekit on every worker"
        ) from None
    if not there:
        raise FailedError("the cluster has no workers", hint="dask worker SCHEDULER_ADDRESS")
    for worker, found in there.items():
        if found != here:
            raise CapabilityError(
                f"worker {worker} has tracekit {found}, this is {here}", hint=f"pip install tracekit=={here}"
            )


@contextmanager
def _owned(results: str) -> Iterator[None]:
    """Keep two runs from writing into one local folder at a time."""
    if "://" in results:
        yield
        return
    folder = Path(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UsageError(f"cannot write into {results}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another fleet run is writing into {results}", hint="wait, or another -o"
            ) from None
        clear_unfinished(results)
        yield


def _why(future: Any) -> str:
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return "every worker that tried it was killed (out of memory?)"
    return f"{type(error).__name__}: {error}"


def _write_account(results: str, outcomes: Sequence[Outcome]) -> None:
    """Leave an account of the last run beside its results."""
    fs, root = file_system(results)
    with fs.open(f"{root}/last_run.json", "wb") as file:
        file.write(json.dumps(summarised(outcomes), indent=2).encode())
