"""The report in headless Chromium, as a person has it: opened from disk, hovered, saved, printed."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.live.chromium import Browser
from tests.unit.report_example import HOSTILE, result_rows
from tests.unit.test_report_page import everything
from tracekit.report.figures import draw
from tracekit.report.page import render

FORMULA = '=HYPERLINK("file:///etc/passwd")'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every chart, made from a trace whose argv and scenario names are hostile."""
    folder = tmp_path_factory.mktemp("browser")
    study = everything(folder, lost=17)
    assert study.rows is not None
    hostile = {"both": HOSTILE, "zeroing": FORMULA}
    study.rows = study.rows.with_columns(pl.col("scenario").replace(hostile))
    path = folder / "report.html"
    path.write_text(render(study, draw(study)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.console.clear()
    browser.requests.clear()
    browser.open(page)
    return browser


def test_it_opens_from_disk_draws_everything_and_asks_for_nothing(opened: Browser, page: Path) -> None:
    assert opened.run("document.documentElement.dataset.drawn") == "10"
    assert opened.run("document.querySelectorAll('.chart svg').length") == 10
    assert opened.console == []
    assert opened.requests == [page.absolute().as_uri()]


def test_every_chart_has_ink_and_words(opened: Browser) -> None:
    empty = opened.run(
        "[...document.querySelectorAll('figure')].filter(f => {"
        " const marks = f.querySelectorAll('.chart svg path[d], .chart svg rect, .chart svg line').length;"
        " const words = f.querySelectorAll('.chart svg text').length;"
        " return marks < 5 || words < 3; }).map(f => f.id)"
    )
    assert empty == []


def test_charts_are_drawn_in_the_colours_of_their_ground(opened: Browser, page: Path, tmp_path: Path) -> None:
    words, marks = {}, {}
    for scheme in ("light", "dark"):
        opened.open(page, scheme=scheme)
        # A blank picture of this size is under 2 kB.
        assert len(opened.screenshot(tmp_path / f"{scheme}.png", "#resident .chart")) > 8_000
        words[scheme] = opened.run(colour("#resident .chart svg text", "fill"))
        marks[scheme] = opened.run(colour("#stall .chart svg .mark-rect path", "fill"))
    # --ink of either ground, and --series-1
    assert (marks["light"], marks["dark"]) == ("rgb(0, 114, 178)", "rgb(92, 184, 240)")
    assert (words["light"], words["dark"]) == ("rgb(89, 99, 110)", "rgb(154, 167, 180)")


def colour(selector: str, name: str) -> str:
    return f"getComputedStyle(document.querySelector({json.dumps(selector)})).{name}"


def test_hostile_strings_stay_text(opened: Browser) -> None:
    assert opened.run("document.title").startswith("What enlightened memory would save")
    assert (
        opened.run("document.querySelectorAll('img, iframe, object, embed, [onerror], [onload]').length") == 0
    )
    assert opened.run("document.scripts.length") == 3
    assert opened.run("document.body.innerText.includes('document.title=\"owned\"')") is True
    # And a script that gets in some other way does not run either: the page's policy knows only its own two.
    opened.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\">')")
    opened.run(
        "(() => { const s = document.createElement('script'); s.text = 'window.owned = 1';"
        " document.body.append(s); })()"
    )
    assert opened.run("window.owned === undefined") is True
    assert any("Content Security Policy" in line for line in opened.console)


def test_hover_says_what_a_mark_is(opened: Browser) -> None:
    box: dict[str, Any] = opened.run(
        "(() => { const bars = [...document.querySelectorAll('#savings .chart svg .mark-rect path')];"
        " const bar = bars.find(b => b.getBoundingClientRect().width > 20);"
        " bar.scrollIntoView({block: 'center'}); const r = bar.getBoundingClientRect();"
        " return {x: r.x + r.width / 4, y: r.y + 3}; })()"
    )
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"], y=box["y"])
    opened.wait(
        "document.querySelector('#vg-tooltip-element')?.classList.contains('visible') === true", seconds=10
    )
    text = opened.run("document.querySelector('#vg-tooltip-element').innerText")
    assert "scenario" in text
    assert "saved" in text


@pytest.fixture
def downloads(opened: Browser, tmp_path: Path) -> Path:
    opened.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    return tmp_path


def saved(opened: Browser, folder: Path, figure: str, kind: str) -> str:
    opened.run(f"document.querySelector('[data-save={kind}][data-of={figure}]').click()")
    path = folder / f"{figure}.{kind}"
    opened.until(
        lambda: path.exists() and path.stat().st_size > 0, f"{path.name} to be downloaded", seconds=20
    )
    return path.read_text(encoding="utf-8")


def test_the_data_of_a_chart_can_be_saved(opened: Browser, downloads: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(saved(opened, downloads, "heat", "csv"))))
    touched = sum(int(row["pages"]) for row in rows if row["what"] == "first touch")
    assert touched == 1000 + 40 * 512
    assert sum(int(row["pages"]) for row in rows if row["what"] == "discard") == 164
    curves = json.loads(saved(opened, downloads, "resident", "json"))
    assert {row["series"] for row in curves} == {"baseline", "zeroing", "RSS of the VMM, sampled"}
    assert max(row["resident_bytes"] for row in curves if row["series"] == "baseline") == 5e8


