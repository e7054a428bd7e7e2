"""Turns a fresh recording into a bundled trace: without names of this machine, with its data card.

`python -m tracekit.datasets.bundle NAME TRACE FOLDER` is how the traces under data/ came to be.
"""

from __future__ import annotations

import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from tracekit.datasets.catalog import Card, trace_sha256
from tracekit.datasets.recipes import RECIPES
from tracekit.errors import UsageError
from tracekit.trace import Meta, open_trace

__all__ = ["MAX_BYTES", "bundle"]

MAX_BYTES = 3 << 20
"""The most a bundled trace may weigh."""


def bundle(name: str, trace_path: Path, folder: Path) -> Card:
    """Copy a recording of the recipe `name` to `folder`/NAME.trace, and write its card beside it.

    Host name, local kernel suffix and the folders of programs are left out of meta.json. Raises UsageError if
    the trace is no recording, lost events or is too large.
    """
    recipe = RECIPES[name]
    trace = open_trace(trace_path)
    if trace.meta.source != "recorded" or trace.lost != 0:
        raise UsageError(f"{trace_path} is no recording without losses", hint=recipe.record_again)
    out = folder / f"{name}.trace"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(trace_path, out, copy_function=shutil.copyfile)
    meta = anonymous(trace.meta)
    meta.command = list(recipe.command)
    (out / "meta.json").write_text(meta.to_json(), encoding="utf-8")
    open_trace(out).verify()
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if size > MAX_BYTES:
        raise UsageError(
            f"{name} has {size:,} bytes, more than {MAX_BYTES:,}", hint="make its recipe smaller"
        )
    started_ns = (meta.start_ns or 0) + meta.clock.get("realtime_offset_ns", 0)
    card = Card(
        name=name,
        title=recipe.title,
        about=recipe.about,
        source=meta.source,
        licence=recipe.licence,
        date=datetime.fromtimestamp(started_ns / 1e9, UTC).date().isoformat(),
        command=" ".join(recipe.command),
        record_again=recipe.record_again,
        kernel=meta.host["kernel"],
        cpu=meta.host["cpu"],
        kvm_module=meta.host["kvm_module"],
        mmu_mode=meta.host["mmu_mode"],
        tool_version=meta.tool_version,
        events=trace.rows,
        lost=trace.lost,
        span_s=round(trace.span_ns / 1e9, 3),
        size_bytes=size,
        sha256=trace_sha256(out),
        can_tell=list(recipe.can_tell),
        cannot_tell=list(recipe.cannot_tell),
    )
    (folder / f"{name}.card.toml").write_text(card.to_toml(), encoding="utf-8")
    return card


def anonymous(meta: Meta) -> Meta:
    """Return the meta without what names the machine: host name, kernel's local suffix, folders.

    >>> host = {"hostname": "build7", "kernel": "6.18.4-x7"}
    >>> meta = Meta(host=host, command=["/home/me/bin/tracekit", "lab"])
    >>> clean = anonymous(meta)
    >>> clean.host, clean.command
    ({'kernel': '6.18.4'}, ['tracekit', 'lab'])
    """
    clean = Meta.from_json(meta.to_json())
    clean.host.pop("hostname", None)
    if version := re.match(r"[\d.]+", clean.host.get("kernel", "")):
        clean.host["kernel"] = version[0].rstrip(".")
    clean.command = [_without_folders(word) for word in clean.command]
    for vm in clean.vms:
        vm["argv"] = [_without_folders(word) for word in vm.get("argv", [])]
    return clean


def _without_folders(word: str) -> str:
    return re.sub(r"(?<![\w.-])/[^\s,:=]*/", "", word)


if __name__ == "__main__":
    made = bundle(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    print(f"{made.name}: {made.events:,} events, {made.size_bytes:,} bytes")
