"""The bundled traces: whole, small, documented, and free of what is no one's business."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from tracekit.datasets import catalog
from tracekit.datasets.bundle import MAX_BYTES, bundle
from tracekit.datasets.catalog import Card, cards, trace_path, trace_sha256
from tracekit.datasets.recipes import RECIPES
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.errors import DamagedError, UsageError
from tracekit.trace import open_trace

NAMES = [card.name for card in cards()]


def test_every_recipe_has_its_trace_and_all_fit_in_a_wheel() -> None:
    assert set(NAMES) == set(RECIPES)
    assert sum(card.size_bytes for card in cards()) <= 10 << 20


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_trace_is_what_its_card_says(name: str) -> None:
    card = catalog.card(name)
    trace = open_trace(trace_path(name))
    trace.verify()
    assert trace.meta.source == card.source == "recorded"
    assert (trace.rows, trace.lost) == (card.events, 0)
    assert trace.meta.host["mmu_mode"] == card.mmu_mode
    files = [file for file in card.path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) == card.size_bytes <= MAX_BYTES
    assert card.licence in ("CC0-1.0", "Apache-2.0")
    assert card.can_tell
    assert card.cannot_tell
    text = (card.path / "meta.json").read_text()
    assert "hostname" not in text
    assert not re.search(r"/(work|home|root|tmp)\b", text), "a folder of the machine it was made on"


def test_small_guest_zeroes_all_its_pages_before_it_uses_a_quarter() -> None:
    trace = open_trace(trace_path("small-guest-zero-then-use"))
    faults = trace.events.filter(pl.col("kind") == "ept_violation").collect()
    zeroed = faults.filter(pl.col("gfn") >= 512)
    # 16,411 steps of 16 KiB, from 2 MiB on, in ascending order; one more fault is the code's page.
    assert zeroed["gfn"].to_list() == list(range(512, 512 + 4 * 16_411))
    assert faults.height == 4 * 16_411 + 1
    assert faults["latency_ns"].null_count() == 0


def test_the_balloon_took_and_gave_back_64_mib_page_by_page() -> None:
    events = open_trace(trace_path("linux-balloon-reporting")).events
    pages = dict(
        events.group_by(pl.col("kind").cast(pl.String)).agg(pl.col("pages").sum()).collect().iter_rows()
    )
    assert pages["balloon_inflate"] == pages["balloon_deflate"] == (64 << 20) // 4096
    reports = events.filter(pl.col("kind") == "free_page_report").collect()
    assert reports["pages"].min() >= 512  # 2 MiB and more
    assert reports["gfn"].null_count() == 0


def test_linux_guests_on_small_pages_tell_page_by_page_what_they_touch() -> None:
    for name in ("linux-boot", "limit-zram"):
        faults = open_trace(trace_path(name)).events.filter(pl.col("kind") == "host_fault")
        guest = faults.filter(pl.col("gfn").is_not_null()).collect()
        assert guest["pages"].max() == 1
        assert guest["gfn"].n_unique() > 20_000
        assert guest["gfn"].max() < (256 << 20) // 4096


def test_swapping_under_a_limit_is_there_and_so_are_the_guests_own_zeroed_pages() -> None:
    limited = open_trace(trace_path("limit-zram")).events.collect()
    assert limited.filter(pl.col("kind") == "swap_out")["pages"].sum() > 1000
    back = limited.filter(pl.col("kind") == "swap_in")
    assert back.height > 100
    assert back["gfn"].null_count() < back.height  # of the guest, and of QEMU itself
    inside = open_trace(trace_path("guest-side")).events.filter(pl.col("kind") == "page_alloc").collect()
    assert inside.filter(pl.col("flags") & 2 != 0).height > 100


def test_a_changed_trace_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[0]
    shutil.copytree(catalog.DATA, tmp_path / "data")
    monkeypatch.setattr(catalog, "DATA", tmp_path / "data")
    before = trace_sha256(trace_path(name))
    (trace_path(name) / "notes.txt").write_text("x")
    assert trace_sha256(tmp_path / "data" / f"{name}.trace") != before
    with pytest.raises(DamagedError, match="not what its card says"):
        trace_path(name)


def test_a_card_survives_its_file_and_a_broken_one_is_named(tmp_path: Path) -> None:
    card = cards()[0]
    path = tmp_path / "x.card.toml"
    path.write_text(card.to_toml())
    assert Card.from_file(path) == card
    path.write_text(card.to_toml() + "colour = 3\n")
    with pytest.raises(DamagedError, match=r"x\.card\.toml is not a data card"):
        Card.from_file(path)


def test_only_recordings_can_be_bundled(tmp_path: Path) -> None:
    make_trace(GENERATORS["scan"](events=100), tmp_path / "x.trace")
    with pytest.raises(UsageError, match="no recording"):
        bundle(NAMES[0], tmp_path / "x.trace", tmp_path)