def test_a_picture_can_be_saved_and_stands_alone(opened: Browser, downloads: Path) -> None:
    svg = saved(opened, downloads, "stall", "svg")
    assert svg.startswith("<svg")
    assert "var(--" not in svg
    assert "rgb(" in svg


def test_saved_cells_are_no_formulas(opened: Browser, downloads: Path) -> None:
    rows = list(csv.reader(io.StringIO(saved(opened, downloads, "savings", "csv"))))
    cells = [cell for row in rows for cell in row]
    assert f"'{FORMULA}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]


def test_everything_can_be_reached_by_keyboard(opened: Browser) -> None:
    reached = set()
    first = ""
    for _ in range(120):
        for kind in ("keyDown", "keyUp"):
            opened.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        now = opened.run(
            "(() => { const e = document.activeElement;"
            " return e.tagName + ' ' + (e.dataset.save ?? '') + ' ' + (e.dataset.of ?? ''); })()"
        ).strip()
        first = first or now
        reached.add(now)
    assert first == "A"  # skip to the charts
    buttons = opened.run(
        "[...document.querySelectorAll('button')].map(b => 'BUTTON ' + b.dataset.save + ' ' + b.dataset.of)"
    )
    assert len(buttons) == 30
    assert set(buttons) <= reached
    assert "SUMMARY" in reached


def test_a_screen_reader_hears_headings_pictures_and_tables(opened: Browser) -> None:
    opened.call("Accessibility.enable")
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    names: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            role = node.get("role", {}).get("value", "")
            names.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert "What you would save" in names["heading"]
    pictures = names.get("image", []) + names.get("img", [])
    assert len([name for name in pictures if len(name) > 40]) == 10
    assert all(name for name in names["button"])
    assert len(names["table"]) >= 3
    opened.call("Accessibility.disable")


def test_it_is_readable_on_a_phone_and_never_wider_than_the_screen(opened: Browser, page: Path) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=375, height=800, deviceScaleFactor=1, mobile=True)
    opened.open(page)
    assert opened.run("document.documentElement.scrollWidth") <= 375
    opened.call("Emulation.clearDeviceMetricsOverride")


def test_it_prints_light_whole_and_without_buttons(opened: Browser, page: Path) -> None:
    opened.open(page, scheme="dark", media="print")
    assert opened.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert opened.run("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    pdf = base64.b64decode(opened.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF")
    assert 3 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page>>") + pdf.count(b"/Type /Page ") <= 20


def test_a_result_without_a_trace_opens_too(browser: Browser, tmp_path: Path) -> None:
    from tracekit.report.study import Study

    path = tmp_path / "result.html"
    path.write_text(render(Study("result.json", rows=result_rows())), encoding="utf-8")
    browser.console.clear()
    browser.open(path)
    assert browser.console == []
    assert browser.run("document.documentElement.dataset.drawn") == "2"
