"""Many traces as one LazyFrame: folders, patterns and fsspec URLs."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from tracekit.errors import CapabilityError, FailedError, UsageError
from tracekit.trace import Trace, open_trace

__all__ = ["find_traces", "scan"]


def scan(traces: str | Path | Trace | Iterable[str | Path | Trace]) -> pl.LazyFrame:
    """Return the events of all traces as one LazyFrame, with the column `trace` (the folder's name) in front.

    `traces`: folders, patterns ("runs/*.trace"), fsspec URLs (s3://…, patterns too), opened traces.
    Rows are in the order of the traces, in time order inside each; only the columns and rows that a query
    needs are read. Remote traces are copied once to a cache (TRACEKIT_CACHE, else ~/.cache/tracekit).

    Raises UsageError when a path or a pattern has no trace, what `open_trace` raises, CapabilityError for a
    URL without fsspec (tracekit[fleet]) and FailedError when a copy fails.

    >>> from tracekit.datasets.catalog import cards
    >>> both = scan([card.path for card in cards()])
    >>> both.collect_schema().names()[:3]
    ['trace', 'ts_ns', 'kind']
    """
    found = find_traces(traces)
    names = _names(found)
    dtype = pl.Enum(names)
    frames = [
        trace.events.select(pl.lit(name).cast(dtype).alias("trace"), pl.all())
        for name, trace in zip(names, found, strict=True)
    ]
    return pl.concat(frames)


def find_traces(traces: str | Path | Trace | Iterable[str | Path | Trace]) -> list[Trace]:
    """Open every trace that is meant; see `scan`."""
    one = isinstance(traces, str | Path | Trace)
    out: list[Trace] = []
    for item in [traces] if one else list(traces):  # type: ignore[arg-type]
        if isinstance(item, Trace):
            out.append(item)
        else:
            out += [open_trace(path) for path in _paths(str(item))]
    if not out:
        raise UsageError("no traces to scan", hint="tracekit datasets list")
    return out


def _paths(text: str) -> list[Path]:
    if "://" in text:
        return _fetched(text)
    if not glob.has_magic(text) or Path(text).exists():
        return [Path(text)]
    found = (Path(path) for path in sorted(glob.glob(text)))  # noqa: PTH207  (absolute patterns too)
    matches = [path for path in found if (path / "meta.json").is_file()]
    if not matches:
        raise UsageError(f"no trace matches {text}", hint=f"ls -d {text}")
    return matches


def _fetched(url: str) -> list[Path]:
    """Copy the traces behind a URL to the cache, those that are not there yet; returns their folders."""
    try:
        import fsspec
    except ImportError:
        raise CapabilityError("URLs need fsspec", hint="pip install 'tracekit[fleet]'") from None
    try:
        system, path = fsspec.core.url_to_fs(url)
        folders = [str(p) for p in system.glob(path)] if glob.has_magic(path) else [path]
        folders = [folder for folder in folders if system.exists(f"{folder}/meta.json")]
        if not folders:
            raise UsageError(f"no trace at {url}", hint="the folder with meta.json in it")
        return [_fetch(system, folder.rstrip("/")) for folder in sorted(folders)]
    except (OSError, ImportError, ValueError) as error:
        raise FailedError(f"cannot read {url}: {error}", hint="check the URL and its credentials") from None


def _fetch(system: object, folder: str) -> Path:
    read, get = system.cat_file, system.get  # type: ignore[attr-defined]
    # A finished trace does not change: its manifest names every part with a checksum.
    version = hashlib.sha256(read(f"{folder}/meta.json") + read(f"{folder}/manifest.jsonl")).hexdigest()[:16]
    cache = Path(os.environ.get("TRACEKIT_CACHE") or Path.home() / ".cache" / "tracekit") / "traces" / version
    target = cache / Path(folder).name
    if not target.exists():
        scratch = cache / f"{target.name}.part{os.getpid()}"
        scratch.mkdir(parents=True)
        get(f"{folder}/", f"{scratch}/", recursive=True)
        scratch.rename(target)
    return target


def _names(traces: list[Trace]) -> list[str]:
    """Name each trace by its folder; by its whole path where two folders are called the same."""
    short = [trace.path.name.removesuffix(".trace") for trace in traces]
    names = [
        name if short.count(name) == 1 else str(trace.path) for name, trace in zip(short, traces, strict=True)
    ]
    if len(set(names)) < len(names):
        raise UsageError("the same trace is meant twice", hint="name each trace once")
    return names
