"""Fuzz one target: `python -m tests.fuzz TARGET [SECONDS]`; `python -m tests.fuzz` lists them.

With atheris (the extra `fuzz`) inputs are chosen by the coverage they reach; without it, by hypothesis.
New inputs that reach more stay in build/fuzz/TARGET; what fails is kept there as crash-*, and then belongs
into tests/fuzz/found/TARGET, where `make test` runs it for ever.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CPU_SECONDS_PER_INPUT = 20
"""Generous: kernels are compiled on first use, and that takes some seconds each."""
MEMORY_BYTES = 1 << 30
"""What one input may add to the process's resident memory."""


class Watch:
    """Counts inputs, and fails one that takes too long or too much memory."""

    def __init__(self, name: str) -> None:
        from tests.fuzz.targets import TARGETS, refused

        self._target, self._refused = TARGETS[name], refused
        self.name = name
        self.inputs = self.said_no = 0
        self.slowest = 0.0
        self._peak = 0

    def one(self, data: bytes) -> None:
        """Run one input."""
        if not self.inputs:
            # Imports, and kernels that are compiled on first use, are not the input's doing.
            for path in sorted((HERE / "corpus" / self.name).glob("*")):
                self._refused(self._target, path.read_bytes())
            self._peak = _peak_bytes()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_PER_INPUT)
        start = time.perf_counter()
        try:
            self.said_no += self._refused(self._target, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.slowest = max(self.slowest, time.perf_counter() - start)
        self.inputs += 1
        peak = _peak_bytes()
        assert peak - self._peak < MEMORY_BYTES, f"{(peak - self._peak) >> 20} MiB more"
        self._peak = peak


def _compiled() -> list[str]:
    """Name the modules whose functions numba compiles, which it cannot once atheris has put counters in."""
    root = HERE.parents[1]
    files = [file for folder in ("replay", "datasets") for file in (root / folder).rglob("*.py")]
    return [
        ".".join(("tracekit", *file.relative_to(root).with_suffix("").parts))
        for file in files
        if re.search(r"replay\.jit import|numba", file.read_text()) or file.name == "jit.py"
    ]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _too_long(*_: Any) -> None:
    raise AssertionError(f"an input took more than {CPU_SECONDS_PER_INPUT} s of CPU time")


def _tell(watch: Watch, start: float, by: str) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "target": watch.name,
        "by": by,
        "inputs": watch.inputs,
        "refused": watch.said_no,
        "slowest_s": round(watch.slowest, 3),
        "peak_mib": _peak_bytes() >> 20,
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Run one target for some seconds and print what was done as one line of JSON."""
    if len(sys.argv) < 2:
        print("finished compacted recovered part meta toml importers ring replay")
        return
    name, seconds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    os.environ.setdefault("RUST_BACKTRACE", "0")
    signal.signal(signal.SIGPROF, _too_long)
    corpus = HERE.parents[1] / "build" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        import atheris
    except ImportError:
        _by_hypothesis(Watch(name), seconds, start)
        return
    with atheris.instrument_imports(include=["tracekit"], exclude=_compiled(), enable_loader_override=False):
        watch = Watch(name)
    start = time.monotonic()

    def one(data: bytes) -> None:
        try:
            watch.one(data)
        except BaseException:
            traceback.print_exc()
            _tell(watch, start, "atheris")
            os.write(2, b"FOUND\n")
            raise
        # libFuzzer's own end does not let Python say what was done.
        if time.monotonic() - start >= seconds:
            _tell(watch, start, "atheris")
            os._exit(0)

    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds + 60}",
        f"-artifact_prefix={corpus}/",
        "-max_len=4096",
        "-timeout=600",
        "-rss_limit_mb=6000",
        "-print_final_stats=0",
        "-verbosity=0",
        str(corpus),
        str(HERE / "corpus" / name),
    ]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def _by_hypothesis(watch: Watch, seconds: int, start: float) -> None:
    """Without atheris: inputs by hypothesis, some from the corpus with changes, until the time is over."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    seeds = [path.read_bytes() for path in sorted((HERE / "corpus" / watch.name).glob("*"))] or [b""]

    def changed(seed: bytes, at: int, piece: bytes) -> bytes:
        return seed[:at] + piece + seed[at + len(piece) :]

    near = st.builds(changed, st.sampled_from(seeds), st.integers(0, 4096), st.binary(max_size=64))
    inputs = st.binary(max_size=4096) | near

    @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def some(data: bytes) -> None:
        watch.one(data)

    try:
        while time.monotonic() - start < seconds:
            some()
    finally:
        _tell(watch, start, "hypothesis")


if __name__ == "__main__":
    main()
