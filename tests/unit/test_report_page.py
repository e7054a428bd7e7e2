"""The page as a file: one file, inert, complete; and the command that writes it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.unit.report_example import HOSTILE, MS, START, command, example_meta, result_rows, write_example
from tracekit.errors import UsageError
from tracekit.report import notices
from tracekit.report.figure import Figure
from tracekit.report.figures import draw
from tracekit.report.limits import fault_curve
from tracekit.report.outline import Outline
from tracekit.report.page import render
from tracekit.report.study import Study, load_result
from tracekit.report.write import write_report
from tracekit.trace import TraceWriter, events_batch, open_trace

CURVES = pl.DataFrame(
    {
        "scenario": ["baseline"] * 3 + ["zeroing"] * 3,
        "ts_ns": [START, START + 2000 * MS, START + 4000 * MS] * 2,
        "resident_bytes": [0.0, 3e8, 5e8, 0.0, 2e8, 4e8],
    }
)
SWINGS = pl.DataFrame(
    {
        "metric": "stall",
        "unit": "ns",
        "parameter": ["lead_ms", "fault_ns"],
        "at_low": ["1", "2000"],
        "at_high": ["100", "5000"],
        "saved": 6e9,
        "saved_at_low": [2e9, 5e9],
        "saved_at_high": [7e9, 7.5e9],
    }
)
MISS_RATIO = pl.DataFrame(
    {"resident_bytes": [1e8, 2e8], "miss_ratio": [0.4, 0.01], "low": [0.3, 0.0], "high": [0.5, 0.02]}
)
ZEROING = pl.DataFrame(
    {
        "side": "guest",
        "size_bytes": [32 << 20, 2 << 30],
        "zero_ns": [4e6, 3e8],
        "low_ns": [3e6, 2e8],
        "high_ns": 4e8,
    }
)


def everything(folder: Path, **meta: Any) -> Study:
    """A study that has data for every chart."""
    return Study(
        "example.trace",
        trace=write_example(folder / "example.trace", **meta),
        rows=result_rows(),
        curves=CURVES,
        swings=SWINGS,
        miss_ratio=MISS_RATIO,
        zeroing=ZEROING,
        provenance={"seed": 7, "scenarios": [{"name": HOSTILE}]},
    )


class Parts(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return everything(tmp_path_factory.mktemp("page"), lost=17)


@pytest.fixture(scope="module")
def figures(study: Study) -> list[Figure]:
    return draw(study)


@pytest.fixture(scope="module")
def page(study: Study, figures: list[Figure]) -> str:
    return render(study, figures)


def test_every_chart_is_drawn_when_everything_is_known(figures: list[Figure]) -> None:
    names = [figure.name for figure in figures]
    assert " ".join(names) == (
        "savings waterfall resident stall latency heat balloon tornado miss-ratio zeroing"
    )


def test_what_the_charts_say_is_right(figures: list[Figure]) -> None:
    says = {figure.name: figure.says for figure in figures}
    assert says["savings"] == (
        "The surest saving of guest stall: 88 % of the baseline (62 to 100 %) by both, bounded."
    )
    # 40 x 200 us of 40 x 200 us + 1,100 x 3 us
    assert says["stall"] == "MMU fault 2 MiB makes 71 % of 11.3 ms stall."
    assert says["heat"].startswith("In all: first touch 83.9 MiB")  # (1,000 + 40 x 512) x 4 KiB
    assert "balloon 256 KiB" in says["balloon"]  # 64 pages
    assert says["tornado"] == "lead_ms matters most: alone it moves the saving by 5.00 s."
    assert says["miss-ratio"] == "At 95.4 MiB 40 % of the faults stay, at 191 MiB 1 %."
    assert says["zeroing"] == "2.00 GiB take 300 ms (guest)."
    assert "baseline 477 MiB" in says["resident"]
    assert "zeroing 381 MiB" in says["resident"]


def test_page_is_one_file_that_names_no_other(page: str) -> None:
    parts = Parts(page)
    for tag, attributes in parts.tags:
        for name in ("src", "srcset", "action", "data", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        if "href" in attributes:
            assert (attributes["href"] or "").startswith(("#", "data:,")), (tag, attributes)
    assert "@import" not in page
    assert not re.search(r"url\((?!data:)", page.split("<script", maxsplit=1)[0])
    policy = next(m["content"] for m in parts.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_page_is_under_3_megabytes(page: str) -> None:
    assert len(page.encode()) < 3_000_000


def test_a_page_full_to_the_last_cell_is_under_3_megabytes_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    events = 250_000
    with TraceWriter(tmp_path / "full.trace", example_meta()) as writer:
        writer.append(
            events_batch(
                ts_ns=START + np.arange(events) * 1000,
                kind=rng.choice(["ept_violation", "balloon_inflate"], events),
                gfn=rng.integers(0, 1 << 17, events),
                latency_ns=rng.lognormal(9, 2, events).astype(np.uint64),
            )
        )
    many = pl.concat([result_rows().with_columns(pl.col("scenario") + pl.lit(f",n={n}")) for n in range(6)])
    study = Study("full.trace", trace=open_trace(tmp_path / "full.trace"), rows=many)
    figures = draw(study)
    heat = next(figure for figure in figures if figure.name == "heat")
    assert len(heat.spec()["datasets"].popitem()[1]) > 25_000
    assert len(render(study, figures).encode()) < 3_000_000


def test_hostile_strings_are_text_and_nothing_else(page: str) -> None:
    parts = Parts(page)
    # A data block, the runtime, our script: a trace adds none, and no picture, handler or escape either.
    assert len(parts.scripts) == 3
    assert not parts.all("img")
    assert not [a for _, attributes in parts.tags for a in attributes if a.startswith("on")]
    assert "\x1b" not in page
    assert "\x07" not in page
    assert any("document.title" in text for text in parts.text)  # shown, not hidden
    data = json.loads(parts.scripts[0])
    assert "<" not in parts.scripts[0]
    assert data["figures"][0]["name"] == "savings"


def test_hostile_scenario_names_are_inert_in_charts_too(tmp_path: Path) -> None:
    rows = result_rows().with_columns(pl.col("scenario").replace("zeroing", HOSTILE))
    page = render(Study("x.json", rows=rows))
    assert len(Parts(page).scripts) == 3
    assert "\\u001b" not in Parts(page).scripts[0]


def test_screen_readers_and_keyboards_get_everything(page: str, figures: list[Figure]) -> None:
    parts = Parts(page)
    assert parts.all("html")[0]["lang"] == "en"
    pictures = [a for _, a in parts.tags if a.get("role") == "img"]
    assert [a["aria-label"] for a in pictures] == [figure.alt_text for figure in figures]
    assert all(len(figure.alt_text) > 40 for figure in figures)
    assert len(parts.all("details")) >= len(figures)
    for attributes in parts.all("section"):
        assert "aria-labelledby" in attributes or "aria-label" in attributes
    for attributes in parts.all("div"):
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"
    identifiers = [a["id"] for _, a in parts.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    referred = [i for _, a in parts.tags for i in (a.get("aria-labelledby") or "").split()]
    assert set(referred) <= set(identifiers)


def test_headline_ledger_and_losses_are_said(page: str) -> None:
    text = " ".join(" ".join(Parts(page).text).split())
    assert "17 events were lost" in text
    assert "What you would save" in text
    assert "7.00 s guest stall saved, of 8.00 s (88 %) 5.00 s to 8.00 s" in text
    assert text.index("both") < text.index("hot_hint,lead_ms=5") < text.index("The ledger")
    assert "ring full" in text
    assert "replay: seed 7" in text
    assert "Synthetic" not in text


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"source": "synthetic"}, "Synthetic trace."),
        ({"source": "imported"}, "Imported trace."),
        ({"recovered": True}, "Recovered trace."),
    ],
)
def test_banners(tmp_path: Path, meta: dict[str, Any], words: str) -> None:
    text = render(Study("x", trace=write_example(tmp_path / "x.trace", **meta)))
    assert words in text


def test_unknown_losses_are_an_alarm(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "x.trace", example_meta()) as writer:
        writer.add_loss(cpu=None, t0_ns=1, t1_ns=2, lost=None, reason="killed")
    text = render(Study("x", trace=open_trace(tmp_path / "x.trace")))
    assert "Events were lost, how many is unknown." in text


def test_losses_that_last_are_one_row(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "x.trace", example_meta()) as writer:
        for turn in range(1009):
            writer.add_loss(cpu=turn % 2, t0_ns=turn, t1_ns=turn + 1, lost=3, reason="ring_full")
    rows = notices.losses(Study("x", trace=open_trace(tmp_path / "x.trace")))
    assert [(row["cpu"], row["lost"]) for row in rows] == [("0", "1,515"), ("1", "1,512")]


def test_an_empty_trace_and_a_bare_result_make_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "x.trace", example_meta()):
        pass
    empty = render(Study("x", trace=open_trace(tmp_path / "x.trace")))
    assert "gfn x time: needs a trace with located events" in empty
    bare = render(Study("x.json", rows=result_rows()))
    assert "fault latency: no event in the trace has a latency" in bare
    assert "What you would save" in bare


# -- results from files


def test_a_result_may_be_rows_alone_or_carry_more(tmp_path: Path) -> None:
    alone, more = tmp_path / "alone.json", tmp_path / "more.json"
    alone.write_text(json.dumps(result_rows().to_dicts()))
    more.write_text(
        json.dumps(
            {
                "about": {"seed": 3},
                "rows": result_rows().to_dicts(),
                "curves": CURVES.to_dict(as_series=False),
            }
        )
    )
    assert load_result(alone).rows is not None
    study = load_result(more)
    assert study.provenance == {"seed": 3}
    assert study.curves is not None
    assert study.curves.equals(CURVES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no rows"),
        ('{"rows": 3}', "holds no rows"),
        ('{"rows": [{"scenario": 1}]}', "column mechanism is missing"),
        ("\x00\xff", "is not JSON"),
        ('"x"', "holds no rows"),
    ],
)
def test_what_is_no_result_says_so(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=words):
        load_result(path)


def test_a_result_with_a_wrong_table_says_which(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"rows": result_rows().to_dicts(), "curves": [{"when": 1}]}))
    with pytest.raises(UsageError, match="curves is not a table of scenario, ts_ns, resident_bytes"):
        load_result(path)


def test_a_calibration_alone_draws_its_zeroing_chart(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_text(json.dumps({"costs": {}, "zeroing": ZEROING.to_dicts()}))
    assert [figure.name for figure in draw(load_result(path))] == ["zeroing"]


def test_zeroing_is_priced_by_the_profile_where_it_was_not_measured() -> None:
    profile = {"profile": {"costs_ns": {"guest_zero_4k": [500.0, 240.0, 1700.0], "ept_4k": [1.0, 1.0, 1.0]}}}
    (figure,) = [f for f in draw(Study("x", provenance=profile)) if f.name == "zeroing"]
    # 2 GiB are 524,288 pages of 4 KiB, 500 ns each
    assert figure.says == "2.00 GiB take 262 ms (guest)."


def test_more_memory_is_told_from_faults_and_evictions(tmp_path: Path) -> None:
    # Two frames under LRU, pages used: 1 2 3 1 2. A third frame keeps all but the three first uses: 3 of 5.
    pages, evicts = [1, 2, 3, 1, 1, 2, 2, 3], [False, False, False, True, False, True, False, True]
    with TraceWriter(tmp_path / "x.trace", example_meta()) as writer:
        kinds = ["swap_out" if evict else "ept_violation" for evict in evicts]
        writer.append(events_batch(ts_ns=[START + n for n in range(8)], kind=kinds, gfn=pages, latency_ns=9))
    curve = fault_curve(Outline(open_trace(tmp_path / "x.trace")))
    assert curve is not None
    assert dict(zip(curve["resident_bytes"] // 4096, curve["miss_ratio"], strict=True)) == {2: 1.0, 3: 0.6}


# -- writing


def test_figures_are_written_as_svg_and_png(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result_rows().to_dicts()))
    written = write_report(path, output=tmp_path / "x.html", figures_to=tmp_path / "figures")
    names = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert names == ["savings.png", "savings.svg", "waterfall.png", "waterfall.svg"]
    assert sorted(p.name for p in written.pictures) == names
    assert (tmp_path / "figures" / "savings.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "figures" / "savings.svg").read_text()
    assert svg.startswith("<svg")
    assert "var(--" not in svg


def test_command_writes_the_page_and_names_the_next_command(tmp_path: Path) -> None:
    write_example(tmp_path / "boot.trace")
    done = command("report", "boot.trace", "--no-replay", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "boot.html\n"
    assert (tmp_path / "boot.html").stat().st_size > 500_000
    assert "next: " in done.stderr
    again = command("report", "boot.trace", "--no-replay", cwd=tmp_path)
    assert again.returncode == 2
    assert "boot.html exists" in again.stderr
    facts = json.loads(command("report", "boot.trace", "--no-replay", "-f", "--json", cwd=tmp_path).stdout)
    assert [chart["name"] for chart in facts["charts"]] == ["resident", "stall", "latency", "heat", "balloon"]


def test_command_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("nonsense")
    for source, words in (("x.json", "is not JSON"), ("nowhere.trace", "nowhere.trace")):
        done = command("report", source, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert words in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("*.html"))


def test_a_saving_that_may_be_nothing_is_not_called_the_most() -> None:
    from tracekit.report.figures.of_result import _surest_saving

    def said(*ends: tuple[float, float, float]) -> str:
        rows = [
            dict(zip(("share_low", "share", "share_high"), map(float, values), strict=True))
            | {"metric": "stall", "scenario": name, "label": "bounded"}
            for name, values in zip("ab", ends, strict=True)
        ]
        return _surest_saving(pl.from_dicts(rows))

    assert said((0, 1, 1), (0.2, 0.3, 0.4)) == (
        "The surest saving of stall: 30 % of the baseline (20 to 40 %) by b, bounded."
    )
    assert said((0, 0.5, 0.9), (-1, 0, 0)) == "No saving of stall is sure; a may save up to 90 %."
    assert said((-0.5, -0.1, 0), (0, 0, 0)) == "No scenario saves stall."
