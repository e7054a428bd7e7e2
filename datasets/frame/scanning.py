"""Many traces as one LazyFrame: folders, patterns and fsspec URLs."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from tracekit.errors import CapabilityError, DamagedError, FailedError, UsageError
from tracekit.trace import Trace, open_trace
from tracekit.trace.folder import EVENTS_DIR
from tracekit.trace.meta import Meta
from tracekit.trace.part import PartLine

__all__ = ["find_traces", "scan"]


def scan(traces: str | Path | Trace | Iterable[str | Path | Trace]) -> pl.LazyFrame:
    """Return the events of all traces as one LazyFrame, with the column `trace` (the folder's name) in front.

    `traces`: folders, patterns ("runs/*.trace"), fsspec URLs (https://…, s3://…; patterns where the store
    lists its folders), opened traces.
    Rows are in the order of the traces, in time order inside each; only the columns and rows that a query
    needs are read. Remote traces are copied once to a cache (TRACEKIT_CACHE, else ~/.cache/tracekit).

    Raises UsageError when a path or a pattern has no trace, what `open_trace` raises, CapabilityError for a
    URL without fsspec (tracekit[remote]) and FailedError when a copy fails.

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
        raise CapabilityError("URLs need fsspec", hint="pip install 'tracekit[remote]'") from None
    try:
        system, path = fsspec.core.url_to_fs(url)
        folders = [str(p) for p in system.glob(path)] if glob.has_magic(path) else [path]
        folders = [folder for folder in folders if system.exists(f"{folder}/meta.json")]
        if not folders:
            raise UsageError(f"no trace at {url}", hint="the folder with meta.json in it")
        return [_fetch(system, folder.rstrip("/")) for folder in sorted(folders)]
    except (OSError, ImportError, ValueError) as error:
        raise FailedError(f"cannot read {url}: {error}", hint="check the URL and its credentials") from None


def _fetch(system: Any, folder: str) -> Path:
    # A finished trace does not change: its manifest names every part with a checksum.
    meta, manifest = (system.cat_file(f"{folder}/{name}") for name in ("meta.json", "manifest.jsonl"))
    version = hashlib.sha256(meta + manifest).hexdigest()[:16]
    cache = Path(os.environ.get("TRACEKIT_CACHE") or Path.home() / ".cache" / "tracekit") / "traces" / version
    target = cache / Path(folder).name
    if not target.exists():
        scratch = cache / f"{target.name}.part{os.getpid()}"
        (scratch / EVENTS_DIR).mkdir(parents=True)
        # File by file, as the trace names them: a plain web server lists no folders.
        for name in _files(meta.decode(), manifest.decode()):
            system.get_file(f"{folder}/{name}", str(scratch / name))
        scratch.rename(target)
    return target


def _files(meta: str, manifest: str) -> list[str]:
    """Return the files of a trace, relative to its folder; DamagedError for a name that leads out of it."""
    parts = [PartLine.from_json(line).part for line in manifest.splitlines()]
    tables = list(Meta.from_json(meta).tables)
    for name in [*parts, *tables]:
        if Path(name).name != name:
            raise DamagedError(f"a remote trace names a file outside itself: {name[:60]!r}")
    return ["meta.json", "manifest.jsonl", *tables, *(f"{EVENTS_DIR}/{part}" for part in parts)]


def _names(traces: list[Trace]) -> list[str]:
    """Name each trace by its folder; by its whole path where two folders are called the same."""
    short = [trace.path.name.removesuffix(".trace") for trace in traces]
    names = [
        name if short.count(name) == 1 else str(trace.path) for name, trace in zip(short, traces, strict=True)
    ]
    if len(set(names)) < len(names):
        raise UsageError("the same trace is meant twice", hint="name each trace once")
    return names
